"""Arrays of reference implementations; the script that made each lies beside it in golden/."""

import pathlib

import jax
import numpy as np

import stand_ins

FOLDER = pathlib.Path(__file__).parent / "golden"


def load(name):
    """Arrays and weights: ``(arrays by name, weights by the reference's name)``."""
    with np.load(FOLDER / f"{name}.npz") as stored:
        arrays = dict(stored)
    weights = {k.removeprefix("weights/"): arrays.pop(k) for k in list(arrays) if "weights/" in k}
    return arrays, weights


def gradients(arrays):
    """The reference's gradients of a few parameters, by the reference's name."""
    return {k.removeprefix("gradients/"): v for k, v in arrays.items() if "gradients/" in k}


def assert_same_shapes(found, wanted):
    """Two trees have the same arrays."""
    found, wanted = (
        {jax.tree_util.keystr(path): leaf.shape for path, leaf in leaves}
        for leaves in map(jax.tree_util.tree_leaves_with_path, (found, wanted))
    )
    assert found == wanted


def initialize(method, channels=3):
    """Parameters of a method, of no reference."""
    return stand_ins.parameters(lambda: method.init(jax.random.key(0), channels))


def predict(method, params, images, mask):
    """Predictions for all patches, by objective."""
    student, num_visible = method.student, method.num_visible
    apply = jax.jit(lambda *arrays: student.apply(*arrays, num_visible, method="predict"))
    return apply({"params": params}, images, mask)


def loss_and_gradient(method, params, teacher, images):
    """``((loss, outcome), gradient)``."""
    compute = jax.jit(jax.value_and_grad(method.loss, has_aux=True))
    return compute(params, teacher, images, jax.random.key(0))
