"""Importing the library changes nothing for those who import it."""

import json
import subprocess
import sys
from typing import Any

import pytest

# What another library in the same process would notice.
STATE = """
import json, logging, os
from orbax.checkpoint._src.serialization import tensorstore_utils
absl = logging.getLogger("absl")
print(json.dumps({
    "level": absl.level,
    "filters": len(absl.filters),
    "root level": logging.getLogger().level,
    "environment": dict(os.environ),
    "kvstore": tensorstore_utils.build_kvstore_tspec.__module__,
    "devices": xla_bridge.backends_are_initialized(),
}))
"""
# scikit-learn sets variables of OpenMP, Transformers one of PyTorch's compiler.
LIBRARIES = (
    "import flax.linen, jax, optax, orbax.checkpoint, sklearn, transformers.modeling_utils; "
    "from jax._src import xla_bridge"
)
# Every module, but for the command itself and what runs inside of a downloaded model's folder.
EVERYTHING = """
import importlib, pkgutil, langsamp_jax
names = [module.name for module in pkgutil.walk_packages(langsamp_jax.__path__, "langsamp_jax.")]
assert "langsamp_jax.training.loop" in names and len(names) > 90, names
for name in names:
    if not name.endswith("__main__"):
        importlib.import_module(name)
"""


def child(code: str) -> Any:
    """What ``code`` prints as JSON, in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_importing_every_module_changes_no_logger_no_variable_and_no_library():
    assert child(LIBRARIES + EVERYTHING + STATE) == child(LIBRARIES + STATE)


@pytest.mark.parametrize(
    "module",
    [
        "langsamp_jax.training.run",
        "langsamp_jax.report.compare",
        "langsamp_jax.cli.inspect",
    ],
)
def test_a_record_is_read_without_flax_or_orbax(module):
    code = f"import json, sys, {module}; print(json.dumps(sorted(sys.modules)))"
    loaded = {name.partition(".")[0] for name in child(code)}
    assert "langsamp_jax" in loaded
    assert not loaded & {"flax", "orbax"}
