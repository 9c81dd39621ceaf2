"""Ray Data: one run over the cores and GPUs of a cluster, with the same plan, the same journal and the same rows.

    shards -> tasks on CPUs: read, decode, resize -> pieces -> engines, one a machine or GPU: infer, top-k -> rows

A shard is decoded by one task and leaves it in pieces of some batches, which go to whichever engine is free. The driver
puts the rows of each shard together, writes its file and commits it, as a run on one machine does: so only the images
have to be seen by all machines, and what Ray does twice, when a worker has died, is written once.
"""

from __future__ import annotations

import logging
import os
import pickle
import signal
import socket
import sys
import threading
import time
from contextlib import contextmanager, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.distributed.gather import Gatherer
from trt_vit.distributed.site import Site, bundle_files, look
from trt_vit.distributed.worker import Engine, decode_shard, piece_size
from trt_vit.errors import EnvironmentFault, UsageError
from trt_vit.pipeline.classify import decoding_of
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.tensorrt_family import FAMILIES
from trt_vit.sources.shard import FileShard, RemoteShard

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import pyarrow as pa

    from trt_vit.distributed.worker import Piece, Pixels
    from trt_vit.engine.bundle import Bundle
    from trt_vit.pipeline.journal import Journal
    from trt_vit.pipeline.progress import OnRows
    from trt_vit.pipeline.run import Summary
    from trt_vit.pipeline.stages import Decoding
    from trt_vit.runtime.protocol import RuntimeOptions
    from trt_vit.settings import ClassifySettings
    from trt_vit.sources.shard import Shard

_CALLS = 2
"""Pieces that an engine has at once: one is computed while another comes or goes."""
_KNOCK_SECONDS = 10.0


def check(settings: ClassifySettings) -> None:
    """Refuse what does not go with Ray, before anything is done.

    Raises:
        UsageError: A setting does not go with it.
        EnvironmentFault: It is not installed.
    """
    if settings.shard is not None:
        hint = "leave --shard out: the cluster shares the images"
        raise UsageError("--shard and --distributed do not go together", hint=hint)
    if settings.decode == "fast":
        hint = "leave --decode out: images are decoded exactly, on CPUs"
        raise UsageError("--decode fast and --distributed do not go together", hint=hint)
    _import_ray()


def _import_ray() -> Any:
    try:
        import ray.data  # noqa: PLC0415 - an extra, and heavy
    except ImportError as error:
        raise EnvironmentFault(f"Ray cannot be imported: {error}", hint="pip install 'trt-vit[ray]'") from error
    return ray


def classify_pending(
    bundle: Bundle,
    settings: ClassifySettings,
    shards: Sequence[Shard],
    journal: Journal,
    options: RuntimeOptions,
    *,
    on_rows: OnRows,
) -> Summary:
    """Do the shards of a run that are not done, on a Ray cluster.

    Args:
        bundle: The bundle.
        settings: How to run.
        shards: All shards of the run.
        journal: Its journal, which this process holds.
        options: How engines are loaded.
        on_rows: Called with rows as they come.

    Raises:
        TrtVitError: What a worker has met, or what Ray has.
    """
    # On standard output Ray tells of workers that died.
    with redirect_stdout(sys.stderr), _connected(settings.ray_address), _ray_errors():
        started = time.perf_counter()
        gatherer = Gatherer(journal)
        stages = _stages(bundle, settings, shards, journal, options)
        for table in stages.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):
            for packed in table["piece"]:
                on_rows(gatherer.add(_unpack(packed)))
        return gatherer.summary(time.perf_counter() - started)


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connect to a cluster, or start one on this machine; a connection that is there already is used and kept.

    Raises:
        EnvironmentFault: There is no cluster at that address.
    """
    ray = _import_ray()
    if ray.is_initialized():
        yield
        return
    address = address or os.environ.get("RAY_ADDRESS") or "local"
    own = {"include_dashboard": False, "num_cpus": usable_cores()} if address == "local" else {}
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # or a cluster that we start would report to its makers
    terminate = signal.getsignal(signal.SIGTERM)
    in_main = threading.current_thread() is threading.main_thread()
    try:
        _knock(address)
        ray.init(address, log_to_driver=False, logging_level=logging.ERROR, **own)
    except (OSError, RuntimeError, ValueError) as error:
        hint = "check --ray-address and RAY_ADDRESS, that the cluster is up, and that RAY_AUTH_TOKEN is its token"
        raise EnvironmentFault(f"cannot connect to Ray at {address}: {_last_line(error)}", hint=hint) from error
    try:
        if in_main:
            signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in its place
        yield
    finally:
        ray.shutdown()


def _knock(address: str) -> None:
    """Connect to an address and hang up: Ray itself would try for minutes where nobody answers.

    Raises:
        OSError: Nobody does.
        ValueError: The port is not a number.
    """
    host, colon, port = address.rpartition("://")[2].rpartition(":")
    if colon:
        socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS).close()


@contextmanager
def _ray_errors() -> Iterator[None]:
    """Turn what Ray raises into an error of ours."""
    try:
        yield
    except _import_ray().exceptions.RayError as error:
        hint = "see that the same trt_vit is installed on all machines of the cluster, and run the command again"
        raise EnvironmentFault(f"Ray failed: {_last_line(error)}", hint=hint) from error


def _last_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _stages(
    bundle: Bundle, settings: ClassifySettings, shards: Sequence[Shard], journal: Journal, options: RuntimeOptions
) -> Any:
    """Return the dataset whose rows are the pieces of all shards that are to do, each with its result rows."""
    ray = _import_ray()
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    pending = [(number, _portable(shards[number])) for number in journal.pending]
    site = _survey(bundle, nodes, pending[0][1], journal.plan.shards[pending[0][0]].digest)
    size = piece_size(options.batch_size)
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.target_max_block_size = size * int(np.prod(bundle.manifest.model.image_shape))
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    rows = [{"shard": number, "images": pickle.dumps(shard)} for number, shard in pending]
    dataset = ray.data.from_items(rows, override_num_blocks=len(rows)).map_batches(
        _decode,
        batch_size=1,
        batch_format="pyarrow",
        fn_kwargs={
            "site": site,
            "size": size,
            "threads": settings.decode_threads or 1,
            "decoding": decoding_of(settings),
        },
        num_cpus=1,
    )
    return dataset.map_batches(
        _Classify,
        batch_size=1,
        batch_format="pyarrow",
        fn_constructor_args=(site, options, journal.plan.settings["top_k"]),
        **_engines(bundle, settings, nodes),
    )


def _survey(bundle: Bundle, nodes: Sequence[Any], shard: Shard, digest: str) -> Site:
    """Look on every machine whether it sees what it needs.

    Raises:
        TrtVitError: One does not.
    """
    ray = _import_ray()
    site = Site(Path.cwd(), bundle.path.absolute(), bundle.sha256)
    on = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy
    looking = [
        ray.remote(look)
        .options(num_cpus=0, scheduling_strategy=on(node["NodeID"], soft=False))
        .remote(site, shard, digest)
        for node in nodes
    ]
    found = ray.get(looking)
    for fault, _ in found:
        if fault is not None:
            fault.throw()
    if all(sees_bundle for _, sees_bundle in found):
        return site
    fetch = partial(ray.get, ray.put(bundle_files(bundle)))
    return Site(site.directory, site.bundle, site.sha256, fetch)


def _portable(shard: Shard) -> Shard:
    """Return a shard that does not bring the files of all others along."""
    if isinstance(shard, FileShard):
        return FileShard(tuple(shard.paths[shard.first : shard.first + shard.images]), 0, shard.images)
    if isinstance(shard, RemoteShard):
        return RemoteShard(tuple(shard.files[shard.first : shard.first + shard.images]), 0, shard.images)
    return shard


def _engines(bundle: Bundle, settings: ClassifySettings, nodes: Sequence[Any]) -> dict[str, Any]:
    """Return where the engines run: one on each GPU, or else on each machine, with all its cores.

    There an engine takes none of the cores that Ray counts: what it leaves of them is for decoding, as in a run on one
    machine. Ray spreads actors over the machines.

    Raises:
        EnvironmentFault: The cluster has no GPU for an engine that needs one.
    """
    ray = _import_ray()
    pool = partial(ray.data.ActorPoolStrategy, max_concurrent_calls_per_actor=_CALLS, enable_true_multi_threading=True)
    runtime = bundle.manifest.runtime
    gpus = int(sum(node["Resources"].get("GPU", 0) for node in nodes))
    if runtime in FAMILIES and not gpus:
        hint = "add machines with a GPU to it, or build a bundle for openvino"
        raise EnvironmentFault(f"the Ray cluster has no GPU, and {bundle.path} is for one", hint=hint)
    if gpus and runtime != "openvino":
        return {"compute": pool(size=min(gpus, settings.gpus or gpus)), "num_cpus": 0, "num_gpus": 1}
    return {"compute": pool(size=len(nodes)), "num_cpus": 0}


def _decode(table: pa.Table, site: Site, size: int, threads: int, decoding: Decoding) -> Iterator[pa.Table]:
    """Decode a shard: the stage on CPUs."""
    shard = pickle.loads(table["images"][0].as_py())  # noqa: S301 - the driver wrote it
    for piece, pixels in decode_shard(site, (table["shard"][0].as_py(), shard), size, threads, decoding):
        yield _pack(piece, pixels)


class _Classify:
    """Run an engine: the stage of which each has one."""

    def __init__(self, site: Site, options: RuntimeOptions, k: int) -> None:
        self._engine = Engine(site, options, k)

    def __call__(self, table: pa.Table) -> pa.Table:
        piece = _unpack(table["piece"][0])
        shape = tuple(table["shape"][0].as_py())
        pixels = np.frombuffer(table["pixels"][0].as_buffer(), dtype=np.uint8).reshape(shape)
        return _pack(self._engine.classify(piece, pixels), None)


def _pack(piece: Piece, pixels: Pixels | None) -> pa.Table:
    """Make a row of a piece; the pixels are not copied."""
    import pyarrow as pa  # noqa: PLC0415 - only Ray needs it here

    columns = {"piece": pa.array([pickle.dumps(piece)], pa.large_binary())}
    if pixels is not None:
        ends = pa.py_buffer(np.array([0, pixels.nbytes], dtype=np.int64))
        columns["pixels"] = pa.Array.from_buffers(pa.large_binary(), 1, [None, ends, pa.py_buffer(pixels)])
        columns["shape"] = pa.array([pixels.shape])
    return pa.table(columns)


def _unpack(packed: Any) -> Piece:
    piece: Piece = pickle.loads(packed.as_buffer())  # noqa: S301 - a worker of ours wrote it
    return piece
