"""Published decoders of masked autoencoders, with which pretraining can be continued."""

import pathlib

from ddae_jax.data.disks import is_file
from ddae_jax.interop.json_files import read_json
from ddae_jax.interop.weight_files import find_weights, read_network, read_weights
from ddae_jax.interop.weights_to_params import Tree, UnknownWeights, official_mae, transformers_mae


def read_mae_decoder(path: pathlib.Path, part: str = "") -> tuple[Tree, int | None]:
    """Reads the decoder of an MAE.

    Args:
        path: a file of MAE's authors, or a folder of transformers.
        part: as in :func:`ddae_jax.interop.encoder_search.find_encoder`, for a file.

    Returns:
        The parameters ``decoder`` and ``head``, and the decoder's number of attention heads, which
        is None for a file, as it does not show them.

    Raises:
        FileNotFoundError: if a file is missing.
        ReadFailed: if the disk or the network is at fault.
        ValueError: if there is no such decoder, or its file is damaged.
    """
    try:
        if is_file(path):
            params, heads = official_mae(read_network(path, part).weights), None
        else:
            config = read_json(path / "config.json", "it says what the weights are of")
            if config.get("model_type") != "vit_mae":
                raise UnknownWeights("it is no vit_mae of transformers, which alone has a decoder")
            params = transformers_mae(read_weights(find_weights(path)))
            heads = config.get("decoder_num_attention_heads", 16)
    except (UnknownWeights, KeyError) as error:
        raise UnknownWeights(
            f"init_decoder=True, but {path} has no decoder of an MAE: {error}. Published "
            "files that have one are called full; init_decoder=False takes the encoder alone"
        ) from error
    return {name: params[name] for name in ("decoder", "head")}, heads
