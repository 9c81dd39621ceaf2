from __future__ import annotations

import os
from pathlib import Path

import pytest

from trt_vit.config import resolve
from trt_vit.engine.manifest import BatchProfile
from trt_vit.errors import UsageError
from trt_vit.settings import BuildSettings, ClassifySettings

BOMB = "classify:\n  top_k:\n  - &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"  - &{name} [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghi"
)
"""Nine to the power of nine values, each of which a message would spell out."""
MERGES = "a: &a {x: 1}\n" + "".join(
    f"{name}: &{name}\n  <<: [{', '.join([f'*{chr(ord(name) - 1)}'] * 9)}]\n" for name in "bcdefghi"
)
FLAGS = {"inputs": ["a.jpg"], "output": Path("out.csv")}


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_each_place_wins_over_the_next(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "classify: {top_k: 2, lanes: 2, batch_size: 2, decode_threads: 2}\n")
    recipe = write(tmp_path / "r.yaml", "{top_k: 3, lanes: 3, batch_size: 3}\n")
    environment = {"TRT_VIT_TOP_K": "4", "TRT_VIT_LANES": "4"}
    settings = resolve(ClassifySettings, {**FLAGS, "top_k": 5}, recipe=recipe, config=config, environment=environment)
    assert (settings.top_k, settings.lanes, settings.batch_size, settings.decode_threads) == (5, 4, 3, 2)
    assert settings.max_failures is None


def test_a_flag_that_was_not_given_hides_nothing() -> None:
    environment = {"TRT_VIT_TOP_K": "4"}
    assert resolve(ClassifySettings, {**FLAGS, "top_k": None}, environment=environment).top_k == 4


def test_paths_in_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "source: ../model\noutput: built/x\n")
    settings = resolve(BuildSettings, {}, recipe=recipe, environment={})
    assert settings.source == str(tmp_path / "../model")
    assert settings.output == tmp_path / "built/x"


def test_an_id_in_a_recipe_stays_an_id(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "source: google/vit-base-patch16-224\n")
    assert resolve(BuildSettings, {}, recipe=recipe, environment={}).source == "google/vit-base-patch16-224"


def test_inputs_of_a_recipe_are_relative_to_it(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "inputs: [a, /b]\noutput: o.csv\n")
    settings = resolve(ClassifySettings, {}, recipe=recipe, environment={})
    assert settings.inputs == [str(tmp_path / "a"), "/b"]


@pytest.mark.parametrize("text", ["batch: 1,4,8", "batch: [1, 4, 8]", "batch: {min: 1, opt: 4, max: 8}"])
def test_a_batch_profile_can_be_written_in_three_ways(tmp_path: Path, text: str) -> None:
    recipe = write(tmp_path / "r.yaml", f"source: ./m\n{text}\n")
    assert resolve(BuildSettings, {}, recipe=recipe, environment={}).batch == BatchProfile(min=1, opt=4, max=8)


def test_the_config_file_is_found_where_the_command_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "config.yaml", "classify: {top_k: 9}\n")
    assert resolve(ClassifySettings, FLAGS, environment={}).top_k == 9


def test_a_variable_can_name_the_config_file(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "classify: {top_k: 9}\n")
    assert resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_CONFIG": str(config)}).top_k == 9


def test_the_config_file_of_the_project_is_valid() -> None:
    config = Path(__file__).parents[1] / "config.yaml"
    assert resolve(ClassifySettings, FLAGS, config=config, environment={}).top_k == 5


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("classify: {topk: 1}", "key classify.topk means nothing (did you mean top_k?)"),
        ("clasify: {}", "key clasify means nothing (did you mean classify?)"),
        ("classify: {top_k: 0}", "classify.top_k: Input should be greater than 0, got 0"),
        ("classify: 3", "classify is not a mapping"),
        ("classify: []", "classify is not a mapping"),
        ("classify: {top_k: yes}", "classify.top_k: yes and no mean nothing here, got True"),
        ("classify: {1: 2}", "key classify.1 means nothing"),
        ("when: 2020-13-45", "is not YAML"),
        ("[" * 5000, "is not YAML: nested more than 16 levels deep"),
        ("classify: {top_k: " + "[" * 14 + "]" * 14 + "}", "got [[[["),
        ("classify: {top_k: " + "[" * 15 + "]" * 15 + "}", "nested more than 16 levels deep"),
        ("classify: {top_k: 1, lanes: 2, top_k: 2}", "is not YAML: a key is given twice"),
        ("classify: {}\nclassify: {}", "is not YAML: a key is given twice"),
        ("a: &a [x]\nb: *a", "is not YAML: an alias is not read"),
        (BOMB, "is not YAML: an alias is not read"),
        (MERGES, "is not YAML: an alias is not read"),
        ("classify: {inputs: &a [*a]}", "is not YAML: an alias is not read"),
        ("classify: {top_k: !!python/object/apply:os.system [id]}", "is not YAML: a tag is not read"),
        ("classify: {top_k: !!int ''}", "is not YAML: a tag is not read"),
        ("classify: {top_k: !!timestamp x}", "is not YAML: a tag is not read"),
        (f"classify: {{top_k: 0x{'f' * 4000}}}", "is not YAML: an integer that is too long"),
        (f"? 0x{'f' * 4000}\n: 1", "is not YAML: an integer that is too long"),
        ('"\\e[31m": 1', "a text with a control character"),
        (f"? {'x' * 4000}\n: 1", "xxx means nothing"),
        ('classify: {inputs: ["a\\0b"]}', "a text with a control character"),
        ('classify: {inputs: ["a\\ud800b"]}', "a text with a control character"),
        (f"classify: {{top_k: {'x' * 5000}}}", "or a long one"),
        (f"a: !{'x' * 2000} b", "is not YAML"),
        (f"classify: {{top_k: [{'1, ' * 1000}]}}", "got [1, 1, 1"),
        ("classify: {lanes: 1025}", "classify.lanes: Input should be less than or equal to 1024"),
        ("classify: {decode_threads: 1000000}", "classify.decode_threads: Input should be less than or equal to 1024"),
        ("classify: {batch_size: 99999999}", "classify.batch_size: Input should be less than or equal to 65536"),
        ("classify: {inputs: ['']}", "inputs holds an empty path"),
        ("- 1", "is not a mapping of keys"),
        ("a: [", "is not YAML"),
    ],
)
def test_a_mistake_in_the_config_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    config = write(tmp_path / "c.yaml", text)
    with pytest.raises(UsageError) as caught:
        resolve(ClassifySettings, FLAGS, config=config, environment={})
    assert message in str(caught.value)
    assert str(config) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def test_an_unknown_variable_is_an_error() -> None:
    with pytest.raises(UsageError, match=r"TRT_VIT_TOPK means nothing .did you mean TRT_VIT_TOP_K"):
        resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_TOPK": "1"})


def test_what_a_command_works_on_is_no_variable() -> None:
    with pytest.raises(UsageError, match="TRT_VIT_OUTPUT means nothing"):
        resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_OUTPUT": "o.csv"})


def test_a_path_that_is_none_is_named(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "inputs: [a]\noutput: 3\n")
    with pytest.raises(UsageError, match=r"output: Input is not a path.*got 3"):
        resolve(ClassifySettings, {}, recipe=recipe, environment={})


def test_the_place_of_a_recipe_is_no_part_of_its_globs(tmp_path: Path) -> None:
    (tmp_path / "d[1]").mkdir()
    recipe = write(tmp_path / "d[1]" / "r.yaml", "inputs: ['*.jpg']\noutput: o.csv\n")
    settings = resolve(ClassifySettings, {}, recipe=recipe, environment={})
    assert settings.inputs == [f"{tmp_path}/d[[]1]/*.jpg"]


def test_a_variable_of_another_command_is_fine() -> None:
    assert resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_PRECISION": "bf16"}).top_k == 5


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("DECODE_SECONDS", "inf"),
        ("DECODE_SECONDS", "nan"),
        ("DECODE_SECONDS", "1e300"),
        ("DECODE_SECONDS", "86401"),
        ("DECODE_MEMORY_MIB", "99999999999999999"),
    ],
)
def test_a_limit_that_is_none_is_refused(key: str, value: str) -> None:
    variables = {"TRT_VIT_DECODE_WORKERS": "1", f"TRT_VIT_{key}": value}
    with pytest.raises(UsageError, match=f"environment: TRT_VIT_{key}: Input should be"):
        resolve(ClassifySettings, FLAGS, environment=variables)


def test_formats_are_a_list_or_have_commas_between(tmp_path: Path) -> None:
    config = write(tmp_path / "c.yaml", "classify: {formats: [png, gif]}\n")
    assert resolve(ClassifySettings, FLAGS, config=config, environment={}).formats == {"png", "gif"}
    variables = {"TRT_VIT_FORMATS": "jpeg, png"}
    assert resolve(ClassifySettings, FLAGS, config=config, environment=variables).formats == {"jpeg", "png"}
    with pytest.raises(UsageError, match=r"TRT_VIT_FORMATS: Input should be 'jpeg', .* got 'jpg'"):
        resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_FORMATS": "png,jpg"})


def test_a_mistake_in_a_variable_names_the_variable() -> None:
    with pytest.raises(UsageError, match="environment: TRT_VIT_LANES: Input should be a valid integer"):
        resolve(ClassifySettings, FLAGS, environment={"TRT_VIT_LANES": "many"})


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            {"source": "m", "precision": "int7"},
            "command line: --precision: Input should be 'fp32', 'fp16', 'bf16', 'int8' or 'fp8', got 'int7'",
        ),
        ({"source": "m", "batch": "1,2"}, "command line: --batch: a batch profile is MIN,OPT,MAX, got '1,2'"),
        ({"source": "m", "batch": "8,2,4"}, "batch sizes must ascend"),
        ({}, "SOURCE is missing"),
    ],
)
def test_a_mistake_on_the_command_line_names_the_flag(flags: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as caught:
        resolve(BuildSettings, flags, environment={})
    assert message in str(caught.value)


def test_a_config_file_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"cannot read .*none.yaml"):
        resolve(ClassifySettings, FLAGS, config=tmp_path / "none.yaml", environment={})


def test_what_is_no_file_or_too_large(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for file in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        with pytest.raises(UsageError, match=f"cannot read {file}: is no regular file"):
            resolve(ClassifySettings, FLAGS, config=file, environment={})
    large = write(tmp_path / "large.yaml", "#" * (2**18 + 1))
    with pytest.raises(UsageError, match="is larger than 262144 bytes"):
        resolve(ClassifySettings, FLAGS, config=large, environment={})
    with pytest.raises(UsageError, match="Is a directory"):
        resolve(ClassifySettings, FLAGS, config=tmp_path, environment={})


def test_text_in_any_script_is_plain(tmp_path: Path) -> None:
    recipe = write(tmp_path / "r.yaml", "inputs: ['\u56fe\u50cf \u00e9 \U0001f600']\noutput: o.csv\n")
    settings = resolve(ClassifySettings, {}, recipe=recipe, environment={})
    assert settings.inputs == [str(tmp_path / "\u56fe\u50cf \u00e9 \U0001f600")]
