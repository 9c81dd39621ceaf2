"""Reads the C++ signatures that pybind11 writes into docstrings, as Python definitions with the types Python may pass.

What is true of every binding and not said there is added:

* a whole number is ``SupportsIndex``, since pybind11 takes no float for one; where ``None`` is the default it
  may be passed;
* a class that is built from one plain value (``Dims`` from a sequence) takes that value's place;
* a parameter without a name (pybind11 prints ``arg0``) can't be given by keyword;
* an object that is returned may be ``None``: as ``X | Any`` its attributes are checked and a test for
  ``None`` is allowed;
* the methods of an interface to implement in Python are called by TensorRT, with plain ``int``.
"""

from __future__ import annotations

import ast
import re
from types import WrapperDescriptorType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import ModuleType

_OVERLOAD = re.compile(r"^\d+\. (?=\w+\()", re.MULTILINE)
_CPP_NAME = re.compile(r"[A-Za-z_]\w*(?:::\w+)+(?:<[^<>]*>)?")
_REPR = re.compile(r"(?<== )<[^<>]*>")
_DEFAULT = re.compile(r" = [^,)]+")  # C++ lets a parameter without one follow: then none can be left out
_UNNAMED = re.compile(r"arg\d+")
_BUILTINS = {"bool", "bytes", "dict", "float", "int", "list", "object", "set", "str", "tuple"}
_PLAIN = ("builtins.str", "collections.", "typing_extensions.")


class NoSignatureError(ValueError):
    """A docstring doesn't begin with a signature in the form that pybind11 writes."""


class SignatureReader:
    """Turns docstrings of one extension module into definitions whose types are names of that module's stub."""

    def __init__(self, native: ModuleType) -> None:
        self._native = native

    def functions(self, name: str, doc: str | None, *, implemented: bool = False) -> list[ast.FunctionDef]:
        """Return one definition, or one for each overload.

        Args:
            name: Which function's docstring it is.
            doc: The docstring.
            implemented: It is a method that Python implements and TensorRT calls.

        Raises:
            NoSignatureError: The docstring has another form.
        """
        functions = self._as_written(name, doc)
        for function in functions:
            self._retype(function, implemented=implemented)
        return functions

    def read(self, doc: str | None) -> str:
        """Return the type that a property's getter returns."""
        return ast.unparse(self._accessor(doc).returns or ast.Constant(None))

    def assigned(self, doc: str | None) -> str:
        """Return the type that a property's setter takes."""
        return ast.unparse(_parameters(self._accessor(doc))[-1].annotation or ast.Constant(None))

    def is_interface(self, cls: type) -> bool:
        """Return whether Python may derive from a class: its name says so, and it is built from nothing."""
        return cls.__name__.startswith("I") and [] in self._constructors(cls)

    def _accessor(self, doc: str | None) -> ast.FunctionDef:
        doc = doc or ""
        return self.functions("accessor", f"accessor{doc[doc.find('(') :]}")[0]

    def _as_written(self, name: str, doc: str | None) -> list[ast.FunctionDef]:
        doc = doc or ""
        texts = _OVERLOAD.split(doc)[1:] if "\nOverloaded function.\n" in doc else [doc]
        lines = [_REPR.sub("...", _CPP_NAME.sub(self._python_name, text.partition("\n")[0])) for text in texts]
        functions = [_parsed(line) or _parsed(_DEFAULT.sub("", line)) for line in lines]
        found = [each for each in functions if each and each.name == name and each.returns]
        if not found or len(found) < len(lines):
            raise NoSignatureError(f"{name}: {lines}")
        return found

    def _constructors(self, cls: type) -> list[list[ast.arg]]:
        """The parameters of each constructor, without self; none where only TensorRT makes the objects of a class."""
        constructor = vars(cls)["__init__"]
        found = (
            [] if isinstance(constructor, WrapperDescriptorType) else self._as_written("__init__", constructor.__doc__)
        )
        return [_parameters(each)[1:] for each in found]

    def _python_name(self, match: re.Match[str]) -> str:
        # nvonnxparser::IParserError is ParserError in Python.
        name = match[0].rpartition("::")[2]
        known = [each for each in (name, name.removeprefix("I")) if hasattr(self._native, each)]
        return f"{self._native.__name__}.{known[0]}" if known else "object"

    def _class(self, name: str) -> type | None:
        found: object = self._native
        for part in name.split("."):
            found = getattr(found, part, None)
        return found if isinstance(found, type) and not is_enum(found) else None

    def _retype(self, function: ast.FunctionDef, *, implemented: bool) -> None:
        arguments = function.args
        unnamed = [index for index, each in enumerate(arguments.args) if _UNNAMED.fullmatch(each.arg)]
        if unnamed:
            arguments.posonlyargs += arguments.args[: unnamed[-1] + 1]
            del arguments.args[: unnamed[-1] + 1]
        every = _parameters(function)
        defaults = [None] * (len(every) - len(arguments.defaults)) + arguments.defaults
        for argument, default in zip(every, defaults, strict=True):
            self._retype_parameter(argument, default, implemented=implemented)
        arguments.defaults = [ast.Constant(...) for _ in arguments.defaults]
        returned = self._named(function.returns, exact=True)
        function.returns = _expression(f"{returned} | typing.Any" if self._class(returned) else returned)

    def _retype_parameter(self, argument: ast.arg, default: ast.expr | None, *, implemented: bool) -> None:
        if argument.arg == "self":
            argument.annotation = None
        elif argument.annotation:
            accepted = [self._named(argument.annotation, exact=implemented)]
            if not implemented:
                accepted += self._built_from(accepted[0])
            if isinstance(default, ast.Constant) and default.value is None:
                accepted.append("None")
            argument.annotation = _expression(" | ".join(accepted))

    def _built_from(self, name: str) -> list[str]:
        cls = self._class(name)
        alone = [each[0].annotation for each in (self._constructors(cls) if cls else []) if len(each) == 1]
        return [text for text in (self._named(each, exact=False) for each in alone) if text.startswith(_PLAIN)]

    def _named(self, annotation: ast.expr | None, *, exact: bool) -> str:
        return ast.unparse(_Names(self._native.__name__, exact=exact).visit(annotation or ast.Name("object")))


def is_enum(cls: type) -> bool:
    """Whether a class is one of pybind11's enumerations."""
    return hasattr(cls, "__members__")


def _parameters(function: ast.FunctionDef) -> list[ast.arg]:
    return function.args.posonlyargs + function.args.args


def _parsed(line: str) -> ast.FunctionDef | None:
    try:
        (statement,) = ast.parse(f"def {line}: ...").body
    except SyntaxError:
        return None
    return statement if isinstance(statement, ast.FunctionDef) else None


def _expression(text: str) -> ast.expr:
    return ast.parse(text, mode="eval").body


class _Names(ast.NodeTransformer):
    """Replaces the names of docstrings by those of the stub."""

    def __init__(self, module: str, *, exact: bool) -> None:
        self._module = module
        self._exact = exact

    def visit_Attribute(self, node: ast.Attribute) -> ast.expr:
        text = ast.unparse(node).removeprefix(f"{self._module}.")
        if text == "typing.SupportsInt":
            text = "builtins.int" if self._exact else "typing.SupportsIndex"
        elif text.startswith("numpy."):
            text = "typing_extensions.Buffer"
        return _expression(text)

    def visit_Name(self, node: ast.Name) -> ast.expr:
        # A module of TensorRT has a variable named bool.
        return _expression(f"builtins.{node.id}") if node.id in _BUILTINS else node
