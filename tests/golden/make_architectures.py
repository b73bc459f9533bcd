"""Makes ddae_jax/interop/architectures.json: what names of timm and transformers stand for.

Of each vision transformer of timm its heads, activation and epsilon, which its weights do not
tell; or what it has that the encoder of this package has not. Of each kind of transformers what a
config.json leaves out where it is the default.

python tests/golden/make_architectures.py     (needs torch, timm and transformers; takes minutes)
"""

import json
import pathlib

import timm
import torch
import transformers
from timm.models import _registry

FILE = pathlib.Path(__file__).parents[2] / "ddae_jax" / "interop" / "architectures.json"
MODULES = ("vision_transformer", "vision_transformer_hybrid", "vision_transformer_relpos")
MODULES += (
    "vision_transformer_sam",
    "beit",
    "deit",
    "eva",
    "naflexvit",
    "vitamin",
    "hieradet_sam2",
)
ACTIVATIONS = {"GELU": "gelu", "GELUTanh": "gelu_tanh", "QuickGELU": "quick_gelu"}
NETWORKS = ("VisionTransformer", "Beit", "Eva")
BLOCKS = ("Block", "EvaBlock")
ATTENTIONS = ("Attention", "EvaAttention")
CONFIGS = {
    "vit": transformers.ViTConfig,
    "vit_mae": transformers.ViTMAEConfig,
    "vit_msn": transformers.ViTMSNConfig,
    "ijepa": transformers.IJepaConfig,
    "beit": transformers.BeitConfig,
    "dinov2": transformers.Dinov2Config,
    "clip_vision_model": transformers.CLIPVisionConfig,
    "siglip_vision_model": transformers.SiglipVisionConfig,
}
KEYS = ("num_attention_heads", "hidden_act", "layer_norm_eps", "image_size")


def main() -> None:
    """Builds each network, without values, and writes what it is."""
    found = {
        name: describe(build(name))
        for name in timm.list_models()
        if _registry._model_to_module[name] in MODULES
    }
    found |= {
        old: found[new.split(".")[0]]
        for old, new in _registry._deprecated_models.items()
        if new.split(".")[0] in found
    }
    defaults = {kind: {key: getattr(make(), key) for key in KEYS} for kind, make in CONFIGS.items()}
    lines = [f"  {json.dumps(name)}: {json.dumps(found[name])}" for name in sorted(found)]
    of_transformers = [f"  {json.dumps(k)}: {json.dumps(v)}" for k, v in defaults.items()]
    FILE.write_text(
        f'{{"timm_version": "{timm.__version__}",\n'
        f' "transformers_version": "{transformers.__version__}",\n'
        ' "timm": {\n' + ",\n".join(lines) + "\n },\n"
        ' "transformers": {\n' + ",\n".join(of_transformers) + "\n }\n}\n"
    )
    json.loads(FILE.read_text())
    print(len(found), sum(isinstance(entry, list) for entry in found.values()))


def build(name: str) -> torch.nn.Module:
    """The network, with as few blocks as it lets itself be built of."""
    with torch.device("meta"):
        try:
            return timm.create_model(name, pretrained=False, depth=1)
        except Exception:  # not all take it, and each says so in its own way
            return timm.create_model(name, pretrained=False)


def describe(model: torch.nn.Module) -> list | str:
    """Heads, activation and epsilon; or what stands against it."""
    against = what_stands_against(model)
    if against:
        return against
    block = model.blocks[0]
    activation = ACTIVATIONS.get(type(block.mlp.act).__name__)
    if activation is None:
        return f"the activation {type(block.mlp.act).__name__}"
    return [block.attn.num_heads, activation, block.norm1.eps]


def what_stands_against(model: torch.nn.Module) -> str | None:
    """What the network has that an encoder of this package has not; None for nothing."""
    if type(model).__name__ == "VisionTransformerDistilled":
        return "a distillation token"
    if getattr(model, "rope", None) is not None:
        return "rotary positions"
    if type(model).__name__ not in NETWORKS:
        return f"the structure of {type(model).__name__}"
    block = model.blocks[0]
    if type(model.patch_embed).__name__ != "PatchEmbed":
        return "a convolutional stem"
    if getattr(model, "reg_token", None) is not None:
        return "register tokens"
    if type(block).__name__ not in BLOCKS:
        return f"blocks of the kind {type(block).__name__}"
    if type(block.attn).__name__ not in ATTENTIONS:
        return f"attention of the kind {type(block.attn).__name__}"
    if type(block.mlp).__name__ != "Mlp":
        return f"gated MLPs ({type(block.mlp).__name__})"
    if type(block.norm1).__name__ != "LayerNorm":
        return f"norms of the kind {type(block.norm1).__name__}"
    norms = {
        "norms of queries and keys": getattr(block.attn, "q_norm", None),
        "a norm within its attention": getattr(block.attn, "norm", None),
        "a norm within its MLPs": getattr(block.mlp, "norm", None),
        "a norm of patches": model.patch_embed.norm,
    }
    for what, norm in norms.items():
        if norm is not None and not isinstance(norm, torch.nn.Identity):
            return what
    last = [getattr(model, name, None) for name in ("norm", "fc_norm")]
    if all(norm is None or isinstance(norm, torch.nn.Identity) for norm in last):
        return "no norm after its blocks"
    return None


if __name__ == "__main__":
    main()
