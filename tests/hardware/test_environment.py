"""environment.py: what would change results is refused; the rest changes none, or is recorded."""

import os
import re
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import langsamp_jax
from langsamp_jax.hardware.environment import (
    _ALLOWED,
    describe_changes,
    environment,
    open_devices,
    random_key,
)

# Prints digests of the start values, what is hidden and the loss, in an environment.
DIGESTS = """
import hashlib, sys
import jax, numpy as np
import flax.linen as nn
from langsamp_jax.data.feed import Batch
from langsamp_jax.errors import UserError
from langsamp_jax.hardware.environment import open_devices, random_key
try:
    open_devices()
except UserError as error:
    print(error, file=sys.stderr)
    sys.exit(2)
from langsamp_jax.languages.inventory import TableIds
from langsamp_jax.models.langsamp import init_params
from langsamp_jax.objectives.base import step_keys
from langsamp_jax.objectives.masked_lm import MaskedLm
from langsamp_jax.objectives.masking import ObjectiveConfig
from langsamp_jax.text.tokenizer import Vocabulary
from tests.tiny import LENGTH, VOCABULARY_SIZE, tiny_model

def digest(tree):
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(tree)]
    parts = [f"{leaf.dtype}{leaf.shape}".encode() + leaf.tobytes() for leaf in leaves]
    return hashlib.sha256(b"".join(parts)).hexdigest()

model = tiny_model()
objective = MaskedLm(model, Vocabulary(VOCABULARY_SIZE, 0, 1, 2, 3, 4), ObjectiveConfig())
params = nn.unbox(jax.jit(lambda: init_params(model, random_key(0)))())
tokens = np.random.default_rng(0).integers(5, VOCABULARY_SIZE, (4, LENGTH), np.int32)
batch = Batch(tokens, tokens > 0, TableIds(np.zeros(4, np.int32), np.zeros(4, np.int32)))
examples = jax.jit(lambda: objective.prepare(step_keys(0, 3, 4)[0], batch))()
loss = jax.jit(lambda params: objective.loss(params, examples, None))(params)
print(digest(params), digest(examples), digest(loss))
"""
SAME = (
    *("JAX_DEFAULT_PRNG_IMPL=rbg", "JAX_DEFAULT_MATMUL_PRECISION=bfloat16"),
    *("JAX_ENABLE_CUSTOM_PRNG=1", "JAX_LEGACY_PRNG_KEY=error", "JAX_EXPLICIT_X64_DTYPES=allow"),
    *("JAX_HIGH_DYNAMIC_RANGE_GUMBEL=1", "JAX_DEBUG_NANS=1", "JAX_ENABLE_CHECKS=1"),
    *("XLA_FLAGS=--xla_allow_excess_precision=false", "XLA_FLAGS=--xla_cpu_enable_fast_math=false"),
    *("NVIDIA_TF32_OVERRIDE=1", "OMP_NUM_THREADS=1", "PYTHONHASHSEED=5", "LC_ALL=C", "TZ=Japan"),
)
REFUSED = (
    *("JAX_ENABLE_X64=1", "JAX_THREEFRY_PARTITIONABLE=0", "JAX_RANDOM_SEED_OFFSET=5"),
    *("JAX_DISABLE_JIT=1", "JAX_NUMPY_RANK_PROMOTION=raise", "JAX_NUMPY_DTYPE_PROMOTION=strict"),
    *("JAX_TRANSFER_GUARD=disallow", "XLA_FLAGS=--xla_cpu_enable_fast_math=true"),
    *("XLA_FLAGS=--no_such_flag", "XLA_FLAGS=no_such_file", "JAX_PLATFORMS=cuda"),
    *("JAX_PLATFORMS=nonsense",),
)
FAST = {"JAX_ENABLE_X64=1", "XLA_FLAGS=--no_such_flag"}


def child(*command: str, **variables: str) -> subprocess.CompletedProcess:
    names = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    return subprocess.run(
        [sys.executable, *command],
        env={**names, **variables},
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
    )


def digests(**variables: str) -> subprocess.CompletedProcess:
    return child("-c", DIGESTS, **variables)


@pytest.fixture(scope="module")
def usual() -> str:
    done = digests()
    assert done.returncode == 0, done.stderr
    return done.stdout


# Identical or refused


@pytest.mark.slow
@pytest.mark.parametrize("some", [SAME[i::4] for i in range(4)], ids=" ".join)
def test_they_change_neither_start_values_nor_masks_nor_losses(some, usual):
    """Several at a time: each would show, as none undoes what another does."""
    variables = dict(variable.split("=", 1) for variable in some)
    assert len(variables) == len(some)
    done = digests(**variables)
    assert done.returncode == 0 and done.stdout == usual, done.stderr


@pytest.mark.parametrize(
    "variable", [pytest.param(v, marks=() if v in FAST else pytest.mark.slow) for v in REFUSED]
)
def test_it_is_refused_in_one_line(variable):
    name, _, value = variable.partition("=")
    done = digests(**{name: value})
    assert done.returncode == 2 and done.stdout == ""
    assert done.stderr.count("\n") == 1 and name in done.stderr, done.stderr


@pytest.mark.parametrize("name", sorted(_ALLOWED.keys() & jax.config.values.keys()))
def test_an_option_that_is_set_in_the_process_is_refused(name, refused):
    """A program may have set it for itself before it calls ``train`` or ``load_model``."""
    bad = {"jax_numpy_dtype_promotion": "strict", "jax_numpy_rank_promotion": "raise"}
    bad |= {"jax_random_seed_offset": 5, "jax_transfer_guard": "disallow"}
    before = jax.config.values[name]
    jax.config.update(name, bad.get(name, not before))
    try:
        line = refused(open_devices)
    finally:
        jax.config.update(name, getattr(before, "value", before))
    assert line.startswith(f"{name.upper()} = ") and line.endswith("leave it unset")
    open_devices()


@given(
    value=st.sampled_from(["", "=true", "=True", "=1", "=false", "=False", "=0"]),
    before=st.sampled_from(["", "--xla_cpu_use_onednn=false "]),
    behind=st.sampled_from(["", " --xla_force_host_platform_device_count=2"]),
)
def test_fast_math_is_refused_however_it_is_written(value, before, behind, refused):
    flags = f"{before}--xla_cpu_enable_fast_math{value}{behind}"
    with (
        mock.patch.dict(os.environ, {"XLA_FLAGS": flags}),
        mock.patch("langsamp_jax.hardware.environment._require_xla_flags"),
    ):
        if value.lower() in ("=false", "=0"):
            open_devices()
        else:
            assert "--xla_cpu_enable_fast_math" in refused(open_devices)


def test_the_generator_is_named_and_nowhere_else_chosen():
    with jax.default_prng_impl("rbg"):
        key = random_key(3)
    assert key.dtype == jax.random.key(3, impl="threefry2x32").dtype
    np.testing.assert_array_equal(
        jax.random.key_data(key), jax.random.key_data(jax.random.key(3, impl="threefry2x32"))
    )
    package = Path(langsamp_jax.__file__).parent
    made = [
        file.name
        for file in package.rglob("*.py")
        if re.search(r"random\.(key|PRNGKey)\(", file.read_text("utf-8"))
    ]
    assert made == ["environment.py"]


# The command


@pytest.mark.parametrize(
    "variable",
    [
        "JAX_PLATFORMS=cuda",
        pytest.param("JAX_PLATFORMS=nonsense", marks=pytest.mark.slow),
        pytest.param("JAX_ENABLE_X64=banana", marks=pytest.mark.slow),
        pytest.param("JAX_RANDOM_SEED_OFFSET=many", marks=pytest.mark.slow),
        pytest.param("JAX_DEFAULT_PRNG_IMPL=mersenne", marks=pytest.mark.slow),
        pytest.param("XLA_FLAGS=--no_such_flag", marks=pytest.mark.slow),
    ],
)
def test_the_command_ends_with_2_and_one_line(variable):
    """The launcher does not start such a command again."""
    name, _, value = variable.partition("=")
    done = child("-m", "langsamp_jax", "plan", "--topology", "here", **{name: value})
    *progress, line = done.stderr.splitlines()
    assert (done.returncode, progress) == (2, []), done.stderr
    assert line.startswith("langsamp: ") and (name in line or value in line)


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- >&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_defect(closed):
    command = f"{sys.executable} -m langsamp_jax settings model {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == ""


def test_no_alarm_of_libtpu_where_there_is_no_tpu():
    """JAX would try libtpu where it is installed, which says that it finds no TPU, in a page."""
    code = "from langsamp_jax.hardware.environment import open_devices; print(open_devices()[0])"
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if "cpu" not in done.stdout.lower():
        pytest.skip("this machine has an accelerator")
    assert (done.returncode, done.stderr) == (0, "")


# The record


def test_the_record_leaves_out_where_files_lie():
    places = {"JAX_COMPILATION_CACHE_DIR": "/home", "JAX_COORDINATOR_ADDRESS": "10.0.0.1:8"}
    kept = {"JAX_DEFAULT_MATMUL_PRECISION": "highest", "XLA_FLAGS": "--a", "LIBTPU_INIT_ARGS": "b"}
    with mock.patch.dict(os.environ, {**places, **kept, "PATH": "/bin"}, clear=True):
        record = environment()
    assert record["flags"] == kept
    assert record["versions"]["jax"] == jax.__version__


@given(
    *(
        st.dictionaries(st.sampled_from(["jax", "numpy"]), st.sampled_from(["1", "2"]))
        for _ in range(2)
    )
)
def test_changes_are_what_differs(was, now):
    records = [{"versions": side, "flags": {}, "device": "cpu"} for side in (was, now)]
    lines = describe_changes(*records)
    names = {name for name in {*was, *now} if was.get(name) != now.get(name)}
    assert [line.split()[0] for line in lines] == sorted(names)
