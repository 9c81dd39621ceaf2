from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

import pytest
from PIL import Image

from trt_vit.errors import InputError, UsageError
from trt_vit.evaluate import devkit
from trt_vit.evaluate.labelled import Labelled, find_labelled

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

NAMES = ["tench, Tinca tinca", "crane", "goldfish", "crane"]
SYNSETS = ["n01440764", "n01443537", "n02012849", "n03126707"]


def pictures(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 3)).save(root / name)
    return root


def found(data: Path, labels: Path | None = None, names: Sequence[str] = NAMES) -> dict[str, int | set[int]]:
    """What each image shows, by its path below ``data``."""
    labelled = find_labelled(data, labels, names)
    return {
        os.path.relpath(path, data): next(iter(target)) if len(target) == 1 else set(target)
        for path, target in zip(labelled.paths, labelled.targets, strict=True)
    }


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


class TestFolders:
    def test_by_label_and_index(self, tmp_path: Path) -> None:
        data = pictures(tmp_path, "Goldfish/a.png", "tench/deep/b.png", "tench/c.png", "3/d.png")
        assert found(data) == {"Goldfish/a.png": 2, "tench/deep/b.png": 0, "tench/c.png": 0, "3/d.png": 3}
        assert find_labelled(data, None, NAMES).source == "3 folders"

    def test_all_synsets_are_in_the_order_of_their_names(self, tmp_path: Path) -> None:
        data = pictures(tmp_path, *(f"{name}/a.png" for name in reversed(SYNSETS)))
        assert found(data) == {f"{name}/a.png": index for index, name in enumerate(SYNSETS)}

    @pytest.mark.parametrize("table", ["LOC_synset_mapping.txt", "../synset_words.txt"])
    def test_some_synsets_need_a_table(self, tmp_path: Path, table: str) -> None:
        data = pictures(tmp_path / "val", f"{SYNSETS[2]}/a.png", f"{SYNSETS[0]}/b.png")
        with pytest.raises(InputError, match="no class is called 'n01440764'") as caught:
            found(data)
        assert "LOC_synset_mapping.txt" in caught.value.hint
        write(data / table, "".join(f"{name} words, more words\n" for name in SYNSETS))
        assert found(data) == {f"{SYNSETS[2]}/a.png": 2, f"{SYNSETS[0]}/b.png": 0}

    def test_folders_that_are_no_class_are_told_together(self, tmp_path: Path) -> None:
        data = pictures(tmp_path, "tench/a.png", *(f"{name}/a.png" for name in ("crane", "eel", "9", "ray", "carp")))
        with pytest.raises(InputError) as caught:
            found(data)
        assert caught.value.message == (
            f"folders of {data}: no class is called '9'; no class is called 'carp'; "
            "'crane' is the label of classes 1, 3, and 2 more"
        )

    def test_images_outside_of_folders_have_no_label(self, tmp_path: Path) -> None:
        labelled = find_labelled(pictures(tmp_path, "tench/a.png", "b.png"), None, NAMES)
        assert (len(labelled.paths), labelled.unlabelled) == (1, [str(tmp_path / "b.png")])

    def test_nothing_that_says_anything(self, tmp_path: Path) -> None:
        with pytest.raises(InputError, match="nothing says what the images in") as caught:
            found(pictures(tmp_path, "a.png"))
        assert "--labels" in caught.value.hint

    def test_no_directory(self, tmp_path: Path) -> None:
        with pytest.raises(UsageError, match="no such directory"):
            found(tmp_path / "none")
        with pytest.raises(UsageError, match="no such file"):
            found(tmp_path, tmp_path / "none.txt")


VAL = [f"ILSVRC2012_val_{number:08}.JPEG" for number in range(1, 5)]


class TestFiles:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("val.txt", "{0} 2\n{1} 0\n{2} 3\n{3} 2\n"),
            ("labels.csv", "file,class_index,wnid,name\n{0},2,n,x\n{1},0,n,x\n{2},3,n,x\n{3},2,n,x\n"),
            ("labels.csv", "\ufefffile,label\n{0},goldfish\n{1},tench\n{2},3\n{3},goldfish\n"),
            ("labels.csv", "{0},2\n{1},0\n\n{2},3\n{3},2\n"),
        ],
    )
    @pytest.mark.parametrize("named", [True, False])
    def test_tables(self, tmp_path: Path, name: str, text: str, *, named: bool) -> None:
        data = pictures(tmp_path / "val", *VAL)
        file = write((tmp_path if named else data) / name, text.format(*VAL))
        assert found(data, file if named else None) == dict(zip(VAL, [2, 0, 3, 2], strict=True))

    def test_a_table_of_synsets(self, tmp_path: Path) -> None:
        data = pictures(tmp_path, *VAL)
        write(data / "synsets.txt", "\n".join(SYNSETS))
        file = write(
            data / "labels.csv", "file,wnid\n" + "".join(f"{a},{b}\n" for a, b in zip(VAL, SYNSETS, strict=True))
        )
        assert found(data, file) == dict(zip(VAL, range(4), strict=True))

    def test_files_are_found_by_path_name_or_stem(self, tmp_path: Path) -> None:
        data = pictures(tmp_path / "d", "x/same.png", "y/same.png", "y/other.jpg", "third one.png")
        file = write(tmp_path / "l.txt", "x/same.png 0\ny/same.png 1\nother 2\nthird one.png 3\n")
        assert found(data, file) == {"x/same.png": 0, "y/same.png": 1, "y/other.jpg": 2, "third one.png": 3}

    def test_what_is_left_over_on_either_side(self, tmp_path: Path) -> None:
        data = pictures(tmp_path / "d", "a.png", "b.png")
        file = write(tmp_path / "l.txt", "a.png 0\nc.png 1\nd.png 1\n")
        labelled = find_labelled(data, file, NAMES)
        assert (labelled.unlabelled, labelled.missing) == ([str(data / "b.png")], 2)

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("l.txt", "z.png 0\n", "names none of the 1 images"),
            ("l.txt", "a.png\n", "a line is not a file and its class"),
            ("l.csv", "file,class_index\na.png\n", "a row has no class"),
            ("l.txt", "a.png eel\n", "no class is called 'eel'"),
            ("l.txt", "a.png 1\nb.png 4\n", "counts classes from 1 to 4, and the checkpoint from 0"),
            ("l.txt", "a.png 0\nb.png 4\n", "no class is called '4'"),
            ("l.json", "[[0], [9]]", "is not a file of ReaL labels"),
            ("l.json", "{}", "is not a file of ReaL labels"),
            ("l.json", "[", "cannot read"),
            ("l.json", "[" * 100_000, "cannot read .*nested too deeply"),
            ("l.json", "[[true]]", "is not a file of ReaL labels"),
            ("l.json", "[[NaN]]", "'NaN' is not a number"),
            ("l.txt", "", "names none of the 1 images"),
            ("l.txt", "\u00b2\n", "a line is not a file and its class"),
            ("l.txt", "9" * 5000, "a line is not a file and its class"),
            ("l.txt", f"a.png {'9' * 5000}", "no class is called '999"),
            ("l.csv", f"a.png,{'9' * 5000}", "no class is called '999"),
            ("l.csv", "a.png,\u00b2", "no class is called '\u00b2'"),
            ("l.txt", "a.png \x1b[31m", r"no class is called '\\x1b\[31m'"),
            ("l.csv", f"a.png,{'x' * 100_000}", "no class is called 'xxx"),
        ],
    )
    def test_what_does_not_fit(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        data = pictures(tmp_path / "d", "a.png")
        with pytest.raises(InputError, match=message) as caught:
            found(data, write(tmp_path / name, text))
        assert len(str(caught.value)) < 1000

    def test_a_table_of_nothing_but_strangers_takes_no_time(self, tmp_path: Path) -> None:
        """Only for names that are told is it looked for what may be meant: for each that is a comparison with all."""
        data = pictures(tmp_path / "d", "a.png")
        names = [f"kind {number} of several words" for number in range(1000)]
        file = write(
            tmp_path / "l.txt", "".join(f"{number}.png unknown-{number}-of-words\n" for number in range(20_000))
        )
        with pytest.raises(InputError, match="and 19997 more"):
            found(data, file, names)

    def test_what_is_no_file_or_too_large(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = pictures(tmp_path / "d", "a.png")
        monkeypatch.setattr(devkit, "_MOST_BYTES", 10)
        for name in ("l.txt", "l.csv", "l.json"):
            with pytest.raises(InputError, match="is larger than 10 bytes"):
                found(data, write(tmp_path / name, "a.png 0" * 10))
        (data / "synsets.txt").symlink_to("/dev/zero")  # which is_file says is none
        assert found(data, write(tmp_path / "l.txt", "a.png 0")) == {"a.png": 0}

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        data = pictures(tmp_path / "d", "a.png")
        for name in ("l.txt", "l.csv"):
            (tmp_path / name).write_bytes(b"a.png \xff\xfe\n")
            with pytest.raises(InputError, match="cannot read"):
                found(data, tmp_path / name)

    def test_real_labels_are_several_or_none(self, tmp_path: Path) -> None:
        data = pictures(tmp_path, *VAL)
        file = write(tmp_path / "real.json", json.dumps([[2], [0, 3], [], [1]]))
        assert found(data, file) == {VAL[0]: 2, VAL[1]: {0, 3}, VAL[3]: 1}
        assert find_labelled(data, file, NAMES).unlabelled == [str(data / VAL[2])]


class TestDevelopmentKit:
    """Its numbers begin at 1, in an order of their own."""

    NUMBERS = (3, 1, 4, 2)
    """The kit's number of each synset."""

    def data(self, root: Path) -> tuple[Path, Path]:
        data = pictures(root / "val", *VAL)
        (root / "kit").mkdir()
        return data, write(root / "kit" / "ILSVRC2012_validation_ground_truth.txt", "1\n2\n3\n1\n")

    def test_its_own_table_translates(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        rows = [f"{name} {number} word\n" for name, number in zip(SYNSETS, self.NUMBERS, strict=True)]
        write(file.with_name("map_clsloc.txt"), "".join(reversed(rows)))
        assert found(data, file) == dict(zip(VAL, [1, 3, 0, 1], strict=True))

    def test_without_it_nothing_is_guessed(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        with pytest.raises(InputError, match="the development kit's own class numbers") as caught:
            found(data, file)
        assert "meta.mat or map_clsloc.txt" in caught.value.hint

    def test_a_table_of_other_classes(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        write(file.with_name("map_clsloc.txt"), f"{SYNSETS[0]} 1 word\n")
        with pytest.raises(InputError, match="has 1 classes, the checkpoint 4"):
            found(data, file)

    @pytest.mark.parametrize("numbers", [(0, 1, 2, 3), (1, 2, 3, "\u00b2"), (1, 2, 3, "9" * 5000), (1, 2, 3, 3)])
    def test_a_table_whose_numbers_are_not_1_to_4(self, tmp_path: Path, numbers: Sequence[object]) -> None:
        data, file = self.data(tmp_path)
        rows = [f"{name} {number} word\n" for name, number in zip(SYNSETS, numbers, strict=True)]
        write(file.with_name("map_clsloc.txt"), "".join(rows))
        with pytest.raises(InputError, match="has 3 classes, the checkpoint 4"):
            found(data, file)

    def test_a_table_with_a_synset_twice(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        write(file.with_name("map_clsloc.txt"), "".join(f"{SYNSETS[0]} {number} word\n" for number in range(1, 5)))
        with pytest.raises(InputError, match="has 1 classes, the checkpoint 4"):
            found(data, file)

    def test_a_table_that_is_no_text(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        file.with_name("map_clsloc.txt").write_bytes(b"n01440764 1 \xff\n")
        with pytest.raises(InputError, match=r"cannot read .*map_clsloc\.txt: it is not UTF-8 at byte 12"):
            found(data, file)

    def test_a_number_that_is_none(self, tmp_path: Path) -> None:
        data, file = self.data(tmp_path)
        write(file.with_name("map_clsloc.txt"), "".join(f"{name} {i} w\n" for i, name in enumerate(SYNSETS, start=1)))
        write(file, "1\n9\n")
        with pytest.raises(InputError, match="no class has the number 9"):
            found(data, file)

    def test_its_table_for_matlab(self, tmp_path: Path) -> None:
        scipy = pytest.importorskip("scipy.io", reason="needs scipy")
        numpy = pytest.importorskip("numpy")
        data, file = self.data(tmp_path)
        rows = numpy.array(list(zip(self.NUMBERS, SYNSETS, strict=True)), [("ILSVRC2012_ID", "O"), ("WNID", "O")])
        scipy.savemat(file.with_name("meta.mat"), {"synsets": rows})
        assert found(data, file) == dict(zip(VAL, [1, 3, 0, 1], strict=True))

    @pytest.mark.parametrize(
        "damage", [lambda data: b"", lambda data: data[:200], lambda data: data[:136] + b"\xff" * 99]
    )
    def test_a_damaged_table_for_matlab(self, tmp_path: Path, damage: Callable[[bytes], bytes]) -> None:
        scipy = pytest.importorskip("scipy.io", reason="needs scipy")
        data, file = self.data(tmp_path)
        table = file.with_name("meta.mat")
        scipy.savemat(table, {"synsets": [1]})
        table.write_bytes(damage(table.read_bytes()))
        with pytest.raises(InputError, match=r"cannot read .*meta\.mat: it is not the kit's table"):
            found(data, file)

    def test_a_table_that_ends_its_reader_ends_nothing_else(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """scipy's reader is native code, and damaged files end the process that it runs in."""
        pytest.importorskip("scipy", reason="needs scipy")
        data, file = self.data(tmp_path)
        file.with_name("meta.mat").touch()
        for end in ("import os; os.abort()", "while True: pass", "print('[[1]]')", "print('[[[], 1]]')"):
            monkeypatch.setattr(devkit, "_MATLAB_READER", end)
            monkeypatch.setattr(devkit, "_SECONDS", 0.5)
            with pytest.raises(InputError, match=r"cannot read .*meta\.mat: it is not the kit's table"):
                found(data, file)


@pytest.mark.parametrize(
    ("count", "kept"), [(None, [0, 1, 2, 3, 4]), (9, [0, 1, 2, 3, 4]), (2, [0, 2]), (1, [0]), (4, [0, 1, 2, 3])]
)
def test_a_limit_is_spread_over_all(count: int | None, kept: list[int]) -> None:
    labelled = Labelled([str(n) for n in range(5)], [frozenset((n,)) for n in range(5)], [], 0, "")
    limited = labelled.limited(count)
    assert limited.paths == [str(number) for number in kept]
    assert limited.targets == [frozenset((number,)) for number in kept]
