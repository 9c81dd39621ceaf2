"""What the commands share about printing: results to standard output, everything else to standard error."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from trt_vit.reading import plain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

_LONGEST_LIST = 12


def print_document(document: Mapping[str, Any], *, as_json: bool) -> None:
    """Print a result: as one JSON document, the only thing on standard output, or for a person."""
    if as_json:
        print(json.dumps(document, indent=2))
    else:
        _print_fields(document)


def _print_fields(fields: Mapping[str, Any]) -> None:
    """Print names and values in two columns; a nested mapping is indented under its name."""
    width = max(len(name) for name in fields)
    for name, value in fields.items():
        if isinstance(value, list) and value and isinstance(value[0], dict):
            print(name)
            _print_table(value)
        elif isinstance(value, dict):
            print(name)
            for key, item in value.items():
                print(f"  {plain(str(key))}: {_plain(item)}")
        else:
            print(f"{name.ljust(width)}  {_plain(value)}")


def _print_table(rows: Sequence[Mapping[str, Any]]) -> None:
    """Print rows that have the same names, a column for each that says anything."""
    names = [name for name in rows[0] if any(row[name] not in {None, ""} for row in rows)]
    cells = [names, *([_plain(row[name]) for name in names] for row in rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(names))]
    for line in cells:
        print("  " + "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _plain(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, list):
        shown = [plain(str(item)) for item in value[:_LONGEST_LIST]]
        return ", ".join(shown) + (f", ... ({len(value)} in all)" if len(value) > _LONGEST_LIST else "")
    return "-" if value is None else plain(str(value))


def note(text: str) -> None:
    """Tell a person something that is not the result."""
    print(plain(text), file=sys.stderr, flush=True)
