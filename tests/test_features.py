"""Constructed data sets: inversions by hand, the same bits after any interruption, and nothing taken on trust."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from rfnlib import bricks, built, data, features, models, training
from rfnlib.built import DamagedFeatures, FeatureError
from rfnlib.specs import Step, TrainSpec

DIGITS = data.load("digits").subset(60)
FEW = {"steps": 6, "chunk": 25, "progress": False}
OUTSIDE = math.sqrt(64) / 510  # how far rounding can move a digit


def network(seed: int = 0) -> bricks.Network:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return models.build("cnn", width=2, image_shape=(1, 8, 8), mean=DIGITS.mean, std=DIGITS.std)


MODEL = network()


def invert_digits(cache, model=MODEL, dataset=DIGITS, **options):
    return features.robust_dataset(model, dataset, cache=cache, **{**FEW, **options})


def files(cache):
    return {p.relative_to(cache): p.read_bytes() for p in cache.rglob("*") if p.is_file()}


def twice(model, x):
    """Features of a function with a name: two numbers an image."""
    return torch.stack([x.mean((1, 2, 3)), x.amax((1, 2, 3))], 1)


# ------------------------------------------------------------------------------------------ inversion


def test_inversion_is_normalised_gradient_descent_by_hand():
    rng = np.random.default_rng(0)
    a, x, start = rng.normal(size=(5, 16)), rng.random((3, 16)), rng.random((3, 16))
    by_hand = start.copy()
    for _ in range(7):
        g = (by_hand @ a.T - x @ a.T) @ a
        by_hand = np.clip(by_hand - 0.1 * g / np.linalg.norm(g, axis=1, keepdims=True), 0, 1)
    weights = torch.from_numpy(a)
    found = features.invert(
        lambda x: x.flatten(1) @ weights.T,
        torch.from_numpy(x).view(3, 1, 4, 4),
        torch.from_numpy(start).view(3, 1, 4, 4),
        steps=7,
    )
    np.testing.assert_allclose(found.flatten(1).numpy(), by_hand, atol=1e-12)


def test_dividing_the_distance_or_its_root_gives_the_same_images():
    """The promise of the docstring: an option for either would do nothing."""
    rng = torch.Generator().manual_seed(0)
    a, x, start = torch.randn(5, 16, generator=rng).double(), *torch.rand(2, 3, 16, generator=rng).double()
    relative = start
    for _ in range(7):
        relative = relative.detach().requires_grad_()
        distance = ((relative - x) @ a.T).norm(dim=1) / (x @ a.T).norm(dim=1)
        (g,) = torch.autograd.grad(distance.sum(), relative)
        relative = (relative - 0.1 * g / g.norm(dim=1, keepdim=True)).clamp(0, 1)
    found = features.invert(lambda x: x.flatten(1) @ a.T, x.view(3, 1, 4, 4), start.view(3, 1, 4, 4), steps=7)
    torch.testing.assert_close(found.flatten(1), relative.detach())


def test_where_there_is_nothing_to_gain_an_image_stays():
    x = torch.rand(2, 1, 4, 4)
    assert torch.equal(features.invert(lambda x: x.flatten(1), x, x, steps=3), x)


def test_inversion_brings_features_together_and_images_stay_apart(tmp_path):
    built = invert_digits(tmp_path, steps=60, step=0.05)
    x = DIGITS.train_images
    starts = features._starts(DIGITS, None, 0)
    before = features.feature_distance(MODEL, starts, x)
    after = features.feature_distance(MODEL, built.train_images, x)
    assert after.mean() < before.mean() / 3 and (after < before).float().mean() > 0.9
    moved = (data.to_float(built.train_images) - data.to_float(starts)).flatten(1).norm(dim=1)
    apart = (data.to_float(built.train_images) - data.to_float(x)).flatten(1).norm(dim=1)
    assert 0 < moved.max() < 60 * 0.05 and apart.min() > 0.5


def test_a_feature_distance_is_the_norm_of_the_difference_over_that_of_the_second():
    a, b = data.to_float(DIGITS.train_images[:7]), data.to_float(DIGITS.train_images[7:14])
    with torch.no_grad():
        g, h = network().eval().features(a), network().eval().features(b)
    expected = (g - h).square().sum(1).sqrt() / h.square().sum(1).sqrt()
    torch.testing.assert_close(features.feature_distance(MODEL, a, b, batch_size=3), expected)


# ------------------------------------------------------------------------------------- the robust set


def test_the_built_set_is_the_old_one_with_other_training_images(tmp_path):
    built = invert_digits(tmp_path)
    assert built.train_images.dtype == torch.uint8 and built.train_images.shape == DIGITS.train_images.shape
    assert torch.equal(built.train_labels, DIGITS.train_labels)
    assert torch.equal(built.test_images, DIGITS.test_images) and torch.equal(built.test_labels, DIGITS.test_labels)
    assert (built.mean, built.std, built.flip, built.classes) == (DIGITS.mean, DIGITS.std, False, DIGITS.classes)
    (folder,) = (tmp_path / "features").iterdir()
    assert built.name == f"digits-robust-{folder.name}"
    assert len(built.checksum) == 64 and built.checksum != DIGITS.checksum
    assert invert_digits(tmp_path, kind="non-robust").name == f"digits-non-robust-{folder.name}"


def test_it_is_invert_chunk_by_chunk_and_rounded(tmp_path):
    built = invert_digits(tmp_path)
    x, starts = data.to_float(DIGITS.train_images), data.to_float(features._starts(DIGITS, None, 0))
    g = network().eval().features
    made = torch.cat([features.invert(g, x[i : i + 25], starts[i : i + 25], 6) for i in (0, 25, 50)])
    assert torch.equal(built.train_images, (made * 255).round().to(torch.uint8))


def test_no_image_begins_at_itself_and_all_others_may_be_where_it_begins():
    few = replace(DIGITS, train_images=torch.arange(60, dtype=torch.uint8).view(60, 1, 1, 1).expand(60, 1, 8, 8))
    seen = torch.stack([features._starts(few, None, seed)[:, 0, 0, 0] for seed in range(400)])
    assert not (seen == torch.arange(60)).any()
    counts = torch.stack([column.long().bincount(minlength=60) for column in seen.T])
    assert (counts == 0).sum() < 60 + 20  # each pair is left out with the chance (58/59)^400 = 0.001
    assert counts.max() < 30  # 400/59 = 7 on average


def test_a_network_trains_on_it_under_its_own_name(tmp_path):
    built = invert_digits(tmp_path)
    how = {"cache": tmp_path, "device": "cpu", "precision": "fp32", "compile": False, "progress": False}
    keys = set()
    for dataset in (DIGITS, built):
        spec = TrainSpec(dataset.name, "cnn", Step(0.05), epochs=1, n_train=60, width=2, batch=30)
        (snapshot,) = training.train(spec, dataset=dataset, **how)
        keys.add(snapshot.key)
    assert len(keys) == 2


def test_everything_that_makes_the_set_is_in_its_key(tmp_path):
    moved = network()
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-6
    counted = network()
    next(m for m in counted.modules() if isinstance(m, nn.BatchNorm2d)).num_batches_tracked += 1
    shuffled = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    relabelled = replace(DIGITS, train_labels=DIGITS.train_labels.roll(1))
    subset = DIGITS.subset(50)
    other = [
        {}, {"steps": 5}, {"step": 0.2}, {"seed": 1}, {"chunk": 30}, {"layer": "body"}, {"layer": twice},
        {"precision": "bf16"}, {"starts": shuffled}, {"model": moved}, {"model": counted}, {"dataset": relabelled},
        {"dataset": subset}, {"dataset": replace(DIGITS, flip=True)}, {"dataset": replace(DIGITS, mean=(0.5,))},
    ]  # fmt: skip
    names = [invert_digits(tmp_path, **{"steps": 2, **options}).name for options in other]
    assert len(set(names)) == len(other)
    same = invert_digits(tmp_path, steps=2, starts=DIGITS.train_images[shuffled])
    assert same.name == names[8], "starts are the same as indices and as images"


def test_the_model_and_torchs_generator_are_left_as_they_were(tmp_path):
    model = network().train()
    model.body[0].eval()
    model.head.weight.requires_grad_(False)
    before = {n: v.clone() for n, v in model.state_dict().items()}
    modes = [m.training for m in model.modules()]
    torch.manual_seed(3)
    state = torch.get_rng_state()
    invert_digits(tmp_path, model)
    invert_digits(tmp_path, model, layer="body")
    features.random_label_dataset(model, DIGITS, steps=2, cache=tmp_path, progress=False)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(v, before[n]) for n, v in model.state_dict().items())
    assert [m.training for m in model.modules()] == modes
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["head.weight"]
    assert all(p.grad is None for p in model.parameters()) and not model.body._forward_hooks


# --------------------------------------------------------------------------------- interrupted, damaged

BUILDERS = {
    "robust": invert_digits,
    "random-label": lambda cache, **o: features.random_label_dataset(MODEL, DIGITS, cache=cache, **{**FEW, **o}),
    "next-label": lambda cache, **o: features.next_label_dataset(MODEL, DIGITS, cache=cache, **{**FEW, **o}),
}


@pytest.mark.parametrize("kind", BUILDERS)
def test_interrupted_after_any_chunk_it_ends_with_the_same_bits(kind, tmp_path):
    build = BUILDERS[kind]
    whole = build(tmp_path / "whole")
    quiet = files(tmp_path / "whole")
    assert len(quiet) == 3

    def stop():
        raise KeyboardInterrupt

    for done in (1, 2, 3):  # the last after everything is made
        with pytest.raises(KeyboardInterrupt):
            build(tmp_path / "stopped", tick=stop)
        found = files(tmp_path / "stopped")
        assert len(found) == done and found.items() <= quiet.items()
    resumed = build(tmp_path / "stopped")
    assert resumed.checksum == whole.checksum and resumed.name == whole.name
    assert torch.equal(resumed.train_images, whole.train_images)
    assert files(tmp_path / "stopped") == quiet


@pytest.mark.parametrize("at", [0, 5, 6, 10, 17])
def test_interrupted_within_a_chunk_it_keeps_those_before(at, tmp_path, monkeypatch):
    whole = invert_digits(tmp_path / "whole")
    calls, advance = [], built.Progress.advance

    def stop(self, *args):
        calls.append(args)
        if len(calls) > at:
            raise KeyboardInterrupt
        advance(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(built.Progress, "advance", stop)
        with pytest.raises(KeyboardInterrupt):
            invert_digits(tmp_path / "stopped")
    assert len(files(tmp_path / "stopped")) == at // 6
    assert invert_digits(tmp_path / "stopped").checksum == whole.checksum
    assert files(tmp_path / "stopped") == files(tmp_path / "whole")


def test_what_is_on_disk_is_read_and_not_made_again(tmp_path, monkeypatch):
    whole = invert_digits(tmp_path)
    monkeypatch.setattr(features, "invert", None)
    assert torch.equal(invert_digits(tmp_path).train_images, whole.train_images)
    with pytest.raises(TypeError):
        invert_digits(tmp_path, steps=7)


def test_only_missing_chunks_are_made_and_counted(tmp_path, monkeypatch):
    invert_digits(tmp_path)
    sorted((tmp_path / "features").rglob("*.safetensors"))[1].unlink()
    totals, made, invert = [], [], features.invert
    monkeypatch.setattr(features, "invert", lambda g, x, *rest: made.append(len(x)) or invert(g, x, *rest))
    init = built.Progress.__init__
    monkeypatch.setattr(built.Progress, "__init__", lambda self, n, *rest: totals.append(n) or init(self, n, *rest))
    invert_digits(tmp_path)
    assert made == [25] and totals == [6]


def flipped(content: bytes) -> bytes:
    return content[:-700] + bytes([content[-700] ^ 1]) + content[-699:]


DAMAGES = {
    "truncated": lambda content: content[: len(content) // 2],
    "a byte short": lambda content: content[:-1],
    "empty": lambda content: b"",
    "random": lambda content: bytes((i * 131 + 17) % 251 for i in range(len(content))),
    "one bit of one image": flipped,
    "without its metadata": lambda content: content.replace(b"rfnlib", b"rfnlob"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_left_alone(damage, tmp_path):
    invert_digits(tmp_path)
    path = sorted((tmp_path / "features").rglob("*.safetensors"))[1]
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    content = path.read_bytes()
    with pytest.raises(DamagedFeatures, match=f"{path.parent.name}/{path.name} is damaged .*; delete it, and it is"):
        invert_digits(tmp_path)
    assert path.read_bytes() == content
    path.unlink()
    invert_digits(tmp_path)


def test_a_file_of_another_set_or_place_is_refused(tmp_path):
    invert_digits(tmp_path)
    first, second, _ = sorted((tmp_path / "features").rglob("*.safetensors"))
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    with pytest.raises(DamagedFeatures, match="it belongs to another data set"):
        invert_digits(tmp_path)
    invert_digits(tmp_path / "other", step=0.2)
    (other, *_) = sorted((tmp_path / "other").rglob("*.safetensors"))
    first.write_bytes(other.read_bytes())
    with pytest.raises(DamagedFeatures, match="it belongs to another data set"):
        invert_digits(tmp_path)
    first.write_bytes(content)
    invert_digits(tmp_path)


# --------------------------------------------------------------------------------------------- layers


class Plain(nn.Module):
    """Stands for a network of other people: normalisation first, no `features`."""

    def __init__(self):
        super().__init__()
        self.inner, self.pool, self.fc = nn.Conv2d(1, 3, 3), nn.AdaptiveAvgPool2d(1), nn.Linear(3, 10)

    def forward(self, x):
        return self.fc(self.pool(self.inner(2 * x - 1)).flatten(1))


class WithModule(Plain):
    """Its `features` is a submodule that does not get the images themselves, as in torchvision's VGG and DenseNet."""

    def __init__(self):
        super().__init__()
        self.features = nn.Identity()

    def forward(self, x):
        return self.fc(self.features(self.pool(self.inner(2 * x - 1))).flatten(1))


def test_layers_by_method_name_and_function():
    x = data.to_float(DIGITS.train_images[:4])
    expected = MODEL.eval().features(x)
    assert torch.equal(features.Features(MODEL)(x), expected)
    assert torch.equal(features.Features(MODEL, "body")(x), expected)
    assert torch.equal(features.Features(MODEL, twice)(x), twice(MODEL, x))
    plain, module = Plain(), WithModule()
    module.load_state_dict(plain.state_dict())
    expected = plain.pool(plain.inner(2 * x - 1)).flatten(1)
    assert torch.equal(features.Features(plain, "pool")(x), expected)
    assert torch.equal(features.Features(module)(x), expected)
    names = {features.Features(MODEL, layer).name for layer in (None, "body", "body.0", twice)}
    assert len(names) == 4


@pytest.mark.parametrize(
    ("model", "layer", "said"),
    [
        (Plain(), None, "Plain has no `features`; name the submodule .*its parts are inner, pool, fc.*function"),
        (nn.Linear(4, 2), None, "Linear has no `features`; name the submodule .*it has no parts"),
        (Plain(), "avgpool", "layer is 'avgpool', which Plain does not have; .*its parts are inner, pool, fc"),
        (Plain(), "", "layer is '', which Plain does not have"),
        (Plain(), lambda model, x: x, "layer is <function .*lambda.*, which has no name to know it by"),
        (Plain(), nn.Flatten(), "layer is Flatten.*, which has no name to know it by"),
        (Plain(), 3, "layer is 3, which has no name"),
    ],
)
def test_a_model_without_a_nameable_feature_layer_is_refused(model, layer, said, tmp_path):
    with pytest.raises(FeatureError, match=said):
        invert_digits(tmp_path, model, layer=layer)


def one_number(model, x):
    return x.sum()


class Shared(Plain):
    def forward(self, x):
        return self.fc(self.pool(self.pool(self.inner(x))).flatten(1))


@pytest.mark.parametrize(
    ("model", "layer", "said"),
    [
        (MODEL, one_number, r"one_number gives \(\) for 2 images; name a layer with one row of numbers an image"),
        (Shared(), "pool", "pool ran 2 times in a pass; name a layer that runs once"),
    ],
)
def test_a_layer_that_gives_no_features_is_refused_before_anything_is_made(model, layer, said, tmp_path):
    with pytest.raises(FeatureError, match=said):
        invert_digits(tmp_path, model, layer=layer)
    assert not files(tmp_path)


def test_features_that_are_not_finite_make_no_images(tmp_path):
    model = network()
    with torch.no_grad():
        model.body[0].weight.fill_(1e38)
    with pytest.raises(FeatureError, match="the features or their gradient are not finite"):
        invert_digits(tmp_path, model)
    assert not files(tmp_path)


# ----------------------------------------------------------------------------- starts that leak the label

Y = DIGITS.train_labels


def of_class(wanted):
    """For each image one of the class `wanted`, never itself."""
    drawn = torch.Generator().manual_seed(0)
    choices = [[j for j in (Y == c).nonzero()[:, 0].tolist() if j != i] for i, c in enumerate(wanted.tolist())]
    return torch.tensor([c[int(torch.randint(len(c), (), generator=drawn))] for c in choices])


SHUFFLED = torch.randperm(60, generator=torch.Generator().manual_seed(4))
LEAKS = {
    "itself": torch.arange(60),
    "same class": of_class(Y),
    "next class": of_class((Y + 1) % 10),
    "half of them of the same class": torch.where(torch.arange(60) < 30, of_class(Y), SHUFFLED),
}


@pytest.mark.parametrize("as_images", [False, True])
@pytest.mark.parametrize("leak", LEAKS)
def test_starting_images_that_leak_the_label_are_refused(leak, as_images, tmp_path):
    starts = DIGITS.train_images[LEAKS[leak]] if as_images else LEAKS[leak]
    with pytest.raises(FeatureError, match="starts tell the labels of the images .*; draw starts that do not depend"):
        invert_digits(tmp_path, starts=starts)
    assert not files(tmp_path)


def test_starting_images_that_say_nothing_are_accepted(tmp_path):
    noise = torch.randint(0, 256, (60, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    grey = torch.full_like(noise, 128)
    one = torch.full((60,), 7)
    for starts in (SHUFFLED, DIGITS.train_images[SHUFFLED], noise, grey, one):
        invert_digits(tmp_path, starts=starts, steps=1)


def test_chance_is_judged_rightly():
    """Under independence, a chance below p comes about as often as p."""
    drawn = torch.Generator().manual_seed(0)
    orders = [torch.randperm(60, generator=drawn) for _ in range(60)]
    for tie in (
        [features.label_tie(Y[order], Y) for order in orders],
        [features.image_tie(DIGITS.train_images[order], Y) for order in orders],
    ):
        assert min(tie) > 1e-4 and 0.3 < np.mean(tie) < 0.7 and np.mean(np.array(tie) < 0.1) < 0.25


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"starts": SHUFFLED + 1}, "starts run from 1 to 60; give indices from 0 to 59"),
        ({"starts": SHUFFLED[:50]}, r"starts are torch.int64 of shape \(50,\); give int64 \(60,\), or uint8 images"),
        ({"starts": torch.rand(60, 1, 8, 8)}, "starts are torch.float32"),
        ({"starts": SHUFFLED, "seed": 1}, "seed is 1, but starts are given"),
        ({"steps": 0}, "steps is 0; give an integer of at least 1"),
        ({"step": 0}, "step is 0; give a positive length"),
        ({"step": math.nan}, "step is nan; give a positive length"),
        ({"chunk": 0}, "chunk is 0; give an integer of at least 1"),
        ({"kind": "../robust"}, "kind is '../robust'; give a name of letters"),
        ({"dataset": data.load("digits").subset(10)}, "digits has 10 training images; give at least 20, two a class"),
        ({"dataset": replace(DIGITS, train_labels=Y * 0)}, "all training images of digits have one label"),
    ],
)
def test_what_cannot_be_built_is_refused(options, said, tmp_path):
    with pytest.raises(FeatureError, match=said):
        invert_digits(tmp_path, **options)
    assert not files(tmp_path)


# ---------------------------------------------------------------------------------------- D_rand, D_det


def targeted_by_hand(x, targets, steps, step, eps):
    model, adv = network().eval(), x
    for _ in range(steps):
        adv = adv.detach().requires_grad_()
        (g,) = torch.autograd.grad(F.cross_entropy(model(adv), targets, reduction="sum"), adv)
        adv = torch.stack([a - step * d / d.norm() for a, d in zip(adv.detach(), g, strict=True)])
        away = [a - b for a, b in zip(adv, x, strict=True)]
        adv = x + torch.stack([o * min(1.0, eps / float(o.norm())) for o in away])
        adv = adv.clamp(0, 1)
    return adv


def test_next_labels_are_the_next_classes_and_images_go_there(tmp_path):
    built = features.next_label_dataset(MODEL, DIGITS, steps=10, chunk=25, cache=tmp_path, progress=False)
    assert built.train_labels.tolist() == [(y + 1) % 10 for y in Y.tolist()]
    x = data.to_float(DIGITS.train_images)
    hand = targeted_by_hand(x, built.train_labels, 10, 0.1, 0.5)
    assert (built.train_images.float() - hand * 255).abs().max() < 0.5 + 0.05
    assert built.name.startswith("digits-next-label-") and torch.equal(built.test_images, DIGITS.test_images)


@pytest.mark.parametrize("build", [features.next_label_dataset, features.random_label_dataset])
@pytest.mark.parametrize("eps", [0.5, 0.2])
def test_images_stay_in_the_ball_but_for_rounding_and_come_closer_to_their_class(build, eps, tmp_path):
    built = build(MODEL, DIGITS, eps=eps, steps=12, cache=tmp_path, progress=False)
    x, adv = data.to_float(DIGITS.train_images), data.to_float(built.train_images)
    size = (adv - x).flatten(1).norm(dim=1)
    assert eps / 2 < float(size.max()) <= eps + OUTSIDE
    with torch.no_grad():
        before, after = (F.cross_entropy(MODEL.eval()(v), built.train_labels, reduction="none") for v in (x, adv))
    assert (after < before).float().mean() > 0.9


def test_random_labels_are_drawn_by_the_seed_and_independent_of_the_images_own(tmp_path):
    whole = data.load("digits")
    how = {"steps": 1, "progress": False, "chunk": 2000}
    first, again, other = (
        features.random_label_dataset(MODEL, whole, seed=seed, cache=tmp_path / folder, **how)
        for seed, folder in ((0, "a"), (0, "b"), (1, "a"))
    )
    assert first.name == again.name != other.name and torch.equal(first.train_labels, again.train_labels)
    t, y = first.train_labels, whole.train_labels
    assert features.label_tie(t, y) > 0.001 and features.label_tie(t, other.train_labels) > 0.001
    assert abs(float((t == y).float().mean()) - 0.1) < 0.03 and t.bincount().min() > 80


def test_targeted_sets_of_other_settings_are_other_sets(tmp_path):
    build = features.next_label_dataset
    how = {"cache": tmp_path, "progress": False}
    base = {"steps": 2, "step": 0.1, "eps": 0.5, "chunk": 30}
    changes = [{}, {"steps": 3}, {"step": 0.2}, {"eps": 0.4}, {"chunk": 60}]
    names = {build(MODEL, DIGITS, **{**base, **change}, **how).name for change in changes}
    names |= {build(network(1), DIGITS, **base, **how).name, build(MODEL, DIGITS.subset(40), **base, **how).name}
    assert len(names) == 7


# ---------------------------------------------------------------------------------------- image grids


def test_an_image_grid_holds_every_image_at_its_place():
    a, b = DIGITS.train_images[:3], DIGITS.train_images[3:5]
    picture = features.image_grid(a, data.to_float(b), gap=2)
    assert picture.shape == (8 + 2 + 8, 8 + 2 + 8 + 2 + 8, 3) and picture.dtype == np.uint8
    for i, row in enumerate((a, b)):
        for j, image in enumerate(row):
            for channel in range(3):
                assert np.array_equal(picture[10 * i : 10 * i + 8, 10 * j : 10 * j + 8, channel], image[0].numpy())
    assert (picture[8:10] == 255).all() and (picture[:, 8:10] == 255).all() and (picture[10:, 20:] == 255).all()
    colours = torch.randint(0, 256, (2, 3, 5, 4), dtype=torch.uint8)
    assert np.array_equal(features.image_grid(colours, gap=0)[:, :4], colours[0].permute(1, 2, 0).numpy())


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ((), "there are no images"),
        ((DIGITS.train_images[:0],), "there are no images"),
        ((torch.rand(1, 1, 8, 8), torch.rand(1, 3, 8, 8)), "images are of the shapes .*; give images of one shape"),
        ((torch.rand(1, 2, 8, 8),), "images have 2 channels; give 1 or 3"),
    ],
)
def test_a_grid_of_what_is_no_image_is_refused(rows, said):
    with pytest.raises(FeatureError, match=said):
        features.image_grid(*rows)
