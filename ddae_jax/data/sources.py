"""Opening a source of images by its kind: the digits, a TFDS dataset, or a folder of files."""

from ddae_jax.data.array_source import digits_source
from ddae_jax.data.folder_source import FolderSource
from ddae_jax.data.images import Decoding
from ddae_jax.data.source_base import Source
from ddae_jax.data.tfds_source import TfdsSource
from ddae_jax.suggestions import did_you_mean

SOURCE_KINDS = ("digits", "tfds", "folder")


def make_source(
    source: str,
    *,
    name: str = "",
    data_dir: str = "",
    split: str = "train",
    channels: int = 3,
    max_pixels: int = Decoding.max_pixels,
    max_value: float = Decoding.max_value,
) -> Source:
    """Opens a source of labelled images.

    Args:
        source: "digits" (scikit-learn's handwritten digits, which come with it), "tfds" or
            "folder".
        name: the TFDS dataset, such as "cifar10"; other kinds ignore it.
        data_dir: where TFDS datasets lie (default: TFDS's own place), or the folder of images.
        split: "train", "test", ...; for TFDS also a slice such as "train[:80%]".
        channels: 1 (grey) or 3 (RGB) of every decoded image. Any other number for a folder of
            arrays or of TIFF files with many bands; see ``ddae_jax.data.array_images``.
        max_pixels, max_value: see ``ddae_jax.data.images.Decoding``.

    Raises:
        ValueError: for an unknown source, name or split, for other ``channels``, and for a folder
            without images.
        FileNotFoundError: for data that is not there and cannot be downloaded.
    """
    check_channels(channels, source)
    decoding = Decoding(channels, max_pixels, max_value)
    match source:
        case "digits":
            return digits_source(split, channels)
        case "tfds":
            return TfdsSource(name, data_dir, split, decoding)
        case "folder":
            return FolderSource(data_dir, split, decoding)
    raise ValueError(
        f"source={source!r} is unknown{did_you_mean(source, SOURCE_KINDS)}; "
        f"known are {', '.join(SOURCE_KINDS)}"
    )


def check_channels(channels: int, source: str) -> None:
    """Raises ``ValueError`` if a kind of source has no images of so many channels."""
    if channels < 1 or (channels not in (1, 3) and source != "folder"):
        raise ValueError(
            f"channels={channels}; images are decoded to 1 (grey) or 3 (RGB) channels, and those "
            "of other channels are read from files of arrays, by source='folder'"
        )
