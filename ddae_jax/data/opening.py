"""Opening image files: their formats, headers, and what is said of a file that is of none."""

import io
from dataclasses import dataclass

from PIL import ExifTags, Image, UnidentifiedImageError

from ddae_jax.data.deep_colour import DeepFile, deep_file
from ddae_jax.data.files import Refused
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

_WIDTH, _HEIGHT = 256, 257  # tags of TIFF
# Of a page of a TIFF file: what it is; the bits of a smaller version and of a mask (TIFF 6.0).
_SUBFILE_TYPE = 254
_NO_PAGE = 0b101


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
    return OpenedImage(file, size, deep_file(file, encoded, lambda: open_by_pillow(encoded)))


def open_by_pillow(encoded: bytes) -> Image.Image:
    """Opens a file of one of `PILLOW_FORMATS`. Raises `Refused`, which says why, for others."""
    try:
        return Image.open(io.BytesIO(encoded), formats=PILLOW_FORMATS)
    except UnidentifiedImageError as error:
        raise _refusal(encoded) from error


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


def webp_size(encoded: bytes) -> tuple[int, int] | None:
    """(width, height) of a WebP file, pixels, by its header; None if it is none.

    Source: RFC 9649, WebP Image Format, sections 2.5 to 2.7.
    """
    kind, data = encoded[12:16], encoded[20:30]
    if encoded[:4] != b"RIFF" or encoded[8:12] != b"WEBP" or len(data) < 10:
        return None
    if kind == b"VP8X":
        return 1 + int.from_bytes(data[4:7], "little"), 1 + int.from_bytes(data[7:10], "little")
    if kind == b"VP8L":
        bits = int.from_bytes(data[1:5], "little")
        return 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
    if kind == b"VP8 ":
        sides = int.from_bytes(data[6:8], "little"), int.from_bytes(data[8:10], "little")
        return sides[0] & 0x3FFF, sides[1] & 0x3FFF
    return None
