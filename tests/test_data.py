"""Data sets: what is read, what is refused, and the augmentation."""

import hashlib
import os
import pickle
import struct
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rfnlib import data, paths
from rfnlib.data import DataError, augment, load

RECORDS = 40
FOLDERS = {"binary": "cifar-10-batches-bin", "python": "cifar-10-batches-py"}


# ----------------------------------------------------------------------- a small false CIFAR-10


def python2_pickle(images: np.ndarray, labels: np.ndarray) -> bytes:
    """The opcodes that Python 2's cPickle wrote for {"labels": [...], "data": array}."""
    raw = images.tobytes()
    return b"".join(
        [
            b"\x80\x02}(U\x06labels](",
            *(b"K" + bytes([label]) for label in labels),
            b"eU\x04datacnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R",
            b"(K\x01M" + struct.pack("<H", images.shape[0]),
            b"M" + struct.pack("<H", images.shape[1]) + b"\x86",
            b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xff",
            b"K\x00tb\x89T" + struct.pack("<i", len(raw)) + raw + b"tbu.",
        ]
    )


@pytest.fixture
def files(monkeypatch) -> dict[str, dict[str, bytes]]:
    """folder -> file -> content of a CIFAR-10 of 40 images a file, and its digests in place."""
    rng = np.random.default_rng(0)
    made = {folder: {} for folder in FOLDERS.values()}
    for name in [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]:
        images = rng.integers(0, 256, (RECORDS, 3072), dtype=np.uint8)
        labels = rng.permutation(np.arange(RECORDS, dtype=np.uint8) % 10)
        records = np.concatenate([labels[:, None], images], axis=1)
        made[FOLDERS["binary"]][f"{name}.bin"] = records.tobytes()
        made[FOLDERS["python"]][name] = python2_pickle(images, labels)
    kinds = {FOLDERS["binary"]: hashlib.sha256, FOLDERS["python"]: hashlib.md5}
    layouts = {f: {n: kinds[f](c).hexdigest() for n, c in made[f].items()} for f in made}
    monkeypatch.setattr(data, "CIFAR10_LAYOUTS", layouts)
    monkeypatch.setattr(data, "CIFAR10_RECORDS", RECORDS)
    monkeypatch.setitem(data._SOURCES, "cifar10", replace(data._SOURCES["cifar10"], checksum=None))
    return made


def lay(root, files, *kinds):
    for kind in kinds:
        folder = root / FOLDERS[kind]
        folder.mkdir(parents=True)
        for name, content in files[FOLDERS[kind]].items():
            (folder / name).write_bytes(content)


def same(a: data.Dataset, b: data.Dataset) -> bool:
    names = ("train_images", "train_labels", "test_images", "test_labels")
    return a.checksum == b.checksum and all(torch.equal(getattr(a, name), getattr(b, name)) for name in names)


# ------------------------------------------------------------------------------------- loading


def test_digits_are_what_they_were():
    digits = load("digits")
    assert digits.image_shape == data.image_shape("digits") == (1, 8, 8) and digits.n_classes == 10 and not digits.flip
    assert digits.train_images.dtype == torch.uint8 and digits.train_labels.dtype == torch.int64
    assert len(digits.train_images) == 1297 and digits.train_images.max() == 255
    assert digits.test_labels.bincount().tolist() == [50] * 10
    unit = data.to_float(digits.train_images)
    assert unit.mean().item() == pytest.approx(digits.mean[0], abs=1e-4)
    assert unit.std().item() == pytest.approx(digits.std[0], abs=1e-3)
    # records name this checksum: a change of it means that they are no longer comparable
    assert digits.checksum == data.checksum("digits")
    assert digits.checksum.startswith("bffa7e5beaf5f21ddd5c74665b972cc5")


def test_digits_train_and_test_share_no_image():
    digits = load("digits")
    both = torch.cat([digits.train_images, digits.test_images]).flatten(1)
    assert len(both) == 1797 and len(both.unique(dim=0)) == 1797


def test_unknown_name_lists_the_known():
    with pytest.raises(DataError, match="'mnist'.*digits, cifar10"):
        load("mnist")


def test_both_layouts_give_the_same(tmp_path, files):
    lay(tmp_path / "a", files, "binary")
    lay(tmp_path / "b", files, "python")
    a, b = load("cifar10", tmp_path / "a"), load("cifar10", tmp_path / "b")
    assert same(a, b)
    assert a.train_images.shape == (200, 3, 32, 32) and a.test_labels.shape == (RECORDS,)
    first = np.frombuffer(files[FOLDERS["binary"]]["data_batch_1.bin"][:3073], np.uint8)
    assert a.train_labels[0] == first[0]
    assert (a.train_images[0].numpy() == first[1:].reshape(3, 32, 32)).all()
    assert a.classes[0] == "airplane" and a.classes[9] == "truck"


def test_environment_names_the_folder(tmp_path, files, monkeypatch):
    lay(tmp_path, files, "binary")
    monkeypatch.setenv("RFN_DATA", str(tmp_path))
    assert len(load("cifar10").train_images) == 200


def test_data_dir_is_named_data(monkeypatch, tmp_path):
    monkeypatch.delenv("RFN_DATA", raising=False)
    assert paths.data_dir().name == "data"
    monkeypatch.setattr(paths, "__file__", str(tmp_path / "site-packages" / "rfnlib" / "paths.py"))
    monkeypatch.chdir(tmp_path)
    assert paths.data_dir() == tmp_path / "data"


def test_absent_says_what_to_do(tmp_path):
    with pytest.raises(DataError) as error:
        load("cifar10", tmp_path)
    for part in (str(tmp_path), "python -m rfnlib data cifar10", "RFN_DATA", *FOLDERS.values()):
        assert part in str(error.value)


def test_a_missing_file_is_named_and_a_whole_layout_preferred(tmp_path, files):
    lay(tmp_path, files, "binary")
    (tmp_path / FOLDERS["binary"] / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"data_batch_3\.bin is missing"):
        load("cifar10", tmp_path)
    lay(tmp_path, files, "python")
    assert len(load("cifar10", tmp_path).train_images) == 200


@pytest.mark.parametrize("kind", FOLDERS)
@pytest.mark.parametrize("spoil", [lambda c: c[:-7], lambda c: c[:99] + b"\x63" + c[100:]])
def test_truncated_or_altered_is_refused_before_parsing(tmp_path, files, monkeypatch, kind, spoil):
    lay(tmp_path, files, kind)
    path = tmp_path / FOLDERS[kind] / list(files[FOLDERS[kind]])[0]
    altered = spoil(path.read_bytes())
    path.write_bytes(altered)

    def parsed(*_):
        raise AssertionError("it was parsed")

    monkeypatch.setattr(data, "_read_bin", parsed)
    monkeypatch.setattr(data, "_read_py", parsed)
    with pytest.raises(DataError) as error:
        load("cifar10", tmp_path)
    expected = data.CIFAR10_LAYOUTS[FOLDERS[kind]][path.name]
    for part in (path, expected, data.digest_of(altered, expected), f"{len(altered):,} bytes"):
        assert str(part) in str(error.value)


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (self.path,)


@pytest.mark.parametrize("trusted", [False, True])
def test_a_malicious_pickle_is_never_executed(tmp_path, files, trusted):
    lay(tmp_path, files, "python")
    victim, path = tmp_path / "victim", tmp_path / FOLDERS["python"] / "data_batch_2"
    content = pickle.dumps({b"data": Malicious(str(victim)), b"labels": []})
    path.write_bytes(content)
    if trusted:  # even with the right digest
        data.CIFAR10_LAYOUTS[FOLDERS["python"]][path.name] = hashlib.md5(content).hexdigest()
    with pytest.raises(DataError, match="mkdir" if trusted else "altered"):
        load("cifar10", tmp_path)
    assert not victim.exists()


@pytest.mark.parametrize("content", [b"\xff" * 3073 * RECORDS, b"\x01" * 3073 * (RECORDS - 1)])
def test_shapes_and_labels_are_checked(tmp_path, files, content):
    lay(tmp_path, files, "binary")
    (tmp_path / FOLDERS["binary"] / "test_batch.bin").write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    data.CIFAR10_LAYOUTS[FOLDERS["binary"]]["test_batch.bin"] = digest
    with pytest.raises(DataError, match=r"test_batch\.bin should hold 40 images"):
        load("cifar10", tmp_path)


def test_the_folder_of_cifar10_itself_is_not_the_one_that_holds_it(tmp_path):
    (inside := tmp_path / FOLDERS["binary"]).mkdir()
    with pytest.raises(DataError, match=f"{inside} is CIFAR-10 itself; let RFN_DATA name .* holds it, {tmp_path}."):
        data.cifar10_folder(inside)


def test_the_real_cifar10():
    try:
        data.cifar10_folder(paths.data_dir())
    except DataError as error:
        pytest.skip(str(error))
    cifar = load("cifar10")
    assert cifar.train_images.shape == (50_000, 3, 32, 32) and len(cifar.test_images) == 10_000
    assert cifar.train_labels[:5].tolist() == [6, 9, 9, 4, 1]
    std, mean = torch.std_mean(data.to_float(cifar.train_images[::10]), dim=(0, 2, 3))
    assert torch.allclose(mean, torch.tensor(cifar.mean), atol=5e-3)
    assert torch.allclose(std, torch.tensor(cifar.std), atol=5e-3)
    assert cifar.checksum == data.checksum("cifar10")
    assert cifar.checksum.startswith("32e5966899bde482c0ef7d076bf69809")


# ------------------------------------------------------------------------- data sets of one's own


def own(name="own", shape=(3, 6, 6), n=24, seed=0, **about) -> data.Dataset:
    rng = np.random.default_rng(seed)
    parts = [(rng.integers(0, 256, (n, *shape), np.uint8), np.arange(n) % 4) for _ in range(2)]
    return data.from_arrays(name, *parts, **about)


@pytest.fixture
def registered(monkeypatch):
    """Forgets what a test registers."""
    monkeypatch.setattr(data, "_SOURCES", dict(data._SOURCES))


def test_a_registered_data_set_is_loaded_by_its_name_and_known_by_all(registered, tmp_path, monkeypatch):
    seen = []
    data.register("own", lambda root: seen.append(root) or own())
    monkeypatch.setenv("RFN_DATA", str(tmp_path))
    assert same(load("own"), own()) and seen == [tmp_path]
    assert load("own", tmp_path / "else") and seen[-1] == tmp_path / "else"
    assert data.names() == ("digits", "cifar10", "cifar100", "svhn", "own")
    assert data.image_shape("own") == (3, 6, 6) and data.checksum("own") == own().checksum
    assert load("own").classes == tuple("0123")


def test_what_was_registered_is_known_without_loading(registered, monkeypatch):
    def loaded(root):
        raise AssertionError("it was loaded")

    for name, shape in {"digits": (1, 8, 8), "cifar10": (3, 32, 32), "mine": (3, 64, 64)}.items():
        data.register(name, loaded, image_shape=shape, checksum=name)
        assert data.image_shape(name) == shape and data.checksum(name) == name
        with pytest.raises(AssertionError, match="it was loaded"):
            load(name)


def test_mean_and_deviation_are_those_of_each_channel_unless_given():
    unit = data.to_float(own().train_images)
    std, mean = torch.std_mean(unit, dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(torch.tensor(own().mean), mean, atol=1e-4, rtol=0)
    torch.testing.assert_close(torch.tensor(own().std), std, atol=1e-4, rtol=0)
    given = own(mean=(0.1, 0.2, 0.3), std=(1, 2, 3), classes="abcd", flip=False)
    assert (given.mean, given.std, given.classes) == ((0.1, 0.2, 0.3), (1, 2, 3), tuple("abcd")) and not given.flip


@pytest.mark.parametrize(
    ("do", "said"),
    [
        (lambda: data.register("../own", own), "name is '../own'; give letters"),
        (lambda: data.register("own", 3), "the loader of own is 3; give a function"),
        (lambda: data.register("own", lambda root: own("other")) or load("own"), "the loader of 'own' gives 'other';"),
        (lambda: data.register("own", lambda root: None) or load("own"), "the loader of 'own' gives NoneType;"),
        (lambda: data.register("own", lambda root: own(), checksum="abc") or load("own"), "not abc; register it"),
        (lambda: load("imagenet"), "no data set 'imagenet': choose one of digits, cifar10, cifar100, svhn, or"),
        (lambda: load("CIFAR-10"), "choose one of .*, or register it; 'cifar10' may be meant"),
        (lambda: data.checksum("imagenet"), "There is no data set 'imagenet'"),
        (lambda: data.image_shape("imagenet"), "There is no data set 'imagenet'"),
        (lambda: own(shape=(6, 6)), r"train images of own are uint8 of shape \(24, 6, 6\); give uint8 \(N, C, H, W\)"),
        (lambda: own(n=0), "train images of own are"),
        (lambda: own(shape=(6, 6, 3)), r"images of own are uint8 of shape \(24, 6, 6, 3\); give .* channels first"),
        (lambda: own(classes="abc"), "labels of own go up to 3; 3 classes are named"),
    ],
)
def test_a_data_set_that_cannot_be_is_refused_in_one_sentence(do, said, registered):
    with pytest.raises(DataError, match=said) as error:
        do()
    assert str(error.value).endswith(".") and "\n" not in str(error.value)


def test_labels_that_do_not_fit_are_refused():
    images = own().train_images.numpy()
    for labels in (np.zeros(3, int), np.full(24, -1), np.zeros(24), np.zeros((24, 1), int)):
        with pytest.raises(DataError, match="train labels of own are .*; give integers from 0, one an image"):
            data.from_arrays("own", (images, labels), (images, np.zeros(24, int)))


def test_labels_that_leave_out_a_class_are_refused_unless_the_classes_are_named():
    images = own().train_images.numpy()
    for first, lost in ((np.arange(24) % 4 + 1, "[0]"), (np.arange(24) % 2 * 2, "[1]")):
        with pytest.raises(DataError) as error:
            data.from_arrays("own", (images, first), (images, first))
        said = f"has a label of {lost}, and labels go up to {first.max()}; count classes from 0, or name them all in"
        assert said in str(error.value)
        assert data.from_arrays("own", (images, first), (images, first), classes="abcde").n_classes == 5
    with pytest.raises(DataError, match="no training image of own has a label of .4., and labels go up to 4"):
        data.from_arrays("own", (images, np.arange(24) % 4), (images, np.full(24, 4)))


def test_labels_beyond_a_byte_count_in_the_checksum():
    images = np.zeros((2, 1, 4, 4), np.uint8)
    classes = [*map(str, range(301))]
    sums = {
        data.from_arrays("own", (images, np.array([0, top])), (images, np.array([0, 300])), classes=classes).checksum
        for top in (1, 257)
    }
    assert len(sums) == 2


# -------------------------------------------------------------------------------------- digests


def test_the_digest_tells_apart_all_that_training_depends_on():
    """The same spec on other images is another network."""
    digits = load("digits").subset(100)
    permuted = digits.train_labels[torch.randperm(100, generator=torch.Generator().manual_seed(0))]
    others = [
        digits,
        load("digits"),
        load("digits").subset(200),
        replace(digits, train_labels=permuted),
        replace(digits, train_images=255 - digits.train_images),
        replace(digits, mean=(0.5,)),
        replace(digits, std=(0.5,)),
        replace(digits, flip=True),
        replace(digits, classes=tuple("0123456789a")),
    ]
    assert len({d.digest for d in others}) == len(others)


def test_the_digest_does_not_depend_on_test_images_names_layout_or_device():
    digits = load("digits").subset(100)
    strided = digits.train_images.to(memory_format=torch.channels_last)
    for one in (
        load("digits").subset(100),
        digits.to("cpu"),
        replace(digits, test_images=digits.test_images[:1], test_labels=digits.test_labels[:1]),
        replace(digits, name="mine", classes=tuple("abcdefghij"), train_images=strided),
    ):
        assert one.digest == digits.digest
    assert digits.digest == "ab6a85326caa0d60", "snapshots are filed under it: with another all of them are lost"


# ------------------------------------------------------------------------------------- subsets


def test_subsets_are_balanced_nested_and_interleaved():
    digits = load("digits")
    small, large = digits.subset(100), digits.subset(1240)
    assert small.train_labels.bincount().tolist() == [10] * 10
    assert large.train_labels.bincount().tolist() == [124] * 10
    assert torch.equal(large.train_images[:100], small.train_images)
    assert (large.train_labels.view(-1, 10).sort(dim=1).values == torch.arange(10)).all()
    assert len(large.train_images.flatten(1).unique(dim=0)) == 1240
    assert small.test_images is digits.test_images and small.checksum == digits.checksum
    assert digits.subset(None) is digits
    # the choice itself is part of what records mean
    assert small.train_labels[:10].tolist() == [0, 1, 3, 6, 8, 4, 7, 5, 2, 9]
    assert data._content_checksum(large.train_images.numpy()).startswith("dbd13bbd7433b458")


@pytest.mark.parametrize("n", [0, -10, 15, 1250, 10**9])
def test_impossible_subsets_are_refused(n):
    with pytest.raises(DataError, match=f"n_train={n} .*10 to 1240"):
        load("digits").subset(n)


def test_images_that_come_after_a_subset_are_none_of_it_and_as_balanced():
    digits = load("digits")
    first, rest = digits.subset(1000), digits.subset(240, skip=1000)
    both = torch.cat([first.train_images, rest.train_images])
    assert torch.equal(both, digits.subset(1240).train_images) and len(both.flatten(1).unique(dim=0)) == 1240
    assert rest.train_labels.bincount().tolist() == [24] * 10
    assert (rest.n_train, rest.skip, first.skip) == (240, 1000, 0) and rest.digest != digits.subset(240).digest


@pytest.mark.parametrize("skip", [-10, 5, 250, True])
def test_a_subset_that_would_reach_beyond_the_last_image_is_refused(skip):
    with pytest.raises(DataError, match=f"skip={skip} does not leave 1000 .*from 0 to 240"):
        load("digits").subset(1000, skip)
    with pytest.raises(DataError, match="skip=10 with n_train=None"):
        load("digits").subset(None, 10)


def test_the_most_images_of_a_subset_are_known_without_loading(monkeypatch):
    assert load("digits").most == data.most("digits") == 1240
    monkeypatch.setattr(data, "load", None)
    assert data.most("digits") == 1240 and data.most("cifar10") == 50_000


def test_noisy_labels_are_so_many_and_never_the_true_ones():
    digits = load("digits").subset(1000)
    noisy = digits.noisy(0.2, seed=3)
    wrong = noisy.train_labels != digits.train_labels
    assert int(wrong.sum()) == 200 and noisy.train_labels.max() < 10 and noisy.train_images is digits.train_images
    further = (noisy.train_labels - digits.train_labels)[wrong] % 10
    assert further.bincount(minlength=10)[0] == 0
    assert ((further.bincount(minlength=10)[1:] - 200 / 9).abs() < 4 * (200 / 9) ** 0.5).all(), "uniform"
    assert noisy.noise == (0.2, 3) and digits.noise is None
    again, other = digits.noisy(0.2, seed=3), digits.noisy(0.2, seed=4)
    assert again.digest == noisy.digest != other.digest and noisy.digest != digits.digest
    assert digits.noisy(0.0, seed=3) is digits


def test_noise_that_cannot_be_is_refused():
    digits = load("digits").subset(100)
    with pytest.raises(DataError, match=r"the share is 1.0: give a number in \[0, 1\)"):
        digits.noisy(1.0)
    with pytest.raises(DataError, match=r"labels of digits are replaced already \(\(0.2, 1\)\)"):
        digits.noisy(0.2, 1).noisy(0.2, 1)


def test_a_cut_is_a_subset_with_its_noise():
    cut = load("digits").cut(100, 50, 0.1, 7)
    by_hand = load("digits").subset(100, 50).noisy(0.1, 7)
    assert cut.digest == by_hand.digest and load("digits").cut(None, 0, 0.0, 0).digest == load("digits").digest


# -------------------------------------------------------------------------------- augmentation


def slow_augment(images, generator, pad, flip):
    """One image at a time: pad, crop, mirror."""
    b, _, h, w = images.shape
    shift = torch.randint(0, 2 * pad + 1, (2, b), generator=generator).tolist()
    mirror = torch.randint(0, 2, (1, b), generator=generator)[0].tolist() if flip else [0] * b
    out = []
    for image, top, left, mirrored in zip(images, *shift, mirror, strict=True):
        crop = F.pad(image, (pad,) * 4)[:, top : top + h, left : left + w]
        out.append(crop.flip(2) if mirrored else crop)
    return torch.stack(out).float() / 255


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(1, 12)),
    pad=st.none() | st.integers(0, 5),
    flip=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_augment_is_the_slow_one(shape, pad, flip, channels_last, seed):
    images = torch.from_numpy(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))
    if channels_last:
        images = images.to(memory_format=torch.channels_last)
    kept = images.clone()
    got = augment(images, torch.Generator().manual_seed(seed), pad=pad, flip=flip)
    side = shape[2] // 8 if pad is None else pad
    slow = slow_augment(images, torch.Generator().manual_seed(seed), side, flip)
    assert got.dtype == torch.float32 and torch.equal(got, slow) and torch.equal(images, kept)


def test_augment_is_deterministic_and_varied():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(600, -1, -1, -1)
    one = augment(images, torch.Generator().manual_seed(1))
    assert torch.equal(one, augment(images, torch.Generator().manual_seed(1)))
    assert not torch.equal(one, augment(images, torch.Generator().manual_seed(2)))
    # 3 x 3 places with the default pad of 1 = 8 // 8, mirrored or not
    assert len(one.flatten(1).unique(dim=0)) == 18
    unmirrored = augment(images, torch.Generator().manual_seed(1), flip=False)
    assert len(unmirrored.flatten(1).unique(dim=0)) == 9


def test_numbers_drawn_ahead_give_the_same_crops():
    images = load("digits").train_images[:64]
    for flip in (True, False):
        drawn = [data.draws(32, torch.Generator().manual_seed(i), pad=1, flip=flip) for i in range(2)]
        for i, batch in enumerate(images.split(32)):
            ahead = data.crop(batch, torch.stack(drawn)[i], pad=1)
            assert torch.equal(ahead, augment(batch, torch.Generator().manual_seed(i), flip=flip))


def test_each_output_is_a_translate():
    images = torch.arange(1, 65, dtype=torch.uint8).view(1, 1, 8, 8).expand(50, -1, -1, -1)
    for out in augment(images, torch.Generator().manual_seed(0), pad=2, flip=False)[:, 0]:
        rows, columns = (out > 0).nonzero().T
        whole = out[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1] * 255
        steps = whole.round().diff(dim=0), whole.round().diff(dim=1)
        assert min(whole.shape) >= 6 and (steps[0] == 8).all() and (steps[1] == 1).all()


def test_without_crop_and_flip_nothing_changes():
    images = load("digits").train_images[:32]
    assert torch.equal(augment(images, torch.Generator(), pad=0, flip=False), data.to_float(images))
    assert augment(images[:0], torch.Generator()).shape == (0, 1, 8, 8)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_makes_the_same_crops():
    digits = load("digits")
    images = digits.train_images[:64]
    there = augment(digits.to("cuda").train_images[:64], torch.Generator().manual_seed(3))
    assert torch.equal(there.cpu(), augment(images, torch.Generator().manual_seed(3)))


@pytest.mark.parametrize(
    "images, pad, match",
    [
        (torch.zeros(2, 3, 8, 8), None, "float32"),
        (torch.zeros(3, 8, 8, dtype=torch.uint8), None, r"\(3, 8, 8\)"),
        (torch.zeros(2, 3, 8, 8, dtype=torch.uint8), -1, "pad=-1"),
    ],
)
def test_augment_refuses(images, pad, match):
    with pytest.raises(DataError, match=match):
        augment(images, torch.Generator(), pad=pad)
