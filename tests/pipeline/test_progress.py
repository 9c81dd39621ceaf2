from __future__ import annotations

import io
from typing import TYPE_CHECKING

from trt_vit.pipeline.progress import LineReporter, report_progress
from trt_vit.pipeline.rows import Row

if TYPE_CHECKING:
    import pytest

OK, FAILED = Row("a", None, ()), Row("b", "empty file", ())


def test_a_line_every_ten_seconds() -> None:
    times = iter([0.0, 4.0, 10.0, 15.0, 25.0])
    stream = io.StringIO()
    report = LineReporter(100, stream, clock=lambda: next(times))
    report([OK] * 10)
    assert not stream.getvalue()
    report([OK] * 9 + [FAILED])
    assert stream.getvalue() == "20/100 images, 2.0 images/s, 40 s left, 1 failed\n"
    report([OK] * 10)
    report([FAILED] * 20)
    assert stream.getvalue().splitlines()[1:] == ["50/100 images, 2.0 images/s, 25 s left, 21 failed"]


def test_nobody_is_told_where_standard_error_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stderr", None)
    with report_progress(1) as on_rows:
        on_rows([OK])
