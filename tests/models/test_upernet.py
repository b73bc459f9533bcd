"""UperNet, given transformers' weights, scores places as transformers does."""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import golden_arrays
from ddae_jax.interop.weights_to_params import transformers_encoder
from ddae_jax.methods.supervised import LabelledTask, segmentation_error
from ddae_jax.models.upernet import (
    FcnHead,
    FeaturePyramid,
    Segmenter,
    UperNetHead,
    adaptive_mean,
    resize_bilinear,
)
from ddae_jax.models.vit import ViT
from ddae_jax.training.program import TrainProgram
from ddae_jax.training.sharding import make_mesh, put_batch

DEPTHS = (1, 2, 3, 4)


class Reference(nn.Module):
    """The tiny network of the golden arrays."""

    encoder: ViT

    @nn.compact
    def __call__(self, images, is_training=False):
        patches = self.encoder(images, depths=DEPTHS, normalize=False).patches
        maps = tuple(patches.reshape(4, len(images), *self.encoder.grid, -1))
        pyramid = FeaturePyramid(name="pyramid")(maps, is_training)
        upernet, auxiliary = UperNetHead(5, 8, name="upernet"), FcnHead(5, 8, name="auxiliary")
        return upernet(pyramid, is_training), auxiliary(pyramid[2], is_training)


def convolution(weight):
    return weight.transpose(2, 3, 1, 0)


def transposed_convolution(weight):
    return weight.transpose(2, 3, 0, 1)[::-1, ::-1]  # which flax does not turn


def converted(weights):
    """Parameters and batch statistics of :class:`Reference`."""
    params, statistics = {}, {}

    def put(tree, path, value):
        *folders, leaf = path.split("/")
        for folder in folders:
            tree = tree.setdefault(folder, {})
        tree[leaf] = value

    def norm(theirs, ours):
        put(params, f"{ours}/scale", weights[f"{theirs}.weight"])
        put(params, f"{ours}/bias", weights[f"{theirs}.bias"])
        put(statistics, f"{ours}/mean", weights[f"{theirs}.running_mean"])
        put(statistics, f"{ours}/var", weights[f"{theirs}.running_var"])

    def convolved(theirs, ours):
        put(params, f"{ours}/convolution/kernel", convolution(weights[f"{theirs}.conv.weight"]))
        norm(f"{theirs}.batch_norm", f"{ours}/norm")

    def classifier(theirs, ours):
        put(params, f"{ours}/kernel", weights[f"{theirs}.weight"][:, :, 0, 0].T)
        put(params, f"{ours}/bias", weights[f"{theirs}.bias"])

    fpn = "backbone.fpn"
    for theirs, ours in (
        ("fpn1.conv_transpose1", "up_1a"),
        ("fpn1.conv_transpose2", "up_1b"),
        ("fpn2", "up_2"),
    ):
        kernel = transposed_convolution(weights[f"{fpn}.{theirs}.weight"])
        put(params, f"pyramid/{ours}/kernel", kernel)
        put(params, f"pyramid/{ours}/bias", weights[f"{fpn}.{theirs}.bias"])
    norm(f"{fpn}.fpn1.normalization", "pyramid/up_1_norm")
    for index, bins in enumerate((1, 2, 3, 6)):
        convolved(f"decode_head.psp_modules.{index}.1", f"upernet/pooled_{bins}")
    for index in range(3):
        convolved(f"decode_head.lateral_convs.{index}", f"upernet/lateral_{index + 1}")
        convolved(f"decode_head.fpn_convs.{index}", f"upernet/output_{index + 1}")
    convolved("decode_head.bottleneck", "upernet/bottleneck")
    convolved("decode_head.fpn_bottleneck", "upernet/fused")
    classifier("decode_head.classifier", "upernet/classifier")
    convolved("auxiliary_head.convs.0", "auxiliary/hidden")
    classifier("auxiliary_head.classifier", "auxiliary/classifier")
    encoder = {
        name.replace("backbone.beit.", "beit."): array
        for name, array in weights.items()
        if name.startswith("backbone.beit.")
    }
    params["encoder"] = transformers_encoder(encoder, "beit.")
    return params, statistics


@pytest.fixture(scope="module")
def reference():
    arrays, weights = golden_arrays.load("upernet")
    encoder = ViT(
        (16, 16), 4, width=16, depth=4, num_heads=2, positions="learned",
        has_key_bias=False, layer_scale=0.1, norm_epsilon=1e-12,
    )  # fmt: skip
    network = Reference(encoder)
    params, statistics = converted(weights)
    return network, {"params": params, "batch_stats": statistics}, arrays, weights


def test_all_of_the_parameters_are_there_and_no_others(reference):
    network, variables, arrays, _ = reference
    wanted = jax.eval_shape(network.init, jax.random.key(0), arrays["images"])
    wanted["params"]["encoder"].pop("norm")  # of which a segmenter has no use
    golden_arrays.assert_same_shapes(variables, wanted)


def test_scores_of_both_heads_are_those_of_transformers(reference):
    network, variables, arrays, _ = reference
    logits, auxiliary = jax.jit(network.apply)(variables, arrays["images"])
    np.testing.assert_allclose(logits, arrays["logits"], atol=1e-4)
    np.testing.assert_allclose(auxiliary, arrays["auxiliary"], atol=1e-4)


def test_batch_statistics_move_as_those_of_torch(reference):
    network, variables, arrays, weights = reference
    run = jax.jit(functools.partial(network.apply, is_training=True, mutable=["batch_stats"]))
    _, changed = run(variables, arrays["images"], rngs={"dropout": jax.random.key(0)})
    found = changed["batch_stats"]
    for theirs, ours, places in (
        ("backbone.fpn.fpn1.normalization", found["pyramid"]["up_1_norm"], 2 * 8 * 8),
        ("decode_head.fpn_bottleneck.batch_norm", found["upernet"]["fused"]["norm"], 2 * 16 * 16),
        ("decode_head.psp_modules.0.1.batch_norm", found["upernet"]["pooled_1"]["norm"], 2),
        ("auxiliary_head.convs.0.batch_norm", found["auxiliary"]["hidden"]["norm"], 2 * 4 * 4),
    ):
        after = f"after/{theirs}.running"
        np.testing.assert_allclose(ours["mean"], arrays[f"{after}_mean"], atol=1e-4)
        # torch keeps the unbiased variance, flax that of the batch.
        before = 0.9 * weights[f"{theirs}.running_var"]
        unbiased = before + (np.asarray(ours["var"]) - before) * places / (places - 1)
        np.testing.assert_allclose(unbiased, arrays[f"{after}_var"], atol=1e-4)


@pytest.mark.parametrize("size", [(9, 7), (2, 3)])
def test_maps_are_resized_as_torch_resizes_them(size, reference):
    _, _, arrays, _ = reference
    found = resize_bilinear(jnp.asarray(arrays["coarse"]), size)
    np.testing.assert_allclose(found, arrays[f"resized_{size[0]}_{size[1]}"], atol=1e-5)


@pytest.mark.parametrize("bins", [1, 2, 3, 6])
def test_adaptive_means_by_hand(bins):
    values = np.random.default_rng(0).normal(size=(2, 5, 8, 3)).astype(np.float32)
    found = adaptive_mean(jnp.asarray(values), bins)
    for row in range(bins):
        for column in range(bins):
            rows = slice(row * 5 // bins, -(-(row + 1) * 5 // bins))
            columns = slice(column * 8 // bins, -(-(column + 1) * 8 // bins))
            expected = values[:, rows, columns].mean((1, 2))
            np.testing.assert_allclose(found[:, row, column], expected, atol=1e-5)


# ---- as it is trained

ENCODER = ViT((24, 16), 4, width=16, depth=4, num_heads=2)
BATCH = {
    "image": np.random.default_rng(0).normal(size=(8, 24, 16, 3)).astype(np.float32),
    "label": np.random.default_rng(1).integers(0, 3, (8, 24, 16)).astype(np.int32),
}
BATCH["label"][:, :4] = 255


def task(head):
    network = Segmenter(ENCODER, 3, head=head, depths=DEPTHS, head_width=8)
    return LabelledTask(network, segmentation_error)


@pytest.mark.parametrize(("head", "shape"), [("upernet", (24, 16)), ("linear", (6, 4))])
def test_a_grid_that_is_no_square_is_scored_finer_or_as_it_is(head, shape):
    network = task(head).network
    variables = jax.eval_shape(network.init, jax.random.key(0), BATCH["image"])
    logits, auxiliary = jax.eval_shape(network.apply, variables, BATCH["image"])
    assert logits.shape == (8, *shape, 3)
    assert (None if auxiliary is None else auxiliary.shape) == (
        (8, 6, 4, 3) if head == "upernet" else None
    )


@pytest.mark.slow
def test_over_eight_devices_it_learns_what_it_learns_on_one():
    """Gradients, and the statistics of batch norms, are of the whole batch."""
    states = []
    program = TrainProgram(
        task("upernet"),
        lambda key, batch: (batch["image"], batch["label"]),
        optax.sgd(0.1),
        learning_rate=optax.constant_schedule(0.1),
        momentum=optax.constant_schedule(0.0),
        channels=3,
        seed=0,
    )
    start = jax.device_get(program.init_state(make_mesh(1, 1, jax.devices()[:1])))
    before = start.params
    for num_devices in (1, 8):
        mesh = make_mesh(devices=jax.devices()[:num_devices])
        state, _ = program.jit(mesh)(start, put_batch(BATCH, mesh))
        states.append(jax.device_get((state.params, state.teacher)))
    (one, teacher), many = states
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), (one, teacher), many)
    moved = jax.tree.map(lambda a, b: bool(np.any(a != b)), before, one)
    moved["encoder"].pop("norm")  # of which a segmenter has no use
    assert all(jax.tree.leaves(moved))
    assert all(np.any(leaf != 0) for leaf in jax.tree.leaves(teacher["statistics"]))


def test_the_error_by_hand():
    rng = np.random.default_rng(0)
    scores, auxiliary = rng.normal(size=(2, 2, 6, 6, 3)).astype(np.float32)
    labels = rng.integers(0, 3, (2, 6, 6))
    labels[0, 0] = 255
    found, metrics = segmentation_error((scores, auxiliary), jnp.asarray(labels), 0.4)

    def error(values):
        share = np.exp(values) / np.exp(values).sum(-1, keepdims=True)
        counts = labels != 255
        return -np.log(share[counts, labels[counts]]).mean()

    np.testing.assert_allclose(found, error(scores) + 0.4 * error(auxiliary), rtol=1e-5)
    right = (scores.argmax(-1) == labels).sum() / (labels != 255).sum()
    np.testing.assert_allclose(metrics["train_accuracy"], right, rtol=1e-6)


def test_nothing_but_ignored_pixels_is_no_error():
    scores = jnp.ones((1, 2, 2, 3))
    loss, _ = segmentation_error((scores, None), jnp.full((1, 4, 4), 255))
    assert loss == 0
