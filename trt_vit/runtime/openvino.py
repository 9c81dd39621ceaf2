"""OpenVINO: the default on a machine without a GPU."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np

from trt_vit.errors import ArtifactError, EnvironmentFault
from trt_vit.runtime.cpu import usable_cores
from trt_vit.runtime.padding import FixedBatch
from trt_vit.runtime.protocol import EngineFiles, EngineStatistics, GpuLane, LayerTime, RuntimeOptions
from trt_vit.runtime.repeat import repeat_for

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import timedelta

    from numpy.typing import NDArray

    from trt_vit.engine.manifest import Precision

ENGINE_GRAPH = "engine.xml"
ENGINE_WEIGHTS = "engine.bin"

HINTS: dict[Precision, str] = {"fp32": "f32", "bf16": "bf16", "int8": "f32"}
"""What is not quantized runs in. Around INT8 that is fp32: bf16 there would be up to a fifth faster where a CPU has it,
but cost as much accuracy again as INT8 does, and an engine would not answer the same everywhere."""
_PARTS = ("/WithoutBiases", "_factors/DequantizationMultiply")
"""What OpenVINO puts behind the name of a node that it has divided: a convolution, or the factors of a product."""
_PRODUCTS = ("Convolution", "FullyConnected", "MatMul")
_ATTENTION_LAYERS = ("ScaledDotProductAttention", "MHA")
_REORDER = "Reorder"
_PRECISIONS = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "i8": "int8", "u8": "int8"}
_NOT_EXECUTED = ("Input", "Output", "Const", "Result", "Parameter")


class OpenVinoRuntime:
    """An engine compiled for the CPU with one inference request a lane.

    The batch dimension is fixed when the engine is loaded, because OpenVINO then plans memory and kernels for that
    shape; a smaller last batch is padded inside the lane.
    """

    def __init__(self, engine: EngineFiles, options: RuntimeOptions) -> None:
        """Compile the engine.

        Raises:
            EnvironmentFault: OpenVINO is missing.
            ArtifactError: A file of the bundle was changed, or OpenVINO cannot read it.
        """
        self.batch_size = options.batch_size
        self._engine = engine
        self._precision = engine.precision
        self._threads = options.threads or usable_cores()
        settings: dict[str, str | int] = {"PERFORMANCE_HINT": "THROUGHPUT"}
        if options.lanes is not None:
            settings["NUM_STREAMS"] = options.lanes
        self._compiled = self._compile(settings)
        requests = options.lanes or self._compiled.get_property("OPTIMAL_NUMBER_OF_INFER_REQUESTS")
        self.lanes = [OpenVinoLane(self._compiled, options.batch_size) for _ in range(requests)]
        self.gpu_lanes: list[GpuLane] = []

    @property
    def inference_precision(self) -> Precision:
        """Precision OpenVINO chose: fp32 where bf16 was asked for and the CPU has no bf16 instructions."""
        if self._precision == "int8":
            return "int8"
        hint = self._compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name()
        return "bf16" if hint == "bf16" else "fp32"

    def _compile(self, settings: Mapping[str, str | int | bool]) -> Any:
        openvino = import_openvino()
        engine = self._engine
        core = openvino.Core()
        weights = openvino.Tensor(np.frombuffer(engine.read(ENGINE_WEIGHTS), dtype=np.uint8))
        self._weights_bytes = weights.byte_size
        fixed = {"INFERENCE_PRECISION_HINT": HINTS[engine.precision], "INFERENCE_NUM_THREADS": self._threads}
        graph = engine.read(ENGINE_GRAPH)
        if not graph.lstrip().startswith(b"<"):  # OpenVINO reads other formats too, and what files they name
            message = f"OpenVINO cannot load {engine.path}: {ENGINE_GRAPH} is not in its own format"
            raise ArtifactError(message, hint="build the bundle again")
        try:
            model = core.read_model(graph, weights)
            model.reshape({0: [self.batch_size, *engine.model.image_shape]})
            return core.compile_model(model, "CPU", {**fixed, **settings})
        except RuntimeError as error:
            message = f"OpenVINO cannot load {engine.path}: {failure_reason(error)}"
            raise ArtifactError(message, hint="build the bundle again with this version of OpenVINO") from error

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        """Run a batch in one request on all threads; see ``Runtime.layer_times``."""
        compiled = self._compile({"PERFORMANCE_HINT": "LATENCY", "PERF_COUNT": True})
        facts = [(op.get_friendly_name(), op.get_rt_info()) for op in compiled.get_runtime_model().get_ops()]
        numbers = {name: _text(fact, "runtimePrecision") for name, fact in facts}
        lane = OpenVinoLane(compiled, self.batch_size)
        totals, order = dict[str, float](), dict[str, str]()
        batches = 0
        for _ in repeat_for(seconds, lambda: lane.infer(pixels)):
            batches += 1
            for layer in lane.layers():
                totals[layer.node_name] = totals.get(layer.node_name, 0.0) + layer.real_time.total_seconds()
                order[layer.node_name] = layer.node_type
        return [
            LayerTime(name, kind, _PRECISIONS.get(numbers.get(name, ""), "none"), totals[name] / batches)
            for name, kind in order.items()
        ]

    def statistics(self) -> EngineStatistics:
        """Count the layers of the graph that OpenVINO executes, from its own report."""
        facts = [op.get_rt_info() for op in self._compiled.get_runtime_model().get_ops()]
        layers = [(_text(fact, "layerType"), _text(fact, "runtimePrecision")) for fact in facts]
        executed = [(kind, number) for kind, number in layers if kind not in _NOT_EXECUTED]
        kinds = Counter(kind for kind, _ in executed)
        return EngineStatistics(
            layers=len(executed),
            fused_attention=sum(kinds[kind] for kind in _ATTENTION_LAYERS),
            weights_bytes=self._weights_bytes,
            kinds=dict(kinds.most_common()),
            precisions=dict(Counter(_PRECISIONS.get(number, number) for _, number in executed).most_common()),
            reformats=kinds[_REORDER],
            int8_nodes=frozenset(name for fact in facts if _is_int8_product(fact) for name in _nodes(fact)),
        )


class _CountedLayer(Protocol):
    """What OpenVINO's counters say of a layer."""

    node_name: str
    node_type: str
    real_time: timedelta


class OpenVinoLane:
    """One inference request. The input array is read in place, not copied."""

    def __init__(self, compiled: Any, batch_size: int) -> None:
        self._request = compiled.create_infer_request()
        self._tensor = import_openvino().Tensor
        self._batch = FixedBatch(batch_size)

    def infer(self, pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        """Run one batch; see ``Lane.infer``."""
        count = len(pixels)
        full = self._batch.fill(pixels)
        try:
            # start_async and wait, rather than infer: the request then runs on its own stream's threads.
            self._request.set_input_tensor(self._tensor(full, shared_memory=True))
            self._request.start_async()
            self._request.wait()
        except RuntimeError as error:
            message = f"OpenVINO failed on a batch of {count}: {failure_reason(error)}"
            raise EnvironmentFault(message, hint="try a smaller --batch-size or fewer --lanes") from error
        return np.array(self._request.get_output_tensor(0).data[:count])

    def layers(self) -> list[_CountedLayer]:
        """Return what OpenVINO's counters say of the layers that the last batch went through."""
        executed = self._request.get_profiling_info()
        return [layer for layer in executed if layer.status == layer.Status.EXECUTED]


def _is_int8_product(facts: Any) -> bool:
    number = _PRECISIONS.get(_text(facts, "runtimePrecision"))
    return _text(facts, "layerType") in _PRODUCTS and number == "int8"


def _nodes(facts: Any) -> list[str]:
    """Return the names of the nodes that a layer has been made of, those that OpenVINO has taken apart included."""
    names = _text(facts, "originalLayersNames").split(",")
    return [*names, *(name.removesuffix(part) for name in names for part in _PARTS if name.endswith(part))]


def _text(facts: Any, key: str) -> str:
    return str(facts[key].astype(str))


def supports_bf16() -> bool:
    """Tell whether this CPU multiplies bf16 in hardware (AVX-512 BF16 or AMX)."""
    return "BF16" in cast("list[str]", import_openvino().Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES"))


def import_openvino() -> Any:
    """Import OpenVINO, or say that it is missing.

    Raises:
        EnvironmentFault: It is.
    """
    try:
        import openvino  # noqa: PLC0415 - late, so that importing trt_vit stays light
    except (ImportError, OSError) as error:
        message = f"OpenVINO cannot be imported: {error}"
        raise EnvironmentFault(message, hint="pip install openvino, or build for --runtime onnxruntime") from error
    return openvino


def failure_reason(error: RuntimeError) -> str:
    """Return the last line of OpenVINO's message: the lines before it name its own source files."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
