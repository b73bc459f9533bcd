"""Opening image files: which formats are read, their headers, and why a file is refused."""

import io
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from ddae_jax.data.deep_colour import DeepFile, deep_file
from ddae_jax.data.files import DAMAGED, Refused
from ddae_jax.data.metadata import START_OF_PNG, without_ancillary_chunks, without_exif_of_avif
from ddae_jax.data.tiff import (
    PLANES,
    STARTS_OF_TIFF,
    UNKNOWN_TO_PILLOW,
    TiffPage,
    is_read_wrongly,
)

Image.init()  # else Pillow knows only the most common formats, and the list below would lack some

_WANTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000")
_WANTED_FORMATS += ("PPM", "TGA", "QOI", "SGI", "PCX")
PILLOW_FORMATS = tuple(format for format in _WANTED_FORMATS if format in Image.OPEN)
"""The formats that are read, whatever a file is called. Some builds of Pillow lack one of them.

No file is given to Pillow's readers of other formats: some start a program (EPS), and some accept
nearly any bytes.
"""

NO_IMAGE = "no image"
DAMAGED_OR_NOT_READ = "damaged, or of a kind that is not read"

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323  # tags of TIFF
# TIFF 6.0: the tag of the kind of a page, and its bits for smaller versions and for masks.
_SUBFILE_TYPE = 254
_NO_PAGE = 0b101
_ROOMY = 2**24  # pixels by which a tile may always exceed its image


@dataclass(frozen=True)
class OpenedImage:
    """An image file whose header was read.

    Args:
        file: reads the file.
        size: (width, height) in pixels as stored, before the image is turned upright.
        deep: reads the values of a file that Pillow does not decode, or not with all its bits;
            else None.
    """

    file: Image.Image | TiffPage
    size: tuple[int, int]
    deep: DeepFile | None

    @property
    def turns_itself(self) -> bool:
        """Whether decoding turns the image upright, as Pillow does with TIFF files only."""
        return isinstance(self.file, Image.Image) and self.file.format == "TIFF"

    def holds_more_images(self) -> bool:
        """Tells whether there are images beside the first one that are not previews of it.

        Has to be called before the first one is decoded.
        """
        if isinstance(self.file, TiffPage):
            return self.file.holds_more_images()
        if self.file.format not in ("TIFF", "GIF"):
            return self.file.format != "MPO" and getattr(self.file, "is_animated", False)
        try:  # on a copy, as a damaged second page must not affect the first one
            content = io.BytesIO(self.file.fp.getvalue())
            with Image.open(content, formats=[self.file.format]) as copy:
                copy.seek(1)
                is_gif = self.file.format == "GIF"
                return is_gif or not copy.tag_v2.get(_SUBFILE_TYPE, 0) & _NO_PAGE
        except Exception:
            return False

    def orientation(self) -> int:
        """Reads the orientation as Exif numbers it; 1 is upright. Pillow decodes a PNG for it."""
        if isinstance(self.file, TiffPage):
            return self.file.orientation
        try:
            return self.file.getexif().get(ExifTags.Base.Orientation, 1)
        except MemoryError:
            raise
        except Exception:  # broken metadata do not make the image unusable
            return 1


def open_encoded(encoded: bytes) -> OpenedImage:
    """Reads the header of a file, by Pillow if it reads such files correctly, else by tifffile.

    Raises:
        Refused: if it is no image, or of a kind that is not read.
        Exception: of any kind that Pillow or tifffile raise for damaged files.
    """
    try:
        file = open_by_pillow(encoded)
        kind = PLANES if is_read_wrongly(file) else None
    except (ValueError, KeyError):  # the latter for compressions unknown to Pillow
        if not encoded.startswith(STARTS_OF_TIFF):
            raise
        kind = UNKNOWN_TO_PILLOW
    if kind:
        page = TiffPage(encoded, kind)
        return OpenedImage(page, page.size, DeepFile(page.mode, page.read))
    size = file.size
    if file.format == "TIFF":  # some versions of Pillow give the size of the upright image
        size = (file.tag_v2[_WIDTH], file.tag_v2[_HEIGHT])
        _check_tiles(file.tag_v2.get(_TILE_WIDTH, 0), file.tag_v2.get(_TILE_HEIGHT, 0), size)
    return OpenedImage(file, size, deep_file(file, encoded, lambda: open_by_pillow(encoded)))


def _check_tiles(width: int, height: int, size: tuple[int, int]) -> None:
    """Raises ``Refused`` for tiles far larger than their image, as each is unpacked as a whole."""
    if width * height > 4 * size[0] * size[1] + _ROOMY:
        raise Refused(
            f"its tiles have {height} x {width} pixels, and the image {size[1]} x {size[0]}",
            DAMAGED,
        )


def open_by_pillow(encoded: bytes) -> Image.Image:
    """Opens a file of one of ``PILLOW_FORMATS``.

    Broken metadata do not make an image unusable: those of PNG are left out, and the Exif data of
    AVIF are if the file cannot be opened with them.

    Raises:
        Refused: if it is of no such format, or Pillow does not read it.
    """
    if encoded.startswith(START_OF_PNG):
        encoded = without_ancillary_chunks(encoded)
    try:
        return Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS)
    except Exception as error:
        plainer = without_exif_of_avif(encoded)
        if plainer != encoded:
            return open_by_pillow(plainer)
        if isinstance(error, UnidentifiedImageError):
            raise _refusal(encoded) from error
        raise


def _refusal(encoded: bytes) -> Refused:
    """Returns the error for a file that Pillow does not identify, by the format it begins as."""
    if not encoded:
        return Refused("the file is empty", NO_IMAGE)
    for format in PILLOW_FORMATS:
        reason = _reason_against(format, encoded)
        if reason:
            return Refused(
                f"it begins as a {format} file, but Pillow does not read it: {reason}",
                DAMAGED_OR_NOT_READ,
            )
    return Refused(
        f"it is of none of the formats that are read ({', '.join(PILLOW_FORMATS)})", NO_IMAGE
    )


def _reason_against(format: str, encoded: bytes) -> str:
    """Returns why Pillow does not read a file that begins as one of a format.

    Returns "" for a file of another format.
    """
    factory, accept = Image.OPEN[format]
    try:
        answer = accept(encoded[:16]) if accept else False  # a text says what Pillow lacks
    except Exception:  # the file is too short
        answer = False
    if answer is True:
        try:
            factory(io.BytesIO(encoded), "")
        except Exception as error:
            return str(error) or type(error).__name__
    return answer if isinstance(answer, str) else ""
