"""Files are old or new, never half."""

from __future__ import annotations

import errno
import os

import pytest

from rfnlib import files


def test_a_file_is_written_whole_into_folders_that_are_made(tmp_path):
    path = tmp_path / "a" / "b" / "file"
    files.write_atomic(path, b"old")
    files.write_atomic(path, b"new")
    assert path.read_bytes() == b"new"
    assert os.listdir(path.parent) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(call, code, tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def fail(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.os, call, fail)
    with pytest.raises(OSError) as failed:
        files.write_atomic(path, b"new")
    assert (failed.value.__cause__ or failed.value).errno == code
    assert isinstance(failed.value, files.DiskFull) == (code != errno.EIO)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_a_write_that_is_interrupted_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "file"
    files.write_atomic(path, b"old")

    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(files.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        files.write_atomic(path, b"new")
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_content_is_forced_to_disk_before_it_gets_its_name(tmp_path, monkeypatch):
    path, seen = tmp_path / "file", []
    sync = os.fsync
    monkeypatch.setattr(files.os, "fsync", lambda f: seen.append((os.fstat(f).st_size, path.exists())) or sync(f))
    files.write_atomic(path, b"12345")
    assert seen == [(5, False)] and path.exists()


def test_a_full_disk_is_told_in_a_sentence_with_the_size(tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(files.DiskFull, match=r"for file \(2.5 MB\); free some space"):
        files.write_atomic(tmp_path / "file", bytes(2_500_000))
