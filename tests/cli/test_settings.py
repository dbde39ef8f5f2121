"""``langsamp settings``: which names are shown, what of each, and what is refused."""

import json

import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.config import from_gin, parse_gin
from langsamp_jax.training.config import TrainConfig


def shown(capsys: pytest.CaptureFixture[str], *arguments: str) -> list[dict]:
    """Returns what ``langsamp settings ... --json`` prints."""
    assert main(["settings", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def names(settings: list[dict]) -> set[str]:
    return {setting["name"] for setting in settings}


def test_all_settings_have_a_type_and_a_meaning(capsys):
    settings = shown(capsys)
    groups = {name.partition(".")[0] for name in names(settings)}
    assert groups >= {"train", "model", "mixture", "objective", "optimizer", "mesh", "init"}
    assert all(setting["type"] and setting["meaning"] for setting in settings)
    assert len(names(settings)) == len(settings)


def test_a_name_is_a_group_a_setting_or_a_part_of_names(capsys):
    everything = names(shown(capsys))
    train = {name for name in everything if name.startswith("train.")}
    assert names(shown(capsys, "train")) == train  # not model.tables, of which "trained" is a value
    assert names(shown(capsys, "train.num_steps")) == {"train.num_steps"}
    assert names(shown(capsys, "num_steps")) == {"train.num_steps"}
    parts = {"mixture.maximum_count", "mixture.maximum_epochs"}
    assert names(shown(capsys, "maximum")) == parts


def test_a_setting_shows_what_gin_would_give(capsys):
    (setting,) = shown(capsys, "train.num_steps")
    parse_gin([], [])
    assert setting["default"] == from_gin(TrainConfig).num_steps == 150_000
    assert setting["type"] == "whole number"
    (setting,) = shown(capsys, "optimizer.schedule")
    assert (setting["type"], setting["default"]) == ("one of 'linear', 'constant'", "linear")


def test_the_table_holds_the_words_of_the_record_in_narrow_columns(capsys):
    (setting,) = shown(capsys, "model.tables")
    assert main(["settings", "model.tables"]) == 0
    title, rule, *lines = capsys.readouterr().out.splitlines()
    starts = [title.index(column) for column in ("name", "type", "default", "meaning")]
    edges = list(zip(starts, [*starts[1:], None], strict=True))
    cells = [" ".join(line[a:b].strip() for line in lines).strip() for a, b in edges]
    assert cells == [setting["name"], setting["type"], "'trained'", setting["meaning"]]
    assert len(lines) > 2 and len(rule) < 140


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("nmu_steps", "there is no setting 'nmu_steps'; did you mean train.num_steps"),
        ("train.num_stepz", "did you mean train.num_steps"),
        ("optimiser", "did you mean optimizer"),
        ("zzzzz", "there are finetune, init, mesh, mixture, model"),
    ],
)
def test_an_unknown_name_is_one_line_with_close_ones(name, expected, command_refused):
    assert expected in command_refused("settings", name)
    assert expected in command_refused("settings", name, "--json")


def test_settings_take_no_gin(command_refused):
    assert "unknown argument" in command_refused("settings", "--gin.train.num_steps=3")
