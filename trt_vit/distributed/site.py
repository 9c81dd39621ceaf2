"""What workers have to find where they run, and how what they lack reaches the driver."""

from __future__ import annotations

import fcntl
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from trt_vit import __version__
from trt_vit.caches import FileCache, cache_directory, make_private
from trt_vit.engine.bundle import MANIFEST, Bundle
from trt_vit.errors import EnvironmentFault, InputError, TrtVitError

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from trt_vit.sources.shard import Shard

_BUNDLES_BYTES = 32 << 30
"""Bytes of bundles that a machine keeps."""


@dataclass(frozen=True)
class Fault:
    """An error of ours, on its way to the driver."""

    kind: type[TrtVitError]
    message: str
    hint: str

    @classmethod
    def of(cls, error: TrtVitError) -> Fault:
        """Pack an error."""
        return cls(type(error), error.message, error.hint)

    def throw(self) -> None:
        """Raise it again."""
        raise self.kind(self.message, hint=self.hint)


@dataclass(frozen=True)
class Site:
    """What every worker has to find where it runs.

    Attributes:
        directory: Where the driver stands: relative paths are meant from there.
        bundle: The bundle's directory.
        sha256: Its digest.
        fetch: Returns the bundle's files, for machines that do not see it; None where all do.
        version: Version of the driver's trt_vit.
    """

    directory: Path
    bundle: Path
    sha256: str
    fetch: Callable[[], Mapping[str, bytes]] | None = field(default=None, compare=False)
    version: str = __version__

    def stand(self) -> None:
        """Go to where the driver stands.

        Raises:
            InputError: There is no such place.
            EnvironmentFault: The versions differ.
        """
        if self.version != __version__:
            message = f"a worker has trt_vit {__version__}, the driver {self.version}"
            raise EnvironmentFault(message, hint="install the same version on all machines of the cluster")
        try:
            os.chdir(self.directory)
        except OSError as error:
            hint = "run from a directory that all machines of the cluster share"
            raise InputError(f"a worker does not see {self.directory}: {error.strerror}", hint=hint) from error

    def sees_bundle(self) -> bool:
        """Tell whether the bundle lies here too."""
        try:
            return Bundle.open(self.bundle).sha256 == self.sha256
        except TrtVitError:
            return False

    def open_bundle(self) -> Bundle:
        """Open the bundle where it lies, or in this machine's cache, where the first to need it puts it.

        Raises:
            TrtVitError: It is in neither place.
        """
        if self.fetch is None or self.sees_bundle():
            return Bundle.open(self.bundle)
        kept = FileCache(cache_directory() / "bundles", _BUNDLES_BYTES)
        make_private(kept.directory)
        with (kept.directory / f"{self.sha256}.lock").open("wb") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            found = kept.get(self.sha256, Bundle.open)
            if found is None:
                kept.put(self.sha256, self._save)
                found = kept.get(self.sha256, Bundle.open)
        if found is None or found.sha256 != self.sha256:
            hint = "put the bundle where all machines of the cluster see it"
            raise EnvironmentFault(f"a worker cannot keep the bundle in {kept.directory}", hint=hint)
        return found

    def _save(self, directory: Path) -> None:
        files = self.fetch() if self.fetch is not None else {}
        for name, data in files.items():
            (directory / name).write_bytes(data)


def bundle_files(bundle: Bundle) -> dict[str, bytes]:
    """Return all files of a bundle, compared with its manifest."""
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    return {**files, MANIFEST: (bundle.path / MANIFEST).read_bytes()}


def look(site: Site, shard: Shard, digest: str) -> tuple[Fault | None, bool]:
    """Tell what is wrong where this runs, and whether the bundle lies here.

    Args:
        site: What has to be found.
        shard: Images that have to be seen.
        digest: What the driver has found of them.
    """
    try:
        site.stand()
        if shard.digest() != digest:
            message = f"a worker does not see {shard.describe()} as this machine does"
            raise InputError(message, hint="name the images by paths that all machines of the cluster share")
    except TrtVitError as error:
        return Fault.of(error), False
    return None, site.sees_bundle()
