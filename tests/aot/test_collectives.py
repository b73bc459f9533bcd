"""Tests of traffic between devices, on programs whose traffic is known by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from ddae_jax.aot.collectives import Traffic, collectives
from ddae_jax.training.sharding import make_mesh


def program(function, mesh, *arguments):
    """Returns the text of a function compiled for arguments ``(shape, spec of axes)``."""
    shapes = [
        jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, PartitionSpec(*spec)))
        for shape, spec in arguments
    ]
    return jax.jit(function).lower(*shapes).compile().as_text()


def test_the_sum_over_all_devices_is_an_all_reduce():
    text = program(lambda x: x.sum(axis=0), make_mesh(), ((16, 6), (("data", "fsdp"),)))
    ((kind, traffic),) = collectives(text, 8).items()
    assert kind == "all-reduce"
    assert (traffic.count, traffic.bytes) == (1, 6 * 4)
    assert traffic.sent == pytest.approx(2 * 7 / 8 * 24)


def test_groups_are_those_of_the_axis_that_is_summed_over():
    text = program(lambda x: x.sum(axis=0), make_mesh(2, 4), ((16, 6), ("fsdp",)))
    (traffic,) = collectives(text, 8).values()
    assert traffic.sent == pytest.approx(2 * 3 / 4 * 24)


def test_what_is_gathered():
    mesh = make_mesh(2, 4)
    whole = NamedSharding(mesh, PartitionSpec())
    text = program(
        lambda x: jax.lax.with_sharding_constraint(x * 2, whole), mesh, ((16, 6), ("fsdp",))
    )
    ((kind, traffic),) = collectives(text, 8).items()
    assert (kind, traffic.count, traffic.bytes) == ("all-gather", 1, 16 * 6 * 4)
    assert traffic.sent == pytest.approx(3 / 4 * 16 * 6 * 4)


def test_a_loop_counts_as_often_as_it_is_passed():
    mesh = make_mesh()

    def loop(x):
        def body(total, _):
            return jnp.sin(total + (x * total.sum()).sum(axis=0)), None

        return jax.lax.scan(body, jnp.ones(6), None, length=5)[0]

    once = collectives(program(lambda x: x.sum(axis=0), mesh, ((16, 6), (("data", "fsdp"),))), 8)
    often = collectives(program(loop, mesh, ((16, 6), (("data", "fsdp"),))), 8)
    assert often["all-reduce"].count == 5 * once["all-reduce"].count


HEADER = "ENTRY %main (p: f32[4]) -> f32[4] {\n"


@pytest.mark.parametrize(
    ("line", "kind", "expected"),
    [
        (
            "  %a = (bf16[8,4]{1,0:T(8,128)(2,1)}, f32[2]{0}) all-reduce(%x, %y), "
            "replica_groups=mesh['i'=4,'j'=2] {'i','j'}",
            "all-reduce",
            Traffic(1, 72, 2 * 7 / 8 * 72),
        ),
        (
            "  %a = (f32[2]{0}, f32[8]{0}) all-gather-start(%x), replica_groups=[2,4]<=[8]",
            "all-gather",
            Traffic(1, 32, 3 / 4 * 32),
        ),
        (
            "  %a = f32[2]{0} reduce-scatter(%x), replica_groups={{0,1,2,3},{4,5,6,7}}",
            "reduce-scatter",
            Traffic(1, 8, 3 / 4 * 32),
        ),
        (
            "  %a = (f32[8]{0}, f32[8]{0}, u32[], u32[]) collective-permute-start(%x), "
            "source_target_pairs={{0,1},{1,0}}",
            "collective-permute",
            Traffic(1, 32, 32),
        ),
        (
            "  %a = ((f32[8]{0}, f32[1,4]{1,0}), (f32[2]{0}, f32[1]{0})) reduce-scatter-start(%x, "
            "%y), replica_groups={{0,1,2,3},{4,5,6,7}}",
            "reduce-scatter",
            Traffic(1, 12, 3 / 4 * 48),
        ),
        (
            "  %a = ((f32[1]{0}, f32[2]{0}), (f32[4]{0}, f32[8]{0})) all-gather-start(%x, %y), "
            "replica_groups={{0,1,2,3},{4,5,6,7}}",
            "all-gather",
            Traffic(1, 48, 3 / 4 * 48),
        ),
    ],
)
def test_forms_that_compilers_write(line, kind, expected):
    found = collectives(f"{HEADER}{line}\n}}\n", 8)
    assert found.keys() == {kind}
    np.testing.assert_allclose(
        [found[kind].count, found[kind].bytes, found[kind].sent],
        [expected.count, expected.bytes, expected.sent],
    )


def test_what_ends_an_operation_does_not_count_again():
    lines = "  %b = f32[8]{0} all-gather-done(%a)\n  %c = f32[8]{0} all-reduce-done(%d)\n"
    assert collectives(f"{HEADER}{lines}}}\n", 8) == {}
