"""Configuration: bindings, files and includes; what is misspelt is named with what was meant."""

import dataclasses
import importlib.util
from collections.abc import Callable
from typing import Any

import pytest

from langsamp_jax.cli.settings import import_configs
from langsamp_jax.config import (
    REGISTERED,
    all_settings,
    attribute_docs,
    from_gin,
    gin_text,
    parse_gin,
)
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.errors import MOVED_MODULES, UserError, moved_module
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.training.config import Configs, TrainConfig, configs_from_gin


@pytest.fixture
def here(tmp_path, monkeypatch):
    """The working directory, from which modules are imported too, as with ``python -m``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def refused(files: list[str], bindings: list[str], make: Callable[[], Any] | None = None) -> str:
    """Returns the one line of the UserError."""
    with pytest.raises(UserError) as error:
        parse_gin(files, bindings)
        if make is not None:
            make()
    message = str(error.value)
    assert "\n" not in message and " object at 0x" not in message
    return message


def test_bindings_win_over_files_and_later_files_over_earlier(here, write_files):
    one, two = "train.seed = 1\ntrain.num_steps = 10", "train.seed = 2"
    write_files(here, {"one.gin": one, "two.gin": two})
    parse_gin(["one.gin", "two.gin"], ["train.num_steps=30", "train.log_every = 7"])
    config = from_gin(TrainConfig)
    assert (config.seed, config.num_steps, config.log_every) == (2, 30, 7)
    parse_gin(["two.gin", "one.gin"], [])
    config = from_gin(TrainConfig)
    assert (config.seed, config.num_steps, config.log_every) == (1, 10, 50)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_line_ends_marks_and_separators_in_a_remark(end, here, write_files):
    lines = [
        "# a\u2028remark \x0b of\x85one line",
        "train.seed = 3  # \u2029",
        "train.num_steps = 7",
    ]
    write_files(here, {"a.gin": "\ufeff" + end.join(lines)})
    parse_gin(["a.gin"], [])
    assert (from_gin(TrainConfig).seed, from_gin(TrainConfig).num_steps) == (3, 7)


def test_without_gin_there_are_the_defaults():
    parse_gin([], [])
    defaults = {field.name: field.default for field in dataclasses.fields(TrainConfig)}
    assert dataclasses.asdict(from_gin(TrainConfig)) == defaults


def test_arguments_win_over_bindings():
    parse_gin([], ["train.seed=4"])
    assert TrainConfig(seed=5).seed == 5


@pytest.mark.parametrize(
    ("binding", "value"),
    [
        ("model.placement=input", "input"),
        ("model.placement='input'", "input"),
        ('model.placement = "input" ', "input"),
        ("model.hidden_dropout=0", 0),
        ("model.hidden_dropout=2.5e-1", 0.25),
        ("model.use_script=False", False),
    ],
)
def test_texts_need_no_quotes(binding, value):
    parse_gin([], [binding])
    assert getattr(from_gin(ModelConfig), binding.partition("=")[0].split(".")[1].strip()) == value


def test_none_is_a_value():
    parse_gin([], ["train.eval_rows=None", "mixture.maximum_count=5"])
    assert from_gin(TrainConfig).eval_rows is None and from_gin(MixtureConfig).maximum_count == 5


def test_dicts_and_lists_are_values():
    schedule = [{"from_step": 5, "temperature": 2.0, "maximum_count": {"deu_Latn": 7, "*": 9}}]
    bindings = ["mixture.rule=weights", "mixture.weights={'deu_Latn': 1, 'swh_Latn': 2.5}"]
    parse_gin([], [*bindings, f"mixture.schedule={schedule}"])
    assert from_gin(MixtureConfig).weights == {"deu_Latn": 1, "swh_Latn": 2.5}
    assert from_gin(MixtureConfig).schedule == schedule


@pytest.mark.parametrize(
    ("binding", "expected"),
    [
        ("trian.num_steps=3", ["'trian'", "did you mean train?"]),
        ("train.num_stepz=3", ["'num_stepz'", "did you mean num_steps?"]),
        ("nothing.num_steps=3", ["'nothing'", "model", "mixture", "train"]),
        ("train.nothing=3", ["'nothing'", "num_steps", "seed"]),
        ("train.num_steps=ten", ["train.num_steps = 'ten'", "a whole number"]),
        ("train.num_steps=1.5", ["train.num_steps = 1.5", "a whole number"]),
        ("train.num_steps=True", ["train.num_steps = True", "a whole number"]),
        ("train.num_steps=0", ["train.num_steps = 0", "expected"]),
        ("train.num_steps=", ["train.num_steps = ''", "a whole number"]),
        ("train.eval_rows=few", ["train.eval_rows = 'few'", "a whole number or None"]),
        ("model.placement=inptu", ["model.placement = 'inptu'", "'output', 'input', 'none'"]),
        ("model.use_script=false", ["model.use_script = 'false'", "True or False"]),
        ("model.hidden_dropout=high", ["model.hidden_dropout = 'high'", "a number"]),
        ("mesh.data=0", ["mesh.data = 0", "a number of devices"]),
        ("mixture.weights={deu_Latn: 1}", ["'{deu_Latn: 1}'", "a dict {a text: a number, ...}"]),
        ("mixture.weights={1: 1}", ["{1: 1}", "a dict {a text: a number, ...}"]),
        ("mixture.weights={'deu_Latn': True}", ["True", "a dict {a text: a number, ...}"]),
        ("mixture.weights=[1]", ["[1]", "a dict {a text: a number, ...} or None"]),
        ("mixture.maximum_count={'deu_Latn': 1.5}", ["1.5", "a whole number or a dict {a text"]),
        ("mixture.schedule={'from_step': 1}", ["a list [a dict {a text: a value, ...}, ...]"]),
        ("mixture.schedule=({'from_step': 1},)", ["a list [a dict {a text: a value, ...}, ...]"]),
        ("mixture.schedule=[1]", ["[1]", "a list [a dict {a text: a value, ...}, ...]"]),
        ("train.num_steps", ["train.num_steps", "=VALUE"]),
        ("=3", ["=3", "=VALUE"]),
        ("train num_steps=3", ["train num_steps"]),
        ("num_steps=3", ["num_steps"]),  # to gin a macro, which nothing would read
        ("train=3", ["train"]),
        ("train/num_steps=3", ["train/num_steps"]),  # a scope, in which nothing is made
        ("first/train.num_steps=3", ["first/train.num_steps"]),
    ],
)
def test_a_bad_binding_is_named_with_what_is_expected(binding, expected):
    message = refused([], [binding], configs_from_gin)
    assert all(part in message for part in expected), message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian.num_steps = 3", ["'trian'", "did you mean train?"]),
        ("train.num_stepz = 3", ["'num_stepz'", "did you mean num_steps?"]),
        ("train.num_steps = = 3", []),
        ("train.num_steps = ten", ["ten"]),
        ("include 'gone.gin'", ["gone.gin"]),
        (
            "import langsamp_jax.train",
            ["langsamp_jax.train", "it is now langsamp_jax.training.loop"],
        ),
        ("from langsamp_jax import model", ["it is now langsamp_jax.models.langsamp"]),
        ("import langsamp_jax.nothing", ["langsamp_jax.nothing"]),
    ],
)
def test_a_mistake_in_a_file_is_named_with_file_and_line(text, expected, here, write_files):
    write_files(here, {"mine.gin": f"train.seed = 1\n\n{text}\n"})
    message = refused(["mine.gin"], [], configs_from_gin)
    assert all(part in message for part in [*expected, "mine.gin", "line 3"]), message


@pytest.mark.parametrize("name", ["gone.gin", "my own.gin", "configs/gone.gin", "no/gone.gin"])
def test_a_missing_file_is_named(name, here):
    (here / "configs").mkdir()
    assert name in refused([name], [])
    assert str(here / name) in refused([str(here / name)], [])


def test_a_folder_or_bytes_in_place_of_a_file(here):
    (here / "configs").mkdir()
    (here / "bytes.gin").write_bytes(b"train.seed = 1 # \xff\n")
    assert "configs" in refused(["configs"], [])
    assert "bytes.gin" in refused(["bytes.gin"], [])


def test_shipped_files_are_found_from_anywhere(here):
    parse_gin(["demo.gin"], [])  # includes models/tiny.gin
    assert from_gin(TrainConfig).num_steps < 10_000 and from_gin(ModelConfig).hidden_size < 768
    parse_gin(["models/xlmr_large.gin", "variants/input_side.gin"], [])
    assert from_gin(ModelConfig).hidden_size == 1024 and from_gin(ModelConfig).placement == "input"


def test_includes_are_found_beside_the_file_then_among_the_shipped(here, write_files):
    files = {
        "configs/mine.gin": "include 'small_text.gin'\ninclude 'parts/base.gin'\ntrain.seed = 3",
        "configs/parts/base.gin": "train.num_steps = 77\nmixture.temperature = 2",
    }
    write_files(here, files)
    for name in ("configs/mine.gin", str(here / "configs" / "mine.gin")):
        parse_gin([name], [])
        assert (from_gin(TrainConfig).seed, from_gin(TrainConfig).num_steps) == (3, 77)
        assert from_gin(TrainConfig).global_batch_size < 1024  # the shipped file's
        assert from_gin(MixtureConfig).temperature == 2


def test_what_lies_beside_the_including_file_comes_first(here, write_files):
    """Before what lies here, beside other files, or among the shipped."""
    files = {
        "models/tiny.gin": "model.hidden_size = 12",
        "own/demo.gin": "include 'models/tiny.gin'",
        "own/models/tiny.gin": "model.hidden_size = 36",
        "other/demo.gin": "train.seed = 4",
        "other/models/tiny.gin": "model.hidden_size = 48",
    }
    write_files(here, files)
    for files in (["own/demo.gin"], ["other/demo.gin", "own/demo.gin"]):
        parse_gin(files, [])
        assert from_gin(ModelConfig).hidden_size == 36
    parse_gin(["models/tiny.gin"], [])
    assert from_gin(ModelConfig).hidden_size == 12


@pytest.mark.parametrize("files", [["a.gin"], ["a.gin", "b.gin"], ["a.gin", "b.gin", "c.gin"]])
def test_files_that_include_each_other_in_a_circle_are_named_in_order(files, here, write_files):
    following = [*files[1:], files[0]]
    pairs = zip(files, following, strict=True)
    write_files(here, {file: f"train.seed = 1\ninclude '{other}'" for file, other in pairs})
    message = refused(["a.gin"], [])
    chain = " includes ".join(str(here / file) for file in [*files, "a.gin"])
    assert message == f"gin file {here / 'a.gin'} includes itself: {chain}"


def test_a_file_may_be_included_twice_without_a_circle(here, write_files):
    files = {"a.gin": "include 'b.gin'\ninclude 'c.gin'", "b.gin": "include 'c.gin'"}
    write_files(here, {**files, "c.gin": "train.seed = 3"})
    parse_gin(["a.gin", "c.gin"], [])
    assert from_gin(TrainConfig).seed == 3


def test_gin_text_gives_the_same_configs_again(here, write_files):
    bindings = [
        "train.num_steps=12",
        "train.eval_rows=None",
        "mixture.temperature=3.3333333333333335",
        "mixture.rule=weights",
        "mixture.weights={'deu_Latn': 1, 'swh_Latn': 0.25, 'srp_Cyrl': 2, 'srp_Latn': 1e-3}",
        "mixture.schedule=[{'from_step': 4, 'rule': 'temperature', 'weights': None},"
        " {'from_step': 8, 'weights': {'deu_Latn': 3.0}}]",
        "model.placement=none",
        "optimizer.learning_rate=1e-4",
        "mesh.fsdp=2",
    ]
    parse_gin(["small_text.gin"], bindings)
    configs = configs_from_gin()
    text = gin_text(configs.all())
    write_files(here, {"again.gin": text})
    parse_gin(["again.gin"], [])
    assert configs_from_gin() == configs != Configs()
    for field in dataclasses.fields(TrainConfig):  # defaults too
        assert f"\ntrain.{field.name} = " in text


def test_parsing_again_forgets_what_was_bound():
    parse_gin([], ["train.seed=9"])
    parse_gin([], [])
    assert from_gin(TrainConfig).seed == 0


@pytest.mark.parametrize("module", MOVED_MODULES)
def test_the_new_path_of_a_moved_module_can_be_imported(module):
    """Looked for, not run: some need libraries that are not always installed."""
    new_path = moved_module(ModuleNotFoundError(f"No module named '{module}'")).split()[-1]
    assert importlib.util.find_spec(new_path)


def test_every_field_of_a_config_has_a_meaning_and_every_meaning_a_field():
    import_configs()
    assert {"train", "model", "mixture", "objective", "finetune"} <= REGISTERED.keys()
    for cls in REGISTERED.values():
        documented = list(attribute_docs(cls))
        assert documented == [field.name for field in dataclasses.fields(cls)], cls


def test_settings_are_those_that_gin_text_writes():
    import_configs()
    text = gin_text(Configs().all())
    lines = [f"{s.name} = {s.default!r}" for s in all_settings() if "finetune" not in s.name]
    assert sorted(lines) == sorted(line for line in text.splitlines() if line[:1].isalpha())


def test_a_meaning_of_several_lines_is_one_text():
    class Example:
        """Says nothing.

        Attributes:
          first: a value: it has a colon,
            and a second line.
          second: another.

        Later text: not a meaning.
        """

    meanings = {"first": "a value: it has a colon, and a second line.", "second": "another."}
    assert attribute_docs(Example) == meanings


def test_configs_are_frozen_and_compared_by_value():
    assert MixtureConfig(temperature=2) == MixtureConfig(temperature=2) != MixtureConfig()
    with pytest.raises(dataclasses.FrozenInstanceError):
        MixtureConfig().temperature = 3
