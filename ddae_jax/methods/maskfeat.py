"""MaskFeat: predicts the histograms of oriented gradients (HOG) of hidden patches."""

import jax.numpy as jnp

from ddae_jax.methods.hog import HogForm, check_form, directions
from ddae_jax.methods.make_method import make_method
from ddae_jax.methods.method import Method
from ddae_jax.methods.objectives import Objective
from ddae_jax.methods.spec import MethodSpec
from ddae_jax.methods.targets import check_cells, hog_targets, squared_error
from ddae_jax.models.decoder import Decoder
from ddae_jax.models.vit import ViT

_NUM_ORIENTATIONS = 9


def maskfeat(
    encoder: ViT,
    decoder: Decoder | None,
    *,
    channels: int = 3,
    hog_cell: int = 8,
    hog_form: HogForm = "sobel",
    **options,
) -> Method:
    """Builds MaskFeat: every supervised depth predicts hidden patches' HOG, by mean squared error.

    With ``full`` input, block-wise masks of 40 %, learned positions, gradients by Sobel's filters
    and the mode ``last``, this is MaskFeat for images. Each cell's histogram is normalised
    separately in each channel.

    Args:
        encoder: the vision transformer.
        decoder: a light decoder for ``visible`` input; None for ``full`` input.
        channels: number of image channels; each has its own histograms.
        hog_cell: side of a cell in pixels; divides the patch size.
        hog_form: ``sobel`` (the authors') or ``differences``; see
            :func:`ddae_jax.methods.hog.hog`.
        options: masking and supervision, see
            :func:`ddae_jax.methods.make_method.make_method`.

    Raises:
        ValueError: if patches do not divide into whole cells, or the form is unknown.

    Source: Wei et al. 2022, "Masked Feature Prediction for Self-Supervised Visual Pre-Training".
    """

    def targets(teacher, images):
        return {"hog": hog_targets(images, encoder.patch_size, hog_cell, hog_form)[None]}

    def visualize(predictions, targets, teacher, images):
        on_grid = (*encoder.grid, cells, cells, channels, _NUM_ORIENTATIONS)

        def histograms(values):  # mean over channels, laid out on the grid of cells
            values = values.astype(jnp.float32).reshape(*values.shape[:2], *on_grid).mean(axis=-2)
            values = jnp.moveaxis(values, 4, 3)
            h, w = encoder.grid
            return values.reshape(*values.shape[:2], h * cells, w * cells, _NUM_ORIENTATIONS)

        return {
            "histograms": histograms(targets["hog"])[0],
            "predicted_histograms": histograms(predictions["hog"]),
            "directions": jnp.asarray(directions(_NUM_ORIENTATIONS, hog_form)),
        }

    check_cells(encoder.patch_size, hog_cell)
    check_form(hog_form)
    cells = encoder.patch_size // hog_cell
    width = cells**2 * channels * _NUM_ORIENTATIONS
    return make_method(
        encoder,
        decoder,
        {"hog": Objective(width, squared_error)},
        targets,
        visualize_predictions=visualize,
        **options,
    )


SPEC = MethodSpec(
    name="maskfeat",
    summary="the histograms of oriented gradients of hidden patches",
    build=maskfeat,
    papers=(
        "Wei et al. 2022. *Masked Feature Prediction for Self-Supervised Visual Pre-Training*. "
        "CVPR. arXiv:2112.09133",
    ),
    recipe={
        "model.encoder_input": "full",
        "model.positions": "learned",
        "mask.kind": "block",
        "mask.ratio": 0.4,
        "mask.min_block_share": 0.2,
        "targets.hog_form": "sobel",
        "optimizer.decay_also": "class_token,mask_token,positions",
    },
    check=lambda keys: check_cells(keys["model.patch_size"], keys["targets.hog_cell"]),
)
