import jax
import jax.numpy as jnp
import pytest

from langsamp_jax.plan.hlo import kept_for_backward, matmul_flops, parse, trip_count

# As a TPU's compiler writes them: a loop whose counter goes 2 by 2 and is copied on the way, a
# product over 12 batches written as a convolution, layouts with tiles and memory spaces, a
# Pallas kernel over three lines.
TPU_LOOP = """HloModule jit_f, is_scheduled=true

%cond (p.1: (s32[], bf16[12,16,8])) -> pred[] {
  %c.1 = s32[]{:T(128)} constant(8)
  %p.1 = (s32[]{:T(128)}, bf16[12,16,8]{2,1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %g.1 = s32[]{:T(128)} get-tuple-element(%p.1), index=0
  ROOT %lt = pred[]{:T(512)} compare(%g.1, %c.1), direction=LT
}

%fused (a: bf16[12,16,8], b: bf16[12,4,8]) -> bf16[12,16,4] {
  %a = bf16[12,16,8]{2,1,0:T(8,128)(2,1)S(1)} parameter(0)
  %b = bf16[12,4,8]{2,1,0:T(8,128)(2,1)} parameter(1)
  ROOT %conv = bf16[12,16,4]{2,1,0} convolution(%a, %b), window={size=12 stride=11 lhs_dilate=12}, \
dim_labels=0bf_0oi->0bf
}

%body (p.2: (s32[], bf16[12,16,8])) -> (s32[], bf16[12,16,8]) {
  %p.2 = (s32[]{:T(128)}, bf16[12,16,8]{2,1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %g.2 = s32[]{:T(128)} get-tuple-element(%p.2), index=0
  %g.3 = bf16[12,16,8]{2,1,0:T(8,128)(2,1)S(1)} get-tuple-element(%p.2), index=1
  %b.1 = bf16[12,4,8]{2,1,0:T(8,128)(2,1)} custom-call(), custom_call_target="tpu_custom_call", \
frontend_attributes={kernel_metadata={
"xprof_metadata":"{}"
}}, metadata={op_name="kernel"}
  %dot = bf16[12,16,4]{2,1,0} fusion(%g.3, %b.1), kind=kOutput, calls=%fused
  %c.2 = s32[]{:T(128)} constant(2)
  %add = s32[]{:T(128)} add(%g.2, %c.2)
  %copy.2 = s32[]{:T(128)} copy(%add)
  ROOT %t.2 = (s32[]{:T(128)}, bf16[12,16,8]{2,1,0:T(8,128)(2,1)S(1)}) tuple(%copy.2, %g.3)
}

ENTRY %main (x: bf16[12,16,8]) -> bf16[12,16,8] {
  %x = bf16[12,16,8]{2,1,0:T(8,128)(2,1)} parameter(0)
  %zero = s32[]{:T(128)} constant(0)
  %start = s32[]{:T(128)} copy(%zero)
  %t.3 = (s32[]{:T(128)}, bf16[12,16,8]{2,1,0:T(8,128)(2,1)}) tuple(%start, /*index=1*/%x)
  %while.1 = (s32[]{:T(128)}, bf16[12,16,8]{2,1,0:T(8,128)(2,1)}) while(%t.3), \
condition=%cond, body=%body
  ROOT %out = bf16[12,16,8]{2,1,0:T(8,128)(2,1)} get-tuple-element(%while.1), index=1
}
"""


def compiled(function, *shapes):
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return parse(jax.jit(function).lower(*arguments).compile().as_text())


def flops(module) -> float:
    return sum(
        times * sum(matmul_flops(*inner) for inner in module.within(computation, instruction))
        for computation, instruction, times in module.executed()
    )


def test_a_loop_as_a_tpu_writes_it():
    module = parse(TPU_LOOP)
    assert module.entry.name == "main"
    (loop,) = (i for _, i, _ in module.executed() if i.opcode == "while")
    assert trip_count(module, module.entry, loop) == 4
    assert flops(module) == 4 * 12 * (2 * 16 * 4 * 8)
    assert loop.bytes == 4 + 12 * 16 * 8 * 2


def test_what_lies_on_the_chip_takes_no_memory():
    body = parse(TPU_LOOP).computations["body"]
    assert body.instructions["g.3"].memory_bytes == 0
    assert body.instructions["b.1"].memory_bytes == body.instructions["b.1"].bytes == 12 * 4 * 8 * 2


@pytest.mark.parametrize(
    ("replaced", "by"),
    [("direction=LT", "direction=NE"), ("copy(%add)", "negate(%add)"), ("copy(%zero)", "copy(%n)")],
)
def test_a_loop_whose_bounds_cannot_be_read_counts_once(replaced, by):
    text = TPU_LOOP.replace(replaced, by).replace(
        "%zero = ", '%n = s32[] custom-call(), custom_call_target="n"\n  %zero = '
    )
    module = parse(text)
    (loop,) = (i for _, i, _ in module.executed() if i.opcode == "while")
    assert trip_count(module, module.entry, loop) is None
    assert flops(module) == 12 * (2 * 16 * 4 * 8)


def test_scans_in_scans_count_as_often_as_they_run():
    def function(x, w):
        def outer(x, w):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, length=5)[0], None

        return jax.lax.scan(outer, x, w)[0]

    module = compiled(function, (32, 64), (7, 64, 64))
    assert flops(module) == 7 * 5 * 2 * 32 * 64 * 64


def test_batched_products_and_their_gradients():
    def function(q, k):
        return jnp.square(jnp.einsum("bqhd,bkhd->bhqk", q, k)).sum()

    module = compiled(jax.grad(function, (0, 1)), (2, 16, 3, 8), (2, 24, 3, 8))
    assert flops(module) == 3 * (2 * 2 * 3 * 16 * 24 * 8)


def test_what_a_scan_keeps_for_its_backward_pass():
    def function(x, w):
        def layer(x, w):
            return jnp.sin(x @ w), None

        return jax.lax.scan(jax.checkpoint(layer), x, w)[0].sum()

    module = compiled(jax.grad(function), (32, 64), (7, 64, 64))
    assert kept_for_backward(module) == 7 * 32 * 64 * 4  # the input of each of the 7 layers
