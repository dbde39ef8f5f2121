"""A run and the result of its evaluation in an object store, also where it is interrupted."""

import json

import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.io.storage import location

pytestmark = pytest.mark.slow


def test_what_was_finished_is_kept_there(s3, put, make_run, store_path, corpus, tmp_path, capsys):
    run = make_run(store_path).path
    held_out, url = corpus / "held_out", put(run, "run")
    call = ["evaluate", "retrieval-bible", "--data", str(held_out), "--pivot", "qaa_Latn"]
    assert main([*call, "--model", str(run)]) == 0

    parts = f"/bucket/{tmp_path.name}/run/evaluation/retrieval-bible.json.parts"
    written = []

    def refuse(request) -> bool:  # from the fourth part on
        is_part = (request.method, request.path) == ("PUT", parts)
        written.extend([1] * is_part)
        return is_part and len(written) > 3

    s3.refuse = refuse
    assert main([*call, "--model", url]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("langsamp: ") and "denied" in line.lower()
    s3.refuse = lambda request: False
    evaluation = location(url) / "evaluation"
    left = (evaluation / "retrieval-bible.json.parts").read_text().splitlines()
    assert len(left) == 4  # what is evaluated, and three parts

    assert main([*call, "--model", url]) == 0, capsys.readouterr().err
    assert [file.name for file in evaluation.iterdir()] == ["retrieval-bible.json"]
    here, there = (
        json.loads((folder / "evaluation" / "retrieval-bible.json").read_text())
        for folder in (run, location(url))
    )
    assert there["languages"] == here["languages"] and there["averages"] == here["averages"]
    assert there["model"] == url
