"""From what the user names to the list of image paths, one row each, in an order that is the same on every machine."""

# ruff: noqa: PTH112, PTH113, PTH116, PTH118, PTH206, PTH207
# A million paths are cheap as strings, and Path would lose how a path is spelled ("./x", "a//b").

from __future__ import annotations

import glob
import os
from typing import TYPE_CHECKING

from trt_vit.errors import ImageError, InputError, UsageError
from trt_vit.images.decode import read_image

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

SUFFIXES = frozenset((".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".dib", ".tif", ".tiff", ".gif"))
"""What an image in a directory or behind a glob is recognised by, in any case; decoding looks only at the content."""

_JOURNAL = ".journal"
JOURNAL_PLAN = "plan.json"
"""The file by which a run's journal is known; trt_vit/pipeline/journal.py writes it."""

_HINT = f"directories and globs are searched for {' '.join(sorted(SUFFIXES))}"


def list_images(inputs: Sequence[str]) -> list[str]:
    """The paths of all images that ``inputs`` name, in the order of ``inputs``, each path once.

    An input is one of:

    - a directory, searched recursively for files with one of ``SUFFIXES``, through symbolic links (a link back to a
      directory that is being searched is not followed). Names are sorted by code point within each directory. Hidden
      files count; what macOS adds to archives (``._*`` and ``__MACOSX``) does not;
    - a list: a file whose suffix is .txt, with one path a line, relative to the working directory. A path is taken
      whatever its suffix, even if nothing is there: it becomes an error in its own row;
    - any other file, whatever its suffix;
    - a glob (``*``, ``?``, ``[...]``, and ``**`` for any number of directories), if nothing has that very name. It
      finds what a search of a directory finds, sorted by path.

    What runs have written is not searched for: no search looks into a run's journal (``.NAME.journal`` with a plan in
    it), and no glob finds a file that has one beside it. Named, or listed, they are taken.

    Two spellings of a path are the same if ``os.path.normpath`` says so; the first is kept.

    Raises:
        UsageError: An input names nothing.
        InputError: An input that names something holds no image, or cannot be listed or read.
    """
    paths: dict[str, str] = {}
    for name in inputs:
        found = False
        for path in expand(name, is_image):
            found = True
            paths.setdefault(key_of(path), path)
        if not found:
            raise no_image_in(name)
    if not paths:
        raise InputError("no input is named", hint="name files, directories, lists (.txt) or globs")
    return list(paths.values())


def key_of(path: str) -> str:
    """What is the same for two spellings of a path. Nearly all are normal, and then it is the very object."""
    normal = os.path.normpath(path)
    return path if normal == path else normal


def no_image_in(name: str) -> InputError:
    """The error of an input that names something in which there is no image."""
    return InputError(f"no image in {name!r}", hint=_HINT)


def expand(name: str, wanted: Callable[[str], bool]) -> Iterable[str]:
    """The paths that one input names, in their order, each as often as it is named.

    Args:
        name: As ``list_images`` takes it.
        wanted: Tells of a path that a glob has found whether it counts.

    Raises:
        UsageError: It names nothing.
        InputError: It cannot be listed or read.
    """
    if os.path.isdir(name):
        return (path for path, is_directory in _walk(name) if not is_directory)
    if os.path.lexists(name):
        return _read_list(name) if is_list(name) else (name,)
    if glob.has_magic(name):
        found = {path for path in _glob(name) if wanted(path) and not _is_of_a_run(path, name)}
        return sorted(found, key=lambda path: path.split(os.sep))
    raise UsageError(f"no such file or directory: {name!r}", hint="check the spelling and the working directory")


def _is_of_a_run(path: str, pattern: str) -> bool:
    """Whether what a glob has found is the output of a run, or lies in a journal that the glob does not name."""
    above, _, name = path.rpartition(os.sep)
    if not is_image(name) and _is_journal(os.path.join(above, journal_of(name))):  # no output is called like one
        return True
    if _JOURNAL + os.sep not in path:
        return False
    parts, named = above.split(os.sep), pattern.split(os.sep)
    below = [os.sep.join(parts[: at + 1]) for at, part in enumerate(parts) if part not in named]
    return any(_is_journal(directory) for directory in below)


def journal_of(name: str) -> str:
    """The name of the directory beside an output of this name in which a run keeps its rows."""
    return f".{name}{_JOURNAL}"


def _is_journal(path: str) -> bool:
    name = path.rpartition(os.sep)[2]
    return name.startswith(".") and name.endswith(_JOURNAL) and os.path.isfile(os.path.join(path, JOURNAL_PLAN))


def is_list(name: str) -> bool:
    """Whether a file of this name is a list of others."""
    return name.lower().endswith(".txt")


def lines_of(data: bytes, separator: bytes = b"\n") -> Iterator[str]:
    """The paths in a list, one a line.

    Lines may end as on Windows, be blank, and begin with a mark of UTF-8; bytes that are not UTF-8 stay what they are
    in the file's name. NUL bytes separate names of any other bytes, which are taken as they are.
    """
    if separator != b"\0":
        lines = (line.removesuffix(b"\r") for line in data.removeprefix(b"\xef\xbb\xbf").split(separator))
        names = [line for line in lines if line.strip()]
    else:
        names = [name for name in data.split(separator) if name]
    return (name.decode("utf-8", "surrogateescape") for name in names)


def _read_list(name: str) -> Iterator[str]:
    try:
        data = read_image(name)
    except ImageError as error:
        raise InputError(f"cannot use the list {name!r}: {error}", hint="check the file") from error
    return lines_of(data)


def _walk(root: str) -> Iterator[tuple[str, bool]]:
    """All directories (True) and images (False) below ``root``, depth first, each directory before what it holds.

    Keeps its own stack: directories nest deeper than Python's calls.
    """
    ancestors = [_identity(root)]
    stack = [_list_directory(root)]
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            ancestors.pop()
            continue
        path, is_directory = entry
        if not is_directory:
            yield entry
        elif (identity := _identity(path)) not in ancestors:
            yield entry
            ancestors.append(identity)
            stack.append(_list_directory(path))


def _identity(path: str) -> tuple[int, int]:
    try:
        status = os.stat(path)
    except OSError as error:
        raise _unlistable(path, error) from error
    return status.st_dev, status.st_ino


def _list_directory(path: str) -> Iterator[tuple[str, bool]]:
    try:
        with os.scandir(path) as entries:
            kinds = ((entry.name, _is_directory(entry)) for entry in entries)
            names = [found for found in kinds if _is_wanted(path, *found)]
    except OSError as error:
        raise _unlistable(path, error) from error
    names.sort()
    above = os.path.join(path, "")
    return ((above + name, is_directory) for name, is_directory in names)


def _unlistable(path: str, error: OSError) -> InputError:
    return InputError(f"cannot list the directory {path!r}: {error.strerror}", hint="check its permissions")


def _is_wanted(above: str, name: str, is_directory: bool) -> bool:  # noqa: FBT001 - it comes with the name
    if is_directory:
        return name != "__MACOSX" and not (name.endswith(_JOURNAL) and _is_journal(os.path.join(above, name)))
    return _is_image_name(name)


def _is_directory(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a symbolic link to itself, or into a directory that is closed to this user
        return False


def is_image(path: str) -> bool:
    """Whether a path in a directory or behind a glob is taken for an image's."""
    return _is_image_name(path.rpartition(os.sep)[2])


def _is_image_name(name: str) -> bool:
    """The same of a name without its directory. One that is only a suffix has none, as ``os.path.splitext`` has it."""
    stem, dot, suffix = name.rpartition(".")
    return dot + suffix.lower() in SUFFIXES and bool(stem.strip(".")) and not name.startswith("._")


def _glob(pattern: str) -> Iterator[str]:
    """Like ``glob.glob`` with hidden files, but ``**`` is safe from loops of symbolic links."""
    parts = pattern.split(os.sep)
    if "**" not in parts:
        yield from (path for path in glob.iglob(pattern, include_hidden=True) if not os.path.isdir(path))
        return
    at = parts.index("**")
    rest = parts[at + 1 :] or ["*"]
    above = os.sep.join([*parts[:at], ""])
    for base in glob.iglob(above, include_hidden=True) if above else [os.curdir]:
        if not os.path.isdir(base):
            continue
        below = [path for path, is_directory in _walk(base) if is_directory]
        for directory in [base, *below]:
            inner = os.path.join(glob.escape(directory), *rest)
            yield from _glob(inner if above else inner.removeprefix("./"))
