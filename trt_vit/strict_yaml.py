"""YAML that someone else may have written."""

from __future__ import annotations

from typing import Any

import yaml

from trt_vit.reading import is_plain, plain

_LONGEST_INTEGER = 20
_DEEPEST = 16
_LONGEST_TEXT = 4096
"""Letters of one value of YAML, as long as a path may be."""
_LONGEST_REASON = 500
_INTEGER_TAG = "tag:yaml.org,2002:int"


class _Loader(yaml.SafeLoader):
    """YAML without what can grow when it is used, or hides what is meant.

    An alias stands for any number of values, a key that is given twice for one that is lost, and a tag for a type that
    its value may not have. Control characters would act on the terminal that a message is shown on.
    """

    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read one value, unless it is none of a configuration."""
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        self._refuse(isinstance(event, yaml.AliasEvent), "an alias is not read", event)
        self._refuse(getattr(event, "tag", None) is not None, "a tag is not read", event)
        value = getattr(event, "value", "")
        odd = not is_plain(value) or len(value) > _LONGEST_TEXT
        self._refuse(odd, "a text with a control character, or a long one", event)
        self._refuse(self._depth == _DEEPEST, f"nested more than {_DEEPEST} levels deep", event)
        self._depth += 1
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(node, yaml.ScalarNode) and node.tag == _INTEGER_TAG:
            self._refuse(len(value) > _LONGEST_INTEGER, "an integer that is too long", event)
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            self._refuse(len(set(keys)) < len(keys), "a key is given twice", event)
        return node

    @staticmethod
    def _refuse(bad: bool, problem: str, event: Any) -> None:  # noqa: FBT001 - a condition
        if bad:
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)


def parse_yaml(data: bytes) -> Any:
    """Return what a YAML document holds that someone else may have written.

    Raises:
        ValueError: It is not such a document, as ``_Loader`` says.
    """
    try:
        return yaml.load(data.decode(), Loader=_Loader)  # noqa: S506 - it is a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ValueError(plain(" ".join(str(error).split()))[:_LONGEST_REASON]) from error
