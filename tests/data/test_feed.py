"""The feed: a step's batch is the same for any number of devices and whatever was read before."""

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from langsamp_jax.data import feed as feeding
from langsamp_jax.data.feed import Batch, Feed, Rows
from langsamp_jax.data.mixture import MixtureConfig
from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY, TableIds
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding

STEPS = [0, 1, 7, 10**6]
SIZE = 16

# Arguments: the store, the number of processes, this one's number, their port.
REPORT = f"""
import json, sys, jax, numpy as np
store, processes, number, port = sys.argv[1], *map(int, sys.argv[2:])
if processes > 1:
    jax.distributed.initialize(f"127.0.0.1:{{port}}", processes, number)
from test_feed import make_feed
from langsamp_jax.parallel.mesh import MeshConfig, make_mesh
from langsamp_jax.parallel.sharding import batch_sharding
feed = make_feed(store, batch_sharding(make_mesh(MeshConfig())))
read, reads = feed.split.read, []
feed.split.read = lambda language, row: reads.append(len(row)) or read(language, row)
shards = [
    [[[shard.index[0].indices({SIZE})[:2], np.asarray(shard.data).tolist()]
      for shard in leaf.addressable_shards] for leaf in jax.tree.leaves(feed.batch(step))]
    for step in {STEPS}
]
print(json.dumps({{"devices": jax.device_count(), "reads": reads, "shards": shards}}))
"""


def make_feed(store: Path, sharding: jax.sharding.Sharding, seed: int = 5) -> Feed:
    store = Store(store)
    sampler = MixtureConfig().sampler(store.manifest, seed, num_steps=10, batch_size=SIZE)
    inventory = EMPTY.extended(store.manifest.names)
    return Feed(store.split("train"), sampler, inventory, SIZE, sharding)


@pytest.fixture
def feed(store_path) -> Feed:
    return make_feed(store_path, batch_sharding(make_mesh(MeshConfig())))


def digest(batch: Batch) -> str:
    leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(batch)]
    return hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()


def same(one: Batch, other: Batch) -> bool:
    leaves = map(jax.tree.leaves, (one, other))
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


def start(store: Path, devices: int, processes: int = 1) -> list[subprocess.Popen]:
    """Processes that print their shards of the batches of STEPS, with ``devices`` devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path]),
    }
    return [
        subprocess.Popen(
            [sys.executable, "-c", REPORT, store, str(processes), str(number), str(port)],
            env=environment,
            stdout=subprocess.PIPE,
            text=True,
        )
        for number in range(processes)
    ]


def reports(processes: list[subprocess.Popen]) -> list[dict]:
    outputs = [process.communicate(timeout=900)[0] for process in processes]
    assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(output) for output in outputs]


def global_batches(reports: list[dict]) -> list[Batch]:
    """The shards of all processes put together."""
    batches = []
    for step in range(len(STEPS)):
        leaves = []
        for leaf in range(4):
            shards = [shard for report in reports for shard in report["shards"][step][leaf]]
            shards.sort(key=lambda shard: shard[0])
            bounds = [bound for (bounds, _) in shards for bound in bounds]
            assert bounds[0] == 0 and bounds[-1] == SIZE and bounds[1:-1:2] == bounds[2::2]
            leaves.append(np.concatenate([np.array(data) for _, data in shards]))
        batches.append(Batch(*leaves[:2], TableIds(*leaves[2:])))
    return batches


def test_batch_is_the_rows_of_the_store(feed, store_path):
    split = Store(store_path).split("train")
    for step in STEPS:
        language, row = feed.rows(step)
        assert np.array_equal([language, row], feed.sampler.batch(step, SIZE))
        batch = feed.batch(step)
        tokens, _ = split.read(language, row)
        assert np.array_equal(batch.tokens, tokens) and np.all(batch.attention_mask)
        for name, language_id, script_id in zip(
            np.array(split.names)[language], *batch.ids, strict=True
        ):
            assert name == f"qa{'abcde'[language_id]}_{('Cyrl', 'Latn')[script_id]}"
    dtypes = [str(leaf.dtype) for leaf in jax.tree.leaves(feed.batch(0))]
    assert dtypes == ["int32", "bool", "int32", "int32"]


@pytest.mark.slow
def test_batches_are_the_same_for_1_2_and_8_devices(feed, store_path):
    running = {devices: start(store_path, devices) for devices in (1, 2, 8)}
    expected = [feed.batch(step) for step in STEPS]
    for devices, processes in running.items():
        (report,) = reports(processes)
        assert report["devices"] == devices
        assert [len(leaf) for step in report["shards"] for leaf in step] == [devices] * 16
        for found, batch in zip(global_batches([report]), expected, strict=True):
            assert same(found, batch)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "devices"), [(2, 2), (4, 1)])
def test_each_process_reads_its_part_of_the_same_batch(processes, devices, feed, store_path):
    found = reports(start(store_path, devices, processes))
    for report in found:
        assert report["devices"] == 4
        assert report["reads"] == [SIZE // processes] * len(STEPS)
    for batch, step in zip(global_batches(found), STEPS, strict=True):
        assert same(batch, feed.batch(step))


def test_validation_rows_are_masked_where_they_end(store_path):
    store = Store(store_path)
    split, inventory = store.split("validation"), EMPTY.extended(store.manifest.names)
    language = np.arange(len(split.names))
    rows = Rows(language, split.rows - 1)
    batch = feeding.read(split, feeding.table_ids(split, inventory), rows)
    tokens = [store.manifest.counts["validation"][name].tokens for name in split.names]
    expected = [(count - 1) % 32 + 1 for count in tokens]
    assert batch.attention_mask.sum(axis=1).tolist() == expected
    assert np.all(np.diff(batch.attention_mask.astype(int), axis=1) <= 0)
    last = [f"{name}:{number - 1}" for name, number in zip(split.names, split.rows, strict=True)]
    assert rows.describe(split, np.array([0, 2])) == f"{last[0]}, {last[2]}"
    assert rows.describe(split, language, limit=1) == f"{last[0]} and 5 more"


def test_a_far_step_is_the_same_whatever_was_read_before(feed, store_path):
    far = digest(feed.batch(10**6))
    for step in (3, 2, 10**6 + 1, 0):
        feed.batch(step)
    assert digest(feed.batch(10**6)) == far
    other_seed = make_feed(store_path, feed._sharding, seed=6)
    assert digest(other_seed.batch(10**6)) != far
    assert len({digest(feed.batch(step)) for step in range(50)}) == 50


def reading_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("feed")]


@pytest.mark.parametrize("ahead", [1, 2, 5])
def test_batches_read_ahead_are_the_same(ahead, feed):
    found = [digest(batch) for batch in feed.batches(4, 9, ahead)]
    assert found == [digest(feed.batch(step)) for step in range(4, 9)]
    assert list(feed.batches(4, 4, ahead)) == []
    assert reading_threads() == []


def test_closing_early_cancels_what_has_not_begun(feed, monkeypatch):
    """Of three steps read ahead the first is under way, and the others are not waited for."""
    started, batch = [], feed.batch
    under_way, go_on = threading.Event(), threading.Event()

    def slow_batch(step: int) -> Batch:
        started.append(step)
        if step == 1:
            under_way.set()
        assert step == 0 or go_on.wait(30)
        return batch(step)

    monkeypatch.setattr(feed, "batch", slow_batch)
    batches = feed.batches(0, 100, ahead=3)
    next(batches)
    assert under_way.wait(30)  # a busy machine may begin it late
    threading.Timer(0.2, go_on.set).start()
    batches.close()
    assert started == [0, 1]


@pytest.mark.parametrize("read", [0, 1, 3])
def test_closing_early_leaves_no_thread(read, feed):
    batches = feed.batches(0, 100)
    for _ in range(read):
        next(batches)
    assert bool(reading_threads()) == (read > 0)
    batches.close()
    assert reading_threads() == []


def test_damage_reaches_the_reader_of_the_batches(store_path, tmp_path):
    store = shutil.copytree(store_path, tmp_path / "store")
    file = store / "train" / "qaa_Latn" / "c" / "0" / "0"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    feed = make_feed(store, batch_sharding(make_mesh(MeshConfig())))
    with pytest.raises(UserError, match="qaa_Latn"):
        list(feed.batches(0, 20))
    assert reading_threads() == []


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_processes_divide_the_positions_among_them(processes):
    """Also where their devices do not hold neighbouring rows, or several hold the same."""

    class Part:
        def __init__(self, number: int):
            self.number = number

        def addressable_devices_indices_map(self, shape: tuple[int]) -> dict[int, tuple[slice]]:
            (size,) = shape
            parts = [*range(self.number, 8, processes)] * 2
            slices = [(slice(part * size // 8, (part + 1) * size // 8),) for part in parts]
            return dict(enumerate(reversed(slices)))

    parts = [feeding.local_positions(Part(number), 32) for number in range(processes)]
    assert sorted(np.concatenate(parts).tolist()) == list(range(32))
    assert all(len(part) == 32 // processes and np.all(np.diff(part) > 0) for part in parts)


def test_devices_that_hold_copies_count_once():
    mesh = make_mesh(MeshConfig())
    assert feeding.local_positions(NamedSharding(mesh, PartitionSpec()), 6).tolist() == [*range(6)]
