"""Reading and placing the files of a checkpoint, with errors that name them."""

from __future__ import annotations

import errno
import hashlib
import logging
import math
import os
import stat
import sys
import tempfile
import warnings
from contextlib import contextmanager, redirect_stdout
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import IO, TYPE_CHECKING, Any

from trt_vit.errors import CheckpointError, EnvironmentFault, OutputError
from trt_vit.reading import is_text, parse_json, plain, quoted, read_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import onnx

EXTRA_HINT = "pip install 'trt-vit[export]'"
TEXT_LIMIT = 64 * 2**20
"""Bytes of a file of settings or labels."""
_MOST_WEIGHTS = 2**36
_DIGITS = 20
_EXPORT_AGAIN = "export it again with its weights beside it"


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
        value = parse_json(read_file(path, TEXT_LIMIT))
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}", hint="pass an existing, readable file") from error
    except ValueError as error:
        raise CheckpointError(f"{path}: not JSON: {error}", hint=hint) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{path}: expected a JSON object, found {type(value).__name__}", hint=hint)
    return value


def refuse_links_outside(directory: Path, *names: str) -> None:
    """Refuse a checkpoint with a link to a file elsewhere: what someone has packed must not reach for others' files.

    The hub's own cache is links, from a directory below ``snapshots`` to ``blobs`` beside that.

    Args:
        directory: The checkpoint.
        names: Its files that are looked at; all of them where none are named.

    Raises:
        CheckpointError: A file is a link out of the directory.
    """
    own = directory.resolve()
    places = (own, own.parent.parent / "blobs") if own.parent.name == "snapshots" else (own,)
    for path in [directory / name for name in names] if names else sorted(directory.iterdir()):
        if path.is_symlink() and not any(Path(os.path.realpath(path)).is_relative_to(place) for place in places):
            raise CheckpointError(
                f"{path}: is a link to a file outside of {directory}", hint="put a copy of the file in its place"
            )


@contextmanager
def open_beside(model: Path, name: str) -> Iterator[IO[bytes]]:
    """Open a file that a model names, which must lie in the model's own directory or below.

    Every step is taken from the last directory that was opened, so that no link can be put in between.

    Raises:
        CheckpointError: The name leads elsewhere, or to a link, a pipe or a device.
        OSError: There is no such file, or it cannot be read.
    """
    problem, hint = f"{model}: its file of weights {quoted(name)} is", _EXPORT_AGAIN
    steps = PurePosixPath(name).parts
    if not steps or ".." in steps or steps[0].startswith("/") or "\0" in name:
        raise CheckpointError(f"{problem} not the name of a file beside it", hint=hint)
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    at = os.open(model.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    linked = f"{problem} not a file of its own, but a link, a pipe or a device"
    for step in steps:
        try:
            found = os.open(step, flags, dir_fd=at)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise CheckpointError(linked, hint=hint) from error
            raise
        finally:
            os.close(at)
        at = found
    status = os.fstat(at)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink > 1:
        os.close(at)
        raise CheckpointError(linked, hint=hint)
    with os.fdopen(at, "rb") as stream:
        yield stream


def bytes_of(tensor: onnx.TensorProto) -> int:
    """Bytes that a tensor's shape and type need.

    Raises:
        ValueError: It has none of the shapes and types that numbers have.
    """
    import onnx_ir as ir

    if min(tensor.dims, default=0) < 0:
        raise ValueError(f"the tensor {tensor.name} has a negative size")
    try:
        itemsize = Fraction(ir.DataType(tensor.data_type).itemsize)
    except TypeError as error:  # of texts, or of no type at all
        raise ValueError(f"the tensor {tensor.name} is not of numbers") from error
    needed: int = math.ceil(math.prod(tensor.dims) * itemsize)
    return needed


def take_in(tensors: Iterable[onnx.TensorProto], model: Path, digest: hashlib._Hash) -> None:
    """Put weights that lie beside a model into it, and the bytes of their files into a digest.

    Each file is read once, from its beginning to its end, so what is hashed is what is loaded. A byte belongs to one
    tensor: a small file cannot fill the memory by being named often.

    Args:
        tensors: The model's tensors whose weights lie in files.
        model: Its file, beside which the others lie.
        digest: Is given each file, in the order of their names.

    Raises:
        CheckpointError: A file lies elsewhere or is none, or does not hold what the tensors say.
        ValueError: A tensor has no proper type.
        OSError: A file cannot be read.
    """
    files: dict[str, list[tuple[int, onnx.TensorProto]]] = {}
    for tensor in tensors:
        facts = {entry.key: entry.value for entry in tensor.external_data}
        offset, length = (facts.get(key, usual) for key, usual in (("offset", "0"), ("length", str(bytes_of(tensor)))))
        if not (offset.isascii() and offset.isdecimal() and len(offset) < _DIGITS and length == str(bytes_of(tensor))):
            message = f"{model}: the weights of {tensor.name} are {quoted(length)} bytes from {quoted(offset)}"
            raise CheckpointError(f"{message}, and its shape needs {bytes_of(tensor)}", hint=_EXPORT_AGAIN)
        files.setdefault(facts.get("location", ""), []).append((int(offset), tensor))
    for name in sorted(files):
        with open_beside(model, name) as stream:
            pieces = sorted(files[name], key=lambda piece: (piece[0], bytes_of(piece[1])))
            _fill(pieces, stream, model, digest)


def _fill(
    pieces: Iterable[tuple[int, onnx.TensorProto]], stream: IO[bytes], model: Path, digest: hashlib._Hash
) -> None:
    size = os.fstat(stream.fileno()).st_size
    if size > _MOST_WEIGHTS:
        raise CheckpointError(f"{model}: a file of weights has {size} bytes", hint=f"{_MOST_WEIGHTS} are the most")
    for offset, tensor in pieces:
        if not stream.tell() <= offset <= size - bytes_of(tensor):
            message = f"{model}: the weights of {tensor.name} end behind their file's end, or are another tensor's too"
            raise CheckpointError(message, hint=_EXPORT_AGAIN)
        _hash_up_to(offset, stream, digest)
        tensor.raw_data = stream.read(bytes_of(tensor))
        digest.update(tensor.raw_data)
        tensor.ClearField("data_location")
        tensor.ClearField("external_data")
    _hash_up_to(size, stream, digest)


def _hash_up_to(end: int, stream: IO[bytes], digest: hashlib._Hash) -> None:
    while chunk := stream.read(min(1 << 20, end - stream.tell())):
        digest.update(chunk)


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
    if not is_text(str(output)):
        message = f"{plain(str(output))}: the name is not UTF-8, as the libraries that read it need"
        raise OutputError(message, hint="choose another name")
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
