"""What counts as done, whatever has become of the journal's files."""

from __future__ import annotations

import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trt_vit.errors import ArtifactError, OutputError, UsageError
from trt_vit.parts import Part
from trt_vit.pipeline.assemble import assemble
from trt_vit.pipeline.journal import Journal, directory_of, open_journal
from trt_vit.pipeline.plan import Plan, PlannedShard

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ALL = Part()


def plan(shards: int, **others: Any) -> Plan:
    planned = [PlannedShard(1, f"digest {number}", f"shard {number}") for number in range(shards)]
    return Plan(planned, "b", {"top_k": 5, **others})


def rows(shard: int) -> str:
    return f"row of shard {shard}\n"


@contextmanager
def opened(
    output: Path,
    planned: Plan,
    part: Part = ALL,
    note: Callable[[str], None] = lambda _text: None,
    *,
    resume: bool = True,
) -> Iterator[Journal]:
    with open_journal(output, planned, part, note, resume=resume) as journal:
        yield journal


def do(journal: Journal, shard: int, text: str | None = None) -> None:
    journal.file_of(shard).write_text(rows(shard) if text is None else text)
    journal.commit(shard, 1, 0)


def finish(output: Path, shards: int, **settings: Any) -> None:
    with opened(output, plan(shards, **settings)) as journal:
        for shard in journal.pending:
            do(journal, shard)
        assert journal.finish(assemble) is not None


def commits_of(output: Path, part: str = "1-of-1") -> Path:
    return directory_of(output) / f"commits-{part}.jsonl"


LINES = (
    b"\n",
    b"null\n",
    b"[]\n",
    b"\xff\xfe\n",
    b'{"shard": 1}\n',
    b'{"shard": 0, "images": 1, "failed": 0, "bytes": 5',  # torn: what follows makes it no JSON
    b'{"shard": 1e999, "images": 1, "failed": 0, "bytes": 5, "sha256": ""}\n',
    b'{"shard": -1, "images": 1, "failed": 0, "bytes": 5, "sha256": ""}\n',
    b'{"shard": 99999999999999999999, "images": 1, "failed": 0, "bytes": 5, "sha256": ""}\n',
    b'{"shard": 5, "images": 1, "failed": 0, "bytes": 0, "sha256": ""}\n',
    b"[" * 100_000 + b"\n",
)


@settings(deadline=None, max_examples=60)
@example(shards=3, done={0, 1}, garbage=[(0, line) for line in LINES] + [(1, line) for line in LINES], count=2)
@given(
    st.integers(0, 6),
    st.sets(st.integers(0, 5)),
    st.lists(st.tuples(st.integers(0, 5), st.sampled_from(LINES))),
    st.integers(1, 4),
)
def test_what_is_committed_is_done_and_nothing_else(
    shards: int, done: set[int], garbage: list[tuple[int, bytes]], count: int
) -> None:
    """Shards that several parts have committed, between torn and foreign lines, are what any later run goes on from."""
    done = {shard for shard in done if shard < shards}
    with tempfile.TemporaryDirectory() as name:
        output = Path(name) / "o.jsonl"
        for number in range(1, count + 1):
            part = Part(number, count)
            with opened(output, plan(shards), part) as journal:
                for shard in filter(part.has, sorted(done)):
                    for _, line in (item for item in garbage if item[0] == shard):
                        with commits_of(output, f"{number}-of-{count}").open("ab") as stream:
                            stream.write(line)
                    do(journal, shard)
                    do(journal, shard)  # twice is as good as once
        with opened(output, plan(shards)) as journal:
            assert set(journal.commits) == done
            assert journal.pending == [shard for shard in range(shards) if shard not in done]
            for shard in journal.pending:
                do(journal, shard)
            finished = journal.finish(assemble)
        assert finished is not None
        assert (finished.images, finished.failed) == (shards, 0)
        assert output.read_text() == "".join(map(rows, range(shards)))


def damage_missing(file: Path) -> None:
    file.unlink()


def damage_short(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def damage_long(file: Path) -> None:
    file.write_bytes(file.read_bytes() + b"\n")


@pytest.mark.parametrize("damage", [damage_missing, damage_short, damage_long])
def test_a_shard_whose_file_is_not_as_long_as_its_line_says_is_done_again(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(3)) as journal:
        for shard in (0, 1, 2):
            do(journal, shard)
    damage(journal.file_of(1))
    with opened(output, plan(3)) as journal:
        assert journal.pending == [1]
    finish(output, 3)
    assert output.read_text() == rows(0) + rows(1) + rows(2)


def test_a_shard_whose_file_was_changed_is_found_before_it_is_used(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0)
        do(journal, 1)
        journal.file_of(1).write_text(rows(7))
        with pytest.raises(ArtifactError, match=r"00000001\.jsonl is not what was written") as caught:
            journal.finish(assemble)
    assert caught.value.hint == "run the command again"
    assert not output.exists()
    with opened(output, plan(2)) as journal:
        assert journal.pending == [1]
    finish(output, 2)
    assert output.read_text() == rows(0) + rows(1)


@pytest.mark.parametrize(("first", "then"), [("1-of-1", "1-of-2"), ("1-of-2", "1-of-1")])
def test_of_two_lines_for_a_shard_the_one_counts_that_its_file_is_like(tmp_path: Path, first: str, then: str) -> None:
    """A shard that was done again may have other rows of the same length, and its lines may be in any two files."""
    output = tmp_path / "o.jsonl"
    parts = {"1-of-1": ALL, "1-of-2": Part(1, 2)}
    for name, text in ((first, rows(8)), (then, rows(0))):
        with opened(output, plan(1), parts[name]) as journal:
            do(journal, 0, text)
    with opened(output, plan(1)) as journal:
        assert journal.finish(assemble) is not None
    assert output.read_text() == rows(0)


@pytest.mark.parametrize("everything", [False, True])
def test_shards_that_vanish_while_a_run_is_at_work_are_no_success(tmp_path: Path, *, everything: bool) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(3)) as journal:
        for shard in range(3):
            do(journal, shard)
        for file in directory_of(output).iterdir() if everything else [journal.file_of(1)]:
            file.unlink()
        with pytest.raises(ArtifactError, match=r"[13] shards of .*o\.jsonl were done, and are not in"):
            journal.finish(assemble)
    assert not output.exists()
    finish(output, 3)
    assert output.read_text() == rows(0) + rows(1) + rows(2)


def test_the_last_part_to_end_writes_the_output(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(5), Part(1, 2)) as one, opened(output, plan(5), Part(2, 2)) as two:
        assert (one.pending, two.pending) == ([0, 2, 4], [1, 3])
        for shard in one.pending:
            do(one, shard)
        assert one.finish(assemble) is None
        for shard in two.pending:
            do(two, shard)
        assert two.finish(assemble) is not None
        assert one.finish(assemble) == two.finished
    assert output.read_text() == "".join(map(rows, range(5)))


def test_a_finished_run_is_not_done_again_and_leaves_little(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    finish(output, 3)
    left = sorted(file.name for file in directory_of(output).iterdir())
    assert left == ["_SUCCESS", "plan.json", "plan.lock", "run.lock"]
    notes: list[str] = []
    with opened(output, plan(3), note=notes.append) as journal:
        assert journal.finished is not None
        assert (journal.finished.images, journal.finished.bytes) == (3, output.stat().st_size)
        assert journal.finish(assemble) == journal.finished
    assert notes == []


def test_what_a_run_had_no_time_to_remove_is_removed_by_the_next(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal, pytest.MonkeyPatch.context() as patch:
        do(journal, 0)
        do(journal, 1)
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(KeyboardInterrupt):
            journal.finish(assemble)
    assert (directory_of(output) / "00000001.jsonl").exists()
    with opened(output, plan(2)) as journal:
        assert journal.finished is not None
    assert sorted(file.name for file in directory_of(output).iterdir()) == [
        "_SUCCESS",
        "plan.json",
        "plan.lock",
        "run.lock",
    ]


def killed(file: Path, *, missing_ok: bool = False) -> None:
    """Stand in for Path.unlink: the process ends at the first file of the journal."""
    if not file.name.endswith(".partial"):
        raise KeyboardInterrupt


def test_an_output_that_was_removed_is_made_again(tmp_path: Path) -> None:
    output, notes = tmp_path / "o.jsonl", list[str]()
    finish(output, 2)
    output.unlink()
    with opened(output, plan(2), note=notes.append) as journal:
        assert (journal.finished, journal.pending) == (None, [0, 1])
    assert notes == []
    finish(output, 2)
    assert output.read_text() == rows(0) + rows(1)


def test_an_output_that_was_changed_is_made_again_with_a_note(tmp_path: Path) -> None:
    output, notes = tmp_path / "o.jsonl", list[str]()
    finish(output, 2)
    output.write_text("mine")
    with opened(output, plan(2), note=notes.append) as journal:
        assert (journal.finished, journal.pending) == (None, [0, 1])
    assert notes == [f"note: {output} was changed since it was written, and will be replaced"]
    assert output.read_text() == "mine"
    finish(output, 2)
    assert output.read_text() == rows(0) + rows(1)


@pytest.mark.parametrize("text", ["", "{}", "[]", "null", '{"images": 1, "failed": 0, "bytes": "x"}', "[" * 100_000])
def test_a_success_that_cannot_be_read_is_none(tmp_path: Path, text: str) -> None:
    output = tmp_path / "o.jsonl"
    finish(output, 2)
    (directory_of(output) / "_SUCCESS").write_text(text)
    with opened(output, plan(2)) as journal:
        assert (journal.finished, journal.pending) == (None, [0, 1])


def test_an_unfinished_run_of_something_else_is_refused(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(3, top_k=5)) as journal:
        do(journal, 1)
    changed = plan(3, top_k=3)
    changed = replace(changed, bundle="c", shards=[*changed.shards[:2], replace(changed.shards[2], digest="x")])
    with pytest.raises(ArtifactError) as caught, opened(output, changed):
        pass
    assert caught.value.exit_code == 5
    assert caught.value.message == (
        f"{output} is unfinished, and of another run: top_k was 5, now it is 3; the bundle was another; "
        "images in 1 of 3 shards are others or were written since, first among shard 2"
    )
    assert "--no-resume" in caught.value.hint
    with opened(output, plan(3, top_k=5)) as journal:  # nothing was lost by that
        assert journal.pending == [0, 2]
    with opened(output, changed, resume=False) as journal:
        assert journal.pending == [0, 1, 2]


def test_a_finished_run_of_something_else_is_replaced_with_a_note(tmp_path: Path) -> None:
    output, notes = tmp_path / "o.jsonl", list[str]()
    finish(output, 2, top_k=5)
    with opened(output, plan(2, top_k=3), note=notes.append) as journal:
        assert journal.pending == [0, 1]
        do(journal, 0)
    assert notes == [f"note: {output} is of another run (top_k was 5, now it is 3) and will be replaced"]
    assert output.read_text() == rows(0) + rows(1)  # until then
    with pytest.raises(ArtifactError, match="unfinished"), opened(output, plan(2, top_k=5)):
        pass
    with opened(output, plan(2, top_k=3)) as journal:
        assert journal.pending == [1]


def test_a_run_that_makes_a_lost_output_again_is_unfinished(tmp_path: Path) -> None:
    """What it has done must not be thrown away as if the output were there."""
    output = tmp_path / "o.jsonl"
    finish(output, 3)
    output.unlink()
    with opened(output, plan(3)) as journal:
        do(journal, 0)
    with pytest.raises(ArtifactError, match="unfinished"), opened(output, plan(3, top_k=1)):
        pass
    with opened(output, plan(3)) as journal:
        assert journal.pending == [1, 2]


def test_a_run_that_was_ended_while_it_replaced_another_is_not_taken_for_that(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    finish(output, 3, top_k=5)
    removed: list[str] = []

    def unlink(file: Path, *, missing_ok: bool = False) -> None:
        if removed:
            raise KeyboardInterrupt
        removed.append(file.name)
        os.unlink(file)  # noqa: PTH108 - that is what was replaced

    with pytest.MonkeyPatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Path, "unlink", unlink)
        with opened(output, plan(3, top_k=3)):
            pass
    assert removed == ["plan.json"]
    with opened(output, plan(3, top_k=3)) as journal:
        assert journal.pending == [0, 1, 2]


def test_no_resume_starts_from_nothing(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(3)) as journal:
        do(journal, 0)
    with opened(output, plan(3), resume=False) as journal:
        assert (journal.pending, journal.commits) == ([0, 1, 2], {})
        assert not journal.file_of(0).exists()
    finish(output, 3)
    with opened(output, plan(3), resume=False) as journal:
        assert journal.finished is None


def test_no_resume_is_not_for_one_part_of_several(tmp_path: Path) -> None:
    with (
        pytest.raises(UsageError, match="--no-resume and --shard") as caught,
        opened(tmp_path / "o.jsonl", plan(3), Part(1, 2), resume=False),
    ):
        pass
    assert "before the first part" in caught.value.hint


@pytest.mark.parametrize("part", [ALL, Part(1, 2)])
def test_what_a_killed_process_has_left_is_removed_by_one_that_is_alone(tmp_path: Path, part: Part) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0)
    left = directory_of(output) / ".00000001.jsonl.abcdefgh.partial"
    left.write_text("half a ro")
    with opened(output, plan(2), part) as journal:
        assert journal.commits.keys() == {0}
        assert left.exists() == (part.count > 1)  # there, it may be another part's that is at work
    finish(output, 2)
    assert not left.exists()
    assert output.read_text() == rows(0) + rows(1)


@pytest.mark.parametrize(
    "text", ["", "{", "null", "[]", '{"format": 9}', '{"format": 1, "shards": 3}', "\xff", "[" * 100_000]
)
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, text: str) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0)
    (directory_of(output) / "plan.json").write_text(text, encoding="latin-1")
    with pytest.raises(ArtifactError, match=r"cannot read .*plan\.json: ") as caught, opened(output, plan(2)):
        pass
    assert "--no-resume" in caught.value.hint
    assert journal.file_of(0).exists()
    with opened(output, plan(2), resume=False) as journal:
        assert journal.pending == [0, 1]


def test_a_journal_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "mine").write_text("mine")
    directory_of(tmp_path / "o.jsonl").symlink_to(target)
    with pytest.raises(OutputError, match="is a symbolic link"), opened(tmp_path / "o.jsonl", plan(1)):
        pass
    assert [file.name for file in target.iterdir()] == ["mine"]


@pytest.mark.parametrize("what", ["directory", "fifo", "device"])
def test_an_output_that_is_no_file_is_refused_before_anything_is_done(tmp_path: Path, what: str) -> None:
    output = tmp_path / "o.jsonl"
    if what == "directory":
        output.mkdir()
    elif what == "fifo":
        os.mkfifo(output)
    else:
        output.symlink_to("/dev/null")
    with pytest.raises(OutputError, match=r"cannot write .*o\.jsonl: it is not a file"), opened(output, plan(1)):
        pass
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize("length", [238, 245, 255, 300])
def test_a_name_that_is_too_long_is_found_before_anything_is_done(tmp_path: Path, length: int) -> None:
    output = tmp_path / ("a" * (length - 6) + ".jsonl")
    with pytest.raises(OutputError, match=r"cannot write .*aa\.jsonl: File name too long"):
        open_and_close(output, 1)
    assert list(tmp_path.iterdir()) == []
    finish(tmp_path / ("a" * 231 + ".jsonl"), 1)


def test_a_journal_that_is_a_file_is_named(tmp_path: Path) -> None:
    directory_of(tmp_path / "o.jsonl").write_text("")
    with (
        pytest.raises(OutputError, match=r"cannot write .*o\.jsonl: File exists"),
        opened(tmp_path / "o.jsonl", plan(1)),
    ):
        pass


@pytest.mark.parametrize("name", ["mine", "plan.json", "_SUCCESS", "commits-1-of-1.jsonl", "00000001.jsonl"])
def test_a_directory_in_the_journal_is_named(tmp_path: Path, name: str) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0)
    (directory_of(output) / name).unlink(missing_ok=True)
    (directory_of(output) / name).mkdir()
    for resume in (True, False):
        with pytest.raises(OutputError, match=rf"{name} is a directory") as caught:
            open_and_close(output, 2, resume=resume)
        assert caught.value.hint == "remove that directory"


def open_and_close(output: Path, shards: int, *, resume: bool = True) -> None:
    with opened(output, plan(shards), resume=resume):
        pass


@pytest.mark.parametrize("name", ["plan.json", "commits-1-of-1.jsonl", "commits-2-of-3.jsonl"])
def test_a_pipe_in_the_journal_is_not_waited_for(tmp_path: Path, name: str) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0)
    (directory_of(output) / name).unlink(missing_ok=True)
    os.mkfifo(directory_of(output) / name)
    with pytest.raises(ArtifactError, match=rf"cannot read .*{name}: is no regular file") as caught:
        open_and_close(output, 2)
    assert "--no-resume" in caught.value.hint
    open_and_close(output, 2, resume=False)
    finish(output, 2)
    assert output.read_text() == rows(0) + rows(1)


def test_a_pipe_in_place_of_a_success_or_a_shard_is_none(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    with opened(output, plan(2)) as journal:
        do(journal, 0, "")
    journal.file_of(0).unlink()
    os.mkfifo(journal.file_of(0))
    os.mkfifo(directory_of(output) / "_SUCCESS")
    with opened(output, plan(2)) as journal:
        assert (journal.finished, journal.pending) == (None, [0, 1])


@pytest.mark.skipif(os.geteuid() == 0, reason="permissions mean nothing to root")
def test_a_directory_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with (
        pytest.raises(OutputError, match=r"cannot write .*o\.jsonl: Permission denied"),
        opened(tmp_path / "o.jsonl", plan(1)),
    ):
        pass


def test_the_files_are_what_the_module_says(tmp_path: Path) -> None:
    output = tmp_path / "o.CSV"
    with opened(output, plan(2), Part(2, 2)) as journal:
        do(journal, 1, "path\na\n")
    files = sorted(file.name for file in directory_of(output).iterdir())
    assert files == [
        "00000001.csv",
        "commits-2-of-2.jsonl",
        "part-2-of-2.lock",
        "plan.json",
        "plan.lock",
        "run.lock",
    ]
    assert json.loads((directory_of(output) / "commits-2-of-2.jsonl").read_text()) == asdict(journal.commits[1])
