"""Files that someone else may have made, and what is shown of them."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from trt_vit.reading import is_plain, parse_json, plain, quoted, read_file

if TYPE_CHECKING:
    from collections.abc import Callable


def with_size(size: int) -> Callable[[int], os.stat_result]:
    """Return an ``fstat`` that tells of another size."""
    status = os.fstat

    def other(descriptor: int) -> os.stat_result:
        fields = list(status(descriptor))
        fields[stat.ST_SIZE] = size
        return os.stat_result(fields)

    return other


class TestReadingFiles:
    def test_a_file_and_a_link_to_it(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"data")
        (tmp_path / "link").symlink_to(tmp_path / "file")
        assert read_file(tmp_path / "file", 4) == b"data"
        assert read_file(tmp_path / "file", 4, follow=False) == b"data"
        assert read_file(tmp_path / "link", 4) == b"data"
        with pytest.raises(OSError, match="is a symbolic link"):
            read_file(tmp_path / "link", 4, follow=False)

    @pytest.mark.parametrize("device", ["/dev/zero", "/dev/null"])
    def test_a_device(self, device: str) -> None:
        with pytest.raises(OSError, match="is no regular file"):
            read_file(Path(device), 4)

    def test_a_pipe_and_a_directory(self, tmp_path: Path) -> None:
        os.mkfifo(tmp_path / "pipe")
        with pytest.raises(OSError, match="is no regular file"):
            read_file(tmp_path / "pipe", 4)
        with pytest.raises(IsADirectoryError):
            read_file(tmp_path, 4)

    def test_more_than_is_wanted(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_bytes(b"data!")
        with pytest.raises(OSError, match="is larger than 4 bytes"):
            read_file(tmp_path / "file", 4)

    def test_more_than_there_is_memory_for(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (tmp_path / "file").write_bytes(b"data")
        monkeypatch.setattr(os, "fstat", with_size(2**62))
        with pytest.raises(OSError, match="is larger than the memory"):
            read_file(tmp_path / "file", 2**62)

    @pytest.mark.parametrize("size", [3, 5])
    def test_a_file_that_changes_while_it_is_read(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
    ) -> None:
        (tmp_path / "file").write_bytes(b"data")
        monkeypatch.setattr(os, "fstat", with_size(size))
        with pytest.raises(OSError, match="changes while it is read"):
            read_file(tmp_path / "file", 10)

    @pytest.mark.parametrize("name", ["a\0b", "a\ud800b"])
    def test_what_is_no_name(self, name: str) -> None:
        with pytest.raises(OSError, match="is no name of a file"):
            read_file(Path(name), 10)


class TestJson:
    @pytest.mark.parametrize(
        ("text", "value"),
        [
            ('{"a": [1, -2.5e3, "\u00e9", null, true]}', {"a": [1, -2500.0, "\u00e9", None, True]}),
            ('"\\ud83d\\ude00"', "\U0001f600"),
            ("9223372036854775807", 2**63 - 1),
            ("[" * 64 + "]" * 64, None),
        ],
    )
    def test_what_is_read(self, text: str, value: object) -> None:
        document = parse_json(text.encode())
        assert document == parse_json(text)
        assert value is None or document == value

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ('{"a": 1, "b": {"a": 1, "a": 2}}', "the key 'a' is given twice"),
            ("[NaN]", "'NaN' is not a number"),
            ("-Infinity", "'-Infinity' is not a number"),
            ("1e999", "'1e999' is not a number"),
            ("1" * 30, "is not a number of 64 bits"),
            ("1" * 5000, "is not a number of 64 bits"),
            ("[" * 65 + "]" * 65, "nested more than 64 levels deep"),
            ("[" * 100_000, "nested too deeply"),
            ('{"a": "\\ud800"}', r"'\\ud800' is not text"),
            ('{"\\udfff": 1}', "is not text"),
            ("\ufeff1", "BOM"),
            ("", "Expecting value"),
        ],
    )
    def test_what_is_refused(self, text: str, message: str) -> None:
        with pytest.raises(ValueError, match=message) as caught:
            parse_json(text.encode())
        assert len(str(caught.value)) < 500

    def test_bytes_that_are_no_text(self) -> None:
        with pytest.raises(ValueError, match="can't decode"):
            parse_json(b'"\xff"')


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("caf\u00e9 \u4e2d\u6587 \U0001f600", "caf\u00e9 \u4e2d\u6587 \U0001f600"),
        ("a\x1b[31m\n\x7f\x85", r"a\x1b[31m\n\x7f\x85"),
        ("a\u2028b\u202ec\u2066", r"a\u2028b\u202ec\u2066"),
        ("\udcff", r"\udcff"),
    ],
)
def test_what_acts_on_a_terminal_is_spelled_out(text: str, shown: str) -> None:
    assert plain(text) == shown
    assert is_plain(text) == (text == shown)
    assert is_plain(plain(text))


def test_a_value_in_a_message_is_short() -> None:
    assert quoted("a\x1b") == r"'a\x1b'"
    assert len(quoted("x" * 10**6)) < 300
    assert len(quoted([["x" * 10**4] * 10**4] * 10**4)) < 300
    assert quoted({"a": 1}) == "{'a': 1}"
