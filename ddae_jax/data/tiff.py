"""TIFF files that Pillow reads wrongly or not at all, read by the package tifffile."""

import contextlib
import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Num
from PIL import Image

from ddae_jax.data.bit_depth import DeepImage
from ddae_jax.data.deep_colour import no_value_of
from ddae_jax.data.files import DAMAGED, NOT_READ, Refused
from ddae_jax.data.tiff_segments import check_segments

if TYPE_CHECKING:
    import tifffile

STARTS_OF_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")

MANY_CHANNELS = "of other than 1 or 3 channels"
PLANES = "of more than 8 bits in separate planes"
UNKNOWN_TO_PILLOW = "of a kind that Pillow does not know"
"""Kinds of files that need tifffile, for the message of ``import_tifffile``."""

NEEDS_A_PACKAGE = "of a kind that needs another package"

_BITS_PER_SAMPLE, _ORIENTATION, _PLANAR, _NO_VALUE = 258, 274, 284, 42113  # tags
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _SEPARATED = 0, 1, 2, 5  # values of the tag Photometric
_MOST_SAMPLES = 8  # of a pixel; with more, a file of few bytes might fill the memory
_PREMULTIPLIED, _NOT_PREMULTIPLIED = 1, 2  # kinds of extra samples that are an opacity


def is_read_wrongly(file: Image.Image) -> bool:
    """Tells whether Pillow opens a file but decodes it wrongly: planes of more than 8 bits."""
    if file.format != "TIFF":
        return False
    bits = file.tag_v2.get(_BITS_PER_SAMPLE, (1,))
    is_of_planes = file.tag_v2.get(_PLANAR, 1) == 2 and len(file.getbands()) > 1
    return is_of_planes and max(bits) > 8


class TiffPage:
    """The first image of a TIFF file, grey or in colours, with or without opacity.

    Args:
        encoded: the content of the file.
        kind: the kind of file, for the message that says what to install.

    Attributes:
        size: (width, height) in pixels as stored, before the image is turned upright.
        orientation: as Exif numbers it; 1 is upright.
        mode: see ``ddae_jax.data.bit_depth.DeepImage``.

    Raises:
        Refused: if tifffile is missing, or the file holds no such image.
    """

    def __init__(self, encoded: bytes, kind: str):
        self._encoded = encoded
        self._file = _open(encoded, kind)
        self._page = self._file.pages.first
        self.size: tuple[int, int] = (self._page.imagewidth, self._page.imagelength)
        tag = self._page.tags.get(_ORIENTATION)
        self.orientation = int(tag.value) if tag else 1
        self.mode, self._num_colours, self._alpha = self._channels()

    def _channels(self) -> tuple[str, int, int | None]:
        """Returns the mode, the number of colours, and which sample is the opacity, if one is."""
        page = self._page
        samples, meaning = page.samplesperpixel, int(page.photometric)
        if page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
            raise Refused(
                f"it holds {_values_of(page)}; only numbers are read, of one image", NOT_READ
            )
        extra = [int(kind) for kind in page.extrasamples]
        kinds = dict(enumerate(extra, samples - len(extra)))
        alphas = [at for at, k in kinds.items() if k in (_PREMULTIPLIED, _NOT_PREMULTIPLIED)]
        alpha = alphas[0] if alphas else None
        if meaning in (_RGB, _SEPARATED):
            colours = 3 if meaning == _RGB else 4
        elif meaning in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
            colours = samples - len(alphas)  # 3 too: programs for maps declare RGB as grey
        else:
            raise Refused(
                f"its colours are of the kind {page.photometric.name} with {_values_of(page)}; "
                "grey, RGB and CMYK are read of such TIFF files",
                NOT_READ,
            )
        is_colour = colours in (1, 3) or (colours, meaning) == (4, _SEPARATED)
        if not (is_colour and colours <= samples <= _MOST_SAMPLES):
            raise Refused(
                f"it has {samples} channels; with data.channels={samples} they are read as such",
                NOT_READ,
            )
        mode = {1: "L", 3: "RGB", 4: "CMYK"}[colours]
        has_alpha = alpha is not None and colours != 4
        return mode + "A" * has_alpha, colours, alpha if has_alpha else None

    def holds_more_images(self) -> bool:
        """Tells whether there are pages that are no previews or masks."""
        others = self._file.pages[1:]
        return any(not page.is_reduced and not page.is_mask for page in others)

    def read(self) -> DeepImage:
        """Decodes the image.

        Raises:
            Refused: if a strip or tile is suspiciously large, or another package is needed.
            Exception: of any kind that tifffile raises for damaged files.
        """
        page = self._page
        with naming_packages():
            check_segments(self._encoded, [page])
            planes, _, height, width, _ = page.shaped
            values = page.asarray(squeeze=False, maxworkers=1).reshape(planes, height, width, -1)
        values = np.moveaxis(values, 0, -1)[..., 0, :] if planes > 1 else values[0]
        chosen = [*range(self._num_colours), *([] if self._alpha is None else [self._alpha])]
        if len(chosen) < values.shape[-1]:
            values = values[..., chosen]
        white = white_of(page)
        return DeepImage(
            values,
            self.mode,
            opaque=_opaque_of(values, white),
            is_premultiplied=_PREMULTIPLIED in page.extrasamples,
            white=white,
            is_inverted=int(page.photometric) == _WHITE_IS_ZERO,
            no_value=declared_no_value(page),
        )


def open_all_series(encoded: bytes) -> "list[tifffile.TiffPageSeries]":
    """Opens a TIFF file and lists its series: bands of a page, or pages that are alike.

    Raises ``Refused`` as ``TiffPage`` does.
    """
    return _open(encoded, MANY_CHANNELS).series


def read_series(series: "tifffile.TiffPageSeries", encoded: bytes) -> Num[np.ndarray, "*shape"]:
    """Decodes a series of the file with the content ``encoded``.

    The caller has to check the shape first: it may be of any size. Raises what ``TiffPage.read``
    raises.
    """
    with naming_packages():
        check_segments(encoded, series.pages)
        return series.asarray(maxworkers=1)  # callers read in threads of their own


def _open(encoded: bytes, kind: str) -> "tifffile.TiffFile":
    """Opens a file. Raises ``Refused`` if it has no page, or tifffile is missing."""
    import_tifffile(kind)
    import tifffile

    try:
        file = tifffile.TiffFile(io.BytesIO(encoded))
        file.pages.first  # noqa: B018
    except (IndexError, KeyError, ValueError) as error:
        reason = f": {error}" if isinstance(error, ValueError) else ""
        raise Refused(f"it begins as a TIFF file, but holds no image{reason}", DAMAGED) from error
    return file


def import_tifffile(kind: str) -> None:
    """Raises ``Refused``, which says what to install, if tifffile is missing."""
    try:
        import tifffile  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refused(
            f"TIFF files {kind} need a package that is not here: pip install tifffile",
            NEEDS_A_PACKAGE,
        ) from error


@contextlib.contextmanager
def naming_packages() -> Iterator[None]:
    """Raises ``Refused``, which says what to install, if a compression needs imagecodecs."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise Refused(f"{error}: pip install imagecodecs", NEEDS_A_PACKAGE) from error


def white_of(page: Any) -> float:
    """Returns the largest value of a page with fewer bits than its type, such as 12; else 0."""
    bits = page.bitspersample
    is_packed = page.dtype.kind == "u" and bits < 8 * page.dtype.itemsize
    return float(2**bits - 1) if is_packed else 0.0


def declared_no_value(page: Any) -> float | None:
    """Returns the number where nothing was measured, from GDAL's tag; None if there is none."""
    tag = page.tags.get(_NO_VALUE)
    return no_value_of(tag.value) if tag else None


def _opaque_of(values: Num[np.ndarray, "*shape"], white: float) -> float:
    """Returns the value of full opacity."""
    if values.dtype.kind in "bf":
        return 1.0
    return white or float(np.iinfo(values.dtype).max)


def _values_of(page: Any) -> str:
    """Describes the values of a page, for messages."""
    if page.imagedepth != 1:
        return f"{page.imagedepth} images in one, of its depth"
    return f"values of type {page.dtype or f'{page.bitspersample} bits'}"
