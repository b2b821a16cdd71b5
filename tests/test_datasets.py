"""Data sets of one's own, from pairs, tensors and folders; CIFAR-100 and SVHN from files like the published ones."""

from __future__ import annotations

import hashlib
import io
import tarfile

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat
from torch.utils.data import Dataset as TorchDataset
from torch.utils.data import TensorDataset

from rfnlib import data, datasets
from rfnlib.data import DataError

DRAWN = np.random.RandomState(0)
IMAGES = DRAWN.randint(0, 256, (12, 3, 6, 6), np.uint8)
LABELS = np.arange(12) % 3


class Pairs(TorchDataset):
    """Pairs of what `image` makes of an image, with a label; counts how often each is read."""

    classes = ["ant", "bee", "cat"]

    def __init__(self, image, label=int):
        self.image, self.label, self.read = image, label, [0] * 12

    def __len__(self):
        return 12

    def __getitem__(self, i):
        self.read[i] += 1
        return self.image(IMAGES[i]), self.label(LABELS[i])

    def __iter__(self):
        raise AssertionError("it has no end")


@pytest.mark.parametrize(
    "image",
    [
        lambda x: Image.fromarray(x.transpose(1, 2, 0)),
        torch.from_numpy,
        lambda x: torch.from_numpy(x) / 255,
        lambda x: x.astype(np.float64) / 255,
    ],
    ids=["PIL", "bytes", "floats", "array"],
)
@pytest.mark.parametrize("label", [int, torch.tensor], ids=["int", "tensor"])
def test_whatever_gives_pairs_is_read_once(image, label):
    train = Pairs(image, label)
    found = datasets.from_pairs("mine", train, Pairs(image), flip=False)
    expected = data.from_arrays("mine", (IMAGES, LABELS), (IMAGES, LABELS), classes=Pairs.classes, flip=False)
    assert train.read == [1] * 12 and found.classes == ("ant", "bee", "cat") and not found.flip
    assert torch.equal(found.train_images, torch.from_numpy(IMAGES)) and found.checksum == expected.checksum
    assert found.digest == expected.digest, "however the images came"


def test_channels_last_are_refused():
    """They used to be taken for as many channels as there are rows."""
    one = Pairs(lambda x: x.transpose(1, 2, 0))
    for given in (one, TensorDataset(torch.from_numpy(IMAGES.transpose(0, 2, 3, 1)), torch.from_numpy(LABELS))):
        with pytest.raises(DataError, match=r"of mine are uint8 of shape \(12, 6, 6, 3\); give .*, the channels first"):
            datasets.from_pairs("mine", given, given)


def test_labels_from_1_are_refused():
    """They used to be a class more, without an image."""
    given = TensorDataset(torch.from_numpy(IMAGES), torch.from_numpy(LABELS) + 1)
    with pytest.raises(DataError, match="no training image of mine has a label of .0., and labels go up to 3; count"):
        datasets.from_pairs("mine", given, given)


def test_tensors_are_taken_whole():
    whole = torch.from_numpy(IMAGES) / 255, torch.from_numpy(LABELS)
    plain = data.from_arrays("mine", (IMAGES, LABELS), (IMAGES, LABELS))
    for given in (whole, TensorDataset(*whole), TensorDataset(torch.from_numpy(IMAGES), whole[1])):
        assert datasets.from_pairs("mine", given, given).digest == plain.digest


def test_a_folder_of_images_has_the_classes_of_its_folders(tmp_path):
    for part in ("train", "test"):
        for image, label in zip(IMAGES, LABELS, strict=True):
            folder = tmp_path / part / Pairs.classes[label]
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image.transpose(1, 2, 0)).save(folder / f"{len(list(folder.iterdir()))}.png")
    found = datasets.from_folder("mine", str(tmp_path))
    assert found.classes == ("ant", "bee", "cat") and found.image_shape == (3, 6, 6) and len(found.train_labels) == 12
    assert torch.equal(found.train_images[:4], torch.from_numpy(IMAGES[LABELS == 0]))
    assert datasets.from_folder("mine", tmp_path, size=4).image_shape == (3, 4, 4)

    Image.fromarray(IMAGES[0].transpose(1, 2, 0)[:3]).save(tmp_path / "train" / "bee" / "9.png")
    with pytest.raises(
        DataError, match=r"the images of mine are of shapes .*\(3, 3, 6\), \(3, 6, 6\).*; give one size"
    ):
        datasets.from_folder("mine", tmp_path)
    (tmp_path / "test" / "ant").rename(tmp_path / "test" / "dog")
    with pytest.raises(DataError, match="classes .'ant', 'bee', 'cat'. in train and .'bee', 'cat', 'dog'. in test"):
        datasets.from_folder("mine", tmp_path)
    with pytest.raises(DataError, match="absent/train is no folder; mine needs train/CLASS/"):
        datasets.from_folder("mine", tmp_path / "absent")


@pytest.mark.parametrize(
    ("pairs", "said"),
    [
        (
            Pairs(lambda x: torch.from_numpy(x).float()),
            "images of mine are float32 from .* to 25.; give bytes, or floats",
        ),
        (Pairs(lambda x: torch.from_numpy(x) / 255 - 0.5), "without normalisation, which is the network's"),
        (Pairs(lambda x: torch.from_numpy(x).long()), "images of mine are int64"),
        ([], "mine holds no image"),
    ],
)
def test_images_that_cannot_be_meant_are_refused(pairs, said):
    with pytest.raises(DataError, match=said):
        datasets.from_pairs("mine", pairs, pairs)


# --- published ------------------------------------------------------------------------------------------------------


def published(monkeypatch, table: str, files: dict[str, bytes]) -> None:
    """Files that count as the published ones."""
    known = {name: (hashlib.md5(content).hexdigest(), "http://there") for name, content in files.items()}
    monkeypatch.setattr(datasets, table, known)


def test_cifar_100_is_read_from_its_archive(tmp_path, monkeypatch):
    fine, coarse = np.array([7, 99, 0], np.uint8), np.array([1, 2, 3], np.uint8)
    images = DRAWN.randint(0, 256, (3, 3, 32, 32), np.uint8)
    records = np.concatenate([coarse[:, None], fine[:, None], images.reshape(3, -1)], 1).tobytes()
    held = {
        "train.bin": records,
        "test.bin": records[:3074],
        "fine_label_names.txt": "\n".join(map(str, range(100))).encode(),
    }
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as tar:
        for name, content in held.items():
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    files = {"cifar-100-binary.tar.gz": archive.getvalue()}
    published(monkeypatch, "CIFAR100", files)
    (tmp_path / "cifar-100-binary.tar.gz").write_bytes(archive.getvalue())
    found = data.load("cifar100", tmp_path)
    assert torch.equal(found.train_images, torch.from_numpy(images)) and found.train_labels.tolist() == [7, 99, 0]
    assert len(found.classes) == 100 and len(found.test_labels) == 1 and data.image_shape("cifar100") == (3, 32, 32)


def test_svhn_is_read_from_its_two_files(tmp_path, monkeypatch):
    images, files = DRAWN.randint(0, 256, (4, 3, 32, 32), np.uint8), {}
    for part in ("train", "test"):
        held = io.BytesIO()
        savemat(held, {"X": images.transpose(2, 3, 1, 0), "y": np.array([[1], [10], [9], [2]], np.uint8)})
        files[f"{part}_32x32.mat"] = held.getvalue()
    published(monkeypatch, "SVHN", files)
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    found = data.load("svhn", tmp_path)
    assert torch.equal(found.train_images, torch.from_numpy(images)) and found.train_labels.tolist() == [1, 0, 9, 2]
    assert not found.flip and found.classes == tuple("0123456789")


@pytest.mark.parametrize("name", ["cifar100", "svhn"])
def test_files_that_are_absent_or_altered_are_refused_before_they_are_parsed(tmp_path, name):
    file = {"cifar100": "cifar-100-binary.tar.gz", "svhn": "train_32x32.mat"}[name]
    with pytest.raises(DataError, match=f"{file} is missing: download http.*RFN_DATA"):
        data.load(name, tmp_path)
    (tmp_path / file).write_bytes(b"not it")
    with pytest.raises(DataError, match="is truncated or altered .MD5 .*, published .*; download http"):
        data.load(name, tmp_path)


def test_a_loader_by_name_is_imported_when_it_is_needed(monkeypatch, tmp_path):
    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))
    (tmp_path / "my_data.py").write_text("from rfnlib import data\nload = lambda root: data.load('digits', root)\n")
    monkeypatch.syspath_prepend(tmp_path)
    data.register("mine", "my_data:load")
    with pytest.raises(DataError, match="the loader of 'mine' gives 'digits'"):
        data.load("mine")
    with pytest.raises(DataError, match="the loader of mine is 'my_data'; give a function"):
        data.register("mine", "my_data")
