"""DDAE's feature targets, their places and their weight over a run, against NumPy."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ddae_jax.methods.ddae import ddae, ramp
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT
from six_patches import (
    GRID,
    MASK,
    NUM_MASKED,
    PATCH,
    SIZE,
    VISIBLE,
    WIDTH,
    always_the_same_mask,
    images_of,
    key,
    numpy_patches,
    random_like,
)

ENCODER = ViT(SIZE, PATCH, width=WIDTH, depth=2, num_heads=2)
AXES = {"layer": -1, "batch": (1, 2), "position": 1, "instance": 2}
"""Axes of features (depths, batch, patches, width) over which they are standardised."""


@functools.cache
def method_of(**options):
    return method_of_decoder(Decoder(GRID, width=12, depth=1, num_heads=2, kind="cross"), **options)


def method_of_decoder(decoder, **options):
    return ddae(
        ENCODER,
        decoder,
        sample_mask=always_the_same_mask,
        num_masked=NUM_MASKED,
        **{"depths": (1, 2), "mode": "deep", **options},
    )


def variables_of(method):
    shapes = jax.eval_shape(lambda: method.init(key(), 3))
    return random_like(shapes), random_like(method.init_teacher(shapes), seed=1)


def outcome_of(method, progress=1.0):
    params, teacher = variables_of(method)
    loss = jax.jit(method.loss)
    return loss(params, teacher, images_of(), key(), progress=progress)[1]


def standardised(values, axes):
    values = np.asarray(values, np.float64)
    mean, variance = values.mean(axes, keepdims=True), values.var(axes, keepdims=True)
    return (values - mean) / np.sqrt(variance + 1e-6)


def taught(method):
    _, teacher = variables_of(method)
    encode = jax.jit(functools.partial(ENCODER.apply, depths=(1, 2), normalize=False))
    return np.asarray(encode({"params": teacher}, images_of()).patches, np.float64)


def predicted(method):
    """Predictions for hidden patches, (depths, batch, hidden, values), by objective."""
    params, _ = variables_of(method)
    hidden = np.stack([np.flatnonzero(row) for row in MASK])
    apply = jax.jit(lambda *arrays: method.student.apply(*arrays, method.num_visible, (hidden,)))
    (found,) = apply({"params": params}, images_of(), MASK).predictions
    return {name: np.asarray(value, np.float64) for name, value in found.items()}


def at_hidden(values):
    return np.stack([values[:, image, MASK[image]] for image in range(len(MASK))], axis=1)


@pytest.mark.slow
@pytest.mark.parametrize("normalization", AXES)
@pytest.mark.parametrize("normalize_predictions", [False, True])
def test_targets_and_predictions_are_standardised_over_the_axes_of_their_name(
    normalization, normalize_predictions
):
    method = method_of(
        feature_normalization=normalization, normalize_predictions=normalize_predictions
    )
    targets = at_hidden(standardised(taught(method), AXES[normalization]))
    predictions = predicted(method)["features"]
    if normalize_predictions:  # both over the hidden places, which differ between images
        axes = (1, 2) if normalization == "position" else AXES[normalization]
        predictions, targets = standardised(predictions, axes), standardised(targets, axes)
    expected = np.square(predictions - targets).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(outcome_of(method).losses[1], expected, rtol=2e-4)


def test_position_normalisation_leaves_nothing_that_the_place_alone_tells():
    method = method_of(feature_normalization="position")
    _, teacher = variables_of(method)
    targets = np.asarray(jax.jit(method.targets)(teacher, images_of())["features"])
    np.testing.assert_allclose(targets.mean(axis=1), 0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("places", ["visible", "both"])
@pytest.mark.parametrize("normalization", ["layer", "batch"])
def test_visible_patches_are_aligned_with_the_teachers_at_their_places_and_depths(
    places, normalization
):
    options = {"feature_normalization": normalization, "pixel_weight": 2.0, "feature_weight": 0.5}
    method = method_of(feature_places=places, depth_weights=(1.0, 3.0), **options)
    params, _ = variables_of(method)
    encode = jax.jit(functools.partial(ENCODER.apply, depths=(1, 2), normalize=False))
    own = encode({"params": params["encoder"]}, images_of(), visible=VISIBLE).patches
    targets = standardised(taught(method), AXES[normalization])
    targets = np.stack([targets[:, image, VISIBLE[image]] for image in range(3)], axis=1)
    targets = standardised(targets, AXES[normalization])
    errors = np.square(standardised(own, AXES[normalization]) - targets).mean(axis=(1, 2, 3))
    outcome = outcome_of(method)
    np.testing.assert_allclose(outcome.visible_losses, errors, rtol=2e-4)
    hidden = np.asarray(outcome.losses) * [[1.0, 3.0]]
    weights = (2.0, 0.5)[: len(hidden)]
    expected = (hidden.sum(axis=1) * weights).sum() + 0.5 * (errors * [1.0, 3.0]).sum()
    np.testing.assert_allclose(outcome.loss, expected, rtol=2e-4)
    assert list(method.objectives) == ["pixels", "features"][: len(hidden)]
    assert len(hidden) == {"visible": 1, "both": 2}[places]
    metrics = jax.jit(method.metrics)(outcome)
    assert metrics["loss/visible_features/depth_2"] == outcome.visible_losses[1]


def test_visible_features_need_an_encoder_that_sees_visible_patches_alone():
    with pytest.raises(ValueError, match="set model.encoder_input='visible'"):
        ddae(ENCODER, None, depths=(2,), sample_mask=None, num_masked=4, feature_places="both")
    with pytest.raises(ValueError, match="nothing is predicted of hidden patches"):
        method_of(feature_places="visible", pixel_weight=0.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("progress", "pixels", "features"),
    [(0.0, 2.0, 0.0), (0.2, 2.0, 0.0), (0.3, 1.25, 0.25), (0.4, 0.5, 0.5), (1.0, 0.5, 0.5)],
)
def test_features_set_in_and_take_the_place_of_pixels(progress, pixels, features):
    options = {"pixel_weight": 2.0, "feature_weight": 0.5, "pixel_fade": 0.75}
    method = method_of(feature_start=0.2, feature_warmup=0.2, **options)
    outcome = outcome_of(method, progress)
    losses = np.asarray(outcome.losses).sum(axis=1)
    np.testing.assert_allclose(outcome.objective_weights, (pixels, features), rtol=1e-6)
    np.testing.assert_allclose(outcome.loss, losses @ [pixels, features], rtol=1e-5)
    plain = np.asarray(outcome.plain_losses).sum(axis=1)
    np.testing.assert_allclose(outcome.plain_loss, plain @ [2.0, 0.5], rtol=1e-5)
    metrics = jax.jit(method.metrics)(outcome)
    np.testing.assert_allclose(metrics["weight/pixels"], pixels, rtol=1e-6)
    np.testing.assert_allclose(metrics["weight/features"], features, rtol=1e-6)


@pytest.mark.slow
def test_before_features_set_in_no_gradient_comes_from_them():
    method = method_of(feature_start=0.2, feature_warmup=0.2, mode="deep_dynamic")
    params, teacher = variables_of(method)

    def gradient(progress):
        loss = lambda p: method.loss(p, teacher, images_of(), key(), progress=progress)[0]  # noqa: E731
        return jax.jit(jax.grad(loss))(params)

    before, after = gradient(0.1), gradient(0.5)
    assert not np.asarray(before["supervision"]["beta"][1]).any()
    assert (np.asarray(after["supervision"]["beta"][1]) < 0).all()
    assert not np.asarray(before["head"]["kernel"][:, PATCH * PATCH * 3 :]).any()


@pytest.mark.slow
def test_weights_that_change_over_a_run_ask_how_far_it_is():
    method = method_of(feature_start=0.2)
    params, teacher = variables_of(method)
    with pytest.raises(ValueError, match="give progress, the share of it that is done"):
        method.loss(params, teacher, images_of(), key())
    method_of().loss(params, teacher, images_of(), key())  # with constant weights, no error


def test_visible_features_are_named_and_their_weight_recorded_where_it_changes():
    method = method_of(feature_places="visible", feature_start=0.2, feature_warmup=0.2)
    assert "pixels and visible features at depths 1, 2" in method.description
    outcome = outcome_of(method, progress=0.3)
    metrics = jax.jit(method.metrics)(outcome)
    np.testing.assert_allclose(metrics["weight/visible_features"], 0.5, rtol=1e-6)
    of_pixels, of_features = outcome.losses.sum(), outcome.visible_losses.sum()
    np.testing.assert_allclose(outcome.loss, of_pixels + 0.5 * of_features, rtol=1e-5)
    np.testing.assert_allclose(outcome.plain_loss, of_pixels + of_features, rtol=1e-5)


def test_features_alone_have_their_weight_from_the_first_step():
    method = method_of(pixel_weight=0.0, feature_start=0.5, feature_warmup=0.2)
    outcome = outcome_of(method, progress=0.0)
    np.testing.assert_allclose(outcome.loss, outcome.losses.sum(), rtol=1e-6)


def test_a_ramp_without_a_length_is_a_step():
    found = [float(ramp(jnp.float32(progress), 0.5, 0.0)) for progress in (0.0, 0.49, 0.5, 1.0)]
    assert found == [0.0, 0.0, 1.0, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_intermediate_depths_may_predict_a_share_of_hidden_patches(kind):
    """Their errors are scaled up by the share; the last depth still predicts all patches."""
    decoder = Decoder(GRID, width=12, depth=1, num_heads=2, kind=kind)
    options = {
        "sample_mask": always_the_same_mask,
        "num_masked": NUM_MASKED,
        "depths": (1, 2),
        "mode": "deep_dynamic",
    }
    whole = ddae(ENCODER, decoder, **options)
    some = ddae(ENCODER, decoder, intermediate_share=0.5, **options)
    assert some.num_sampled == 2
    params, teacher = variables_of(whole)
    jax.tree.map(
        lambda a, b: np.testing.assert_array_equal(a.shape, b.shape), params, variables_of(some)[0]
    )
    loss = jax.jit(some.loss)
    expected = np.asarray(jax.jit(whole.loss)(params, teacher, images_of(), key())[1].losses)
    found = []
    for first in range(NUM_MASKED):  # all pairs of an image's four hidden patches
        for second in range(first):
            sampled = np.zeros_like(MASK)
            for image, row in enumerate(MASK):
                sampled[image, np.flatnonzero(row)[[first, second]]] = True
            outcome = loss(params, teacher, images_of(), key(), mask=MASK, sampled=sampled)[1]
            found.append(np.asarray(outcome.losses))
    np.testing.assert_allclose(np.stack(found)[:, :, 1], np.tile(expected[:, 1], (6, 1)), rtol=1e-5)
    assert np.std(np.stack(found)[:, :, 0], axis=0).min() > 1e-3
    if kind == "cross":  # places are decoded independently, so that the estimate is unbiased
        np.testing.assert_allclose(np.mean(found, axis=0), expected, rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_gradient_of_what_is_sampled_is_on_average_that_of_the_whole(dtype):
    encoder = ViT(SIZE, PATCH, width=WIDTH, depth=2, num_heads=2, dtype=jnp.dtype(dtype))
    decoder = Decoder(GRID, width=12, depth=1, num_heads=2, kind="cross", dtype=jnp.dtype(dtype))
    options = {
        "sample_mask": always_the_same_mask,
        "num_masked": NUM_MASKED,
        "depths": (1, 2),
        "mode": "deep_dynamic",
    }
    whole = ddae(encoder, decoder, **options)
    some = ddae(encoder, decoder, intermediate_share=0.25, **options)
    params, teacher = variables_of(whole)
    gradient = jax.jit(jax.grad(some.loss, has_aux=True))
    of_choices = []
    for place in range(NUM_MASKED):  # each of the four hidden patches of an image
        sampled = np.zeros_like(MASK)
        for image, row in enumerate(MASK):
            sampled[image, np.flatnonzero(row)[place]] = True
        of_choices.append(
            gradient(params, teacher, images_of(), key(), mask=MASK, sampled=sampled)[0]
        )
    found = jax.tree.map(lambda *leaves: np.mean(leaves, axis=0), *of_choices)
    expected, _ = jax.jit(jax.grad(whole.loss, has_aux=True))(params, teacher, images_of(), key())
    relative = 1e-4 if dtype == "float32" else 0.05
    for leaf, other in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert leaf.dtype == np.float32
        np.testing.assert_allclose(leaf, other, atol=relative * max(np.abs(other).max(), 1e-2))
    difference = jax.tree.map(jnp.subtract, of_choices[0]["decoder"], expected["decoder"])
    assert optax.global_norm(difference) > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["self", "cross"])
def test_figures_show_what_depths_that_predict_a_share_make_of_all_hidden_patches(kind):
    """They predict in rounds, as ``self`` predictions depend on the number of mask tokens."""
    decoder = Decoder(GRID, width=12, depth=1, num_heads=2, kind=kind)
    method = method_of_decoder(decoder, intermediate_share=0.5)
    params, teacher = variables_of(method)
    shown = np.asarray(
        jax.jit(method.visualize)(params, teacher, images_of(), key())["reconstructions"]
    )
    at_once = jax.jit(
        lambda p: method.student.apply(
            {"params": p}, images_of(), MASK, method.num_visible, method="predict"
        )
    )(params)
    at_once = np.asarray(
        method.visualize_predictions(at_once, {}, {}, images_of())["reconstructions"]
    )
    is_hidden = MASK.reshape(3, *GRID).repeat(PATCH, 1).repeat(PATCH, 2)
    np.testing.assert_allclose(shown[1], at_once[1], atol=1e-5)
    difference = np.abs(shown[0] - at_once[0])[is_hidden]
    if kind == "cross":
        np.testing.assert_allclose(difference, 0, atol=1e-5)
    else:
        assert difference.min() > 0
        sampled = np.zeros_like(MASK)
        for image, row in enumerate(MASK):
            sampled[image, np.flatnonzero(row)[::2]] = True
        chosen, hidden = (
            np.stack([np.flatnonzero(row) for row in rows]) for rows in (sampled, MASK)
        )
        outputs = method.student.apply(
            {"params": params}, images_of(), MASK, method.num_visible, (chosen, hidden)
        )
        whole = np.zeros((1, 3, 6, PATCH * PATCH * 3), np.float32)
        for image, row in enumerate(chosen):
            whole[0, image, row] = outputs.predictions[0]["pixels"][0, image]
        expected = method.visualize_predictions({"pixels": whole}, {}, {}, images_of())[
            "reconstructions"
        ]
        was_first = sampled.reshape(3, *GRID).repeat(PATCH, 1).repeat(PATCH, 2)
        np.testing.assert_allclose(
            shown[0][was_first], np.asarray(expected)[0][was_first], atol=1e-5
        )


def test_what_is_sampled_is_drawn_anew_and_always_hidden():
    method = method_of(intermediate_share=0.5)
    draw = jax.jit(method.sample_masks, static_argnums=1)
    drawn = [draw(key(seed), 3) for seed in range(20)]
    sampled = np.stack([d["sampled"] for d in drawn])
    assert (sampled.sum(axis=-1) == 2).all()
    assert not (sampled & ~MASK).any()
    assert (sampled.any(axis=0) == MASK).all()
    assert len({s.tobytes() for s in sampled}) > 10
    np.testing.assert_array_equal(drawn[0]["sampled"], draw(key(0), 3)["sampled"])
    assert "sampled" not in method_of(
        intermediate_share=0.5, depths=(2,), mode="last"
    ).sample_masks(key(), 3)


@pytest.mark.parametrize("share", [0.0, -0.5, 1.5, 0.01])
def test_a_share_outside_its_range_or_that_leaves_nothing_is_an_error(share):
    with pytest.raises(ValueError, match=f"intermediate_share={share}"):
        method_of(intermediate_share=share)


@pytest.mark.slow
def test_each_depth_may_have_a_decoder_of_its_own():
    shared, own = method_of(), method_of(has_decoder_per_depth=True)
    params, teacher = variables_of(own)
    assert set(params) - set(variables_of(shared)[0]) == {"intermediate_decoders_0"}
    # Two decoders of equal parameters give the same losses as one.
    params["intermediate_decoders_0"] = params["decoder"]
    found = jax.jit(own.loss)(params, teacher, images_of(), key())[1].losses
    of_shared = {n: p for n, p in params.items() if n != "intermediate_decoders_0"}
    expected = jax.jit(shared.loss)(of_shared, teacher, images_of(), key())[1].losses
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    params["intermediate_decoders_0"] = jax.tree.map(lambda x: x + 0.1, params["decoder"])
    changed = jax.jit(own.loss)(params, teacher, images_of(), key())[1].losses
    np.testing.assert_allclose(changed[:, 1], expected[:, 1], rtol=1e-5)
    assert (np.abs(np.asarray(changed - expected))[:, 0] > 1e-3).all()


@pytest.mark.slow
@pytest.mark.parametrize("inputs", ["full", "visible"])
def test_intermediate_depths_may_go_without_the_final_norm(inputs):
    decoder = None if inputs == "full" else Decoder(GRID, width=12, depth=1, num_heads=2)
    options = {
        "sample_mask": always_the_same_mask,
        "num_masked": NUM_MASKED,
        "depths": (1, 2),
        "mode": "deep",
    }
    normed = ddae(ENCODER, decoder, **options)
    plain = ddae(ENCODER, decoder, normalizes_intermediate=False, **options)
    params, teacher = variables_of(normed)
    encoder = params["encoder"]
    params["encoder"] = encoder | {"norm": jax.tree.map(lambda x: 2 * x + 0.3, encoder["norm"])}
    losses = [
        np.asarray(jax.jit(method.loss)(p, teacher, images_of(), key())[1].losses)
        for method in (normed, plain)
        for p in (params, params | {"encoder": encoder})
    ]
    normed_changed, normed_first, plain_changed, plain_first = losses
    np.testing.assert_allclose(plain_changed[:, 0], plain_first[:, 0], rtol=1e-6)
    assert (np.abs(plain_changed - plain_first)[:, 1] > 1e-4).all()
    assert (np.abs(normed_changed - normed_first) > 1e-4).all()
    np.testing.assert_allclose(plain_changed[:, 1], normed_changed[:, 1], rtol=1e-5)


def test_pixels_are_those_of_the_image_whatever_features_are():
    method = method_of(feature_normalization="batch")
    patches = numpy_patches(images_of().astype(np.float64))
    pixels = patches - patches.mean(-1, keepdims=True)
    pixels /= np.sqrt(patches.var(-1, ddof=1, keepdims=True) + 1e-6)
    targets = at_hidden(pixels[None])
    expected = np.square(predicted(method)["pixels"] - targets).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(outcome_of(method).losses[0], expected, rtol=1e-4)


@pytest.mark.slow
def test_options_without_an_effect_do_no_harm():
    """The start of a run names them as ignored; here, the methods that ignore them still train."""
    options = {"sample_mask": always_the_same_mask, "num_masked": NUM_MASKED}
    unused = {"has_decoder_per_depth": True, "intermediate_share": 0.01}
    of_last = method_of(depths=(2,), mode="last", **unused)
    assert set(variables_of(of_last)[0]) == {"encoder", "decoder", "head"}
    full = ddae(ENCODER, None, depths=(1, 2), **options, **unused)
    assert set(variables_of(full)[0]) == {"encoder", "head", "supervision"}
    alone = ddae(ENCODER, None, depths=(2,), feature_weight=0.0, feature_places="both", **options)
    assert list(alone.objectives) == ["pixels"]
    for method in (of_last, full, alone):
        assert np.isfinite(outcome_of(method).loss)


def test_masks_and_what_is_sampled_of_them_go_together():
    method = method_of(intermediate_share=0.5)
    params, teacher = variables_of(method)
    with pytest.raises(ValueError, match="mask and sampled go together"):
        method.loss(params, teacher, images_of(), key(), mask=jnp.asarray(MASK))


def test_a_large_common_part_of_features_costs_no_digits_of_what_is_left():
    method = method_of(feature_normalization="batch")
    _, teacher = variables_of(method)
    embedding = teacher["patch_embedding"]
    shifted = teacher | {"patch_embedding": embedding | {"bias": embedding["bias"] + 300.0}}
    targets = np.asarray(jax.jit(method.targets)(shifted, images_of())["features"], np.float64)
    np.testing.assert_allclose(targets.mean(axis=(1, 2)), 0, atol=1e-3)
    np.testing.assert_allclose(targets.std(axis=(1, 2)), 1, atol=2e-3)
