"""Features of photographs: what timm and transformers compute with an exported run, and what we do.

    python -m benchmarks.exported_features NAME WORKDIR PHOTOS [NUM_PHOTOS]

Exports the encoder of WORKDIR for both libraries, loads it with their own functions, and compares
the tokens after the last block of the first photographs below PHOTOS, cropped to the encoder's
size; all in float32. Adds NAME to benchmarks/results/exported_features.json. Needs torch, timm and
transformers.
"""

import json
import pathlib
import sys
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from benchmarks.downstream import backbone
from benchmarks.environment import RESULTS, store
from ddae_jax import export
from ddae_jax.config import from_plain
from ddae_jax.data.pipeline import eval_batches
from ddae_jax.data.sources import make_source
from ddae_jax.networks import build_encoder, build_normalize
from ddae_jax.pretrained import restore_encoder
from ddae_jax.training.sharding import make_mesh
from ddae_jax.training.workdir import Workdir

PACKAGES = ("torch", "timm", "transformers")


def main(name: str, workdir: str, photos: str, count: str = "16") -> None:
    """Measures and stores."""
    config = from_plain(Workdir(workdir).read_config())
    config.model.dtype = "float32"
    images = photographs(config, photos, int(count))
    ours = our_tokens(config, Workdir(workdir), images)
    found = {"run": backbone(workdir), "image_size": config.model.image_size, "photographs": count}
    for library, tokens_of in (("timm", timm_tokens), ("transformers", transformers_tokens)):
        with tempfile.TemporaryDirectory() as folder:
            out = f"{folder}/exported"
            export.main([f"--workdir={workdir}", f"--format={library}", f"--out={out}"])
            theirs = tokens_of(out, images)
        found[library] = {
            "largest_difference": float(np.abs(theirs - ours).max()),
            "largest_feature": float(np.abs(ours).max()),
            "mean_feature": float(np.abs(ours).mean()),
        }
        print(name, library, found[library])
    path = RESULTS / "exported_features.json"
    known = json.loads(path.read_text())["runs"] if path.is_file() else {}
    print(store("exported_features", {"runs": known | {name: found}}, PACKAGES))


def photographs(config: ConfigDict, folder: str, count: int) -> np.ndarray:
    """Normalised pixels, (images, height, width, channels), as evaluation sees them."""
    source = make_source("folder", data_dir=folder, split="train", channels=config.data.channels)
    size = tuple(config.model.image_size)
    batches = eval_batches(source, image_size=size, batch_size=count, limit=count)
    return np.asarray(build_normalize(config)(next(iter(batches))["image"]))


def our_tokens(config: ConfigDict, workdir: Workdir, images: np.ndarray) -> np.ndarray:
    """Tokens after the final norm."""
    params, _, _ = restore_encoder(workdir, config, make_mesh())
    encode = jax.jit(lambda params, x: build_encoder(config).apply({"params": params}, x).tokens[0])
    with jax.default_matmul_precision("float32"):
        return np.asarray(encode(params, jnp.asarray(images)))


def timm_tokens(folder: str, images: np.ndarray) -> np.ndarray:
    """What ``timm.create_model`` makes of them."""
    import timm
    import torch

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model.forward_features(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()


def transformers_tokens(folder: str, images: np.ndarray) -> np.ndarray:
    """What ``AutoModel`` makes of them; nothing hidden, in the order of the grid."""
    import torch
    import transformers

    kind = json.loads(pathlib.Path(folder, "config.json").read_text())["model_type"]
    options = {"mask_ratio": 0.0} if kind == "vit_mae" else {"add_pooling_layer": False}
    options = {} if kind == "beit" else options
    model = transformers.AutoModel.from_pretrained(folder, **options).eval()
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    arguments = {}
    if kind == "vit_mae":
        num_patches = (images.shape[1] // model.config.patch_size) ** 2
        arguments["noise"] = torch.arange(float(num_patches)).expand(len(images), num_patches)
    with torch.no_grad():
        return model(pixels, **arguments).last_hidden_state.numpy()


if __name__ == "__main__":
    main(*sys.argv[1:])
