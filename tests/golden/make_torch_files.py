"""Makes torch_files/: files as torch wrote them, before 1.6 and since, and what is in them.

Also tiny encoders under the names of the authors of MAE, BEiT and AugReg, with timm's features.

python tests/golden/make_torch_files.py     (needs torch and timm, which the tests do not)
"""

import argparse
import pathlib

import numpy as np
import timm
import torch
from randomized import randomize

FOLDER = pathlib.Path(__file__).with_name("torch_files")
SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
DECODER_WIDTH = 8


def main() -> None:
    """Saves the files, with torch's own functions, and what is expected of them."""
    FOLDER.mkdir(exist_ok=True)
    save_kinds()
    images = torch.randn((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    features = {"mae": mae(images), "beit": beit(images), "augreg": augreg(images)}
    features = {name: values.detach().numpy() for name, values in features.items()}
    np.savez_compressed(
        FOLDER / "features.npz",
        images=images.permute(0, 2, 3, 1).numpy(),
        made_with=f"torch {torch.__version__}, timm {timm.__version__}",
        **features,
    )
    for path in sorted(FOLDER.iterdir()):
        print(path, f"{path.stat().st_size / 1024:.1f} KiB")


def save_kinds() -> None:
    """Tensors of every kind, in both formats, beside what training code keeps with them."""
    generator = torch.Generator().manual_seed(0)
    values = torch.randn((3, 4), generator=generator)
    tensors = {
        "float32": values,
        "tied": values,
        "transposed": values.T,
        "part": values[1:, 1:3],
        "every_other": values.flatten()[1::2],
        "parameter": torch.nn.Parameter(torch.randn(5, generator=generator)),
        "empty": torch.zeros((0, 3)),
        "scalar": torch.tensor(2.5),
        "float64": torch.randn(3, generator=generator).double(),
        "float16": torch.randn(3, generator=generator).half(),
        "bfloat16": torch.randn((2, 3), generator=generator).bfloat16(),
        "int64": torch.tensor([-(2**40), 3]),
        "int32": torch.tensor([-7, 3], dtype=torch.int32),
        "int8": torch.tensor([-7, 3], dtype=torch.int8),
        "uint8": torch.tensor([7, 255], dtype=torch.uint8),
        "bool": torch.tensor([True, False, True]),
    }
    checkpoint = {
        "model": tensors,
        "args": argparse.Namespace(lr=1e-3, dtype=torch.float16, sizes=[1, 2]),
        "epoch": 3,
        "best": np.float64(0.5),
        "order": np.arange(6).reshape(2, 3),
        "shape": values.shape,
        "network": torch.nn.Linear(2, 3).state_dict(),
    }
    for name, is_zip in (("zip", True), ("legacy", False)):
        torch.save(checkpoint, FOLDER / f"{name}.pth", _use_new_zipfile_serialization=is_zip)
    np.savez_compressed(
        FOLDER / "expected.npz",
        **{
            name: (t.float() if t.dtype == torch.bfloat16 else t).detach().numpy()
            for name, t in tensors.items()
        },
    )


def mae(images: torch.Tensor) -> torch.Tensor:
    """As MAE's authors publish it, decoder included."""
    model = timm.models.vision_transformer.VisionTransformer(**SIZE, num_classes=0).eval()
    randomize(model, seed=1)
    of_decoder = timm.models.vision_transformer.VisionTransformer(
        **SIZE | {"embed_dim": DECODER_WIDTH, "depth": 1}, num_classes=0
    )
    randomize(of_decoder, seed=2)
    state = of_decoder.state_dict()
    official = {
        "mask_token": state["cls_token"],
        "decoder_pos_embed": state["pos_embed"],
        "decoder_embed.weight": torch.zeros((DECODER_WIDTH, 16)),
        "decoder_embed.bias": torch.zeros(DECODER_WIDTH),
        "decoder_pred.weight": torch.zeros((48, DECODER_WIDTH)),
        "decoder_pred.bias": torch.zeros(48),
    }
    official |= {f"decoder_{k}": v for k, v in state.items() if k.startswith(("blocks.", "norm."))}
    torch.save({"model": model.state_dict() | official}, FOLDER / "mae.pth")
    return model.forward_features(images)


def beit(images: torch.Tensor) -> torch.Tensor:
    """As BEiT's authors publish it after pretraining, with v2's layers for the class token."""
    model = timm.models.beit.Beit(
        **SIZE,
        num_classes=0,
        global_pool="token",
        use_abs_pos_emb=False,
        use_rel_pos_bias=False,
        use_shared_rel_pos_bias=True,
        init_values=0.1,
    ).eval()
    randomize(model, seed=3)
    state = model.state_dict()
    official = {name: value for name, value in state.items() if not name.endswith("k_bias")}
    official |= {
        "mask_token": torch.ones((1, 1, 16)),
        "lm_head.weight": torch.zeros((4, 16)),
        "lm_head.bias": torch.zeros(4),
        "rel_pos_bias.relative_position_index": torch.zeros((5, 5), dtype=torch.int64),
    }
    official |= {
        name.replace("blocks.1.", "cls_pt_layers.0."): value
        for name, value in state.items()
        if name.startswith("blocks.1.") and not name.endswith("k_bias")
    }
    torch.save({"model": official}, FOLDER / "beit.pth")
    return model.forward_features(images)


def augreg(images: torch.Tensor) -> torch.Tensor:
    """As Google publishes it, read by timm."""
    generator = np.random.default_rng(4)
    width, heads = SIZE["embed_dim"], SIZE["num_heads"]
    shapes = {
        "cls": (1, 1, width),
        "embedding/kernel": (4, 4, 3, width),
        "embedding/bias": (width,),
        "Transformer/posembed_input/pos_embedding": (1, 5, width),
        "Transformer/encoder_norm/scale": (width,),
        "Transformer/encoder_norm/bias": (width,),
        "pre_logits/kernel": (width, width),
        "pre_logits/bias": (width,),
        "head/kernel": (width, 7),
        "head/bias": (7,),
    }
    for index in range(SIZE["depth"]):
        block = f"Transformer/encoderblock_{index}"
        for norm in ("LayerNorm_0", "LayerNorm_2"):
            shapes |= {f"{block}/{norm}/{part}": (width,) for part in ("scale", "bias")}
        attention = f"{block}/MultiHeadDotProductAttention_1"
        for part in ("query", "key", "value"):
            shapes[f"{attention}/{part}/kernel"] = (width, heads, width // heads)
            shapes[f"{attention}/{part}/bias"] = (heads, width // heads)
        shapes[f"{attention}/out/kernel"] = (heads, width // heads, width)
        shapes[f"{attention}/out/bias"] = (width,)
        for name, (wide, narrow) in {
            "Dense_0": (width, 4 * width),
            "Dense_1": (4 * width, width),
        }.items():
            shapes[f"{block}/MlpBlock_3/{name}/kernel"] = (wide, narrow)
            shapes[f"{block}/MlpBlock_3/{name}/bias"] = (narrow,)
    arrays = {
        name: generator.normal(float(name.endswith("scale")), 0.1, shape).astype(np.float32)
        for name, shape in shapes.items()
    }
    np.savez_compressed(FOLDER / "augreg.npz", **arrays)
    model = timm.models.vision_transformer.VisionTransformer(**SIZE, num_classes=0).eval()
    model.load_pretrained(FOLDER / "augreg.npz")
    return model.forward_features(images)


if __name__ == "__main__":
    main()
