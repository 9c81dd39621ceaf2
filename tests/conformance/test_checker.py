"""The conformance tests can fail: each kind of mistake is found, and what is right is not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests.conformance.bindings import RTX, TENSORRT_10, TENSORRT_11, Member, Stubs
from tests.conformance.checker import Checker, imports_types, loopholes, names_of, without_casts

if TYPE_CHECKING:
    from pathlib import Path

PREAMBLE = """\
from __future__ import annotations
from types import ModuleType
from typing import TYPE_CHECKING, Any, cast
if TYPE_CHECKING:
    import tensorrt as trt
    import tensorrt_rtx as rtx
"""
BINDINGS = """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = bindings"""


@dataclass(frozen=True)
class Mistake:
    source: str
    told: str


MISTAKES = {
    "method": Mistake("def f(x: trt.Builder): x.create_netwerk()", 'has no attribute "create_netwerk"'),
    "property": Mistake("def f(x: trt.ICudaEngine): x.num_bindings", 'has no attribute "num_bindings"'),
    "class": Mistake("def f(x: trt.IInt8Calibrator): pass", '"trt.IInt8Calibrator" is not defined'),
    "keyword": Mistake("def f(x: trt.Builder): x.create_network(flag=0)", 'Unexpected keyword argument "flag"'),
    "unnamed argument": Mistake("def f(x: trt.Weights): x.__len__(arg0=1)", 'Unexpected keyword argument "arg0"'),
    "missing argument": Mistake("def f(x: trt.IExecutionContext): x.execute_async_v3()", "Missing positional argument"),
    "number for an enumeration": Mistake("def f(x: trt.IBuilderConfig): x.set_flag(1)", 'expected "BuilderFlag"'),
    "fraction for a whole number": Mistake("def f(x: trt.IBuilderConfig): x.max_aux_streams = 0.5", "SupportsIndex"),
    "shape of text": Mistake(
        'def f(x: trt.IOptimizationProfile): x.set_shape("images", ("1",), ("1",), ("1",))', '"set_shape"'
    ),
    "read-only property": Mistake("def f(x: trt.ICudaEngine): x.num_io_tensors = 2", "is read-only"),
    "returned object": Mistake("def f(x: trt.Builder): x.create_builder_config().flag", 'has no attribute "flag"'),
    "returned number": Mistake("def f(x: trt.ICudaEngine): x.num_io_tensors.upper()", 'has no attribute "upper"'),
    "no constructor": Mistake(f"def f(bindings: ModuleType):{BINDINGS}\n    trt.ICudaEngine()", "Too few arguments"),
    "member": Mistake(f"def f(bindings: ModuleType):{BINDINGS}\n    trt.DataType.FLOAT99", 'no attribute "FLOAT99"'),
    "removed flag": Mistake(f"def f(bindings: ModuleType):{BINDINGS}\n    trt.BuilderFlag.INT8", 'no attribute "INT8"'),
    "name of the module": Mistake(f"def f(bindings: ModuleType):{BINDINGS}\n    trt.Bilder", "Module has no attribute"),
    "only RTX": Mistake("def f(x: trt.IBuilderConfig): x.num_compute_capabilities = 1", '"num_compute_capabilities"'),
    "member of RTX": Mistake(
        "def f(x: rtx.IBuilderConfig): x.num_compute_capability = 1", 'no attribute "num_compute_capability"'
    ),
    "across families": Mistake("def f(x: trt.IBuilderConfig): g(x)\ndef g(x: rtx.IBuilderConfig): pass", 'to "g" has'),
    "overridden method": Mistake(
        f"def f(bindings: ModuleType):{BINDINGS}\n"
        "    class P(trt.IProgressMonitor):\n"
        "        def step_complete(self, phase_name: str) -> bool: return True",
        "incompatible with supertype",
    ),
    "overridden result": Mistake(
        f"def f(bindings: ModuleType):{BINDINGS}\n"
        "    class P(trt.IProgressMonitor):\n"
        "        def step_complete(self, phase_name: str, step: int) -> None: ...",
        "incompatible with return type",
    ),
    "overridden argument": Mistake(
        f"def f(bindings: ModuleType):{BINDINGS}\n"
        "    class L(trt.ILogger):\n"
        "        def log(self, severity: int, msg: str) -> None: ...",
        "incompatible with supertype",
    ),
}

RIGHT = f"""
def build(bindings: ModuleType, log: trt.ILogger, model: bytes) -> bytes:{BINDINGS}
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(model):
        raise ValueError([parser.get_error(index).desc() for index in range(parser.num_errors)])
    config = builder.create_builder_config()
    config.profiling_verbosity = trt.ProfilingVerbosity.__members__["DETAILED"]
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, 1 << 30)
    config.set_flag(trt.BuilderFlag.TF32)
    source = network.get_input(0)
    profile = builder.create_optimization_profile()
    profile.set_shape(source.name, (1, *source.shape[1:]), (4, *source.shape[1:]), (8, *source.shape[1:]))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise ValueError("no plan")
    return bytes(plan)

def run(engine: trt.ICudaEngine, stream: int) -> dict[str, tuple[int, ...]]:
    context = engine.create_execution_context()
    context.set_tensor_address("images", 4096)
    assert context.execute_async_v3(stream_handle=stream)
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    return {{name: tuple(engine.get_tensor_shape(name)) for name in names}}

def monitor(bindings: ModuleType) -> trt.IProgressMonitor:{BINDINGS}
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            super().__init__()
        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...
        def step_complete(self, phase_name: str, step: int) -> bool:
            return True
        def phase_finish(self, phase_name: str) -> None: ...
    return Monitor()

def target(config: trt.IBuilderConfig) -> None:
    only_rtx(cast("rtx.IBuilderConfig", config))

def only_rtx(config: rtx.IBuilderConfig) -> None:
    config.num_compute_capabilities = 1
"""

UNKNOWN = {
    "annotated as Any": "def f(x: Any): x.execute_async_v3(0)",
    "module": "def f(x: ModuleType): return x.Builder(None)",
    "enumeration of a module": "def f(x: ModuleType): return x.BuilderFlag.INT8",
    "item": "def f(x: list[Any]): return x[0].num_io_tensors",
    "result": "def f(x): return x\ndef g(x: trt.ICudaEngine): f(x).create_execution_context()",
    "assignment": "def f(x: Any): x.num_compute_capabilities = 1",
}


def written(directory: Path, sources: dict[str, str]) -> dict[str, Path]:
    paths = {name: directory / f"sample_{name.replace(' ', '_').replace('-', '_')}.py" for name in sources}
    for name, source in sources.items():
        paths[name].write_text(PREAMBLE + source + "\n", encoding="utf-8")
    return paths


def errors_of(source: str, member: Member, directory: Path, stubs: Stubs, checker: Checker) -> list[str]:
    paths = written(directory, {"source": source})
    return [finding.message for finding in checker.errors(paths.values(), stubs.search_path(member))]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory, stubs: Stubs, checker: Checker) -> dict[str, list[str]]:
    """What is said of each mistake; one run for all of them."""
    sources = {name: mistake.source for name, mistake in MISTAKES.items()}
    paths = written(tmp_path_factory.mktemp("mistakes"), sources)
    findings = checker.errors(paths.values(), stubs.search_path(TENSORRT_11))
    return {name: [each.message for each in findings if each.path == path] for name, path in paths.items()}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found(name: str, told: dict[str, list[str]]) -> None:
    assert any(MISTAKES[name].told in message for message in told[name]), told[name]


@pytest.mark.parametrize("member", [TENSORRT_10, TENSORRT_11, RTX], ids=lambda member: member.name)
def test_what_is_right_passes(member: Member, tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    assert errors_of(RIGHT, member, tmp_path, stubs, checker) == []


def test_what_tensorrt_11_removed_is_in_tensorrt_10(tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    removed = f"def f(bindings: ModuleType, x: trt.IInt8Calibrator):{BINDINGS}\n    trt.BuilderFlag.FP16"
    assert errors_of(removed, TENSORRT_10, tmp_path, stubs, checker) == []
    assert len(errors_of(removed, TENSORRT_11, tmp_path, stubs, checker)) == 2


def test_what_only_rtx_has_is_found_by_its_own_type_alone(tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    source = "def f(x: {}.IBuilderConfig): x.num_compute_capabilities = 1"
    assert errors_of(source.format("rtx"), TENSORRT_10, tmp_path, stubs, checker) == []
    assert len(errors_of(source.format("trt"), TENSORRT_10, tmp_path, stubs, checker)) == 1
    assert errors_of(source.format("trt"), RTX, tmp_path, stubs, checker) == []


def test_what_mypy_says_without_tensorrt_too_is_left_out(tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    source = "def f(x: trt.Builder) -> int: x.create_netwerk(); return 'text'"
    (message,) = errors_of(source, TENSORRT_11, tmp_path, stubs, checker)
    assert "create_netwerk" in message


def test_every_use_of_an_unknown_type_is_found(tmp_path: Path, stubs: Stubs, checker: Checker) -> None:
    paths = written(
        tmp_path, UNKNOWN | {"right": RIGHT, "foreign": "import gc\ndef f(x: Any): return x.name, gc.Builder"}
    )
    names = names_of(stubs.of(TENSORRT_11)) | names_of(stubs.of(RTX))
    findings = checker.unchecked(paths.values(), stubs.search_path(TENSORRT_11), names)
    assert {finding.path for finding in findings} == {paths[name] for name in UNKNOWN}


def test_a_cast_to_another_class_is_found_where_both_families_are_one(
    tmp_path: Path, stubs: Stubs, checker: Checker
) -> None:
    source = """
def f(x: trt.IBuilderConfig): same(cast('rtx.IBuilderConfig', x))
def g(x: trt.IBuilderConfig): other(cast('rtx.IRuntimeConfig', x))
def same(x: rtx.IBuilderConfig): pass
def other(x: rtx.IRuntimeConfig): pass
"""
    assert errors_of(source, RTX, tmp_path, stubs, checker) == []
    (message,) = errors_of(without_casts(source), RTX, tmp_path, stubs, checker)
    assert 'to "other" has incompatible type' in message


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("é = cast('rtx.A', x).y", "é = (x).y"),
        ("f(\n    cast(\n        'trt.A | None',\n        x,\n    )\n)", "f(\n    (\n\nx)\n\n)"),
        ("cast('trt.A', cast('rtx.A', x))", "(x)"),
        ("cast('str', x)", "cast('str', x)"),
    ],
)
def test_casts_are_taken_away_and_lines_stay(source: str, expected: str) -> None:
    assert without_casts(source) == expected


@pytest.mark.parametrize(
    "line",
    [
        "getattr(config, 'num_compute_capabilities')",
        "setattr(config, name, 1)",
        "cast(Any, config)",
        "config.flags = 1  # type: ignore[attr-defined]",
        "from tensorrt import Builder",
    ],
)
def test_ways_round_the_types_are_found(line: str) -> None:
    assert loopholes(f"import gc\n\n{line}\n") == [f"3: {line}"]


@pytest.mark.parametrize(
    "line",
    [
        "cast('rtx.IBuilderConfig', config)",
        "cast('trt.IExecutionContext', context)",
        "class Log(trt.ILogger):  # type: ignore[misc]\n    pass",
    ],
)
def test_what_the_convention_allows_is_no_way_round(line: str) -> None:
    assert loopholes(f"{line}\n") == []


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("if TYPE_CHECKING:\n    import tensorrt as trt", True),
        ("def f():\n    import tensorrt_rtx as rtx", True),
        ("NAME = 'tensorrt'", False),
        ("import trt_vit.engine.tensorrt", False),
    ],
)
def test_modules_that_import_the_types_are_told_from_others(source: str, imports: bool) -> None:  # noqa: FBT001
    assert imports_types(source) is imports
