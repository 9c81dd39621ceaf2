from __future__ import annotations

import os
from pathlib import Path

import pytest

from trt_vit.errors import InputError, UsageError
from trt_vit.images.source import SUFFIXES, expand, is_image, lines_of, list_images


@pytest.fixture(autouse=True)
def _inside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def make(*names: str | bytes) -> None:
    for name in names:
        path = Path(os.fsdecode(name))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


def test_a_directory_is_searched_recursively_and_sorted_by_component() -> None:
    make("d/b.jpg", "d/a/z.jpg", "d/a.jpg", "d/a/y/x.jpg", "d/B.jpg", "d/a!.jpg", "d/notes.csv", "d/noise")
    assert list_images(["d"]) == ["d/B.jpg", "d/a/y/x.jpg", "d/a/z.jpg", "d/a!.jpg", "d/a.jpg", "d/b.jpg"]


@pytest.mark.parametrize("suffix", sorted(SUFFIXES))
def test_every_suffix_counts_in_any_case(suffix: str) -> None:
    make(f"d/a{suffix}", f"d/b{suffix.upper()}", f"d/{suffix}", f"d/c{suffix}.part")
    assert list_images(["d"]) == [f"d/a{suffix}", f"d/b{suffix.upper()}"]


def test_hidden_files_count_but_not_what_macos_adds() -> None:
    make("d/.hidden.jpg", "d/.dir/a.jpg", "d/._a.jpg", "d/__MACOSX/b.jpg", "d/c.jpg")
    assert list_images(["d"]) == ["d/.dir/a.jpg", "d/.hidden.jpg", "d/c.jpg"]
    assert list_images(["d/*", "d/**"]) == ["d/.hidden.jpg", "d/c.jpg", "d/.dir/a.jpg"]


def test_order_of_the_inputs_is_kept_and_each_path_comes_once() -> None:
    make("d/a.jpg", "d/b.jpg", "c.jpg")
    Path("list.txt").write_text("c.jpg\nd//b.jpg\nd/e.jpg\n")
    assert list_images(["./d/b.jpg", "c.jpg", "d", "list.txt", "d/"]) == ["./d/b.jpg", "c.jpg", "d/a.jpg", "d/e.jpg"]


def test_symbolic_links_are_followed_but_never_in_a_circle() -> None:
    make("real/a.jpg", "real/sub/b.jpg")
    Path("real/sub/up").symlink_to("..")
    Path("real/self").symlink_to("self")
    Path("real/self.jpg").symlink_to("self.jpg")
    Path("real/link.jpg").symlink_to("a.jpg")
    Path("linked").symlink_to("real")
    below = ["a.jpg", "link.jpg", "self.jpg", "sub/b.jpg"]
    assert list_images(["real"]) == [f"real/{name}" for name in below]
    assert list_images(["linked"]) == [f"linked/{name}" for name in below]
    assert list_images(["real/**/*.jpg"]) == [f"real/{name}" for name in below]


def test_directories_may_nest_deeper_than_python_calls() -> None:
    depth = 1500
    start = os.open(".", os.O_RDONLY)
    try:
        for _ in range(depth):
            Path("d").mkdir()
            os.chdir("d")
        make("a.jpg")
        os.fchdir(start)
        assert list_images(["d"]) == ["d/" * depth + "a.jpg"]
    finally:  # shutil.rmtree, and so pytest, cannot remove what is as deep as this
        os.chdir("/".join("d" * depth))
        Path("a.jpg").unlink()
        for _ in range(depth):
            os.chdir("..")
            Path("d").rmdir()
        os.close(start)


def test_a_list_is_taken_line_by_line_whatever_it_names() -> None:
    make("a.jpg", "no suffix")
    Path("list.TXT").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\r\n  \nno suffix\nmissing.jpg\n caf\xe9.jpg\n-x.jpg")
    assert list_images(["list.TXT"]) == ["a.jpg", "no suffix", "missing.jpg", " caf\udce9.jpg", "-x.jpg"]


def test_names_may_hold_anything() -> None:
    names = [b"-rf.jpg", b" a b .jpg", b"new\nline.jpg", b"[1].jpg", b"\xff\xfe.jpg", "höhe.jpg".encode(), b"*.jpg"]
    make(*[b"d/" + name for name in names])
    found = list_images(["d"])
    assert {os.fsencode(path) for path in found} == {b"d/" + name for name in names}
    assert found == sorted(found)
    # A file that has the very name of a pattern is that file.
    assert list_images(["d/[1].jpg"]) == ["d/[1].jpg"]
    assert list_images(["d/*.jpg"]) == ["d/*.jpg"]


def test_a_named_file_is_taken_whatever_its_suffix() -> None:
    make("picture")
    Path("dangling").symlink_to("nowhere")
    assert list_images(["picture", "dangling"]) == ["picture", "dangling"]


def test_globs() -> None:
    make("a.jpg", "d1/b.jpg", "d2/c.PNG", "d2/e/f.jpg", "d2/e/g.csv", "x/y.jpg", "[d]/z.jpg")
    assert list_images(["d?/*"]) == ["d1/b.jpg", "d2/c.PNG"]
    assert list_images(["d[12]/**"]) == ["d1/b.jpg", "d2/c.PNG", "d2/e/f.jpg"]
    assert list_images(["**/*.jpg"]) == ["[d]/z.jpg", "a.jpg", "d1/b.jpg", "d2/e/f.jpg", "x/y.jpg"]
    assert list_images(["**/e/**/f.*"]) == ["d2/e/f.jpg"]
    assert list_images([f"{Path.cwd()}/**/y.*"]) == [f"{Path.cwd()}/x/y.jpg"]


def everything(_path: str) -> bool:
    return True


def test_what_runs_have_written_is_not_searched_for() -> None:
    make("d/a.parquet", "d/out/rows.parquet", "d/out/b.jpg", "d/.b.jpg.journal/plan.json", "d/b.jpg")
    make("d/out/.rows.parquet.journal/plan.json", "d/out/.rows.parquet.journal/00000000.parquet")
    make("d/out/.rows.parquet.journal/c.jpg")
    assert list(expand("d/**/*.parquet", everything)) == ["d/a.parquet"]
    assert list(expand("d/**", everything)) == ["d/a.parquet", "d/b.jpg", "d/out/b.jpg"]
    assert list(expand("d/out/*", everything)) == ["d/out/b.jpg"]
    assert list(expand("d/*/*/*", everything)) == []
    assert list(expand("d/out/.*/*.parquet", everything)) == []
    assert list(expand("**/*.parquet", everything)) == ["d/a.parquet"]
    assert list_images(["d"]) == ["d/b.jpg", "d/out/b.jpg"]
    # Named, they are taken.
    assert list(expand("d/out/rows.parquet", everything)) == ["d/out/rows.parquet"]
    journal = "d/out/.rows.parquet.journal"
    assert list(expand(f"{journal}/*.parquet", everything)) == [f"{journal}/00000000.parquet"]
    assert list(expand(f"{journal}/**", everything)) == [
        *(f"{journal}/00000000.parquet", f"{journal}/c.jpg", f"{journal}/plan.json")
    ]
    assert list_images([journal]) == [f"{journal}/c.jpg"]


def test_what_is_only_called_like_a_journal_is_searched() -> None:
    make("d/.a.journal/b.jpg", "d/a.journal/b.jpg", "d/a.journal/plan.json", "d/a", "d/.journal/c.jpg")
    below = ["d/.a.journal/b.jpg", "d/.journal/c.jpg", "d/a.journal/b.jpg"]
    assert list_images(["d"]) == below
    assert list_images(["d/**/*.jpg"]) == below
    assert list_images(["d/*/*.jpg"]) == below
    assert list(expand("d/*", everything)) == ["d/a"]


def test_a_name_without_anything_behind_it_is_a_usage_error() -> None:
    with pytest.raises(UsageError, match="no such file or directory: 'mis\\\\nspelt'") as caught:
        list_images(["mis\nspelt"])
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("name", ["empty", "texts", "*.jpg", "nothing/**", "list.txt"])
def test_an_input_without_images_says_what_was_looked_for(name: str) -> None:
    Path("empty").mkdir()
    make("texts/a.csv", "list.txt", "fine.png")
    with pytest.raises(InputError, match="no image in") as caught:
        list_images(["fine.png", name])
    assert caught.value.exit_code == 1
    assert ".jpeg" in caught.value.hint
    assert "\n" not in str(caught.value)


def test_no_input_at_all() -> None:
    with pytest.raises(InputError, match="no input is named"):
        list_images([])


@pytest.mark.skipif(os.geteuid() == 0, reason="needs a user to whom permissions apply")
def test_what_may_not_be_read_is_named() -> None:
    make("d/closed/a.jpg", "list.txt")
    Path("d/closed").chmod(0)
    Path("list.txt").chmod(0)
    with pytest.raises(InputError, match="cannot list the directory 'd/closed': Permission denied"):
        list_images(["d"])
    with pytest.raises(InputError, match=r"cannot read the list 'list.txt': Permission denied"):
        list_images(["list.txt"])
    Path("d/closed").chmod(0o700)


def test_a_list_that_is_no_regular_file_is_an_error_and_not_a_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "list.txt")
    with pytest.raises(InputError, match=r"cannot use the list .*list\.txt.*not a regular file"):
        list_images([str(tmp_path / "list.txt")])


def test_what_counts_behind_a_glob_may_be_more_than_images() -> None:
    make("d/a.jpg", "d/b.tar", "d/c/e.tar")
    assert list(expand("d/**", is_image)) == ["d/a.jpg"]
    assert list(expand("d/**", lambda path: path.endswith(".tar"))) == ["d/b.tar", "d/c/e.tar"]
    assert list(expand("d", lambda _: True)) == ["d/a.jpg"]
    assert list(expand("d/b.tar", is_image)) == ["d/b.tar"]


def test_lines_end_in_what_the_list_is_separated_by() -> None:
    assert list(lines_of(b"a b\nc\0d\r\n")) == ["a b", "c\0d"]
    assert list(lines_of(b"a\nb\0\0c", b"\0")) == ["a\nb", "c"]
    assert list(lines_of(b"\xef\xbb\xbfa\r\0 \0\r\n\0\xff", b"\0")) == ["\ufeffa\r", " ", "\r\n", "\udcff"]
