"""What a run must not write over: found before anything is read or written."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from trt_vit.errors import UsageError
from trt_vit.outputs import RemoteOutput, parse_output, size_of
from trt_vit.sources.files import LocalFile
from trt_vit.sources.urls import is_web

if TYPE_CHECKING:
    from collections.abc import Sequence

    from trt_vit.outputs import Output
    from trt_vit.settings import ClassifySettings
    from trt_vit.sources.shard import Shard


def refuse_overwriting(settings: ClassifySettings, shards: Sequence[Shard]) -> None:
    """Refuse an output or a file of metrics that is an input, or both in one: named inputs have whatever suffix.

    An output behind a URL is asked for first, so that one that cannot be reached is found now and not at the end.

    Raises:
        UsageError: Something would be written over.
        OutputError: Whether the output is there cannot be told.
    """
    output, metrics = settings.output, settings.metrics
    if isinstance(output, RemoteOutput) and is_web(output.url):
        raise UsageError(f"cannot write {output}: web servers take no files", hint="choose another place with -o")
    if size_of(output) is not None and _is_input(output, settings.inputs, shards):
        raise UsageError(f"{output} is one of the inputs", hint="choose another file with -o")
    if metrics is None:
        return
    if isinstance(output, Path) and _place(metrics) == _place(output):
        raise UsageError(f"{metrics} is the output too", hint="choose another file with --metrics")
    if size_of(metrics) is not None and _is_input(metrics, settings.inputs, shards):
        raise UsageError(f"{metrics} is one of the inputs", hint="choose another file with --metrics")


def _is_input(output: Output, inputs: Sequence[str], shards: Sequence[Shard]) -> bool:
    """Tell whether a file is an image, holds some, or is a list of them; of a link, what it points to is replaced."""
    named = [LocalFile(str(name)) for name in map(parse_output, inputs) if isinstance(name, Path)]
    return any(file.is_output(output) for file in named) or any(shard.holds(output) for shard in shards)


def _place(path: Path) -> Path:
    return Path(os.path.realpath(path))
