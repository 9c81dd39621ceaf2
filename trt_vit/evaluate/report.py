"""What an evaluation's report shows: figures, plots, and the images that engines disagree on."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

from PIL import Image

from trt_vit.errors import ImageError
from trt_vit.images.decode import decode, read_image
from trt_vit.outputs import printable
from trt_vit.reports import render

if TYPE_CHECKING:
    from trt_vit.evaluate.evaluate import Evaluation

THUMBNAILS = 60
"""Images that are shown at most."""
_THUMBNAIL = (112, 112)
_FAILURES = 50
_CLASSES = 50


def evaluation_report(evaluation: Evaluation) -> str:
    """Return an evaluation as HTML.

    Raises:
        EnvironmentFault: jinja2 is missing.
    """
    shown = evaluation.disagreements[:THUMBNAILS]
    return render(
        __package__,
        evaluation=evaluation,
        disagreements=[(row, printable(row.path), _thumbnail(row.path)) for row in shown],
        failures=[(printable(path), reason) for path, reason in evaluation.failures[:_FAILURES]],
        classes=_CLASSES,
    )


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
