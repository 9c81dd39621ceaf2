"""ONNX Runtime: the reference on a CPU, and the way onto an NVIDIA GPU where there is no TensorRT."""

from __future__ import annotations

import json
import os
import tempfile
from collections import Counter
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from trt_vit.errors import ArtifactError, EnvironmentFault, TrtVitError
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.padding import FixedBatch
from trt_vit.runtime.protocol import EngineFiles, EngineStatistics, GpuLane, LayerTime, RuntimeOptions
from trt_vit.runtime.repeat import repeat_for

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import Precision

ENGINE = "engine.onnx"
CUDA = "CUDAExecutionProvider"

_OPTIMIZED = "optimized.onnx"
_WEIGHTS_FOLDER = "session.model_external_initializers_file_folder_path"
_KERNEL_TIME = "_kernel_time"
_NUMBERS = {"int8": "int8", "uint8": "int8", "bfloat16": "bf16", "float16": "fp16", "float": "fp32"}
"""Number formats in its profile and in our words, the narrowest first."""
_REORDER_NODES = ("ReorderInput", "ReorderOutput")
_INT8_NODES = ("ConvInteger", "MatMulInteger", "MatMulIntegerToFloat", "QGemm", "QLinearConv", "QLinearMatMul")
_ATTENTION_NODES = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "PackedMultiHeadAttention")


class OnnxRuntimeRuntime:
    """A session shared by all lanes: ONNX Runtime allows concurrent runs of one session."""

    def __init__(self, engine: EngineFiles, options: RuntimeOptions) -> None:
        """Load the engine, on a GPU where ONNX Runtime has its CUDA provider and finds one.

        Raises:
            EnvironmentFault: ONNX Runtime is missing.
            ArtifactError: The engine was changed, or ONNX Runtime cannot read it.
        """
        self._threads = options.threads or usable_cores()
        lanes = options.lanes or 1
        self.batch_size = options.batch_size
        self.inference_precision: Precision = engine.precision
        self._engine = engine.read(ENGINE)
        self._input_name = engine.model.input_name
        session = open_session(self._engine, threads=max(1, self._threads // lanes))
        fixed = fixed_batch(session, engine)
        self.lanes = [OnnxRuntimeLane(session, self._input_name, fixed) for _ in range(lanes)]
        self.gpu_lanes: list[GpuLane] = []

    def statistics(self) -> EngineStatistics:
        """Count the nodes of the graph as ONNX Runtime has optimised it."""
        return optimized_statistics(self._engine)

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        """Run a batch in a session of its own; see ``Runtime.layer_times``."""
        return node_times(self._engine, self._input_name, pixels, seconds, threads=self._threads)


class OnnxRuntimeLane:
    """One caller of the shared session."""

    def __init__(self, session: Any, input_name: str, fixed_batch: int | None) -> None:
        self._session = session
        self._input_name = input_name
        self._batch = None if fixed_batch is None else FixedBatch(fixed_batch)

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; see ``Lane.infer``."""
        full = pixels if self._batch is None else self._batch.fill(pixels)
        hint = "try a smaller --batch-size or fewer --lanes"
        with failures_as(EnvironmentFault, f"ONNX Runtime failed on a batch of {len(pixels)}", hint):
            (logits,) = self._session.run(None, {self._input_name: full})
        return np.asarray(logits[: len(pixels)], dtype=np.float32)


def fixed_batch(session: Any, engine: EngineFiles) -> int | None:
    """Return the one batch size that a session takes, or None where it takes any.

    Raises:
        ArtifactError: Its input is not the manifest's.
    """
    (given,) = session.get_inputs()
    if given.name != engine.model.input_name:
        message = f"{engine.path}: the engine's input is {given.name}, the manifest's {engine.model.input_name}"
        raise ArtifactError(message, hint="build the bundle again")
    return _only_batch(given)


def _only_batch(given: Any) -> int | None:
    """Return the one batch size of an input, or None where it takes any."""
    return given.shape[0] if isinstance(given.shape[0], int) else None


def optimized_statistics(engine: bytes) -> EngineStatistics:
    """Count the nodes of what ONNX Runtime makes of a model."""
    import onnx  # noqa: PLC0415 - only a build asks for this

    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory, _OPTIMIZED)
        open_session(engine, threads=1, optimized=path)
        graph = onnx.load(path).graph
    nodes = Counter(node.op_type for node in graph.node)
    narrow = [node.name for node in graph.node if node.op_type in _INT8_NODES]
    return EngineStatistics(
        layers=nodes.total(),
        fused_attention=sum(nodes[kind] for kind in _ATTENTION_NODES),
        weights_bytes=sum(onnx.numpy_helper.to_array(tensor).nbytes for tensor in graph.initializer),
        kinds=dict(nodes.most_common()),
        precisions={
            name: count for name, count in (("fp32", nodes.total() - len(narrow)), ("int8", len(narrow))) if count
        },
        reformats=sum(nodes[kind] for kind in _REORDER_NODES),
        int8_nodes=frozenset(narrow),
    )


def node_times(
    engine: bytes,
    input_name: str,
    pixels: NDArray[np.float32],
    seconds: float,
    *,
    threads: int = 1,
    gpu: Mapping[str, str] | None = None,
) -> list[LayerTime]:
    """Run a model with ONNX Runtime's profiler and return the mean time of each node, in the order they are run.

    Args:
        engine: The model.
        input_name: Its input.
        pixels: A batch that it takes.
        seconds: For how long, after a warm-up.
        threads: Threads that a run may use.
        gpu: Further options of the CUDA provider.

    Raises:
        EnvironmentFault: ONNX Runtime is missing, or a run fails.
    """
    with tempfile.TemporaryDirectory() as directory:
        session = open_session(engine, threads=threads, profile=Path(directory, "times"), gpu=gpu)
        lane = OnnxRuntimeLane(session, input_name, _only_batch(session.get_inputs()[0]))
        for _ in repeat_for(seconds, lambda: lane.infer(pixels)):
            pass
        events = json.loads(Path(session.end_profiling()).read_text(encoding="utf-8"))
    return times_of_events(events)


def times_of_events(events: Iterable[Mapping[str, Any]]) -> list[LayerTime]:
    """Return the mean time of each node from ONNX Runtime's profile, the first run of each left out as warm-up."""
    runs: dict[str, list[float]] = {}
    kinds, precisions = dict[str, str](), dict[str, str]()
    for event in events:
        name = event["name"].removesuffix(_KERNEL_TIME)
        if event.get("cat") == "Node" and name != event["name"]:
            runs.setdefault(name, []).append(event["dur"] / 1e6)
            kinds[name] = event["args"]["op_name"]
            read = {number for tensor in event["args"]["input_type_shape"] for number in tensor}
            precisions[name] = next((ours for theirs, ours in _NUMBERS.items() if theirs in read), "none")
    means = {name: sum(times[1:] or times) / len(times[1:] or times) for name, times in runs.items()}
    return [LayerTime(name, kinds[name], precisions[name], mean) for name, mean in means.items()]


def open_session(
    engine: bytes | Path,
    *,
    threads: int,
    optimized: Path | None = None,
    profile: Path | None = None,
    fuse_qdq: bool = True,
    gpu: Mapping[str, str] | None = None,
) -> Any:
    """Open an ONNX Runtime session on a model, given as its bytes or its file.

    Args:
        engine: The model.
        threads: Threads that one run may use.
        optimized: Where ONNX Runtime leaves the graph that it made of the model, if anywhere.
        profile: Beginning of the file that it leaves the times of all nodes in, if they are to be measured.
        fuse_qdq: Whether products between Q/DQ nodes run in INT8. On a CPU with AVX2 and no VNNI these saturate at 16
            bits; without them every node computes what it stands for.
        gpu: Further options of the CUDA provider.

    Raises:
        EnvironmentFault: ONNX Runtime is missing.
        ArtifactError: It cannot read the model.
    """
    onnxruntime = import_onnxruntime()
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if not fuse_qdq:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if isinstance(engine, bytes):  # all of it: what was verified has no weights in the working directory
        options.add_session_config_entry(_WEIGHTS_FOLDER, os.devnull)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    if profile is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile)
    source = engine if isinstance(engine, bytes) else str(engine)
    hint = "build the bundle again with this version of ONNX Runtime"
    with failures_as(ArtifactError, "ONNX Runtime cannot load the model", hint):
        return onnxruntime.InferenceSession(source, options, providers=providers(gpu))


def providers(gpu: Mapping[str, str] | None = None) -> list[tuple[str, dict[str, str]]]:
    """Return the execution providers to try in order, with their options: CUDA where there is one, then the CPU.

    TF32 is off: it would round the inputs of every fp32 product on the GPU to 10 bits of mantissa, and this runtime is
    the fp32 reference.

    Args:
        gpu: Further options of the CUDA provider.
    """
    wanted: tuple[tuple[str, dict[str, str]], ...] = (
        (CUDA, {"use_tf32": "0", **(gpu or {})}),
        ("CPUExecutionProvider", {}),
    )
    available = import_onnxruntime().get_available_providers()
    return [(name, options) for name, options in wanted if name in available]


def import_onnxruntime() -> Any:
    """Import ONNX Runtime, or say that it is missing.

    Raises:
        EnvironmentFault: It is.
    """
    try:
        import onnxruntime  # noqa: PLC0415 - late, so that importing trt_vit stays light
    except (ImportError, OSError) as error:
        message = f"ONNX Runtime cannot be imported: {error}"
        raise EnvironmentFault(message, hint="pip install onnxruntime, or onnxruntime-gpu for a GPU") from error
    return onnxruntime


@contextmanager
def failures_as(kind: type[TrtVitError], message: str, hint: str) -> Iterator[None]:
    """Raise ONNX Runtime's exceptions as ours. They share no base class, only the module that they come from."""
    try:
        yield
    except Exception as error:
        if not type(error).__module__.startswith("onnxruntime."):
            raise
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise kind(f"{message}: {reason}", hint=hint) from error
