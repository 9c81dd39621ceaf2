from __future__ import annotations

import io
import os
import shutil
from collections import Counter
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
from PIL import Image

from trt_vit.errors import InputError, UsageError
from trt_vit.images.decode import decode, read_image
from trt_vit.images.preprocess import Preprocessor
from trt_vit.images.preprocessing import Preprocessing, Squash
from trt_vit.quantize import calibration
from trt_vit.quantize.calibration import CalibrationSet, choose_images, read_batches

if TYPE_CHECKING:
    from collections.abc import Iterable


def png(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, size=(9, 12, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write(root: Path, names: Iterable[str]) -> Path:
    """Write images below ``root``, each with content of its own, in this order."""
    for name in names:
        file = root / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(png(sum(map(ord, name))))
    return root


NAMES = [f"{folder}/{number:03}.png" for folder in ("cat", "dog", "fish") for number in range(20)]


def within(chosen: CalibrationSet) -> list[str]:
    return [os.path.relpath(path, chosen.directory) for path in chosen.paths]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three folders of 20 images."""
    return write(tmp_path_factory.mktemp("calibration"), NAMES)


def test_the_choice_is_the_same_everywhere(folders: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = choose_images(folders, 12)
    other = write(tmp_path / "elsewhere", reversed(NAMES))
    for age, name in enumerate(NAMES):
        os.utime(other / name, (age, age))
    moved = choose_images(other, 12)
    assert within(moved) == within(first)
    assert moved.sha256 == first.sha256
    monkeypatch.chdir(tmp_path)
    assert within(choose_images(Path("elsewhere"), 12)) == within(first)
    assert choose_images(Path("elsewhere"), 12).sha256 == first.sha256


def test_every_folder_gives_its_share_in_no_order_of_names(folders: Path) -> None:
    chosen = choose_images(folders, 12)
    assert Counter(name.rpartition("/")[0] for name in within(chosen)) == {"cat": 4, "dog": 4, "fish": 4}
    cats = [name for name in within(choose_images(folders, 60)) if name.startswith("cat")]
    assert sorted(cats) != cats
    assert sorted(cats) == NAMES[:20]


def test_a_small_folder_gives_what_it_has(tmp_path: Path) -> None:
    write(tmp_path, [*NAMES[:20], "rare/000.png", "top.png"])
    chosen = choose_images(tmp_path, 10)
    assert Counter(name.rpartition("/")[0] for name in within(chosen)) == {"cat": 8, "rare": 1, "": 1}


def test_a_smaller_choice_begins_a_larger_one(folders: Path) -> None:
    assert choose_images(folders, 30).paths[:12] == choose_images(folders, 12).paths


def test_the_digest_is_of_names_bytes_and_number(folders: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folders, tmp_path / "copy"))
    digests = [choose_images(copy, 60).sha256, choose_images(copy, 59).sha256]
    image = copy / "cat" / "007.png"
    image.write_bytes(image.read_bytes() + b"\0")
    digests.append(choose_images(copy, 60).sha256)
    image.rename(copy / "cat" / "7.png")
    digests.append(choose_images(copy, 60).sha256)
    assert len(set(digests)) == 4
    assert digests[0] == choose_images(folders, 60).sha256


def test_broken_images_are_passed_over_and_the_shares_kept(tmp_path: Path) -> None:
    write(tmp_path, NAMES)
    for name in NAMES[:10]:
        (tmp_path / name).write_bytes(b"no image")
    chosen = choose_images(tmp_path, 30)
    assert Counter(name.rpartition("/")[0] for name in within(chosen)) == {"cat": 10, "dog": 10, "fish": 10}
    assert {os.path.relpath(path, tmp_path) for path in chosen.unreadable} == set(NAMES[:10])
    assert all(chosen.unreadable.values())
    assert not set(chosen.paths) & set(chosen.unreadable)


def test_fewer_than_asked_are_all_there_are(tmp_path: Path) -> None:
    write(tmp_path, NAMES[:5])
    chosen = choose_images(tmp_path, 100)
    assert (len(chosen.paths), chosen.asked, chosen.unreadable) == (5, 100, {})


def test_no_image_that_can_be_read_is_an_error(tmp_path: Path) -> None:
    for name in ("a.png", "b.jpg"):
        (tmp_path / name).write_bytes(b"no image")
    with pytest.raises(InputError, match=f"none of the 2 images in {tmp_path} can be read: ") as caught:
        choose_images(tmp_path, 4)
    assert "--calibration" in caught.value.hint


def test_a_directory_without_images_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(InputError, match="no image in"):
        choose_images(tmp_path, 4)


def test_a_directory_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or directory"):
        choose_images(tmp_path / "nowhere", 4)


def preprocessing() -> Preprocessing:
    return Preprocessing(resize=Squash(size=(8, 8)), mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))


def pixels(path: str) -> np.ndarray:
    out = np.empty((3, 8, 8), dtype=np.float32)
    Preprocessor(preprocessing(), (8, 8))(decode(read_image(path)), out)
    return out


def test_batches_hold_every_image_once_preprocessed(folders: Path) -> None:
    paths = choose_images(folders, 19).paths
    batches = list(read_batches(paths, preprocessing(), (8, 8)))
    assert [batch.shape for batch in batches] == [(8, 3, 8, 8), (8, 3, 8, 8), (3, 3, 8, 8)]
    assert all(batch.dtype == np.float32 for batch in batches)
    for image, path in zip(np.concatenate(batches), paths, strict=True):
        np.testing.assert_array_equal(image, pixels(path))


@pytest.mark.parametrize(("images", "batches"), [(10, 2), (5, 1), (2, 1), (1, 1)])
def test_a_fixed_batch_is_filled_with_the_first_images(folders: Path, images: int, batches: int) -> None:
    paths = choose_images(folders, images).paths
    read = list(read_batches(paths, preprocessing(), (8, 8), batch=5))
    assert [batch.shape for batch in read] == [(5, 3, 8, 8)] * batches
    for position, image in enumerate(np.concatenate(read)):
        np.testing.assert_array_equal(image, pixels(paths[position % images]))


def test_no_image_gives_no_batch() -> None:
    assert list(read_batches((), preprocessing(), (8, 8), batch=4)) == []
    assert list(read_batches((), preprocessing(), (8, 8))) == []


def test_images_are_read_a_batch_at_a_time(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = choose_images(folders, 60).paths
    read: list[str] = []

    def count(path: str) -> bytes:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(calibration, "read_image", count)
    batches = read_batches(paths, preprocessing(), (8, 8))
    assert read == []
    assert len(list(islice(batches, 2))) == 2
    assert read == list(paths[:16])


def test_choosing_reads_no_more_than_it_needs(folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []

    def count(path: str) -> bytes:
        read.append(path)
        return read_image(path)

    monkeypatch.setattr(calibration, "read_image", count)
    assert read == list(choose_images(folders, 7).paths)


def test_an_image_that_has_gone_is_named(tmp_path: Path) -> None:
    write(tmp_path, NAMES[:3])
    paths = choose_images(tmp_path, 3).paths
    Path(paths[1]).unlink()
    with pytest.raises(InputError, match=f"{paths[1]} cannot be read any more: "):
        list(read_batches(paths, preprocessing(), (8, 8)))
