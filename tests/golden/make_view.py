"""Makes view.npz: what timm and transformers show of small images.

python tests/golden/make_view.py     (needs torch, torchvision, timm and transformers)

The tests need none of them. Images are of odd sizes, wide and tall, smaller than what is shown of
them, and of just that size.
"""

import importlib.metadata
import itertools
import pathlib

import numpy as np
from PIL import Image

PATH = pathlib.Path(__file__).with_name("view.npz")
SIZES = ((53, 37), (30, 47), (29, 29), (12, 12), (9, 7), (71, 13), (12, 40))
"""Width and height of the images."""
VIEWS = (
    ((12, 12), 0.875, "bicubic", "center"),
    ((12, 12), 0.9, "bilinear", "center"),
    ((12, 12), 1.0, "lanczos", "center"),
    ((12, 8), 0.875, "bicubic", "center"),
    ((7, 12), 0.95, "hamming", "center"),
    ((12, 12), 0.875, "bicubic", "squash"),
    ((8, 12), 1.0, "box", "squash"),
    ((12, 12), 0.875, "nearest", "center"),
)
"""Size (height, width), share, interpolation and mode."""
PILLOW = {"bicubic": 3, "bilinear": 2, "lanczos": 1, "hamming": 5, "box": 4, "nearest": 0}


def make_image(number: int, width: int, height: int) -> Image.Image:
    """Draws waves with some noise; the last image is grey."""
    rng = np.random.Generator(np.random.PCG64(number))
    y, x, channel = np.mgrid[:height, :width, :3]
    waves = 128 + 90 * np.sin(0.4 * x + 0.23 * y + channel) + rng.integers(-30, 30, x.shape)
    image = Image.fromarray(waves.clip(0, 255).astype(np.uint8))
    return image.convert("L") if number == len(SIZES) - 1 else image


def of_timm(image: Image.Image, size: tuple, share: float, interpolation: str, mode: str):
    """Cuts an image as timm's transform of evaluation does."""
    import timm.data
    import torch

    channels = len(image.getbands())
    transform = timm.data.create_transform(
        input_size=(channels, *size),
        crop_pct=share,
        crop_mode=mode,
        interpolation=interpolation,
        mean=(0.0,) * channels,
        std=(1.0,) * channels,
    )
    return (transform(image) * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()


def of_transformers(image: Image.Image, size: tuple, share: float, interpolation: str):
    """Cuts an image as a processor of transformers does, by its shorter side."""
    from transformers.models.bit.image_processing_pil_bit import BitImageProcessorPil

    processor = BitImageProcessorPil(
        size={"shortest_edge": int(size[0] / share)},
        crop_size={"height": size[0], "width": size[1]},
        resample=PILLOW[interpolation],
        do_rescale=False,
        do_normalize=False,
        do_convert_rgb=False,
    )
    return np.asarray(processor(image).pixel_values[0]).round().astype(np.uint8).transpose(1, 2, 0)


def main() -> None:
    """Stores images and what is shown of them."""
    arrays = {}
    images = [make_image(number, *size) for number, size in enumerate(SIZES)]
    for number, image in enumerate(images):
        arrays[f"image/{number}"] = np.asarray(image)
    for (number, image), (view, options) in itertools.product(enumerate(images), enumerate(VIEWS)):
        size, share, interpolation, mode = options
        arrays[f"timm/{number}/{view}"] = of_timm(image, size, share, interpolation, mode)
        if mode == "center" and size[0] == size[1] and image.mode == "RGB":
            shown = of_transformers(image, size, share, interpolation)
            arrays[f"transformers/{number}/{view}"] = shown
    packages = ("torch", "torchvision", "timm", "transformers", "pillow")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    np.savez_compressed(PATH, made_with=versions, **arrays)
    print(PATH, f"{PATH.stat().st_size / 1024:.0f} KiB", versions)


if __name__ == "__main__":
    main()
