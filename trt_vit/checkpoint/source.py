"""What SOURCE means: a Hugging Face id, a local checkpoint directory, or an .onnx file."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from trt_vit.checkpoint.files import needs_export_extra, refuse_links_outside
from trt_vit.errors import CheckpointError, EnvironmentFault, UsageError

Kind = Literal["hub", "directory", "onnx"]

# Pickled weights run code when they are loaded, so they are not even downloaded.
HUB_FILES = (
    "config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
)
_ADAPTER = "adapter_config.json"
HUB_TIMEOUT = 10.0
"""Seconds the first request may take; the client's own default is to wait for ever."""

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?", re.ASCII)
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files are on this machine.

    Attributes:
        kind: Where it came from.
        source: SOURCE as it was given.
        path: The directory of a Hugging Face layout, or the .onnx file.
        revision: The commit hash, for a hub checkpoint.
    """

    kind: Kind
    source: str
    path: Path
    revision: str | None = None


def resolve(source: str, *, revision: str | None = None) -> Checkpoint:
    """Find what ``source`` names, downloading it when it is a hub id.

    A path that exists wins over a hub id of the same spelling. A hub download keeps to the hub's own cache, which also
    serves when the hub cannot be reached.

    Args:
        source: Hugging Face id, directory or .onnx file.
        revision: Branch, tag or commit of a hub id.

    Raises:
        UsageError: ``source`` is neither a path that exists nor a hub id, or ``revision`` goes with a path.
        CheckpointError: The directory is not a checkpoint, or the hub does not give this one.
        EnvironmentFault: The hub cannot be reached and its cache lacks the checkpoint.
    """
    path = Path(os.path.expanduser(source))  # noqa: PTH111 - Path's own raises for an unknown user
    if source and os.path.exists(path):  # noqa: PTH110 - Path's own raises for a name that is too long
        if revision is not None:
            raise UsageError(f"{source} is a path and has no revision {revision}", hint="drop the revision")
        return _local(source, path)
    if _looks_like_a_path(source, path):
        raise UsageError(f"{source!r} does not exist", hint="pass an existing directory or .onnx file, or a hub id")
    if not _HUB_ID.fullmatch(source) or "--" in source or ".." in source:
        raise UsageError(
            f"{source!r} is neither a path that exists nor a Hugging Face id",
            hint="pass a directory, an .onnx file, or an id such as google/vit-base-patch16-224",
        )
    folder = _download(source, revision)
    return Checkpoint("hub", source, folder, folder.name if _COMMIT.fullmatch(folder.name) else None)


def _local(source: str, path: Path) -> Checkpoint:
    if path.is_dir():
        refuse_links_outside(path)
        if not (path / "config.json").is_file():
            raise CheckpointError(
                f"{source}: the directory has no config.json",
                hint="pass a directory in the Hugging Face layout: config.json, model.safetensors, "
                "preprocessor_config.json",
            )
        if (path / _ADAPTER).exists():
            message = f"{source}: {_ADAPTER} asks for the weights of another checkpoint, which is not looked for"
            raise CheckpointError(message, hint="merge the adapter into its model, and save that")
        return Checkpoint("directory", source, path)
    if path.suffix.lower() == ".onnx":
        return Checkpoint("onnx", source, path)
    raise UsageError(
        f"{source} is a file, but not an .onnx file", hint="pass the checkpoint's directory, or an .onnx file"
    )


def _looks_like_a_path(source: str, path: Path) -> bool:
    return (
        source.startswith(("/", "./", "../", "~"))
        or source.endswith((".onnx", ".yaml", ".yml", "/"))
        or (path.parent != Path() and path.parent.exists())
    )


def _download(repo: str, revision: str | None) -> Path:
    """Fetch the files of a hub checkpoint, or find them in the hub's cache.

    The first request is made apart from the download because only it takes a time limit.
    """
    with needs_export_extra():
        import huggingface_hub
        from huggingface_hub.errors import (  # type: ignore[attr-defined]  # HTTPError is not re-exported
            GatedRepoError,
            HFValidationError,
            HTTPError,  # httpx's or httpx2's, by the hub's version
            RepositoryNotFoundError,
            RevisionNotFoundError,
        )

    try:
        commit = huggingface_hub.model_info(repo, revision=revision, timeout=HUB_TIMEOUT).sha
        return Path(huggingface_hub.snapshot_download(repo, revision=commit, allow_patterns=list(HUB_FILES)))
    except GatedRepoError as error:
        raise CheckpointError(
            f"{repo}: access to this hub repository must be granted first",
            hint=f"accept its terms at https://huggingface.co/{repo}, then run `hf auth login` or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise CheckpointError(
            f"{repo}: no such directory here and no such repository on the hub",
            hint="check the spelling; for a private repository run `hf auth login` or set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise CheckpointError(
            f"{repo}: the hub repository has no revision {revision}", hint="name an existing branch, tag or commit"
        ) from error
    except HFValidationError as error:
        raise UsageError(
            f"{repo!r} is not a Hugging Face id", hint="an id looks like google/vit-base-patch16-224"
        ) from error
    except (HTTPError, OSError) as error:
        reason = f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else 'no details'}"
    return _cached(repo, revision, reason)


def _cached(repo: str, revision: str | None, reason: str) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            huggingface_hub.snapshot_download(
                repo, revision=revision, allow_patterns=list(HUB_FILES), local_files_only=True
            )
        )
    except LocalEntryNotFoundError as error:
        raise EnvironmentFault(
            f"{repo}: the Hugging Face hub cannot be reached and its cache lacks the checkpoint ({reason})",
            hint=f"run `hf download {repo}` where the hub is reachable and pass the directory, "
            "or check HF_ENDPOINT and HF_HUB_OFFLINE",
        ) from error
