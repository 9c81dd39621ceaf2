"""An evaluation as one HTML file that needs nothing else: figures, plots, and the images that engines disagree on."""

from __future__ import annotations

import base64
import io
from importlib import resources
from typing import TYPE_CHECKING, Any

from PIL import Image

from trt_vit import __version__
from trt_vit.errors import EnvironmentFault, ImageError, UsageError
from trt_vit.images.decode import decode, read_image
from trt_vit.outputs import naming, open_whole, printable

if TYPE_CHECKING:
    from pathlib import Path

    from trt_vit.evaluate.evaluate import Evaluation

_TEMPLATE = "report.html"
_SUFFIX = ".html"
THUMBNAILS = 60
"""Images that are shown at most."""
_THUMBNAIL = (112, 112)
_FAILURES = 50
_CLASSES = 50


def check_report(output: Path) -> None:
    """Find out before an evaluation whether its report can be written.

    Raises:
        UsageError: The output is not called .html.
        EnvironmentFault: jinja2 is missing.
    """
    if output.suffix.lower() != _SUFFIX:
        raise UsageError(f"a report is HTML, and {output} is called otherwise", hint=f"end it in {_SUFFIX}")
    _jinja()


def write_report(output: Path, evaluation: Evaluation) -> None:
    """Write an evaluation as an HTML file.

    Raises:
        EnvironmentFault: jinja2 is missing.
        OutputError: The file cannot be written.
    """
    text = render(evaluation)
    with open_whole(output) as stream, naming(output):
        stream.write(text.encode())


def render(evaluation: Evaluation) -> str:
    """Return an evaluation as HTML. Whatever comes from outside, names of files and classes, is escaped."""
    jinja2 = _jinja()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files(__package__).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    shown = evaluation.disagreements[:THUMBNAILS]
    text: str = template.render(
        evaluation=evaluation,
        version=__version__,
        disagreements=[(row, printable(row.path), _thumbnail(row.path)) for row in shown],
        failures=[(printable(path), reason) for path, reason in evaluation.failures[:_FAILURES]],
        classes=_CLASSES,
    )
    return text


def _thumbnail(path: str) -> str | None:
    """Return a small picture of an image as a data URL, or None where it can no longer be read."""
    try:
        picture = Image.fromarray(decode(read_image(path)))
    except ImageError:
        return None
    picture.thumbnail(_THUMBNAIL)
    stream = io.BytesIO()
    picture.save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"


def _jinja() -> Any:
    try:
        import jinja2  # noqa: PLC0415 - only reports need it
    except ImportError as error:
        raise EnvironmentFault("a report needs the package jinja2", hint="pip install 'trt-vit[report]'") from error
    return jinja2
