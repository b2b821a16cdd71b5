"""Data sets held whole as uint8 tensors, and the augmentation that feeds training.

Four come along: scikit-learn's `digits` (shipped with it, no download), CIFAR-10 (Krizhevsky, 2009,
https://www.cs.toronto.edu/~kriz/cifar.html), which `rfnlib.fetch` downloads, and CIFAR-100 and SVHN, which
`rfnlib.datasets` reads beside folders of images and torch's data sets. Files from outside are checked against
published checksums before a byte of them is parsed. A data set of one's own is registered under a name, which specs
may then use:

>>> register("mine", lambda root: from_arrays("mine", train, test))  # doctest: +SKIP
>>> spec = TrainSpec("mine", "resnet18", Step(0.1), epochs=30)  # doctest: +SKIP
"""

from __future__ import annotations

import hashlib
import importlib
import io
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rfnlib import checks, keys, paths


class DataError(ValueError):
    """A data set that is absent, altered or asked for in a way it cannot be had."""


require = partial(checks.require, error=DataError)
Arrays = tuple[np.ndarray, np.ndarray]  # images and their labels


@dataclass(frozen=True, eq=False)
class Dataset:
    """One data set, all of it on one device.

    Attributes:
        name: under which it is registered.
        train_images, test_images: uint8 (N, C, H, W).
        train_labels, test_labels: int64 (N,).
        mean, std: a channel, of the whole training set's images in [0, 1].
        checksum: SHA-256 of all images and labels as they were read, the same for a subset.
        classes: their names, in the order of the labels.
        flip: whether a mirrored image keeps its class.
        n_train, skip: how many training images `subset` chose, and from which on; None: it holds all of them.
        noise: the share of training labels that `noisy` replaced, and the seed; None: they are as they were.
        built_from: the name of the data set whose training images `rfnlib.features` replaced; None: it is an original.
    """

    name: str
    train_images: Tensor = field(repr=False)
    train_labels: Tensor = field(repr=False)
    test_images: Tensor = field(repr=False)
    test_labels: Tensor = field(repr=False)
    mean: tuple[float, ...]
    std: tuple[float, ...]
    checksum: str
    classes: tuple[str, ...]
    flip: bool = True
    n_train: int | None = None
    skip: int = 0
    noise: tuple[float, int] | None = None
    built_from: str | None = None

    @cached_property
    def digest(self) -> str:
        """16 hexadecimal digits of SHA-256 over all that training on the set depends on, its test images left out."""
        about = (self.n_classes, self.mean, self.std, self.flip)
        return keys.digest({"images": self.train_images, "labels": self.train_labels}, *about)

    @property
    def n_classes(self) -> int:
        """The number of classes."""
        return len(self.classes)

    @property
    def image_shape(self) -> tuple[int, ...]:
        """(C, H, W)."""
        return tuple(self.train_images.shape[1:])

    def to(self, device: torch.device | str) -> Dataset:
        """The same data on `device`."""
        names = ("train_images", "train_labels", "test_images", "test_labels")
        return replace(self, **{name: getattr(self, name).to(device) for name in names})

    @property
    def most(self) -> int:
        """The most training images that a class-balanced subset has."""
        return self.n_classes * int(torch.bincount(self.train_labels, minlength=self.n_classes).min())

    def subset(self, n_train: int | None, skip: int = 0) -> Dataset:
        """A fixed, class-balanced choice of training images, with the same test images.

        Subsets are nested: the first m images of a larger one are the subset of size m. Those with `skip` m are of the
        images that come after these, and have none of them.

        Args:
            n_train: how many: a multiple of `n_classes` that every class can supply its share of; None: all.
            skip: how many of the fixed order come before the first one chosen: likewise, or 0.

        Raises:
            DataError: another number.
        """
        if n_train is None:
            require(skip == 0, f"skip={skip!r} with n_train=None: say how many images to take after these.")
            return self
        labels, most = self.train_labels.cpu().numpy(), self.most
        members = [np.flatnonzero(labels == c) for c in range(self.n_classes)]
        require(
            checks.is_whole(n_train, 1, most) and n_train % self.n_classes == 0,
            f"n_train={n_train!r} is not a class-balanced subset of {self.name}: choose a "
            f"multiple of {self.n_classes} from {self.n_classes} to {most}, or None for all.",
        )
        require(
            checks.is_whole(skip, 0, most - n_train) and skip % self.n_classes == 0,
            f"skip={skip!r} does not leave {n_train} class-balanced images of {self.name}: choose a "
            f"multiple of {self.n_classes} from 0 to {most - n_train}.",
        )
        # RandomState, because numpy promises its stream for good (NEP 19). Both draws are over
        # the whole set whatever n_train is: that is what makes the subsets nested.
        rng = np.random.RandomState(0)
        rounds = np.stack([rng.permutation(m)[: most // self.n_classes] for m in members], axis=1)
        rounds = np.stack([rng.permutation(r) for r in rounds])
        index = torch.from_numpy(rounds.reshape(-1)[skip : skip + n_train]).to(self.train_labels.device)
        chosen = {"train_images": self.train_images[index], "train_labels": self.train_labels[index]}
        return replace(self, **chosen, n_train=n_train, skip=skip)

    def cut(self, n_train: int | None, skip: int, label_noise: float, seed: int) -> Dataset:
        """The images and labels that `TrainSpec.cut` names, by `subset` and `noisy`; raises as these."""
        return self.subset(n_train, skip).noisy(label_noise, seed)

    def noisy(self, share: float, seed: int = 0) -> Dataset:
        """The same images with a share of the training labels replaced, each by any other class, all as likely.

        Args:
            share: in [0, 1): so many of the images, rounded to a whole number, are drawn without replacement.
            seed: of a stream that nothing else draws from.

        Raises:
            DataError: a share outside [0, 1), or labels that were replaced before.
        """
        require(checks.is_number(share, 0) and share < 1, f"the share is {share!r}: give a number in [0, 1).")
        require(self.noise is None, f"labels of {self.name} are replaced already ({self.noise}): begin with true ones.")
        if not share:
            return self
        drawn = torch.Generator().manual_seed(keys.stream(seed, "label noise"))
        n, labels = len(self.train_labels), self.train_labels.clone()
        chosen = torch.randperm(n, generator=drawn)[: round(share * n)].to(labels.device)
        further = torch.randint(1, self.n_classes, chosen.shape, generator=drawn).to(labels.device)
        labels[chosen] = (labels[chosen] + further) % self.n_classes
        return replace(self, train_labels=labels, noise=(share, seed))


# --- augmentation -----------------------------------------------------------------------------------


def to_float(images: Tensor) -> Tensor:
    """uint8 images of any shape as float32 in [0, 1].

    >>> to_float(torch.tensor([0, 51, 255], dtype=torch.uint8))
    tensor([0.0000, 0.2000, 1.0000])
    """
    return images.to(torch.float32).div_(255)


def augment(images: Tensor, generator: torch.Generator, *, pad: int | None = None, flip: bool = True) -> Tensor:
    """Crop each image at random after zero padding and, with `flip`, mirror half of them.

    This is the usual CIFAR augmentation (Lee et al., 2015, arXiv:1409.5185, sec. 3).

    Args:
        images: uint8 (B, C, H, W).
        generator: what the draws depend on, and whose device they are made on; so one on the CPU gives a GPU the
            same crops.
        pad: pixels on each side; None: H // 8 (4 for CIFAR-10, 1 for digits).
        flip: whether to mirror.

    Returns:
        float32 (B, C, H, W) in [0, 1].

    Raises:
        DataError: images of another type or shape, or a negative pad.
    """
    found = f"{images.dtype} of shape {tuple(images.shape)}"
    require(
        images.dtype == torch.uint8 and images.ndim == 4,
        f"augment takes uint8 images (B, C, H, W), not {found}: give it the images of a Dataset as they are stored.",
    )
    pad = images.shape[2] // 8 if pad is None else pad
    require(pad >= 0, f"pad={pad} is negative: give 0 for no crop, or None for H // 8.")
    return crop(images, draws(len(images), generator, pad, flip).to(images.device), pad)


def draws(n: int, generator: torch.Generator, pad: int, flip: bool = True) -> Tensor:
    """What `augment` draws for `n` images: int64 (3, n), rows and columns cut off in [0, 2 pad], and 1 to mirror."""
    draw = {"generator": generator, "device": generator.device}
    shift = torch.randint(0, 2 * pad + 1, (2, n), **draw)
    mirrored = torch.randint(0, 2, (1, n), **draw) if flip else torch.zeros_like(shift[:1])
    return torch.cat([shift, mirrored])


def crop(images: Tensor, drawn: Tensor, pad: int) -> Tensor:
    """Pad, cut and mirror uint8 images (B, C, H, W) as `drawn` says, (3, B) of `draws` on their device: float32."""
    b, c, h, w = images.shape
    # One gather of bytes does crop and flip: a flat index into the padded image, for all channels.
    top, left, mirrored = drawn.unsqueeze(-1)
    rows = top + torch.arange(h, device=images.device)
    columns = torch.arange(w, device=images.device)
    columns = left + torch.where(mirrored.bool(), columns.flip(0), columns)
    index = rows.unsqueeze(2) * (w + 2 * pad) + columns.unsqueeze(1)
    pixels = F.pad(images, (pad,) * 4).reshape(b, c, (h + 2 * pad) * (w + 2 * pad))
    return to_float(pixels.gather(2, index.reshape(b, 1, h * w).expand(b, c, -1)).view(b, c, h, w))


# --- data sets by name ------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Source:
    """Where a data set comes from, and what of it is known before it is loaded."""

    loader: Callable[[Path], Dataset] | str
    image_shape: tuple[int, ...] | None = None
    checksum: str | None = None
    most: int | None = None


_SOURCES: dict[str, _Source] = {}


def register(
    name: str,
    loader: Callable[[Path], Dataset] | str,
    *,
    image_shape: tuple[int, ...] | None = None,
    checksum: str | None = None,
    most: int | None = None,
) -> None:
    """Let specs, `load` and all that builds on them know a data set; a second one of a name replaces the first.

    Args:
        name: what specs call it.
        loader: makes the `Dataset` of this name (`from_arrays` helps) from the folder of data sets, which it may
            leave alone. "module:function" is imported when it is first needed.
        image_shape: (C, H, W), to be known without loading; None: it is loaded when somebody asks.
        checksum: likewise `Dataset.checksum`, and what is loaded must have it.
        most: likewise `Dataset.most`.

    Raises:
        DataError: a name that could not be part of a file's.
    """
    plain = isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()
    require(plain, f"the data set's name is {name!r}; give letters, digits, hyphens and underscores.")
    fine = callable(loader) or (isinstance(loader, str) and ":" in loader)
    require(fine, f"the loader of {name} is {loader!r}; give a function from a folder to a Dataset.")
    _SOURCES[name] = _Source(loader, image_shape, checksum, most)


def names() -> tuple[str, ...]:
    """The registered data sets."""
    return tuple(_SOURCES)


def load(name: str, root: Path | str | None = None) -> Dataset:
    """The data set `name`, on the CPU.

    Args:
        name: one of `names()`.
        root: the folder of data sets; None: `paths.data_dir()`. CIFAR-10 is looked for in it as
            `cifar-10-batches-bin` or `cifar-10-batches-py`, which give the same tensors and checksum.

    Raises:
        DataError: an unknown name; files that are missing or not the published ones; a loader that gives another
            data set than was registered.
    """
    source = _source(name)
    loader = source.loader
    if isinstance(loader, str):
        module, _, function = loader.partition(":")
        loader = getattr(importlib.import_module(module), function)
    dataset = loader(Path(root or paths.data_dir()).expanduser())
    given = repr(dataset.name) if isinstance(dataset, Dataset) else type(dataset).__name__
    require(given == repr(name), f"the loader of {name!r} gives {given}; let it return the Dataset of this name.")
    known = source.checksum in (None, dataset.checksum)
    require(known, f"{name} has the checksum {dataset.checksum}, not {source.checksum}; register it with what it has.")
    return dataset


def image_shape(name: str) -> tuple[int, ...]:
    """(C, H, W) of the images of a data set, loaded only if it was registered without."""
    return _source(name).image_shape or load(name).image_shape


def checksum(name: str) -> str:
    """`Dataset.checksum` of a data set, loaded only if it was registered without."""
    return _source(name).checksum or load(name).checksum


def most(name: str) -> int:
    """`Dataset.most` of a data set, loaded only if it was registered without."""
    return _source(name).most or load(name).most


def _source(name: str) -> _Source:
    known = f"choose one of {', '.join(_SOURCES)}, or register it{checks.meant(name, _SOURCES)}"
    require(name in _SOURCES, f"There is no data set {name!r}: {known}.")
    return _SOURCES[name]


def from_arrays(
    name: str,
    train: Arrays,
    test: Arrays,
    *,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    classes: Sequence[str] | None = None,
    flip: bool = True,
) -> Dataset:
    """A Dataset from numpy arrays.

    Args:
        train, test: images, uint8 (N, C, H, W), and labels, integers (N,) from 0.
        mean, std: a channel, of images in [0, 1]; None: those of the training images.
        classes: names in the order of the labels; None: the labels themselves.
        flip: whether a mirrored image keeps its class.

    Raises:
        DataError: arrays of another type or shape, or with the channels last; labels beyond the classes, or that
            leave out some where no classes are named.
    """
    shape = np.shape(train[0])[1:]
    for part, (images, labels) in (("train", train), ("test", test)):
        found = f"{images.dtype} of shape {images.shape}"
        fits = images.dtype == np.uint8 and images.ndim == 4 and images.shape[1:] == shape and len(images) > 0
        require(fits, f"the {part} images of {name} are {found}; give uint8 (N, C, H, W), alike in training and test.")
        last = images.shape[3] <= 4 < images.shape[1]  # rows no longer than a pixel has colours, and many channels
        require(not last, f"the {part} images of {name} are {found}; give (N, C, H, W), the channels first.")
        fits = labels.shape == images.shape[:1] and np.issubdtype(labels.dtype, np.integer) and labels.min() >= 0
        found = f"{labels.dtype} of shape {labels.shape}"
        require(fits, f"the {part} labels of {name} are {found}; give integers from 0, one an image.")
    most = int(max(train[1].max(), test[1].max()))
    empty = np.setdiff1d(np.arange(most + 1), train[1])
    lost = f"no training image of {name} has a label of {empty[:9].tolist()}, and labels go up to {most}"
    require(classes or not len(empty), f"{lost}; count classes from 0, or name them all in classes=.")
    classes = tuple(classes or map(str, range(most + 1)))
    require(most < len(classes), f"the labels of {name} go up to {most}; {len(classes)} classes are named.")
    channels = [train[0][:, c] for c in range(shape[0])]
    mean = mean or [round(float(channel.mean(dtype=np.float64)) / 255, 4) for channel in channels]
    std = std or [round(float(channel.std(dtype=np.float64)) / 255, 4) for channel in channels]
    types = (np.uint8, np.int64) * 2
    arrays = [np.ascontiguousarray(a, t) for a, t in zip((*train, *test), types, strict=True)]
    content = _content_checksum(*arrays)
    return Dataset(name, *map(torch.from_numpy, arrays), tuple(mean), tuple(std), content, classes, flip)


def _content_checksum(*arrays: np.ndarray) -> str:
    digest = hashlib.sha256()
    for array in arrays:  # as bytes where they fit, for which there is no byte order to agree on
        digest.update(np.ascontiguousarray(array, np.uint8 if array.max() < 256 else "<i8"))
    return digest.hexdigest()


# --- digits and CIFAR-10 ----------------------------------------------------------------------------


def _digits(root: Path) -> Dataset:
    """8 x 8 digits (Alpaydin & Kaynak, 1998): 1,297 to train on, 50 a class to test on."""
    from sklearn.datasets import load_digits  # here, because only this data set needs it

    source = load_digits()
    images = np.round(source.images[:, None] * (255 / 16)).astype(np.uint8)
    order = np.random.RandomState(0).permutation(len(images))
    test = np.sort(np.concatenate([order[source.target[order] == c][:50] for c in range(10)]))
    train = np.setdiff1d(order, test)
    parts = [(images[of], source.target[of]) for of in (train, test)]
    return from_arrays("digits", *parts, classes="0123456789", flip=False)


CIFAR10_CLASSES = tuple("airplane automobile bird cat deer dog frog horse ship truck".split())
CIFAR10_SHAPE = (3, 32, 32)
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
    return from_arrays(
        "cifar10",
        tuple(np.concatenate(arrays) for arrays in zip(*train, strict=True)),
        test,
        mean=(0.4914, 0.4822, 0.4465),
        std=(0.2470, 0.2435, 0.2616),
        classes=CIFAR10_CLASSES,
    )


def cifar10_folder(root: Path) -> Path:
    """The first layout under `root` that has all its files, else one that has a folder."""
    found = [root / name for name in CIFAR10_LAYOUTS if (root / name).is_dir()]
    if not found:
        inside = root.name in CIFAR10_LAYOUTS
        require(not inside, f"{root} is CIFAR-10 itself; let RFN_DATA name the folder that holds it, {root.parent}.")
        raise DataError(
            f"CIFAR-10 was not found in {root}: run `python -m rfnlib data cifar10`, or point "
            f"RFN_DATA at a folder that holds {' or '.join(CIFAR10_LAYOUTS)}."
        )
    whole = [f for f in found if all((f / n).is_file() for n in CIFAR10_LAYOUTS[f.name])]
    return (whole or found)[0]


def digest_of(content: bytes, like: str) -> str:
    """The digest of `content`, of the kind of `like`: MD5 has 32 hex digits, SHA-256 64."""
    kind = hashlib.md5 if len(like) == 32 else hashlib.sha256
    return kind(content, usedforsecurity=False).hexdigest()


def _checked(path: Path, digest: str) -> bytes:
    """The bytes of `path`: what is checked is what is parsed, for it is read but once."""
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
    return images.reshape(-1, *CIFAR10_SHAPE), labels


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


register(
    "digits",
    _digits,
    image_shape=(1, 8, 8),
    checksum="bffa7e5beaf5f21ddd5c74665b972cc5030b6eab2162d925e47a5dcc8083aaff",
    most=1240,
)
register(
    "cifar10",
    _cifar10,
    image_shape=CIFAR10_SHAPE,
    checksum="32e5966899bde482c0ef7d076bf69809b4b1488c806f657a814cfca4646ec493",
    most=50_000,
)
for _name in ("cifar100", "svhn"):
    register(_name, f"rfnlib.datasets:{_name}", image_shape=(3, 32, 32))
