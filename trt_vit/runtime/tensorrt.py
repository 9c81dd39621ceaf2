"""TensorRT and TensorRT for RTX: an engine on an NVIDIA GPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from trt_vit.cuda.device import open_device
from trt_vit.engine.layers import first_profile, layers_from_inspector, summarize
from trt_vit.errors import ArtifactError, EnvironmentFault, UsageError
from trt_vit.runtime.protocol import LayerTime
from trt_vit.runtime.repeat import repeat_for
from trt_vit.runtime.tensorrt_cache import cache_path
from trt_vit.runtime.tensorrt_family import create_log, last_error, load_family
from trt_vit.runtime.tensorrt_lane import (
    Binding,
    Contexts,
    ProfiledContexts,
    RtxContexts,
    TensorRtContexts,
    TensorRtLane,
)

if TYPE_CHECKING:
    import numpy as np
    import tensorrt as trt
    from numpy.typing import NDArray

    from trt_vit.engine.layers import EngineLayer
    from trt_vit.engine.manifest import Precision
    from trt_vit.runtime.protocol import EngineFiles, EngineStatistics, RuntimeOptions
    from trt_vit.runtime.tensorrt_family import Family, FamilyName, Log

ENGINE = "engine.plan"


class TensorRtRuntime:
    """One engine on the GPU, its weights there once for all lanes.

    A lane has execution contexts of its own, on one optimization profile. There may be more lanes than the engine has
    profiles: since TensorRT 10, contexts share a profile (before, the preview feature PROFILE_SHARING_0806).
    """

    def __init__(self, engine: EngineFiles, options: RuntimeOptions, name: FamilyName) -> None:
        """Load the engine and give each lane its buffers.

        Raises:
            UsageError: The batch size is beyond what the engine was built for.
            EnvironmentFault: A package, the driver or the GPU is missing or does not work, or memory is short.
            ArtifactError: The engine was changed, is for another GPU or version, or is not what the manifest says.
        """
        if options.batch_size > engine.batch.max:
            message = f"{engine.path}: the engine takes {engine.batch.max} images at once, not {options.batch_size}"
            raise UsageError(message, hint=f"--batch-size {engine.batch.max}, or build with a larger --batch")
        self.batch_size = options.batch_size
        self.inference_precision: Precision = engine.precision
        self._family = load_family(name)
        self._device = open_device(options.gpu)
        self._log = create_log(self._family)
        plan = engine.read(ENGINE)
        with self._device.current():
            self._engine = _deserialize(self._family, self._log, engine, plan)
            _check_tensors(self._family, self._engine, engine)
            profiles = self._engine.num_optimization_profiles
            self._binding = _binding(engine, options)
            self.lanes = [
                TensorRtLane(self._device, self._family, self._log, contexts, self._binding, profile=lane % profiles)
                for lane, contexts in enumerate(self._contexts(plan, options.lanes or profiles))
            ]
        self.gpu_lanes = self.lanes

    def statistics(self) -> EngineStatistics:
        """Count the layers that TensorRT lists in the engine."""
        layers = layers_from_inspector(self.layer_information())
        one_batch = first_profile(layers, self._engine.num_optimization_profiles)
        return summarize(one_batch, self._engine.get_engine_stat())

    def layer_times(self, pixels: NDArray[np.float32], seconds: float) -> list[LayerTime]:
        """Run a batch in a lane of its own, with TensorRT's profiler; see ``Runtime.layer_times``."""
        with self._device.current():
            contexts = ProfiledContexts(self._family, self._engine)
            lane = TensorRtLane(self._device, self._family, self._log, contexts, self._binding, profile=0)
        batches = 0
        for _ in repeat_for(seconds, lambda: lane.infer(pixels), warmed=contexts.forget):
            batches += 1
        layers = {layer.name: layer for layer in layers_from_inspector(self.layer_information())}
        return [_layer_time(name, layers.get(name), total / batches) for name, total in contexts.totals().items()]

    def layer_information(self) -> str:
        """Return TensorRT's own list of the engine's layers, as its inspector's JSON."""
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = self._family.bindings
        with self._device.current():
            inspector = self._engine.create_engine_inspector()
            layers: str = inspector.get_engine_information(trt.LayerInformationFormat.JSON)
        return layers

    def _contexts(self, plan: bytes, lanes: int) -> list[Contexts]:
        """Return where each lane gets its contexts from."""
        if self._family.name == "tensorrt-rtx":
            path = cache_path(self._family, plan, self._device)
            return [RtxContexts(self._family, self._engine, path)] * lanes
        return [TensorRtContexts(self._family, self._engine, self._device) for _ in range(lanes)]


def _layer_time(name: str, layer: EngineLayer | None, seconds: float) -> LayerTime:
    """Join what the profiler and the inspector say of a layer: one may know it under a name that the other has not."""
    kind, precision = ("unknown", "none") if layer is None else (layer.kind, layer.precision)
    return LayerTime(name, kind, precision, seconds)


def _deserialize(family: Family, log: Log, engine: EngineFiles, plan: bytes) -> trt.ICudaEngine:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = family.bindings
    try:
        runtime = trt.Runtime(log.logger)
    except TypeError as error:  # what pybind11 makes of a constructor that gives nothing
        reason = last_error(log, "it gives no reason")
        hint = "update the NVIDIA driver: this TensorRT may be for a later version of CUDA"
        raise EnvironmentFault(f"{family.title} does not start: {reason}", hint=hint) from error
    # A plan may carry code for the host, which would run as it is loaded.
    runtime.engine_host_code_allowed = False
    loaded = runtime.deserialize_cuda_engine(plan)
    if loaded is None:
        reason = log.errors[0] if log.errors else "it gives no reason"  # later ones follow from the first
        message = f"{family.title} cannot load {engine.path}: {reason}"
        raise ArtifactError(message, hint="build the bundle again on this machine, with this version of TensorRT")
    return loaded


def _check_tensors(family: Family, loaded: trt.ICudaEngine, engine: EngineFiles) -> None:
    """Refuse an engine whose tensors are not those of the manifest: what is bound would be read as something else."""
    model = engine.model
    expected = {
        f"input {model.input_name} FLOAT [batch, 3, {model.height}, {model.width}]",
        f"output {model.output_name} FLOAT [batch, {model.classes}]",
    }
    found = {_describe(family, loaded, loaded.get_tensor_name(index)) for index in range(loaded.num_io_tensors)}
    if found != expected:
        message = f"{engine.path}: the engine has {_listed(found)}, the manifest says {_listed(expected)}"
        raise ArtifactError(message, hint="build the bundle again")


def _describe(family: Family, loaded: trt.ICudaEngine, name: str) -> str:
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = family.bindings
    mode = "input" if loaded.get_tensor_mode(name) == trt.TensorIOMode.INPUT else "output"
    sizes = ", ".join(str(size) for size in tuple(loaded.get_tensor_shape(name))[1:])
    return f"{mode} {name} {loaded.get_tensor_dtype(name).name} [batch, {sizes}]"


def _listed(tensors: set[str]) -> str:
    return " and ".join(sorted(tensors))


def _binding(engine: EngineFiles, options: RuntimeOptions) -> Binding:
    model, batch = engine.model, engine.batch
    return Binding(
        input_name=model.input_name,
        output_name=model.output_name,
        image_shape=model.image_shape,
        classes=model.classes,
        smallest=batch.min,
        largest=max(options.batch_size, batch.min),
    )
