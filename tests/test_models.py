"""The model zoo: published sizes, the contract of `Network`, and what its users lean on."""

from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.func import functional_call

from rfnlib import data, models, training
from rfnlib.bricks import Dense, Network, Residual, Sampled, conv, fit_strides
from rfnlib.models import ARCHITECTURES, build
from rfnlib.specs import Step, TrainSpec

SHAPES = [(3, 32, 32), (1, 8, 8)]
every_arch = pytest.mark.parametrize("arch", ARCHITECTURES)
# One network a family, for what does not depend on depth.
FAMILIES = ["resnet18", "resnet50", "preresnet18", "senet18", "wrn16", "resnext20", "densenet22"]
FAMILIES += ["vgg11", "googlenet", "mobilenetv2", "cnn", "convmixer", "vit"]
each_family = pytest.mark.parametrize("arch", FAMILIES)


def n_parameters(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


@cache
def full(arch: str) -> Network:
    """The full form without its numbers; for looking only."""
    with torch.device("meta"):
        return build(arch)


def small(arch: str, **options) -> Network:
    """A network of width 4 on digits, with the running statistics of some data."""
    torch.manual_seed(0)
    network = build(arch, width=4, **{"image_shape": (1, 8, 8), **options})
    with torch.no_grad():
        network(torch.rand(8, 1, 8, 8))
    return network.eval()


# ------------------------------------------------------------------------------------------- sizes


PUBLISHED = {
    # github.com/kuangliu/pytorch-cifar, whose stem of ResNeXt is 1x1 and not 3x3 (64 x 3 x 8 more
    # weights here), and whose GoogLeNet has a bias before each batch norm (7,904 fewer here).
    "resnet18": 11_173_962,
    "resnet50": 23_520_842,
    "resnext29": 4_774_218 + 64 * 3 * 8,
    "densenet121": 6_956_298,
    "vgg16": 14_728_266,
    "googlenet": 6_166_250 - 7_904,
    # Zagoruyko & Komodakis 2016: 36.5 M; Huang et al. 2017: 0.8 M; Trockman & Kolter 2022: 0.6 M
    "wrn28": 36_479_194,
    "densenet100": 769_162,
    "convmixer": 594_186,
    # ResNet-18 without the batch norms of three shortcuts
    "preresnet18": 11_173_962 - 2 * (128 + 256 + 512),
    # ResNet-18 and two gates a stage, of two biased layers between c and c / 16
    "senet18": 11_173_962 + sum(2 * (c * c // 8 + c // 16 + c) for c in (64, 128, 256, 512)),
}


@pytest.mark.parametrize("arch", PUBLISHED)
def test_full_forms_have_the_published_number_of_parameters(arch):
    assert n_parameters(full(arch)) == PUBLISHED[arch]


IMAGENET_STEM, CIFAR_STEM = 3 * 7 * 7, 3 * 3 * 3  # weights an output channel


@pytest.mark.parametrize(
    ("arch", "peer", "stem"),
    [
        ("resnet18", "resnet18", 64 * (IMAGENET_STEM - CIFAR_STEM)),
        ("resnet50", "resnet50", 64 * (IMAGENET_STEM - CIFAR_STEM)),
        ("resnet101", "resnet101", 64 * (IMAGENET_STEM - CIFAR_STEM)),
        # DenseNet-BC for CIFAR has no batch norm between the stem and the first layer's own
        ("densenet121", "densenet121", 64 * (IMAGENET_STEM - CIFAR_STEM + 2)),
        ("densenet161", "densenet161", 96 * (IMAGENET_STEM - CIFAR_STEM + 2)),
        ("densenet201", "densenet201", 64 * (IMAGENET_STEM - CIFAR_STEM + 2)),
        ("mobilenetv2", "mobilenet_v2", 0),
        ("vgg11", "vgg11_bn", 0),
        ("vgg13", "vgg13_bn", 0),
        ("vgg16", "vgg16_bn", 0),
        ("vgg19", "vgg19_bn", 0),
    ],
)
def test_full_forms_are_torchvisions_but_for_stem_and_head(arch, peer, stem):
    zoo = pytest.importorskip("torchvision.models")
    with torch.device("meta"):
        reference = getattr(zoo, peer)()
    classifier = getattr(reference, "fc", None) or reference.classifier
    expected = n_parameters(reference) - n_parameters(classifier) - stem
    network = full(arch)
    assert n_parameters(network) - n_parameters(network.head) == expected


@every_arch
def test_the_table_states_the_full_size(arch):
    import rfnlib.models

    row = next(r for r in rfnlib.models.__doc__.splitlines() if r.startswith(f"{arch} "))
    assert f" {n_parameters(full(arch)):,} " in row


def test_there_are_at_least_ten_families():
    families = {getattr(make, "func", make) for make in ARCHITECTURES.values()}
    blocks = {getattr(make, "keywords", {}).get("block") for make in ARCHITECTURES.values()}
    assert len(families) + len(blocks) - 1 >= 10  # None and `basic` are one block


@every_arch
def test_width_scales_the_network(arch):
    with torch.device("meta"):
        sizes = [n_parameters(build(arch, width=width)) for width in (8, 16, 24)]
    assert sizes == sorted(set(sizes))


# ---------------------------------------------------------------------------------------- contract


@every_arch
@pytest.mark.parametrize("image_shape", SHAPES)
def test_shapes_of_features_and_logits(arch, image_shape):
    with torch.device("meta"):
        network = build(arch, width=4, n_classes=7, image_shape=image_shape)
        images = torch.rand(2, *image_shape)
        assert network.features(images).shape == (2, network.head.in_features)
        assert network(images).shape == (2, 7)


@each_family
@pytest.mark.parametrize("side", [8, 16, 28, 32])
def test_maps_never_shrink_below_two_by_two(arch, side):
    with torch.device("meta"):
        network = build(arch, width=4, image_shape=(1, side, side))
        sides = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.MaxPool2d | nn.AvgPool2d):
                module.register_forward_hook(lambda _m, _i, out: sides.append(min(out.shape[2:])))
        network(torch.rand(2, 1, side, side))
    assert min(sides) >= 2


def test_strides_follow_the_plan_while_there_is_room():
    assert fit_strides((1, 2, 2, 2), (3, 32, 32)) == [1, 2, 2, 2]
    assert fit_strides((1, 2, 2, 2), (1, 8, 8)) == [1, 2, 2, 1]
    assert fit_strides((2, 2, 2, 2, 2), (3, 32, 64)) == [2, 2, 2, 2, 1]


@each_family
def test_eval_mode_judges_each_image_alone(arch):
    network, images = small(arch), torch.rand(6, 1, 8, 8)
    with torch.no_grad():
        together, alone = network(images), torch.cat([network(image[None]) for image in images])
        torch.testing.assert_close(network.head(network.features(images)), together)
    assert together.isfinite().all() and together.std(0).min() > 0
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-4)


@each_family
def test_double_backward_agrees_with_finite_differences_of_the_gradient(arch):
    network, images = small(arch).double(), torch.rand(4, 1, 8, 8, dtype=torch.float64)
    weights = [p for p in network.parameters() if p.requires_grad]
    labels = torch.arange(4)

    def gradient(create_graph=False):
        loss = nn.functional.cross_entropy(network(images), labels)
        return torch.autograd.grad(loss, weights, create_graph=create_graph)

    direction = [torch.randn_like(w) for w in weights]
    first = gradient(create_graph=True)
    product = torch.autograd.grad(first, weights, direction, allow_unused=True)
    product = [torch.zeros_like(w) if p is None else p for p, w in zip(product, weights, strict=True)]
    assert all(p.isfinite().all() for p in product)
    # A step so short that hardly any ReLU or pooling changes its mind.
    step, ends = 1e-8, []
    for sign in (1, -1):
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.add_(d, alpha=sign * step)
        ends.append(gradient())
        with torch.no_grad():
            for w, d in zip(weights, direction, strict=True):
                w.sub_(d, alpha=sign * step)
    slope = torch.cat([((a - b) / (2 * step)).flatten() for a, b in zip(*ends, strict=True)])
    product = torch.cat([p.flatten() for p in product])
    assert (slope - product).norm() < 1e-3 * product.norm()


@each_family
def test_a_training_step_reaches_every_parameter(arch):
    network = small(arch).to(memory_format=torch.channels_last).train()
    images = torch.rand(8, 1, 8, 8).contiguous(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        loss = nn.functional.cross_entropy(network(images).float(), torch.arange(8))
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in network.parameters())


@pytest.mark.parametrize("arch", ["resnet18", "densenet22", "mobilenetv2", "vit"])
def test_functional_call_uses_the_weights_it_is_given(arch):
    network, images = small(arch), torch.rand(3, 1, 8, 8)
    state = {name: value.clone() for name, value in network.state_dict().items()}
    state["head.weight"].zero_()
    logits = functional_call(network, state, (images,))
    torch.testing.assert_close(logits, state["head.bias"].expand(3, -1))
    assert network(images).std(0).max() > 0


def test_compiled_networks_agree():
    network, images = small("resnet18"), torch.rand(4, 1, 8, 8)
    compiled = torch.compile(network, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(images), network(images))


# ---------------------------------------------------------------------------- inside the networks


@every_arch
def test_nothing_works_in_place_and_nothing_drops_out(arch):
    for module in full(arch).modules():
        assert not getattr(module, "inplace", False)
        assert not isinstance(module, nn.Dropout)


@pytest.mark.parametrize(
    ("arch", "blocks"),
    [("resnet18", 8), ("resnet50", 16), ("preresnet18", 8), ("senet18", 8), ("wrn28", 12)]
    + [("resnext29", 9), ("mobilenetv2", 10), ("densenet100", 48), ("vit", 24), ("vgg16", 0)],
)
def test_blocks_name_their_branch_and_shortcut(arch, blocks):
    found = [m for m in full(arch).modules() if isinstance(m, Residual | Dense)]
    assert len(found) == blocks
    assert all(hasattr(block, "branch") and hasattr(block, "shortcut") for block in found)


def test_residual_block_is_the_activated_sum():
    block = next(m for m in small("resnet18").modules() if isinstance(m, Residual))
    x = torch.randn(2, 4, 8, 8)
    torch.testing.assert_close(block(x), torch.relu(block.shortcut(x) + block.branch(x)))


def test_convolutions_start_from_he_fan_out():
    torch.manual_seed(0)
    weight = build("vgg11", width=32).body[4].weight  # 64 channels out, 3x3
    assert weight.std().item() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.03)


# ---------------------------------------------------------------------- normalisation, seed, errors


def test_normalisation_is_the_first_layer():
    mean, std = [0.1, 0.2, 0.3], [0.4, 0.5, 2.0]
    torch.manual_seed(0)
    network = build("cnn", width=4, mean=mean, std=std).eval()
    images, column = torch.rand(2, 3, 32, 32), (1, 3, 1, 1)
    by_hand = (images - torch.tensor(mean).view(column)) / torch.tensor(std).view(column)
    torch.testing.assert_close(network.normalize(images), by_hand)
    torch.testing.assert_close(network(images), network.head(network.body(by_hand)))
    assert not any(name.startswith("normalize") for name, _ in network.named_parameters())
    assert {"normalize.mean", "normalize.std"} <= set(network.state_dict())


def test_without_moments_images_pass_as_they_are():
    images = torch.rand(2, 1, 8, 8)
    assert torch.equal(small("cnn").normalize(images), images)
    assert torch.equal(small("cnn", mean=0.5, std=2.0).normalize(images), (images - 0.5) / 2)


@each_family
def test_the_global_seed_decides_the_weights(arch):
    one, same = small(arch).state_dict(), small(arch).state_dict()
    assert all(torch.equal(one[name], same[name]) for name in one)
    other = build(arch, width=4, image_shape=(1, 8, 8)).state_dict()
    assert not torch.equal(one["head.weight"], other["head.weight"])


def test_unknown_architectures_are_refused_with_the_names():
    with pytest.raises(ValueError, match="'resnet19'.*resnet18.*vgg16"):
        build("resnet19")
    with pytest.raises(ValueError, match="or register it; 'resnet18' may be meant"):
        build("ResNet-18")


@pytest.mark.parametrize("width", [0, -4, 1.5, True, "16"])
def test_widths_that_are_no_widths_are_refused(width):
    with pytest.raises(ValueError, match="width is .*: give an integer of at least 1"):
        build("cnn", width=width)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_classes": 0}, "n_classes is 0"),
        ({"image_shape": (32, 32)}, r"image_shape is \(32, 32\)"),
        ({"image_shape": (3, 2, 32)}, "a side in image_shape is 2"),
        ({"image_shape": (0, 8, 8)}, "channels in image_shape is 0"),
        ({"mean": [0.5, 0.5]}, r"mean is \[0.5, 0.5\]"),
        ({"mean": float("nan")}, "mean is nan"),
        ({"std": 0.0}, "std is 0.0"),
        ({"std": [1, 1, -1]}, "std is"),
    ],
)
def test_numbers_that_make_no_network_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build("cnn", width=4, **options)


@pytest.mark.parametrize("c_in", [1, 7, 8])
@pytest.mark.parametrize(("stride", "side"), [(2, 8), (2, 7), (3, 8), (2, 1)])
def test_narrow_strided_projections_are_the_convolutions_they_stand_for(c_in, stride, side):
    layer, x = conv(c_in, 5, 1, stride).double(), torch.randn(2, c_in, side, side, dtype=torch.float64)
    assert isinstance(layer, Sampled) == (c_in < 8)
    expected = F.conv2d(x, layer.weight, stride=stride)
    assert layer(x).shape == expected.shape and torch.allclose(layer(x), expected, rtol=1e-12, atol=1e-12)


def tiny(image_shape, *, width=8):
    """An architecture of one's own."""
    layers = [models.conv_bn(image_shape[0], width), [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]]
    return [layer for part in layers for layer in part], width


def test_an_architecture_of_ones_own_trains_from_a_spec_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(models, "ARCHITECTURES", dict(models.ARCHITECTURES))
    models.register("tiny", tiny)
    models.register("tiny", tiny)  # once more does no harm
    digits = data.load("digits").subset(100)
    spec = TrainSpec("digits", "tiny", Step(0.1), epochs=1, n_train=100, width=4, batch=50, stem=2)
    (last,) = training.train(spec, dataset=digits, cache=tmp_path, device="cpu", compile=False, progress=False)
    network = last.load_into(training.network(spec, digits))
    assert network.head.in_features == 4 and network(torch.rand(2, 1, 8, 8)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "layers", "said"),
    [
        ("../x", tiny, "name is '../x'; give letters"),
        (3, tiny, "name is 3"),
        ("resnet18", tiny, "'resnet18' is there already; give another name."),
        ("new", None, "layers of new are None; give a function"),
    ],
)
def test_an_architecture_that_cannot_be_registered_is_refused(name, layers, said):
    with pytest.raises(ValueError, match=said):
        models.register(name, layers)
    assert "new" not in models.ARCHITECTURES
