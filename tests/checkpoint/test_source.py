from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any, NoReturn

import pytest

from trt_vit.checkpoint.source import HUB_FILES, HUB_TIMEOUT, resolve
from trt_vit.errors import CheckpointError, EnvironmentFault, TrtVitError, UsageError

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

huggingface_hub = pytest.importorskip("huggingface_hub", reason="needs the export extra")
errors = pytest.importorskip("huggingface_hub.errors", reason="needs the export extra")
# httpx or httpx2, by the version of the hub's package
client = importlib.import_module(errors.HTTPError.__module__.partition(".")[0])

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def _response(status: int) -> Any:
    """A response such as the hub's errors must hold."""
    return client.Response(status, request=client.Request("GET", "https://hub.invalid/api/models/org/name"))


def _raising(error: Exception) -> Callable[..., NoReturn]:
    def call(*_args: Any, **_kwargs: Any) -> NoReturn:
        raise error

    return call


def test_directory(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    found = resolve(str(tmp_path))
    assert (found.kind, found.source, found.path, found.revision) == ("directory", str(tmp_path), tmp_path, None)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "notes.txt"])
def test_directory_with_a_link_to_a_file_elsewhere(tmp_path: Path, name: str) -> None:
    (tmp_path / "checkpoint").mkdir()
    (tmp_path / "checkpoint" / "config.json").write_text("{}")
    (tmp_path / "secret").write_text("{}")
    (tmp_path / "checkpoint" / name).unlink(missing_ok=True)
    (tmp_path / "checkpoint" / name).symlink_to(tmp_path / "secret")
    with pytest.raises(CheckpointError, match=f"{name}: is a link to a file outside of"):
        resolve(str(tmp_path / "checkpoint"))


def test_directory_with_the_weights_of_another_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": "/elsewhere"}')
    with pytest.raises(CheckpointError, match=r"adapter_config\.json asks for the weights of another checkpoint"):
        resolve(str(tmp_path))


def test_onnx_file(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"")
    assert resolve(str(path)).kind == "onnx"


def test_path_that_exists_wins_over_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    (tmp_path / "org" / "name" / "config.json").write_text("{}")
    assert resolve("org/name").kind == "directory"


def test_home_is_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "config.json").write_text("{}")
    assert resolve("~/vit").path == tmp_path / "vit"


@pytest.mark.parametrize("source", ["./missing", "../missing", "/nowhere/vit", "~/missing-checkpoint", "missing.onnx"])
def test_missing_path_is_a_usage_error(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="does not exist") as caught:
        resolve(source)
    assert source in caught.value.message
    assert caught.value.hint


def test_missing_path_in_existing_directory_is_not_a_hub_id(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models").mkdir()
    with pytest.raises(UsageError, match="'models/vit' does not exist"):
        resolve("models/vit")


@pytest.mark.parametrize("source", ["", "a b", "org/name/more", "org//name", "-vit", "org/na..me", "vit\n", "naïve"])
def test_neither_path_nor_hub_id(source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub, "model_info", _raising(AssertionError("asked the hub")))
    with pytest.raises(UsageError) as caught:
        resolve(source)
    assert caught.value.hint


def test_directory_without_config(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"no config\.json") as caught:
        resolve(str(tmp_path))
    assert "model.safetensors" in caught.value.hint


def test_other_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"")
    with pytest.raises(UsageError, match=r"not an \.onnx file"):
        resolve(str(path))


def test_revision_of_a_path(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has no revision v1"):
        resolve(str(tmp_path), revision="v1")


def test_hub_download_is_pinned_and_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: dict[str, Any] = {}
    folder = tmp_path / COMMIT
    folder.mkdir()

    class Info:
        sha = COMMIT

    def model_info(repo: str, **options: Any) -> Info:
        asked["info"] = (repo, options)
        return Info()

    def snapshot_download(repo: str, **options: Any) -> str:
        asked["download"] = (repo, options)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "model_info", model_info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = resolve("org/name", revision="v1")
    assert (found.kind, found.path, found.revision) == ("hub", folder, COMMIT)
    assert asked["info"] == ("org/name", {"revision": "v1", "timeout": HUB_TIMEOUT})
    assert asked["download"] == ("org/name", {"revision": COMMIT, "allow_patterns": list(HUB_FILES)})


def test_no_pickle_is_downloaded() -> None:
    wanted = ["config.json", "preprocessor_config.json", "model.safetensors", "model-00001-of-00002.safetensors"]
    unwanted = ["pytorch_model.bin", "model.bin", "tf_model.h5", "code.py", "onnx/model.safetensors", "README.md"]
    assert (
        list(huggingface_hub.utils.filter_repo_objects([*wanted, *unwanted], allow_patterns=list(HUB_FILES))) == wanted
    )


@pytest.mark.parametrize(
    ("refusal", "message", "hint"),
    [
        (errors.RepositoryNotFoundError("no", response=_response(404)), "no such repository", "check the spelling"),
        (errors.GatedRepoError("no", response=_response(403)), "must be granted", "hf auth login"),
        (errors.RevisionNotFoundError("no", response=_response(404)), "no revision v9", "commit"),
    ],
)
@pytest.mark.parametrize("call", ["model_info", "snapshot_download"])
def test_refusals_of_the_hub(
    refusal: Exception, message: str, hint: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Info:
        sha = COMMIT

    monkeypatch.setattr(huggingface_hub, "model_info", lambda *_args, **_kwargs: Info())
    monkeypatch.setattr(huggingface_hub, call, _raising(refusal))
    with pytest.raises(CheckpointError, match=message) as caught:
        resolve("org/name", revision="v9")
    assert "org/name" in caught.value.message
    assert hint in caught.value.hint


def _outages() -> list[Exception]:
    return [
        client.ConnectError("[Errno -2] Name or service not known"),
        client.ConnectTimeout("timed out"),
        client.ProxyError("407"),
        errors.OfflineModeIsEnabled("offline"),
        errors.HfHubHTTPError("503 Service Unavailable", response=_response(503)),
    ]


@pytest.mark.parametrize("outage", _outages(), ids=lambda error: type(error).__name__)
def test_unreachable_hub_and_empty_cache(outage: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "model_info", _raising(outage))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", _raising(errors.LocalEntryNotFoundError("not cached")))
    with pytest.raises(EnvironmentFault, match="cannot be reached") as caught:
        resolve("org/name")
    assert "org/name" in caught.value.message
    assert "\n" not in str(caught.value)
    assert "hf download org/name" in caught.value.hint
    assert caught.value.exit_code == 4


def test_unreachable_hub_falls_back_to_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / COMMIT

    def snapshot_download(_repo: str, *, local_files_only: bool = False, **_options: Any) -> str:
        assert local_files_only
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "model_info", _raising(errors.OfflineModeIsEnabled("offline")))
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
    found = resolve("org/name")
    assert (found.path, found.revision) == (folder, COMMIT)


def test_missing_hub_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(EnvironmentFault, match="huggingface_hub") as caught:
        resolve("org/name")
    assert caught.value.hint == "pip install 'trt-vit[export]'"
    assert isinstance(caught.value, TrtVitError)
