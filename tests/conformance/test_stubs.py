"""The stubs hold what the bindings hold, and no more."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from types import ModuleType
from typing import TYPE_CHECKING, ClassVar

import pytest

from tests.conformance.bindings import MEMBERS, Member, Stubs
from tests.conformance.signatures import NoSignatureError, SignatureReader
from tests.conformance.stubs import UNREADABLE

if TYPE_CHECKING:
    from pathlib import Path

PUBLIC_NAMES = """
import importlib, sys
native = importlib.import_module(sys.argv[1])
for name, value in vars(native).items():
    if isinstance(value, type) and value.__module__ == native.__name__:
        print(name, *(f"{name}.{member}" for member in vars(value) if not member.startswith("_")))
"""


class Flag:
    __members__: ClassVar[dict[str, Flag]] = {}


class Dims:
    def __init__(self) -> None:
        """__init__(*args, **kwargs)
        Overloaded function.

        1. __init__(self: package.native.Dims) -> None

        2. __init__(self: package.native.Dims, shape: collections.abc.Sequence[typing.SupportsInt]) -> None
        """


class ParserError: ...


Dims.__init__.__doc__ = "\n".join(line.strip() for line in (Dims.__init__.__doc__ or "").splitlines())


@pytest.fixture
def reader() -> SignatureReader:
    native = ModuleType("package.native")
    vars(native).update(Flag=Flag, Dims=Dims, ParserError=ParserError)
    return SignatureReader(native)


@pytest.mark.parametrize(
    ("doc", "expected"),
    [
        (
            "f(self: package.native.Dims, n: typing.SupportsInt = 0) -> bool",
            "(self, n: typing.SupportsIndex=...) -> builtins.bool",
        ),
        ("f(self: object, flag: package.native.Flag = <Flag.A: 1>) -> None", "(self, flag: Flag=...) -> None"),
        ("f(self: object, path: str = None) -> str", "(self, path: builtins.str | None=...) -> builtins.str"),
        ("f(self: object, arg0: str, arg1: int) -> None", "(self, arg0: builtins.str, arg1: builtins.int, /) -> None"),
        ("f(self: object, a: str = 'x', b: str) -> None", "(self, a: builtins.str, b: builtins.str) -> None"),
        (
            "f(self: object, shape: package.native.Dims) -> None",
            "(self, shape: Dims | collections.abc.Sequence[typing.SupportsIndex]) -> None",
        ),
        ("f(self: object) -> package.native.Dims", "(self) -> Dims | typing.Any"),
        ("f(self: object) -> package.native.Flag", "(self) -> Flag"),
        ("f(self: object) -> native::IParserError", "(self) -> ParserError | typing.Any"),
        ("f(self: object) -> native::v_1_0::Hidden", "(self) -> builtins.object"),
        ("f(self: object, a: numpy.ndarray) -> None\n\n\n   Text.", "(self, a: typing_extensions.Buffer) -> None"),
    ],
)
def test_a_docstring_is_read_as_a_signature(doc: str, expected: str, reader: SignatureReader) -> None:
    (function,) = reader.functions("f", doc)
    assert ast.unparse(function) == f"def f{expected}:\n    ..."


def test_an_overloaded_docstring_is_read_as_several(reader: SignatureReader) -> None:
    overloads = "1. f(self: object) -> int\n\n   Text.\n\n2. f(self: object) -> str\n"
    functions = reader.functions("f", f"f(*args, **kwargs)\nOverloaded function.\n\n{overloads}")
    results = [function.returns for function in functions]
    assert [ast.unparse(result) for result in results if result] == ["builtins.int", "builtins.str"]


def test_what_python_implements_is_called_with_plain_numbers(reader: SignatureReader) -> None:
    (function,) = reader.functions("f", "f(self: object, n: typing.SupportsInt) -> None", implemented=True)
    assert ast.unparse(function.args) == "self, n: builtins.int"


@pytest.mark.parametrize(
    "doc", [None, "", "Text without a signature.", "g(self: object) -> int", "f(self: std::less<>"]
)
def test_any_other_docstring_is_refused(doc: str | None, reader: SignatureReader) -> None:
    with pytest.raises(NoSignatureError):
        reader.functions("f", doc)


def names_in(stub: str) -> set[str]:
    found = set[str]()
    for cls in (node for node in ast.parse(stub).body if isinstance(node, ast.ClassDef)):
        found.add(cls.name)
        for node in cls.body:
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                found.add(f"{cls.name}.{node.name}")
            elif isinstance(node, ast.AnnAssign | ast.Assign):
                target = node.target if isinstance(node, ast.AnnAssign) else node.targets[0]
                found.add(f"{cls.name}.{ast.unparse(target)}")
    return {name for name in found if not name.rpartition(".")[2].startswith("_")}


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_a_stub_has_every_public_name(member: Member, stubs: Stubs, tmp_path: Path) -> None:
    stub = stubs.of(member).read_text(encoding="utf-8")
    there = set(member.python("-c", PUBLIC_NAMES, member.native, scratch=tmp_path).split())
    unreadable = {line.removeprefix(UNREADABLE) for line in stub.splitlines() if line.startswith(UNREADABLE)}
    assert there - names_in(stub) == unreadable
    assert names_in(stub) <= there
    assert all(name.startswith("IPlugin") for name in unreadable)
    assert len(there) > 1000


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("mypy")


@pytest.mark.parametrize("member", MEMBERS, ids=lambda member: member.name)
def test_every_type_in_a_stub_is_known(member: Member, stubs: Stubs, cache: Path) -> None:
    command = [sys.executable, "-m", "mypy", "--config-file=", f"--cache-dir={cache}", "--output=json"]
    done = subprocess.run([*command, str(stubs.of(member))], check=False, capture_output=True, text=True)
    # A class that gives a property of its base another type, and overloads that Python can't tell apart.
    flaws = {"override", "overload-cannot-match"}
    assert {json.loads(line)["code"] for line in done.stdout.splitlines() if line} <= flaws
    assert done.returncode in {0, 1}
