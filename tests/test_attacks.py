"""Attacks: against slow independent code, closed forms, and what must hold for all settings."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from rfnlib.attacks import BIM, DI, FGSM, MI, PGD, AttackError, IterativeAttack, frozen, input_gradient
from rfnlib.sharpness import top_eigenvalue
from rfnlib.surrogates import Logits
from rfnlib.transfer import predict, robust_accuracy

N, SHAPE, CLASSES = 6, (2, 5, 5), 4
quick = settings(max_examples=40, deadline=None)


def net(seed: int = 0, dtype: torch.dtype = torch.float64) -> nn.Sequential:
    """A smooth CNN with batch norm whose running statistics are those of some data."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Softplus()),
            nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, CLASSES)),
        ).to(dtype)
        model(torch.rand(32, *SHAPE, dtype=dtype))
        nn.init.normal_(model[1][2].weight, std=0.5)
    return model


def batch(n: int = N, seed: int = 0, dtype: torch.dtype = torch.float64):
    generator = torch.Generator().manual_seed(seed)
    x = torch.rand(n, *SHAPE, generator=generator, dtype=dtype)
    x[:, :, 0, 0], x[:, :, 0, 1] = 0.0, 1.0  # on the border of [0, 1]
    return x, torch.randint(CLASSES, (n,), generator=generator)


def sizes(adv, x, norm):
    flat = (adv - x).flatten(1)
    return flat.abs().amax(1) if norm == "linf" else flat.norm(dim=1)


attacks = st.builds(
    IterativeAttack,
    eps=st.floats(0, 1),
    step=st.none() | st.floats(0, 0.5),
    steps=st.integers(1, 4),
    norm=st.sampled_from(["linf", "l2"]),
    random_start=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)

# ---------------------------------------------------------------------------------------- settings


def test_the_defaults_are_those_of_the_authors():
    for attack in (IterativeAttack(), BIM(), PGD()):
        assert (attack.radius, attack.step_size, attack.steps) == (4 / 255, 4 / 255 / 10, 50)
        assert attack.norm == "linf"
    assert not BIM().random_start and PGD().random_start
    assert (FGSM().radius, FGSM().step_size, FGSM().steps) == (4 / 255, 4 / 255, 1)
    assert FGSM(norm="l2").step_size == FGSM(norm="l2").radius == BIM(norm="l2").radius == 0.5
    assert BIM(eps=8 / 255).step_size == 8 / 255 / 10


@pytest.mark.parametrize("norm, eps", [("linf", 0.06), ("l2", 0.4)])
@pytest.mark.parametrize("steps", [1, 2, 5, 9, 10, 11, 50])
def test_a_default_step_is_long_enough_to_reach_the_edge_of_the_ball(norm, eps, steps):
    attack = BIM(eps, norm=norm, steps=steps)
    assert attack.step_size == (eps / 10 if steps >= 10 else eps / steps)
    assert BIM(eps, norm=norm, steps=steps, step=0.001).step_size == 0.001, "one that is given stays what it is"
    x = torch.full((1, 1, 4, 4), 0.5)
    adv = attack(lambda x: torch.stack([x.sum((1, 2, 3)), -x.sum((1, 2, 3))], 1), x, torch.tensor([1]))
    moved = (adv - x).abs().amax() if norm == "linf" else (adv - x).norm()
    assert moved.item() == pytest.approx(eps, abs=1e-6)


def test_options_of_a_preset_reach_the_attack():
    assert PGD(0.1, random_start=False, steps=3) == BIM(0.1, steps=3)
    assert FGSM(0.1, step=0.02, steps=2) == IterativeAttack(0.1, 0.02, 2)
    with pytest.raises(TypeError, match="strength"):
        BIM(strength=0.1)


def test_the_description_tells_apart_what_gives_other_images():
    told = [a.describe() for a in (BIM(), BIM(0.1), BIM(step=0.1), BIM(steps=2), BIM(norm="l2"), PGD())]
    told += [PGD(seed=1).describe()]
    assert all(a != b for i, a in enumerate(told) for b in told[:i])
    assert BIM(seed=1).describe() == BIM(eps=4 / 255, steps=50).describe()


# ------------------------------------------------------------------------- independent computations


def slow_attack(model, x, y, start, eps, step, steps, norm):
    """Image by image, as in the papers; projection by cases."""
    done = []
    for image, label, at in zip(x, y, start, strict=True):
        for _ in range(steps):
            at = at.clone().requires_grad_()
            log_p = torch.log_softmax(model(at[None])[0], 0)
            (-log_p[label]).backward()
            g, at = at.grad, at.detach()
            if norm == "linf":
                at = at + step * torch.where(g > 0, 1.0, torch.where(g < 0, -1.0, 0.0)).to(g)
                at = image + torch.clip(at - image, -eps, eps)
            else:
                at = at + step * g / math.sqrt(float((g * g).sum()))
                size = math.sqrt(float(((at - image) ** 2).sum()))
                if size > eps:
                    at = image + (at - image) * eps / size
            at = torch.clip(at, 0, 1)
        done.append(at)
    return torch.stack(done)


@pytest.mark.parametrize("norm, eps", [("linf", 0.06), ("l2", 0.4)])
@pytest.mark.parametrize("preset", [FGSM, BIM, PGD])
def test_an_attack_is_the_slow_one_image_at_a_time(norm, eps, preset):
    model, (x, y) = net().eval(), batch()
    attack = preset(eps, norm=norm)
    # With steps of length 0 an attack returns its starting point.
    start = preset(eps, norm=norm, step=0.0, steps=1)(model, x, y)
    expected = slow_attack(model, x, y, start, eps, attack.step_size, attack.steps, norm)
    assert (attack(model, x, y, batch_size=4) - expected).abs().max() < 1e-6
    assert torch.equal(start, x) == (preset is not PGD)


def linear(weight):
    """A model with two classes whose loss for class 0 rises along `weight`."""
    layer = nn.Linear(weight.numel(), 2, bias=False)
    layer.weight.data = torch.stack([torch.zeros_like(weight), weight])
    return nn.Sequential(nn.Flatten(), layer)


def test_on_a_linear_model_attacks_are_the_closed_form():
    torch.manual_seed(0)
    w, (x, _) = torch.randn(50), batch(dtype=torch.float32)
    w[7] = 0.0  # a pixel that no class looks at stays
    direction = w.view(SHAPE)
    for y, sign in ((0, 1), (1, -1)):
        labels = torch.full((N,), y)
        corner = (x + 0.03 * sign * direction.sign()).clamp(0, 1)
        for attack in (FGSM(0.03), BIM(0.03), PGD(0.03)):
            adv = attack(linear(w), x, labels)
            seen = direction != 0
            assert torch.allclose(adv[:, seen], corner[:, seen], atol=1e-6)
        assert torch.equal(BIM(0.03)(linear(w), x, labels)[:, ~seen], x[:, ~seen])
        middle = x * 0.2 + 0.4  # too far from the border for the clip to matter
        expected = middle + 0.3 * sign * direction / w.norm()
        adv = BIM(0.3, norm="l2")(linear(w), middle, labels)
        assert torch.allclose(adv, expected, atol=1e-5)


def test_an_image_without_gradient_stays_where_it_is():
    x, y = batch(dtype=torch.float32)
    for norm in ("linf", "l2"):
        assert torch.equal(BIM(0.1, norm=norm)(linear(torch.zeros(50)), x, y % 2), x)


def test_the_input_gradient_of_an_image_is_its_own_and_not_divided_by_the_batch():
    model, (x, y) = net().eval(), batch()
    together = input_gradient(model, x, y)
    assert all(p.grad is None for p in model.parameters())
    for i in range(N):
        alone = torch.autograd.functional.jacobian(
            lambda image, i=i: F.cross_entropy(model(image), y[i : i + 1]), x[i : i + 1]
        )
        assert torch.allclose(together[i : i + 1], alone, atol=1e-6)


# ------------------------------------------------------------------------ what holds for all inputs


@quick
@given(attacks, st.sampled_from([torch.float32, torch.float64]))
def test_adversarial_images_lie_in_the_ball_and_in_the_box(attack, dtype):
    x, y = batch(dtype=dtype)
    adv = attack(net(dtype=dtype), x, y)
    assert adv.shape == x.shape and adv.dtype == dtype
    assert torch.isfinite(adv).all() and adv.min() >= 0 and adv.max() <= 1
    assert (sizes(adv, x, attack.norm) <= attack.radius + 1e-6).all()


# Steps of a decent length, and no signs that the last bit could turn: a smooth model in float64.
@quick
@given(attacks, st.integers(1, 7), st.integers(1, N))
def test_an_example_depends_neither_on_the_batch_size_nor_on_its_batch_mates(attack, size, n):
    model, (x, y) = net(), batch()
    whole = attack(model, x, y)
    assert torch.allclose(attack(model, x, y, batch_size=size), whole, atol=1e-5)
    assert torch.allclose(attack(model, x[:n], y[:n]), whole[:n], atol=1e-5)


def test_a_random_start_depends_on_seed_and_position_alone():
    model, (x, y) = net(), batch()
    for norm in ("linf", "l2"):
        starts = {
            seed: PGD(0.1, norm=norm, step=0.0, steps=1, seed=seed)(model, x, y) for seed in (0, 1, N, 2**31, 2**32 - 1)
        }
        assert all(not torch.equal(starts[0], s) for k, s in starts.items() if k)
        for size in (1, 4):
            attack = PGD(0.1, norm=norm, step=0.0, steps=1)
            assert torch.equal(attack(model, x, y, batch_size=size), starts[0])
        moves = starts[0][:, :, 1:] - x[:, :, 1:]
        assert moves.flatten(1).unique(dim=0).shape[0] == N


def test_random_starts_are_uniform_in_the_ball():
    x, y = torch.full((4000, 3, 1, 1), 0.5), torch.zeros(4000, dtype=torch.int64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 2))
    for norm, radius in (("linf", 0.2), ("l2", 0.4)):
        adv = PGD(radius, norm=norm, step=0.0, steps=1)(model, x, y, batch_size=4000)
        # A uniform point of a ball in 3 dimensions is farther than r·radius with chance 1 − r³.
        part = (sizes(adv, x, norm) / radius) ** 3
        quantiles = torch.quantile(part, torch.tensor([0.1, 0.5, 0.9]))
        assert torch.allclose(quantiles, torch.tensor([0.1, 0.5, 0.9]), atol=0.03)
        assert (adv - x).mean(0).abs().max() < 0.02 * radius * 2


@quick
@given(attacks)
def test_an_attack_is_deterministic_whatever_the_state_of_the_generator(attack):
    model, (x, y) = net(), batch()
    torch.manual_seed(1)
    first = attack(model, x, y)
    torch.manual_seed(2)
    assert torch.equal(attack(model, x, y), first)


@quick
@given(st.sampled_from(["linf", "l2"]), st.floats(1e-3, 0.05), st.integers(0, 20))
def test_small_steps_raise_the_loss_of_every_image(norm, eps, seed):
    model, (x, y) = net(seed).eval(), batch(seed=seed)
    adv = BIM(eps, norm=norm, steps=10)(model, x, y)
    with torch.no_grad():
        before = F.cross_entropy(model(x), y, reduction="none")
        after = F.cross_entropy(model(adv), y, reduction="none")
    assert (after > before).all()


def test_no_radius_returns_the_images():
    model, (x, y) = net(), batch()
    for norm in ("linf", "l2"):
        for attack in (BIM(0, norm=norm), PGD(0, norm=norm), BIM(0.0, norm=norm, step=0.1)):
            assert torch.equal(attack(model, x, y), x)


def test_no_images_give_no_images():
    x, y = batch(0)
    for attack in (BIM(), PGD(norm="l2")):
        assert attack(net(), x, y).shape == (0, *SHAPE)


def test_the_result_is_detached_and_new_and_the_images_are_left_alone():
    model, (x, y) = net(), batch()
    kept = x.clone()
    adv = BIM(steps=2)(model, x.requires_grad_(), y)
    assert not adv.requires_grad and x.requires_grad and x.grad is None
    assert torch.equal(x, kept) and adv.data_ptr() != x.data_ptr()
    with torch.no_grad():
        assert torch.equal(BIM(steps=2)(model, kept, y), adv)


# -------------------------------------------------------------------------------------- surrogates


class Calls(nn.Module):
    """Appends its name to `log` at each forward pass."""

    def __init__(self, name: int, log: list):
        super().__init__()
        self.name, self.log, self.inner = name, log, net(name)

    def forward(self, x):
        self.log.append((self.name, len(x), self.training))
        return self.inner(x)


def test_surrogates_take_turns_and_every_batch_starts_with_the_first():
    log, (x, y) = [], batch(5)
    BIM(steps=4)([Calls(i, log) for i in range(3)], x, y, batch_size=3)
    assert log == [(i, n, False) for n in (3, 2) for i in (0, 1, 2, 0)]


def test_several_surrogates_are_the_single_ones_in_turn():
    models, (x, y) = [net(i) for i in range(2)], batch()
    adv = x
    for model in (*models, models[0]):
        gradient = input_gradient(model.eval(), adv, y)
        adv = (adv + 0.02 * gradient.sign()).clamp(x - 0.03, x + 0.03).clamp(0, 1)
    got = IterativeAttack(0.03, step=0.02, steps=3)(tuple(models), x, y)
    assert torch.allclose(got, adv, atol=1e-9)


def trace(model):
    """All that an attack could leave behind in `model` and in torch."""
    tensors = [*model.parameters(), *model.buffers()]
    grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    hooks = [
        len(getattr(m, name))
        for m in model.modules()
        for name in ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks")
    ]
    return {
        "values": [t.detach().clone() for t in tensors],
        "grads": grads,
        "modes": [m.training for m in model.modules()],
        "requires_grad": [p.requires_grad for p in model.parameters()],
        "identity": [id(t) for t in tensors],
        "hooks": hooks,
        "rng": torch.get_rng_state(),
        "grad_enabled": torch.is_grad_enabled(),
    }


def same(a, b) -> bool:
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def marked(seed: int = 0):
    """A surrogate of mixed modes, with frozen weights, gradients and a hook."""
    model = net(seed, torch.float32).train()
    model[0][1].eval()
    model[0][0].bias.requires_grad_(False)
    model[1][2].weight.grad = torch.ones_like(model[1][2].weight)
    model[0].register_forward_hook(lambda module, inputs, output: None)
    return model


class Breaks(nn.Module):
    """Works for two passes, and then does what `how` says."""

    def __init__(self, inner, how):
        super().__init__()
        self.inner, self.how, self.left = inner, how, 2

    def forward(self, x):
        self.left -= 1
        return self.inner(x) if self.left >= 0 else self.how(self.inner(x))


def raises(logits):
    raise KeyboardInterrupt


FATES = {
    "finishes": (lambda logits: logits, None),
    "overflows": (lambda logits: logits * math.inf, AttackError),
    "is interrupted": (raises, KeyboardInterrupt),
}


@pytest.mark.parametrize("fate", FATES)
@pytest.mark.parametrize("preset", [BIM, PGD])
def test_the_surrogates_are_untouched_also_when_the_attack(fate, preset):
    how, error = FATES[fate]
    models = [marked(0), Breaks(marked(1), how)]
    before, (x, y) = [trace(m) for m in models], batch(dtype=torch.float32)
    if error is None:
        preset(steps=7)(models, x, y)
    else:
        with pytest.raises(error):
            preset(steps=7)(models, x, y)
    for model, old in zip(models, before, strict=True):
        new = trace(model)
        assert [k for k in old if not same(old[k], new[k])] == []


def test_frozen_models_ask_for_no_weight_gradients():
    model = marked()
    with frozen([model]):
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(m.training for m in model.modules())


# ------------------------------------------------------------------------------------------ errors


@pytest.mark.parametrize(
    "options, named",
    [
        ({"eps": -0.1}, "eps is -0.1;"),
        ({"eps": math.nan}, "eps is nan;"),
        ({"eps": math.inf}, "eps is inf;"),
        ({"eps": "4/255"}, "eps is '4/255';"),
        ({"eps": True}, "eps is True;"),
        ({"step": -1}, "step is -1;"),
        ({"step": math.nan}, "step is nan;"),
        ({"norm": "l1"}, "norm is 'l1';"),
        ({"norm": 2}, "norm is 2;"),
        ({"steps": 0}, "steps is 0;"),
        ({"steps": True}, "steps is True;"),
        ({"steps": 2.0}, "steps is 2.0;"),
        ({"seed": -1}, "seed is -1;"),
        ({"seed": 0.5}, "seed is 0.5;"),
        ({"seed": 2**32}, "seed is 4294967296;"),
    ],
    ids=str,
)
def test_a_bad_setting_is_named_on_construction(options, named):
    for preset in (IterativeAttack, BIM, PGD, FGSM):
        with pytest.raises(AttackError) as error:
            preset(**options)
        assert named in str(error.value)


def spoilt(value):
    x, _ = batch(dtype=torch.float32)
    x[1, 0, 2, 2] = value
    return {"images": x}


IMAGES, LABELS = batch(dtype=torch.float32)
LABELS[0] = 0


@pytest.mark.parametrize(
    "change, named",
    [
        (spoilt(1.5), "1.5"),
        (spoilt(-0.25), "-0.25"),
        (spoilt(math.nan), "nan"),
        (spoilt(math.inf), "inf"),
        ({"images": (IMAGES * 255).to(torch.uint8)}, "torch.uint8"),
        ({"images": IMAGES[0]}, "(2, 5, 5)"),
        ({"labels": LABELS.clone().fill_(CLASSES)}, f"labels hold {CLASSES};"),
        ({"labels": LABELS - 5}, "labels hold -5;"),
        ({"labels": LABELS.int()}, "torch.int32"),
        ({"labels": LABELS.float()}, "torch.float32"),
        ({"labels": LABELS[:, None]}, f"({N}, 1)"),
        ({"labels": LABELS[:-1]}, f"({N - 1},)"),
        ({"surrogate": []}, "no surrogate"),
        ({"surrogate": iter(())}, "no surrogate"),
        ({"batch_size": 0}, "batch_size is 0;"),
    ],
    ids=[
        *("too bright", "too dark", "NaN", "infinite", "bytes", "one image"),
        *("no such class", "negative", "int32", "float labels", "a column", "too few"),
        *("empty list", "empty iterator", "no batch"),
    ],
)
def test_a_bad_argument_is_named_and_changes_nothing(change, named):
    model = marked()
    given = {"surrogate": model, "images": IMAGES, "labels": LABELS, **change}
    before, images, labels = trace(model), given["images"].clone(), given["labels"].clone()
    with pytest.raises(AttackError) as error:
        PGD(steps=2)(**given)
    assert named in str(error.value)
    after = trace(model)
    assert [k for k in before if not same(before[k], after[k])] == []
    assert torch.equal(given["images"].nan_to_num(), images.nan_to_num())
    assert torch.equal(given["labels"], labels)


def test_a_gradient_that_is_not_finite_is_an_error():
    model, (x, y) = net(), batch()
    model[0][0].weight.data.fill_(math.nan)
    with pytest.raises(AttackError, match="gradient is not finite"):
        BIM(steps=1)(model, x, y)


# ------------------------------------------------------------------------ what is often given, and what is said then


def small() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Flatten(), nn.Linear(50, CLASSES)).eval()


class Returns(nn.Module):
    """A network whose logits come as `how` makes them."""

    def __init__(self, how):
        super().__init__()
        self.inner, self.how = small(), how

    def forward(self, x):
        return self.how(self.inner(x))


class Elsewhere(nn.Module):
    """A network whose weights are on a device that computes nothing."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(50, CLASSES, device="meta"))

    def forward(self, x):
        if x.device != self.weight.device:
            raise RuntimeError("Expected all tensors to be on the same device")
        return x.flatten(1) @ self.weight


def attack_with(surrogate=None, images=IMAGES, labels=LABELS):
    return lambda: BIM(steps=1)(surrogate or small(), images, labels)


def predict_with(model=None, images=IMAGES):
    return lambda: predict(model or small(), images)


def sharpness_with(images=IMAGES, labels=LABELS):
    return lambda: top_eigenvalue(small(), [(images, labels)])


def with_data_of_inference(images=IMAGES, labels=LABELS):
    with torch.inference_mode():
        images, labels = images * 1, labels * 1
    return BIM(steps=1)(small(), images, labels)


BYTES = "images are torch.uint8 of shape (6, 2, 5, 5); give floats of shape (N, C, H, W)"
TUPLE = "the model returns a tuple, not logits; give surrogates.Logits(model, 0)."
FORBIDDEN = "torch.inference_mode() leaves no gradients; use torch.no_grad(), for images and labels too."
SWAPPED = "the surrogate is a torch.Tensor of shape (6, 2, 5, 5); give a module, a function, or a sequence of them"
BY_NAME = "is 'smoke/sgd-0'; give the network of this name, rfnlib.zoo.load('smoke/sgd-0')."
SEVERAL = "give one module or function (surrogates.Ensemble makes one of several)."
NO_ATTACK = "attack is {}; give one that is made, such as PGD(eps=8 / 255, steps=20)."
CONVOLUTION = net(dtype=torch.float32)
LEVELS, NAMED, PAIR = IMAGES * 255, Returns(lambda z: {"logits": z, "loss": z.sum()}), Returns(lambda z: (z, None))
RANGE = "images range over [0, 255]; divide them by 255"
MISUSE = {
    "eps of 4 levels": (lambda: BIM(eps=4), "eps is 4, but pixels reach from 0 to 1; for levels of 255 give 4/255."),
    "step of 1.5 levels": (lambda: BIM(step=1.5), "step is 1.5, but pixels reach from 0 to 1; for levels of 255 give"),
    "attack on levels": (attack_with(images=LEVELS), RANGE),
    "predict on levels": (predict_with(images=LEVELS), RANGE),
    "sharpness on levels": (sharpness_with(images=LEVELS), RANGE),
    "attack on bytes": (attack_with(images=LEVELS.byte()), BYTES),
    "predict on bytes": (predict_with(images=LEVELS.byte()), BYTES),
    "attack on normalised images": (attack_with(images=IMAGES - 0.5), "[-0.5, 0.5]; scale them to [0, 1] (norm"),
    "NumPy labels": (attack_with(labels=LABELS.numpy()), "labels are a numpy.ndarray; give torch.from_numpy(labels)."),
    "NumPy labels, sharpness": (sharpness_with(labels=LABELS.numpy()), "something else than pairs of tensors"),
    "NumPy images": (attack_with(images=IMAGES.numpy()), "images are a numpy.ndarray; give torch.from_numpy(images)."),
    "NumPy images, predict": (predict_with(images=IMAGES.numpy()), "images are a numpy.ndarray; give torch.from_numpy"),
    "labels in a list": (attack_with(labels=[0] * N), "labels are a list; give a torch.Tensor of int64."),
    "labels as int32": (attack_with(labels=LABELS.int()), "labels are torch.int32 of shape (6,); give torch.int64 of"),
    "labels as int32, sharpness": (sharpness_with(labels=LABELS.int()), "labels are torch.int32 of shape (6,); give"),
    "float64 images": (
        attack_with(images=IMAGES.double()),
        "images are torch.float64 on cpu, the model's weights torch.float32 on cpu; give images.to('cpu', torch.float",
    ),
    "float64 images, predict": (predict_with(images=IMAGES.double()), "images are torch.float64 on cpu, the model's"),
    "another device": (attack_with(Elsewhere()), "the model's weights torch.float32 on meta; give images.to('meta',"),
    "another device, predict": (predict_with(Elsewhere()), "images are torch.float32 on cpu, the model's weights"),
    "a dictionary": (
        attack_with(NAMED),
        "the model returns a dict of 'logits', 'loss', not logits; give surrogates.Logits(model, 'logits').",
    ),
    "a tuple": (attack_with(PAIR), TUPLE),
    "a tuple, predict": (predict_with(PAIR), TUPLE),
    "maps for logits": (
        predict_with(Returns(lambda z: z[..., None])),
        "the model returns (6, 4, 1) for 6 images; give one that returns logits (6, classes).",
    ),
    "no surrogate": (attack_with(3), "the surrogate is a int; give a module, a function, or a sequence of them"),
    "a name": (attack_with("smoke/sgd-0"), f"the surrogate {BY_NAME}"),
    "a name among several": (attack_with([small(), "smoke/sgd-0"]), f"the surrogate {BY_NAME}"),
    "a name, predict": (predict_with("smoke/sgd-0"), f"the model {BY_NAME}"),
    "several, predict": (predict_with([small(), small()]), f"the model is a list; {SEVERAL}"),
    "a ModuleList, predict": (predict_with(nn.ModuleList([small()])), f"ModuleList; {SEVERAL}"),
    "images before the surrogate": (lambda: BIM()(IMAGES, LABELS, small()), SWAPPED),
    "three channels for two": (
        attack_with(CONVOLUTION, torch.rand(N, 3, 5, 5)),
        "images are of shape (6, 3, 5, 5), the model's first convolution takes (N, 2, H, W); give such images (Given",
    ),
    "channels last": (
        attack_with(CONVOLUTION, IMAGES.permute(0, 2, 3, 1)),
        "images are of shape (6, 5, 5, 2), the model's first convolution takes (N, 2, H, W); give images.permute(0, 3,",
    ),
    "alpha for step": (lambda: BIM(alpha=2 / 255), "an attack has no alpha; give step."),
    "epsilon for eps": (lambda: FGSM(epsilon=8 / 255), "an attack has no epsilon; give eps."),
    "num_steps for steps": (lambda: MI(num_steps=10), "an attack has no num_steps; give steps."),
    "restarts of an attack": (lambda: PGD(restarts=5), "give restarts to rfnlib.transfer.robust_accuracy."),
    "an attack by name": (lambda: robust_accuracy(small(), IMAGES, LABELS, "pgd"), NO_ATTACK.format("'pgd'")),
    "an attack that is not made": (lambda: robust_accuracy(small(), IMAGES, LABELS, PGD), NO_ATTACK.format(PGD)),
    "attack under inference_mode": (torch.inference_mode()(attack_with()), FORBIDDEN),
    "images made under inference_mode": (with_data_of_inference, FORBIDDEN),
}


@pytest.mark.parametrize("name", MISUSE)
def test_misuse_is_a_sentence(name):
    call, said = MISUSE[name]
    with pytest.raises(ValueError) as error:
        call()
    assert said in str(error.value)


def test_a_function_is_a_surrogate_and_a_target():
    model = small()
    expected = BIM(steps=3)(model, IMAGES, LABELS)
    assert torch.equal(BIM(steps=3)(lambda x: model(x), IMAGES, LABELS), expected)
    assert torch.equal(BIM(steps=3)([model, model.forward], IMAGES, LABELS), expected)
    assert torch.equal(BIM(steps=3)(nn.ModuleList([model]), IMAGES, LABELS), expected)
    assert torch.equal(predict(lambda x: model(x), IMAGES), predict(model, IMAGES))


def test_logits_are_picked_from_what_a_model_returns():
    expected = BIM(steps=3)(small(), IMAGES, LABELS)
    for model, pick in ((NAMED, "logits"), (PAIR, 0), (PAIR, lambda returned: returned[0])):
        picked = Logits(model.train(), pick)
        assert torch.equal(BIM(steps=3)(picked, IMAGES, LABELS), expected) and model.training
        assert torch.equal(predict(picked, IMAGES), predict(small(), IMAGES))


def test_an_error_that_no_type_explains_is_the_models_own():
    def own(x):
        raise RuntimeError("mine")

    with pytest.raises(RuntimeError, match="mine"):
        BIM()(own, IMAGES, LABELS)
    with pytest.raises(RuntimeError, match="mat1 and mat2 shapes"):
        BIM()(small(), IMAGES[:, :1], LABELS)


# ----------------------------------------------------------------------------------------------- over a loader


@pytest.mark.parametrize("size", [1, 4, 6])
@pytest.mark.parametrize("attack", [BIM(steps=3), PGD(steps=3, seed=5), PGD(steps=2, norm="l2") | DI()], ids=str)
def test_an_attack_over_a_loader_is_that_of_all_its_images_together(attack, size):
    model, (x, y) = net(), batch()
    loader = DataLoader(TensorDataset(x, y), batch_size=size)
    adversarial, labels = map(torch.cat, zip(*attack.over(model, loader, batch_size=3, progress=False), strict=True))
    assert torch.equal(labels, y)
    assert torch.allclose(adversarial, attack(model, x, y), atol=1e-5)


def test_an_attack_over_a_loader_leaves_the_surrogate_as_it_was_from_batch_to_batch(monkeypatch, capsys):
    monkeypatch.delenv("RFN_QUIET", raising=False)
    monkeypatch.setattr("rfnlib.progress.SECONDS_BETWEEN_LINES", -1.0)
    model = marked()
    before = trace(model)
    loader = [(IMAGES[:2], LABELS[:2]), (IMAGES[2:], LABELS[2:])]
    for _ in PGD(steps=2).over(model, loader):
        after = trace(model)
        assert [k for k in before if not same(before[k], after[k])] == []
    assert "attack:" in capsys.readouterr().out
    assert len(list(BIM(steps=1).over(model, iter(loader)))) == 2, "one that does not know its length"


@pytest.mark.parametrize(
    ("loader", "said"),
    [
        ([IMAGES], "the loader gives a Tensor; give pairs of tensors, (images, labels)."),
        ([(IMAGES, LABELS, LABELS)], "the loader gives a tuple; give pairs"),
        ([{"images": IMAGES}], "the loader gives a dict; give pairs"),
        ([(LEVELS, LABELS)], RANGE),
    ],
    ids=["images", "triples", "dictionaries", "levels"],
)
def test_a_loader_of_something_else_is_refused(loader, said):
    with pytest.raises(AttackError) as error:
        list(BIM(steps=1).over(small(), loader, progress=False))
    assert said in str(error.value)
