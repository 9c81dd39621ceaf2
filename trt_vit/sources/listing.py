"""What a URL names: a file, all images below a directory, or what a glob finds."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trt_vit.errors import EnvironmentFault, InputError, UsageError
from trt_vit.images.source import is_image
from trt_vit.sources import remote
from trt_vit.sources.faults import RemoteError, RemoteMissingError, RemoteOutageError, failures, patiently
from trt_vit.sources.files import RemoteFile, refuse_outage
from trt_vit.sources.urls import is_web, path_of, public_url

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

_CONNECTIONS = 32
"""Files that are asked about at the same time: each answer takes a round trip."""
_AT_ONCE = 8 * _CONNECTIONS


def list_url(url: str, wanted: Callable[[str], bool]) -> list[RemoteFile]:
    """Return the files that a URL names, sorted by path.

    Args:
        url: A file, a directory, or a glob if nothing has that very name.
        wanted: Tells of a path that a glob has found whether it counts.

    Raises:
        UsageError: It names nothing, or its scheme is unknown.
        InputError: It cannot be listed.
        EnvironmentFault: A package is missing, or the server cannot be reached or fails.
    """
    try:
        return patiently(url, lambda: _listed(url, wanted))
    except RemoteMissingError as error:
        message = f"no such file or directory: {public_url(url)!r}"
        raise UsageError(message, hint="check the spelling and the credentials") from error
    except RemoteOutageError as error:
        message = f"cannot list {public_url(url)!r}: {error}"
        raise EnvironmentFault(message, hint="check the address and the network, and run the command again") from error
    except RemoteError as error:
        message = f"cannot list {public_url(url)!r}: {error}"
        raise InputError(message, hint="check the address, the network and the credentials") from error


def look_up(files: Sequence[RemoteFile]) -> list[RemoteFile]:
    """Ask about the files that no listing has told of, many at once.

    What nothing is told of is left to be an error of its own row.

    Raises:
        EnvironmentFault: A server cannot be reached or fails.
    """
    asked = [number for number, file in enumerate(files) if not file.mark]
    found = list(files)
    with ThreadPoolExecutor(_CONNECTIONS, thread_name_prefix="look-up") as threads:
        # Some at a time: an interrupt waits for those that have been started.
        for start in range(0, len(asked), _AT_ONCE):
            numbers = asked[start : start + _AT_ONCE]
            for number, file in zip(numbers, threads.map(_look_up, [files[number] for number in numbers]), strict=True):
                found[number] = file
    return found


def _look_up(file: RemoteFile) -> RemoteFile:
    try:
        return patiently(file.url, lambda: _told(file.url))
    except RemoteError as error:
        refuse_outage(file, error)
        return replace(file, mark="-")


def _told(url: str) -> RemoteFile:
    filesystem, path = remote.connect(url)
    with failures():
        return _described(url, filesystem.info(path))


def _listed(url: str, wanted: Callable[[str], bool]) -> list[RemoteFile]:
    filesystem, path = remote.connect(url)
    with failures():
        found = _list(filesystem, url, path, wanted)
        filesystem.invalidate_cache()  # what it keeps of a listing is larger than the listing
        return found


def _described(url: str, info: Mapping[str, Any]) -> RemoteFile:
    return RemoteFile(url, info.get("size"), remote.stamp_of(info) or "-")


def _list(filesystem: Any, url: str, path: str, wanted: Callable[[str], bool]) -> list[RemoteFile]:
    if _has_magic(url) and not filesystem.exists(path):
        return _files(filesystem, _base_of(url), filesystem.glob(path, detail=True), wanted)
    if is_web(url):  # where a file and a directory look alike but for this
        is_directory = path_of(url).endswith("/")
        info: Mapping[str, Any] = {} if is_directory else filesystem.info(path)
    else:
        info = filesystem.info(path)
        is_directory = info["type"] == "directory"
    if is_directory:
        # What goes from directory to directory leaves out those that it cannot list, unless it is told not to.
        options = {"on_error": "raise"} if _walks(filesystem) else {}
        return _files(filesystem, url, filesystem.find(path, detail=True, **options), is_image)
    return [_described(url, info)]


def _files(
    filesystem: Any, base: str, found: Mapping[str, Mapping[str, Any]], wanted: Callable[[str], bool]
) -> list[RemoteFile]:
    """Return what was found below a base as URLs that begin as the base does: only that holds host and password."""
    start = base if base.endswith("/") else f"{base}/"
    base_path = remote.connect(base)[1]
    files = []
    for path, info in found.items():
        parts = path.removeprefix(base_path).strip("/").split("/")
        if info.get("type") != "file" or "__MACOSX" in parts or not wanted(path_of(path)):
            continue
        url = start + "/".join(parts) if path.startswith(base_path) else filesystem.unstrip_protocol(path)
        # A listing that has no sizes says nothing of its files: they are asked about one by one.
        told = {} if info.get("size") is None else info
        files.append((parts, RemoteFile(url, told.get("size"), remote.stamp_of(told))))
    return [file for _, file in sorted(files, key=lambda entry: entry[0])]


def _walks(filesystem: Any) -> bool:
    """Tell whether a file system is searched directory by directory, which not all need to be."""
    from fsspec import AbstractFileSystem  # noqa: PLC0415 - only URLs need it
    from fsspec.asyn import AsyncFileSystem  # noqa: PLC0415

    kind = type(filesystem)
    if issubclass(kind, AsyncFileSystem):
        return bool(kind._find is AsyncFileSystem._find)  # noqa: SLF001 - where those that need not differ
    return bool(kind.find is AbstractFileSystem.find)


def _magic(url: str) -> str:
    return "*[" if is_web(url) else "*?["


def _has_magic(url: str) -> bool:
    return any(letter in path_of(url) for letter in _magic(url))


def _base_of(pattern: str) -> str:
    """Return a glob up to the last slash before its first pattern."""
    first = min(pattern.find(letter) for letter in _magic(pattern) if letter in pattern)
    return pattern[: pattern.rfind("/", 0, first) + 1]
