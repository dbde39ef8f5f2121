"""Parts of an evaluation are computed once, whatever ends it; parts of another are not taken."""

import json
import re
from pathlib import Path

import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.evaluation.jobs import Job, Journal, identities
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import start_run

SETTINGS = {"task": "x", "data": "corpus", "layers": (1, 2), "step": None}


def never():
    raise AssertionError("computed again")


def parts(output: Path) -> Path:
    return output.with_name(output.name + ".parts")


@pytest.fixture
def output(tmp_path: Path) -> Path:
    """With the parts a and b, as a killed evaluation leaves them."""
    output = tmp_path / "result.json"
    journal = Journal(output, SETTINGS)
    assert journal.part("a", lambda: {"loss": 0.1}) == {"loss": 0.1}
    assert journal.part("b", lambda: [1, None]) == [1, None]
    return output  # never closed: a part is in the file as soon as it is there


def test_a_part_is_computed_once(output):
    with Journal(output, SETTINGS) as journal:
        assert journal.part("a", never) == {"loss": 0.1}
        assert journal.part("b", never) == [1, None]
        assert journal.part("c", lambda: 3) == journal.part("c", never) == 3
    with Journal(output, SETTINGS) as journal:
        assert [journal.part(name, never) for name in "abc"] == [{"loss": 0.1}, [1, None], 3]
        journal.forget()
    assert list(output.parent.iterdir()) == []
    with Journal(output, SETTINGS) as journal:
        assert journal.part("a", lambda: "anew") == "anew"


@pytest.mark.parametrize("cut", [1, 5, 20])
def test_a_half_written_last_line_is_dropped(output, cut):
    file = parts(output)
    file.write_bytes(file.read_bytes()[:-cut])
    with Journal(output, SETTINGS) as journal:
        assert journal.part("a", never) == {"loss": 0.1}
        assert journal.part("b", lambda: "anew") == "anew"
    with Journal(output, SETTINGS) as journal:
        assert journal.part("b", never) == "anew"


def test_a_first_line_that_is_half_written_is_dropped(output):
    parts(output).write_bytes(b'{"task": "y", "da')
    with Journal(output, SETTINGS) as journal:
        assert journal.part("a", lambda: 1) == 1
    assert json.loads(parts(output).read_text().splitlines()[0])["task"] == "x"


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"data": "other"}, "(data differ)"),
        ({"layers": (1, 3), "step": 5}, "(layers, step differ)"),
        ({"source": "eng_Latn"}, "(source differ)"),
    ],
)
def test_parts_of_another_evaluation_are_refused(output, changed, named, refused):
    before = parts(output).read_bytes()
    line = refused(Journal, output, SETTINGS | changed)
    assert named in line and f"{output}.parts" in line and "--output" in line
    assert parts(output).read_bytes() == before


def test_nothing_is_left_of_an_evaluation_without_parts(tmp_path):
    """What was refused for bad input does not stand in the way of the next."""
    output = tmp_path / "result.json"
    with pytest.raises(UserError), Journal(output, SETTINGS):
        raise UserError("no head")
    assert list(tmp_path.iterdir()) == []
    Journal(output, SETTINGS)  # killed before its first part
    with Journal(output, {"task": "y"}) as journal:
        assert journal.part("a", lambda: 1) == 1


@pytest.mark.parametrize(
    "damage", [b"years of work\n", b"[1, 2]\n", b'{"task": "x"}\n3\n', b"\0\n"]
)
def test_what_is_no_journal_is_left_alone(damage, tmp_path, refused):
    output = tmp_path / "result.json"
    parts(output).write_bytes(damage)
    line = refused(Journal, output, SETTINGS)
    assert re.search(r"result\.json\.parts is damaged .*; remove it", line)
    assert parts(output).read_bytes() == damage


def test_languages_that_raise_are_skipped(output):
    def compute(name: str) -> str:
        if name in "ce":
            raise UserError(f"no {name}")
        return name.upper()

    with Journal(output, SETTINGS) as journal:
        found, skipped = journal.each("bcdef", compute)
    assert found == [[1, None], "D", "F"] and skipped == {"c": "no c", "e": "no e"}
    with Journal(output, SETTINGS) as journal:  # they are tried again: the user may have mended it
        assert journal.each("cd", str.upper) == (["C", "D"], {})


def test_what_is_no_mistake_of_the_user_is_raised(output):
    with Journal(output, SETTINGS) as journal, pytest.raises(ZeroDivisionError):
        journal.each("cd", lambda name: 1 / 0)
    with Journal(output, SETTINGS) as journal:
        assert journal.part("a", never) == {"loss": 0.1}


def test_parts_are_taken_up_where_the_run_has_moved(store_path, tmp_path, monkeypatch):
    """And where the same command is given from another folder."""
    store = Store(store_path)
    inventory = EMPTY.extended(store.manifest.names)
    start_run(tmp_path / "run", store, inventory, Configs().all(), None, started=0.0)
    asked = identities(Job("mlm", tmp_path / "run", tmp_path / "corpus"))
    (tmp_path / "run").rename(tmp_path / "moved")
    monkeypatch.chdir(tmp_path)
    assert identities(Job("mlm", Path("moved"), Path("corpus"))) == asked
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}")
    assert identities(Job("mlm", Path("model")))["model"] == str(tmp_path / "model")
