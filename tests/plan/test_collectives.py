"""Also the program that compiles on 8 simulated devices: ``test_collectives.py OUTPUT``."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from langsamp_jax.plan.collectives import collectives
from langsamp_jax.plan.hlo import parse

MESH = {"data": 2, "fsdp": 4}
LAYERS, ROWS, WIDTH = 5, 16, 64
MATRIX = WIDTH * WIDTH * 4


def main(output: Path) -> None:
    """Writes the collectives of small functions whose traffic is known by hand."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(jax.sharding.AxisType.Auto,) * 2)

    def found(function, *arguments):
        shapes = [
            jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, spec))
            for shape, spec in arguments
        ]
        text = jax.jit(function).lower(*shapes).compile().as_text()
        return [dataclasses.asdict(each) for each in collectives(parse(text), MESH)]

    def shard(function, inputs, outputs):
        return jax.shard_map(function, mesh=mesh, in_specs=inputs, out_specs=outputs)

    def layers(x, w):
        def layer(x, w):
            return jnp.tanh(x @ jax.lax.all_gather(w, "fsdp", tiled=True)), None

        return jax.lax.scan(layer, x, w)[0]

    rows, split = PartitionSpec(("data", "fsdp")), PartitionSpec("fsdp")
    ring = [(i, (i + 1) % 4) for i in range(4)]
    weights = (LAYERS, WIDTH, WIDTH), PartitionSpec(None, "fsdp")
    square = (WIDTH, WIDTH), split
    results = {
        "scan": found(shard(layers, (rows, weights[1]), rows), ((ROWS, WIDTH), rows), weights),
        "sum": found(lambda x: x.sum(0), ((ROWS, WIDTH), rows)),
        "scatter": found(
            shard(lambda x: jax.lax.psum_scatter(x, "fsdp", tiled=True), PartitionSpec(), split),
            ((WIDTH, WIDTH), PartitionSpec()),
        ),
        "exchange": found(
            shard(
                lambda x: jax.lax.all_to_all(x, "fsdp", 1, 0, tiled=True),
                split,
                PartitionSpec(None, "fsdp"),
            ),
            square,
        ),
        "ring": found(shard(lambda x: jax.lax.ppermute(x, "fsdp", ring), split, split), square),
    }
    output.write_text(json.dumps(results))


@pytest.fixture(scope="module")
def found(tmp_path_factory) -> dict[str, list[dict]]:
    output = tmp_path_factory.mktemp("collectives") / "found.json"
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    subprocess.run([sys.executable, __file__, output], check=True, env=environment)
    return json.loads(output.read_text())


@pytest.mark.slow
def test_gathered_weights_of_a_scan_count_once_a_layer(found):
    (gather,) = found["scan"]
    assert gather["kind"] == "all-gather"
    assert (gather["axes"], gather["group"], gather["times"]) == (["fsdp"], 4, LAYERS)
    assert gather["payload"] == MATRIX
    assert gather["wire"] == LAYERS * MATRIX * 3 / 4


@pytest.mark.slow
def test_a_sum_over_all_devices(found):
    (reduce,) = found["sum"]
    assert (reduce["kind"], reduce["axes"]) == ("all-reduce", ["data", "fsdp"])
    assert reduce["wire"] == 2 * WIDTH * 4 * 7 / 8


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "kind", "wire"),
    [
        ("scatter", "reduce-scatter", MATRIX * 3 / 4),
        ("exchange", "all-to-all", MATRIX / 4 * 3 / 4),
        ("ring", "collective-permute", MATRIX / 4),
    ],
)
def test_one_of_each_other_kind(found, name, kind, wire):
    (collective,) = found[name]
    assert (collective["kind"], collective["axes"], collective["wire"]) == (kind, ["fsdp"], wire)


def program(*lines: str, before: str = "") -> str:
    body = "\n".join(f"  {line}" for line in lines)
    return f"HloModule m\n\n{before}ENTRY %main (x: f32[8]) -> f32[8] {{\n{body}\n}}\n"


@pytest.mark.parametrize(
    ("groups", "axes"),
    [
        ("replica_groups={{0,1,2,3},{4,5,6,7}}", ("fsdp",)),
        ("replica_groups={{0,4},{1,5},{2,6},{3,7}}", ("data",)),
        ("replica_groups=[2,4]<=[8]", ("fsdp",)),
        ("replica_groups=[4,2]<=[2,4]T(1,0)", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'b'}", ("fsdp",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a'}", ("data",)),
        ("replica_groups=mesh['a'=2,'b'=4] {'a','b'}", ("data", "fsdp")),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'a'}", ("fsdp",)),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}", ("data",)),
        ("replica_groups=mesh['a'=1,'b'=4,'c'=2], device_ids=([8]) {'c'}", ("fsdp",)),
        ("replica_groups={}", ("data", "fsdp")),
    ],
)
def test_every_way_to_write_groups(groups, axes):
    text = program(
        "%x = f32[8]{0} parameter(0)",
        f"ROOT %r = f32[8]{{0}} all-reduce(%x), channel_id=1, {groups}, to_apply=%add",
    )
    (found,) = collectives(parse(text), MESH)
    assert found.axes == axes
    assert found.wire == 2 * 32 * (found.group - 1) / found.group


def test_what_a_tpu_runs_beside_arithmetic_counts_once_where_it_starts():
    def fused(name: str, call: str) -> str:
        return (
            f"%{name} (x: f32[8]) -> f32[32] {{\n"
            "  %x = f32[8]{0} parameter(0)\n"
            "  %g = f32[32]{0} all-gather(%x), channel_id=7, "
            "replica_groups=[2,4]<=[8], dimensions={0}\n"
            f'  ROOT %c = f32[32]{{0}} custom-call(%g), custom_call_target="{call}"\n}}\n\n'
        )

    text = program(
        "%x = f32[8]{0} parameter(0)",
        "%s = f32[32]{0} fusion(%x), kind=kCustom, calls=%start",
        "ROOT %d = f32[32]{0} fusion(%x), kind=kCustom, calls=%done",
        before=fused("start", "AsyncCollectiveStart") + fused("done", "AsyncCollectiveDone"),
    )
    (found,) = collectives(parse(text), MESH)
    assert (found.kind, found.times, found.wire) == ("all-gather", 1, 3 * 32)


def test_a_sum_of_which_each_takes_its_part_is_a_reduce_scatter():
    inside = (
        "%all-reduce-scatter (x: f32[8]) -> f32[2] {\n"
        "  %x = f32[8]{0} parameter(0)\n"
        "  %i = s32[] constant(0)\n"
        "  %r = f32[8]{0} all-reduce(%x), replica_groups=[2,4]<=[8], to_apply=%add\n"
        "  ROOT %s = f32[2]{0} dynamic-slice(%r, %i), dynamic_slice_sizes={2}\n}\n\n"
    )
    text = program(
        "%x = f32[8]{0} parameter(0)",
        "ROOT %f = f32[2]{0} fusion(%x), kind=kCustom, calls=%all-reduce-scatter",
        before=inside,
    )
    (found,) = collectives(parse(text), MESH)
    assert (found.kind, found.wire) == ("reduce-scatter", 32 * 3 / 4)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
