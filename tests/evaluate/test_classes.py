from __future__ import annotations

import pytest

from trt_vit.errors import InputError
from trt_vit.evaluate.classes import Classes

LABELS = ["tench, Tinca tinca", "crane", "maillot", "Black_Swan", "crane", "maillot, tank suit", "7"]
CLASSES = Classes(LABELS, [f"n0000000{index}" for index in range(7)])


@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("tench", 0),
        ("Tench, tinca  TINCA", 0),
        ("black swan", 3),
        ("BLACK_SWAN", 3),
        ("maillot, tank suit", 5),
        ("n00000004", 4),
        ("3", 3),
        ("7", 6),  # a label, and no index
        ("0", 0),
    ],
)
def test_what_names_a_class(name: str, index: int) -> None:
    assert CLASSES.find(name) == index


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("crane", "'crane' is the label of classes 1, 4", "index or synset"),
        ("maillot", "'maillot' is the label of classes 2, 5", "index or synset"),
        ("tensh", "no class is called 'tensh'", "did you mean 'tench'"),
        ("8", "no class is called '8'", "indices 0 to 6"),
        ("n99999999", "no class is called 'n99999999'", "LOC_synset_mapping.txt"),
        ("-1", "no class is called '-1'", "labels, synsets or indices"),
        ("\N{SUPERSCRIPT TWO}", "no class is called", "labels"),
        ("", "no class is called ''", "labels"),
    ],
)
def test_what_names_none_or_several(name: str, message: str, hint: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        CLASSES.find(name)
    assert hint in caught.value.hint


def test_titles_tell_classes_apart() -> None:
    titles = [CLASSES.title(index) for index in range(7)]
    assert titles == ["tench", "crane (1)", "maillot (2)", "Black_Swan", "crane (4)", "maillot (5)", "7"]
    assert len(set(titles)) == len(titles)


def test_without_synsets() -> None:
    assert not Classes(LABELS).knows_synsets
    with pytest.raises(InputError, match="n00000004"):
        Classes(LABELS).find("n00000004")
