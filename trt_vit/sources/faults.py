"""What keeps a file behind a URL from being read: something about that file, or a server that fails.

Whoever serves files raises nearly anything, and often with the whole URL in the message. All of it becomes
``RemoteError`` here, with a reason on one line that holds no secret. What is not known to be about one file is taken
for an outage: that can be tried again, while a row that says the wrong thing stays.
"""

from __future__ import annotations

import errno
import socket
import time
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from trt_vit.errors import TrtVitError
from trt_vit.sources.urls import scheme_of, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

WAITS = (0.2, 1.0, 3.0)
"""Seconds before a server that failed is asked again."""

_PATIENT = frozenset(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss"))
"""Schemes whose clients ask again themselves, five times and more."""

_REFUSES, _FAILS = range(400, 500), range(500, 600)
"""The statuses by which a server says that the request is at fault, or that it is."""
_TRY_LATER = frozenset((407, 408, 425, 429))
"""What HTTP counts among the errors of who asks, though another time may have another answer."""
_RUN_OUT = frozenset(("ExpiredToken", "RequestTimeTooSkewed"))
"""What S3 says of credentials that hold for no file any more."""

_OF_ONE_FILE = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_NUMBERS_OF_ONE_FILE = frozenset((errno.EINVAL, errno.ENAMETOOLONG, errno.EFBIG, errno.ELOOP))
_NO_ANSWER = (ValueError, LookupError, MemoryError)
"""What a name that means nothing comes to."""

_REASON = 200


class RemoteError(OSError):
    """What kept a file from being found, read or written, on one line and without secrets."""


class RemoteMissingError(RemoteError):
    """There is no such file."""


class RemoteOutageError(RemoteError):
    """The server fails, or the way to it does, which says nothing about the file."""


@contextmanager
def failures() -> Iterator[None]:
    """Turn what a file system raises in the block into ``RemoteError``.

    Raises:
        RemoteError: The block failed.
    """
    try:
        yield
    except (TrtVitError, RemoteError):
        raise
    except FileNotFoundError as error:
        cause = error.__cause__  # the web's file system says of whatever it meets that there is no such file
        if isinstance(cause, Exception) and _is_outage(cause):
            raise RemoteOutageError(_reason(cause)) from cause
        raise RemoteMissingError("no such file") from error
    except Exception as error:  # every protocol has errors of its own, and fsspec passes them on
        kind = RemoteOutageError if _is_outage(error) else RemoteError
        raise kind(_reason(error)) from error


def patiently(url: str, ask: Callable[[], T]) -> T:
    """Do something with a URL's server, a few times if it fails. A time limit is reached once: it was long enough.

    Raises:
        RemoteError: As ``ask`` does, the last time.
    """
    for wait in () if scheme_of(url) in _PATIENT else WAITS:
        try:
            return ask()
        except RemoteOutageError as error:
            if isinstance(error.__cause__, TimeoutError):
                raise
        time.sleep(wait)
    return ask()


def _is_outage(error: Exception) -> bool:
    status, code = _answer_of(error)
    if code in _RUN_OUT:
        return True
    if status is not None:
        return status in _FAILS or status in _TRY_LATER
    if isinstance(error, OSError):
        return not isinstance(error, _OF_ONE_FILE) and error.errno not in _NUMBERS_OF_ONE_FILE
    return not isinstance(error, _NO_ANSWER)


def _answer_of(error: BaseException) -> tuple[int | None, str | None]:
    """Return the status of HTTP that an error stands for, from 400 on, and what S3 calls it; None where there is none.

    aiohttp has ``status``, Azure ``status_code``, gcsfs ``code``; others have the response, which with botocore is a
    ``dict`` of the error that s3fs has made another of.
    """
    for place in (error, error.__cause__):
        response = getattr(place, "response", None)
        if isinstance(response, dict):
            found = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            return (found if _is_status(found) else None), response.get("Error", {}).get("Code")
        for owner, name in ((place, "status"), (place, "status_code"), (place, "code"), (response, "status_code")):
            found = getattr(owner, name, None)
            if _is_status(found):
                return found, None
    return None, None


def _is_status(found: object) -> bool:
    return isinstance(found, int) and (found in _REFUSES or found in _FAILS)


def _reason(error: Exception) -> str:
    """Return why, on one line."""
    if isinstance(error, PermissionError):
        return "permission denied"
    if isinstance(error, TimeoutError):
        return "timed out"
    status = getattr(error, "status", None)
    if isinstance(status, int):
        return f"HTTP {status} {getattr(error, 'message', '')}".strip()[:_REASON]
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if _is_unreachable(error):
        text = f"the server cannot be reached: {text}"
    return " ".join(without_secrets(text).split())[:_REASON]


def _is_unreachable(error: Exception) -> bool:
    """Tell whether there was no connection, by what aiohttp, botocore, httpx and requests call that."""
    return isinstance(error, (ConnectionError, socket.gaierror)) or "Connect" in type(error).__name__
