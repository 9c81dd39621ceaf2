"""Writes the type stub of a TensorRT module, from the module itself. A script, for a process that can load the module.

    python -m tests.conformance.stubs tensorrt_bindings.tensorrt > __init__.pyi

What has no readable signature is left out, but for its name in a comment at the end: whoever uses it is told.
"""

from __future__ import annotations

import ast
import ctypes
import importlib
import sys
from types import BuiltinFunctionType, FunctionType
from typing import TYPE_CHECKING, Any

from tests.conformance.signatures import NoSignatureError, SignatureReader, is_enum

if TYPE_CHECKING:
    from collections.abc import Iterator
    from types import ModuleType

_IMPORTS = ["import builtins", "import collections.abc", "import typing", "import typing_extensions"]
# Whatever `object` has is inherited, and what only the interpreter calls is nobody's interface.
_DUNDERS = {"__init__", "__call__", "__contains__", "__getitem__", "__index__", "__int__", "__iter__", "__len__"} | {
    f"__{operator}__" for operator in ("and", "ge", "gt", "invert", "le", "lt", "or", "rand", "ror", "rxor", "xor")
}
UNREADABLE = "# unreadable: "
_GETBUFFER = 1  # Py_bf_getbuffer of CPython's stable ABI


class StubWriter:
    """The stub of one extension module and of what the package around it adds in Python."""

    def __init__(self, native: ModuleType, package: ModuleType) -> None:
        self._native = native
        self._package = package
        self._reader = SignatureReader(native)
        self._unreadable: list[str] = []

    def text(self) -> str:
        """Return the text of the stub."""
        lines = [*_IMPORTS, "__version__: builtins.str"]
        for name, value in sorted(vars(self._package).items()):
            if not name.startswith("_"):
                lines += self._module_member(name, value)
        lines += [f"{UNREADABLE}{name}" for name in self._unreadable]
        return "\n".join(lines) + "\n"

    def _module_member(self, name: str, value: object) -> Iterator[str]:
        if isinstance(value, type) and value.__module__ == self._native.__name__:
            yield from self._class(value) if value.__qualname__ == name else [f"{name} = {value.__qualname__}"]
        elif isinstance(value, BuiltinFunctionType):
            yield from self._function(name, name, value.__doc__)
        elif isinstance(value, FunctionType):
            yield f"def {name}(*arguments: builtins.object, **keywords: builtins.object) -> typing.Any: ..."
        elif is_enum(type(value)):
            yield f"{name}: {type(value).__qualname__}"

    def _class(self, cls: type) -> Iterator[str]:
        bases = [base.__qualname__ for base in cls.__bases__ if base.__module__ == self._native.__name__]
        yield f"class {cls.__name__}({', '.join(bases)}):"
        yield from (f"    {line}" for line in self._class_body(cls))

    def _class_body(self, cls: type) -> Iterator[str]:
        if is_enum(cls):
            yield f"__members__: typing.ClassVar[builtins.dict[builtins.str, {cls.__qualname__}]]"
        if has_buffer(cls):
            yield "def __buffer__(self, flags: builtins.int, /) -> builtins.memoryview: ..."
        if "__getitem__" in vars(cls) and not hasattr(cls, "__iter__"):
            item = self._reader.functions("__getitem__", vars(cls)["__getitem__"].__doc__)[0].returns
            yield f"def __iter__(self) -> collections.abc.Iterator[{ast.unparse(item or ast.Constant(None))}]: ..."
        for name, value in sorted(vars(cls).items()):
            if name in _DUNDERS or not name.startswith("_"):
                yield from self._class_member(cls, name, value)

    def _class_member(self, cls: type, name: str, value: Any) -> Iterator[str]:
        kind = type(value).__name__
        where = f"{cls.__qualname__}.{name}"
        if isinstance(value, type):
            yield from self._class(value) if value.__qualname__ == where else [f"{name} = {value.__qualname__}"]
        elif kind == "pybind11_static_property":
            yield f"{name}: typing.ClassVar[{self._reader.read(value.fget.__doc__)}]"
        elif isinstance(value, property):
            yield from self._property(name, value)
        elif isinstance(value, staticmethod):
            yield from self._function(where, name, value.__func__.__doc__, static=True)
        elif kind == "instancemethod":
            implemented = name != "__init__" and self._reader.is_interface(cls)
            yield from self._function(where, name, value.__doc__, implemented=implemented)
        elif name == "__init__":
            yield "def __init__(self, only_tensorrt_makes_these: typing.Never, /) -> None: ..."
        elif is_enum(type(value)):
            yield f"{name}: typing.ClassVar[{type(value).__qualname__}]"

    def _property(self, name: str, value: property) -> Iterator[str]:
        # What can only be written has nothing to read; what the package adds in Python says nothing of its type.
        result = "typing.Any" if isinstance(value.fget, FunctionType) else "builtins.object"
        if value.fget and value.fget.__doc__:
            result = self._reader.read(value.fget.__doc__)
        yield "@builtins.property"
        yield f"def {name}(self) -> {result}: ..."
        if value.fset:
            yield f"@{name}.setter"
            yield f"def {name}(self, value: {self._reader.assigned(value.fset.__doc__)}) -> None: ..."

    def _function(
        self, where: str, name: str, doc: str | None, *, static: bool = False, implemented: bool = False
    ) -> Iterator[str]:
        try:
            found = self._reader.functions(name, doc, implemented=implemented)
        except NoSignatureError:
            self._unreadable.append(where)
            return
        for function in found:
            if len(found) > 1:
                yield "@typing.overload"
            if static:
                yield "@builtins.staticmethod"
            yield ast.unparse(function).replace("\n    ", " ")


def has_buffer(cls: type) -> bool:
    """Whether the instances of a class are buffers, which Python 3.11 has no attribute for."""
    get_slot = ctypes.pythonapi.PyType_GetSlot
    get_slot.argtypes, get_slot.restype = [ctypes.py_object, ctypes.c_int], ctypes.c_void_p
    return bool(get_slot(cls, _GETBUFFER))


def main() -> None:
    """Print the stub of the native module that is named, with what the package around it adds."""
    native = importlib.import_module(sys.argv[1])
    sys.stdout.write(StubWriter(native, sys.modules[sys.argv[1].partition(".")[0]]).text())


if __name__ == "__main__":
    main()
