"""Makes export.npz: what timm and transformers compute with encoders that were exported to them.

In two steps, as each needs what the other has not, and the tests need neither torch:

    PYTHONPATH=.:tests python tests/golden/make_export.py write FOLDER    (JAX, and this package)
    PYTHONPATH=.:tests python tests/golden/make_export.py read FOLDER     (torch and both libraries)

The encoders are those of tests/exported_encoders.py. Beside the features lies a digest of the files
that they were computed with, by which a test knows that it exports the same; and what comes of
running the code in each card on photographs, with the text of that code.
"""

import contextlib
import hashlib
import importlib.metadata
import pathlib
import sys

import numpy as np
from PIL import ExifTags, Image
from safetensors.numpy import load_file

PATH = pathlib.Path(__file__).with_name("export.npz")
NOISE = np.float32([[0.3, 0.1, 0.4, 0.2], [0.2, 0.4, 0.1, 0.3]])  # half of the patches are visible


UPRIGHT, DEEP, FLOATS = "upright.jpg", "deep.png", "floats.tiff"
PHOTOS = ("wide.png", "tall.png", "small.png", UPRIGHT, DEEP, FLOATS)
"""One is stored lying on its side, as cameras do; two are grey: of 12 bits, and of floats."""


def draw_photos(folder: pathlib.Path) -> None:
    """Draws the photographs: waves and noise, in the colours of both."""
    for number, (name, size) in enumerate(
        zip(PHOTOS, ((31, 22), (21, 38), (5, 7), (40, 26), (24, 33), (27, 20)), strict=True)
    ):
        rng = np.random.Generator(np.random.PCG64(number))
        y, x, channel = np.mgrid[: size[1], : size[0], :3]
        waves = 128 + 90 * np.sin(0.4 * x + 0.3 * y + channel) + rng.integers(-30, 30, x.shape)
        share = waves.clip(0, 255) / 255
        if name == DEEP:
            image = Image.fromarray((share[..., 0] * 4095).astype(np.uint16))
        elif name == FLOATS:  # with some overshoot
            image = Image.fromarray((share[..., 0] * 1.1).astype(np.float32))
        else:
            image = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
        exif = Image.Exif()
        if name == UPRIGHT:
            exif[ExifTags.Base.Orientation] = 6
        image.save(folder / name, quality=95, exif=exif)


def digest(folder: pathlib.Path) -> str:
    """Of arrays and settings in a folder, but for its card."""
    found = hashlib.sha256()
    for name, array in sorted(load_file(folder / "model.safetensors").items()):
        found.update(f"{name} {array.dtype} {array.shape}".encode())
        found.update(array.tobytes())
    for path in sorted(folder.glob("*.json")):
        found.update(path.name.encode() + path.read_bytes())
    return found.hexdigest()


def write(folder: pathlib.Path) -> None:
    """Exports every encoder to a folder of its own, beside images for it."""
    import exported_encoders
    from ddae_jax.interop.library_export import write_exported

    folder.mkdir(parents=True)
    draw_photos(folder)
    for name in exported_encoders.ENCODERS:
        encoder, _, exported = exported_encoders.export(name)
        (folder / name).mkdir(parents=True)
        write_exported(exported, folder / name)
        (folder / f"{name}.py").write_text(
            exported_encoders.code_of(exported_encoders.card_of(name, name))
        )
        images = exported_encoders.images_for(encoder, exported_encoders.channels_of(name))
        np.save(folder / f"{name}.npy", images)


def read(folder: pathlib.Path) -> None:
    """Loads them with their libraries and stores what comes of the images."""
    import torch

    found = {}
    for path in sorted(folder.glob("*.npy")):
        name = path.stem
        images = torch.from_numpy(np.load(path)).permute(0, 3, 1, 2)
        with torch.no_grad():
            outputs = (_of_timm if name.startswith("timm") else _of_transformers)(
                folder / name, images
            )
        found |= {f"{name}/{key}": value.numpy() for key, value in outputs.items()}
        found[f"{name}/digest"] = digest(folder / name)
        found[f"{name}/code"] = (folder / f"{name}.py").read_text()
        found[f"{name}/followed"] = np.stack(follow(folder / f"{name}.py"))
        print(name, {key: tuple(value.shape) for key, value in outputs.items()})
    for name in PHOTOS:
        found[f"photo/{name}"] = np.frombuffer((folder / name).read_bytes(), np.uint8)
    packages = ("torch", "timm", "transformers")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    np.savez_compressed(PATH, made_with=versions, **found)
    print(PATH, f"{PATH.stat().st_size / 1024:.0f} KiB", versions)


def follow(code: pathlib.Path) -> list[np.ndarray]:
    """Runs the code of a card on each photograph; the features of it."""
    import torch

    features = []
    for name in PHOTOS:
        lines = code.read_text().replace("photo.jpg", name)
        scope = {}
        with contextlib.chdir(code.parent), torch.no_grad():
            exec(compile(lines, str(code), "exec"), scope)
        features.append(scope["features"][0].numpy())
    return features


def _of_timm(folder: pathlib.Path, images) -> dict:
    import timm

    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    return {"tokens": model.forward_features(images), "pooled": model(images)}


def _of_transformers(folder: pathlib.Path, images) -> dict:
    import torch
    import transformers

    options = {"output_loading_info": True}
    if "mae" in folder.name:
        model, said = transformers.AutoModelForPreTraining.from_pretrained(folder, **options)
        _check_whole(folder, said)
        noise = torch.from_numpy(NOISE)
        out = model(images, noise=noise)
        model, _ = transformers.AutoModel.from_pretrained(folder, mask_ratio=0.0, **options)
        order = torch.arange(4.0).expand(2, 4)
        tokens = model.eval()(images, noise=order).last_hidden_state
        return {"tokens": tokens, "logits": out.logits, "mask": out.mask, "loss": out.loss}
    if "vit" in folder.name:
        options["add_pooling_layer"] = False
    model, said = transformers.AutoModel.from_pretrained(folder, **options)
    _check_whole(folder, said)
    return {"tokens": model.eval()(images).last_hidden_state}


def _check_whole(folder: pathlib.Path, said: dict) -> None:
    lost = {key: value for key, value in said.items() if value}
    assert not lost, f"{folder}: {lost}"


if __name__ == "__main__":
    {"write": write, "read": read}[sys.argv[1]](pathlib.Path(sys.argv[2]))
