"""Makes timm_vit.npz and timm_beit.npz: tiny encoders of timm, and what they make of a batch.

python tests/golden/make_timm.py     (needs torch and timm, which the tests do not)
"""

import timm
import torch
from randomized import randomize, store

OPTIONS = {
    "img_size": (12, 20),
    "patch_size": 4,
    "embed_dim": 32,
    "depth": 2,
    "num_heads": 2,
    "num_classes": 5,
}
GRADIENTS = {
    "vit": ("pos_embed", "cls_token", "blocks.0.attn.qkv.weight", "head.bias"),
    "beit": (
        "cls_token",
        "blocks.0.attn.q_bias",
        "blocks.1.attn.relative_position_bias_table",
        "blocks.1.gamma_1",
        "head.weight",
    ),
}


def main() -> None:
    """Runs the reference implementations and stores what they give."""
    models = {
        "vit": timm.models.vision_transformer.VisionTransformer(**OPTIONS),
        "beit": timm.models.beit.Beit(
            **OPTIONS, use_abs_pos_emb=False, use_rel_pos_bias=True, init_values=0.1
        ),
    }
    for seed, (name, model) in enumerate(models.items()):
        model.eval()
        randomize(model, seed=5 + seed)
        generator = torch.Generator().manual_seed(7)
        images = torch.randn((3, 3, 12, 20), generator=generator)
        features = model.forward_features(images)
        logits = model(images)
        loss = torch.nn.functional.cross_entropy(logits, torch.tensor([0, 3, 1]))
        loss.backward()
        store(
            f"timm_{name}",
            model,
            {
                "images": images.permute(0, 2, 3, 1),
                "features": features,
                "logits": logits,
                "loss": loss,
            },
            GRADIENTS[name],
            "timm",
        )


if __name__ == "__main__":
    main()
