"""Annotation files: which classes their numbers mean, and the hints for unknown ones."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from ddae_jax.data.annotations import IGNORED, BadAnnotation, LabelRule, LazyAnnotation


def read(content: bytes, **rule) -> np.ndarray:
    return LazyAnnotation(lambda: content, "a.png", LabelRule(**rule)).labels()


def png(*values: int, dtype=np.uint8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.array([values], dtype)).save(buffer, "png")
    return buffer.getvalue()


def grey_png(bits: int, rows: np.ndarray) -> bytes:
    """Writes a grey PNG of 1, 2 or 4 bits by the PNG specification, as Pillow does not."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    each = ((rows[..., None] >> np.arange(bits)[::-1]) & 1).reshape(len(rows), -1).astype(np.uint8)
    data = b"".join(b"\0" + np.packbits(row).tobytes() for row in each)
    head = struct.pack(">IIBBBBB", rows.shape[1], rows.shape[0], bits, 0, 0, 0, 0)
    chunks = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


def annotation(image: Image.Image, **rule) -> LazyAnnotation:
    buffer = io.BytesIO()
    image.save(buffer, "png")
    rule = LabelRule(**({"num_classes": 5} | rule))
    return LazyAnnotation(buffer.getvalue, "a.png", rule)


class TestLabels:
    def test_are_the_numbers_of_the_file_and_one_label_for_what_is_ignored(self):
        stored = np.array([[0, 4], [7, 2]], np.uint8)
        labels = annotation(Image.fromarray(stored), ignore_label=7).labels()
        assert labels.dtype == np.uint8
        np.testing.assert_array_equal(labels, [[0, 4], [IGNORED, 2]])

    def test_reduced_zero_is_ignored_and_the_others_count_from_zero(self):
        """In ADE20K 0 means other, and 1 to 150 are the classes 0 to 149."""
        stored = np.array([[0, 1], [150, 255]], np.uint8)
        rule = {"num_classes": 150, "reduce_zero_label": True}
        labels = annotation(Image.fromarray(stored), **rule).labels()
        np.testing.assert_array_equal(labels, [[IGNORED, 0], [149, IGNORED]])

    @pytest.mark.parametrize("mode", ["P", "RGB", "I;16"])
    def test_may_be_stored_as_palette_grey_colour_or_sixteen_bits(self, mode):
        stored = np.array([[0, 4], [3, 2]], np.uint8)
        image = Image.fromarray(stored)
        if mode == "P":
            image.putpalette(np.arange(768)[::-1].astype(np.uint8).tobytes())
        else:
            image = (
                Image.fromarray(stored.astype(np.uint16)) if mode == "I;16" else image.convert(mode)
            )
        np.testing.assert_array_equal(annotation(image).labels(), stored)

    def test_sixteen_bits_may_hold_a_high_label_to_be_ignored(self):
        image = Image.fromarray(np.array([[3, 65535]], np.uint16))
        labels = annotation(image, ignore_label=65535).labels()
        assert labels.tolist() == [[3, IGNORED]]
        with pytest.raises(BadAnnotation, match="label 65535 on 1 pixels"):
            annotation(image, ignore_label=300).labels()

    def test_of_no_class_are_named_with_their_pixels(self):
        stored = np.array([[0, 9], [9, 77]], np.uint8)
        with pytest.raises(
            BadAnnotation, match=r"a\.png has the label 9 on 2 pixels, 77 on 1 pixels; .* 0 to 4"
        ):
            annotation(Image.fromarray(stored)).labels()

    def test_one_too_many_hints_at_what_may_be_meant(self):
        stored = np.array([[1, 5]], np.uint8)
        with pytest.raises(BadAnnotation, match=r"set ignore_label=5; .*reduce_zero_label=True"):
            annotation(Image.fromarray(stored)).labels()

    def test_as_colours_are_refused(self):
        with pytest.raises(BadAnnotation, match=r"a\.png is of mode RGB; .*one class number"):
            annotation(Image.new("RGB", (2, 2), (1, 2, 0))).labels()

    @pytest.mark.parametrize(
        ("rule", "message"),
        [
            ({"num_classes": 0}, "num_classes=0"),
            ({"num_classes": 256}, "num_classes=256; from 1 to 255"),
            ({"num_classes": 12, "ignore_label": 11}, "ignore_label=11 is one of .* 0 to 11"),
            ({"num_classes": 3, "ignore_label": -1}, "ignore_label=-1"),
        ],
    )
    def test_rule_that_contradicts_itself_is_refused(self, rule, message):
        with pytest.raises(ValueError, match=message):
            LabelRule(**rule)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_grey_of_few_bits_is_taken_as_it_is_stored(bits):
    rows = np.random.default_rng(0).integers(0, 2**bits, (5, 7))
    np.testing.assert_array_equal(read(grey_png(bits, rows), num_classes=2**bits), rows)


@pytest.mark.parametrize("label", [-1, 2**31 - 1, 300_000_000, 2**16])
def test_labels_beyond_16_bits_are_refused_by_name_before_they_are_counted(label):
    stored = np.array([[0, label]], np.int64)
    with pytest.raises(BadAnnotation, match=r"a\.png has labels from .*; a label lies in \[0, 655"):
        LabelRule(num_classes=5).classes(stored, "a.png")


def test_labels_of_few_bits_are_complained_of_as_they_are_stored():
    with pytest.raises(BadAnnotation, match="has the label 9 on 1 pixels, 15 on 1 pixels;"):
        read(grey_png(4, np.array([[1, 9, 15]])), num_classes=4)


DRAWN = "if they are classes drawn as grey levels"
IGNORE = "marks pixels to be ignored, set ignore_label="
REDUCE = "if 0 is no class, and classes begin at 1, set reduce_zero_label=True"


@pytest.mark.parametrize(
    ("content", "rule", "hints"),
    [
        (png(0, 255), {"num_classes": 2, "ignore_label": None}, {DRAWN}),
        (png(255, 255), {"num_classes": 2, "ignore_label": None}, {DRAWN}),
        (png(0, 254), {"num_classes": 2}, {DRAWN}),
        (png(0, 256, dtype=np.uint16), {"num_classes": 2}, {DRAWN}),
        (png(0, 128, 255), {"num_classes": 3}, {DRAWN}),
        (png(0, 127, 255), {"num_classes": 3, "ignore_label": None}, {DRAWN}),
        (png(0, 1, 254), {"num_classes": 2}, {IGNORE}),
        (png(1, 2, 254), {"num_classes": 3}, {IGNORE}),
        (png(0, 200), {"num_classes": 150}, {DRAWN, IGNORE}),
        (png(0, 5, 3), {"num_classes": 5}, {IGNORE, REDUCE}),
        (png(1, 2, 3), {"num_classes": 3}, {IGNORE, REDUCE}),
        (png(1, 2, 7, 9), {"num_classes": 3}, set()),
    ],
)
def test_what_odd_labels_may_mean_is_told_by_all_labels_of_the_file(content, rule, hints):
    with pytest.raises(BadAnnotation) as raised:
        read(content, **rule)
    message = str(raised.value)
    assert {hint for hint in (DRAWN, IGNORE, REDUCE) if hint in message} == hints


def test_levels_and_the_numbers_to_write_are_named():
    with pytest.raises(BadAnnotation, match=r"grey levels \(0, 254\), write .* instead, 0 to 1$"):
        read(png(0, 254), num_classes=2)
