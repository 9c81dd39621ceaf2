"""Reading and placing the files of a checkpoint, with errors that name them."""

from __future__ import annotations

import hashlib
import json
import logging
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trt_vit.errors import CheckpointError, EnvironmentFault, OutputError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

EXTRA_HINT = "pip install 'trt-vit[export]'"


@contextmanager
def needs_export_extra() -> Iterator[None]:
    """Turn the absence of a package that only building needs into an error with its fix.

    Raises:
        EnvironmentFault: An import in the body failed.
    """
    try:
        yield
    except ImportError as error:
        name = error.name or str(error)
        raise EnvironmentFault(f"the package {name} is not installed", hint=EXTRA_HINT) from error


def read_json_object(path: Path) -> dict[str, Any]:
    """Read a JSON file whose top level is an object.

    Raises:
        CheckpointError: The file cannot be read, is not UTF-8, is not JSON or holds something else.
    """
    hint = "download the checkpoint again, or repair the file"
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="pass an existing, readable file") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path}: not JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}", hint=hint)
    return value


def sha256_of(paths: Iterable[Path]) -> str:
    """The SHA-256 of the files' bytes, one after the other in the order given, as 64 hexadecimal digits."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


@contextmanager
def staged(output: Path) -> Iterator[Path]:
    """A path to write an ONNX file to, moved to ``output`` when the body succeeds and gone when it fails.

    The stage is a directory beside ``output``, so the move is a rename. A file of external weights, which ONNX names
    relative to the model, is moved first: a reader never finds a model whose weights are not there yet.

    Raises:
        OutputError: ``output`` cannot be written.
    """
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        stage = tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.")
    except OSError as error:
        raise _unwritable(output, error) from error
    with stage as directory:
        target = Path(directory) / output.name
        yield target
        try:
            for path in sorted(target.parent.iterdir(), key=target.__eq__):
                path.replace(output.parent / path.name)
        except OSError as error:
            raise _unwritable(output, error) from error


@contextmanager
def writing(output: Path) -> Iterator[None]:
    """Turn an operating-system error while ``output`` is written, such as a full disk, into an OutputError."""
    try:
        yield
    except OSError as error:
        raise _unwritable(output, error) from error


def _unwritable(output: Path, error: OSError) -> OutputError:
    return OutputError(
        f"{output}: cannot be written: {error.strerror}", hint="choose a writable path on a disk with space"
    )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep what torch and transformers say off standard output, which belongs to --json, and their warnings silent."""
    threshold = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(sys.stderr), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(threshold)
