"""Shapes and dtypes in signatures are checked in every test that calls them."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError

import ddae_jax
import shape_checks
import six_patches
from ddae_jax.dynamic_loss import dynamic_weights
from ddae_jax.masking import visible_indices
from ddae_jax.methods.mae import mae
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import Features, ViT

PACKAGE = Path(ddae_jax.__file__).parent
ENCODER = ViT(six_patches.SIZE, six_patches.PATCH, six_patches.WIDTH, depth=1, num_heads=2)


def modules():
    """Modules of models and methods, and those beside them that are no command but know shapes."""
    for path in sorted(PACKAGE.rglob("*.py")):
        room, *_ = path.relative_to(PACKAGE).with_suffix("").parts
        source = path.read_text(encoding="utf-8")
        is_mathematics = path.parent == PACKAGE and "jaxtyping" in source
        if room in ("models", "methods") or (is_mathematics and "__main__" not in source):
            parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
            yield ".".join(parts).removesuffix(".__init__")


@pytest.mark.parametrize("name", modules())
def test_no_module_escapes(name):
    module = importlib.import_module(name)
    loader = type(module.__spec__.loader)
    assert loader.__module__.startswith("jaxtyping"), f"{name} was loaded by {loader}"


def test_the_mathematics_is_checked():
    distance, mask = jnp.ones((2, 6)), jnp.ones((2, 6), bool)
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        dynamic_weights(distance, mask[:, :5], 0.0)
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        visible_indices(distance, 2)  # no booleans
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        jax.eval_shape(lambda: dynamic_weights(distance, mask[:1], 0.0))
    assert dynamic_weights(np.ones((2, 6)), np.ones((2, 6), bool), 0.0).shape == (2, 6)


def test_a_model_is_checked():
    images, mask = jnp.zeros((3, *six_patches.SIZE, 3)), jnp.asarray(six_patches.MASK)
    with pytest.raises(TypeCheckError, match="parameter 'mask'"):
        jax.eval_shape(lambda: ENCODER.init(six_patches.key(), images, mask=mask[:2]))
    with pytest.raises(TypeCheckError, match="parameter 'tokens'"):
        Features(jnp.zeros((3, 6, 8)), has_class_token=False)  # no depths
    decoder = Decoder(six_patches.GRID, six_patches.WIDTH, depth=1, num_heads=2)
    features = Features(jnp.zeros((1, 3, 2, 8)), has_class_token=False)
    with pytest.raises(TypeCheckError, match="parameter 'places'"):
        jax.eval_shape(
            lambda: decoder.init(six_patches.key(), features, mask, places=mask.astype(int)[0])
        )


def test_a_method_is_checked():
    method = mae(
        ENCODER,
        None,
        sample_mask=six_patches.always_the_same_mask,
        num_masked=six_patches.NUM_MASKED,
        depths=(1,),
        mode="last",
    )
    images = jnp.asarray(six_patches.images_of())
    params = jax.eval_shape(lambda: method.init(six_patches.key(), 3))

    def loss(params, images):
        return method.loss(params, {}, images, six_patches.key())

    assert jax.eval_shape(loss, params, images)[0].shape == ()
    with pytest.raises(TypeCheckError, match="parameter 'images'"):
        jax.eval_shape(loss, params, images[0])
    with pytest.raises(TypeCheckError, match="parameter 'images'"):
        jax.eval_shape(loss, params, images.astype(jnp.int32))


def test_arrays_of_a_tree_are_checked_and_what_stands_for_them_is_not():
    shapes = jax.eval_shape(lambda: Features(jnp.zeros((1, 3, 6, 8)), has_class_token=False))
    assert shapes.tokens.shape == (1, 3, 6, 8)
    assert jax.tree.map(lambda _: None, shapes).tokens is None


def test_users_run_without_checks():
    with shape_checks.unchecked(), pytest.raises(ValueError, match="errors have shape"):
        ddae_jax.dynamic_loss(jnp.zeros((1, 5)), np.ones((1, 6)), np.ones((1, 6), bool), 0.0)
