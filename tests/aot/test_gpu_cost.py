"""Tests of operations and memory traffic of GPU programs small enough to count by hand."""

import pytest

from ddae_jax.aot.gpu_cost import gpu_work

PRODUCT = 'custom_call_target="__cublas$lt$matmul", backend_config={"gemm_backend_config":{'
DIMENSIONS = '"dot_dimension_numbers":{"lhs_contracting_dimensions":["1"],"rhs_contracting_'


def program(*lines, before=()):
    return "\n".join([*before, "ENTRY %main (a: f32[4,8]) -> f32[4,2] {", *lines, "}"])


A = "  %a = f32[4,8]{1,0} parameter(0)"
B = "  %b = f32[8,2]{1,0} parameter(1)"
DOT = "dot(%a, %b), lhs_contracting_dims={1}, rhs_contracting_dims={0}"
OF_DOT = 2 * 4 * 2 * 8


def test_a_product_of_cublas_with_its_workspace():
    line = f"  %c = (f32[4,2]{{1,0}}, s8[64]{{0}}) custom-call(%a, %b), {PRODUCT}{DIMENSIONS}"
    flops, traffic = gpu_work(program(A, B, line))
    assert flops == OF_DOT
    assert traffic == 4 * (32 + 16 + 8)  # without the workspace, whose traffic is unknown


def test_what_a_fusion_computes_counts_and_what_passes_inside_it_does_not():
    inside = ("%fused (p: f32[4,8], q: f32[8,2]) -> f32[4,2] {", A, B)
    inside += (f"  %d = f32[4,2]{{1,0}} {DOT}", "  ROOT %e = f32[4,2]{1,0} exponential(%d)", "}")
    fusion = "  ROOT %f = f32[4,2]{1,0} fusion(%a, %b), kind=kCustom, calls=%fused"
    flops, traffic = gpu_work(program(A, B, fusion, before=inside))
    assert flops == OF_DOT
    assert traffic == 4 * (32 + 16 + 8)


def test_a_loop_counts_as_often_as_it_is_passed():
    body = ("%body (p: f32[4,8]) -> f32[4,2] {", A, B, f"  ROOT %d = f32[4,2]{{1,0}} {DOT}", "}")
    loop = '  %w = f32[4,2]{1,0} while(%a), condition=%never, body=%body, backend_config={"known_'
    flops, traffic = gpu_work(program(A, loop + 'trip_count":{"n":"3"}}', before=body))
    assert flops == 3 * OF_DOT
    assert traffic == 3 * 4 * (32 + 16 + 8)


def test_of_an_operand_that_a_fusion_slices_the_slices_are_read():
    inside = ("%fused (p: f32[100], q: f32[4]) -> f32[4] {", "  %p = f32[100]{0} parameter(0)")
    inside += ("  %q = f32[4]{0} parameter(1)", "  %r = f32[10,10]{1,0} bitcast(%p)")
    inside += (
        "  %s = f32[4]{0} slice(%r), slice={[0:4]}",
        "  ROOT %t = f32[4]{0} add(%s, %q)",
        "}",
    )
    lines = ("  %a = f32[100]{0} parameter(0)", "  %b = f32[4]{0} parameter(1)")
    fusion = "  ROOT %f = f32[4]{0} fusion(%a, %b), kind=kLoop, calls=%fused"
    assert gpu_work(program(*lines, fusion, before=inside)) == (0, 3 * 4 * 4)


def test_what_starts_an_operation_is_counted_once():
    start = "  %s = ((f32[4,8]{1,0}), f32[8]{0}) reduce-scatter-start(%a), to_apply=%add"
    done = "  %d = f32[8]{0} reduce-scatter-done(%s)"
    assert gpu_work(program(A, start, done)) == (0, 4 * (32 + 8))


@pytest.mark.parametrize(
    "names", ["branch_computations={%x, %y}", "true_computation=%x, false_computation=%y"]
)
def test_all_branches_of_a_condition_count(names):
    branches = [
        line
        for name in "xy"
        for line in (
            f"%{name} (p: f32[4,8]) -> f32[4,2] {{",
            A,
            B,
            f"  ROOT %d = f32[4,2] {DOT}",
            "}",
        )
    ]
    condition = f"  %c = f32[4,2]{{1,0}} conditional(%a, %a, %a), {names}"
    assert gpu_work(program(A, condition, before=branches)) == (
        2 * OF_DOT,
        2 * 4 * (32 + 16 + 8),
    )


def test_a_computation_that_is_called_twice_counts_twice():
    once = ("%once (p: f32[4,8]) -> f32[4,2] {", A, B, f"  ROOT %d = f32[4,2]{{1,0}} {DOT}", "}")
    calls = [f"  %c{n} = f32[4,2]{{1,0}} call(%a), to_apply=%once" for n in range(2)]
    assert gpu_work(program(A, *calls, before=once))[0] == 2 * OF_DOT


def test_what_only_renames_moves_nothing():
    lines = ("  %r = f32[32]{0} bitcast(%a)", "  %t = (f32[32]{0}, f32[4,8]{1,0}) tuple(%r, %a)")
    assert gpu_work(program(A, *lines)) == (0, 0)


@pytest.mark.parametrize(
    ("target", "products"), [("fmhaSoftmax", 2), ("fmhaScaleBiasSoftmaxBackward", 5)]
)
def test_attention_of_cudnn(target, products):
    q, k = (
        f"  %{name} = bf16[2,{length},3,8]{{3,2,1,0}} parameter(0)"
        for name, length in (("q", 6), ("k", 10))
    )
    call = "  %m = (bf16[2,6,3,8]{3,2,1,0}, u8[0]{0}) custom-call(%q, %k, %k), custom_call_target="
    flops, _ = gpu_work(program(q, k, f'{call}"__cudnn${target}"'))
    assert flops == products * 2 * 2 * 3 * 6 * 10 * 8


@pytest.mark.parametrize(
    ("target", "result", "left", "right"),
    [
        ("convForward", "y", "x", "w"),
        ("convBackwardInput", "x", "y", "w"),
        ("convBackwardFilter", "w", "x", "y"),
    ],
)
def test_convolutions_of_cudnn(target, result, left, right):
    arrays = {"x": "f32[2,9,9,4]{3,2,1,0}", "y": "f32[2,7,7,5]{3,2,1,0}", "w": "f32[5,3,3,4]{3,2}"}
    operands = [f"  %{name} = {arrays[name]} parameter(0)" for name in (left, right)]
    line = (
        f"  %r = ({arrays[result]}, u8[0]{{0}}) custom-call(%{left}, %{right}), window={{size=3x3}}"
    )
    labels = f', dim_labels=b01f_o01i->b01f, custom_call_target="__cudnn${target}"'
    flops, _ = gpu_work(program(*operands, line + labels))
    assert flops == 2 * (2 * 7 * 7 * 5) * (3 * 3 * 4)
