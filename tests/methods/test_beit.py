"""BEiT under ``last`` is the published one, by golden arrays; BEiT v2 adds one readout to it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import golden_arrays
import stand_ins
from ddae_jax.interop.weights_to_params import transformers_encoder
from ddae_jax.methods import METHODS
from ddae_jax.methods.targets import cross_entropy
from ddae_jax.methods.vqkd import TrainedTokenizer
from ddae_jax.models.attention import RelativePositionBias
from ddae_jax.models.codebook import unit_vectors
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.tokenizer import Tokenizer
from ddae_jax.models.transformer import Block, layer_norm
from ddae_jax.models.vit import ViT

ENCODER = ViT(
    (16, 16),
    4,
    width=32,
    depth=2,
    num_heads=2,
    positions="none",
    relative_positions="per_block",
    has_key_bias=False,
    layer_scale=0.1,
)
NUM_CODES = 40


class ReadTokens(TrainedTokenizer):
    """A tokenizer that returns the tokens stored in its ``frozen``."""

    def tokens(self, frozen, images):
        return frozen["tokens"]


def tokenizer_of(encoder=ENCODER, tokens=None):
    decoder = Decoder(encoder.grid, width=8, depth=0, num_heads=2)
    module = Tokenizer(encoder, decoder, code_width=4, teacher_width=1)
    codes = unit_vectors(np.random.default_rng(0).normal(size=(NUM_CODES, 4)))
    if tokens is not None:
        return ReadTokens(module, {"codes": codes, "tokens": jnp.asarray(tokens)})
    images = np.zeros((1, *encoder.image_size, 3), np.float32)
    params = stand_ins.parameters(lambda: module.init(jax.random.key(5), images))["params"]
    return TrainedTokenizer(module, {"params": params, "codes": codes})


def method(name="beit", *, encoder=ENCODER, tokenizer=None, mask=None, num_masked=7, **options):
    options = {"mode": "last", "depths": (encoder.depth,)} | options
    return METHODS[name].build(
        encoder,
        options.pop("decoder", None),
        tokenizer=tokenizer or tokenizer_of(encoder),
        sample_mask=lambda key, batch: mask,
        num_masked=num_masked,
        **options,
    )


@pytest.fixture(scope="module")
def golden():
    arrays, weights = golden_arrays.load("beit")
    head = {"kernel": weights["lm_head.weight"].T, "bias": weights["lm_head.bias"]}
    return arrays, {"encoder": transformers_encoder(weights, "beit."), "head": head}


def test_all_of_the_reference_s_parameters_have_a_place(golden):
    _, params = golden
    wanted = jax.eval_shape(lambda key: method().init(key, 3), jax.random.key(0))
    golden_arrays.assert_same_shapes(params, wanted)


def test_logits_are_the_reference_s(golden):
    arrays, params = golden
    found = golden_arrays.predict(method(), params, arrays["images"], arrays["mask"])
    np.testing.assert_allclose(found["tokens"][0], arrays["logits"], atol=1e-5)


def test_positions_that_all_blocks_share_are_those_of_each_block_where_these_are_alike(golden):
    """The recipe shares positions between blocks; the golden arrays have them in each block."""
    arrays, params = golden
    encoder = dict(params["encoder"])
    shared = encoder.pop("relative_positions_01")
    encoder.pop("relative_positions_02")
    of_all = params | {"encoder": encoder | {"shared_bias": shared}}
    of_each = params | {"encoder": encoder | {f"relative_positions_0{k}": shared for k in (1, 2)}}
    ours = method(encoder=ENCODER.clone(relative_positions="shared"))
    found, wanted = (
        golden_arrays.predict(m, p, arrays["images"], arrays["mask"])["tokens"]
        for m, p in ((ours, of_all), (method(), of_each))
    )
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert np.abs(shared["table"]).max() > 0.01


def test_loss_and_gradients_are_the_reference_s(golden):
    arrays, params = golden
    tokenizer = tokenizer_of(tokens=arrays["tokens"])
    ours = method(mask=jnp.asarray(arrays["mask"]), tokenizer=tokenizer)

    (value, _), gradient = golden_arrays.loss_and_gradient(
        ours, params, tokenizer.frozen, arrays["images"]
    )
    np.testing.assert_allclose(value, arrays["loss"], rtol=1e-5)
    encoder = gradient["encoder"]
    found = {
        "beit.embeddings.cls_token": encoder["class_token"][None, None],
        "beit.embeddings.mask_token": encoder["mask_token"][None, None],
        "beit.layers.0.attention.q_proj.bias": encoder["block_01"]["attention"]["query_bias"],
        "beit.layers.0.relative_position_bias.relative_position_bias_table": (
            encoder["relative_positions_01"]["table"]
        ),
        "beit.layers.1.attention.k_proj.weight": (
            encoder["block_02"]["attention"]["qkv"]["kernel"][:, 32:64].T
        ),
        "beit.layers.1.lambda_2": encoder["block_02"]["mlp_scale"],
        "layernorm.bias": encoder["norm"]["bias"],
        "lm_head.weight": gradient["head"]["kernel"].T,
    }
    expected = golden_arrays.gradients(arrays)
    assert found.keys() == expected.keys()
    for name, array in found.items():
        np.testing.assert_allclose(array, expected[name], atol=1e-6, rtol=1e-4, err_msg=name)


def images_and_mask():
    rng = np.random.default_rng(3)
    images = rng.normal(size=(3, 16, 16, 3)).astype(np.float32)
    return images, rng.random((3, 16)).argsort(axis=1) < 7


@pytest.mark.slow
def test_targets_are_the_tokenizer_s_and_no_gradient_moves_it():
    images, mask = images_and_mask()
    tokenizer = tokenizer_of()
    ours = method(mask=jnp.asarray(mask), tokenizer=tokenizer, depths=(1, 2), mode="deep")
    params = golden_arrays.initialize(ours)
    teacher = ours.init_teacher(params)
    tokens = jax.jit(functools.partial(tokenizer.module.apply, method="tokens"))(
        {"params": tokenizer.frozen["params"]}, images, tokenizer.frozen["codes"]
    )
    np.testing.assert_array_equal(jax.jit(ours.targets)(teacher, images)["tokens"][0], tokens)
    predicted = golden_arrays.predict(ours, params, images, mask)["tokens"]
    log_shares = np.asarray(jax.nn.log_softmax(predicted))
    by_hand = -np.take_along_axis(log_shares, np.asarray(tokens)[None, ..., None], -1)[..., 0]
    (loss, outcome), _ = golden_arrays.loss_and_gradient(ours, params, teacher, images)
    np.testing.assert_allclose(loss, by_hand[:, mask].mean(axis=1).sum(), rtol=1e-5)
    assert jax.tree.all(
        jax.tree.map(np.array_equal, ours.update_teacher(teacher, params, outcome, 0.5), teacher)
    )
    assert ours.frozen_part(teacher) is teacher


def test_what_people_see_are_tokens_true_and_predicted():
    images, mask = images_and_mask()
    ours = method(mask=jnp.asarray(mask), depths=(1, 2), mode="deep")
    params = golden_arrays.initialize(ours)
    seen = jax.jit(ours.visualize)(params, ours.init_teacher(params), images, jax.random.key(0))
    predicted = golden_arrays.predict(ours, params, images, mask)["tokens"]
    np.testing.assert_array_equal(seen["predicted_tokens"], np.argmax(predicted, -1))
    assert seen["tokens"].shape == (3, 16)
    assert seen["codes"].shape == (NUM_CODES, 4)


@pytest.mark.slow
@pytest.mark.parametrize("relative", ["per_block", "shared", "none"])
def test_beit2_reads_out_the_last_class_token_beside_earlier_patches(relative):
    images, mask = images_and_mask()
    encoder = ENCODER.clone(
        relative_positions=relative, positions="sincos" if relative == "none" else "none", depth=4
    )
    ours = method("beit2", encoder=encoder, mask=jnp.asarray(mask))
    assert ours.depths == (4, 6)
    params = golden_arrays.initialize(ours)
    found = golden_arrays.predict(ours, params, images, mask)["tokens"]

    @jax.jit
    def by_hand(params):
        of_encoder = {"params": params["encoder"]}
        tokens = encoder.apply(of_encoder, images, mask=mask, depths=(3, 4), normalize=False).tokens
        joined = jnp.concatenate([tokens[1][:, :1], tokens[0][:, 1:]], axis=1)
        bias = None
        if relative == "shared":
            bias = encoder.apply(of_encoder, method="attention_bias")
        for index in range(2):
            block = {"params": params[f"aggregation_blocks_{index}"]}
            if relative == "per_block":
                own = {"params": params[f"aggregation_positions_{index}"]}
                bias = RelativePositionBias(**encoder.position_options).apply(own)
            joined = Block(**encoder.block_options).apply(block, joined, False, bias)
        norm = {"params": params["encoder"]["norm"]}
        both = layer_norm(jnp.float32).apply(norm, jnp.stack([tokens[1], joined])[:, :, 1:])
        return both @ params["head"]["kernel"] + params["head"]["bias"]

    np.testing.assert_allclose(found, by_hand(params), atol=1e-5)


@pytest.mark.slow
def test_without_its_aggregation_beit2_is_beit():
    images, mask = images_and_mask()
    plain = method(mask=jnp.asarray(mask))
    ours = method("beit2", mask=jnp.asarray(mask))
    params = golden_arrays.initialize(ours)
    shared = {"encoder": params["encoder"], "head": params["head"]}
    key = jax.random.key(0)
    expected, _ = jax.jit(plain.loss)(shared, plain.frozen, images, key)
    _, outcome = jax.jit(ours.loss)(params, ours.frozen, images, key)
    np.testing.assert_allclose(outcome.losses[0, 0], expected, rtol=1e-5)
    assert outcome.losses.shape == (1, 2)


@pytest.mark.slow
def test_the_aggregation_s_readout_moves_the_class_token_of_the_last_block():
    images, mask = images_and_mask()
    ours = method("beit2", mask=jnp.asarray(mask), encoder=ENCODER.clone(depth=3))
    params = golden_arrays.initialize(ours)

    def of_aggregation(params):
        return ours.loss(params, ours.frozen, images, jax.random.key(0))[1].losses[0, 1]

    gradient = jax.jit(jax.grad(of_aggregation))(params)["encoder"]
    # The last block's patches are not read: its gradient comes through the class token alone.
    assert float(jnp.abs(gradient["block_03"]["mlp_out"]["kernel"]).max()) > 0


def test_cross_entropy_by_hand():
    logits = np.array([[[[1.0, 2.0, 0.5]]], [[[0.0, 0.0, 0.0]]]])
    found = cross_entropy(jnp.asarray(logits), jnp.array([[[1]]]))
    first = -2.0 + np.log(np.exp([1.0, 2.0, 0.5]).sum())
    np.testing.assert_allclose(found[:, 0, 0], [first, np.log(3)], rtol=1e-6)
    assert cross_entropy(jnp.asarray(logits, jnp.bfloat16), jnp.array([[[1]]])).dtype == jnp.float32


@pytest.mark.parametrize(
    ("other", "what"), [({"patch_size": 8}, "patch_size=8"), ({"image_size": (32, 16)}, "32, 16")]
)
@pytest.mark.parametrize("name", ["beit", "beit2"])
def test_a_tokenizer_of_another_grid_is_refused(name, other, what):
    with pytest.raises(ValueError, match=what) as caught:
        method(name, tokenizer=tokenizer_of(ENCODER.clone(**other)))
    assert "(4, 4)" in str(caught.value)
    assert "Train a tokenizer for this model" in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decoder": Decoder((4, 4), width=8, depth=1, num_heads=2)}, "encoder_input='full'"),
        ({"encoder": ENCODER.clone(use_class_token=False)}, "use_class_token=True"),
        ({"aggregated_patches_from": 2}, r"aggregated_patches_from=2; it lies in \[1, 1\]"),
    ],
)
def test_what_cannot_be_aggregated_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        method("beit2", **options)
