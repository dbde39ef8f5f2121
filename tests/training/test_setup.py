"""What train, dry run and plan share: sizes, the mesh and its refusals, an abstract state."""

import dataclasses
import subprocess
import sys

import jax
import pytest

from langsamp_jax.data.store import Store
from langsamp_jax.errors import UserError
from langsamp_jax.languages.inventory import EMPTY, Inventory
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.parallel.mesh import MeshConfig
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs, TrainConfig
from langsamp_jax.training.setup import Sizes, set_up, set_up_mesh, table_rows

SMALL = ModelConfig(
    hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64, max_length=32
)


def test_a_batch_must_be_cut_evenly():
    (device,) = jax.devices()
    set_up_mesh(Configs(TrainConfig(global_batch_size=24, accumulation_steps=8)), [device])
    configs = Configs(TrainConfig(global_batch_size=24, accumulation_steps=16))
    with pytest.raises(UserError, match=r"train\.global_batch_size = 24: .* multiple of 16"):
        set_up_mesh(configs, [device])


@pytest.mark.parametrize(
    ("mesh", "expected"),
    [
        (MeshConfig(data=3), r"mesh\.data, mesh\.fsdp, mesh\.tensor = 3, 1, 1 .* 1 devices"),
        (MeshConfig(data=1, tensor=2), r"= 1, 1, 2 do not multiply to the 1 devices"),
        (MeshConfig(fsdp=2), r"= -1, 2, 1 do not multiply to the 1 devices"),
    ],
)
def test_a_mesh_must_have_the_devices_that_are_there(mesh, expected):
    with pytest.raises(UserError, match=expected):
        set_up_mesh(Configs(TrainConfig(), SMALL, mesh=mesh), jax.devices()[:1])


def test_sizes_are_those_of_the_data_and_the_tables(store_path):
    """A checkpoint's rows come first, and are there even where the data has no such text."""
    store = Store(store_path)
    own = table_rows(store, None)
    assert own == EMPTY.extended(store.manifest.names)
    grown = table_rows(store, Inventory(("zul",), ("Arab",), ("zul_Arab",)))
    assert (grown.languages[0], grown.scripts[0]) == ("zul", "Arab")
    for inventory in (own, grown):
        assert Sizes.of(store, inventory) == Sizes(
            store.manifest.vocabulary.size,
            len(inventory.languages),
            len(inventory.scripts),
            store.manifest.sequence_length,
        )
    assert len(grown.languages) == len(own.languages) + 1


def test_the_state_is_abstract_and_has_shardings_on_a_mesh_alone(store_path):
    store, configs = Store(store_path), Configs(TrainConfig(global_batch_size=8), SMALL)
    sizes = Sizes.of(store, table_rows(store, None))
    bare = set_up(configs, sizes, store.manifest.vocabulary, None)
    placed = set_up(configs, sizes, store.manifest.vocabulary, set_up_mesh(configs))
    leaves = [jax.tree.leaves(setup.state) for setup in (bare, placed)]
    for without, with_mesh in zip(*leaves, strict=True):
        assert isinstance(without, jax.ShapeDtypeStruct) and without.sharding is None
        assert (without.shape, without.dtype) == (with_mesh.shape, with_mesh.dtype)
        assert with_mesh.sharding.mesh == placed.mesh
    assert bare.state.params["word_embeddings"].shape[0] >= sizes.vocab_size


def test_shuffled_ids_are_for_training_alone():
    model = dataclasses.replace(SMALL, tables="shuffled")
    setup = set_up(
        Configs(model=model), Sizes(300, 3, 2, 32), Vocabulary(300, 0, 1, 2, 3, 299), None
    )
    assert setup.objective.shuffle_ids and not setup.validation.shuffle_ids


def test_without_a_mesh_nothing_is_put_on_a_device():
    code = """
import jax
from langsamp_jax.text.tokenizer import Vocabulary
from langsamp_jax.training.config import Configs
from langsamp_jax.training.setup import Sizes, set_up
set_up(Configs(), Sizes(), Vocabulary(401_145, 0, 1, 2, 3, 401_144), None)
print(len(jax.live_arrays()))
"""
    child = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False
    )
    assert (child.returncode, child.stdout) == (0, "0\n"), child.stderr
