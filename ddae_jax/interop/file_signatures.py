"""Signatures of files that are no weights: Git LFS pointers, web pages, archives, other formats.

Failed downloads leave such files under the names of weights. They are recognised by how they begin.
"""

import codecs
import re

SIGNATURE_BYTES = 512
"""How many bytes from the beginning of a file tell what it is."""

_AGAIN = "not the file that was to be downloaded; download it again"
_BY_DOWNLOAD = "not the file that it stands for; get that by {}, or by downloading it"
_MOST_SHOWN = 60

_TEXTS = (
    (
        r"version https://(?:git-lfs|hawser)\.github\.com",
        "a pointer of Git LFS, " + _BY_DOWNLOAD.format("`git lfs pull`"),
    ),
    (
        r"(?:\S*\.git)?/annex/objects/",
        "a pointer of git-annex, " + _BY_DOWNLOAD.format("`git annex get`"),
    ),
    (r"# xet version", "a pointer of Xet, " + _BY_DOWNLOAD.format("git-xet")),
    (r"(?:md5|outs):\s", "a pointer of DVC, " + _BY_DOWNLOAD.format("`dvc pull`")),
    (r"(?:\.\./)+blobs/", "a link that was copied as text, not the file that it points to"),
    (
        r"(?:<\?xml|<error|<listbucketresult)",
        f"a message of a server, {_AGAIN}. It says {{excerpt}}",
    ),
    (r"<[a-z!]", f"a web page, {_AGAIN}"),
    (
        r"[{\[].{0,99}\"(?:error|errors|message|detail)\"\s*:",
        f"a message of a server, {_AGAIN}. It says {{excerpt}}",
    ),
    (
        r"(?:entry|file|page|repository|resource|object)?\s*(?:404\W*)?not found|"
        r"(?:access|permission) denied|unauthorized|forbidden|access to model|too many requests|"
        r"invalid (?:username|credentials|token)|rate limit",
        f"a message of a server, {_AGAIN}. It says {{excerpt}}",
    ),
)
"""Regular expressions for how a text file begins, and what each says of the file."""

_BYTES = (
    (rb"\x1f\x8b", "packed by gzip; unpack it"),
    (rb"BZh", "packed by bzip2; unpack it"),
    (rb"\xfd7zXZ", "packed by xz; unpack it"),
    (rb"\x28\xb5\x2f\xfd", "packed by Zstandard; unpack it, by `zstd -d`"),
    (rb"\x04\x22\x4d\x18", "packed by LZ4; unpack it, by `lz4 -d`"),
    (rb"7z\xbc\xaf\x27\x1c", "an archive of 7-Zip; unpack it, and give the file in it"),
    (rb"Rar!", "a RAR archive; unpack it, and give the file in it"),
    (rb".{257}ustar", "a tar archive; unpack it, and give the file in it"),
    (rb"\x89HDF", "a file of HDF5, as Keras writes it, which is not read here"),
    (
        rb"\x93NUMPY",
        "one array without a name, of numpy; save arrays by name, by numpy.savez",
    ),
    (rb"GGUF", "a file of GGUF, which is not read here"),
    (rb"\x08[\x01-\x20][\x12\x1a\x22\x3a]", "a file of ONNX, it seems, which is not read here"),
    (rb".{4}TFL3", "a file of TensorFlow Lite, which is not read here"),
    (
        rb"(?:[\x81-\x8f]|\xde..)(?:[\xa1-\xbf]|\xd9.)",
        "a file of MessagePack, as Flax writes it, which is not read here",
    ),
    (rb"%PDF", "a PDF document"),
    (rb"\x00{32}", "nothing but zeros, at least where it begins: its download did not end"),
)
"""Regular expressions for how a binary file begins, and what each says of the file."""

_MARKS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def describe_wrong_file(start: bytes) -> str | None:
    """Describes a file that can be no file of weights.

    Args:
        start: the first :data:`SIGNATURE_BYTES` bytes of the file, or the whole file if shorter.

    Returns:
        What the file is and what to do, to be put after ``"PATH is "``; None if it may hold
        weights.
    """
    for pattern, what in _BYTES:
        if re.match(pattern, start, re.DOTALL):
            return what
    text = decode_text(start)
    for pattern, what in _TEXTS if text is not None else ():
        if re.match(pattern, text, re.DOTALL | re.IGNORECASE):
            return what.format(excerpt=excerpt(text))
    return None


def decode_text(start: bytes) -> str | None:
    """Decodes the beginning of a file; None if it is not text.

    Args:
        start: as in :func:`describe_wrong_file`. UTF-8, or UTF-16 with a byte order mark.
    """
    encoding = next((name for mark, name in _MARKS if start.startswith(mark)), "utf-8")
    text = codecs.getincrementaldecoder(encoding)("ignore").decode(start).strip()
    num_dropped = len(start) - len(text.encode(encoding, "ignore"))
    is_text = all(letter.isprintable() or letter.isspace() for letter in text)
    return (
        text if text and is_text and (encoding != "utf-8" or num_dropped < len(start) / 4) else None
    )


def excerpt(text: str) -> str:
    """Returns the first 60 characters of a text as one quoted line of ASCII."""
    line = " ".join(text.split())
    return ascii(line if len(line) <= _MOST_SHOWN else f"{line[:_MOST_SHOWN]}...")
