"""Folded batch norms: the same function at every place, on nothing that could tell, and gone without a trace."""

import math

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from rfnlib import attacks, data, models, transfer
from rfnlib.attacks import BIM, DI, FGSM, MI, PGD, VMI, AttackError, frozen
from rfnlib.folding import absorbed, folded, pairs
from rfnlib.surrogates import Cycle, Ensemble, GhostNetwork, SkipGradient

WIDTH = {"mobilenetv2": 8, "convmixer": 8, "vit": 6, "vgg11": 4, "googlenet": 24, "cnn": 4}
X = torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def settled(model: nn.Module, shape=(3, 8, 8)) -> nn.Module:
    """`model` in float64, all of its BatchNorm's numbers drawn, in eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model.double().train()
        for _ in range(3):
            model(torch.rand(8, *shape, dtype=torch.float64))
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) and m.affine:
                nn.init.uniform_(m.weight, 0.5, 1.5)
                nn.init.normal_(m.bias)
    return model.eval().requires_grad_(False)


def zoo(arch: str) -> nn.Module:
    return settled(models.build(arch, width=WIDTH.get(arch, 2), image_shape=(3, 8, 8)))


def is_folded(norm: nn.Module) -> bool:
    return "forward" in vars(norm)


def how_many(*surrogates, images=X) -> int:
    """How many norms are folded; meanwhile the logits are the same, and afterwards all is as it was."""
    inside = {m for s in surrogates if isinstance(s, nn.Module) for m in s.modules()}
    state = [(m, dict(vars(m)), dict(m._parameters), dict(m._buffers)) for m in inside]
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        before, drawn = [s(images) for s in surrogates], torch.get_rng_state()
        torch.manual_seed(1)
        with folded(surrogates, images):
            count = sum(map(is_folded, inside))
            after = [s(images) for s in surrogates]
        assert torch.equal(torch.get_rng_state(), drawn), "looking at the networks draws nothing"
    assert all(torch.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(after, before, strict=True))
    for m, attributes, parameters, buffers in state:
        assert vars(m).keys() == attributes.keys()
        assert all(m._parameters[k] is v for k, v in parameters.items())
        assert all(m._buffers[k] is v for k, v in buffers.items())
    return count


# ------------------------------------------------------------------------------------------ what is folded


@pytest.mark.parametrize("arch", models.ARCHITECTURES)
def test_all_norms_that_follow_a_convolution_are_folded(arch):
    model = zoo(arch)
    # Counted by another rule than the library's; only the stem of wide ResNets has its norm in a sequence of its own.
    neighbours = int(arch.startswith("wrn"))
    for m in model.modules():
        layers = list(m) if type(m) is nn.Sequential else []
        follows = zip(layers, layers[1:], strict=False)
        neighbours += sum(isinstance(a, nn.Conv2d) and isinstance(b, nn.BatchNorm2d) for a, b in follows)
    assert how_many(model) == len(pairs(model)) == neighbours
    assert (neighbours > 0) == (arch not in ("convmixer", "vit"))


def test_networks_that_name_their_layers_as_torchvision_does_are_folded_too():
    for build, norms in ((torchvision.models.resnet18, 20), (torchvision.models.mobilenet_v3_small, 34)):
        model = settled(build(num_classes=7), (3, 32, 32))
        assert how_many(model, images=torch.rand(2, 3, 32, 32, dtype=torch.float64)) == norms


def test_linear_layers_are_folded_and_so_are_layers_with_biases_and_norms_without_weights():
    last = nn.BatchNorm1d(3, affine=False)
    layers = nn.Linear(192, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3, bias=False), last
    assert how_many(settled(nn.Sequential(nn.Flatten(), *layers))) == 2
    around = nn.Conv2d(3, 4, 3, padding="same", padding_mode="circular")
    assert how_many(settled(nn.Sequential(around, nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(256, 3)))) == 1


def test_folded_weights_are_the_closed_form_in_their_type_and_layout():
    layer, norm = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)
    norm.running_mean.copy_(torch.arange(4.0))
    norm.running_var.copy_(torch.tensor([0.5, 1.0, 2.0, 4.0]))
    nn.init.constant_(norm.weight, 3.0)
    weight, bias = absorbed(layer, norm)
    s = torch.tensor([3 / math.sqrt(v + norm.eps) for v in (0.5, 1.0, 2.0, 4.0)])
    assert torch.allclose(weight, s[:, None, None, None] * layer.weight)
    assert torch.allclose(bias, s * (layer.bias - torch.arange(4.0)))
    assert weight.is_contiguous(memory_format=torch.channels_last) and not layer.weight.is_contiguous(
        memory_format=torch.channels_last
    )
    assert {t.dtype for t in absorbed(layer.half(), norm)} == {torch.float16}


def test_members_of_cycles_and_ensembles_are_folded_each_once():
    a, b = zoo("cnn"), zoo("resnet18")
    with folded([Cycle([a, Ensemble([b, a])]), b], X):
        assert sum(map(is_folded, [*a.modules(), *b.modules()])) == 8 + 20


# ------------------------------------------------------------------------------------- what is left alone


class Named(nn.Module):
    """Layers that `forward` calls as `how` says."""

    def __init__(self, how):
        super().__init__()
        self.conv, self.norm, self.how = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), how
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.how(self, x).mean((2, 3)))


def by_value(m, x):
    return m.norm(m.conv(x)) if float(x.detach().sum()) > -1 else x


def drawn(m, x):
    return m.norm(m.conv(x + 0.1 * torch.randn(1, 3, 1, 1, dtype=x.dtype)))


CASES = {
    "in order": (lambda m, x: m.norm(m.conv(x)), 1),
    "what it draws is drawn alike": (drawn, 1),
    "the convolution is looked at": (lambda m, x: m.norm(z := m.conv(x)) + z, 0),
    "the convolution is used twice": (lambda m, x: m.norm(m.conv(x)) + m.conv(x), 0),
    "the norm is used twice": (lambda m, x: m.norm(m.norm(m.conv(x))), 0),
    "something stands between": (lambda m, x: m.norm(F.relu(m.conv(x))), 0),
    "the weight is used elsewhere": (lambda m, x: m.norm(m.conv(x)) * m.conv.weight.mean(), 0),
    "the norm comes first": (lambda m, x: m.conv(F.pad(m.norm(F.pad(x, (0, 0, 0, 0, 0, 1))), (0,) * 4)[:, :3]), 0),
    "control flow hides the order": (by_value, 0),
}


@pytest.mark.parametrize("case", CASES)
def test_named_layers_are_folded_where_nothing_else_sees_what_they_return(case):
    how, norms = CASES[case]
    assert how_many(settled(Named(how))) == norms


def sequence() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4))


class Hidden(nn.Module):
    """A sequence behind control flow by values, which no trace passes."""

    def __init__(self, taps=False):
        super().__init__()
        self.layers, self.taps, self.calls = sequence(), taps, []

    def forward(self, x):
        self.calls.append(len(x))
        if float(x.detach().sum()) < -1:
            return x
        seen = []
        for layer in self.layers:
            seen.append(x := layer(x))
        return (seen[-2] + seen[-1] if self.taps else seen[-1]).mean((2, 3))


def test_behind_control_flow_neighbours_in_a_sequence_are_folded_unless_logits_tell():
    assert how_many(settled(Hidden())) == 2
    assert how_many(settled(Hidden(taps=True))) == 0


def test_what_a_network_does_beside_its_logits_is_done_as_often_as_without():
    model, (x, y) = settled(Hidden()), (X, torch.zeros(4, dtype=torch.int64))
    model.calls.clear()
    BIM(steps=7)(model, x, y)
    assert model.calls == [4] * 7


def changed(change):
    model = settled(sequence().append(nn.Flatten()))
    return change(model) or model


def parametrized(model):
    nn.utils.parametrizations.weight_norm(model[0])


ALONE = {
    "norms in training mode": lambda model: [m.train() for m in model] and None,
    "a hook": lambda model: model[1].register_forward_hook(lambda *a: None) and None,
    "a hook before": lambda model: model[0].register_forward_pre_hook(lambda *a: None) and None,
    "a backward hook": lambda model: model.register_full_backward_hook(lambda *a: None) and None,
    "compiled": lambda model: torch.compile(model, backend="eager"),
    "compiled inside": lambda model: model[2].compile(backend="eager"),
    "a forward of its own": lambda model: (
        setattr(model[0], "forward", model[0].forward) or setattr(model[2], "forward", model[2].forward)
    ),
    "scripted": lambda model: torch.jit.trace(model, X),
    "a function": lambda model: lambda x: model(x),
}


@pytest.mark.filterwarnings("ignore:.torch.jit:DeprecationWarning")
@pytest.mark.parametrize("case", ALONE)
def test_a_network_is_left_alone_with(case):
    model = changed(ALONE[case])
    names = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] if isinstance(model, nn.Module) else []
    with folded([model], X):
        assert not any(map(is_folded, names))


def test_layers_of_a_class_or_with_weights_of_their_own_are_left_alone():
    model = changed(parametrized)
    with folded([model], X):
        assert not is_folded(model[1])

    class Mine(nn.Conv2d):
        def forward(self, x):
            return 2 * super().forward(x)

    model = settled(nn.Sequential(Mine(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    assert how_many(model) == 0


def test_layers_that_two_networks_share_are_left_alone():
    conv = nn.Conv2d(3, 4, 3)
    a, b = (settled(nn.Sequential(conv, nn.BatchNorm2d(4), nn.Flatten())) for _ in range(2))
    assert how_many(a, b) == 0 and how_many(a) == 1
    c = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()))
    c[0].weight = conv.weight  # a layer of its own, with another's weight
    assert how_many(a, c) == 0


@pytest.mark.parametrize("wrapper", [GhostNetwork, SkipGradient])
def test_networks_that_a_surrogate_hooks_are_left_alone_beside_it_too(wrapper):
    model = zoo("resnet18")
    for surrogate in ([wrapper(model)], [wrapper(model), model], [Cycle([model, wrapper(model)])]):
        with folded(surrogate, X):
            assert not any(map(is_folded, model.modules()))


def test_a_fold_that_overflows_is_not_made():
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten())).half()
    assert how_many_half(model) == 1
    model[1].running_var.fill_(0)
    model[1].running_mean.fill_(6e4)
    assert how_many_half(model) == 0


def how_many_half(model) -> int:
    with folded([model], X.half()):
        return sum(map(is_folded, model.modules()))


# --------------------------------------------------------------------------------------------- in attacks


@pytest.fixture(scope="module")
def fitted():
    """A network that has learnt digits, and images of them."""
    digits = data.load("digits")
    x, y = data.to_float(digits.train_images), digits.train_labels
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = models.build("resnet18", width=8, image_shape=(1, 8, 8), mean=digits.mean, std=digits.std)
        optimizer = torch.optim.SGD(model.parameters(), 0.05, momentum=0.9)
        for _ in range(60):
            at = torch.randint(len(y), (64,))
            optimizer.zero_grad()
            F.cross_entropy(model(x[at]), y[at]).backward()
            optimizer.step()
    return model.eval(), data.to_float(digits.test_images), digits.test_labels


RADII = {"linf": 0.1, "l2": 0.8}


@pytest.mark.parametrize("norm", RADII)
@pytest.mark.parametrize("preset", [BIM, PGD, MI, VMI, DI])
def test_adversarial_images_are_those_of_the_network_as_it_is_but_for_rounding(fitted, monkeypatch, norm, preset):
    model, x, y = fitted
    attack = preset(RADII[norm], norm=norm, steps=4 if preset is VMI else 10)
    with_folds = attack(model, x, y)
    monkeypatch.setattr(attacks, "WORTH_FOLDING", math.inf)
    without = attack(model, x, y)
    # A pixel whose gradient is as small as its rounding error may go the other way; in l2, a ReLU that turns moves all.
    assert ((with_folds - without).abs() < 1e-3).float().mean() > (0.999 if norm == "linf" else 0.995)
    hits, expected = (transfer.predict(model, adv) != y for adv in (with_folds, without))
    assert torch.equal(hits, expected) and 0.1 < float(expected.float().mean()) < 1


def test_attacks_fold_where_it_pays_and_ask_for_no_gradient_of_folded_weights(fitted):
    model, x, y = fitted
    norm, seen = model.body[1], []

    def watching(logits, labels):
        seen.append((is_folded(norm), any(p.requires_grad for p in model.parameters())))
        return attacks.cross_entropy(logits, labels)

    for attack, expected in ((FGSM(loss=watching), False), (BIM(steps=5, loss=watching), True)):
        seen.clear()
        attack(model.train(), x[:4], y[:4])
        assert set(seen) == {(expected, False)}
        assert not is_folded(norm) and norm.training and all(p.requires_grad for p in model.parameters())


def test_an_attack_that_fails_leaves_no_fold_behind(fitted):
    model, x, y = fitted
    before = {name: id(p) for name, p in model.named_parameters()}

    def fails(logits, labels):
        assert is_folded(model.body[1])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        BIM(loss=fails)(model, x[:4], y[:4])
    assert {name: id(p) for name, p in model.named_parameters()} == before
    assert not any(map(is_folded, model.modules()))


def test_training_on_adversarial_images_stays_on_networks_as_they_are(fitted):
    model, x, y = fitted

    def watching(logits, labels):
        assert not is_folded(model.body[1])
        return attacks.cross_entropy(logits, labels)

    with frozen([model]):
        adv = PGD(steps=7, loss=watching).perturbed([model], x[:4], y[:4])
    assert adv.shape == x[:4].shape
    with pytest.raises(AttackError, match="not finite"), frozen([model]):
        BIM(steps=1, loss=lambda z, y: z.sum(1) * math.inf).perturbed([model], x[:4], y[:4])
