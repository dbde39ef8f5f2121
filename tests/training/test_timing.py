"""Every second of a run is in one phase; speed and use come from them; a profile has its steps."""

import json
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.profiler import ProfileData

from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.training import timing
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.loop import train
from langsamp_jax.training.timing import Meter, PhaseTimer, memory


class Clock:
    """Stands for the module ``time``; time goes by when it is told to."""

    def __init__(self):
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    perf_counter = time

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def clock(monkeypatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def batches(clock: Clock, waits: list[float]):
    for number, wait in enumerate(waits):
        clock.sleep(wait)
        yield number


def test_every_second_is_in_one_phase(clock):
    timer = PhaseTimer()
    clock.sleep(5)
    for number in timer.inputs(batches(clock, [7, 2, 3])):
        if number == 0:
            clock.sleep(11)  # compilation
            assert "after 23.0 s" in timer.started()
        clock.sleep(0.5)
        if number == 1:
            with timer.phase("validation"):
                clock.sleep(4)
        with timer.phase("checkpoint"):
            clock.sleep(1)
    expected = {"start": 23, "input": 5, "step": 1.5, "validation": 4, "checkpoint": 3}
    assert timer.seconds == {**expected, "profile": 0, "lost": 0}
    assert sum(expected.values()) == clock.now - 1000


def test_a_phase_ends_with_an_error_too(clock):
    timer = PhaseTimer()
    with pytest.raises(OSError), timer.phase("checkpoint"):
        clock.sleep(2)
        raise OSError
    clock.sleep(1)
    assert timer.seconds["checkpoint"] == 2 and timer.seconds["start"] == 1


def test_what_no_checkpoint_holds_is_lost(clock):
    """Work after the checkpoint, the pause, and sessions that saved nothing, however many."""
    started, saved = clock.now, {"start": 10.0, "step": 50.0, "checkpoint": 2.0, "lost": 8.0}
    clock.sleep(70 + 25 + 300 + 40)
    timer = PhaseTimer()
    clock.sleep(6)
    timer.resume(started, saved)
    clock.sleep(1)
    seconds = timer.seconds
    assert seconds["lost"] == 8 + 25 + 300 + 40
    assert seconds["start"] == 10 + 7 and seconds["step"] == 50
    assert sum(seconds.values()) == clock.now - started


def test_a_new_run_has_lost_nothing(clock):
    timer = PhaseTimer()
    clock.sleep(3)
    timer.resume(timer.began, {})
    clock.sleep(2)
    assert {phase: s for phase, s in timer.seconds.items() if s} == {"start": 5}


@pytest.fixture
def meter(clock, monkeypatch):
    """``meter(peak)``: one of a mesh of one device, after the first step; what it said."""

    def meter(peak: float | None) -> tuple[PhaseTimer, Meter, list[str]]:
        monkeypatch.setattr(timing, "peak_flops", lambda kind: peak)
        said: list[str] = []
        timer = PhaseTimer()
        mesh = jax.make_mesh((1,), ("data",), devices=jax.devices()[:1])
        meter = Meter(timer, 1000, 6e9, mesh, said.append)
        clock.sleep(30)
        meter.count({"tokens": jnp.int32(1)})
        return timer, meter, said

    return meter


def test_values_are_those_of_the_steps_since_the_last_line(clock, meter):
    timer, meter, said = meter(peak=2e10)
    assert meter.read().keys() == {"goodput"} | memory().keys()  # no step has been timed yet
    for interval in range(2):
        for _ in range(4):
            with timer.phase("input"):
                clock.sleep(0.25)
            clock.sleep(0.5 + interval)
            meter.count({"tokens": jnp.int32(600 + 100 * interval)})
        with timer.phase("validation"):
            clock.sleep(8)
        values = meter.read()
        step = 0.5 + interval
        assert {p: values[f"time/{p}"] for p in ("input", "step", "validation", "checkpoint")} == {
            "input": 0.25,
            "step": step,
            "validation": 2,
            "checkpoint": 0,
        }
        assert values["tokens_per_second"] == pytest.approx(1000 / (0.25 + step))
        assert values["real_tokens_per_second"] == pytest.approx(
            (600 + 100 * interval) / (0.25 + step)
        )
        assert values["mfu"] == pytest.approx(6e9 / (0.25 + step) / 2e10)
        working = 4 * sum(0.5 + i for i in range(interval + 1))
        assert values["goodput"] == pytest.approx(working / (clock.now - 1000))
    lines = meter.summary().splitlines()
    assert lines[0].startswith("0:00:56 since the run was started: goodput 14.3%, ")
    assert lines[1] == "800 tokens/s, 520 without padding, MFU 24.0%"
    assert len(said) == 1 and "first step after 30.0 s" in said[0]


def test_no_mfu_on_a_device_whose_peak_is_unknown(clock, meter):
    timer, meter, _ = meter(peak=None)
    clock.sleep(1)
    meter.count({"tokens": jnp.int32(5)})
    assert "mfu" not in meter.read() and "MFU" not in meter.summary()


def test_memory_is_what_was_touched():
    before = memory()["memory/host_gb"]
    block = bytearray(b"x") * 300_000_000
    assert memory()["memory/host_gb"] >= before + 0.1 or before > 0.3
    del block


class Device:
    def __init__(self, stats: dict[str, int] | None):
        self.memory_stats = lambda: stats


def test_device_memory_is_that_of_the_fullest_device_that_tells(monkeypatch):
    devices = [Device({"peak_bytes_in_use": 3 * 10**9}), Device({"peak_bytes_in_use": 5 * 10**9})]
    monkeypatch.setattr(jax, "local_devices", lambda: [*devices, Device({}), Device(None)])
    assert memory()["memory/device_gb"] == 5
    monkeypatch.setattr(jax, "local_devices", lambda: [Device(None)])
    assert "memory/device_gb" not in memory()


@pytest.mark.slow
def test_a_run_says_where_its_time_went(store_path, tmp_path, tiny_configs, capsys):
    run = train(Store(store_path), tmp_path / "run", tiny_configs(num_steps=6, log_every=3))
    said = capsys.readouterr().err
    assert "s of it compilation" in said and "goodput" in said and "tokens/s" in said
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    timed = [line for line in lines if "tokens_per_second" in line]
    assert [line["step"] for line in timed] == [3, 6]
    assert all(math.isfinite(value) for line in lines for value in line.values())
    for line in timed:
        working = line["time/input"] + line["time/step"]
        assert line["tokens_per_second"] == pytest.approx(8 * 32 / working)
        assert 0 < line["real_tokens_per_second"] <= line["tokens_per_second"]
        assert 0 < line["goodput"] < 1
        assert "mfu" not in line and "memory/device_gb" not in line  # a CPU tells neither


# Profiles


def profiled(run: Path) -> list[set[int]]:
    """The numbers of the steps in each profile of a run."""
    profiles = []
    for file in sorted((run / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb")):
        events = [
            dict(event.stats)
            for plane in ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        profiles.append({int(stats["step_num"]) for stats in events})
    return profiles


@pytest.mark.slow
@pytest.mark.parametrize(("steps", "expected"), [([2, 3], {2, 3}), ([4, 99], {4, 5})])
def test_the_chosen_steps_are_recorded(steps, expected, store_path, tmp_path, tiny_configs):
    configs = tiny_configs(num_steps=5, profile_steps=steps)
    run = train(Store(store_path), tmp_path / "run", configs)
    assert profiled(run.path) == [expected]


@pytest.mark.parametrize("steps", [[3], [3, 2], [0, 2], [1, 2, 3]])
def test_steps_that_are_no_range(steps):
    with pytest.raises(UserError, match=r"train.profile_steps = .* expected \[first, last\]"):
        TrainConfig(profile_steps=steps)
