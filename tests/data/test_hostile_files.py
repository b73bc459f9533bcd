"""Files that claim more than they hold, break off, or have broken metadata.

Each is refused with its cause, or read, and none takes more memory than its image needs.
"""

import io
import lzma
import resource
import struct
import zipfile
import zlib

import numpy as np
import pytest
import tifffile
from PIL import Image

from ddae_jax.data import numpy_files
from ddae_jax.data.array_images import ArrayImage
from ddae_jax.data.files import NoMemoryLeft
from ddae_jax.data.images import CorruptImage, Decoding, EncodedImage

NOISE = np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8)
NEEDS_LITTLE = 100 * 1024  # KiB


def npy(header, body=b"", version=(1, 0)):
    size = struct.pack("<H" if version == (1, 0) else "<I", len(header))
    return b"\x93NUMPY" + bytes(version) + size + header.encode() + body


def described(descr, shape=(4, 4, 5)):
    return f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"


def archive(*parts, method=zipfile.ZIP_DEFLATED):
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", method, compresslevel=1) as packed,
        packed.open("a.npy", "w", force_zip64=True) as member,
    ):
        for part in parts:
            member.write(part)
    return file.getvalue()


def encoded(format, **options):
    file = io.BytesIO()
    Image.fromarray(NOISE).save(file, format, **options)
    return file.getvalue()


def pixels(content, channels=3):
    kind = EncodedImage if channels == 3 else ArrayImage
    return kind(lambda: content, "it", Decoding(channels)).pixels()


def refusal(content, channels=3):
    with pytest.raises(CorruptImage) as raised:
        pixels(content, channels)
    return raised.value.kind, str(raised.value)


def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def tiff_with_a_strip_of(strip, compression):
    """Writes a file of 64 x 64 x 5 values, and replaces its only strip."""
    file = io.BytesIO()
    values = np.zeros((64, 64, 5), np.uint16)
    tifffile.imwrite(
        file, values, photometric="minisblack", planarconfig="contig", compression=compression
    )
    content = bytearray(file.getvalue())
    (start,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, start)
    for at in range(start + 2, start + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, at)
        value = {273: len(content), 279: len(strip), 278: 64}.get(tag)
        if value is not None:
            struct.pack_into("<HHII", content, at, tag, 4, 1, value)
    return bytes(content) + strip


class TestMemory:
    def test_a_header_of_a_gigabyte_is_not_unpacked(self):
        blanks = bytes(b" " * 10**7)
        length = struct.pack("<I", 200 * 10**6)
        content = archive(b"\x93NUMPY\x02\0" + length, *[blanks] * 20)
        before = peak()
        kind, message = refusal(content, 5)
        assert kind == "damaged"
        assert "its header has 200,000,000 bytes; that of numbers has at most 10,000" in message
        assert peak() - before < NEEDS_LITTLE

    def test_many_numbers_in_each_value_are_not_unpacked(self):
        header = npy(described("('|u1', (40000000,))", (1, 1, 5)))
        content = archive(header, *[bytes(10**7)] * 20)
        before = peak()
        assert refusal(content, 5)[0] == "damaged"
        assert peak() - before < NEEDS_LITTLE

    @pytest.mark.slow
    @pytest.mark.parametrize(
        ("pack", "compression"),
        [(zlib.compress, "zlib"), (lambda data: lzma.compress(data, preset=0), "lzma")],
    )
    def test_a_strip_that_becomes_far_more_than_its_image_is_refused(self, pack, compression):
        content = tiff_with_a_strip_of(pack(bytes(15 * 10**7)), compression)
        before = peak()
        kind, message = refusal(content, 5)
        assert kind == "damaged"
        assert (
            "a strip or tile of it becomes more than 147,456 bytes when it is unpacked" in message
        )
        assert peak() - before < NEEDS_LITTLE
        fine = tiff_with_a_strip_of(pack(bytes(64 * 64 * 10)), compression)
        assert pixels(fine, 5).shape == (64, 64, 5)

    @pytest.mark.parametrize("channels", [3, 5])
    def test_tiles_far_larger_than_their_image_are_refused(self, channels):
        file = io.BytesIO()
        tifffile.imwrite(
            file,
            np.zeros((64, 64, channels), np.uint8),
            photometric="rgb" if channels == 3 else "minisblack",
            planarconfig="contig",
            tile=(64, 64),
            compression="zlib",
        )
        content = file.getvalue()
        assert pixels(content, channels).shape == (64, 64, channels)
        for tag in (322, 323):
            at = content.index(struct.pack("<H", tag), 8)
            entry = struct.pack("<HHII", tag, 4, 1, 16384)
            content = content[:at] + entry + content[at + 12 :]
        kind, message = refusal(content, channels)
        assert kind == "damaged"
        assert "its tiles have 16384 x 16384 pixels, and the image 64 x 64" in message

    def test_an_archive_is_unpacked_to_the_values_that_were_stored(self):
        values = np.asfortranarray(np.arange(200_000, dtype=np.uint32).reshape(200, 200, 5))
        file = io.BytesIO()
        np.savez_compressed(file, image=values)
        array = numpy_files.ArrayFile(file.getvalue())
        np.testing.assert_array_equal(array.read(), values)

    def test_other_compressions_of_zip_are_refused(self):
        content = archive(npy(described("'|u1'"), bytes(80)), method=zipfile.ZIP_BZIP2)
        kind, message = refusal(content, 5)
        assert kind == "of a kind that is not read"
        assert "expected is what numpy.savez_compressed writes" in message


class TestHeaders:
    @pytest.mark.parametrize(
        ("content", "kind", "reason"),
        [
            (npy("-" * 9000 + "1\n"), "damaged", "describes no array: it is nested too deeply"),
            (npy("1" + "+1j" * 3000), "damaged", "its header describes no array: "),
            (npy("(" * 9000), "damaged", "its header describes no array: "),
            (npy(described("'|V2000000000'")), "damaged", "of type |V2000000000; expected"),
            (npy(described("'<U400000000'")), "damaged", "of type <U400000000; expected"),
            (npy(described("'|u1'", (-4, -4, 5))), "damaged", "of the shape (-4, -4, 5)"),
            (npy(described("'|u1'"), bytes(60)), "truncated", "60 of 80 bytes of its array"),
            (npy(described("'|u1'"))[:40], "truncated", "it breaks off in its header"),
            (archive(npy(described("'|u1'"), bytes(60))), "truncated", "60 of 80 bytes"),
            (archive(npy(described("'|u1'"), bytes(80)))[:60], "truncated", "it breaks off"),
        ],
    )
    def test_a_wrong_header_is_one_corrupt_image(self, content, kind, reason):
        refused_kind, message = refusal(content, 5)
        assert refused_kind == kind
        assert reason in message

    def test_no_memory_is_an_error_that_says_what_to_lower(self, monkeypatch):
        def fail(*_):
            raise MemoryError("Unable to allocate 1 GiB")

        monkeypatch.setattr(numpy_files.ArrayFile, "read", fail)
        content = npy(described("'|u1'"), bytes(80))
        with pytest.raises(NoMemoryLeft, match=r"no memory is left \(Unable .*: lower data\.num_"):
            pixels(content, 5)


class TestBreakingOff:
    @pytest.mark.parametrize(
        ("format", "options"),
        [
            ("AVIF", {}),
            ("TIFF", {"compression": "tiff_lzw"}),
            ("TIFF", {"compression": "jpeg"}),
            ("TIFF", {}),
            ("JPEG2000", {}),
            ("JPEG2000", {"no_jp2": True}),
            ("WEBP", {}),
            ("PNG", {}),
            ("GIF", {}),
            ("BMP", {}),
            ("JPEG", {}),
            ("QOI", {}),
            ("PCX", {}),
        ],
    )
    @pytest.mark.parametrize("share", [0.5, "12 bytes", "40 bytes"])
    @pytest.mark.filterwarnings("ignore:Corrupt EXIF")
    def test_a_file_that_breaks_off_is_truncated(self, format, options, share):
        if format not in Image.SAVE or (format == "AVIF" and "AVIF" not in Image.OPEN):
            pytest.skip("this build of Pillow lacks it")
        whole = encoded(format, **options)
        pixels(whole)
        cut = whole[: len(whole) // 2] if share == 0.5 else whole[: int(share[:2])]
        assert refusal(cut)[0] == "truncated"

    def test_damage_in_a_whole_file_is_no_truncation(self):
        whole = bytearray(encoded("WEBP", lossless=True))
        whole[25:80] = bytes(55)
        assert refusal(bytes(whole))[0] == "damaged"


def png_with(*chunks):
    whole = encoded("PNG")
    made = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    return whole[:33] + b"".join(made) + whole[33:]


class TestMetadata:
    @pytest.mark.parametrize(
        "chunk",
        [
            (b"pHYs", b"ab"),
            (b"gAMA", b"a"),
            (b"cHRM", b"a"),
            (b"sRGB", b""),
            (b"tRNS", b"a"),
            (b"acTL", b"a"),
            (b"fcTL", b"abc"),
            (b"iCCP", b"k\0\5" + bytes(9)),
            (b"zTXt", b"k\0\5" + bytes(9)),
        ],
    )
    def test_a_broken_chunk_that_no_pixel_needs_does_not_cost_the_image(self, chunk):
        np.testing.assert_array_equal(pixels(png_with(chunk)), NOISE)

    def test_a_wrong_checksum_of_such_a_chunk_does_not_cost_the_image(self):
        content = bytearray(png_with((b"eXIf", b"II*\0")))
        content[45] ^= 1
        np.testing.assert_array_equal(pixels(bytes(content)), NOISE)

    def test_many_texts_are_too_large(self):
        text = zlib.compress(bytes(900_000))
        content = png_with(*[(b"zTXt", b"k%d\0\0" % i + text) for i in range(80)])
        assert refusal(content)[0] == "metadata too large"

    @pytest.mark.skipif("AVIF" not in Image.SAVE, reason="this build of Pillow lacks AVIF")
    def test_broken_exif_of_avif_does_not_cost_the_image(self):
        exif = Image.Exif()
        exif[0x010E] = "hello"
        whole = encoded("AVIF", exif=exif.tobytes())
        header = exif.tobytes()[6:14]
        assert whole.count(header) == 1
        broken = whole.replace(header, b"garbage!")
        np.testing.assert_array_equal(pixels(broken), pixels(whole))
