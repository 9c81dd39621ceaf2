"""Copy the first test images of every class, byte for byte, into samples/<label>/."""

from __future__ import annotations

import argparse
import zipfile
from pathlib import Path, PurePosixPath

from cifar10 import list_files


def copy_samples(archive_path: Path, folder: Path, per_class: int) -> int:
    """The first files of each class in the order of their names; how many were written."""
    written = 0
    with zipfile.ZipFile(archive_path) as archive:
        for label, members in list_files(archive, "test").items():
            (folder / label).mkdir(parents=True, exist_ok=True)
            for member in members[:per_class]:
                target = folder / label / PurePosixPath(member).name
                target.write_bytes(archive.read(member))
                written += 1
    return written


def main() -> None:
    """Read the command line and copy."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="the zip of CIFAR-10")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "samples")
    parser.add_argument("--per-class", type=int, default=20)
    options = parser.parse_args()
    written = copy_samples(options.data, options.output, options.per_class)
    print(f"{written} images in {options.output}")


if __name__ == "__main__":
    main()
