from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from tests.corpus.hostile import TARGET
from tests.images.samples import encoded, exif, one_of_each, picture
from tests.support.data import sample_photos
from trt_vit.errors import EnvironmentFault, ImageError, UsageError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.limits import DecodeLimits
from trt_vit.images.workers import DecodeWorkers, decoding

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

    from trt_vit.images.workers import Decoder

# What Pillow warns of is silenced for the process when trt_vit.images.decode is imported; pytest undoes that.
pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

WHOLE = one_of_each()
PHOTOS = sample_photos()
MIB = 2**20
LIMITS = DecodeLimits(seconds=120)  # for what must not hang; a busy machine may be slow
SOON = DecodeLimits(seconds=2)  # for what hangs
PATIENCE = 60


@pytest.fixture(scope="module")
def real() -> Iterator[DecodeWorkers]:
    with DecodeWorkers(2, LIMITS, 512 * MIB) as workers:
        yield workers


@pytest.fixture(scope="module")
def harmed() -> Iterator[DecodeWorkers]:
    """One worker, so that the next image meets what the last one has left."""
    with DecodeWorkers(1, LIMITS, 256 * MIB, target=TARGET) as workers:
        yield workers


def error_of(decoder: Decoder, data: bytes) -> str:
    with pytest.raises(ImageError) as caught:
        decoder(data)
    return str(caught.value)


def outcome(decoder: Decoder, data: bytes) -> tuple[tuple[int, ...], bytes] | str:
    """Shape and pixels, or the error."""
    try:
        pixels = decoder(data)
    except ImageError as error:
        return str(error)
    return pixels.shape, pixels.tobytes()


def assert_works(workers: DecodeWorkers) -> None:
    np.testing.assert_array_equal(workers.decode(WHOLE["png"]), decode(WHOLE["png"]), strict=True)


def processes(workers: DecodeWorkers) -> list[int]:
    return [worker._process.pid for worker in workers._workers]


def is_alive(process: int) -> bool:
    """Whether a process runs; one that nobody has waited for has ended all the same."""
    try:
        status = Path(f"/proc/{process}/stat").read_text(encoding="ascii")
    except (FileNotFoundError, ProcessLookupError):
        return False
    return status.rpartition(")")[2].split()[0] not in "ZX"


def wait_until(condition: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < PATIENCE
        time.sleep(0.01)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


class TestPixels:
    @pytest.mark.parametrize("name", sorted(WHOLE))
    def test_every_format(self, real: DecodeWorkers, name: str) -> None:
        decoded = real.decode(WHOLE[name])
        assert decoded.flags.c_contiguous
        np.testing.assert_array_equal(decoded, decode(WHOLE[name]), strict=True)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_orientation(self, real: DecodeWorkers, orientation: int) -> None:
        data = encoded(picture(13, 22), "JPEG", exif=exif(orientation))
        np.testing.assert_array_equal(real.decode(data), decode(data), strict=True)

    @pytest.mark.skipif(not PHOTOS, reason="needs the photos of tests/support/data.py")
    def test_photos(self, real: DecodeWorkers) -> None:
        for path in PHOTOS:
            data = read_image(str(path))
            np.testing.assert_array_equal(real.decode(data), decode(data), strict=True, err_msg=path.name)

    def test_one_image_leaves_nothing_in_another(self, real: DecodeWorkers) -> None:
        first = real.decode(WHOLE["png"])
        copy = first.copy()
        for name in ("bmp", "gif", "jpeg"):
            real.decode(WHOLE[name])
        np.testing.assert_array_equal(first, copy)
        first[...] = 0  # its own memory
        assert_works(real)

    def test_what_a_large_image_takes_is_given_back(self, harmed: DecodeWorkers) -> None:
        assert harmed.decode(b"pixels 30000000").shape == (1, 30_000_000, 3)
        (worker,) = harmed._workers
        maps = Path("/proc/self/smaps").read_text(encoding="utf-8").split("memfd:trt_vit-image")
        resident = [int(re.findall(r"^Rss: +(\d+) kB", part, re.MULTILINE)[0]) for part in maps[1:]]
        assert worker in harmed._workers
        assert max(resident) < 64 * 1024

    def test_threads(self) -> None:
        """Each gets its own image's pixels or error, also while workers are lost under the others."""
        expected = {name: decode(data) for name, data in WHOLE.items()}
        jobs: list[tuple[str, bytes]] = []
        for name in sorted(WHOLE):
            jobs += [(name, WHOLE[name]), ("exit status 7", b"exit 7"), (name, WHOLE[name]), ("not an", b"x")]
        with DecodeWorkers(3, LIMITS, 256 * MIB, target=TARGET) as workers, ThreadPoolExecutor(8) as threads:

            def run(job: tuple[str, bytes]) -> str:
                name, data = job
                if name not in expected:
                    return "right" if name in error_of(workers.decode, data) else "wrong"
                return "right" if np.array_equal(workers.decode(data), expected[name]) else "wrong"

            assert list(threads.map(run, jobs)) == ["right"] * len(jobs)
            assert len(workers._workers) == 3


class TestErrors:
    @pytest.mark.parametrize("name", sorted(WHOLE))
    def test_damage_is_told_as_in_this_process(self, real: DecodeWorkers, name: str) -> None:
        for cut in (3, 5, 2):
            data = WHOLE[name][: len(WHOLE[name]) // cut]
            assert outcome(real.decode, data) == outcome(decode, data)

    def test_what_is_no_image(self, real: DecodeWorkers) -> None:
        assert error_of(real.decode, b"") == "empty file"
        assert error_of(real.decode, b"hello").startswith("not an image: no known signature")

    def test_limits(self) -> None:
        limits = DecodeLimits(formats=frozenset(("png", "bmp")), pixels=957, file_bytes=10_000)
        with DecodeWorkers(1, limits, 256 * MIB) as workers:
            assert_works(workers)
            assert error_of(workers.decode, WHOLE["gif"]) == "format gif is not allowed"
            message = "image has 990 pixels, more than the limit of 957"
            assert error_of(workers.decode, encoded(picture(30, 33), "PNG")) == message
            message = "file has 10001 bytes, more than the limit of 10000"
            assert error_of(workers.decode, WHOLE["bmp"].ljust(10_001, b"\0")) == message
            assert_works(workers)

    def test_an_error_is_one_line_of_reasonable_length(self, harmed: DecodeWorkers) -> None:
        assert error_of(harmed.decode, b"refuse two\nlines") == "two lines"
        long = error_of(harmed.decode, b"refuse " + "é".encode() * 100_000)
        assert long.startswith("ééé")
        assert len(long) <= 1024
        assert_works(harmed)


class TestCrash:
    @pytest.mark.parametrize(
        ("command", "how"),
        [
            (b"read-address 0", "SIGSEGV"),
            (b"signal %d" % signal.SIGKILL, "SIGKILL"),  # as the kernel does where memory is short
            (b"signal %d" % signal.SIGABRT, "SIGABRT"),
            (b"signal %d" % (signal.SIGRTMIN + 3), f"signal {signal.SIGRTMIN + 3}"),
            (b"exit 3", "exit status 3"),
            (b"exit 0", "exit status 0"),
            (b"raise what no decoder raises", "exit status 1"),
        ],
    )
    def test_it_costs_one_image(self, harmed: DecodeWorkers, command: bytes, how: str) -> None:
        for _ in range(3):
            assert error_of(harmed.decode, command) == f"the decoder crashed ({how})"
        assert_works(harmed)

    def test_pixels_that_cannot_be(self) -> None:
        limits = DecodeLimits(pixels=1000)
        with DecodeWorkers(1, limits, 256 * MIB, target=TARGET) as workers:
            assert workers.decode(b"pixels 1000").shape == (1, 1000, 3)
            for wild in (b"pixels 1001", b"pixels 0"):
                assert error_of(workers.decode, wild) == "the decoder crashed (its answer means nothing)"
            assert_works(workers)

    def test_pixels_that_do_not_fit(self) -> None:
        limits = DecodeLimits(pixels=1000, file_bytes=5000)
        with DecodeWorkers(1, limits, 256 * MIB, target=TARGET) as workers:
            assert error_of(workers.decode, b"pixels 5000") == "the decoder crashed (exit status 1)"
            assert_works(workers)

    def test_a_worker_that_was_killed_while_idle_is_no_image_s_fault(self, harmed: DecodeWorkers) -> None:
        assert_works(harmed)
        (process,) = processes(harmed)
        os.kill(process, signal.SIGKILL)
        wait_until(lambda: not is_alive(process))
        assert_works(harmed)
        assert processes(harmed) != [process]

    def test_nothing_is_left_of_lost_workers(self, harmed: DecodeWorkers) -> None:
        assert_works(harmed)
        before, lost = descriptors(), processes(harmed)
        for _ in range(5):
            error_of(harmed.decode, b"exit 1")
            assert_works(harmed)
        assert descriptors() == before
        assert len(processes(harmed)) == 1
        assert not Path(f"/proc/{lost[0]}").exists()

    def test_it_does_no_further_harm(self, harmed: DecodeWorkers) -> None:
        """It dumps no core, is the first to go where memory is short, and has no threads that take part of its own."""
        assert_works(harmed)
        (process,) = processes(harmed)
        assert re.search(r"Max core file size +0 +0 ", Path(f"/proc/{process}/limits").read_text(encoding="ascii"))
        assert Path(f"/proc/{process}/oom_score_adj").read_text(encoding="ascii") == "1000\n"
        assert len(list(Path(f"/proc/{process}/task").iterdir())) == 1


class TestHang:
    @pytest.mark.parametrize("command", [b"sleep 100000", b"hang"])
    def test_it_costs_one_image(self, command: bytes) -> None:
        with DecodeWorkers(1, SOON, 256 * MIB, target=TARGET) as workers:
            (process,) = processes(workers)
            assert error_of(workers.decode, command) == "decoding took longer than 2 s"
            assert not Path(f"/proc/{process}").exists()
            assert_works(workers)


class TestMemory:
    @pytest.mark.parametrize("command", [b"allocate", b"map"])
    def test_a_worker_cannot_have_more(self, command: bytes) -> None:
        with DecodeWorkers(1, LIMITS, 100 * MIB, target=TARGET) as workers:
            (process,) = processes(workers)
            message = error_of(workers.decode, command + b" %d" % (120 * MIB))
            if command == b"allocate":
                assert message == "decoding needs more than 100 MiB"
            else:  # mmap raises no MemoryError, but what no decoder raises
                assert message == "the decoder crashed (exit status 1)"
            assert not Path(f"/proc/{process}").exists()
            assert error_of(workers.decode, command + b" %d" % (90 * MIB)).startswith("not an image")
            assert_works(workers)


class TestEnd:
    def test_close_leaves_nothing(self) -> None:
        before = descriptors()
        with DecodeWorkers(3, LIMITS, 256 * MIB) as workers:
            assert_works(workers)
            own = processes(workers)
            assert len(own) == 3
            assert all(is_alive(process) for process in own)
            for process in own:  # shared memory with a name would lie there, and be left by whoever is killed
                assert "/dev/shm" not in Path(f"/proc/{process}/maps").read_text(encoding="utf-8")  # noqa: S108
        assert not any(Path(f"/proc/{process}").exists() for process in own)  # not even a zombie
        assert descriptors() == before
        workers.close()

    def test_decoding_under_way_ends_with_it(self) -> None:
        before = descriptors()
        with ThreadPoolExecutor(3) as threads:
            with DecodeWorkers(1, LIMITS, 256 * MIB, target=TARGET) as workers:
                calls = [threads.submit(workers.decode, b"hang") for _ in range(3)]
                wait_until(workers._free.empty)
            for call in calls:  # neither a crash nor anything else that would be written as an image's error
                with pytest.raises(RuntimeError, match=r"^the decode workers are closed$"):
                    call.result(PATIENCE)
        with pytest.raises(RuntimeError, match=r"^the decode workers are closed$"):
            workers.decode(WHOLE["png"])
        assert workers._workers == set() or not any(is_alive(process) for process in processes(workers))
        assert descriptors() == before

    def test_an_image_that_is_done_as_it_ends(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = descriptors()
        workers = DecodeWorkers(1, LIMITS, 256 * MIB)
        (worker,) = workers._workers
        decode_there = worker.decode

        def decode_and_close(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
            pixels = decode_there(data, limits)
            workers.close()
            return pixels

        monkeypatch.setattr(worker, "decode", decode_and_close)
        np.testing.assert_array_equal(workers.decode(WHOLE["png"]), decode(WHOLE["png"]))
        assert descriptors() == before

    def test_an_interrupt_of_the_caller(self) -> None:
        """The worker that was asked is not used again: its reply would be taken for the next image's."""
        main = threading.main_thread().ident
        assert main is not None
        with DecodeWorkers(1, LIMITS, 256 * MIB, target=TARGET) as workers:

            def interrupt() -> None:
                wait_until(workers._free.empty)
                time.sleep(0.2)
                signal.pthread_kill(main, signal.SIGINT)

            thread = threading.Thread(target=interrupt)
            thread.start()
            with pytest.raises(KeyboardInterrupt):
                workers.decode(b"sleep 100000")
            thread.join()
            assert_works(workers)

    def test_workers_leave_interrupts_to_the_caller(self, harmed: DecodeWorkers) -> None:
        assert_works(harmed)
        (process,) = processes(harmed)
        assert os.getpgid(process) == process != os.getpgid(0)  # what the terminal interrupts
        os.kill(process, signal.SIGINT)
        assert_works(harmed)
        assert processes(harmed) == [process]

    @pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
    @pytest.mark.parametrize("command", ["hang", "sleep 100000", "modules"])
    def test_no_worker_outlives_the_caller(self, end: signal.Signals, command: str) -> None:
        """Whether its decoder hangs in native code or in Python, or it waits for an image."""
        script = f"""
            import threading
            from trt_vit.images.limits import DecodeLimits
            from trt_vit.images.workers import DecodeWorkers
            workers = DecodeWorkers(3, DecodeLimits(), 2**28, target={TARGET!r})
            for _ in range(2):
                threading.Thread(target=workers.decode, args=({command!r}.encode(),), daemon=True).start()
            while workers._free.qsize() != {1 if command != "modules" else 3}:
                pass
            print(*(worker._process.pid for worker in workers._workers), flush=True)
            threading.Event().wait()
        """
        script = "\n".join(line.removeprefix(" " * 12) for line in script.splitlines())
        with subprocess.Popen(
            [sys.executable, "-c", script],
            cwd=Path(__file__).parents[2], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        ) as caller:  # fmt: skip
            assert caller.stdout is not None
            started = [int(word) for word in caller.stdout.readline().split()]
            assert len(started) == 3
            assert all(is_alive(process) for process in started)
            caller.send_signal(end)
            try:
                caller.wait(PATIENCE)
            finally:
                caller.kill()
            wait_until(lambda: not any(is_alive(process) for process in started))


class TestStart:
    def test_a_worker_imports_nothing_heavy(self, harmed: DecodeWorkers) -> None:
        own = ["errors", "images", "images.decode", "images.limits", "images.orientation", "images.worker"]
        assert error_of(harmed.decode, b"modules trt_vit") == " ".join(
            ["trt_vit", *(f"trt_vit.{name}" for name in own)]
        )
        for heavy in ("torch", "openvino", "onnxruntime", "pyarrow", "pydantic", "pytest", "multiprocessing"):
            assert error_of(harmed.decode, b"modules " + heavy.encode()) == ""

    def test_one_that_does_not_start_is_no_image_s_error(self, capfd: pytest.CaptureFixture[str]) -> None:
        before = descriptors()
        with pytest.raises(EnvironmentFault, match=r"^a decode worker does not start: exit status 1 \(see what is"):
            DecodeWorkers(2, LIMITS, 256 * MIB, target="trt_vit.images.decode:no_such_function")
        assert "no_such_function" in capfd.readouterr().err
        assert descriptors() == before

    def test_one_that_cannot_be_started(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = descriptors()
        monkeypatch.setattr(sys, "executable", "/nowhere/python")
        with pytest.raises(EnvironmentFault, match=r"^a decode worker does not start: No such file or directory \("):
            DecodeWorkers(1, LIMITS, 256 * MIB)
        assert descriptors() == before

    def test_one_that_takes_too_long_to_start(self, monkeypatch: pytest.MonkeyPatch) -> None:
        before = descriptors()
        monkeypatch.setattr("trt_vit.images.workers._START_SECONDS", 0.001)  # Python alone takes more
        with pytest.raises(EnvironmentFault, match=r"^a decode worker does not start: not ready after 0.001 s \("):
            DecodeWorkers(2, LIMITS, 256 * MIB)
        assert descriptors() == before

    @pytest.mark.parametrize(("count", "memory"), [(0, 2**28), (-1, 2**28), (1, 0)])
    def test_numbers_that_mean_nothing(self, count: int, memory: int) -> None:
        with pytest.raises(UsageError, match=r"use at least 1"):
            DecodeWorkers(count, LIMITS, memory)

    def test_what_libtiff_prints_is_not_seen(self, capfd: pytest.CaptureFixture[str]) -> None:
        damaged = WHOLE["tiff-lzw"][:100] + b"\xff" * 400 + WHOLE["tiff-lzw"][500:]
        with DecodeWorkers(1, LIMITS, 256 * MIB) as workers:
            message = error_of(workers.decode, damaged)
        assert capfd.readouterr().err == ""
        assert error_of(decode, damaged) == message
        assert capfd.readouterr().err != ""


class TestDecoding:
    def test_in_this_process(self) -> None:
        limits = DecodeLimits(formats=frozenset(("png",)))
        with decoding(limits, 0, 2**28) as decoder:
            np.testing.assert_array_equal(decoder(WHOLE["png"]), decode(WHOLE["png"]), strict=True)
            assert error_of(decoder, WHOLE["gif"]) == "format gif is not allowed"

    def test_in_workers(self) -> None:
        limits = DecodeLimits(formats=frozenset(("png",)), seconds=120)
        with decoding(limits, 2, 2**28) as decoder:
            np.testing.assert_array_equal(decoder(WHOLE["png"]), decode(WHOLE["png"]), strict=True)
            assert error_of(decoder, WHOLE["gif"]) == "format gif is not allowed"
        with pytest.raises(RuntimeError, match="closed"):
            decoder(WHOLE["png"])

    def test_a_time_limit_needs_workers(self) -> None:
        with pytest.raises(UsageError, match=r"^decoding cannot be stopped after 5 s in this process \(use decode"):
            decoding(DecodeLimits(seconds=5), 0, 2**28).__enter__()
