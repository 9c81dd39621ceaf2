"""The one tree of errors a user can meet.

Every error says what is wrong, names the file or value, and carries a hint: the fix. The class decides the exit code of
the command line, so a script can tell a typo from a broken driver without reading messages.
"""

from __future__ import annotations

from typing import ClassVar

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_FELL_SHORT = 3
EXIT_ENVIRONMENT = 4
EXIT_ARTIFACT = 5
EXIT_INTERRUPTED = 130
EXIT_TERMINATED = 143


class TrtVitError(Exception):
    """Base of every error that trt_vit raises on purpose.

    Args:
        message: What is wrong, on one line, naming the file or value.
        hint: What the user can do about it, on one line.
    """

    exit_code: ClassVar[int] = EXIT_FAILED

    def __init__(self, message: str, *, hint: str) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} ({self.hint})"


class UsageError(TrtVitError):
    """A flag, variable, recipe or configuration key that means nothing, or an argument that names nothing."""

    exit_code = EXIT_USAGE


class InputError(TrtVitError):
    """Inputs that exist but hold nothing to classify."""


class OutputError(TrtVitError):
    """A result that cannot be written."""


class CheckpointError(TrtVitError):
    """A checkpoint that cannot be read, or that is not an image classifier of the ViT family."""


class ExportError(TrtVitError):
    """An ONNX export that failed or that disagrees with the model it came from."""


class EngineError(TrtVitError):
    """An engine that cannot be built, or that disagrees with its reference."""


class EnvironmentFault(TrtVitError):  # noqa: N818 - Python has an EnvironmentError of its own
    """A package, driver, device or server that is missing or does not work."""

    exit_code = EXIT_ENVIRONMENT


class OutOfDeviceMemory(EnvironmentFault):
    """Memory on a GPU, or memory that a GPU copies from, that there is not enough of: less at once may still work."""


class ArtifactError(TrtVitError):
    """A bundle whose files are missing, changed, or made for something else."""

    exit_code = EXIT_ARTIFACT


class ImageError(Exception):
    """One image that cannot be decoded: it costs its own row, never the run.

    The message is written to the row's ``error`` column, so it is one line and names no path.
    """
