from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from trt_vit.checkpoint.labels import labels_from_config, labels_from_file
from trt_vit.errors import CheckpointError

CONFIG = Path("config.json")


def test_config_labels_follow_the_index_not_the_file() -> None:
    given = {"id2label": {"10": "k", "2": "c", "0": "a", "1": "b, two", **{str(i): f"n{i}" for i in range(3, 10)}}}
    labels = labels_from_config(given, classes=11, path=CONFIG)
    assert labels == ("a", "b, two", "c", *(f"n{i}" for i in range(3, 10)), "k")


def test_missing_id2label_gets_the_placeholders_of_transformers() -> None:
    assert labels_from_config({}, classes=2, path=CONFIG) == ("LABEL_0", "LABEL_1")


@pytest.mark.parametrize(
    ("id2label", "message"),
    [
        ({"0": "a", "2": "c"}, "2 names for 3 classes, none for class 1"),
        ({"0": "a", "1": "b", "2": "c", "3": "d"}, "4 names for 3 classes"),
        ({"0": "a", "1": "b", "3": "d"}, "none for class 2"),
        ({"zero": "a"}, "index 'zero'"),
        ({"-1": "a"}, "index '-1'"),
        ({"0": 5}, r"id2label\[0\] is 5"),
        ({"0": " "}, "not a name"),
        (["a", "b", "c"], "list, not an object"),
        ({"0": "a", "00": "b", "1": "c", "2": "d"}, "index '00'"),
        ({"0": "a", "\u0661": "b", "2": "c"}, "index '\u0661'"),
        ({"9" * 5000: "a"}, "index '999"),
        ({"0": "a\x1b[31m"}, r"id2label\[0\] is 'a\\x1b\[31m', not a name"),
        ({"0": "a\nb"}, "not a name"),
        ({"0": "\ud800"}, "not a name"),
        ({"0": ["x"] * 10**5}, "not a name"),
    ],
)
def test_bad_id2label(id2label: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message) as caught:
        labels_from_config({"id2label": id2label}, classes=3, path=CONFIG)
    assert "config.json" in caught.value.message
    assert "--labels FILE" in caught.value.hint
    assert len(caught.value.message) < 400


def test_space_around_a_name_is_none_of_it() -> None:
    assert labels_from_config({"id2label": {"0": " a b\n"}}, classes=1, path=CONFIG) == ("a b",)


def test_more_classes_than_names_take_no_time() -> None:
    with pytest.raises(CheckpointError, match="1 names for 1000000000000 classes, none for class 1"):
        labels_from_config({"id2label": {"0": "a"}}, classes=10**12, path=CONFIG)


@pytest.mark.parametrize(
    "content",
    [b"a\nb c\n\xc3\xa9\n", b"a\r\nb c\r\n\xc3\xa9", b"\xef\xbb\xbfa\nb c\n\xc3\xa9\n\n\n"],
    ids=["unix", "windows", "byte order mark"],
)
def test_labels_file(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    assert labels_from_file(path, classes=3) == ("a", "b c", "é")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"a\n\nc\n", "line 2 is empty"),
        (b"a\nb\n", "2 labels for a model with 3 classes"),
        (b"a\nb\nc\nd\n", "4 labels"),
        (b"", "0 labels"),
        (b"\n \n", "0 labels"),
        (b"a\n\xff\nc\n", "not UTF-8 at byte 2"),
        (b"a\nb\x1b[31m\nc\n", r"line 2 is 'b\\x1b\[31m', which holds a control character"),
        (b"a\nb\x00\nc\n", "line 2"),
        (b"a\rb\nb\nc\n", "line 1"),
    ],
)
def test_bad_labels_file(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        labels_from_file(path, classes=3)
    assert str(path) in caught.value.message
    assert caught.value.hint


def test_missing_labels_file(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="No such file"):
        labels_from_file(tmp_path / "labels.txt", classes=3)


def test_a_pipe_or_a_device_is_no_labels_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "labels.txt")
    for path in (tmp_path / "labels.txt", Path("/dev/zero")):
        with pytest.raises(CheckpointError, match="is no regular file"):
            labels_from_file(path, classes=3)
