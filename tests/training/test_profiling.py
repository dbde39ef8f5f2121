"""A profile holds the steps that were asked for, also when the run ends among them."""

from pathlib import Path

import pytest
from jax.profiler import ProfileData

from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.training.config import TrainConfig
from langsamp_jax.training.loop import train


def profiled(run: Path) -> list[set[int]]:
    """The numbers of the steps in each profile of a run."""
    found = []
    for file in sorted((run / "tensorboard" / "plugins" / "profile").rglob("*.xplane.pb")):
        events = [
            dict(event.stats)
            for plane in ProfileData.from_file(str(file)).planes
            for line in plane.lines
            for event in line.events
            if event.name == "train"
        ]
        found.append({int(stats["step_num"]) for stats in events})
    return found


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
