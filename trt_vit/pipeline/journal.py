"""The journal of a run: which shards are done, so that whatever ends it costs only those under way.

It is a directory beside the output, ``.NAME.journal``; that of an output behind a URL is in the user's cache directory:

    plan.json                what the run is to do
    00000017.jsonl           the rows of a shard that is done, in the output's format
    commits-1-of-1.jsonl     a line for each of these, with the digest of its file; one file for each part of the run
    _SUCCESS                 the output is there: how many rows it has, and how large it is
    *.lock                   who is at work

A shard is written to a temporary file, which takes its name in one step when it is on disk, and then gets its line. A
shard without a line, or whose file is not as long as its line says, is not done. Doing a shard again gives the same
file, so two processes that both do one cost time and nothing else.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from trt_vit.caches import cache_directory, require_private
from trt_vit.errors import ArtifactError, OutputError, UsageError
from trt_vit.images.source import JOURNAL_PLAN, journal_of
from trt_vit.outputs import RemoteOutput, naming, open_whole, refuse_long_name, size_of
from trt_vit.pipeline.commits import LIMIT, NOT_A_ROW, Commit, append_commit, count_rows, read_commits, sha256_of
from trt_vit.pipeline.locks import hold, planning
from trt_vit.pipeline.plan import Plan
from trt_vit.reading import read_file

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from trt_vit.outputs import Output
    from trt_vit.parts import Part

_SUCCESS = "_SUCCESS"
_PARTIAL = ".*.partial"
_COMMITS = "commits-{}-of-{}.jsonl"


@dataclass(frozen=True)
class Finished:
    """An output that is there.

    Attributes:
        images: Rows it has.
        failed: How many of them are errors.
        bytes: Its size.
    """

    images: int
    failed: int
    bytes: int


class Journal:
    """The journal of an output, held by one part of a run; see ``open_journal``.

    Attributes:
        output: The output.
        plan: What the run is to do.
        part: Which part of it this is.
        commits: The shards that are done, of all parts, by their number.
        finished: The output, where it is there already.
    """

    def __init__(self, output: Output, plan: Plan, part: Part) -> None:
        self.output = output
        self.plan = plan
        self.part = part
        self.commits: dict[int, Commit] = {}
        self.finished: Finished | None = None
        self._directory = directory_of(output)

    @property
    def pending(self) -> list[int]:
        """The shards that this part has still to do, in order."""
        return [shard for shard in range(len(self.plan.shards)) if self.part.has(shard) and shard not in self.commits]

    @property
    def done(self) -> list[Commit]:
        """The shards of this part that are done."""
        return [commit for shard, commit in sorted(self.commits.items()) if self.part.has(shard)]

    @property
    def complete(self) -> bool:
        """Whether all shards of all parts are done, as far as this process knows."""
        return len(self.commits) == len(self.plan.shards)

    def file_of(self, shard: int) -> Path:
        """Return where a shard's rows lie, or will."""
        return self._directory / f"{shard:08}{self.output.suffix.lower()}"

    def commit(self, shard: int, images: int, failed: int) -> None:
        """Write down that a shard's file is whole.

        Raises:
            OutputError: The journal cannot be written.
        """
        file = self.file_of(shard)
        with naming(self.output):
            commit = Commit(shard, images, failed, file.stat().st_size, sha256_of(file))
            append_commit(self._directory / _COMMITS.format(self.part.number, self.part.count), commit)
        self.commits[shard] = commit

    def finish(self, assemble: Callable[[Journal], None]) -> Finished | None:
        """Make the output, if all shards are done and no other part has made it; return it, or None if it is not there.

        Args:
            assemble: Writes the output from the shards' files.

        Raises:
            OutputError: It cannot be written.
            ArtifactError: A shard's file is not what was written, or is gone.
        """
        with planning(self._directory), naming(self.output):
            done = self.done
            self._read()
            if self.finished is not None:
                return self.finished
            if lost := [commit.shard for commit in done if commit.shard not in self.commits]:
                message = f"{len(lost)} shards of {self.output} were done, and are not in {self._directory} any more"
                raise ArtifactError(message, hint="run the command again, and leave that directory alone meanwhile")
            if not self.complete:
                return None
            assemble(self)
            images, failed = count_rows(self.commits.values())
            self.finished = Finished(images, failed, size_of(self.output) or 0)
            self._write(_SUCCESS, asdict(self.finished))
            self._tidy()
            return self.finished

    def forget(self, shard: int) -> None:
        """Take back that a shard is done."""
        self.file_of(shard).unlink(missing_ok=True)

    def begin(self, note: Callable[[str], None], *, resume: bool) -> None:
        """Find what is done of the plan; start from nothing where that was asked for or there is nothing.

        Raises:
            ArtifactError: What is done is of another plan.
            OutputError: The journal cannot be written.
        """
        with planning(self._directory), naming(self.output):
            _refuse_directories(self._directory, self.output)
            earlier = self._earlier_plan() if resume else None
            if earlier is not None and (differences := self.plan.differences(earlier)):
                if not (self._directory / _SUCCESS).exists():
                    message = f"{self.output} is unfinished, and of another run: {'; '.join(differences)}"
                    hint = "put back what it was made of, or start again with --no-resume, or name another file with -o"
                    raise ArtifactError(message, hint=hint)
                note(f"note: {self.output} is of another run ({'; '.join(differences)}) and will be replaced")
                earlier = None
            if earlier is None:
                self._clear()
                self._write(JOURNAL_PLAN, self.plan.document())
                return
            if self.part.count == 1:  # then nobody else is writing: this is what a killed process has left
                self._remove(_PARTIAL)
            self._read()
            if self.finished is not None:
                self._tidy()
            elif (self._directory / _SUCCESS).exists():
                if size_of(self.output) is not None:
                    note(f"note: {self.output} was changed since it was written, and will be replaced")
                self._remove(_SUCCESS)  # from here on it is unfinished

    def _earlier_plan(self) -> Plan | None:
        """Return the plan that is there, or None."""
        try:
            return Plan.parse(json.loads(read_file(self._directory / JOURNAL_PLAN, LIMIT)))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, RecursionError) as error:
            raise _unreadable(self._directory / JOURNAL_PLAN, error) from error

    def _read(self) -> None:
        """Find which shards are done, and whether the output is there."""
        self.finished = self._read_success()
        self.commits = {}
        for file in self._directory.glob(_COMMITS.format("*", "*")):
            try:
                commits = read_commits(file)
            except OSError as error:
                raise _unreadable(file, error) from error
            for commit in filter(self._is_there, commits):
                self._take(commit)

    def _take(self, commit: Commit) -> None:
        """Take a line; of two that differ, as after a shard was done again, the one that its file is like."""
        other = self.commits.get(commit.shard, commit)
        if other == commit or sha256_of(self.file_of(commit.shard)) == commit.sha256:
            self.commits[commit.shard] = commit

    def _read_success(self) -> Finished | None:
        try:
            row = json.loads(read_file(self._directory / _SUCCESS, LIMIT))
            found = Finished(int(row["images"]), int(row["failed"]), int(row["bytes"]))
            return found if size_of(self.output) == found.bytes else None
        except (OSError, *NOT_A_ROW):
            return None

    def _is_there(self, commit: Commit) -> bool:
        try:
            status = self.file_of(commit.shard).stat()
        except OSError:
            return False
        there = stat.S_ISREG(status.st_mode) and status.st_size == commit.bytes
        return there and 0 <= commit.shard < len(self.plan.shards)

    def _clear(self) -> None:
        """Remove everything but the locks, which are held; first the plan, without which the rest means nothing."""
        (self._directory / JOURNAL_PLAN).unlink(missing_ok=True)
        for file in self._directory.iterdir():
            if file.suffix != ".lock":
                file.unlink()

    def _tidy(self) -> None:
        """Remove what an output that is there was made of."""
        for pattern in (f"[0-9]*{self.output.suffix.lower()}", _COMMITS.format("*", "*"), _PARTIAL):
            self._remove(pattern)

    def _remove(self, pattern: str) -> None:
        for file in self._directory.glob(pattern):
            file.unlink(missing_ok=True)

    def _write(self, name: str, document: Any) -> None:
        with open_whole(self._directory / name) as stream:
            stream.write(json.dumps(document).encode())


@contextmanager
def open_journal(
    output: Output, plan: Plan, part: Part, note: Callable[[str], None], *, resume: bool
) -> Iterator[Journal]:
    """Hold an output, and find what is done of a run.

    Args:
        output: The output.
        plan: What the run is to do.
        part: Which part of it this process does.
        note: Called with what a person should know.
        resume: Whether to go on with what is done; otherwise it is removed.

    Raises:
        ArtifactError: What is done is of another plan.
        OutputError: Another run is at work on it, or it cannot be written.
        UsageError: One part of several cannot start all of them again.
    """
    directory = _make_directory(output)
    with hold(directory, part, output):
        if not resume and part.count > 1:
            hint = f"remove {directory} before the first part"
            raise UsageError("--no-resume and --shard do not go together", hint=hint)
        journal = Journal(output, plan, part)
        journal.begin(note, resume=resume)
        yield journal


def directory_of(output: Output) -> Path:
    """Return where an output's journal lies."""
    if isinstance(output, RemoteOutput):
        return cache_directory() / "runs" / hashlib.sha256(output.name.encode()).hexdigest()
    return output.with_name(journal_of(output.name))


def _make_directory(output: Output) -> Path:
    """Make an output's journal, where the output can be written too: that is found here, not when all is done."""
    directory = directory_of(output)
    if isinstance(output, RemoteOutput):
        require_private(directory)
        return directory
    with naming(output):
        if output.exists() and not output.is_file():
            raise OutputError(f"cannot write {output}: it is not a file", hint="choose another file with -o")
        if directory.is_symlink():
            raise OutputError(f"cannot write {output}: {directory} is a symbolic link", hint="remove it")
        refuse_long_name(output)
        directory.mkdir(parents=True, exist_ok=True)
    return directory


def _unreadable(file: Path, error: Exception) -> ArtifactError:
    reason = getattr(error, "strerror", None) or str(error)
    hint = "start again with --no-resume, or name another file with -o"
    return ArtifactError(f"cannot read {file}: {reason}", hint=hint)


def _refuse_directories(directory: Path, output: Output) -> None:
    """Refuse directories in a journal: no run makes any, and none removes one."""
    with os.scandir(directory) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                raise OutputError(f"cannot write {output}: {entry.path} is a directory", hint="remove that directory")
