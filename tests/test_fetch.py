"""Fetching CIFAR-10: from a server of our own, which breaks, lies and sends too much."""

import errno
import hashlib
import http.server
import io
import os
import tarfile
import threading

import pytest
import test_data
from test_data import FOLDERS, lay

from rfnlib import fetch
from rfnlib.data import DataError, load
from rfnlib.fetch import fetch_cifar10

files = test_data.files  # the fixture: a small false CIFAR-10


class Server(http.server.ThreadingHTTPServer):
    """Serves ``content`` by path; a path in ``breaks`` sends so many bytes and hangs up."""

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.content, self.breaks, self.ranges, self.asked = {}, {}, True, []
        threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True).start()

    def url(self, path):
        return f"http://127.0.0.1:{self.server_port}/{path}"


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        path, wanted = self.path[1:], self.headers.get("Range")
        self.server.asked.append((path, wanted))
        if path not in self.server.content:
            return self.send_error(404)
        body = self.server.content[path]
        start, size = 0, len(body)
        if wanted and self.server.ranges:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        self.wfile.write(body[start:][: self.server.breaks.pop(path, None)])

    def log_message(self, *_):
        pass


@pytest.fixture
def server():
    server = Server()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def archives(files, monkeypatch) -> dict[str, bytes]:
    """kind -> a tar.gz of the false CIFAR-10, with things in it that nobody should unpack."""
    made, known = {}, {}
    for kind, folder in FOLDERS.items():
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
            extra = {f"{folder}/readme.html": b"", "../escaped": b"x", f"{folder}/../../up": b"x"}
            link = tarfile.TarInfo(f"{folder}/link")
            link.type, link.linkname = tarfile.SYMTYPE, "/"
            tar.addfile(link)
            named = {f"{folder}/{name}": c for name, c in files[folder].items()}
            for name, content in (extra | named).items():
                info = tarfile.TarInfo(name)
                info.size, info.mode = len(content), 0o4777
                tar.addfile(info, io.BytesIO(content))
        made[kind] = buffer.getvalue()
        name, _, _, _ = fetch.ARCHIVES[kind]
        known[kind] = (name, hashlib.md5(made[kind]).hexdigest(), len(made[kind]), folder)
    monkeypatch.setattr(fetch, "ARCHIVES", known)
    return made


def quiet(*_):
    pass


@pytest.mark.parametrize("kind", FOLDERS)
def test_fetch_leaves_the_batches_and_nothing_else(tmp_path, server, archives, files, kind):
    root = tmp_path / "deep" / "data"
    server.content["a"] = archives[kind]
    folder = fetch_cifar10(root, quiet, mirrors=[(server.url("a"), kind)])
    assert folder == root / FOLDERS[kind] and list(root.iterdir()) == [folder]
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == files[FOLDERS[kind]]
    assert [p.name for p in tmp_path.iterdir()] == ["deep"]
    said = []
    fetch_cifar10(root, said.append, mirrors=[])  # present: no mirror is asked
    assert len(said) == 1 and "published" in said[0] and len(server.asked) == 1


@pytest.mark.parametrize("ranges", [True, False])
def test_a_broken_download_is_taken_up(tmp_path, server, archives, ranges):
    server.content["a"], server.breaks["a"], server.ranges = archives["binary"], 300_000, ranges
    fetch_cifar10(tmp_path, quiet, mirrors=[(server.url("a"), "binary")])
    assert server.asked == [("a", None), ("a", "bytes=300000-")]
    assert len(load("cifar10", tmp_path).train_images) == 200


def test_the_next_mirror_takes_up_what_the_last_began(tmp_path, server, archives):
    server.content["b"] = archives["binary"]
    part = tmp_path / (fetch.ARCHIVES["binary"][0] + ".part")
    part.write_bytes(archives["binary"][:1000])
    said = []
    mirrors = [(server.url(path), "binary") for path in ("gone", "b")]
    fetch_cifar10(tmp_path, said.append, mirrors=mirrors)
    assert server.asked == [("gone", "bytes=1000-"), ("b", "bytes=1000-")]
    assert any("404" in line for line in said) and not part.exists()


@pytest.mark.parametrize("size", [1000, None, 10**7])
def test_a_spoilt_part_is_fetched_anew(tmp_path, server, archives, size):
    server.content["a"] = archives["binary"]
    size = size or len(archives["binary"])
    (tmp_path / (fetch.ARCHIVES["binary"][0] + ".part")).write_bytes(b"?" * size)
    fetch_cifar10(tmp_path, quiet, mirrors=[(server.url("a"), "binary")])
    assert len(load("cifar10", tmp_path).train_images) == 200


def test_wrong_content_is_refused_and_never_unpacked(tmp_path, server, archives, monkeypatch):
    monkeypatch.setattr(fetch, "_extract", lambda *_: pytest.fail("unpacked"))
    good = archives["binary"]
    server.content["a"] = good[:500] + bytes([good[500] ^ 1]) + good[501:]
    server.content["b"] = good + b"more"
    mirrors = [(server.url(path), "binary") for path in "ab"]
    with pytest.raises(DataError) as error:
        fetch_cifar10(tmp_path, quiet, mirrors=mirrors)
    assert "MD5" in str(error.value) and f"{len(good) + 4:,} bytes" in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_all_mirrors_failing_says_what_to_do(tmp_path, server):
    dead = Server()
    dead.shutdown()
    dead.server_close()
    mirrors = [(server.url("none"), "binary"), (dead.url("a"), "python")]
    with pytest.raises(DataError) as error:
        fetch_cifar10(tmp_path, quiet, mirrors=mirrors, timeout=5)
    for part in ("2 addresses", "404", str(tmp_path), "by hand", *FOLDERS.values()):
        assert part in str(error.value)


def test_damage_is_repaired_and_kept_aside(tmp_path, server, archives, files):
    lay(tmp_path, files, "binary")
    (tmp_path / FOLDERS["binary"] / "test_batch.bin").write_bytes(b"mine")
    server.content["a"] = archives["python"]
    folder = fetch_cifar10(tmp_path, quiet, mirrors=[(server.url("a"), "python")])
    assert folder.name == FOLDERS["python"] and len(load("cifar10", tmp_path).train_images) == 200
    kept = tmp_path / (FOLDERS["binary"] + ".damaged") / "test_batch.bin"
    assert kept.read_bytes() == b"mine"


def test_progress_tells_size_speed_and_time_left(tmp_path, server, archives, monkeypatch):
    monkeypatch.setattr(fetch, "REPORT_EVERY", 0.0)
    server.content["a"] = archives["binary"]
    said = []
    fetch_cifar10(tmp_path, said.append, mirrors=[(server.url("a"), "binary")])
    assert "cifar-10-binary.tar.gz: 0.3 of 0.7 MB" in said[0]
    assert "MB/s" in said[0] and "s left" in said[0]


def test_a_full_disk_is_one_sentence_and_the_part_is_kept(tmp_path, server, archives, monkeypatch):
    server.content["a"] = archives["binary"]

    def full(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(fetch, "_extract", full)
    with pytest.raises(DataError, match="No space left.*RFN_DATA.*kept"):
        fetch_cifar10(tmp_path, quiet, mirrors=[(server.url("a"), "binary")] * 2)
    assert len(server.asked) == 1  # no other mirror would help
    assert [p.name for p in tmp_path.iterdir()] == ["cifar-10-binary.tar.gz.part"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_disk_that_fills_during_the_download(tmp_path, server, archives):
    server.content["a"] = archives["binary"]
    part = tmp_path / (fetch.ARCHIVES["binary"][0] + ".part")
    part.symlink_to("/dev/full")
    with pytest.raises(DataError, match="No space left"):
        fetch_cifar10(tmp_path, quiet, mirrors=[(server.url("a"), "binary")] * 2)
    assert len(server.asked) == 1 and part.is_symlink()
