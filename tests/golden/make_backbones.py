"""Makes backbones/: tiny encoders as timm and transformers save them, and their features.

python tests/golden/make_backbones.py     (needs torch, timm and transformers; the tests do not)
"""

import json
import pathlib

import numpy as np
import timm
import torch
from randomized import randomize
from transformers import (
    BeitConfig,
    BeitModel,
    ViTConfig,
    ViTImageProcessor,
    ViTMAEConfig,
    ViTMAEForPreTraining,
    ViTModel,
)

FOLDER = pathlib.Path(__file__).with_name("backbones")
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)


def main() -> None:
    """Saves each encoder with its library's own function, and what it makes of a batch."""
    images = torch.rand((2, 3, 16, 16), generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    normalized = (images - mean) / std
    for name, (model, encode) in {**of_timm(), **of_transformers()}.items():
        features = encode(normalized).detach()
        np.savez_compressed(
            FOLDER / name / "features.npz",
            images=images.permute(0, 2, 3, 1).numpy(),
            features=features.numpy(),
        )
        print(name, sum(p.numel() for p in model.parameters()), tuple(features.shape))


def of_timm() -> dict:
    """CLIP's vision transformer and a plain one."""
    found = {}
    for name, architecture in {
        "timm_clip": "vit_base_patch16_clip_quickgelu_224.openai",
        "timm_vit": "vit_tiny_patch16_224.augreg_in21k",
    }.items():
        size = {"img_size": 16, "patch_size": 4, "embed_dim": 24, "depth": 2, "num_heads": 3}
        model = timm.create_model(architecture, pretrained=False, num_classes=0, **size).eval()
        randomize(model, seed=len(found))
        model.pretrained_cfg |= {"mean": MEAN, "std": STD, "input_size": (3, 16, 16)}
        folder = FOLDER / name
        timm.models.save_for_hf(model, folder, safe_serialization=True)
        found[name] = model, model.forward_features
    return found


def of_transformers() -> dict:
    """A plain vision transformer, MAE with its decoder, and BEiT with positions in common."""
    size = {
        "hidden_size": 24,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "intermediate_size": 48,
        "image_size": 16,
        "patch_size": 4,
    }
    decoder = {
        "decoder_hidden_size": 16,
        "decoder_num_hidden_layers": 1,
        "decoder_num_attention_heads": 2,
        "decoder_intermediate_size": 32,
    }
    models = {
        "transformers_vit": ViTModel(ViTConfig(**size)),
        "transformers_vit_mae": ViTMAEForPreTraining(
            ViTMAEConfig(**size, **decoder, mask_ratio=0.0)
        ),
        "transformers_beit": BeitModel(
            BeitConfig(**size, use_shared_relative_position_bias=True, layer_scale_init_value=0.1)
        ),
    }
    found = {}
    for seed, (name, model) in enumerate(models.items()):
        model.eval()
        randomize(model, seed=10 + seed)
        model.save_pretrained(FOLDER / name)
        ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(FOLDER / name)
        (FOLDER / name / "README.md").unlink(missing_ok=True)
        found[name] = model, lambda images, model=model: _tokens(model, images)
    return found


def _tokens(model, images: torch.Tensor) -> torch.Tensor:
    """Features of all tokens; MAE's encoder shuffles its patches unless it is given an order."""
    if hasattr(model, "decoder"):
        order = torch.arange(16).expand(len(images), 16).float()
        return model.vit(images, noise=order).last_hidden_state
    return model(images).last_hidden_state


if __name__ == "__main__":
    main()
    for path in FOLDER.rglob("*.json"):
        json.loads(path.read_text())
