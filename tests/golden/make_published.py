"""Makes published/: tiny encoders as their authors, timm and transformers publish them.

What they have in common with those in backbones/ and torch_files/ is left out there: prefixes,
parts, positions without a class token, TorchScript, and kinds of transformers that were added.

python tests/golden/make_published.py     (needs torch, timm and transformers; the tests do not)
"""

import argparse
import json
import pathlib

import numpy as np
import timm
import torch
import transformers
from randomized import randomize

FOLDER = pathlib.Path(__file__).with_name("published")
MEAN, STD = (0.1, 0.2, 0.3), (0.5, 0.4, 0.3)
SIZE = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
OF_TRANSFORMERS = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}


def main() -> None:
    """Saves each encoder, and what it makes of the same images."""
    FOLDER.mkdir(exist_ok=True)
    images = torch.rand((2, 3, 8, 8), generator=torch.Generator().manual_seed(1))
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEAN, STD))
    normalized = (images - mean) / std
    features = {
        **of_authors(normalized),
        **of_transformers(normalized),
        "timm": of_timm(normalized),
    }
    np.savez_compressed(
        FOLDER / "features.npz",
        images=normalized.permute(0, 2, 3, 1).numpy(),
        made_with=f"torch {torch.__version__}, timm {timm.__version__}, "
        f"transformers {transformers.__version__}",
        **{name: values.detach().numpy() for name, values in features.items()},
    )
    for path in sorted(FOLDER.rglob("*")):
        print(path, f"{path.stat().st_size / 1024:.1f} KiB")


def vision_transformer(seed: int, **options) -> torch.nn.Module:
    """A random one of timm."""
    model = timm.models.vision_transformer.VisionTransformer(**SIZE | options, num_classes=0)
    randomize(model.eval(), seed)
    return model


def of_authors(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Files of weights: DeiT III, MoCo v3, I-JEPA, without biases of queries, and CLIP."""
    deit = vision_transformer(1, no_embed_class=True, init_values=0.1)
    torch.save({"model": deit.state_dict()}, FOLDER / "deit3.pth")

    moco, momentum = vision_transformer(2), vision_transformer(3)
    state = {f"module.base_encoder.{k}": v for k, v in moco.state_dict().items()}
    state |= {f"module.momentum_encoder.{k}": v for k, v in momentum.state_dict().items()}
    state["module.predictor.0.weight"] = torch.zeros((4, 4))
    args = argparse.Namespace(out=pathlib.PurePosixPath("/out/run"), device=torch.device("cuda", 0))
    torch.save({"epoch": 3, "state_dict": state, "args": args}, FOLDER / "moco.pth.tar")

    plain = {"class_token": False, "global_pool": "avg", "fc_norm": False, "qkv_bias": False}
    context, target = (vision_transformer(seed, **plain) for seed in (4, 5))
    states = {
        name: {f"module.{k}": v for k, v in model.state_dict().items()}
        for name, model in (("encoder", context), ("target_encoder", target))
    }
    torch.save(states | {"epoch": 1, "lr": 0.1}, FOLDER / "ijepa.tar")
    return {
        "deit3": deit.forward_features(images),
        "moco": moco.forward_features(images),
        "moco_momentum": momentum.forward_features(images),
        "ijepa": target.forward_features(images),
        "ijepa_context": context.forward_features(images),
        "clip": clip(images),
    }


class QuickGelu(torch.nn.Module):
    """CLIP's activation."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``x`` times the sigmoid of 1.702 ``x``."""
        return x * torch.sigmoid(1.702 * x)


class Block(torch.nn.Module):
    """One of CLIP's, under its names."""

    def __init__(self, width: int):
        super().__init__()
        self.attn = torch.nn.MultiheadAttention(width, width // 64)
        self.ln_1, self.ln_2 = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.mlp = torch.nn.Sequential()
        self.mlp.add_module("c_fc", torch.nn.Linear(width, 2 * width))
        self.mlp.add_module("gelu", QuickGelu())
        self.mlp.add_module("c_proj", torch.nn.Linear(2 * width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of (tokens, batch, width)."""
        seen = self.ln_1(x)
        x = x + self.attn(seen, seen, seen, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(torch.nn.Module):
    """CLIP's blocks."""

    def __init__(self, width: int):
        super().__init__()
        self.resblocks = torch.nn.Sequential(Block(width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Of (tokens, batch, width)."""
        return self.resblocks(x)


class Visual(torch.nn.Module):
    """CLIP's image encoder, as its paper describes it, under the names of its release."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = torch.nn.Conv2d(3, width, 4, 4, bias=False)
        self.class_embedding = torch.nn.Parameter(torch.zeros(width))
        self.positional_embedding = torch.nn.Parameter(torch.zeros(5, width))
        self.ln_pre, self.ln_post = torch.nn.LayerNorm(width), torch.nn.LayerNorm(width)
        self.transformer = Transformer(width)
        self.proj = torch.nn.Parameter(torch.zeros(width, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens after the last norm."""
        patches = self.conv1(images).flatten(2).transpose(1, 2)
        first = self.class_embedding.expand(patches.shape[0], 1, -1)
        tokens = torch.cat([first, patches], dim=1) + self.positional_embedding
        tokens = self.transformer(self.ln_pre(tokens).transpose(0, 1)).transpose(0, 1)
        return self.ln_post(tokens)


class Clip(torch.nn.Module):
    """Images and texts, of which the latter are a single array here."""

    def __init__(self, width: int):
        super().__init__()
        self.visual = Visual(width)
        self.text_projection = torch.nn.Parameter(torch.zeros(8, 8))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """All tokens of images."""
        return self.visual(images)


def clip(images: torch.Tensor) -> torch.Tensor:
    """As OpenAI publishes it: a program of TorchScript."""
    model = Clip(64).eval()
    randomize(model, seed=6)
    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.weight.data += 1
    with torch.no_grad():
        torch.jit.trace(model, images).save(str(FOLDER / "clip.pt"))
    return model(images)


def of_transformers(images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Folders of the kinds that were added, one of them in parts."""
    ratio = {"mlp_ratio": 2}
    wide = {"intermediate_size": 32}
    models = {
        "dinov2": transformers.Dinov2Model(
            transformers.Dinov2Config(**OF_TRANSFORMERS, **ratio, layerscale_value=0.5)
        ),
        "ijepa": transformers.IJepaModel(transformers.IJepaConfig(**OF_TRANSFORMERS, **wide)),
        "vit_msn": transformers.ViTMSNModel(transformers.ViTMSNConfig(**OF_TRANSFORMERS, **wide)),
        "clip_vision_model": transformers.CLIPVisionModel(
            transformers.CLIPVisionConfig(**OF_TRANSFORMERS, **wide)
        ),
        "siglip_vision_model": transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(**OF_TRANSFORMERS, **wide)
        ),
    }
    found = {}
    for seed, (name, model) in enumerate(models.items()):
        model.eval()
        randomize(model, seed=10 + seed)
        folder = FOLDER / f"transformers_{name}"
        parts = {"max_shard_size": "8KB"} if name == "dinov2" else {}
        model.save_pretrained(folder, **parts)
        transformers.ViTImageProcessor(image_mean=MEAN, image_std=STD).save_pretrained(folder)
        (folder / "README.md").unlink(missing_ok=True)
        found[f"transformers_{name}"] = tokens_of(model, images)
    return found


def tokens_of(model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
    """All tokens after the last norm, which CLIP has for the class token alone."""
    hidden = model(images).last_hidden_state
    if isinstance(model, transformers.CLIPVisionModel):
        vision = getattr(model, "vision_model", model)
        return vision.post_layernorm(hidden)
    return hidden


def of_timm(images: torch.Tensor) -> torch.Tensor:
    """A folder whose positions are those of the patches alone."""
    model = timm.create_model(
        "deit3_small_patch16_224", pretrained=False, num_classes=0, **SIZE
    ).eval()
    randomize(model, seed=20)
    model.pretrained_cfg |= {"mean": MEAN, "std": STD, "input_size": (3, 8, 8)}
    timm.models.save_for_hf(model, FOLDER / "timm", safe_serialization=True)
    return model.forward_features(images)


if __name__ == "__main__":
    main()
    for path in FOLDER.rglob("*.json"):
        json.loads(path.read_text())
