"""The mesh, and that every parameter and moment lies where its axes say."""

import math

import flax.linen as nn
import jax
import pytest
from jax.sharding import AbstractMesh, PartitionSpec

from langsamp_jax.errors import UserError
from langsamp_jax.models.config import ModelConfig
from langsamp_jax.models.langsamp import LangSamp, init_params
from langsamp_jax.parallel.mesh import MeshConfig, data_parallelism, make_mesh, replicated
from langsamp_jax.parallel.sharding import RULES, batch_sharding, shardings
from langsamp_jax.training.optimizer import OptimizerConfig, make_optimizer
from langsamp_jax.training.step import make_initialise

XLMR = LangSamp(ModelConfig(), 250_002, 610, 30)


def mesh_of(data: int, fsdp: int, tensor: int) -> AbstractMesh:
    """A mesh without devices: enough to say who would hold what."""
    return AbstractMesh((data, fsdp, tensor), ("data", "fsdp", "tensor"))


def boxed(model: LangSamp):
    return jax.eval_shape(lambda: init_params(model, jax.random.key(0)))


def is_boxed(leaf) -> bool:
    return isinstance(leaf, nn.LogicallyPartitioned)


def placed(model: LangSamp, mesh: AbstractMesh) -> dict[str, tuple]:
    """Path -> (shape, sharding) of every parameter."""
    tree = boxed(model)
    places = jax.tree.leaves(shardings(tree, mesh))
    leaves = jax.tree_util.tree_leaves_with_path(nn.unbox(tree))
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): (leaf.shape, place)
        for (path, leaf), place in zip(leaves, places, strict=True)
    }


@pytest.mark.parametrize("placement", ["output", "input", "none"])
def test_every_parameter_has_a_place_for_each_of_its_axes(placement):
    model = LangSamp(ModelConfig(placement=placement), 250_002, 610, 30)
    names = {name for name, _ in RULES} | {None}
    for path, leaf in jax.tree_util.tree_leaves_with_path(boxed(model), is_leaf=is_boxed):
        where = jax.tree_util.keystr(path)
        if is_boxed(leaf):
            assert len(leaf.names) == leaf.value.ndim, where
            assert set(leaf.names) <= names, where
        else:  # a LayerNorm is small enough to be everywhere
            assert "layer_norm" in where
    for path, (_, place) in placed(model, mesh_of(2, 2, 2)).items():
        axes = [axis for axis in jax.tree.leaves(tuple(place.spec)) if axis is not None]
        assert len(axes) == len(set(axes)), path
        assert set(axes) <= {"fsdp", "tensor"}, path


def test_words_are_split_along_both_axes():
    shape, place = placed(XLMR, mesh_of(2, 2, 2))["word_embeddings"]
    assert place.spec == PartitionSpec("tensor", "fsdp")
    assert place.shard_shape(shape) == (shape[0] // 2, shape[1] // 2)


@pytest.mark.parametrize("shape", [(1, 8, 1), (1, 1, 4), (1, 4, 2), (2, 2, 2)])
def test_a_device_holds_its_share_of_xlmr(shape):
    """``shard_shape`` raises where an axis cannot be cut evenly."""
    parts = shape[1] * shape[2]
    whole = held = 0
    for size, place in placed(XLMR, mesh_of(*shape)).values():
        whole += math.prod(size)
        held += math.prod(place.shard_shape(size))
    assert whole / parts <= held < 1.02 * whole / parts


def test_data_parallelism_alone_splits_no_parameter():
    for size, place in placed(XLMR, mesh_of(8, 1, 1)).values():
        assert place.shard_shape(size) == size


def test_moments_lie_beside_their_parameters():
    optimizer = make_optimizer(OptimizerConfig(), 10)
    state = jax.eval_shape(make_initialise(XLMR, optimizer, seed=0))
    places = shardings(state, mesh_of(2, 2, 2))
    expected = jax.tree.map(lambda place: place.spec, places.params)
    moments = [
        part
        for part in jax.tree.leaves(places.opt_state, is_leaf=lambda x: hasattr(x, "mu"))
        if hasattr(part, "mu")
    ]
    assert len(moments) == 1
    for tree in (moments[0].mu, moments[0].nu):
        assert jax.tree.map(lambda place: place.spec, tree) == expected
    assert places.step.spec == PartitionSpec()


def test_one_device_is_a_mesh_too():
    mesh = make_mesh(MeshConfig())
    assert dict(mesh.shape) == {"data": 1, "fsdp": 1, "tensor": 1}
    assert data_parallelism(mesh) == 1
    assert batch_sharding(mesh).spec == PartitionSpec(("data", "fsdp"))
    assert replicated(mesh).is_fully_replicated


def test_rows_are_split_over_data_and_fsdp():
    mesh = mesh_of(2, 2, 2)
    assert data_parallelism(mesh) == 4
    assert batch_sharding(mesh).shard_shape((64, 32)) == (16, 32)


@pytest.mark.parametrize(
    "shape",
    [
        {"data": 2},
        {"fsdp": 3},
        {"tensor": 2},
        {"data": -1, "fsdp": 2},
        {"data": 1, "fsdp": -1, "tensor": 4},
        {"data": 1 << 20},
    ],
)
def test_a_shape_that_does_not_fit_the_devices(shape):
    with pytest.raises(UserError, match=r"mesh\.data, .* do not multiply to the 1 devices"):
        make_mesh(MeshConfig(**shape))


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("data", {"data": 0}),
        ("data", {"data": "all"}),
        ("fsdp", {"fsdp": -2}),
        ("fsdp", {"fsdp": 1.0}),
        ("tensor", {"tensor": 0}),
        ("data", {"fsdp": -1}),
        ("data", {"data": 1, "fsdp": -1, "tensor": -1}),
    ],
)
def test_bad_settings_are_named(field, values):
    with pytest.raises(UserError, match=rf"^mesh\.{field} = .*: expected "):
        MeshConfig(**values)
