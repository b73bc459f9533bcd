"""The vision transformer, against equations written out in NumPy and parameter counts of timm."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import erf, softmax

from ddae_jax.models.positions import sincos_positions
from ddae_jax.models.transformer import Block
from ddae_jax.models.vit import SIZES, Features, ViT

# Two rows and three columns of patches, four patches hidden in each of two images.
SMALL = {"image_size": (8, 12), "patch_size": 4, "width": 16, "depth": 3, "num_heads": 2}
MASK = np.array([[1, 0, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0]], bool)
VISIBLE = np.array([[1, 4], [0, 5]])


def images_of(batch=2, height=8, width=12, channels=3, seed=0) -> np.ndarray:
    size = (batch, height, width, channels)
    return np.random.default_rng(seed).normal(size=size).astype(np.float32)


@functools.cache
def params_of(model: ViT, channels: int = 3):
    """Parameters of which none is at a special value, as biases and norms are at first."""
    images = jnp.zeros((1, *model.image_size, channels))
    mask = jnp.zeros((1, model.grid[0] * model.grid[1]), bool)
    shapes = jax.eval_shape(lambda: model.init(jax.random.key(0), images, mask=mask))["params"]
    rng = np.random.default_rng(0)
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)


@functools.partial(jax.jit, static_argnames=("model", "depths", "normalize"))
def encode(model, params, images, mask=None, visible=None, depths=None, normalize=True):
    return model.apply(
        {"params": params}, images, mask=mask, visible=visible, depths=depths, normalize=normalize
    )


def count(tree) -> int:
    return sum(int(np.prod(leaf.shape)) for leaf in jax.tree.leaves(tree))


# The equations, in float64.


def numpy_affine(params, x):
    return x @ params["kernel"].astype(np.float64) + params["bias"]


def numpy_norm(params, x):
    mean, variance = x.mean(-1, keepdims=True), x.var(-1, keepdims=True)
    return (x - mean) / np.sqrt(variance + 1e-6) * params["scale"] + params["bias"]


def numpy_block(params, x, num_heads):
    """x: one image's tokens, (tokens, width)."""
    width = x.shape[1]
    queries, keys, values = np.split(
        numpy_affine(params["attention"]["qkv"], numpy_norm(params["attention_norm"], x)), 3, axis=1
    )
    heads = []
    for head in range(num_heads):
        own = slice(head * width // num_heads, (head + 1) * width // num_heads)
        logits = queries[:, own] @ keys[:, own].T / np.sqrt(width / num_heads)
        heads.append(softmax(logits, axis=1) @ values[:, own])
    x = x + numpy_affine(params["attention"]["projection"], np.concatenate(heads, axis=1))
    hidden = numpy_affine(params["mlp_in"], numpy_norm(params["mlp_norm"], x))
    hidden = hidden * (1 + erf(hidden / np.sqrt(2))) / 2
    return x + numpy_affine(params["mlp_out"], hidden)


def numpy_sincos(grid, width):
    """Position by position: sine and cosine of the column, then of the row."""
    quarter = width // 4
    table = np.zeros((grid[0] * grid[1], width))
    for row in range(grid[0]):
        for column in range(grid[1]):
            for k in range(quarter):
                frequency = 10000 ** (-k / quarter)
                parts = table[row * grid[1] + column].reshape(4, quarter)
                parts[0, k], parts[1, k] = np.sin(column * frequency), np.cos(column * frequency)
                parts[2, k], parts[3, k] = np.sin(row * frequency), np.cos(row * frequency)
    return table


def numpy_encode(model, params, images, mask=None, visible=None):
    """Normalised tokens after the last block."""
    (h, w), size = model.grid, model.patch_size
    encoded = []
    for index, image in enumerate(images):
        cuts = [
            image[r * size : (r + 1) * size, c * size : (c + 1) * size].ravel()
            for r in range(h)
            for c in range(w)
        ]
        tokens = numpy_affine(params["patch_embedding"], np.stack(cuts))
        if mask is not None:
            tokens[mask[index]] = params["mask_token"]
        if model.positions == "learned":
            tokens = tokens + params["positions"]
        else:
            tokens = tokens + numpy_sincos(model.grid, model.width)
        if visible is not None:
            tokens = tokens[visible[index]]
        if model.use_class_token:
            tokens = np.concatenate([params["class_token"][None], tokens])
        for block in range(model.depth):
            tokens = numpy_block(params[f"block_{block + 1:02d}"], tokens, model.num_heads)
        encoded.append(numpy_norm(params["norm"], tokens))
    return np.stack(encoded)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("options", "channels", "inputs"),
    [
        ({}, 3, {}),
        ({}, 3, {"mask": MASK}),
        ({}, 3, {"visible": VISIBLE}),
        ({"positions": "learned", "use_class_token": False}, 1, {"mask": MASK}),
        ({"positions": "learned", "mlp_ratio": 2.0}, 4, {"visible": VISIBLE}),
    ],
    ids=["plain", "mask", "visible", "learned-mask-grey", "learned-visible-four-channels"],
)
def test_features_are_those_of_the_equations(options, channels, inputs):
    model = ViT(**{**SMALL, "depth": 2, **options})
    params, images = params_of(model, channels), images_of(channels=channels)
    features = encode(model, params, images, **inputs)
    expected = numpy_encode(model, params, images, **inputs)
    assert features.tokens.shape == (1, *expected.shape)
    np.testing.assert_allclose(features.tokens[0], expected, rtol=1e-5, atol=2e-5)
    assert features.has_class_token == model.use_class_token


def test_one_block_is_that_of_the_equations():
    block = Block(num_heads=4, mlp_width=24)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(2, 5, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), tokens))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    expected = np.stack([numpy_block(params, image, 4) for image in tokens])
    found = jax.jit(block.apply)({"params": params}, tokens)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(("grid", "width"), [((3, 5), 8), ((14, 14), 192)])
def test_sincos_positions_are_those_of_the_formula(grid, width):
    np.testing.assert_allclose(sincos_positions(grid, width), numpy_sincos(grid, width), atol=1e-6)


def test_sincos_positions_need_a_multiple_of_four():
    with pytest.raises(ValueError, match="width=10"):
        sincos_positions((2, 2), 10)


@pytest.mark.slow
def test_any_depths_read_out_are_the_full_runs_at_those_depths():
    model = ViT(**SMALL)
    params, images = params_of(model), images_of()
    every = encode(model, params, images, MASK, depths=(1, 2, 3)).tokens
    assert every.shape == (3, 2, 7, 16)
    for depths in [(1,), (1, 3), None]:
        found = encode(model, params, images, MASK, depths=depths).tokens
        expected = every[np.array(depths or (3,)) - 1]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_unnormalised_features_are_those_before_the_one_final_norm():
    model = ViT(**SMALL)
    params, images = params_of(model), images_of()
    plain = encode(model, params, images, depths=(1, 3), normalize=False).tokens
    normed = encode(model, params, images, depths=(1, 3)).tokens
    expected = numpy_norm(params["norm"], np.asarray(plain, np.float64))
    np.testing.assert_allclose(normed, expected, rtol=1e-4, atol=1e-5)


def test_only_asked_depths_leave_the_encoder_and_no_deeper_block_runs():
    model = ViT(**SMALL)
    images = jax.ShapeDtypeStruct((2, 8, 12, 3), jnp.float32)

    def lowered(depths):
        return encode.lower(model, params_of(model), images, depths=depths)

    assert lowered((1, 3)).out_info.tokens.shape == (2, 2, 7, 16)
    flops = {depth: lowered((depth,)).cost_analysis()["flops"] for depth in (1, 2, 3)}
    assert flops[2] - flops[1] == pytest.approx(flops[3] - flops[2], rel=1e-6)
    # Twice 12 width**2 multiply-adds a token and block (and attention), 14 tokens.
    assert flops[2] - flops[1] > 2 * 12 * 16**2 * 14


def test_class_token_and_patches_are_told_apart():
    tokens = jnp.arange(24.0).reshape(1, 2, 3, 4)
    features = Features(tokens=tokens, has_class_token=True)
    np.testing.assert_array_equal(features.class_token, tokens[:, :, 0])
    np.testing.assert_array_equal(features.patches, tokens[:, :, 1:])
    without = Features(tokens=tokens, has_class_token=False)
    np.testing.assert_array_equal(without.patches, tokens)
    with pytest.raises(ValueError, match="no class token"):
        _ = without.class_token


def test_all_patches_visible_is_no_mask_at_all():
    model = ViT(**SMALL)
    params, images = params_of(model), images_of()
    plain = encode(model, params, images).tokens
    everything = np.tile(np.arange(6), (2, 1))
    np.testing.assert_allclose(
        encode(model, params, images, visible=everything).tokens, plain, rtol=1e-5, atol=1e-6
    )
    nothing_hidden = np.zeros((2, 6), bool)
    np.testing.assert_allclose(
        encode(model, params, images, mask=nothing_hidden).tokens, plain, rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
@pytest.mark.parametrize("inputs", [{"mask": MASK}, {"visible": VISIBLE}], ids=["full", "visible"])
def test_nothing_depends_on_the_pixels_of_hidden_patches(inputs):
    model = ViT(**SMALL)
    params, images = params_of(model), images_of()
    hidden = MASK.reshape(2, 2, 3).repeat(4, axis=1).repeat(4, axis=2)[..., None]
    repainted = np.where(hidden, images_of(seed=1), images)
    features = encode(model, params, images, **inputs).tokens
    np.testing.assert_array_equal(encode(model, params, repainted, **inputs).tokens, features)
    gradient = np.asarray(
        jax.grad(lambda images: (encode(model, params, images, **inputs).tokens ** 3).sum())(images)
    )
    is_hidden = np.broadcast_to(hidden, images.shape)
    assert (gradient[is_hidden] == 0).all()
    assert (gradient[~is_hidden] != 0).all()


def test_visible_patches_may_come_in_any_order():
    model = ViT(**SMALL)
    params, images = params_of(model), images_of()
    ascending = encode(model, params, images, visible=VISIBLE)
    descending = encode(model, params, images, visible=VISIBLE[:, ::-1])
    np.testing.assert_allclose(
        descending.patches, ascending.patches[:, :, ::-1], rtol=1e-5, atol=1e-6
    )


# timm's counts of the same encoders without a classifier, all with learned positions. Theirs have
# one for the class token too.
TIMM_PARAMETERS = {
    ("Ti", 16): 5_524_416,
    ("S", 16): 21_665_664,
    ("B", 16): 85_798_656,
    ("L", 16): 303_301_632,
    ("H", 14): 630_764_800,
}


@pytest.mark.slow
@pytest.mark.parametrize(("size", "patch_size"), TIMM_PARAMETERS)
def test_sizes_have_the_published_numbers_of_parameters(size, patch_size):
    model = ViT((224, 224), patch_size, *SIZES[size], positions="learned")
    images = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    assert count(params) == TIMM_PARAMETERS[size, patch_size] - SIZES[size].width


def test_micro_has_the_parameters_of_the_formula():
    width, depth, _ = SIZES["micro"]
    model = ViT((8, 8), 2, *SIZES["micro"], use_class_token=False)
    images = jax.ShapeDtypeStruct((1, 8, 8, 1), jnp.float32)
    params = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    # A block: matrices 3 + 1 + 4 + 4 widths square, biases 3 + 1 + 4 + 1, norms 2 * 2.
    blocks = depth * (12 * width**2 + 13 * width)
    assert count(params) == blocks + (2 * 2 * 1 + 1) * width + 2 * width


def test_every_size_has_heads_that_divide_its_width():
    for width, _, num_heads in SIZES.values():
        assert width % num_heads == 0
        assert width % 4 == 0


def test_initial_parameters_are_complete_whatever_depth_is_read_out_at_first():
    model = ViT(**SMALL)
    images = jnp.zeros((1, 8, 12, 3))
    options = {"depths": (1,), "normalize": False}
    early = jax.eval_shape(lambda: model.init(jax.random.key(0), images, **options))
    late = jax.eval_shape(lambda: model.init(jax.random.key(0), images))
    assert jax.tree.structure(early) == jax.tree.structure(late)
    assert set(late["params"]) >= {"block_01", "block_02", "block_03", "norm"}


def test_all_attention_forms_agree():
    models = [
        ViT(**SMALL, attention_form=form) for form in ("batched_matmul", "dot_product", "einsum")
    ]
    params, images = params_of(models[0]), images_of()
    first, *others = (encode(model, params, images).tokens for model in models)
    for found in others:
        np.testing.assert_allclose(found, first, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_every_rematerialization_gives_the_same_loss_and_gradients():
    two_blocks = {**SMALL, "depth": 2}

    def loss_and_gradients(word):
        model = ViT(**two_blocks, rematerialization=word, drop_path_rate=0.3)

        def loss(params, images):
            features = model.apply(
                {"params": params},
                images,
                depths=(1, 2),
                is_training=True,
                rngs={"drop_path": jax.random.key(0)},
            )
            return jnp.sin(features.tokens).mean()

        return jax.jit(jax.value_and_grad(loss))(params_of(ViT(**two_blocks)), images_of(4))

    plain_loss, plain_gradients = loss_and_gradients("none")
    for word in ("dots", "full"):
        loss, gradients = loss_and_gradients(word)
        np.testing.assert_allclose(loss, plain_loss, rtol=1e-6)
        for found, expected in zip(
            jax.tree.leaves(gradients), jax.tree.leaves(plain_gradients), strict=True
        ):
            scale = float(np.abs(expected).max())
            np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


def test_stochastic_depth_is_off_outside_training_and_rises_from_the_first_block():
    model = ViT(**SMALL, drop_path_rate=0.5)
    plain = ViT(**SMALL)
    params, images = params_of(plain), images_of(16)
    expected = encode(plain, params, images, depths=(1, 3)).tokens
    np.testing.assert_array_equal(encode(model, params, images, depths=(1, 3)).tokens, expected)

    @jax.jit
    def train(seed):
        return model.apply(
            {"params": params},
            images,
            depths=(1, 3),
            is_training=True,
            rngs={"drop_path": jax.random.key(seed)},
        ).tokens

    first = train(0)
    # Rate 0 at the first block; at the others it is on, and a function of the key.
    np.testing.assert_allclose(first[0], expected[0], rtol=1e-5, atol=1e-6)
    assert not np.allclose(first[1], expected[1], atol=1e-2)
    np.testing.assert_array_equal(train(0), first)
    assert not np.allclose(train(1)[1], first[1], atol=1e-2)


def test_a_dropped_branch_is_left_out_for_whole_images_and_kept_ones_make_up_for_it():
    rate, batch = 0.25, 2000
    block = Block(num_heads=1, mlp_width=4, drop_path_rate=rate)
    rng = np.random.default_rng(0)
    tokens = rng.normal(size=(batch, 2, 4)).astype(np.float32)
    shapes = jax.eval_shape(lambda: block.init(jax.random.key(0), tokens))["params"]
    params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
    # Without the MLP's output, the block is its input and one branch.
    params["mlp_out"] = jax.tree.map(np.zeros_like, params["mlp_out"])
    apply = jax.jit(block.apply, static_argnums=2)
    branch = np.asarray(apply({"params": params}, tokens, False) - tokens)
    rngs = {"drop_path": jax.random.key(0)}
    dropped = np.asarray(apply({"params": params}, tokens, True, rngs=rngs) - tokens)
    is_kept = (dropped != 0).any(axis=(1, 2))
    np.testing.assert_array_equal(dropped[~is_kept], 0)
    np.testing.assert_allclose(dropped[is_kept], branch[is_kept] / (1 - rate), rtol=1e-4, atol=1e-5)
    assert abs(is_kept.mean() - (1 - rate)) < 4 * (rate * (1 - rate) / batch) ** 0.5


@pytest.mark.slow
def test_bfloat16_computes_in_bfloat16_from_float32_parameters():
    model = ViT(**SMALL, dtype=jnp.bfloat16)
    images = images_of()
    variables = jax.jit(model.init)(jax.random.key(0), images, mask=MASK)
    assert {leaf.dtype for leaf in jax.tree.leaves(variables)} == {jnp.dtype(jnp.float32)}
    features = encode(model, variables["params"], images, MASK)
    assert features.tokens.dtype == jnp.bfloat16
    expected = encode(ViT(**SMALL), variables["params"], images, MASK).tokens
    # bfloat16 keeps 8 bits: 0.4 % a rounding, of features of order 1, over three blocks.
    np.testing.assert_allclose(features.tokens.astype(np.float32), expected, atol=0.06)


@pytest.mark.parametrize("depths", [(4,), (0, 2), (2, 1), (2, 2), (), (-1,)])
def test_depths_that_are_none_of_the_models_are_an_error(depths):
    model = ViT(**SMALL)
    with pytest.raises(ValueError, match="from at least 1 to at most 3") as error:
        jax.eval_shape(lambda: model.init(jax.random.key(0), images_of(), depths=depths))
    assert str(depths) in str(error.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (12, 8)}, r"images are \(8, 12\) pixels; this encoder is for \(12, 8\)"),
        ({"patch_size": 5}, "not divisible by patch_size=5"),
        ({"positions": "rotary"}, "positions='rotary'; known: 'sincos', 'learned'"),
        ({"rematerialization": "some"}, "rematerialization='some'"),
    ],
)
def test_wrong_options_are_errors_that_name_what_was_given(options, message):
    model = ViT(**{**SMALL, **options})
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(lambda: model.init(jax.random.key(0), images_of()))
