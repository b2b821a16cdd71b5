"""Data sets of one's own, and two more published ones: CIFAR-100 and SVHN.

>>> data.register("mine", lambda root: from_pairs("mine", train, test))  # any torch Dataset  # doctest: +SKIP
>>> data.register("mine", lambda root: from_folder("mine", root / "mine", size=32))  # doctest: +SKIP

A folder is `train/CLASS/*.png` and `test/CLASS/*.png`. Published files are compared with their checksums before they
are parsed; where they come from is said when they are missing.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from rfnlib.data import Arrays, DataError, Dataset, digest_of, from_arrays, require

# --- of one's own ---------------------------------------------------------------------------------------------------


def from_pairs(name: str, train: Iterable[Any], test: Iterable[Any], **options: Any) -> Dataset:
    """A Dataset from whatever gives pairs of an image and a label, read once: a torch `Dataset`, or tensors.

    Args:
        train, test: pairs; or a pair of tensors (images, labels), or a `TensorDataset`. Images are PIL's, or tensors
            or arrays (C, H, W) of bytes or of floats in [0, 1], which are rounded to 255 levels. Turn augmentation off.
        options: of `data.from_arrays`: `classes`, `mean`, `std`, `flip`.

    Raises:
        DataError: an image outside of [0, 1], of another shape than the others, or with the channels last; labels
            that leave out a class where none are named.
    """
    if "classes" not in options and hasattr(train, "classes"):
        options["classes"] = tuple(map(str, train.classes))
    return from_arrays(name, _arrays(name, train), _arrays(name, test), **options)


def from_folder(name: str, folder: Path | str, size: int | None = None, **options: Any) -> Dataset:
    """A Dataset from `folder/train/CLASS/` and `folder/test/CLASS/`, the classes in the order of their names.

    Args:
        size: of a side in pixels: the shorter side is resized to it, and the middle cut out; None: all images have one
            size.
        options: as for `from_pairs`.

    Raises:
        DataError: a folder that is missing, or images that differ in size.
    """
    from torchvision import transforms  # both take a second, for those who need them
    from torchvision.datasets import ImageFolder

    folder = Path(folder)
    steps = [transforms.Resize(size), transforms.CenterCrop(size)] if size else []
    parts = []
    for part in ("train", "test"):
        require((folder / part).is_dir(), f"{folder / part} is no folder; {name} needs train/CLASS/ and test/CLASS/.")
        parts.append(ImageFolder(str(folder / part), transforms.Compose(steps)))
    same = parts[0].classes == parts[1].classes
    require(same, f"{name} has the classes {parts[0].classes} in train and {parts[1].classes} in test; give the same.")
    return from_pairs(name, *parts, **options)


def _arrays(name: str, pairs: Any) -> Arrays:
    tensors = getattr(pairs, "tensors", pairs)
    if isinstance(tensors, tuple) and len(tensors) == 2 and all(isinstance(t, Tensor) for t in tensors):
        return _bytes(name, tensors[0]), tensors[1].cpu().numpy()
    indexed = hasattr(pairs, "__getitem__") and hasattr(pairs, "__len__")  # of which not all say where they end
    items = (pairs[i] for i in range(len(pairs))) if indexed else pairs
    read = [(_bytes(name, image), int(label)) for image, label in items]
    shapes = {image.shape for image, _ in read}
    require(read, f"{name} holds no image; give at least one a class.")
    require(len(shapes) == 1, f"the images of {name} are of shapes {sorted(shapes)[:3]}; give one size.")
    return np.stack([image for image, _ in read]), np.array([label for _, label in read])


def _bytes(name: str, image: Any) -> np.ndarray:
    """An image, or many of them, as bytes (…, C, H, W)."""
    if hasattr(image, "getbands"):  # PIL's, with the channels last, or without
        array = np.asarray(image)
        return array[None] if array.ndim == 2 else array.transpose(2, 0, 1)
    array = torch.as_tensor(image).cpu().numpy()
    if array.dtype == np.uint8:
        return array
    low, high = (float(array.min()), float(array.max())) if array.size else (0.0, 0.0)
    fine = np.issubdtype(array.dtype, np.floating) and 0 <= low and high <= 1
    require(fine, f"images of {name} are {array.dtype} from {low:.4g} to {high:.4g}; give bytes, or floats in [0, 1] "
                  "(without normalisation, which is the network's).")  # fmt: skip
    return np.round(array * 255).astype(np.uint8)


# --- published ------------------------------------------------------------------------------------------------------

# file -> its checksum as published (cs.toronto.edu/~kriz/cifar.html; torchvision.datasets.SVHN) and its address
CIFAR100 = {
    "cifar-100-binary.tar.gz": (
        "03b5dce01913d631647c71ecec9e9cb8",
        "https://www.cs.toronto.edu/~kriz/cifar-100-binary.tar.gz",
    )
}
SVHN = {
    f"{part}_32x32.mat": (digest, f"http://ufldl.stanford.edu/housenumbers/{part}_32x32.mat")
    for part, digest in (
        ("train", "e26dedcc434d2e4c54c9b2d4a06d8373"),
        ("test", "eb5a983be6a315427106f1b164d9cef3"),
    )
}


def _published(root: Path, files: dict[str, tuple[str, str]], name: str) -> bytes:
    """The bytes of a file of `root` that are the published ones."""
    digest, url = files[name]
    path = root / name
    if not path.is_file():
        raise DataError(f"{path} is missing: download {url} there, or point RFN_DATA at the folder that holds it.")
    content = path.read_bytes()
    found = digest_of(content, digest)
    require(found == digest, f"{path} is truncated or altered (MD5 {found}, published {digest}); download {url} again.")
    return content


def cifar100(root: Path) -> Dataset:
    """100 fine classes of 500 training images each, as 3 x 32 x 32 (Krizhevsky 2009): the official binary version."""
    ((name, _),) = CIFAR100.items()
    content = _published(root, CIFAR100, name)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as tar:
        members = {Path(member.name).name: member for member in tar if member.isreg()}
        wanted = ("train.bin", "test.bin", "fine_label_names.txt")
        read = {part: file.read() for part in wanted if (file := tar.extractfile(members[part]))}

    def parsed(part: str) -> Arrays:  # a record is a coarse label, a fine one, and three planes of 32 x 32
        records = np.frombuffer(read[part], np.uint8).reshape(-1, 3074).copy()
        return records[:, 2:].reshape(-1, 3, 32, 32), records[:, 1]

    classes = read["fine_label_names.txt"].decode().split()
    return from_arrays("cifar100", parsed("train.bin"), parsed("test.bin"), classes=classes)


def svhn(root: Path) -> Dataset:
    """House numbers, 73,257 to train on and 26,032 to test on, as 3 x 32 x 32 (Netzer et al. 2011)."""
    from scipy.io import loadmat

    def parsed(part: str) -> Arrays:
        held = loadmat(io.BytesIO(_published(root, SVHN, f"{part}_32x32.mat")))
        return held["X"].transpose(3, 2, 0, 1), held["y"][:, 0].astype(np.int64) % 10  # the digit 0 has the label 10

    return from_arrays("svhn", parsed("train"), parsed("test"), classes="0123456789", flip=False)
