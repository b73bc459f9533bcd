"""Decoders of masked autoencoders, which are published beside their encoders to go on with."""

import pathlib

from ddae_jax.data.disks import is_file
from ddae_jax.interop.json_files import read_json
from ddae_jax.interop.weight_files import find_weights, read_network, read_weights
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights, official_mae, transformers_mae


def read_mae_decoder(path: pathlib.Path, part: str = "") -> tuple[Tree, int | None]:
    """``decoder`` and ``head`` of an MAE, and the decoder's heads; None if they are not told.

    Args:
        path: of a file of its authors, or of a folder of transformers.
        part: see :func:`ddae_jax.interop.encoder_search.find_encoder`.

    Raises ``ValueError`` if there is no such decoder.
    """
    try:
        if is_file(path):
            whole, heads = official_mae(read_network(path, part).weights), None
        else:
            config = read_json(path / "config.json", "it says what the weights are of")
            if config.get("model_type") != "vit_mae":
                raise UnknownWeights("it is no vit_mae of transformers, which alone has a decoder")
            whole = transformers_mae(read_weights(find_weights(path)))
            heads = config.get("decoder_num_attention_heads", 16)
    except (UnknownWeights, KeyError) as error:
        raise UnknownWeights(
            f"init_decoder=True, but {path} has no decoder of an MAE: {error}. Published "
            "files that have one are called full; init_decoder=False takes the encoder alone"
        ) from error
    return {name: whole[name] for name in ("decoder", "head")}, heads
