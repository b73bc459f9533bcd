"""VQ-KD tokenizers that the authors of BEiT v2, or their code, have trained.

A file, such as the published ``vqkd_encoder_*.pth``, or a folder with ``model.safetensors`` or
``pytorch_model.bin``, holds their weights: of an encoder, of the layers that project its patches to
codes, and of the codebook. What belongs to decoder and teacher is left out.
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

_HEAD_WIDTH = 64  # of every vision transformer that these tokenizers have


class ForeignTokenizer(NamedTuple):
    """A tokenizer that was trained elsewhere.

    Attributes:
        options: arguments of :class:`ddae_jax.models.vit.ViT` for its encoder.
        params: ``encoder``, ``code_hidden`` and ``code_projection``.
        codes: unit vectors, (codes, code width).
        mean, std: of each channel, of pixel values in [0, 1], that it was trained on.
    """

    options: dict[str, Any]
    params: Tree
    codes: np.ndarray
    mean: tuple[float, ...]
    std: tuple[float, ...]


def read_tokenizer(place: str | os.PathLike) -> ForeignTokenizer:
    """The tokenizer in a file or folder.

    Raises ``FileNotFoundError`` if there is none, ``ValueError`` if its weights are not known here.
    """
    path = pathlib.Path(place)
    path = path if is_file(path) else find_weights(path)
    weights = read_weights(path)
    try:
        return _tokenizer_in(weights)
    except UnknownWeights as error:
        raise UnknownWeights(f"{path}: {error}") from error


def _tokenizer_in(weights: Weights) -> ForeignTokenizer:
    of_encoder = {
        name.removeprefix("encoder."): array
        for name, array in weights.items()
        if name.startswith("encoder.")
    }
    beside = {n: a for n, a in weights.items() if re.match(r"(encode_task_layer|quantize)\.", n)}
    try:
        params = {"encoder": timm_encoder(of_encoder), **convert(beside, _BESIDE)}
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


_BESIDE = (
    *layer(r"encode_task_layer\.0", "code_hidden"),
    *layer(r"encode_task_layer\.2", "code_projection"),
    Rule(r"quantize\.embedding\.weight", "codes"),
    Rule(r"quantize\..*", None),  # how codes were used while they were learned
)
