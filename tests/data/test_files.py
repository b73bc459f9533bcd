"""Reading images and folders where the system's calls fail for a while, or for good."""

import errno
import logging
import os
import pickle

import pytest
from PIL import Image

from ddae_jax.data import disks
from ddae_jax.data.disks import ReadFailed, with_retries
from ddae_jax.data.folder_scan import scan
from ddae_jax.data.sources import make_source
from ddae_jax.data.tfds_source import TfdsSource


@pytest.fixture(autouse=True)
def _at_once(monkeypatch):
    """Leaves out the waits between tries."""
    monkeypatch.setattr(disks, "_WAITS_S", (0.0,) * 4)


def failing(times, number=errno.EIO, then="read"):
    """Returns a function that fails so many times, and a list with an item for each try."""
    tries = []

    def call(*_, **__):
        tries.append(1)
        if len(tries) <= times:
            raise OSError(number, os.strerror(number))
        return then

    return call, tries


@pytest.mark.parametrize("number", [errno.EIO, errno.ESTALE, errno.ENOTCONN, errno.ETIMEDOUT])
def test_a_read_that_recovers_is_logged_once(number, caplog):
    caplog.set_level(logging.WARNING)
    call, tries = failing(3, number)
    assert with_retries("/mnt/a.png", call) == "read"
    assert len(tries) == 4
    (message,) = caplog.messages
    assert message == f"/mnt/a.png cannot be read: {os.strerror(number)}; trying again"


def test_a_read_that_does_not_recover_is_named_with_its_cause():
    call, tries = failing(99)
    with pytest.raises(ReadFailed) as raised:
        with_retries(b"/mnt/a.png", call)
    assert len(tries) == 5
    assert str(raised.value).startswith(
        "/mnt/a.png cannot be read: Input/output error; it was tried 5 times within "
    )
    assert str(pickle.loads(pickle.dumps(raised.value))) == str(raised.value)


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.ELOOP])
def test_errors_of_one_file_alone_are_not_tried_again(number):
    call, tries = failing(99, number)
    with pytest.raises(OSError, match=os.strerror(number)) as raised:
        with_retries("a.png", call)
    assert not isinstance(raised.value, ReadFailed)
    assert len(tries) == 1


@pytest.fixture
def photos(tmp_path):
    for name in ("a/0.png", "a/1.png", "b/0.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4), "red").save(tmp_path / name)
    return tmp_path


def test_an_image_is_read_at_the_second_try(photos, monkeypatch):
    source = make_source("folder", data_dir=str(photos))
    opened, tries = os.open, []

    def once_broken(path, *rest):
        tries.append(path)
        if len(tries) == 1:
            raise OSError(errno.EIO, "Input/output error", path)
        return opened(path, *rest)

    monkeypatch.setattr(os, "open", once_broken)
    assert source[0]["image"].tolist() == [[[255, 0, 0]] * 4] * 4
    assert len(tries) == 2


def test_a_folder_that_cannot_be_listed_for_a_while_is_not_left_out(photos, monkeypatch):
    """Else a class would be missing silently, and a continued run would have other data."""
    listed, tries = os.scandir, []

    def once_broken(folder):
        if os.fspath(folder).endswith("/b"):
            tries.append(folder)
            if len(tries) == 1:
                raise OSError(errno.ESTALE, "Stale file handle", os.fspath(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", once_broken)
    paths, _, classes = scan(photos)
    assert (len(paths), classes) == (3, ("a", "b"))
    assert len(tries) == 2


def test_a_folder_that_stays_unreadable_ends_the_scan_naming_it(photos, monkeypatch):
    listed = os.scandir

    def broken(folder):
        if os.fspath(folder).endswith("/b"):
            raise OSError(errno.EIO, "Input/output error", os.fspath(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", broken)
    with pytest.raises(ReadFailed, match=r"/b cannot be read: Input/output error; it was tried 5"):
        scan(photos)


def test_records_that_cannot_be_read_are_named():
    class Records:
        def __getitems__(self, indices):
            raise RuntimeError("Input/output error; reading tiny-train.array_record")

    source = object.__new__(TfdsSource)
    source._records, source._full_name, source._title = Records(), "tiny/1.0.0", "tiny/train"
    expected = (
        r"^tiny/1\.0\.0, tiny/train\[3, 4\] cannot be read: Input/output error; reading tiny-"
    )
    with pytest.raises(ReadFailed, match=expected):
        source.open([3, 4])
