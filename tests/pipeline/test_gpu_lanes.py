"""The pipeline of a GPU on a recording device, with the kernels as g++ makes them."""

from __future__ import annotations

import contextlib
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from PIL import Image

from tests.pipeline.test_run import ListSink
from tests.support.data import sample_photos
from tests.support.emulated_gpu import EmulatedDecoder, EmulatedRuntime
from tests.support.recording_device import RecordingDevice
from trt_vit.cuda.lane import SLOTS
from trt_vit.errors import EnvironmentFault, ImageError, OutOfDeviceMemory, UsageError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Decode, Preprocessing, ShortestEdge, Squash
from trt_vit.pipeline import loading
from trt_vit.pipeline.classifier import Classifier
from trt_vit.pipeline.lanes import NOT_FINITE
from trt_vit.pipeline.run import Summary, classify
from trt_vit.pipeline.timeline import Timeline, overlap
from trt_vit.pipeline.topk import top_k
from trt_vit.sources import item as item_module
from trt_vit.sources.item import file_items

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from numpy.typing import NDArray

    from trt_vit.images.limits import DecodeLimits
    from trt_vit.pipeline.rows import Row

SIZE = 40
CLASSES = 20
LABELS = [f"class {number}" for number in range(CLASSES)]
SQUASH = Preprocessing(resize=Squash(size=(SIZE, SIZE)), mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.5))
CROP = Preprocessing(resize=ShortestEdge(edge=48), filter="bicubic", crop=(SIZE, SIZE), mean=(0, 0, 0), std=(1, 1, 1))


def engine(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """A linear classifier: each image by itself, so that its logits do not depend on its batch."""
    weights = np.random.default_rng(1).normal(size=(pixels[0].size, CLASSES)) / 20
    logits = np.stack([image.reshape(-1).astype(np.float64) @ weights for image in pixels])
    with np.errstate(over="ignore"):  # of pixels that nobody has written yet
        found: NDArray[np.float32] = logits.astype(np.float32)
    return found


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """43 pictures of many sizes, most of them JPEG; numbers 5 and 17 are broken, and 29 is missing."""
    directory = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    paths = []
    for number in range(43):
        height, width = (int(side) for side in generator.integers(1, 150, size=2))
        coarse = Image.fromarray(generator.integers(0, 256, size=(5, 6, 3), dtype=np.uint8))
        path = directory / f"{number:02}.{'png' if number % 5 == 4 else 'jpg'}"
        coarse.resize((width, height)).save(path)
        paths.append(str(path))
    Path(paths[5]).write_bytes(b"not an image")
    Path(paths[17]).write_bytes(Path(paths[16]).read_bytes()[:-200])
    Path(paths[29]).unlink()
    return paths


def expected(
    paths: Sequence[str], preprocessing: Preprocessing, k: int
) -> list[tuple[str, list[int] | str, list[float]]]:
    """What the CPU's own decoding, preprocessing and top-k make of the pictures."""
    preprocessor = Preprocessor(preprocessing, (SIZE, SIZE))
    found: list[tuple[str, list[int] | str, list[float]]] = []
    for path in paths:
        pixels = np.empty((1, 3, SIZE, SIZE), dtype=np.float32)
        try:
            preprocessor(decode(Path(path).read_bytes()), pixels[0])
        except ImageError as error:
            found.append((path, str(error), []))
        except OSError as error:
            found.append((path, f"cannot read the file: {error.strerror}", []))
        else:
            best = top_k(engine(pixels), k)
            found.append((path, best.indices[0].tolist(), best.probabilities[0].tolist()))
    return found


def check(rows: Sequence[Row], wanted: Sequence[tuple[str, list[int] | str, list[float]]]) -> None:
    assert [row.path for row in rows] == [path for path, _, _ in wanted]
    assert [row.error or [item.index for item in row.topk] for row in rows] == [answer for _, answer, _ in wanted]
    for row, (_, _, probabilities) in zip(rows, wanted, strict=True):
        np.testing.assert_allclose([item.probability for item in row.topk], probabilities, rtol=1e-5)
        assert [item.label for item in row.topk] == [LABELS[item.index] for item in row.topk]


class Bench:
    """A classifier on emulated GPUs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, **options: Any) -> None:
        self.preprocessing = options.pop("preprocessing", SQUASH)
        self.k = options.pop("k", 3)
        self.decode: Decode = options.pop("decode", "exact")
        gpus = options.pop("gpus", 1)
        self.runtimes = tuple(
            EmulatedRuntime(
                options.pop("engine", engine), (3, SIZE, SIZE), CLASSES, device=RecordingDevice(n), **options
            )
            for n in range(gpus)
        )
        self.decoders = [EmulatedDecoder(runtime.device) for runtime in self.runtimes]
        monkeypatch.setattr(loading, "open_decoder", self.decoders.__getitem__)
        self.device = self.runtimes[0].device
        preprocessor = Preprocessor(self.preprocessing, (SIZE, SIZE))
        shape = (3, SIZE, SIZE)
        self.classifier = Classifier(preprocessor, self.runtimes, shape, LABELS, self.k, 3, self.decode)

    def run(self, paths: Sequence[str], timeline: Timeline | None = None) -> tuple[list[Row], Summary]:
        sink = ListSink()
        summary = classify(file_items(paths), self.classifier, sink, lambda _rows: None, timeline)
        return sink.rows, summary

    def races(self) -> list[str]:
        return [race for runtime in self.runtimes for race in runtime.device.races()]


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Bench]:
    return lambda **options: Bench(monkeypatch, **options)


@pytest.mark.parametrize("decode_", ["exact", "fast"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (4, 1, 1), (4, 2, 1), (5, 3, 2), (64, 2, 1)])  # batch, lanes, GPUs
@pytest.mark.parametrize("preprocessing", [SQUASH, CROP], ids=["squash", "crop"])
def test_the_rows_are_the_cpu_s_and_nothing_races(
    bench: Callable[..., Bench],
    pictures: list[str],
    preprocessing: Preprocessing,
    shape: tuple[int, int, int],
    decode_: Decode,
) -> None:
    batch_size, lanes, gpus = shape
    made = bench(batch_size=batch_size, lane_count=lanes, gpus=gpus, decode=decode_, preprocessing=preprocessing)
    rows, summary = made.run(pictures)
    check(rows, expected(pictures, preprocessing, 3))
    assert made.races() == []
    assert (summary.images, summary.failed) == (43, 3)
    assert summary.gpu_decoded == sum(decoder.decoded for decoder in made.decoders)
    assert summary.gpu_decoded == 0 if decode_ == "exact" else summary.gpu_decoded > 25
    assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "lane"))]


def test_every_gpu_gets_batches(bench: Callable[..., Bench], pictures: list[str]) -> None:
    made = bench(batch_size=2, gpus=2)
    made.run(pictures)
    assert all(len(runtime.runs) > 1 for runtime in made.runtimes)


def test_what_the_gpu_cannot_decode_is_decoded_on_the_cpu(bench: Callable[..., Bench], pictures: list[str]) -> None:
    made = bench(decode="fast", lane_count=1)
    made.decoders[0].refuses = {Path(pictures[number]).read_bytes() for number in (0, 1, 2, 3, 11, 40)}
    rows, summary = made.run(pictures)
    check(rows, expected(pictures, SQUASH, 3))
    jpegs = sum(path.endswith("jpg") for path in pictures)
    assert summary.gpu_decoded == jpegs - 6 - 2  # two are broken
    assert made.races() == []


def test_batches_of_failures_alone_are_not_run(bench: Callable[..., Bench], tmp_path: Path) -> None:
    made = bench(batch_size=2)
    rows, summary = made.run([str(tmp_path / f"{number}.jpg") for number in range(9)])
    assert {row.error for row in rows} == {"cannot read the file: No such file or directory"}
    assert (summary.failed, made.runtimes[0].runs) == (9, [])


def test_no_inputs_no_rows(bench: Callable[..., Bench]) -> None:
    assert bench().run([])[0] == []


def test_logits_that_are_not_finite_are_errors_of_their_rows(bench: Callable[..., Bench], pictures: list[str]) -> None:
    def broken(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
        logits = engine(pixels)
        logits[1, 7] = np.nan
        return logits

    rows, summary = bench(engine=broken, batch_size=4, lane_count=1).run(pictures[:4])
    assert [row.error for row in rows] == [None, NOT_FINITE, None, None]
    assert summary.failed == 1


class TestOrder:
    """Each wait is needed: without it, something shows."""

    def run(self, bench: Callable[..., Bench], pictures: list[str], forgotten: tuple[str, int] | None) -> list[str]:
        """Return what went wrong, with one of the waits of the run left out."""
        good = [path for number, path in enumerate(pictures) if number not in {5, 17, 29}]
        made = bench(batch_size=4, lane_count=1, decode="fast")
        made.device.delay = 0.02
        made.device.forgotten = forgotten
        wrong = []
        try:
            rows, _ = made.run(good)
            check(rows, expected(good, SQUASH, 3))
        except AssertionError as error:
            wrong.append(str(error))
        with contextlib.suppress(AssertionError):
            wrong += made.races()
        return wrong

    def test_with_all_of_them_nothing_goes_wrong(self, bench: Callable[..., Bench], pictures: list[str]) -> None:
        assert self.run(bench, pictures, None) == []

    # On the stream: copied and decoded, of each batch. On the host, after the one that ends the lane's set-up: consumed
    # and done, of each batch. Those of the first few batches, whose memory is used again.
    @pytest.mark.parametrize("number", range(8))
    def test_a_stream_that_does_not_wait_is_found(
        self, bench: Callable[..., Bench], pictures: list[str], number: int
    ) -> None:
        assert self.run(bench, pictures, ("stream", number)) != []

    @pytest.mark.parametrize("number", range(1, 9))
    def test_a_host_that_does_not_wait_is_found(
        self, bench: Callable[..., Bench], pictures: list[str], number: int
    ) -> None:
        assert self.run(bench, pictures, ("host", number)) != []


class TestMemory:
    def test_a_batch_that_does_not_fit_is_run_in_halves_from_then_on(
        self, bench: Callable[..., Bench], pictures: list[str]
    ) -> None:
        made = bench(batch_size=8, lane_count=1, room=3)
        rows, _ = made.run(pictures)
        check(rows, expected(pictures, SQUASH, 3))
        assert set(made.runtimes[0].runs) <= {1, 2}
        assert made.races() == []

    def test_not_below_what_the_engine_takes(self, bench: Callable[..., Bench], pictures: list[str]) -> None:
        made = bench(batch_size=8, lane_count=1, room=3, smallest=4)
        with pytest.raises(OutOfDeviceMemory, match=r"batch 0 \(.*00.jpg and 7 more\): no room for 4"):
            made.run(pictures)

    def test_pictures_that_take_too_much_room_are_resized_on_the_cpu(
        self, bench: Callable[..., Bench], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("trt_vit.cuda.lane.SHARED_BYTES", 20_000)
        generator = np.random.default_rng(2)
        paths = []
        for number in range(12):
            path = tmp_path / f"{number:02}.png"
            Image.fromarray(generator.integers(0, 256, size=(100, 150, 3), dtype=np.uint8)).save(path)
            paths.append(str(path))
        made = bench(batch_size=6, lane_count=1, preprocessing=CROP)
        rows, _ = made.run(paths)
        check(rows, expected(paths, CROP, 3))
        copies = [int(entry.split()[-1]) for entry in made.device.log if entry.startswith("to device")]
        assert max(copies) < 6 * 100 * 150 * 3  # not all of them as they are

    def test_slots_bound_how_far_the_host_runs_ahead(self, bench: Callable[..., Bench], pictures: list[str]) -> None:
        """However long the GPU takes, no more batches are decoded than there are slots for."""
        made = bench(batch_size=1, lane_count=1)
        release, read = threading.Event(), []

        def slow(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
            assert release.wait(20)
            return engine(pixels)

        made.runtimes[0].engine = slow
        made.device.lock = threading.RLock()
        original = read_image

        def counting(path: str, limits: DecodeLimits) -> bytes:
            read.append(path)
            return original(path, limits)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(item_module, "read_image", counting)
            run = threading.Thread(target=made.run, args=(pictures[30:],))
            run.start()
            deadline = time.monotonic() + 10
            while len(read) < SLOTS and time.monotonic() < deadline:
                time.sleep(0.01)
            time.sleep(0.3)
            ahead = len(read)
            release.set()
            run.join(20)
        assert ahead <= SLOTS + 2
        assert len(read) == 13


class TestFaults:
    @pytest.mark.parametrize("lanes", [1, 2])
    @pytest.mark.parametrize("fails_at", [0, 3])
    def test_a_failure_of_the_gpu_stops_the_run_and_names_the_batch(
        self, bench: Callable[..., Bench], pictures: list[str], lanes: int, fails_at: int
    ) -> None:
        made, sink = bench(batch_size=4, lane_count=lanes, fails_at=fails_at), ListSink()
        with pytest.raises(EnvironmentFault, match=r"batch \d \(.* and 3 more\): CUDA failed: unspecified") as caught:
            classify(file_items(pictures), made.classifier, sink, lambda _rows: None)
        assert caught.value.exit_code == 4
        wanted = expected(pictures, SQUASH, 3)
        check(sink.rows, wanted[: len(sink.rows)])  # what was written before is right, and has no hole
        assert len(sink.rows) <= 4 * fails_at
        assert not [thread for thread in threading.enumerate() if thread.name.startswith(("decode", "lane"))]

    def test_an_interrupt_drains_the_run(self, bench: Callable[..., Bench], pictures: list[str]) -> None:
        made, sink, seen = bench(batch_size=2, lane_count=2), ListSink(), []

        def interrupt(rows: Sequence[Row]) -> None:
            seen.append(len(rows))
            if len(seen) == 2:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            classify(file_items(pictures), made.classifier, sink, interrupt)
        assert len(seen) > 2
        assert len(sink.rows) == sum(seen) < 43
        check(sink.rows, expected(pictures, SQUASH, 3)[: len(sink.rows)])

    def test_too_many_classes(self, bench: Callable[..., Bench], pictures: list[str]) -> None:
        with pytest.raises(UsageError, match="--top-k 2000 is more than a GPU finds"):
            bench(k=2000).run(pictures)


def test_every_stage_is_timed_and_on_the_timeline(bench: Callable[..., Bench], pictures: list[str]) -> None:
    made, timeline = bench(batch_size=4, lane_count=2, decode="fast"), Timeline()
    _, summary = made.run(pictures, timeline)
    names = ["read", "decode", "stage", "gpu_decode", "copy", "preprocess", "infer", "top_k", "write"]
    assert list(summary.stages) == names
    assert all(seconds > 0 for seconds in summary.stages.values())
    intervals = timeline.intervals
    assert {interval.batch for interval in intervals} == set(range(11))
    assert {interval.track for interval in intervals if interval.track.startswith("GPU")} == {
        *("GPU 0, lane 0", "GPU 0, lane 0, host"),
        *("GPU 0, lane 1", "GPU 0, lane 1, host"),
    }
    for batch in range(11):
        own = {interval.stage: interval for interval in intervals if interval.batch == batch}
        assert own["write"].track == "MainThread"
        assert own["copy"].end <= own["preprocess"].start
        assert own["preprocess"].end == own["infer"].start
        assert own["infer"].end == own["top_k"].start
        assert own["enqueue"].track == f"{own['infer'].track}, host"
    assert set(overlap(intervals).busy) == {*names, "enqueue"}


def test_photos_come_out_as_on_the_cpu(bench: Callable[..., Bench]) -> None:
    photos = [str(path) for path in sample_photos()[:64]]
    if not photos:
        pytest.skip("needs photos: see tests/support/data.py")
    made = bench(batch_size=16, preprocessing=CROP)
    rows, _ = made.run(photos)
    check(rows, expected(photos, CROP, 3))
