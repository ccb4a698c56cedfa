"""Errors that say what to do, and are no defect of the program."""


class FileError(ValueError):
    """A file or folder is not what it must be; the message names it."""
