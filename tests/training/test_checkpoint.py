"""Checkpoints: a reader disturbs nobody."""

import subprocess
import sys

READER = """
import sys, pathlib
from langsamp_jax.training.checkpoint import Checkpoints
with_none = Checkpoints.reader(pathlib.Path(sys.argv[1]))
assert (with_none.latest, with_none.best, with_none.steps) == (None, None, [])
with_none.close()
"""


def test_a_folder_is_read_without_a_word(tmp_path):
    """In a process that has opened no other: what absl logs is filtered from the first line on."""
    command = [sys.executable, "-c", READER, tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")
    assert not list(tmp_path.iterdir())
