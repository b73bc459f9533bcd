"""Reading files from disks and networks that fail for a while, or for good."""

import errno
import io
import logging
import os
import pathlib
import zipfile

import pytest

from ddae_jax.data import disks
from ddae_jax.data.disks import ReadFailed, read_file, reading


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Leaves out the waits between tries."""
    monkeypatch.setattr(disks, "_WAITS_S", (0.0,) * 4)


@pytest.fixture
def failing(monkeypatch):
    """Makes reads of a file fail so many times from a position on, and lists its openings."""
    opens = []

    def fail(times, start=0, number=errno.EIO):
        left = [times]

        class Failing(io.FileIO):
            def readinto(self, buffer):
                if left[0] and self.tell() + len(buffer) > start:
                    left[0] -= 1
                    raise OSError(number, os.strerror(number))
                return super().readinto(buffer)

        def opened(path, *_, **__):
            opens.append(path)
            return Failing(path)

        monkeypatch.setattr(pathlib.Path, "open", opened)
        return opens

    return fail


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ETIMEDOUT])
def test_a_file_that_recovers_is_opened_anew_and_read_on(number, failing, tmp_path, caplog):
    caplog.set_level(logging.WARNING)
    (tmp_path / "a").write_bytes(bytes(range(256)) * 1000)
    opens = failing(3, start=100_000, number=number)
    with reading(tmp_path / "a") as file:
        file.seek(1)
        assert file.read() == (bytes(range(256)) * 1000)[1:]
        assert file.seek(-2, os.SEEK_END) == 255_998
        assert file.read() == b"\xfe\xff"
    assert len(opens) == 4
    assert caplog.messages == [
        f"{tmp_path / 'a'} cannot be read: {os.strerror(number)}; trying again"
    ]


def test_a_file_that_does_not_recover_is_named(failing, tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    failing(99)
    with pytest.raises(ReadFailed, match=r"/a cannot be read: Input/output error; it was tried 5"):
        read_file(tmp_path / "a")


def test_a_failed_disk_is_named_whatever_error_the_reader_makes_of_it(failing, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", bytes(100_000))
    failing(99, start=60_000)
    with (
        pytest.raises(ReadFailed, match=r"a\.zip cannot be read: Input/output error"),
        reading(tmp_path / "a.zip") as file,
    ):
        zipfile.ZipFile(file)  # whose own error is that it is no zip file


def test_errors_of_the_reader_about_the_file_are_raised_as_they_are(tmp_path):
    (tmp_path / "a").write_bytes(b"abc")
    with pytest.raises(zipfile.BadZipFile), reading(tmp_path / "a") as file:
        zipfile.ZipFile(file)
    with pytest.raises(FileNotFoundError), reading(tmp_path / "b"):
        pass
