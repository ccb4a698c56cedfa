/* Preloaded (LD_PRELOAD) before libc: counts what changes files below a folder, and just before the
 * K-th such call ends the process, or in the middle of it where it writes, or lets it and all later
 * ones find a full disk.
 *
 * Python, Orbax and TensorStore all call libc by these names. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { KILL = 1, FULL = 2, TORN = 3 };
static char folder[PATH_MAX];
static size_t folder_length;
static long strike_at;
static int fault;
static atomic_long count;
static char kinds[1 << 16]; /* of each counted call: 'w' writes, 'r' needs room, 'n' neither */

/* kind: KILL, FULL, TORN, or 0 to count only. */
void faults_arm(const char *path, long at, int kind) {
  strncpy(folder, path, sizeof folder - 1);
  folder_length = strlen(folder);
  strike_at = at;
  fault = kind;
  count = 0;
}

const char *faults_kinds(void) { return kinds; }

static void end(void) {
  kill(getpid(), SIGKILL);
  pause();
}

/* Whether the disk is full for a call that needs room there. */
static int strike(int needs_room) {
  long number = ++count;
  if (number < (long)sizeof kinds) kinds[number - 1] = "nrw"[needs_room];
  if (number < strike_at || !fault) return 0;
  if (fault != FULL) end();
  return needs_room;
}

static int below(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || !path[folder_length]);
}

static int path_below(int at, const char *path) {
  char absolute[2 * PATH_MAX];
  if (!folder_length || !path) return 0;
  if (path[0] == '/') return below(path);
  if (at == AT_FDCWD) {
    if (!getcwd(absolute, PATH_MAX)) return 0;
  } else {
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    ssize_t length = readlink(link, absolute, PATH_MAX - 1);
    if (length < 0) return 0;
    absolute[length] = 0;
  }
  strcat(absolute, "/");
  strncat(absolute, path, PATH_MAX - 1);
  return below(absolute);
}

static int fd_below(int fd) {
  char link[64], path[PATH_MAX];
  if (!folder_length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return below(path);
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define CHANGES(condition, room)                    \
  do {                                              \
    if ((condition) && strike(room)) {              \
      errno = ENOSPC;                               \
      return -1;                                    \
    }                                               \
  } while (0)

/* A file is made, or loses its content. */
static int makes(int at, const char *path, int flags) {
  if (!path_below(at, path)) return 0;
  if (flags & O_TRUNC) return 1;
  return (flags & O_CREAT) && faccessat(at, path, F_OK, AT_SYMLINK_NOFOLLOW);
}

#define OPEN(name)                                             \
  int name(const char *path, int flags, ...) {                 \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;  \
    va_end(rest);                                              \
    CHANGES(makes(AT_FDCWD, path, flags), 1);                  \
    return REAL(name)(path, flags, mode);                      \
  }
OPEN(open)
OPEN(open64)

#define OPENAT(name)                                           \
  int name(int at, const char *path, int flags, ...) {         \
    va_list rest;                                              \
    va_start(rest, flags);                                     \
    mode_t mode = flags & O_CREAT ? va_arg(rest, mode_t) : 0;  \
    va_end(rest);                                              \
    CHANGES(makes(at, path, flags), 1);                        \
    return REAL(name)(at, path, flags, mode);                  \
  }
OPENAT(openat)
OPENAT(openat64)

/* What is written through such a file goes past the symbols above: it is not counted. */
#define FOPEN(name)                                                     \
  FILE *name(const char *path, const char *mode) {                      \
    int flags = *mode == 'r' ? 0 : O_CREAT | (*mode == 'w') * O_TRUNC;  \
    if (makes(AT_FDCWD, path, flags) && strike(1)) {                    \
      errno = ENOSPC;                                                   \
      return NULL;                                                      \
    }                                                                   \
    return REAL(name)(path, mode);                                      \
  }
FOPEN(fopen)
FOPEN(fopen64)

#define CALL(result, name, parameters, arguments, condition, room) \
  result name parameters {                                         \
    CHANGES(condition, room);                                      \
    return REAL(name) arguments;                                   \
  }

ssize_t write(int fd, const void *data, size_t size) {
  if (fault == TORN && fd_below(fd) && count + 1 == strike_at) {
    REAL(write)(fd, data, size / 2);
    end();
  }
  CHANGES(fd_below(fd), 2);
  return REAL(write)(fd, data, size);
}

CALL(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), (fd, data, size, at),
     fd_below(fd), 2)
CALL(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), (fd, data, size, at),
     fd_below(fd), 2)
CALL(ssize_t, writev, (int fd, const struct iovec *parts, int number), (fd, parts, number),
     fd_below(fd), 2)
CALL(ssize_t, pwritev, (int fd, const struct iovec *parts, int number, off_t at),
     (fd, parts, number, at), fd_below(fd), 2)
CALL(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), (to, from, at, size),
     fd_below(to), 2)
CALL(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), (to, from, at, size),
     fd_below(to), 2)
CALL(ssize_t, copy_file_range,
     (int from, off64_t *a, int to, off64_t *b, size_t size, unsigned flags),
     (from, a, to, b, size, flags), fd_below(to), 2)
CALL(int, fallocate, (int fd, int mode, off_t at, off_t size), (fd, mode, at, size), fd_below(fd),
     1)
CALL(int, fallocate64, (int fd, int mode, off64_t at, off64_t size), (fd, mode, at, size),
     fd_below(fd), 1)
CALL(int, ftruncate, (int fd, off_t size), (fd, size), fd_below(fd), 0)
CALL(int, ftruncate64, (int fd, off64_t size), (fd, size), fd_below(fd), 0)
CALL(int, truncate, (const char *path, off_t size), (path, size), path_below(AT_FDCWD, path), 0)
CALL(int, truncate64, (const char *path, off64_t size), (path, size), path_below(AT_FDCWD, path), 0)
CALL(int, mkdir, (const char *path, mode_t mode), (path, mode), path_below(AT_FDCWD, path), 1)
CALL(int, mkdirat, (int at, const char *path, mode_t mode), (at, path, mode), path_below(at, path),
     1)
CALL(int, unlink, (const char *path), (path), path_below(AT_FDCWD, path), 0)
CALL(int, unlinkat, (int at, const char *path, int flags), (at, path, flags), path_below(at, path),
     0)
CALL(int, rmdir, (const char *path), (path), path_below(AT_FDCWD, path), 0)
CALL(int, rename, (const char *from, const char *to), (from, to), path_below(AT_FDCWD, to), 0)
CALL(int, renameat, (int a, const char *from, int b, const char *to), (a, from, b, to),
     path_below(b, to), 0)
CALL(int, renameat2, (int a, const char *from, int b, const char *to, unsigned flags),
     (a, from, b, to, flags), path_below(b, to), 0)
CALL(int, link, (const char *from, const char *to), (from, to), path_below(AT_FDCWD, to), 1)
CALL(int, linkat, (int a, const char *from, int b, const char *to, int flags),
     (a, from, b, to, flags), path_below(b, to), 1)
CALL(int, symlink, (const char *target, const char *path), (target, path),
     path_below(AT_FDCWD, path), 1)
CALL(int, symlinkat, (const char *target, int at, const char *path), (target, at, path),
     path_below(at, path), 1)
