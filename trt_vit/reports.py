"""Reports as one HTML file that needs nothing else: no script, nothing from elsewhere, everything escaped."""

from __future__ import annotations

from importlib import resources
from typing import TYPE_CHECKING, Any

from trt_vit import __version__
from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.outputs import naming, open_whole

if TYPE_CHECKING:
    from pathlib import Path

_TEMPLATE = "report.html"
_SUFFIX = ".html"


def check_report(output: Path) -> None:
    """Find out before the work whether its report can be written.

    Raises:
        UsageError: The output is not called .html.
        EnvironmentFault: jinja2 is missing.
    """
    if output.suffix.lower() != _SUFFIX:
        raise UsageError(f"a report is HTML, and {output} is called otherwise", hint=f"end it in {_SUFFIX}")
    _jinja()


def render(package: str, **values: Any) -> str:
    """Fill in a package's template, report.html. Whatever comes from outside, names of files say, is escaped.

    Raises:
        EnvironmentFault: jinja2 is missing.
    """
    jinja2 = _jinja()
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True)
    template = environment.from_string(resources.files(package).joinpath(_TEMPLATE).read_text(encoding="utf-8"))
    text: str = template.render(version=__version__, **values)
    return text


def write_report(output: Path, text: str) -> None:
    """Write a report.

    Raises:
        OutputError: The file cannot be written.
    """
    with open_whole(output) as stream, naming(output):
        stream.write(text.encode())


def _jinja() -> Any:
    try:
        import jinja2  # noqa: PLC0415 - only reports need it
    except ImportError as error:
        raise EnvironmentFault("a report needs the package jinja2", hint="pip install 'trt-vit[report]'") from error
    return jinja2
