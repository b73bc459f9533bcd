"""Makes tokenizer/: a tiny VQ-KD tokenizer, named as that of BEiT v2's authors, and its tokens.

Its encoder is timm's BEiT, as which the authors' encoder computes; the layers behind it are
written out here, from their description in the paper's section 3.1.

python tests/golden/make_tokenizer.py     (needs torch and timm, which the tests do not)
"""

import pathlib

import numpy as np
import timm
import torch
from randomized import randomize
from safetensors.torch import save_file

FOLDER = pathlib.Path(__file__).with_name("tokenizer")


def main() -> None:
    """Runs it and stores weights and tokens."""
    encoder = timm.models.beit.Beit(
        img_size=16,
        patch_size=4,
        embed_dim=64,
        depth=1,
        num_heads=1,
        num_classes=0,
        init_values=None,
        use_abs_pos_emb=True,
        use_rel_pos_bias=False,
        global_pool="avg",
        mlp_ratio=2.0,
    ).eval()
    layers = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Tanh(), torch.nn.Linear(64, 8))
    randomize(encoder, seed=20)
    randomize(layers, seed=21)
    generator = torch.Generator().manual_seed(22)
    codes = torch.nn.functional.normalize(torch.randn((24, 8), generator=generator), dim=-1)
    pixels = torch.rand((4, 3, 16, 16), generator=generator)
    patches = encoder.fc_norm(encoder.forward_features(2 * pixels - 1)[:, 1:])
    vectors = torch.nn.functional.normalize(layers(patches), dim=-1)
    tokens = torch.cdist(vectors.flatten(0, 1), codes).argmin(dim=-1).view(4, 16)
    weights = {f"encoder.{name}": array for name, array in encoder.state_dict().items()}
    weights |= {f"encode_task_layer.{name}": array for name, array in layers.state_dict().items()}
    weights |= {"quantize.embedding.weight": codes, "quantize.cluster_size": torch.zeros(24)}
    weights |= {
        "decoder.fc_norm.weight": torch.ones(64),
        "decode_task_layer.0.bias": torch.ones(64),
    }
    weights |= {"scaling_layer.shift": torch.zeros(1, 3, 1, 1)}
    FOLDER.mkdir(exist_ok=True)
    save_file({k: v.contiguous() for k, v in weights.items()}, FOLDER / "model.safetensors")
    np.savez_compressed(
        FOLDER / "tokens.npz", pixels=pixels.permute(0, 2, 3, 1).numpy(), tokens=tokens.numpy()
    )
    print(list(weights), len(tokens.unique()))


if __name__ == "__main__":
    main()
