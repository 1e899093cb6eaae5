"""The pictures and videos that a command is given, and the names of their drawn copies."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

CAMERA = "camera:"
_PICTURES = (
    ".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pbm", ".pgm", ".png", ".ppm", ".tga",
    ".tif", ".tiff", ".webp",
)  # fmt: skip
_VIDEOS = (".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")


class Source(NamedTuple):
    """A file or a camera.

    Args:
        order: its place in the order of the results.
        path: of the file, or "camera:0".
        name: the path below the folder that was given, or the file's name.
    """

    order: int
    path: str
    name: str

    @property
    def camera(self) -> int | None:
        """The number of the camera, if it is one."""
        number = self.path.removeprefix(CAMERA)
        return int(number) if number != self.path and number.isdecimal() else None

    @property
    def is_video(self) -> bool:
        return self.camera is not None or Path(self.path).suffix.lower() in _VIDEOS


def find_sources(arguments: Sequence[str], output: Path) -> list[Source]:
    """What the arguments of a command stand for, each file once.

    Args:
        arguments: files, folders, shell patterns in which ``**`` stands for folders of any depth,
            and cameras as "camera:0". Folders stand for the pictures and videos in them at any
            depth, also behind links, in the order of their names; hidden ones and those in
            ``output`` are left out.
        output: folder of the results.

    Raises:
        FileNotFoundError: a file is not there, or a pattern matches nothing.
        PermissionError: a folder cannot be listed.
        ValueError: a folder has no pictures, or nothing is given.
    """
    if not arguments:
        raise ValueError("no pictures are given: name files, folders, patterns or camera:0")
    found: dict[str, Source] = {}
    for argument in arguments:
        for path, name in _matches(argument, output.resolve()):
            key = path if path.startswith(CAMERA) else os.path.realpath(path)
            found.setdefault(key, Source(len(found), path, name))
    return list(found.values())


def copy_names(sources: Iterable[Source]) -> dict[int, str]:
    """A path for the drawn copy of each source, without suffix, by the source's place.

    Sources whose copies would have the same name are numbered.
    """
    names: dict[int, str] = {}
    taken: set[str] = set()
    for source in sources:
        stem = str(Path(source.name).with_suffix("")).replace(CAMERA, "camera-")
        name, number = stem, 2
        while name.casefold() in taken:  # some file systems ignore case
            name, number = f"{stem}-{number}", number + 1
        taken.add(name.casefold())
        names[source.order] = name
    return names


def _matches(argument: str, output: Path) -> Iterator[tuple[str, str]]:
    """Paths and names."""
    path = Path(argument)
    if argument.startswith(CAMERA):
        if not argument.removeprefix(CAMERA).isdecimal():
            raise ValueError(f"a camera must be {CAMERA} and a number, got {argument!r}")
        yield argument, argument
    elif path.is_dir():
        files = list(_files(path, output))
        if not files:
            raise ValueError(f"the folder {argument} has no pictures or videos")
        yield from ((str(file), str(file.relative_to(path))) for file in files)
    elif path.exists():
        yield argument, path.name
    elif glob.has_magic(argument):
        matches = sorted(glob.glob(argument, recursive=True))
        matches = [match for match in matches if Path(match).is_file()]
        if not matches:
            raise FileNotFoundError(f"no file matches {argument}")
        yield from ((match, Path(match).name) for match in matches)
    else:
        raise FileNotFoundError(f"there is no file or folder {argument}")


def _files(folder: Path, output: Path) -> Iterator[Path]:
    root = folder.resolve()
    seen = {root, output}
    for parent, folders, names in os.walk(folder, onerror=_refuse, followlinks=True):
        below, kept = Path(parent), []
        for name in sorted(folders):
            path = (below / name).resolve()
            # a link may lead back, or to what is found without it
            is_known = (below / name).is_symlink() and path.is_relative_to(root)
            if not name.startswith(".") and path not in seen and not is_known:
                seen.add(path)
                kept.append(name)
        folders[:] = kept
        for name in sorted(names):
            suffix = Path(name).suffix.lower()
            if not name.startswith(".") and (suffix in _PICTURES or suffix in _VIDEOS):
                yield below / name


def _refuse(error: OSError) -> None:
    """A folder that cannot be listed would be left out in silence."""
    raise error
