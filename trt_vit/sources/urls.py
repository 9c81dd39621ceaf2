"""URLs: which texts are some, and how one is shown to others without what it must not tell them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

from trt_vit.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

SEPARATOR = "::"
"""Between a file of many images and one of them, in the name of a row. No such file has it in its own name, so a row's
name is cut at the first one."""

STANDARD_INPUT = "-"
"""The input that is a list on standard input."""

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")
_IN_TEXT = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://[^\s'\"<>()]+")
_WEB = frozenset(("http", "https"))
_CONTAINER_BEFORE_AT = frozenset(("abfs", "abfss", "wasb", "wasbs"))
"""Azure's schemes have the container where others have a user."""

_SECRET_PREFIXES = ("x-amz-", "x-goog-", "x-ms-", "x-oss-", "q-")
_SECRET_PARTS = ("signature", "credential", "secret", "passw", "token", "accesskey", "accessid", "apikey")
_SECRET_WORDS = frozenset(
    ("sig", "sign", "key", "auth", "authorization", "pass", "pwd", "jwt", "hmac", "expires", "policy", "session")
)
_SHARED_ACCESS = frozenset(
    "sv ss srt sp se st spr sr sip si skoid sktid skt ske sks skv saoid suoid scid sdd".split()  # noqa: SIM905
)
"""The parameters of Azure's shared access signatures, which mean nothing without ``sig``."""


def is_url(text: str) -> bool:
    """Tell whether a text is a URL, not a path."""
    return "://" in text and _SCHEME.match(text) is not None


def scheme_of(url: str) -> str:
    """Return a URL's scheme in lower case."""
    return url.partition("://")[0].lower()


def is_web(url: str) -> bool:
    """Tell whether a URL is of the web, where ``?`` begins a query; elsewhere it may be part of a name."""
    return scheme_of(url) in _WEB


def refuse_chained(url: str) -> None:
    """Refuse a URL of several file systems in each other, such as ``zip://a.jpg::s3://bucket/b.zip``.

    Raises:
        UsageError: It is one.
    """
    if SEPARATOR in url:
        message = f"cannot open {public_url(url)!r}: it holds {SEPARATOR}"
        raise UsageError(message, hint="name the file itself; of archives, .tar and .parquet are read")


def path_of(name: str) -> str:
    """Return a path, or a URL without its query: what ends in the file's suffix."""
    return re.split(r"[?#]", name, maxsplit=1)[0] if is_web(name) else name


def public_url(url: str) -> str:
    """Return a URL without secrets, for rows, messages and plans: the same however it was signed.

    Left out are a user and password, the parameters of a query that sign or authorise, and a fragment.
    """
    scheme, _, rest = url.partition("://")
    host, slash, path = rest.partition("/")
    user, at, host = host.rpartition("@")
    if at and scheme.lower() in _CONTAINER_BEFORE_AT:
        host = f"{user.partition(':')[0]}@{host}"
    rest = host + slash + path
    if is_web(url):
        rest = rest.partition("#")[0]
    path, _, query = rest.partition("?")
    kept = _without_secrets(query.split("&")) if query else []
    return f"{scheme}://{path}" + ("?" + "&".join(kept) if kept else "")


def without_secrets(text: str) -> str:
    """Return a text with every URL in it as ``public_url`` has it."""
    return _IN_TEXT.sub(lambda found: public_url(found[0]), text)


def _without_secrets(parameters: Sequence[str]) -> list[str]:
    names = {parameter.partition("=")[0].lower() for parameter in parameters}
    hidden = {name for name in names if _is_secret(name)} | (_SHARED_ACCESS if "sig" in names else set())
    return [parameter for parameter in parameters if parameter.partition("=")[0].lower() not in hidden]


def _is_secret(name: str) -> bool:
    return (
        name.startswith(_SECRET_PREFIXES)
        or any(part in name for part in _SECRET_PARTS)
        or not _SECRET_WORDS.isdisjoint(re.split(r"[^a-z0-9]+", name))
    )
