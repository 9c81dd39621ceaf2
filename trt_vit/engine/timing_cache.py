"""What TensorRT measured in earlier builds, kept on disk: later builds on the GPU take a fraction of the time.

One file a version of TensorRT and a GPU, as measurements of one say nothing about another.
"""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

from trt_vit.caches import make_private, read_ours, replace_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import tensorrt as trt

    from trt_vit.cuda.driver import Gpu
    from trt_vit.runtime.tensorrt_family import Family

_MOST_BYTES = 2**30


class TimingCache:
    """One version's and GPU's measurements.

    A file that TensorRT does not accept, or that others can have written, counts as none.

    Args:
        directory: Where the files lie; made when something is stored.
        family: Whose measurements.
        gpu: On which GPU.
    """

    def __init__(self, directory: Path, family: Family, gpu: Gpu) -> None:
        plain = "".join(letter if letter.isalnum() else "-" for letter in gpu.name)
        self.path = directory / f"{family.name}-{family.version}-{plain}-sm{gpu.compute_capability}.timing"

    def give(self, config: trt.IBuilderConfig) -> None:
        """Let a build use what is stored, and add to it."""
        data = read_ours(self.path, _MOST_BYTES) or b""
        cache = config.create_timing_cache(data)
        if cache is None or not config.set_timing_cache(cache, ignore_mismatch=False):
            config.set_timing_cache(config.create_timing_cache(b""), ignore_mismatch=False)

    def take(self, config: trt.IBuilderConfig) -> None:
        """Store what a build has added. Builds that end at the same time add to each other's; a full disk is no error.

        The file is replaced in one step, under a lock that is held from reading to writing it.
        """
        try:
            with self._locked():
                cache = config.get_timing_cache()
                known = read_ours(self.path, _MOST_BYTES)
                stored = None if known is None else config.create_timing_cache(known)
                if stored is not None:
                    cache.combine(stored, ignore_mismatch=False)
                replace_file(self.path, bytes(cache.serialize()))
        except OSError:
            return  # the engine is built: the next build measures again

    @contextmanager
    def _locked(self) -> Iterator[None]:
        make_private(self.path.parent)
        with self.path.with_suffix(".lock").open("w") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            yield
