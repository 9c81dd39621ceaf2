"""The one rule of where the settings of a command come from.

A flag wins over an environment variable ``TRT_VIT_<KEY>``, that over a recipe, that over ``config.yaml``, that over the
default. A key that means nothing is an error wherever it stands: a typo must not silently run with a default.
"""

from __future__ import annotations

import difflib
import glob
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from trt_vit.errors import UsageError
from trt_vit.reading import quoted, read_file
from trt_vit.settings import BuildSettings, ClassifySettings, Settings
from trt_vit.sources.urls import STANDARD_INPUT, is_url
from trt_vit.strict_yaml import parse_yaml

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

CONFIG_FILE = "config.yaml"
_PREFIX = "TRT_VIT_"
_CONFIG_VARIABLE = "TRT_VIT_CONFIG"
_MOST_BYTES = 2**18
_LONGEST_KEY = 80
_RECIPE_SUFFIXES = (".yaml", ".yml")
_ARGUMENTS = {"source": "SOURCE", "inputs": "INPUT"}
_NOT_VARIABLES = frozenset({*_ARGUMENTS, "output"})
"""What one command works on is no setting of the machine: it comes from the command line or a recipe."""


_SECTIONS: tuple[type[Settings], ...] = (BuildSettings, ClassifySettings)
_S = TypeVar("_S", bound=Settings)


@dataclass(frozen=True)
class _Layer:
    """Settings from one place, and how that place names a key in a message."""

    values: Mapping[str, Any]
    where: str
    spell: Callable[[str], str] = str


def resolve(
    settings: type[_S],
    flags: Mapping[str, Any],
    *,
    recipe: Path | None = None,
    config: Path | None = None,
    environment: Mapping[str, str] | None = None,
) -> _S:
    """Return a command's settings from all the places they can come from.

    Args:
        settings: Which command's settings.
        flags: Values given on the command line; None for a flag that was not.
        recipe: A recipe file, if one was given.
        config: The config file, or None for the one TRT_VIT_CONFIG names, or ./config.yaml where there is one.
        environment: Environment variables; the process's own where not given.

    Raises:
        UsageError: A file cannot be read, a key means nothing, or a value does not fit; the message names its place.
    """
    variables = os.environ if environment is None else environment
    layers = [
        _Layer({key: value for key, value in flags.items() if value is not None}, "command line", _flag),
        _environment_layer(settings, variables),
        _recipe_layer(settings, recipe),
        _config_layer(settings, config, variables),
    ]
    merged: dict[str, Any] = {}
    origin: dict[str, _Layer] = {}
    for layer in reversed(layers):
        for key, value in layer.values.items():
            merged[key], origin[key] = value, layer
    try:
        return settings.model_validate(merged)
    except ValidationError as error:
        raise _usage_error(error, origin) from error


def resolve_source(settings: type[_S], source: str, flags: Mapping[str, Any], *, config: Path | None = None) -> _S:
    """Return the settings of a command whose SOURCE may be a recipe.

    Args:
        settings: Which command's settings.
        source: A recipe, known by its suffix, or the source itself.
        flags: As for ``resolve``.
        config: As for ``resolve``.

    Raises:
        UsageError: As for ``resolve``.
    """
    if source.lower().endswith(_RECIPE_SUFFIXES):
        return resolve(settings, flags, recipe=Path(source), config=config)
    return resolve(settings, {**flags, "source": source}, config=config)


def _flag(key: str) -> str:
    return f"--{key.replace('_', '-')}"


def _variable(key: str) -> str:
    return f"{_PREFIX}{key.upper()}"


def _usage_error(error: ValidationError, origin: Mapping[str, _Layer]) -> UsageError:
    detail = error.errors(include_url=False)[0]
    key = str(detail["loc"][0])
    layer = origin.get(key)
    if layer is None:
        spelled = _ARGUMENTS.get(key) or _flag(key)
        return UsageError(f"{spelled} is missing", hint="give it on the command line or in a recipe")
    reason = detail["msg"].removeprefix("Value error, ").replace("valid path for <class 'pathlib.Path'>", "path")
    message = f"{layer.where}: {layer.spell(key)}: {reason}, got {quoted(detail['input'])}"
    return UsageError(message, hint="see trt-vit COMMAND --help for the values it takes")


def _environment_layer(settings: type[Settings], variables: Mapping[str, str]) -> _Layer:
    known = {_variable(key): key for section in _SECTIONS for key in section.model_fields if key not in _NOT_VARIABLES}
    values: dict[str, str] = {}
    for variable, value in variables.items():
        if not variable.startswith(_PREFIX) or variable == _CONFIG_VARIABLE:
            continue
        if variable not in known:
            message = f"environment variable {variable} means nothing"
            raise UsageError(message, hint=_suggest(variable, [*known, _CONFIG_VARIABLE]))
        if known[variable] in settings.model_fields:
            values[known[variable]] = value
    return _Layer(values, "environment", _variable)


def _recipe_layer(settings: type[Settings], recipe: Path | None) -> _Layer:
    if recipe is None:
        return _Layer({}, "recipe")
    values = _read_yaml(recipe)
    _refuse_unknown(values, settings.model_fields, recipe)
    return _Layer(_resolve_paths(settings, values, recipe), str(recipe))


def _config_layer(settings: type[Settings], config: Path | None, variables: Mapping[str, str]) -> _Layer:
    if config is None and _CONFIG_VARIABLE in variables:
        config = Path(variables[_CONFIG_VARIABLE])
    if config is None and not Path(CONFIG_FILE).is_file():
        return _Layer({}, CONFIG_FILE)
    file = config or Path(CONFIG_FILE)
    document = _read_yaml(file)
    _refuse_unknown(document, [section.section for section in _SECTIONS], file)
    for section in _SECTIONS:
        values = {} if document.get(section.section) is None else document[section.section]
        if not isinstance(values, dict):
            raise UsageError(f"{file}: {section.section} is not a mapping", hint="write its keys as `key: value` lines")
        _refuse_unknown(values, section.model_fields, file, f"{section.section}.")
    values = document.get(settings.section) or {}
    return _Layer(_resolve_paths(settings, values, file), str(file), lambda key: f"{settings.section}.{key}")


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        document = parse_yaml(read_file(file, _MOST_BYTES))
    except OSError as error:
        raise UsageError(f"cannot read {file}: {error.strerror}", hint="check the path") from error
    except ValueError as error:
        message = f"{file} is not YAML: {error}"
        raise UsageError(message, hint="correct the file") from error
    if document is None:
        return {}
    if not isinstance(document, dict):
        raise UsageError(f"{file} is not a mapping of keys to values", hint="write it as `key: value` lines")
    return {str(key): value for key, value in document.items()}


def _refuse_unknown(values: Mapping[str, Any], known: Any, file: Path, prefix: str = "") -> None:
    for key in values:
        if key not in known:
            name = str(key)[:_LONGEST_KEY]
            raise UsageError(f"{file}: key {prefix}{name} means nothing", hint=_suggest(name, list(known)))


def _suggest(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=1)
    return f"did you mean {close[0]}?" if close else f"known are {', '.join(sorted(known))}"


def _resolve_paths(settings: type[Settings], values: Mapping[str, Any], file: Path) -> dict[str, Any]:
    return {key: _resolve_path(key, value, file) if key in settings.paths else value for key, value in values.items()}


def _resolve_path(key: str, value: Any, file: Path) -> Any:
    """Return a path that stands in ``file`` as seen from the working directory; what is no path stays as it is."""
    if isinstance(value, list):
        return [_resolve_path(key, item, file) for item in value]
    if value == "":
        raise UsageError(f"{file}: {key} holds an empty path", hint="write a path or leave the key out")
    if not isinstance(value, str) or (key == "source" and not value.startswith(("./", "../", "/", "~"))):
        return value
    if is_url(value) or (key == "inputs" and value == STANDARD_INPUT):
        return value
    # A glob may stand among the inputs, and the recipe's own directory is no part of its pattern.
    base = glob.escape(str(file.parent)) if key == "inputs" and glob.has_magic(value) else str(file.parent)
    return os.path.join(base, os.path.expanduser(value))  # noqa: PTH111, PTH118 - a pattern is not a path
