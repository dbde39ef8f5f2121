"""Processes that cannot begin as one: all end, and say why."""

import pytest
from process_group import Group

pytestmark = pytest.mark.slow


def said_by_all(group: Group, code: int) -> list[str]:
    """The last lines of all processes, which have ended with ``code``."""
    codes = group.finish()
    logs = {n: group.said(n) for n in codes}
    assert set(codes.values()) == {code}, logs
    assert not any("Traceback" in log or "***" in log for log in logs.values())
    return [log.splitlines()[-1] for log in logs.values()]


def test_a_process_that_does_not_come_is_named(store_path, tmp_path):
    late = {n: ["--start_timeout=8"] for n in range(4)}
    group = Group(store_path, tmp_path / "run", 4, arguments=late, absent=[2])
    for line in said_by_all(group, 2):
        assert line.startswith("langsamp: saw 3 of 4 processes within 8 s: missing 2")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--gin.train.seed=1"], "process 1 has train.seed = 1, process 0 has 0: start all"),
        (["--data=nowhere"], "process 1: nowhere is no store"),
    ],
)
def test_a_mistake_of_one_process_ends_all_with_a_word(arguments, expected, store_path, tmp_path):
    group = Group(store_path, tmp_path / "run", 2, arguments={1: arguments})
    lines = said_by_all(group, 2)
    assert any(expected in line for line in lines), lines
    assert all(line.startswith(f"langsamp: process {n}: ") for n, line in enumerate(lines))
    assert not (tmp_path / "run").exists()


def test_processes_must_see_the_same_folder(store_path, tmp_path):
    elsewhere = {1: [f"--output={tmp_path / 'other'}"]}
    group = Group(store_path, tmp_path / "run", 2, arguments=elsewhere)
    assert any("process 1 has --output = " in line for line in said_by_all(group, 2))
