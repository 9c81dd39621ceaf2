"""Print a table of predictions and the top-1 against the folder names, for images that lie in one folder a class.

Usage: python examples/top1_by_folder.py PREDICTIONS.jsonl [ROWS]
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

DEFAULT_ROWS = 20


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the result rows of a JSON lines file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def folder_of(row: dict[str, Any]) -> str:
    """Return the name of the folder an image lies in: its true class."""
    return Path(row["path"]).parent.name


def is_right(row: dict[str, Any]) -> bool:
    """Tell whether the most probable label is the folder's name."""
    return bool(row["topk"]) and row["topk"][0]["label"] == folder_of(row)


def print_predictions(rows: list[dict[str, Any]], count: int) -> None:
    """Print ``count`` rows, spread evenly over the file."""
    print(f"{'image':<28}{'predicted':<14}{'probability':>11}")
    for row in rows[:: max(1, len(rows) // count)]:
        name = f"{folder_of(row)}/{Path(row['path']).name}"
        if row["status"] == "ok":
            best = row["topk"][0]
            print(f"{name:<28}{best['label']:<14}{best['probability']:>11.3f}{'' if is_right(row) else '  wrong'}")
        else:
            print(f"{name:<28}error: {row['error']}")


def print_top1(rows: list[dict[str, Any]]) -> None:
    """Print the share of images whose most probable label is their folder's name, by folder and in all."""
    images, right = Counter(map(folder_of, rows)), Counter(folder_of(row) for row in rows if is_right(row))
    print(f"\n{'class':<28}{'images':>8}{'top-1':>9}")
    for folder, count in sorted(images.items()):
        print(f"{folder:<28}{count:>8}{right[folder] / count:>9.1%}")
    print(f"{'all':<28}{images.total():>8}{right.total() / images.total():>9.1%}")


if __name__ == "__main__":
    predictions = read_rows(Path(sys.argv[1]))
    print_predictions(predictions, int(sys.argv[2]) if len(sys.argv) > 2 else DEFAULT_ROWS)  # noqa: PLR2004
    print_top1(predictions)
