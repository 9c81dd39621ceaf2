"""From what the user names to the shards of a run."""

from __future__ import annotations

import os
import sys
from itertools import groupby
from typing import TYPE_CHECKING

from trt_vit.errors import ImageError, InputError, UsageError
from trt_vit.images.limits import NO_FURTHER_LIMITS
from trt_vit.images.source import expand, is_image, is_list, key_of, lines_of, no_image_in
from trt_vit.sources.files import File, LocalFile, RemoteFile, reason_of, refuse_outage
from trt_vit.sources.listing import list_url, look_up
from trt_vit.sources.parquet import Cursor, open_table, parquet_shards
from trt_vit.sources.shard import BrokenShard, file_shards, remote_shards
from trt_vit.sources.tar_shard import TarShard
from trt_vit.sources.urls import SEPARATOR, STANDARD_INPUT, is_url, path_of, public_url, scheme_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from trt_vit.sources.shard import Shard

_PATH, _REMOTE, _TAR, _PARQUET = "path", "remote", ".tar", ".parquet"


def open_shards(inputs: Sequence[str], size: int) -> list[Shard]:
    """List all images that ``inputs`` name, and cut them into shards.

    An input is one of:

    - a file, directory, list or glob, as ``list_images`` takes them; a list may also hold URLs;
    - ``-``: a list on standard input, separated by NUL bytes if it holds any: then names may hold anything else;
    - a URL: a file, a list, a directory or a glob. Which protocols there are is up to fsspec;
    - a tar archive (.tar) or Parquet file (.parquet) of images, named, listed or found by a glob that ends so.

    A glob finds neither the output of a run nor what its journal holds, so that a run may be started again whose output
    lies among its inputs; see ``list_images``.

    Shards are in the order of the inputs. What is named twice is taken once, as in ``list_images``.

    Args:
        inputs: What the user names.
        size: Images a shard; a tar archive is one however many it has.

    Raises:
        UsageError: An input names nothing.
        InputError: An input holds no image, or cannot be listed or read.
        EnvironmentFault: A package for a URL is missing, or its server cannot be reached or fails.
    """
    if inputs.count(STANDARD_INPUT) > 1:
        raise UsageError(f"{STANDARD_INPUT} is named twice", hint="standard input can be read once")
    found: dict[str, str | RemoteFile] = {}
    for name in inputs:
        named = 0
        for entry in _expand(name):
            named += 1
            found.setdefault(_key(entry), entry)
        if named == 0:
            raise no_image_in(public_url(name) if is_url(name) else name)
    if not found:
        raise InputError("no input is named", hint="name files, directories, lists (.txt), globs or URLs")
    shards: list[Shard] = []
    cursor = Cursor()
    for kind, entries in groupby(_look_up(list(found.values())), key=_kind):
        if kind == _TAR:
            shards += [TarShard(_archive(entry)) for entry in entries]
        elif kind == _PARQUET:
            shards += [shard for entry in entries for shard in _parquet(_archive(entry), cursor, size)]
        elif kind == _REMOTE:
            shards += remote_shards([entry for entry in entries if isinstance(entry, RemoteFile)], size)
        else:
            shards += file_shards([entry for entry in entries if isinstance(entry, str)], size)
    return shards


def _expand(name: str) -> Iterable[str | RemoteFile]:
    """Give what one input names, in its order: paths, and files behind URLs."""
    if name == STANDARD_INPUT:
        if sys.stdin is None:
            raise UsageError("cannot read a list: standard input is closed", hint=f"give one, or leave out {name}")
        data = sys.stdin.buffer.read()
        return map(_listed, lines_of(data, b"\0" if b"\0" in data else b"\n"))
    name = _local(name)
    if not is_url(name):
        paths = expand(name, _wanted(name))
        return map(_listed, paths) if is_list(name) else paths
    files = list_url(name, _wanted(name))
    if is_list(path_of(name)) and [file.url for file in files] == [name]:
        return map(_listed, lines_of(_read_list(files[0])))
    return files


def _local(text: str) -> str:
    """Return a URL of a file on a disk as its path, and anything else as it is."""
    return text.partition("://")[2] if is_url(text) and scheme_of(text) in {"file", "local"} else text


def _listed(line: str) -> str | RemoteFile:
    """Return what a line of a list names."""
    if not is_url(line):
        return line
    line = _local(line)
    return RemoteFile(line) if is_url(line) else line


def _read_list(file: RemoteFile) -> bytes:
    try:
        return file.read(NO_FURTHER_LIMITS)
    except ImageError as error:
        raise InputError(f"cannot use the list {file.name!r}: {error}", hint="check the file") from error


def _wanted(pattern: str) -> Callable[[str], bool]:
    """Return what tells of a path that a glob finds whether it counts: archives do where the glob ends so."""
    suffix = _suffix(pattern)
    if suffix in {_TAR, _PARQUET}:
        return lambda path: is_image(path) or _suffix(path) == suffix
    return is_image


def _suffix(name: str) -> str:
    return os.path.splitext(path_of(name))[1].lower()  # noqa: PTH122 - a million of them


def _key(entry: str | RemoteFile) -> str:
    """Return what is the same for two names of one file."""
    return entry.url if isinstance(entry, RemoteFile) else key_of(entry)


def _look_up(entries: list[str | RemoteFile]) -> list[str | RemoteFile]:
    """Ask about the files that no listing has told of."""
    remote = iter(look_up([entry for entry in entries if isinstance(entry, RemoteFile)]))
    return [next(remote) if isinstance(entry, RemoteFile) else entry for entry in entries]


def _kind(entry: str | RemoteFile) -> str:
    if isinstance(entry, RemoteFile):
        suffix, other = _suffix(entry.url), _REMOTE
    else:
        suffix, other = entry[-len(_PARQUET) :].lower(), _PATH
    return _TAR if suffix.endswith(_TAR) else _PARQUET if suffix.endswith(_PARQUET) else other


def _archive(entry: str | RemoteFile) -> File:
    """Return a file of many images, whose name is to be told from theirs."""
    file = LocalFile(entry) if isinstance(entry, str) else entry
    if SEPARATOR in file.name:
        message = f"cannot use {file.name!r}: the name of an archive may not hold {SEPARATOR}"
        raise UsageError(message, hint="rename it: rows are named ARCHIVE::IMAGE")
    return file


def _parquet(file: File, cursor: Cursor, size: int) -> Sequence[Shard]:
    try:
        return parquet_shards(open_table(file), cursor, size)
    except ImageError as error:
        return [BrokenShard(file, str(error))]
    except OSError as error:
        refuse_outage(file, error)
        return [BrokenShard(file, f"cannot read the file: {reason_of(error)}")]
