"""VQ-KD: the loss by hand, the straight-through gradient, and a codebook that follows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

import golden_arrays
import stand_ins
from ddae_jax.methods.vqkd import DistilledTeacher, TrainedTokenizer, VqKd
from ddae_jax.models.codebook import Codebook, unit_vectors
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.tokenizer import Tokenizer
from ddae_jax.models.vit import ViT

ENCODER = ViT((16, 16), 4, width=16, depth=2, num_heads=2)
TEACHER = ViT((16, 16), 4, width=24, depth=1, num_heads=2)
NUM_CODES = 12


def images_of(batch=8):
    return np.random.default_rng(0).normal(size=(batch, 16, 16, 3)).astype(np.float32)


@functools.cache
def example(**options):
    decoder = Decoder((4, 4), width=8, depth=1, num_heads=2)
    teacher_params = stand_ins.parameters(
        lambda: TEACHER.init(jax.random.key(9), images_of(1))["params"], seed=9
    )
    method = VqKd(
        Tokenizer(ENCODER, decoder, code_width=6, teacher_width=24),
        DistilledTeacher(TEACHER, teacher_params, adapt=lambda images: 2 * images + 1),
        num_codes=NUM_CODES,
        **options,
    )
    params = golden_arrays.initialize(method)
    return method, params, jax.jit(method.loss)


def started(method, params):
    codes = unit_vectors(np.random.default_rng(1).normal(size=(NUM_CODES, 6)))
    usage = jnp.full(NUM_CODES, 1 / NUM_CODES)
    return method.init_teacher(params) | {"codebook": Codebook(codes, usage)}


def encode(method, params, images):
    apply = jax.jit(functools.partial(method.tokenizer.apply, method="encode"))
    return apply({"params": params}, images)


def teacher_features(method, images):
    return jax.jit(TEACHER.apply)({"params": method.frozen}, 2 * images + 1).patches[0]


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.mark.slow
def test_the_loss_by_hand():
    method, params, loss = example(commitment=0.7)
    teacher, images = started(method, params), images_of()
    value, outcome = loss(params, teacher, images, jax.random.key(0))
    vectors = np.asarray(encode(method, params, images))
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=-1), 1, atol=1e-5)
    codes = np.asarray(teacher["codebook"].codes)
    nearest = (vectors @ codes.T).argmax(-1)
    decode = jax.jit(functools.partial(method.tokenizer.apply, method="decode"))
    predicted = unit(np.asarray(decode({"params": params}, codes[nearest])))
    features = teacher_features(method, images)
    cosine = (predicted * unit(np.asarray(features))).sum(-1)
    np.testing.assert_allclose(outcome.feature_loss, 1 - cosine.mean(), rtol=1e-4)
    commitment = ((vectors - codes[nearest]) ** 2).mean()
    np.testing.assert_allclose(outcome.commitment_loss, commitment, rtol=1e-4)
    np.testing.assert_allclose(value, 1 - cosine.mean() + 0.7 * commitment, rtol=1e-4)
    share = np.bincount(nearest.ravel(), minlength=NUM_CODES) / nearest.size
    np.testing.assert_allclose(outcome.share, share, atol=1e-6)
    metrics = method.metrics(outcome)
    np.testing.assert_allclose(metrics["codebook/used"], (share > 0).mean(), rtol=1e-6)
    np.testing.assert_allclose(
        metrics["codebook/perplexity"],
        np.exp(-(share[share > 0] * np.log(share[share > 0])).sum()),
        rtol=1e-4,
    )


@pytest.mark.slow
def test_the_gradient_passes_the_codes_as_if_they_were_the_vectors():
    method, params, _ = example(commitment=0.0)
    teacher, images = started(method, params), images_of()
    codes = np.asarray(teacher["codebook"].codes)
    vectors = encode(method, params, images)
    nearest = codes[np.argmax(vectors @ codes.T, -1)]
    wanted = unit_vectors(teacher_features(method, images))

    def of_codes(codes):
        predicted = method.tokenizer.apply({"params": params}, codes, method="decode")
        return 1 - (unit_vectors(predicted) * wanted).sum(-1).mean()

    @jax.jit
    def by_hand(params):
        _, pull_back = jax.vjp(lambda p: encode(method, p, images), params)
        return pull_back(jax.grad(of_codes)(jnp.asarray(nearest)))

    (expected,) = by_hand(params)
    _, found = golden_arrays.loss_and_gradient(method, params, teacher, images)
    for name in ("encoder", "code_hidden", "code_projection"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, atol=1e-6, rtol=1e-3),
            found[name],
            expected[name],
        )


@pytest.mark.slow
def test_the_codebook_starts_at_the_first_batch_and_follows_from_there():
    method, params, loss = example()
    teacher, images = method.init_teacher(params), images_of()
    assert not np.any(teacher["codebook"].codes)
    _, outcome = loss(params, teacher, images, jax.random.key(0))
    assert float(outcome.share.max()) < 1
    after = method.update_teacher(teacher, params, outcome, 0.5)
    np.testing.assert_allclose(np.linalg.norm(after["codebook"].codes, axis=1), 1, atol=1e-5)
    # Codes from k-means are nearer to the vectors of their batch than random codes are.
    _, at_random = loss(params, started(method, params), images, jax.random.key(0))
    assert outcome.commitment_loss < at_random.commitment_loss
    _, second = loss(params, after, images[:, ::-1] + 1, jax.random.key(1))
    moved = second.codebook.codes - after["codebook"].codes
    assert 0 < float(jnp.abs(moved).max()) < 0.5
    assert jax.tree.all(jax.tree.map(np.array_equal, after["encoder"], method.frozen))


def test_no_gradient_reaches_teacher_or_codes():
    method, params, _ = example()
    teacher = started(method, params)
    of_teacher = jax.grad(lambda t: method.loss(params, t, images_of(), jax.random.key(0))[0])
    gradient = jax.jit(of_teacher)(teacher)
    assert jax.tree.leaves(gradient["codebook"])
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


@pytest.mark.slow
def test_over_four_devices_it_learns_what_it_learns_on_one():
    method, params, loss = example()
    mesh = jax.make_mesh((4,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    split = jax.device_put(images_of(), NamedSharding(mesh, PartitionSpec("data")))
    teacher = method.init_teacher(params)
    value, one = loss(params, teacher, images_of(), jax.random.key(0))
    value_of_four, four = loss(params, teacher, split, jax.random.key(0))
    np.testing.assert_allclose(value_of_four, value, rtol=1e-5)
    np.testing.assert_allclose(four.share, one.share, atol=1e-6)
    np.testing.assert_allclose(four.codebook.codes, one.codebook.codes, atol=1e-5)
    np.testing.assert_allclose(four.codebook.usage, one.codebook.usage, atol=1e-6)


def test_a_trained_tokenizer_tells_the_tokens_that_training_saw():
    method, params, _ = example()
    teacher, images = started(method, params), images_of()
    codes = teacher["codebook"].codes
    needed = {k: params[k] for k in ("encoder", "code_hidden", "code_projection")}
    trained = TrainedTokenizer(
        method.tokenizer, {"params": needed, "codes": codes}, adapt=lambda images: images / 2
    )
    assert trained.num_codes == NUM_CODES
    vectors = encode(method, params, images)
    expected = np.argmax(vectors @ codes.T, -1)
    np.testing.assert_array_equal(jax.jit(trained.tokens)(trained.frozen, 2 * images), expected)
    seen = jax.jit(method.visualize)(params, teacher, images, jax.random.key(0))
    np.testing.assert_array_equal(seen["tokens"], expected)


@pytest.mark.parametrize("other", [{"patch_size": 8}, {"image_size": (32, 32)}])
def test_a_teacher_of_another_grid_is_refused(other):
    method, _, _ = example()
    teacher = DistilledTeacher(TEACHER.clone(**other), {})
    with pytest.raises(ValueError, match="each patch needs one feature") as caught:
        VqKd(method.tokenizer, teacher)
    assert "(4, 4)" in str(caught.value)
