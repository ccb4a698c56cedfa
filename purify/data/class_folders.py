"""Labelled images as a folder <split>/<class>/<image>: which folders are splits and classes."""

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from purify.data.png_jpeg import image_files, other_contents
from purify.runtime.messages import as_text, few, shown

# Made by archivers, operating systems and file servers beside what users put there.
SYSTEM_FOLDERS = (
    "__MACOSX",
    "@eaDir",
    "lost+found",
    "$RECYCLE.BIN",
    "System Volume Information",
)

Folders = Mapping[Path, list[Path]]  # the folders of a split -> their images


@dataclass(frozen=True)
class ClassFolders:
    """names: of the classes, label by label. files: split -> its images and their labels, in the
    order of their dataset indices. left_out: the folders in the place of splits that are none, and
    why, in words."""

    names: tuple[str, ...]
    files: Mapping[str, list[tuple[Path, int]]]
    left_out: str


def find_classes(root: Path, where: str) -> ClassFolders:
    """The splits and classes of a folder; `where` is what errors call it.

    A split is a folder in which a class has images; any other, such as the results of a run in
    there, is left out, and none of its folders is a class. The classes are those of all splits, in
    order of name, or of number where all names are numbers. Spellings of a name that Unicode counts
    as the same are one class. Hidden folders and SYSTEM_FOLDERS are passed over. Files are ordered
    by a hash of class and file name: fixed, but mixing the classes, so that a slice of a split is a
    sample of it.

    Raises ValueError for classes without an image in any split, and for splits that have no class
    in common: taking what is no class for one would shift the labels of others.
    """
    found = {split: _images_of(split) if split.is_dir() else {} for split in _subfolders(root)}
    splits = {split: folders for split, folders in found.items() if any(folders.values())}
    _check_all_have_images(splits.values(), where)
    _check_common_classes(splits, where)
    names = _ordered(splits.values(), where)
    labels = {name: label for label, name in enumerate(names)}
    files = {
        as_text(split.name): sorted(
            (
                (file, labels[class_name(folder)])
                for folder, images in folders.items()
                for file in images
            ),
            key=lambda item: _place(item[0]),
        )
        for split, folders in splits.items()
    }
    left_out = [_why_no_split(split, found[split]) for split in found if split not in splits]
    return ClassFolders(names, files, few(left_out, "; "))


def class_name(folder: Path) -> str:
    """The class of a folder: its name with composed accents (NFC), which macOS writes apart."""
    return unicodedata.normalize("NFC", as_text(folder.name))


def _images_of(split: Path) -> dict[Path, list[Path]]:
    """ValueError for links to nothing: passed over, a class would shift the labels of others, and
    an image the places of others."""

    def there(path: Path) -> Path:
        if not path.exists():
            raise ValueError(f"'{shown(path)}' is a link to nothing: mend it or move it away")
        return path

    return {
        folder: [there(file) for file in image_files(folder)]
        for folder in map(there, _subfolders(split))
    }


def _subfolders(folder: Path) -> list[Path]:
    """Its folders, and links to nothing, which may have been folders."""
    found = (
        item for item in folder.iterdir() if item.name[0] != "." and item.name not in SYSTEM_FOLDERS
    )
    return sorted((item for item in found if item.is_dir() or not item.exists()), key=os.fsencode)


def _place(file: Path) -> bytes:
    return hashlib.sha256(os.fsencode(f"{file.parent.name}/{file.name}")).digest()


def _why_no_split(split: Path, folders: Folders) -> str:
    if not split.exists():
        return f"'{shown(split.name)}' is a link to nothing"
    if not folders:
        return f"'{shown(split.name)}' has no folders of classes"
    first = next(iter(folders))
    return f"'{shown(split.name)}/{shown(first.name)}' {other_contents(first)}"


def _check_all_have_images(splits: Iterable[Folders], where: str) -> None:
    full = {class_name(folder) for folders in splits for folder in folders if folders[folder]}
    empty = [
        f"'{shown(folder.parent.name)}/{shown(folder.name)}' {other_contents(folder)}"
        for folders in splits
        for folder in folders
        if class_name(folder) not in full
    ]
    if empty:
        raise ValueError(f"{where} has classes without images in any split: {few(empty, '; ')}")


def _check_common_classes(splits: Mapping[Path, Folders], where: str) -> None:
    """ValueError unless common classes lead from each split to every other."""
    rest = {
        shown(split.name): {class_name(folder) for folder, images in folders.items() if images}
        for split, folders in splits.items()
    }
    told = {split: f"'{split}' ({few(sorted(names))})" for split, names in rest.items()}
    known = rest.popitem()[1] if rest else set()
    while near := [split for split, names in rest.items() if known & names]:
        known = known.union(*(rest.pop(split) for split in near))
    if rest:
        others = " or ".join(told[split] for split in told if split not in rest)
        raise ValueError(
            f"{where}: no class of {' or '.join(map(told.get, rest))} is one of {others}, so they "
            "are no splits of one data set: sort their images by the same classes, or move away "
            "what is no split"
        )


def _ordered(splits: Iterable[Folders], where: str) -> tuple[str, ...]:
    """The names of the classes, label by label; ValueError for two that are the same number."""
    spellings: dict[str, set[str]] = {}
    for folder in (folder for folders in splits for folder in folders):
        spellings.setdefault(class_name(folder), set()).add(as_text(folder.name))
    if not all(name.isdecimal() for name in spellings):
        # By the name as it is on the disk: names that are composed late keep their place.
        return tuple(sorted(spellings, key=lambda name: min(spellings[name])))
    numbers: dict[int, str] = {}
    for name in spellings:
        if (other := numbers.setdefault(int(name), name)) != name:
            raise ValueError(
                f"{where} has classes '{other}' and '{name}', the same number: name the folders of "
                "a class alike"
            )
    return tuple(numbers[number] for number in sorted(numbers))
