"""The ways in which a label may name a class."""

from __future__ import annotations

import difflib
import re
from collections import defaultdict
from typing import TYPE_CHECKING

from trt_vit.errors import InputError
from trt_vit.reading import quoted

if TYPE_CHECKING:
    from collections.abc import Sequence

WNID = re.compile(r"n[0-9]{8}")
"""WordNet's identifier of a synset, which ImageNet names its classes by."""
_NUMBER = re.compile("[0-9]{1,9}")
_COMPARED = 200
"""Letters of a name that is looked for among those that are like it."""


class Classes:
    """The classes of a checkpoint.

    Args:
        labels: Label of each class, by index. Synonyms are divided by commas, as in ``tench, Tinca tinca``.
        synsets: WordNet's identifier of each class, by index, where they are known.
    """

    def __init__(self, labels: Sequence[str], synsets: Sequence[str] | None = None) -> None:
        self.labels = list(labels)
        self._synsets = {} if synsets is None else {name: index for index, name in enumerate(synsets)}
        self._names: dict[str, list[int]] = defaultdict(list)
        for index, label in enumerate(self.labels):
            self._names[_plain(label)].append(index)
            short = _plain(label.partition(",")[0])
            if short != _plain(label):
                self._names[short].append(index)

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def knows_synsets(self) -> bool:
        """Whether a class can be named by its synset."""
        return bool(self._synsets)

    def title(self, index: int) -> str:
        """Return a class's label as a person tells it from all others."""
        label = self.labels[index].partition(",")[0]
        return label if len(self._names[_plain(label)]) == 1 else f"{label} ({index})"

    def find(self, name: str) -> int:
        """Return the class that a name stands for: its label or the first of its synonyms, its synset, or its index.

        Raises:
            InputError: It is none of these, or several classes have it.
        """
        found = self._candidates(name)
        if len(found) == 1:
            return found[0]
        if found:
            which = ", ".join(map(str, found))
            raise InputError(
                f"{quoted(name)} is the label of classes {which}", hint="name them by their index or synset"
            )
        raise InputError(f"no class is called {quoted(name)}", hint=self._hint(name))

    def has(self, name: str) -> bool:
        """Tell whether ``find`` finds a class, which is quicker to learn than why it does not."""
        return len(self._candidates(name)) == 1

    def _candidates(self, name: str) -> list[int]:
        if found := self._names.get(_plain(name)):
            return found
        if name in self._synsets:
            return [self._synsets[name]]
        index = number(name)
        return [index] if index is not None and index < len(self) else []

    def _hint(self, name: str) -> str:
        if WNID.fullmatch(name):
            return "synsets need a table: put LOC_synset_mapping.txt or synset_words.txt beside the images"
        if number(name) is not None:
            return f"the checkpoint's classes have the indices 0 to {len(self) - 1}"
        close = difflib.get_close_matches(_plain(name)[:_COMPARED], self._names, n=1)
        return f"did you mean {close[0]!r}?" if close else "classes go by the checkpoint's labels, synsets or indices"


def number(text: str) -> int | None:
    """Return the number that a text is, or None where it is none that counts classes."""
    return int(text) if _NUMBER.fullmatch(text) else None


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())
