"""Opening image files: their formats, headers, and what is said of a file that is of none."""

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

Image.init()  # else Pillow knows the commonest formats only, and no others by their names

_WANTED_FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "BMP", "DIB", "GIF", "AVIF", "JPEG2000")
_WANTED_FORMATS += ("PPM", "TGA", "QOI", "SGI", "PCX")
PILLOW_FORMATS = tuple(format for format in _WANTED_FORMATS if format in Image.OPEN)
"""What is read, whatever a file is called; some builds of Pillow lack one of them.

No other of Pillow's readers sees a file: some would start a program (EPS) or make sense of nearly
any bytes.
"""

NO_IMAGE = "no image"
DAMAGED_OR_NOT_READ = "damaged, or of a kind that is not read"

_WIDTH, _HEIGHT, _TILE_WIDTH, _TILE_HEIGHT = 256, 257, 322, 323  # tags of TIFF
# Of a page of a TIFF file: what it is; the bits of a smaller version and of a mask (TIFF 6.0).
_SUBFILE_TYPE = 254
_NO_PAGE = 0b101
_ROOMY = 2**24  # pixels of a tile that may be larger than its image


@dataclass(frozen=True)
class OpenedImage:
    """An image file of which the header was read.

    **Arguments:**

    - `file`: what reads it.
    - `size`: (width, height) as they are stored, whatever the orientation.
    - `deep`: what reads its values, of one that Pillow does not decode, or not with all its bits.
    """

    file: Image.Image | TiffPage
    size: tuple[int, int]
    deep: DeepFile | None

    @property
    def turns_itself(self) -> bool:
        """Whether it is upright once it is decoded: Pillow turns TIFF files, and no others."""
        return isinstance(self.file, Image.Image) and self.file.format == "TIFF"

    def holds_more_images(self) -> bool:
        """Tells whether there are others than previews beside the first, before that is decoded."""
        if isinstance(self.file, TiffPage):
            return self.file.holds_more_images()
        if self.file.format not in ("TIFF", "GIF"):
            return self.file.format != "MPO" and getattr(self.file, "is_animated", False)
        try:  # on a copy: a second page that is damaged need not concern the first one
            content = io.BytesIO(self.file.fp.getvalue())
            with Image.open(content, formats=[self.file.format]) as copy:
                copy.seek(1)
                is_gif = self.file.format == "GIF"
                return is_gif or not copy.tag_v2.get(_SUBFILE_TYPE, 0) & _NO_PAGE
        except Exception:
            return False

    def orientation(self) -> int:
        """Reads how it lies, as Exif has it: 1 is upright. Pillow decodes a PNG to know."""
        if isinstance(self.file, TiffPage):
            return self.file.orientation
        try:
            return self.file.getexif().get(ExifTags.Base.Orientation, 1)
        except MemoryError:
            raise
        except Exception:  # of what is broken in the metadata the image need not suffer
            return 1


def open_encoded(encoded: bytes) -> OpenedImage:
    """Reads the header of a file, by Pillow if that reads it rightly, and else by tifffile.

    Raises `Refused`, which says why, for what is no image, or of a kind that is not read.
    """
    try:
        file = open_by_pillow(encoded)
        kind = PLANES if is_read_wrongly(file) else None
    except (ValueError, KeyError):  # the latter for compressions that it has no name of
        if not encoded.startswith(STARTS_OF_TIFF):
            raise
        kind = UNKNOWN_TO_PILLOW
    if kind:
        page = TiffPage(encoded, kind)
        return OpenedImage(page, page.size, DeepFile(page.mode, page.read))
    size = file.size
    if file.format == "TIFF":  # its size is the upright one in some versions of Pillow
        size = (file.tag_v2[_WIDTH], file.tag_v2[_HEIGHT])
        _check_tiles(file.tag_v2.get(_TILE_WIDTH, 0), file.tag_v2.get(_TILE_HEIGHT, 0), size)
    return OpenedImage(file, size, deep_file(file, encoded, lambda: open_by_pillow(encoded)))


def _check_tiles(width: int, height: int, size: tuple[int, int]) -> None:
    """Raises `Refused` for tiles far larger than their image, as each is unpacked as a whole."""
    if width * height > 4 * size[0] * size[1] + _ROOMY:
        raise Refused(
            f"its tiles have {height} x {width} pixels, and the image {size[1]} x {size[0]}",
            DAMAGED,
        )


def open_by_pillow(encoded: bytes) -> Image.Image:
    """Opens a file of one of `PILLOW_FORMATS`. Raises `Refused`, which says why, for others.

    Broken metadata do not cost the image: those of PNG are left out, and what AVIF has of Exif if
    it is not opened with that.
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
    """Says what Pillow has against a file, of the format that it begins as."""
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
    """Why Pillow reads no such format, or not this file of it; empty for a file of another one."""
    factory, accept = Image.OPEN[format]
    try:
        is_one = accept(encoded[:16]) if accept else False
    except Exception:  # of a file that is too short
        is_one = False
    if is_one is True:
        try:
            factory(io.BytesIO(encoded), "")
        except Exception as error:
            return str(error) or type(error).__name__
    return is_one if isinstance(is_one, str) else ""
