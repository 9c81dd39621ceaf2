"""A bundle in the words of the command line's contract: what ``inspect`` and ``build-engine`` print."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from trt_vit.engine.bundle import Bundle


def describe(bundle: Bundle) -> dict[str, Any]:
    """Return the facts of a bundle, from its manifest and its preprocessing.

    Raises:
        ArtifactError: The preprocessing or the labels are not what was built.
    """
    manifest = bundle.manifest
    engine, quantization = manifest.engine, manifest.quantization
    own_files = {name: file.bytes for name, file in manifest.files.items() if name.startswith("engine.")}
    return {
        "bundle": str(bundle.path),
        "runtime": manifest.runtime,
        "precision": manifest.precision,
        "int8_coverage": engine.int8_coverage,
        "engine_bytes": sum(own_files.values()),
        "weights_bytes": engine.weights_bytes,
        "engine_layers": engine.layers,
        "fused_attention": engine.fused_attention,
        "batch": [manifest.batch.min, manifest.batch.opt, manifest.batch.max],
        "sha256": bundle.sha256,
        "layers_by_kind": engine.kinds,
        "layers_by_precision": engine.precisions,
        "fused_attention_expected": engine.attentions,
        "reformat_layers": engine.reformats,
        "image_size": [manifest.model.height, manifest.model.width],
        "classes": manifest.model.classes,
        "labels": list(bundle.labels()),
        "preprocessing": bundle.preprocessing().model_dump(mode="json"),
        "checkpoint": manifest.checkpoint.model_dump(mode="json"),
        "export": manifest.export.model_dump(mode="json"),
        "target": None if manifest.target is None else manifest.target.model_dump(mode="json"),
        "quantization": None if quantization is None else quantization.model_dump(mode="json", exclude={"plan"}),
        "left_out": {} if quantization is None else {row.layer: row.reason for row in quantization.plan if row.reason},
        "plan": [] if quantization is None else [row.model_dump(mode="json") for row in quantization.plan],
        "against_fp32": None if engine.against_fp32 is None else engine.against_fp32.model_dump(mode="json"),
        "files": {name: file.sha256 for name, file in manifest.files.items()},
        "versions": manifest.versions,
        "created": manifest.created,
    }
