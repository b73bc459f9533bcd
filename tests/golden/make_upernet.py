"""Makes upernet.npz: a tiny UperNet on BEiT of transformers, and what it makes of a batch.

python tests/golden/make_upernet.py     (needs torch and transformers, which the tests do not)
"""

import importlib.metadata
import pathlib

import numpy as np
import torch
from transformers import BeitConfig, UperNetConfig, UperNetForSemanticSegmentation

STAGES = ["stage1", "stage2", "stage3", "stage4"]


def main() -> None:
    """Runs the reference implementation and stores what it gives."""
    torch.manual_seed(0)
    backbone = BeitConfig(
        hidden_size=16,
        num_hidden_layers=4,
        num_attention_heads=2,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
        use_absolute_position_embeddings=True,
        layer_scale_init_value=0.1,
        drop_path_rate=0.0,
        out_features=STAGES,
        add_fpn=True,
        reshape_hidden_states=True,
    )
    config = UperNetConfig(
        backbone_config=backbone,
        hidden_size=8,
        auxiliary_channels=8,
        auxiliary_in_channels=16,
        num_labels=5,
    )
    model = UperNetForSemanticSegmentation(config)
    randomize(model)
    images = torch.randn(2, 3, 16, 16)
    arrays = {"images": images.permute(0, 2, 3, 1)}
    model.eval()
    arrays |= run(model, images)
    model.train()
    model(images)
    after = {n: b for n, b in model.named_buffers() if n.endswith(("running_mean", "running_var"))}
    arrays |= {f"after/{name}": buffer for name, buffer in after.items()}
    coarse = torch.randn(1, 3, 4, 6)
    arrays["coarse"] = coarse.permute(0, 2, 3, 1)
    for rows, columns in ((9, 7), (2, 3)):
        resized = torch.nn.functional.interpolate(
            coarse, (rows, columns), mode="bilinear", align_corners=False
        )
        arrays[f"resized_{rows}_{columns}"] = resized.permute(0, 2, 3, 1)
    path = pathlib.Path(__file__).with_name("upernet.npz")
    versions = [f"{n} {importlib.metadata.version(n)}" for n in ("torch", "transformers")]
    found = {name: array.detach().numpy() for name, array in arrays.items()}
    np.savez_compressed(path, made_with=", ".join(versions), **found)
    print(path, f"{path.stat().st_size / 1024:.0f} KiB", *versions)


def run(model: torch.nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Weights before, and scores of both heads."""
    weights = {f"weights/{name}": value.clone() for name, value in model.state_dict().items()}
    features = model.backbone(images).feature_maps
    return weights | {
        "logits": model.decode_head(features).permute(0, 2, 3, 1),
        "auxiliary": model.auxiliary_head(features).permute(0, 2, 3, 1),
    }


def randomize(model: torch.nn.Module) -> None:
    """Makes every weight and running statistic random: scales and variances around 1."""
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        noise = 0.2 * torch.randn(tensor.shape)
        is_scale = tensor.ndim == 1 and ("norm" in name or "fpn1.1" in name)
        is_scale = is_scale and name.endswith(("weight", "running_var"))
        tensor.data = noise.abs() + 0.5 if is_scale else noise


if __name__ == "__main__":
    main()
