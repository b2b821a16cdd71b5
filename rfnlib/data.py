"""Data sets held whole as uint8 tensors, and the augmentation that feeds training.

Two data sets: scikit-learn's ``digits`` (shipped with it, no download) and CIFAR-10
(Krizhevsky, 2009, https://www.cs.toronto.edu/~kriz/cifar.html), which ``rfnlib.fetch`` downloads.
Files from outside are checked against published checksums before a byte of them is parsed.
"""

from __future__ import annotations

import hashlib
import io
import pickle
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from rfnlib import paths

SHAPES = {"digits": (1, 8, 8), "cifar10": (3, 32, 32)}  # images' (C, H, W) by data set
DATASETS = tuple(SHAPES)


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
        return replace(self, train_images=self.train_images[index], train_labels=self.train_labels[index])


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


def load(name: str, root: Path | str | None = None) -> Dataset:
    """The data set ``name``, one of DATASETS, on the CPU.

    CIFAR-10 is looked for in ``root``, by default ``paths.data_dir()``, as ``cifar-10-batches-bin``
    or ``cifar-10-batches-py``; both give the same tensors and checksum.
    Raises DataError for an unknown name, and for files that are missing or not the published ones.
    """
    if name == "digits":
        return _digits()
    if name == "cifar10":
        return _cifar10(Path(root or paths.data_dir()).expanduser())
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
    return Dataset(name, *map(torch.from_numpy, arrays), checksum=_content_checksum(*train, *test), **about)


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
    folder = cifar10_folder(root)
    read = _read_bin if folder.name.endswith("bin") else _read_py
    files = [(folder / name, digest) for name, digest in CIFAR10_LAYOUTS[folder.name].items()]
    *train, test = (read(file, _checked(file, digest)) for file, digest in files)
    return _dataset(
        "cifar10",
        tuple(np.concatenate(arrays) for arrays in zip(*train, strict=True)),
        test,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=CIFAR10_CLASSES,
    )


def cifar10_folder(root: Path) -> Path:
    """The first layout under ``root`` that has all its files, else one that has a folder."""
    found = [root / name for name in CIFAR10_LAYOUTS if (root / name).is_dir()]
    if not found:
        raise DataError(
            f"CIFAR-10 was not found in {root}: run `python -m rfnlib data cifar10`, or point "
            f"RFN_DATA at a folder that holds {' or '.join(CIFAR10_LAYOUTS)}."
        )
    whole = [f for f in found if all((f / n).is_file() for n in CIFAR10_LAYOUTS[f.name])]
    return (whole or found)[0]


def digest_of(content: bytes, like: str) -> str:
    """The digest of ``content``, of the kind of ``like``: MD5 has 32 hex digits, SHA-256 64."""
    kind = hashlib.md5 if len(like) == 32 else hashlib.sha256
    return kind(content, usedforsecurity=False).hexdigest()


def _checked(path: Path, digest: str) -> bytes:
    """The bytes of ``path``: what is checked is what is parsed, for it is read but once."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{path} is missing: put the file back, or remove {path.parent} and run `python -m rfnlib data cifar10`."
        ) from None
    if (found := digest_of(content, digest)) != digest:
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
    return images.reshape(-1, *SHAPES["cifar10"]), labels


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
