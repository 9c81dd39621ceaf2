"""The lines of a journal that say which shards are done."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from trt_vit.reading import read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from pathlib import Path

LIMIT = 2**30
"""Bytes of a file of a journal: far more than the lines or the plan of a run of any size."""
NOT_A_ROW = (ValueError, KeyError, TypeError, OverflowError, RecursionError)
"""What comes of reading JSON that the journal has not written."""


@dataclass(frozen=True)
class Commit:
    """A shard that is done.

    Attributes:
        shard: Its number, from 0.
        images: Rows it has.
        failed: How many of them are errors.
        bytes: Size of its file.
        sha256: Digest of its file.
    """

    shard: int
    images: int
    failed: int
    bytes: int
    sha256: str


def count_rows(commits: Iterable[Commit]) -> tuple[int, int]:
    """Return how many rows some shards have, and how many of these are errors."""
    counts = [(commit.images, commit.failed) for commit in commits]
    return sum(images for images, _ in counts), sum(failed for _, failed in counts)


def append_commit(file: Path, commit: Commit) -> None:
    """Add a line, which is on disk when this returns.

    Raises:
        OSError: It cannot be written.
    """
    with file.open("ab") as stream:
        # A line that a killed process has left half-written is ended, and then is none.
        torn = stream.tell() > 0 and _last_byte(file) != b"\n"
        stream.write(b"\n" * torn + json.dumps(asdict(commit)).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def read_commits(file: Path) -> Iterator[Commit]:
    """Give the lines that were written to their end.

    Raises:
        OSError: The file cannot be read, or is none.
    """
    return (commit for commit in map(_parse, read_file(file, LIMIT).splitlines()) if commit is not None)


def _parse(line: bytes) -> Commit | None:
    try:
        row = json.loads(line)
        return Commit(int(row["shard"]), int(row["images"]), int(row["failed"]), int(row["bytes"]), str(row["sha256"]))
    except NOT_A_ROW:
        return None


def sha256_of(file: Path) -> str:
    """Return a file's digest.

    Raises:
        OSError: It cannot be read.
    """
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _last_byte(file: Path) -> bytes:
    with file.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read()
