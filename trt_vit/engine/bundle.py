"""The bundle: the directory in which the build flow leaves an engine and the run flow finds it.

An engine is native code, or becomes it, so nothing in a bundle is used before its bytes have been compared with the
manifest's digest: ``Bundle.read`` hashes the very bytes that it returns.
"""

from __future__ import annotations

import errno
import hashlib
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import TypeAdapter, ValidationError

from trt_vit.engine.manifest import FORMAT, FileRecord, Manifest, Text
from trt_vit.errors import ArtifactError, OutputError, UsageError
from trt_vit.images.preprocessing import Preprocessing
from trt_vit.reading import is_text, parse_json, plain, quoted, read_file
from trt_vit.runtime.protocol import EngineFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"
PREPROCESSING = "preprocessing.json"
LABELS = "labels.json"
_DOCUMENT_LIMIT = 64 * 2**20
"""Bytes of the manifest, the preprocessing or the labels."""
_LONGEST_KEY = 80
_LONGEST_REASON = 500
_REBUILD = "build it again with trt-vit build-engine"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Opening reads only the manifest; ``read`` and the properties verify what they return.

    Its directory may be reached by a link, but no file in it may be one: all of a bundle lies in its directory.

    Attributes:
        path: The bundle's directory.
        manifest: Its manifest.
        sha256: Digest of the manifest's bytes. It covers every file's digest, so it names the bundle's whole content.
    """

    path: Path
    manifest: Manifest
    sha256: str

    @classmethod
    def open(cls, path: Path) -> Bundle:
        """Open the bundle at ``path``.

        Raises:
            UsageError: There is no such directory.
            ArtifactError: It is not a bundle, or one of another format.
        """
        if not os.path.exists(path):  # noqa: PTH110 - Path's own raises for a name that is too long
            raise UsageError(f"no bundle at {path}", hint="build one with trt-vit build-engine SOURCE -o BUNDLE")
        file = path / MANIFEST
        try:
            data = read_file(file, _DOCUMENT_LIMIT, follow=False)
        except OSError as error:
            raise ArtifactError(f"{path} is not a bundle: {MANIFEST}: {error.strerror}", hint=_REBUILD) from error
        return cls(path, _parse_manifest(file, data), hashlib.sha256(data).hexdigest())

    def read(self, name: str) -> bytes:
        """Return the bytes of a file of the bundle, compared with the manifest.

        Raises:
            ArtifactError: The file is missing, unknown to the manifest, or not what was built.
        """
        record = self.manifest.files.get(name)
        if record is None:
            raise ArtifactError(f"{self.path}: the manifest lists no {name}", hint=_REBUILD)
        file = self.path / name
        changed, hint = f"{file} is not what the manifest says was built", f"do not use it; {_REBUILD}"
        try:
            data = read_file(file, record.bytes, follow=False)
        except OSError as error:
            if error.errno == errno.EFBIG:
                raise ArtifactError(f"{changed} (it {error.strerror})", hint=hint) from error
            raise ArtifactError(f"{file}: {error.strerror}", hint=_REBUILD) from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            raise ArtifactError(f"{changed} (its sha256 differs)", hint=hint)
        return data

    def _document(self, name: str) -> Any:
        # A file that is not listed is refused by ``read``.
        listed = self.manifest.files.get(name)
        if listed is not None and listed.bytes > _DOCUMENT_LIMIT:
            raise ArtifactError(f"{self.path / name} is larger than {_DOCUMENT_LIMIT} bytes", hint=_REBUILD)
        try:
            return parse_json(self.read(name))
        except ValueError as error:
            raise ArtifactError(f"{self.path / name} is not JSON: {error}", hint=_REBUILD) from error

    def engine_files(self) -> EngineFiles:
        """Return what a runtime needs of this bundle."""
        manifest = self.manifest
        return EngineFiles(self.path, manifest.precision, manifest.model, manifest.batch, self.read)

    def verify(self) -> None:
        """Read every file and compare it with the manifest.

        Raises:
            ArtifactError: As for ``read``.
        """
        for name in self.manifest.files:
            self.read(name)

    def preprocessing(self) -> Preprocessing:
        """Return the preprocessing that the checkpoint was trained with."""
        model = self.manifest.model
        try:
            preprocessing = Preprocessing.model_validate(self._document(PREPROCESSING))
        except ValidationError as error:
            raise ArtifactError(f"{self.path / PREPROCESSING}: {_first(error)}", hint=_REBUILD) from error
        if preprocessing.output_size != (model.height, model.width):
            message = f"{self.path / PREPROCESSING} does not give the {model.height}x{model.width} pixels of the engine"
            raise ArtifactError(message, hint=_REBUILD)
        return preprocessing

    def labels(self) -> tuple[str, ...]:
        """Return the label of each class, by index."""
        try:
            labels = TypeAdapter(tuple[Text, ...]).validate_python(self._document(LABELS))
        except ValidationError as error:
            raise ArtifactError(f"{self.path / LABELS}: {_first(error)}", hint=_REBUILD) from error
        if len(labels) != self.manifest.model.classes:
            message = f"{self.path / LABELS} has {len(labels)} labels for {self.manifest.model.classes} classes"
            raise ArtifactError(message, hint=_REBUILD)
        return labels


def _parse_manifest(file: Path, data: bytes) -> Manifest:
    try:
        document = parse_json(data)
        if isinstance(document, dict) and document.get("format") != FORMAT:
            message = f"{file} has format {quoted(document.get('format'))}; this version reads format {FORMAT}"
            raise ArtifactError(message, hint=_REBUILD)
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{file} is not a manifest: {_first(error)}", hint=_REBUILD) from error
    except ValueError as error:
        raise ArtifactError(f"{file} is not JSON: {error}", hint=_REBUILD) from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    where = ".".join(str(part)[:_LONGEST_KEY] for part in detail["loc"])
    return plain(f"{where or 'document'}: {detail['msg'][:_LONGEST_REASON]}")


def record(file: Path) -> FileRecord:
    """Return the digest and size of a file, read in pieces."""
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256")
        return FileRecord(sha256=digest.hexdigest(), bytes=stream.tell())


@contextmanager
def new_bundle(path: Path) -> Iterator[Path]:
    """Give an empty directory to fill, and put it at ``path`` when the block ends without an error.

    The directory lies beside ``path``, so the last step is a rename: a bundle is there whole or not at all. A bundle
    that was there before stays until then.

    Raises:
        OutputError: ``path`` holds something that is not a bundle, or cannot be written.
    """
    place = path.resolve()
    if not is_text(str(place)):
        message = f"{plain(str(place))}: the name is not UTF-8, as the libraries that read a bundle need"
        raise OutputError(message, hint="choose another name with -o")
    try:
        refuse_foreign(place)
        place.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}.", suffix=".partial", dir=place.parent) as scratch:
            work = Path(scratch, "new")
            work.mkdir()
            yield work
            _replace_directory(work, place, Path(scratch, "old"))
    except OSError as error:
        message = f"cannot write a bundle to {path}: {error.strerror or error}"
        raise OutputError(message, hint="choose a place with room that you can write to with -o") from error


def refuse_foreign(path: Path) -> None:
    """Refuse to replace anything but an earlier bundle and nothing else: what is replaced is deleted.

    Raises:
        OutputError: ``path`` holds something else.
    """
    hint = "choose a new directory or an earlier bundle with -o"
    if not os.path.exists(path):  # noqa: PTH110 - Path's own raises for a name that is too long
        return
    if not path.is_dir():
        raise OutputError(f"{path} is a file", hint=hint)
    names = {file.name for file in path.iterdir()}
    if not names:
        return
    try:
        own = {name for name in (MANIFEST, *Bundle.open(path).manifest.files) if not (path / name).is_dir()}
    except ArtifactError as error:
        raise OutputError(f"{path} holds something else than a bundle", hint=hint) from error
    if names - own:
        raise OutputError(f"{path} holds {min(names - own)}, which is not of the bundle", hint=hint)


def _replace_directory(new: Path, path: Path, old: Path) -> None:
    """Move ``new`` to ``path``, and what was there to ``old``; it comes back where that fails."""
    if not path.exists():
        new.replace(path)
        return
    path.replace(old)
    try:
        new.replace(path)
    except OSError:
        old.replace(path)
        raise


def write_manifest(directory: Path, manifest: Manifest) -> None:
    """Write ``manifest`` into ``directory``, the last file of a bundle."""
    (directory / MANIFEST).write_text(manifest.model_dump_json(indent=2) + "\n", encoding="utf-8")
