"""Makes beit.npz: a tiny BEiT of transformers, one batch, and what comes of it.

python tests/golden/make_beit.py     (needs torch and transformers, which the tests do not)
"""

import torch
from randomized import randomize, store
from transformers import BeitConfig, BeitForMaskedImageModeling

GRADIENTS = (
    "beit.embeddings.cls_token",
    "beit.embeddings.mask_token",
    "beit.layers.0.attention.q_proj.bias",
    "beit.layers.0.relative_position_bias.relative_position_bias_table",
    "beit.layers.1.attention.k_proj.weight",
    "beit.layers.1.lambda_2",
    "layernorm.bias",
    "lm_head.weight",
)


def main() -> None:
    """Runs the reference implementation and stores what it gives."""
    config = BeitConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        vocab_size=40,
        use_mask_token=True,
        use_absolute_position_embeddings=False,
        use_relative_position_bias=True,
        layer_scale_init_value=0.1,
        layer_norm_eps=1e-6,
        drop_path_rate=0.0,
    )
    model = BeitForMaskedImageModeling(config).eval()
    randomize(model, seed=3)
    generator = torch.Generator().manual_seed(4)
    images = torch.randn((3, 3, 16, 16), generator=generator)
    mask = torch.rand((3, 16), generator=generator).argsort(dim=1) < 7
    labels = torch.randint(0, 40, (3, 16), generator=generator)
    out = model(images, bool_masked_pos=mask, labels=labels[mask])
    out.loss.backward()
    store(
        "beit",
        model,
        {
            "images": images.permute(0, 2, 3, 1),
            "mask": mask,
            "tokens": labels,
            "logits": out.logits,
            "loss": out.loss,
        },
        GRADIENTS,
        "transformers",
    )


if __name__ == "__main__":
    main()
