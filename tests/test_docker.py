"""The Dockerfiles, as far as they can be looked at without a container engine."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCKERFILES = sorted((ROOT / "docker").glob("Dockerfile.*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(path: Path) -> list[tuple[str, str]]:
    """Return a Dockerfile's instructions and their arguments, each on one line, without comments."""
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    joined = "\n".join(lines).replace("\\\n", " ")
    pairs = (line.split(maxsplit=1) for line in joined.splitlines() if line.strip())
    return [(name, " ".join(argument.split())) for name, argument in pairs]


def arguments(path: Path, wanted: str) -> list[str]:
    return [argument for name, argument in instructions(path) if name == wanted]


def copied(path: Path) -> list[str]:
    """Return what a Dockerfile copies from the project."""
    return [
        source
        for argument in arguments(path, "COPY")
        if not argument.startswith("--from")
        for source in argument.split()[:-1]
    ]


def test_there_is_one_for_a_cpu_and_one_for_tensorrt() -> None:
    assert [path.name for path in DOCKERFILES] == ["Dockerfile.cpu", "Dockerfile.tensorrt"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_is_sent_to_the_engine(path: Path) -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert "*" in lines
    assert copied(path)
    assert [source for source in copied(path) if not (ROOT / source).exists()] == []
    assert set(copied(path)) <= sent


def test_nothing_is_sent_that_is_not_copied() -> None:
    lines = (ROOT / ".dockerignore").read_text(encoding="utf-8").split("\n")
    sent = {line.removeprefix("!") for line in lines if line.startswith("!")}
    assert sent == {source for path in DOCKERFILES for source in copied(path)}
    assert "**/__pycache__" in lines


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_wheel_has_what_pyproject_says_it_is_made_of(path: Path) -> None:
    assert {"pyproject.toml", "trt_vit", PROJECT["readme"], *PROJECT["license-files"]} <= set(copied(path))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_versions_of_packages_come_from_the_constraints(path: Path) -> None:
    (install,) = [command for command in arguments(path, "RUN") if "pip install" in command]
    assert re.search(r"--constraint \S*constraints\.txt ", install)
    assert "constraints.txt" in copied(path)
    assert [command for command in arguments(path, "RUN") if re.search(r"[=<>~!]=", command)] == []
    names = {re.split(r"[^A-Za-z0-9._-]", line)[0].lower() for line in PROJECT["dependencies"]}
    assert [word for word in install.lower().split() if word.strip("\"'") in names] == []


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_extras_are_the_projects(path: Path) -> None:
    extras = [name for argument in arguments(path, "ARG") for name in argument.removeprefix("EXTRAS=").split(",")]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    assert ("cuda" in extras) == (path.name == "Dockerfile.tensorrt")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_base_images_have_a_tag_that_stays(path: Path) -> None:
    images = [argument.split()[0] for argument in arguments(path, "FROM")]
    assert images
    assert all(re.fullmatch(r"[a-z./]+:\d+\.\d+-[a-z0-9-]+", image) for image in images)
    assert len(set(images)) == 1


def test_the_python_of_the_base_image_is_one_that_the_project_is_for() -> None:
    version = arguments(ROOT / "docker" / "Dockerfile.cpu", "FROM")[-1].removeprefix("python:").removesuffix("-slim")
    assert f"Programming Language :: Python :: {version}" in PROJECT["classifiers"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_it_does_not_run_as_root(path: Path) -> None:
    last = [name for name, _ in instructions(path)][::-1]
    user = last.index("USER")
    assert not {"RUN", "FROM", "COPY", "ADD"} & set(last[:user])
    uid = arguments(path, "USER")[-1]
    assert int(uid) > 1000  # by number: who runs it can tell that it is not root, and Ubuntu has a user 1000
    assert any(f"useradd --uid {uid} " in command for command in arguments(path, "RUN"))


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_it_runs_the_command_of_the_project(path: Path) -> None:
    (script,) = PROJECT["scripts"]
    assert arguments(path, "ENTRYPOINT") == [f'["{script}"]']


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_the_page_tells_how_to_build_and_run_it(path: Path) -> None:
    page = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    built = dict(re.findall(r"docker build -f (\S+) -t (\S+) \.", page))
    tag = built[f"docker/{path.name}"]
    assert re.search(rf"docker run [^\n]*{tag}", page)


def test_the_page_has_one_month_for_tensorrt_and_triton() -> None:
    page = (ROOT / "docker" / "README.md").read_text(encoding="utf-8")
    (image,) = arguments(ROOT / "docker" / "Dockerfile.tensorrt", "FROM")
    assert f"tritonserver:{image.partition(':')[2]}" in page
