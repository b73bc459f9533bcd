"""Makes torch_files/: files of torch in both its formats, and of AugReg, and what is in them.

python tests/golden/make_torch_files.py     (needs torch and timm, which the tests do not)
"""

import argparse
import pathlib

import numpy as np
import timm
import torch
from randomized import randomize
from timm.models.vision_transformer import VisionTransformer, _load_weights

FOLDER = pathlib.Path(__file__).with_name("torch_files")
OPTIONS = {"img_size": 12, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}


def main() -> None:
    """Writes tensors of every kind, and models under the names of their authors."""
    FOLDER.mkdir(exist_ok=True)
    torch.manual_seed(0)
    mixed_kinds()
    images = torch.randn((2, 3, 12, 12))
    np.save(FOLDER / "images.npy", images.permute(0, 2, 3, 1).numpy())
    mae(images)
    beit(images)
    augreg(images)


def mixed_kinds() -> None:
    """Tensors of several kinds, beside what full checkpoints hold."""
    base = torch.randn(3, 4)
    tensors = {
        "whole": base,
        "turned": base.t(),  # of the same storage
        "row": base[1],
        "half": torch.randn(2, 2).half(),
        "bfloat16": torch.randn(2, 2).bfloat16(),
        "double": torch.randn(2).double(),
        "integers": torch.arange(5),
        "flags": torch.tensor([True, False]),
        "nothing": torch.zeros(0, 3),
        "one": torch.tensor(3.0),
        "parameter": torch.nn.Parameter(torch.randn(2)),
    }
    checkpoint = {
        "model": tensors,
        "optimizer": {
            "state": {0: {"step": 1, "m": torch.zeros(2)}},
            "param_groups": [{"lr": 0.1}],
        },
        "args": argparse.Namespace(lr=0.1, betas=(0.9, 0.95), name="tiny"),
        "epoch": 3,
    }
    torch.save(checkpoint, FOLDER / "zip.pth")
    torch.save(checkpoint, FOLDER / "legacy.pth", _use_new_zipfile_serialization=False)
    parallel = {f"module.{name}": tensor for name, tensor in tensors.items()}
    torch.save(parallel, FOLDER / "parallel.pth")
    expected = {name: tensor.detach().float().numpy() for name, tensor in tensors.items()}
    np.savez_compressed(FOLDER / "expected.npz", **expected)


def mae(images: torch.Tensor) -> None:
    """As ``mae_pretrain_vit_*.pth``, of encoder and decoder."""
    model = VisionTransformer(**OPTIONS, num_classes=0)
    randomize(model, seed=1)
    decoder = {
        "mask_token": torch.zeros(1, 1, 8),
        "decoder_pos_embed": torch.zeros(1, 10, 8),
        "decoder_embed.weight": torch.zeros(8, 16),
        "decoder_blocks.0.norm1.weight": torch.zeros(8),
        "decoder_pred.bias": torch.zeros(48),
    }
    torch.save({"model": model.state_dict() | decoder}, FOLDER / "mae.pth")
    np.save(FOLDER / "mae_features.npy", model.forward_features(images).detach().numpy())


def beit(images: torch.Tensor) -> None:
    """As ``beit_base_patch16_224_pt22k.pth``: relative positions shared by all blocks."""
    model = timm.models.beit.Beit(
        **OPTIONS,
        num_classes=0,
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
    )
    randomize(model, seed=2)
    names = {
        name: tensor
        for name, tensor in model.state_dict().items()
        if "relative_position_index" not in name and "k_bias" not in name
    }
    head = {"mask_token": torch.zeros(1, 1, 16), "lm_head.weight": torch.zeros(4, 16)}
    index = {"rel_pos_bias.relative_position_index": torch.zeros(10, 10, dtype=torch.long)}
    torch.save({"model": names | head | index}, FOLDER / "beit.pth")
    np.save(FOLDER / "beit_features.npy", model.forward_features(images).detach().numpy())


def augreg(images: torch.Tensor) -> None:
    """As Google's ``.npz``, which timm loads."""
    width, heads, generator = 16, 2, np.random.default_rng(3)

    def random(*shape: int) -> np.ndarray:
        return generator.normal(0, 0.1, shape).astype(np.float32)

    arrays = {
        "cls": random(1, 1, width),
        "embedding/kernel": random(4, 4, 3, width),
        "embedding/bias": random(width),
        "Transformer/posembed_input/pos_embedding": random(1, 10, width),
        "head/kernel": random(width, 5),
        "head/bias": random(5),
    }
    for block in range(2):
        prefix = f"Transformer/encoderblock_{block}"
        attention = f"{prefix}/MultiHeadDotProductAttention_1"
        for name in ("query", "key", "value"):
            arrays[f"{attention}/{name}/kernel"] = random(width, heads, width // heads)
            arrays[f"{attention}/{name}/bias"] = random(heads, width // heads)
        arrays[f"{attention}/out/kernel"] = random(heads, width // heads, width)
        arrays[f"{attention}/out/bias"] = random(width)
        for name, shape in (("Dense_0", (width, 64)), ("Dense_1", (64, width))):
            arrays[f"{prefix}/MlpBlock_3/{name}/kernel"] = random(*shape)
            arrays[f"{prefix}/MlpBlock_3/{name}/bias"] = random(shape[1])
        for name in ("LayerNorm_0", "LayerNorm_2"):
            arrays[f"{prefix}/{name}/scale"] = 1 + random(width)
            arrays[f"{prefix}/{name}/bias"] = random(width)
    arrays["Transformer/encoder_norm/scale"] = 1 + random(width)
    arrays["Transformer/encoder_norm/bias"] = random(width)
    np.savez_compressed(FOLDER / "augreg.npz", **arrays)
    model = VisionTransformer(**OPTIONS, num_classes=5)
    _load_weights(model, str(FOLDER / "augreg.npz"))
    np.save(FOLDER / "augreg_features.npy", model.forward_features(images).detach().numpy())


if __name__ == "__main__":
    main()
