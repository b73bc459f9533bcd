"""VQ-KD tokenizers that were trained with the code of BEiT v2's authors.

The weights lie in a file, such as the published ``vqkd_encoder_*.pth``, or in a folder with
``model.safetensors`` or ``pytorch_model.bin``. They are those of an encoder, of the layers that
project its patches to codes, and of the codebook. Decoder and teacher are left out.

Source: Peng et al. 2022, "BEiT v2: Masked Image Modeling with Vector-Quantized Visual Tokenizers".
"""

import math
import os
import pathlib
import re
from typing import Any, NamedTuple

import numpy as np

from ddae_jax.data.disks import is_file
from ddae_jax.interop.architecture import describe_encoder
from ddae_jax.interop.weight_files import find_weights, read_weights
from ddae_jax.interop.weight_names import Rule, layer
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights, Weights, convert, timm_encoder

_HEAD_WIDTH = 64  # in the vision transformers of all such tokenizers


class ForeignTokenizer(NamedTuple):
    """Tokenizer that was trained elsewhere.

    Attributes:
        options: arguments of :class:`ddae_jax.models.vit.ViT` for its encoder.
        params: parameters ``encoder``, ``code_hidden`` and ``code_projection``.
        codes: the codebook, unit vectors, (codes, code width).
        mean, std: statistics of the pixel values, in [0, 1], that it was trained on, one value a
            channel.
    """

    options: dict[str, Any]
    params: Tree
    codes: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_tokenizer(place: str | os.PathLike) -> ForeignTokenizer:
    """Reads the tokenizer in a file or folder.

    Raises:
        FileNotFoundError: if there is no file of weights.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if the weights are damaged, or are no such tokenizer's.
    """
    path = pathlib.Path(place)
    path = path if is_file(path) else find_weights(path)
    weights = read_weights(path)
    try:
        return _convert_tokenizer(weights)
    except UnknownWeights as error:
        raise UnknownWeights(f"{path}: {error}") from error


def _convert_tokenizer(weights: Weights) -> ForeignTokenizer:
    """Converts a tokenizer's weights. Raises :class:`UnknownWeights` if they are none's."""
    encoder_weights = {
        name.removeprefix("encoder."): array
        for name, array in weights.items()
        if name.startswith("encoder.")
    }
    others = {n: a for n, a in weights.items() if re.match(r"(encode_task_layer|quantize)\.", n)}
    try:
        params = {"encoder": timm_encoder(encoder_weights), **convert(others, _TABLE)}
        codes = params.pop("codes")
        width = params["encoder"]["patch_embedding"]["kernel"].shape[1]
        grid = math.isqrt(len(params["encoder"]["positions"]))
    except KeyError as error:
        raise UnknownWeights(f"no tokenizer of BEiT v2: it has no {error.args[0]!r}") from error
    if width % _HEAD_WIDTH:
        raise UnknownWeights(f"width {width} is not made of heads of {_HEAD_WIDTH} values")
    channels = 3
    options = {"num_heads": width // _HEAD_WIDTH}
    options |= describe_encoder(params["encoder"], channels)
    side = grid * options["patch_size"]
    options["image_size"] = (side, side)
    half = (0.5,) * channels  # pixel values from -1 to 1
    return ForeignTokenizer(options, params, codes, half, half)


_TABLE = (
    *layer(r"encode_task_layer\.0", "code_hidden"),
    *layer(r"encode_task_layer\.2", "code_projection"),
    Rule(r"quantize\.embedding\.weight", "codes"),
    Rule(r"quantize\..*", None),  # statistics of the codes' use during training
)
"""Names of the arrays beside the encoder: see :mod:`ddae_jax.interop.weight_names`."""
