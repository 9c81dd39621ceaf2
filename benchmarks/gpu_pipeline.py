"""ViT-B/16 with random weights on NVIDIA GPUs: the pipeline from JPEG files against its own stages and against others.

    python benchmarks/gpu_pipeline.py --images DIR [--count 20000] [--batch 64] [--lanes 2] [--output FILE.json]

Every round runs each contender once, one after the other, on the same files, read from disk; what is reported is the
median over the rounds of the ratio within a round. Loading is not timed, and each contender warms up on a few batches.

Ceilings, each stage alone and as fast as it goes:

    infer            the engine, on all lanes at once, on images that are on the GPU and ready
    preprocess       the kernel, on pixels that are on the GPU
    top-k            the kernel, on logits that are on the GPU
    decode exact     the CPU's threads
    decode fast      the GPU's decoder
    pixels           the whole pipeline on images that are decoded already

Pipelines, from JPEG files to rows on disk: exact (decoded on the CPU) and fast (on the GPU), with how much their stages
overlap. Peers, in fp16 and with the same batch: the Hugging Face way, and torch.compile behind a DataLoader with a
worker a core and pinned memory. The engine is fp16 too, unless another --precision is asked for, which is then said.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest import mock

from gpu_peers import compiled_contender, hugging_face_contender
from photos import photos
from vit_base import write_checkpoint

from trt_vit.cuda import driver
from trt_vit.cuda.decode import open_decoder
from trt_vit.cuda.lane import BatchShape, PipelineLane
from trt_vit.cuda.preprocess import describe, preprocess_kernel
from trt_vit.engine.build import build
from trt_vit.engine.manifest import BatchProfile
from trt_vit.engine.progress import Lines
from trt_vit.images.decode import decode, read_image
from trt_vit.pipeline import loading
from trt_vit.pipeline.classify import load_classifier
from trt_vit.pipeline.loading import Loader
from trt_vit.pipeline.run import classify
from trt_vit.pipeline.sinks import open_sink
from trt_vit.pipeline.stages import IN_THIS_PROCESS
from trt_vit.pipeline.timeline import Timeline, overlap
from trt_vit.profile.machine import environment
from trt_vit.runtime.protocol import RuntimeOptions
from trt_vit.settings import BuildSettings
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from trt_vit.cuda.decode import GpuDecoder
    from trt_vit.cuda.device import Device, Stream
    from trt_vit.images.preprocessing import Decode
    from trt_vit.pipeline.classifier import Classifier
    from trt_vit.runtime.protocol import GpuLane

WARM_UP = 1_024
REPEATS = 50
COPIED_BYTES = 1 << 30


def main() -> None:
    """Measure everything and print the tables."""
    arguments = parse_arguments()
    if not driver.gpus():
        sys.exit("error: needs an NVIDIA GPU and its driver")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        files = photos(arguments.images, work, 250)
        paths = list(itertools.islice(itertools.cycle(files), arguments.count))
        checkpoint = write_checkpoint(work / "vit-base")
        bundle = build(build_settings(arguments, checkpoint, work), Lines())
        options = RuntimeOptions(batch_size=arguments.batch, lanes=arguments.lanes)
        classifiers = {mode: load_classifier(bundle, options, k=5, decode=mode) for mode in arguments.decode}
        contenders = contenders_of(classifiers, files, checkpoint, work, arguments)
        results: dict[str, Any] = {
            "environment": environment(),
            "gpus": [asdict(gpu) for gpu in driver.gpus()],
            "model": f"ViT-B/16, 224 x 224, random weights, {bundle.manifest.runtime} {bundle.manifest.precision}",
            "batch": arguments.batch,
            "lanes": arguments.lanes,
            "images": len(paths),
            "kernels": measure_kernels(next(iter(classifiers.values())), files),
            "throughput": measure_throughput(contenders, paths, arguments.rounds),
            "overlap": {mode: measure_overlap(made, paths, work) for mode, made in classifiers.items()},
        }
    if arguments.output is not None:
        arguments.output.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--images", type=Path, help="directory of JPEG photos")
    parser.add_argument("--count", type=int, default=20_000, help="images a run, the photos over and over")
    parser.add_argument("--batch", type=int, default=64, help="images a batch")
    parser.add_argument("--lanes", type=int, default=2, help="batches in flight")
    parser.add_argument("--precision", default="fp16", help="of the engine")
    parser.add_argument("--runtime", default="auto", help="tensorrt, tensorrt-rtx or onnxruntime")
    parser.add_argument("--decode", nargs="+", default=["exact", "fast"], help="contracts to measure")
    parser.add_argument("--peers", type=int, default=2_000, help="images a run of a peer")
    parser.add_argument("--rounds", type=int, default=3, help="times each contender runs")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    return parser.parse_args()


def build_settings(arguments: argparse.Namespace, checkpoint: Path, work: Path) -> BuildSettings:
    """Return how the engine is built."""
    return BuildSettings(
        source=str(checkpoint),
        output=work / "bundle",
        precision=arguments.precision,
        runtime=arguments.runtime,
        batch=BatchProfile(min=1, opt=arguments.batch, max=arguments.batch),
        lanes=arguments.lanes,
    )


def contenders_of(
    classifiers: dict[Decode, Classifier],
    files: Sequence[str],
    checkpoint: Path,
    work: Path,
    arguments: argparse.Namespace,
) -> dict[str, Callable[[Sequence[str]], float]]:
    """Return everything that is measured in images a second."""
    some = next(iter(classifiers.values()))
    contenders: dict[str, Callable[[Sequence[str]], float]] = {"infer": infer_ceiling(some)}
    for mode, classifier in classifiers.items():
        contenders[f"decode {mode}"] = exact_ceiling(classifier) if mode == "exact" else fast_ceiling(classifier)
    contenders["pixels"] = pixels_ceiling(some, files, work)
    for mode, classifier in classifiers.items():
        contenders[f"pipeline {mode}"] = pipeline_contender(classifier, work)
    for name, contender in {
        "hugging face": hugging_face_contender(checkpoint, arguments.batch),
        "torch.compile": compiled_contender(checkpoint, arguments.batch),
    }.items():
        contenders[name] = lambda paths, run=contender: run(paths[: arguments.peers])  # type: ignore[misc]
    return contenders


def pipeline_contender(classifier: Classifier, work: Path) -> Callable[[Sequence[str]], float]:
    """Return the whole pipeline, rows on disk included."""

    def run(paths: Sequence[str]) -> float:
        with open_sink(work / "rows.jsonl", classifier.k) as sink:
            summary = classify(file_items(paths), classifier, sink, lambda _rows: None)
        assert summary.failed == 0, f"{summary.failed} of {summary.images} images failed"
        return summary.images_per_second

    return run


def pixels_ceiling(classifier: Classifier, files: Sequence[str], work: Path) -> Callable[[Sequence[str]], float]:
    """Return the pipeline with every file read and decoded beforehand."""
    contents = {path: read_image(path) for path in files}
    pixels = {data: decode(data) for data in contents.values()}
    run = pipeline_contender(classifier, work)

    def run_on_pixels(paths: Sequence[str]) -> float:
        with (
            mock.patch.object(loading, "read_image", contents.__getitem__),
            mock.patch.object(loading, "decode", pixels.__getitem__),
            mock.patch.object(loading, "gpu_can_decode", return_value=False),
        ):
            return run(paths)

    return run_on_pixels


def infer_ceiling(classifier: Classifier) -> Callable[[Sequence[str]], float]:
    """Return the engine alone, all lanes at once."""
    lanes = [lane for runtime in classifier.runtimes for lane in runtime.gpu_lanes]

    def run(paths: Sequence[str]) -> float:
        batches = max(1, len(paths) // classifier.batch_size // len(lanes))
        with ThreadPoolExecutor(len(lanes)) as pool:
            started = time.perf_counter()
            list(pool.map(lambda lane: run_lane(lane, classifier.batch_size, batches), lanes))
            return batches * len(lanes) * classifier.batch_size / (time.perf_counter() - started)

    return run


def run_lane(lane: GpuLane, count: int, batches: int) -> None:
    """Run a number of batches of whatever lies in the lane's memory, at most a few of them ahead of the GPU."""
    with lane.device.current():
        marks = [lane.device.event() for _ in range(3)]
        for number in range(batches):
            mark = marks[number % len(marks)]
            if number >= len(marks):
                mark.synchronize()
            lane.enqueue(count)
            lane.stream.record(mark)
        marks[(batches - 1) % len(marks)].synchronize()


def exact_ceiling(classifier: Classifier) -> Callable[[Sequence[str]], float]:
    """Return reading and decoding on the CPU alone."""

    def run(paths: Sequence[str]) -> float:
        with ThreadPoolExecutor(classifier.decode_threads) as pool:
            started = time.perf_counter()
            for _ in pool.map(lambda path: decode(read_image(path)).shape, paths):
                pass
            return len(paths) / (time.perf_counter() - started)

    return run


def fast_ceiling(classifier: Classifier) -> Callable[[Sequence[str]], float]:
    """Return reading on the CPU and decoding on the GPU alone, with a decoder and a stream for each lane."""
    lanes = [lane for runtime in classifier.runtimes for lane in runtime.gpu_lanes]
    size = classifier.batch_size

    def run(paths: Sequence[str]) -> float:
        batches = [paths[first : first + size] for first in range(0, len(paths), size)]
        shares = [batches[number :: len(lanes)] for number in range(len(lanes))]
        with ThreadPoolExecutor(classifier.decode_threads) as readers, ThreadPoolExecutor(len(lanes)) as pool:
            started = time.perf_counter()
            list(pool.map(lambda lane, share: decode_batches(lane.device, share, readers), lanes, shares))
            return len(paths) / (time.perf_counter() - started)

    return run


def decode_batches(device: Device, batches: Sequence[Sequence[str]], readers: ThreadPoolExecutor) -> None:
    """Decode batches one after the other, each read while the one before is decoded."""
    decoder = open_decoder(device.index)
    with device.current():
        decode_in_turn(device, decoder, batches, readers)  # in a function: its stream is given back in the block


def decode_in_turn(
    device: Device, decoder: GpuDecoder, batches: Sequence[Sequence[str]], readers: ThreadPoolExecutor
) -> None:
    """Decode batches on a stream of their own."""
    stream, done = device.stream(), device.event()
    files = list(map(read_image, batches[0])) if batches else []
    for following in [*batches[1:], ()]:
        ahead = readers.map(read_image, following)
        pixels = decoder.decode(files, stream.handle)
        stream.record(done)
        done.synchronize()
        del pixels
        files = list(ahead)


def measure_throughput(
    contenders: dict[str, Callable[[Sequence[str]], float]], paths: Sequence[str], rounds: int
) -> dict[str, Any]:
    """Run every contender once a round, and print images a second and the ratios."""
    for run in contenders.values():
        run(paths[:WARM_UP])
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for number in range(rounds):
        for name, run in contenders.items():
            rates[name].append(run(paths))
        print(f"round {number + 1}: " + ", ".join(f"{name} {rate[-1]:.0f}" for name, rate in rates.items()), flush=True)
    print(f"\n{'':<24}{'images/s':>10}")
    for name, values in rates.items():
        print(f"{name:<24}{statistics.median(values):>10.0f}")
    return {"images_per_second": rates, "ratios": print_ratios(rates)}


def print_ratios(rates: dict[str, list[float]]) -> dict[str, list[float]]:
    """Print and return what each pipeline reaches of its lowest ceiling, and of the peers."""
    ratios: dict[str, list[float]] = {}
    for name in [name for name in rates if name.startswith("pipeline")]:
        mode = name.removeprefix("pipeline ")
        ceilings = zip(rates["infer"], rates[f"decode {mode}"], rates["pixels"], strict=True)
        lowest = [min(values) for values in ceilings]
        others = {"lowest ceiling": lowest} | {peer: rates[peer] for peer in ("hugging face", "torch.compile")}
        for peer, values in others.items():
            ratios[f"{name} / {peer}"] = [ours / other for ours, other in zip(rates[name], values, strict=True)]
    print(f"\n{'':<44}{'ratio':>7}{'lowest':>9}{'highest':>9}")
    for name, values in ratios.items():
        print(f"{name:<44}{statistics.median(values):>7.3f}{min(values):>9.3f}{max(values):>9.3f}")
    return ratios


def measure_overlap(classifier: Classifier, paths: Sequence[str], work: Path) -> dict[str, Any]:
    """Print how much the stages of a run lie side by side."""
    timeline = Timeline()
    with open_sink(work / "rows.jsonl", classifier.k) as sink:
        classify(file_items(paths), classifier, sink, lambda _rows: None, timeline)
    found = overlap(timeline.intervals)
    busy = ", ".join(f"{stage} {share:.0%}" for stage, share in found.busy.items())
    print(f"\n{classifier.decode}: busy {busy}; several at once {found.several:.0%}, hidden {found.hidden:.0%}")
    return asdict(found)


@dataclass(frozen=True)
class KernelTimes:
    """Seconds of one batch in each kernel, and bytes a second of the two that are bound by memory.

    Attributes:
        infer: The engine.
        preprocess: The kernel of preprocess.cu.
        top_k: The kernel of topk.cu.
        preprocess_bytes: Bytes a second of it, each source pixel and each output counted once.
        copy_bytes: Bytes a second of a copy on the GPU, read and written.
    """

    infer: float
    preprocess: float
    top_k: float
    preprocess_bytes: float
    copy_bytes: float


def measure_kernels(classifier: Classifier, files: Sequence[str]) -> dict[str, float]:
    """Time the kernels on one batch of photos, and print what they reach of the GPU's bandwidth."""
    lane = classifier.runtimes[0].gpu_lanes[0]
    count = classifier.batch_size
    shape = BatchShape(count, preprocess_kernel(classifier.preprocessor), len(classifier.labels), classifier.k)
    with ThreadPoolExecutor(1) as threads, lane.device.current():
        pipeline = PipelineLane(lane, shape)
        arena, stream = pipeline.arenas[0], lane.stream
        loader = Loader(classifier.preprocessor, threads, IN_THIS_PROCESS, lane.device.index, "exact")
        images = [
            load.result()
            for load in loader.start(list(file_items(itertools.islice(itertools.cycle(files), count))), arena)
        ]
        describe([image.placed for image in images], arena.sources[:count])
        arena.copy_to_device(stream)
        preprocess = seconds_of(lane.device, stream, lambda: pipeline.preprocess(arena, 0, count))
        infer = seconds_of(lane.device, stream, lambda: lane.enqueue(count))
        top_k = seconds_of(lane.device, stream, lambda: pipeline.find_best(count))
        copied = 2 * COPIED_BYTES / copy_seconds(lane.device, stream)
    read = sum(image.placed.pitch * source_rows(image.placed) for image in images if image.placed is not None)
    written = 4 * 3 * shape.kernel.height * shape.kernel.width * count
    found = KernelTimes(infer, preprocess, top_k, (read + written) / preprocess, copied)
    times = f"infer {infer * 1e3:.3f} ms, preprocess {preprocess * 1e3:.3f} ms, top-k {top_k * 1e3:.3f} ms"
    print(f"\none batch of {count}: {times}")
    print(f"top-k / infer                    {top_k / infer:.4f}")
    print(f"preprocess / copy bandwidth      {found.preprocess_bytes / copied:.3f}")
    return asdict(found)


def source_rows(placed: Any) -> int:
    """Return the rows of an image that its tables reach."""
    words, length = placed.plan.rows.words, placed.plan.rows.length
    return int((words[:length] + words[length : 2 * length]).max())


def seconds_of(device: Device, stream: Stream, enqueue: Callable[[], None]) -> float:
    """Return the seconds that the GPU takes for what is enqueued, the median of several turns of many."""
    start, end = device.event(timed=True), device.event(timed=True)
    turns = []
    for _ in range(5):
        stream.record(start)
        for _ in range(REPEATS):
            enqueue()
        stream.record(end)
        end.synchronize()
        turns.append(end.seconds_since(start) / REPEATS)
    return statistics.median(turns[1:])


def copy_seconds(device: Device, stream: Stream) -> float:
    """Return the seconds of a copy of ``COPIED_BYTES`` on the GPU."""
    bindings = import_module("cuda.bindings.driver")
    source, target = device.allocate(COPIED_BYTES), device.allocate(COPIED_BYTES)

    def copy() -> None:
        (status,) = bindings.cuMemcpyDtoDAsync(target.address, source.address, COPIED_BYTES, stream.handle)
        assert not status, status

    return seconds_of(device, stream, copy)


if __name__ == "__main__":
    main()
