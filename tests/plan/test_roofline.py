import pytest

from langsamp_jax.hardware.devices import Device
from langsamp_jax.plan.collectives import Collective
from langsamp_jax.plan.hlo import parse
from langsamp_jax.plan.roofline import ACHIEVABLE, memory_traffic, step_cost

# 1 KiB a row; a product, a row cut out of a table and one written into it, and a copy that
# fetches the table onto the chip.
PROGRAM = """HloModule m

%cut (t: f32[64,256], i: s32[]) -> f32[1,256] {
  %t = f32[64,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %s = f32[1,256]{1,0} dynamic-slice(%t, %i, %i), dynamic_slice_sizes={1,256}
  ROOT %n = f32[1,256]{1,0} negate(%s)
}

%put (t: f32[64,256], u: f32[1,256], i: s32[]) -> f32[64,256] {
  %t = f32[64,256]{1,0} parameter(0)
  %u = f32[1,256]{1,0} parameter(1)
  %i = s32[] parameter(2)
  %b = f32[64,256]{1,0} bitcast(%t)
  ROOT %d = f32[64,256]{1,0} dynamic-update-slice(%b, %u, %i, %i)
}

ENTRY %main (t: f32[64,256], i: s32[]) -> f32[64,64] {
  %t = f32[64,256]{1,0} parameter(0)
  %i = s32[] parameter(1)
  %cut_row = f32[1,256]{1,0} fusion(%t, %i), kind=kLoop, calls=%cut
  %put_row = f32[64,256]{1,0} fusion(%t, %cut_row, %i), kind=kLoop, calls=%put
  %fetch = (f32[64,256]{1,0:S(1)}, f32[64,256]{1,0}, u32[]{:S(2)}) copy-start(%put_row)
  %near = f32[64,256]{1,0:S(1)} copy-done(%fetch)
  ROOT %dot = f32[64,64]{1,0} dot(%near, %t), lhs_contracting_dims={1}, rhs_contracting_dims={1}
}
"""
DEVICE = Device(1e12, memory_bytes=1e9, memory_bandwidth=1e9, link_bandwidth=1e8, links=4)
PRODUCT = 2 * 64 * 64 * 256


@pytest.mark.parametrize(
    ("name", "kibibytes"),
    [("cut_row", 1 + 1), ("put_row", 1 + 1), ("fetch", 64), ("near", 0), ("dot", 64 + 16)],
)
def test_bytes_to_and_from_memory(name, kibibytes):
    module = parse(PROGRAM)
    found = memory_traffic(module, module.entry, module.entry.instructions[name])
    assert found == pytest.approx(kibibytes * 1024, abs=8)  # and an index


def test_each_instruction_takes_as_long_as_the_slower_of_its_two():
    done = step_cost(parse(PROGRAM), DEVICE, [])
    assert done.flops == PRODUCT
    moved = (2 + 2 + 64 + 80) * 1024
    assert done.memory_bytes == pytest.approx(moved, abs=32)
    assert done.device_seconds == pytest.approx(moved / 1e9 / ACHIEVABLE, rel=1e-3)
    slow = Device(1e9, 1e9, 1e12, 1e8)
    done = step_cost(parse(PROGRAM), slow, [])
    rest = (2 + 2 + 64) * 1024 / 1e12
    assert done.device_seconds == pytest.approx((PRODUCT / 1e9 + rest) / ACHIEVABLE, rel=1e-3)


@pytest.mark.parametrize(("kind", "links"), [("all-gather", 4), ("collective-permute", 2)])
def test_the_network(kind, links):
    sent = Collective(kind, ("fsdp",), 4, times=3, payload=8e6, wire=6e6, op_name="", shape="")
    seconds = step_cost(parse(PROGRAM), DEVICE, [sent]).network_seconds
    assert seconds == pytest.approx(6e6 / (links * 1e8) / ACHIEVABLE)
