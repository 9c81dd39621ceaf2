"""The real Python bindings of each member of the TensorRT family, and the stubs made from them.

TensorRT's bindings are unpacked under build/bindings by `make bindings`, without TensorRT's own libraries, which are
gigabytes; TensorRT for RTX is one of the project's extras and is installed whole.
"""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.conformance.placeholder import shared_library

ROOT = Path(__file__).parents[2]
_LIBRARIES = ("libnvinfer", "libnvinfer_plugin", "libnvonnxparser")
_LINKED = (
    "createInferBuilder_INTERNAL",
    "createInferRefitter_INTERNAL",
    "createInferRuntime_INTERNAL",
    "createNvOnnxParserRefitter_INTERNAL",
    "createNvOnnxParser_INTERNAL",
    "getBuilderPluginRegistry",
    "getNvOnnxParserVersion",
    "getPluginRegistry",
    "initLibNvInferPlugins",
)


@dataclass(frozen=True)
class Member:
    """A member of the TensorRT family.

    Attributes:
        name: For messages.
        major: Version of TensorRT's libraries that its bindings link against; None where they come with it.
    """

    name: str
    major: int | None

    @property
    def native(self) -> str:
        """Extension module of the bindings."""
        return "tensorrt_bindings.tensorrt" if self.major else "tensorrt_rtx_bindings.tensorrt_rtx"

    @property
    def directory(self) -> Path:
        """Where the bindings are unpacked to."""
        return ROOT / "build" / "bindings" / f"tensorrt-{self.major}"

    @property
    def lacks(self) -> str | None:
        """What must be done before the member can be looked at; None when nothing."""
        if self.major is None:
            return (
                None if find_spec("tensorrt_rtx_bindings") else "TensorRT for RTX is missing: pip install -e '.[rtx]'"
            )
        found = (self.directory / "tensorrt_bindings").is_dir()
        return None if found else f"{self.directory.relative_to(ROOT)} is missing: make bindings"

    def python(self, *arguments: str, scratch: Path) -> str:
        """Return what a Python that can import the bindings prints."""
        environment = dict(os.environ)
        if self.major:
            environment["PYTHONPATH"] = os.pathsep.join((str(ROOT), str(self.directory)))
            environment["LD_LIBRARY_PATH"] = str(self._placeholders(scratch))
        command = [sys.executable, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, env=environment, cwd=ROOT).stdout

    def _placeholders(self, scratch: Path) -> Path:
        directory = scratch / f"libraries-{self.major}"
        directory.mkdir(exist_ok=True)
        for name in _LIBRARIES:
            (directory / f"{name}.so.{self.major}").write_bytes(shared_library(_LINKED))
        return directory


TENSORRT_10 = Member("TensorRT 10", 10)
TENSORRT_11 = Member("TensorRT 11", 11)
RTX = Member("TensorRT for RTX", None)
MEMBERS = (TENSORRT_10, TENSORRT_11, RTX)


class Stubs:
    """The stubs of the members, each made once and only when a test asks for it.

    Args:
        directory: Where they are kept.
    """

    def __init__(self, directory: Path) -> None:
        self._directory = directory

    def of(self, member: Member) -> Path:
        """Return the stub of one member.

        It skips the test where the member's bindings are not there.
        """
        if member.lacks:
            pytest.skip(member.lacks)
        path = self._directory / member.name.replace(" ", "-") / "bindings.pyi"
        if not path.exists():
            path.parent.mkdir(parents=True)
            text = member.python("-m", "tests.conformance.stubs", member.native, scratch=path.parent)
            path.write_text(text, encoding="utf-8")
        return path

    def search_path(self, member: Member) -> Path:
        """Return a directory in which ``tensorrt`` is a member, and ``tensorrt_rtx`` is TensorRT for RTX.

        Looked at as TensorRT for RTX, both are the same module, as they are when a program runs with it.
        """
        directory = self._directory / "search" / member.name.replace(" ", "-")
        if not directory.exists():
            both = {"tensorrt_rtx": self.of(RTX).read_text(encoding="utf-8"), "tensorrt": _SAME_AS_RTX}
            if member != RTX:
                both["tensorrt"] = self.of(member).read_text(encoding="utf-8")
            for name, text in both.items():
                (directory / name).mkdir(parents=True)
                (directory / name / "__init__.pyi").write_text(text, encoding="utf-8")
        return directory


_SAME_AS_RTX = "from tensorrt_rtx import *\nfrom tensorrt_rtx import __version__ as __version__\n"
