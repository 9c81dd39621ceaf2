"""The bundle: the directory in which the build flow leaves an engine and the run flow finds it.

An engine is native code, or becomes it, so nothing in a bundle is used before its bytes have been compared with the
manifest's digest: ``Bundle.read`` hashes the very bytes that it returns.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from trt_vit.engine.manifest import FORMAT, FileRecord, Manifest
from trt_vit.errors import ArtifactError, OutputError, UsageError
from trt_vit.images.preprocessing import Preprocessing
from trt_vit.runtime.protocol import EngineFiles

if TYPE_CHECKING:
    from collections.abc import Iterator

MANIFEST = "manifest.json"
PREPROCESSING = "preprocessing.json"
LABELS = "labels.json"
_MANIFEST_LIMIT = 16 * 2**20
_REBUILD = "build it again with trt-vit build-engine"


@dataclass(frozen=True)
class Bundle:
    """An opened bundle. Opening reads only the manifest; ``read`` and the properties verify what they return.

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
            with file.open("rb") as stream:
                data = stream.read(_MANIFEST_LIMIT + 1)
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
        try:
            with (self.path / name).open("rb") as stream:
                data = stream.read(record.bytes + 1)
        except OSError as error:
            raise ArtifactError(f"{self.path / name}: {error.strerror}", hint=_REBUILD) from error
        if hashlib.sha256(data).hexdigest() != record.sha256:
            message = f"{self.path / name} is not what the manifest says was built (its sha256 differs)"
            raise ArtifactError(message, hint=f"do not use it; {_REBUILD}")
        return data

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
        try:
            return Preprocessing.model_validate_json(self.read(PREPROCESSING))
        except ValidationError as error:
            raise ArtifactError(f"{self.path / PREPROCESSING}: {_first(error)}", hint=_REBUILD) from error

    def labels(self) -> tuple[str, ...]:
        """Return the label of each class, by index."""
        try:
            labels = TypeAdapter(tuple[str, ...]).validate_json(self.read(LABELS))
        except ValidationError as error:
            raise ArtifactError(f"{self.path / LABELS}: {_first(error)}", hint=_REBUILD) from error
        if len(labels) != self.manifest.model.classes:
            message = f"{self.path / LABELS} has {len(labels)} labels for {self.manifest.model.classes} classes"
            raise ArtifactError(message, hint=_REBUILD)
        return labels


def _parse_manifest(file: Path, data: bytes) -> Manifest:
    if len(data) > _MANIFEST_LIMIT:
        raise ArtifactError(f"{file} is larger than {_MANIFEST_LIMIT} bytes", hint=_REBUILD)
    try:
        document = json.loads(data)
        if isinstance(document, dict) and document.get("format") != FORMAT:
            message = f"{file} has format {document.get('format')!r}; this version reads format {FORMAT}"
            raise ArtifactError(message, hint=_REBUILD)
        return Manifest.model_validate(document)
    except ValidationError as error:
        raise ArtifactError(f"{file} is not a manifest: {_first(error)}", hint=_REBUILD) from error
    except (ValueError, RecursionError) as error:
        raise ArtifactError(f"{file} is not JSON: {error}", hint=_REBUILD) from error


def _first(error: ValidationError) -> str:
    detail = error.errors(include_url=False)[0]
    return f"{'.'.join(str(part) for part in detail['loc']) or 'document'}: {detail['msg']}"


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
        own = {MANIFEST, *Bundle.open(path).manifest.files}
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
