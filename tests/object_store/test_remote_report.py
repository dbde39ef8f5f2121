"""The report of a run that is in an object store is written there, too."""

import json
from pathlib import Path

import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.store import Store
from langsamp_jax.io.storage import location
from langsamp_jax.languages.inventory import EMPTY
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import start_run

pytestmark = pytest.mark.slow


def test_the_page_and_its_figures_are_objects(store_path: Path, tmp_path, put, capsys):
    run, store = tmp_path / "run", Store(store_path)
    inventory = EMPTY.extended(store.manifest.names)
    start_run(run, store, inventory, Configs().all(), None, started=0.0)
    (run / "evaluation").mkdir()
    record = {"languages": [{"language": "qaa_Latn", "top10": 0.5}]}
    (run / "evaluation" / "retrieval-bible.json").write_text(json.dumps(record))
    remote = put(run, "run")
    assert main(["report", "--run", remote]) == 0
    page = location(capsys.readouterr().out.strip())
    assert str(page) == f"{remote}/report/index.html"
    assert "retrieval-bible" in page.read_text()
    figures = {file.name for file in (page.parent / "figures").iterdir()}
    assert {"mixture.png", "retrieval-bible.svg", "retrieval-bible.csv"} <= figures
