from __future__ import annotations

import csv
import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from trt_vit.errors import OutputError, UsageError
from trt_vit.outputs import printable
from trt_vit.pipeline.rows import Prediction, Row
from trt_vit.pipeline.sinks import ParquetSink, open_sink

ROWS = [
    Row("a b.jpg", None, (Prediction(3, "crane, the bird", 0.75), Prediction(1, 'say "é"', 0.125))),
    Row("line\nbreak.png", "empty file", ()),
    Row("caf\udce9.jpg", None, (Prediction(0, "x", 1.0), Prediction(2, "y", 0.0))),
]


def write(output: Path, rows: list[Row] = ROWS) -> Path:
    with open_sink(output, 2) as sink:
        for row in rows:
            sink.write([row])
    return output


def test_json_lines(tmp_path: Path) -> None:
    lines = write(tmp_path / "o.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == [
        {
            "path": "a b.jpg",
            "status": "ok",
            "error": None,
            "topk": [
                {"index": 3, "label": "crane, the bird", "probability": 0.75},
                {"index": 1, "label": 'say "é"', "probability": 0.125},
            ],
        },
        {"path": "line\nbreak.png", "status": "error", "error": "empty file", "topk": []},
        {
            "path": "caf\\xe9.jpg",
            "status": "ok",
            "error": None,
            "topk": [
                {"index": 0, "label": "x", "probability": 1.0},
                {"index": 2, "label": "y", "probability": 0.0},
            ],
        },
    ]


def test_csv(tmp_path: Path) -> None:
    with write(tmp_path / "o.csv").open(encoding="utf-8", newline="") as stream:
        assert list(csv.reader(stream)) == [
            [
                "path",
                "status",
                "error",
                "top1_index",
                "top1_label",
                "top1_probability",
                "top2_index",
                "top2_label",
                "top2_probability",
            ],
            ["a b.jpg", "ok", "", "3", "crane, the bird", "0.750000", "1", 'say "é"', "0.125000"],
            ["line\nbreak.png", "error", "empty file", "", "", "", "", "", ""],
            ["caf\\xe9.jpg", "ok", "", "0", "x", "1.000000", "2", "y", "0.000000"],
        ]


def test_parquet(tmp_path: Path) -> None:
    table = pq.read_table(write(tmp_path / "o.parquet"))
    assert table.column_names[:4] == ["path", "status", "error", "top1_index"]
    assert table.column("path").to_pylist() == ["a b.jpg", "line\nbreak.png", "caf\\xe9.jpg"]
    assert table.column("status").to_pylist() == ["ok", "error", "ok"]
    assert table.column("top1_index").to_pylist() == [3, None, 0]
    assert table.column("top2_probability").to_pylist() == [0.125, None, 0.0]
    assert [str(field.type) for field in table.schema][3:6] == ["int32", "string", "float"]


def test_parquet_holds_back_no_more_than_a_row_group(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ParquetSink, "ROW_GROUP", 4)
    rows = [Row(f"{number}.jpg", None, ROWS[0].topk) for number in range(10)]
    file = pq.ParquetFile(write(tmp_path / "o.parquet", rows))
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [4, 4, 2]
    assert file.read().column("path").to_pylist() == [row.path for row in rows]


def test_a_suffix_in_any_case(tmp_path: Path) -> None:
    assert write(tmp_path / "o.JSONL").read_text(encoding="utf-8").count("\n") == 3


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.parquet"])
def test_nothing_is_left_by_a_run_that_fails(tmp_path: Path, name: str) -> None:
    class StopError(Exception):
        pass

    def fail() -> None:
        with open_sink(tmp_path / name, 2) as sink:
            sink.write(ROWS)
            raise StopError

    with pytest.raises(StopError):
        fail()
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_result_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    output = tmp_path / "o.jsonl"
    output.write_text("earlier\n", encoding="utf-8")
    with open_sink(output, 2) as sink:
        sink.write(ROWS)
        assert output.read_text(encoding="utf-8") == "earlier\n"
    assert output.read_text(encoding="utf-8").count("\n") == 3
    assert list(tmp_path.iterdir()) == [output]


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    assert write(tmp_path / "o.csv").stat().st_mode == plain.stat().st_mode


def test_an_unknown_suffix_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"o\.xml.*\.jsonl, \.csv, \.parquet"), open_sink(tmp_path / "o.xml", 1):
        pass


def test_a_directory_in_the_way_is_named(tmp_path: Path) -> None:
    (tmp_path / "o.csv").mkdir()
    with pytest.raises(OutputError, match="it is a directory"), open_sink(tmp_path / "o.csv", 1):
        pass


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot write"), open_sink(tmp_path / "file" / "o.csv", 1):
        pass


def test_a_full_disk_is_an_error_of_the_output() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("needs /dev/full")
    with pytest.raises(OutputError, match="cannot write"), open_sink(full / "o.csv", 1):
        pass


def test_printable_keeps_text_and_escapes_other_bytes() -> None:
    assert printable("ünï/ç.jpg") == "ünï/ç.jpg"
    assert printable("caf\udce9") == "caf\\xe9"
