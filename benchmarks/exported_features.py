"""Features of photographs: what the code in an exported card computes, and what evaluation does.

    python -m benchmarks.exported_features NAME WORKDIR PHOTOS [NUM_PHOTOS]

Takes the features of the first photographs in PHOTOS by ``ddae_jax.evaluate --task=embed``, exports
the encoder of WORKDIR for both libraries, runs the code in each card on the same files, and
compares: all in float32, and evaluation in the run's own type too. Adds NAME to
benchmarks/results/exported_features.json. Needs torch, timm and transformers.
"""

import contextlib
import pathlib
import shutil
import sys
import tempfile

import numpy as np

from benchmarks.downstream import recorded
from benchmarks.environment import store
from ddae_jax import evaluate, export
from ddae_jax.config import from_plain
from ddae_jax.data.eval_batches import eval_batches
from ddae_jax.data.sources import make_source
from ddae_jax.training.workdir import Workdir

PACKAGES = ("torch", "timm", "transformers", "pillow")
LIBRARIES = ("timm", "transformers")


def main(name: str, workdir: str, photos: str, count: str = "16") -> None:
    """Measures and stores."""
    config = from_plain(Workdir(workdir).read_config())
    found = {
        "encoder": f"ViT-{config.model.size}/{config.model.patch_size}",
        "image_size": config.model.image_size,
        "evaluation": {
            key: config.evaluation[key]
            for key in ("pool", "crop_share", "crop_mode", "interpolation")
        },
        "photographs": int(count),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = copied(photos, int(count), pathlib.Path(folder, "photos"))
        wanted = {
            dtype: embedded(workdir, files, dtype) for dtype in ("float32", config.model.dtype)
        }
        for library in LIBRARIES:
            out = pathlib.Path(folder, library)
            export.main([f"--workdir={workdir}", f"--format={library}", f"--out={out}"])
            followed = follow(out, sorted(files.iterdir()))
            found[library] = {
                dtype: compared(followed, features) for dtype, features in wanted.items()
            }
            print(name, library, found[library])
    known = {key: run for key, run in recorded("exported_features").items() if "encoder" in run}
    print(store("exported_features", {"runs": known | {name: found}}, PACKAGES))


def copied(photos: str, count: int, folder: pathlib.Path) -> pathlib.Path:
    """Copies so many photographs, spread evenly, to a folder of their own."""
    folder.mkdir()
    source = make_source("folder", data_dir=photos, split="train", channels=3)
    for batch in eval_batches(source, image_size=(8, 8), batch_size=count, limit=count):
        for index in batch["index"]:
            shutil.copy(source.name(int(index)), folder)
    return folder


def embedded(workdir: str, files: pathlib.Path, dtype: str) -> np.ndarray:
    """Computes the features that evaluation has, in the order of the files' names."""
    out = files.parent / f"{dtype}.npz"
    evaluate.main(
        [
            f"--workdir={workdir}",
            "--task=embed",
            f"--images={files}",
            f"--dtype={dtype}",
            f"--out={out}",
            "--batch_size=16",
        ]
    )
    with np.load(out) as stored:
        return stored["features"][np.argsort(stored["names"])]


def follow(folder: pathlib.Path, files: list[pathlib.Path]) -> np.ndarray:
    """Runs the code in a folder's card on each file."""
    import torch

    code = (folder / "README.md").read_text().partition("```python\n")[2].partition("\n```")[0]
    features = []
    for file in files:
        scope = {}
        with contextlib.chdir(folder.parent), torch.no_grad():
            exec(code.replace("photo.jpg", str(file)), scope)
        features.append(scope["features"][0].numpy())
    return np.stack(features)


def compared(theirs: np.ndarray, ours: np.ndarray) -> dict[str, float]:
    """Compares features: the largest difference, and the least cosine of those of an image."""
    lengths = np.linalg.norm(theirs, axis=1) * np.linalg.norm(ours, axis=1)
    return {
        "largest_difference": float(np.abs(theirs - ours).max()),
        "least_cosine": float(((theirs * ours).sum(axis=1) / lengths).min()),
        "mean_feature": float(np.abs(ours).mean()),
    }


if __name__ == "__main__":
    main(*sys.argv[1:])
