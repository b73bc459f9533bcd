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
"""What :func:`import_tifffile` says of the files that need it."""

NEEDS_A_PACKAGE = "of a kind that needs another package"

_BITS_PER_SAMPLE, _ORIENTATION, _PLANAR, _NO_VALUE = 258, 274, 284, 42113  # tags
_WHITE_IS_ZERO, _BLACK_IS_ZERO, _RGB, _SEPARATED = 0, 1, 2, 5  # what samples may mean
_MOST_SAMPLES = 8  # with more, a file of few bytes might fill the memory
_PREMULTIPLIED, _NOT_PREMULTIPLIED = 1, 2  # kinds of opacity among what samples are extra


def is_read_wrongly(file: Image.Image) -> bool:
    """Tells whether Pillow opens a file, and yet makes other values of it: 16 bits in planes."""
    if file.format != "TIFF":
        return False
    bits = file.tag_v2.get(_BITS_PER_SAMPLE, (1,))
    is_of_planes = file.tag_v2.get(_PLANAR, 1) == 2 and len(file.getbands()) > 1
    return is_of_planes and max(bits) > 8


class TiffPage:
    """The first image of a TIFF file, grey or in colours, with or without opacity.

    Raises `ValueError` if the package is missing, and `Refused`, which names the kind, for what
    cannot be shown as such an image.

    **Arguments:**

    - `encoded`: the content of the file.
    - `kind`: of file that it is, for a message that says what to install.
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
        """The mode, the number of colours, and which sample is the opacity."""
        page = self._page
        samples, meaning = page.samplesperpixel, int(page.photometric)
        if page.dtype is None or page.dtype.kind not in "buif" or page.imagedepth != 1:
            raise Refused(f"it holds {_values_of(page)}; numbers of an image are read", NOT_READ)
        extra = [int(kind) for kind in page.extrasamples]
        kinds = dict(enumerate(extra, samples - len(extra)))
        alphas = [at for at, k in kinds.items() if k in (_PREMULTIPLIED, _NOT_PREMULTIPLIED)]
        alpha = alphas[0] if alphas else None
        if meaning in (_RGB, _SEPARATED):
            colours = 3 if meaning == _RGB else 4
        elif meaning in (_WHITE_IS_ZERO, _BLACK_IS_ZERO):
            colours = samples - len(alphas)  # as programs for maps write colours too
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
        """Decodes it."""
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
    """Opens a TIFF file; each series has bands, or pages alike. Raises as `TiffPage` does."""
    return _open(encoded, MANY_CHANNELS).series


def read_series(series: "tifffile.TiffPageSeries", encoded: bytes) -> Num[np.ndarray, "*shape"]:
    """Decodes a series, of which the caller has checked the shape, of a file of this content."""
    with naming_packages():
        check_segments(encoded, series.pages)
        return series.asarray(maxworkers=1)  # as what reads images has threads of its own


def _open(encoded: bytes, kind: str) -> "tifffile.TiffFile":
    """Opens a file that has a page."""
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
    """Raises `Refused`, which says what to install, where TIFF files of a kind cannot be read."""
    try:
        import tifffile  # noqa: F401
    except ModuleNotFoundError as error:
        raise Refused(
            f"TIFF files {kind} need a package that is not here: pip install tifffile",
            NEEDS_A_PACKAGE,
        ) from error


@contextlib.contextmanager
def naming_packages() -> Iterator[None]:
    """Raises `Refused`, which says what to install, where a compression needs more to be read."""
    try:
        yield
    except (ValueError, NotImplementedError) as error:
        if "imagecodecs" not in str(error):
            raise
        raise Refused(f"{error}: pip install imagecodecs", NEEDS_A_PACKAGE) from error


def white_of(page: Any) -> float:
    """The largest value of a page of fewer bits than its values' type has, such as 12; or 0."""
    bits = page.bitspersample
    is_packed = page.dtype.kind == "u" and bits < 8 * page.dtype.itemsize
    return float(2**bits - 1) if is_packed else 0.0


def declared_no_value(page: Any) -> float | None:
    """What stands in a page where nothing was measured, as programs for maps say; else None."""
    tag = page.tags.get(_NO_VALUE)
    return no_value_of(tag.value) if tag else None


def _opaque_of(values: Num[np.ndarray, "*shape"], white: float) -> float:
    """What an opacity is at most."""
    if values.dtype.kind in "bf":
        return 1.0
    return white or float(np.iinfo(values.dtype).max)


def _values_of(page: Any) -> str:
    """The kind of a page's values, in words."""
    if page.imagedepth != 1:
        return f"{page.imagedepth} images in one, of its depth"
    return f"values of type {page.dtype or f'{page.bitspersample} bits'}"
