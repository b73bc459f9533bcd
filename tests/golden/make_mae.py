"""Makes mae.npz: a tiny MAE of transformers, one batch, and what comes of it.

python tests/golden/make_mae.py     (needs torch and transformers, which the tests do not)
"""

import torch
from randomized import randomize, store
from transformers import ViTMAEConfig, ViTMAEForPreTraining
from transformers.models.vit_mae.modeling_vit_mae import build_2d_sinusoidal_position_embedding

GRADIENTS = (
    "vit.embeddings.cls_token",
    "vit.embeddings.patch_embeddings.projection.weight",
    "vit.layers.1.attention.k_proj.weight",
    "vit.layernorm.weight",
    "decoder.mask_token",
    "decoder.decoder_embed.bias",
    "decoder.decoder_layers.0.mlp.fc1.weight",
    "decoder.decoder_pred.bias",
)


def fixed_positions(width: int) -> torch.Tensor:
    """The published ones; transformers' untrained models leave them at 0.

    The published weights have columns in the first half and rows in the second: MAE's authors build
    them from a grid whose first coordinate is the column. The function of transformers has rows
    first, so the halves change places.
    """
    positions = build_2d_sinusoidal_position_embedding(
        height=4, width=4, embed_dim=width, cls_token=True
    )
    of_rows, of_columns = positions.chunk(2, dim=-1)
    return torch.cat([of_columns, of_rows], dim=-1)[None]


def main() -> None:
    """Runs the reference implementation and stores what it gives."""
    config = ViTMAEConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=128,
        image_size=16,
        patch_size=4,
        decoder_hidden_size=24,
        decoder_num_hidden_layers=1,
        decoder_num_attention_heads=2,
        decoder_intermediate_size=96,
        mask_ratio=0.75,
        norm_pix_loss=True,
        layer_norm_eps=1e-6,
    )
    model = ViTMAEForPreTraining(config).eval()
    randomize(model, seed=1)
    model.vit.embeddings.position_embeddings.data = fixed_positions(config.hidden_size)
    model.decoder.decoder_pos_embed.data = fixed_positions(config.decoder_hidden_size)
    generator = torch.Generator().manual_seed(2)
    images = torch.randn((3, 3, 16, 16), generator=generator)
    noise = torch.rand((3, 16), generator=generator)
    encoded = model.vit(images, noise=noise)
    out = model(images, noise=noise)
    out.loss.backward()
    store(
        "mae",
        model,
        {
            "images": images.permute(0, 2, 3, 1),
            "mask": out.mask.bool(),
            "encoded": encoded.last_hidden_state,  # in the order of kept
            "kept": torch.argsort(noise, dim=1)[:, :4],
            "predictions": out.logits,
            "loss": out.loss,
        },
        GRADIENTS,
        "transformers",
    )


if __name__ == "__main__":
    main()
