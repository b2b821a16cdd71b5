r"""A zoo of small-image classifiers, each with a width knob, for surrogates and targets.

>>> surrogate = build("resnet18", width=16)          # a slim ResNet-18 for a laptop
>>> surrogate(torch.rand(8, 3, 32, 32)).shape
torch.Size([8, 10])

Every model is a `Network`: images in [0, 1] are normalised by the first layer, turned into one
vector an image by `features`, and into logits by `head`. A slim model is as deep as its family;
only the channels become fewer. On small images the late strides become 1, so that feature maps
never shrink below 2x2 (`fit_strides`): digits of 1x8x8 pass through the same code as CIFAR's
3x32x32.

============  ============================  ==========  ===========================
name          `width` counts (full form)    parameters  source
============  ============================  ==========  ===========================
resnet18      first stage (64)              11,173,962  He et al. 2016, CVPR
resnet50      first stage, inside (64)      23,520,842  the same
resnet101     first stage, inside (64)      42,512,970  the same
preresnet18   first stage (64)              11,172,170  He et al. 2016, ECCV
senet18       first stage (64)              11,263,042  Hu et al. 2018
wrn16         first group (160)             17,116,634  Zagoruyko & Komodakis 2016
wrn28         first group (160)             36,479,194  the same, WRN-28-10
resnext20     stem, half the inside (64)     3,295,562  Xie et al. 2017
resnext29     stem, half the inside (64)     4,775,754  the same, 32x4d
densenet22    growth rate (12)                  71,686  Huang et al. 2017, BC
densenet40    growth rate (12)                 176,122  the same
densenet100   growth rate (12)                 769,162  the same
densenet121   growth rate (32)               6,956,298  the same
densenet161   growth rate (48)              26,482,378  the same
densenet201   growth rate (32)              18,104,330  the same
vgg11         first stage (64)               9,231,114  Simonyan & Zisserman 2015
vgg13         first stage (64)               9,416,010  the same
vgg16         first stage (64)              14,728,266  the same
vgg19         first stage (64)              20,040,522  the same
googlenet     stem (192)                     6,158,346  Szegedy et al. 2015
mobilenetv2   stem (32)                      2,236,682  Sandler et al. 2018
cnn           first stage (96)               1,370,986  Springenberg et al. 2015
convmixer     all layers (256)                 594,186  Trockman & Kolter 2022
vit           embedding (192)                5,362,378  Touvron et al. 2021, DeiT-Ti
============  ============================  ==========  ===========================

Parameters are counted in the full form, for 3x32x32 images and ten classes. Wrappers that reach
inside (ghost networks, skip gradients) look for `Residual` and `Dense`: both name what they add
`branch` and what they keep `shortcut`. No activation works in place: that would break hooks and
double backward. All but `vit` hold batch norms, VGG, GoogLeNet and All-CNN too.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from rfnlib.bricks import (
    Body,
    Dense,
    ImageShape,
    MeanPool,
    Network,
    Normalize,
    Parallel,
    Residual,
    basic,
    bn_relu_conv,
    bottleneck,
    conv,
    conv_bn,
    fit_strides,
    inverted,
    preactivated,
    scaled,
    stack,
)
from rfnlib.checks import is_whole, meant, require

# ------------------------------------------------------------------------------------- the families


def resnet(image_shape: ImageShape, *, block: Callable = basic, depths: Sequence[int], width: int = 64) -> Body:
    """Four stages of `width`, 2, 4 and 8 times that."""
    widths, strides = [width * 2**i for i in range(4)], fit_strides((1, 2, 2, 2), image_shape)
    layers, dim = stack(block, width, widths, depths, strides)
    # A pre-activation trunk ends in a bare sum, which still needs its norm and ReLU.
    end = [nn.BatchNorm2d(dim), nn.ReLU()] if block is preactivated else []
    start = [conv(image_shape[0], width)] if end else conv_bn(image_shape[0], width)
    return [*start, *layers, *end, MeanPool()], dim


def wide_resnet(image_shape: ImageShape, *, depth: int, width: int = 160) -> Body:
    """Three groups of `width`, 2 and 4 times that, behind a stem of 16 channels."""
    strides, blocks = fit_strides((1, 2, 2), image_shape), (depth - 4) // 6
    layers, dim = stack(preactivated, 16, [width, 2 * width, 4 * width], [blocks] * 3, strides)
    return [conv(image_shape[0], 16), *layers, nn.BatchNorm2d(dim), nn.ReLU(), MeanPool()], dim


def resnext(image_shape: ImageShape, *, depth: int, width: int = 64) -> Body:
    """Three stages; the cardinality shrinks with the width: groups start with 4 channels."""
    groups, blocks = math.ceil(width / 2), (depth - 2) // 9
    block, strides = partial(bottleneck, expansion=2, groups=groups), (1, 2, 2)
    widths = [4 * groups, 8 * groups, 16 * groups]
    layers, dim = stack(block, width, widths, [blocks] * 3, fit_strides(strides, image_shape))
    return [*conv_bn(image_shape[0], width), *layers, MeanPool()], dim


def densenet(image_shape: ImageShape, *, depths: Sequence[int], width: int = 12) -> Body:
    """DenseNet-BC: `width` is the growth rate, transitions halve channels and sides."""
    channels = 2 * width
    layers: list[nn.Module] = [conv(image_shape[0], channels)]
    for depth, stride in zip(depths, fit_strides((1, 2, 2, 2), image_shape), strict=False):
        if len(layers) > 1:
            layers += bn_relu_conv(channels, channels // 2, 1)
            layers += [nn.AvgPool2d(2)] if stride == 2 else []
            channels //= 2
        for _ in range(depth):
            squeeze = bn_relu_conv(channels, 4 * width, 1)
            layers.append(Dense(nn.Sequential(*squeeze, *bn_relu_conv(4 * width, width))))
            channels += width
    return [*layers, nn.BatchNorm2d(channels), nn.ReLU(), MeanPool()], channels


def vgg(image_shape: ImageShape, *, depths: Sequence[int], width: int = 64) -> Body:
    """Five stages, max pooling between them; the last pooling is the mean over what is left."""
    layers, c_in = [], image_shape[0]
    strides = fit_strides((2, 2, 2, 2, 2), image_shape)
    for factor, depth, stride in zip((1, 2, 4, 8, 8), depths, strides, strict=True):
        for _ in range(depth):
            c_out = factor * width
            # Biases are idle before batch norm; kept because the published counts include them.
            layers += [nn.Conv2d(c_in, c_out, 3, padding=1), nn.BatchNorm2d(c_out), nn.ReLU()]
            c_in = c_out
        layers += [nn.MaxPool2d(2)] if stride == 2 else []
    return [*layers, MeanPool()], c_in


INCEPTIONS = (  # 1x1 | 1x1, 3x3 | 1x1, 5x5 | pool, 1x1: channels at the full width, None: pooling
    *((64, 96, 128, 16, 32, 32), (128, 128, 192, 32, 96, 64), None),
    *((192, 96, 208, 16, 48, 64), (160, 112, 224, 24, 64, 64), (128, 128, 256, 24, 64, 64)),
    *((112, 144, 288, 32, 64, 64), (256, 160, 320, 32, 128, 128), None),
    *((256, 160, 320, 32, 128, 128), (384, 192, 384, 48, 128, 128)),
)


def googlenet(image_shape: ImageShape, *, width: int = 192) -> Body:
    """Nine inception blocks with batch norm; two 3x3 convolutions stand for each 5x5."""
    layers, c = conv_bn(image_shape[0], width), width
    strides = iter(fit_strides((2, 2), image_shape))
    for row in INCEPTIONS:
        if row is None:
            layers.append(nn.MaxPool2d(3, next(strides), padding=1))
            continue
        a, b1, b2, c1, c2, d = (scaled(channels, width / 192) for channels in row)
        layers.append(
            Parallel(
                nn.Sequential(*branch)
                for branch in (
                    conv_bn(c, a, 1),
                    conv_bn(c, b1, 1) + conv_bn(b1, b2),
                    conv_bn(c, c1, 1) + conv_bn(c1, c2) + conv_bn(c2, c2),
                    [nn.MaxPool2d(3, 1, padding=1), *conv_bn(c, d, 1)],
                )
            )
        )
        c = a + b2 + c2 + d
    return [*layers, MeanPool()], c


def mobilenetv2(image_shape: ImageShape, *, width: int = 32) -> Body:
    """Inverted residuals; strides in the form usual for 32x32 images."""
    first, *widths = (scaled(c, width / 32) for c in (16, 24, 32, 64, 96, 160, 320))
    head, _ = inverted(width, first, 1, expansion=1)
    strides = fit_strides((1, 2, 2, 1, 2, 1), image_shape)
    layers, c = stack(inverted, first, widths, (2, 3, 4, 3, 3, 1), strides)
    stem = conv_bn(image_shape[0], width, activation=nn.ReLU6)
    end = conv_bn(c, 40 * width, 1, activation=nn.ReLU6)
    return [*stem, head, *layers, *end, MeanPool()], 40 * width


def cnn(image_shape: ImageShape, *, width: int = 96) -> Body:
    """The all-convolutional net (All-CNN-C) with batch norm: strides for pooling, no shortcut."""
    factors, kernels = (1, 1, 1, 2, 2, 2, 2, 2), (3, 3, 3, 3, 3, 3, 3, 1)
    layers, c_in = [], image_shape[0]
    strides = fit_strides((1, 1, 2, 1, 1, 2, 1, 1), image_shape)
    for factor, kernel, stride in zip(factors, kernels, strides, strict=True):
        layers += conv_bn(c_in, factor * width, kernel, stride)
        c_in = factor * width
    return [*layers, MeanPool()], c_in


def convmixer(image_shape: ImageShape, *, depth: int = 8, width: int = 256) -> Body:
    """ConvMixer-256/8: 2x2 patches, then depthwise 5x5 and pointwise layers at one resolution."""
    patch = max(1, min(2, min(image_shape[1:]) // 8))

    def unit(layer: nn.Module) -> nn.Sequential:
        return nn.Sequential(layer, nn.GELU(), nn.BatchNorm2d(width))

    layers = [unit(nn.Conv2d(image_shape[0], width, patch, patch))]
    for _ in range(depth):
        mixing = unit(nn.Conv2d(width, width, 5, padding=2, groups=width))
        layers += [Residual(mixing, nn.Identity(), nn.Identity()), unit(nn.Conv2d(width, width, 1))]
    return [*layers, MeanPool()], width


class Tokens(nn.Module):
    """Images (B, C, H, W) as embedded patches with learnt positions, (B, N, D)."""

    def __init__(self, image_shape: ImageShape, dim: int, patch: int):
        super().__init__()
        channels, height, width = image_shape
        self.embed = nn.Conv2d(channels, dim, patch, patch)
        self.position = nn.Parameter(torch.empty((height // patch) * (width // patch), dim))
        nn.init.normal_(self.position, std=0.02)

    def forward(self, x: Tensor) -> Tensor:
        return self.embed(x).flatten(2).transpose(1, 2) + self.position


class Attention(nn.Module):
    """Self-attention with `heads` heads over tokens (B, N, D)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads, self.head_dim = heads, math.ceil(dim / heads)
        self.qkv = nn.Linear(dim, 3 * heads * self.head_dim)
        self.out = nn.Linear(heads * self.head_dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, self.head_dim)).permute(2, 0, 3, 1, 4)
        # Written out: the fused kernels have no second derivative, which Hessian work needs.
        weights = (q @ k.transpose(-2, -1) * self.head_dim**-0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


def vit(image_shape: ImageShape, *, depth: int = 12, width: int = 192) -> Body:
    """A DeiT-Ti with 8x8 patches an image, mean pooling for the class token, and no dropout."""
    layers: list[nn.Module] = [Tokens(image_shape, width, max(1, min(image_shape[1:]) // 8))]
    for _ in range(depth):
        mlp = [nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width)]
        for branch in ([Attention(width, heads=3)], mlp):
            branch = nn.Sequential(nn.LayerNorm(width), *branch)
            layers.append(Residual(branch, nn.Identity(), nn.Identity()))
    return [*layers, nn.LayerNorm(width), MeanPool(1)], width


ARCHITECTURES: dict[str, Callable[..., Body]] = {
    "resnet18": partial(resnet, depths=(2, 2, 2, 2)),
    "resnet50": partial(resnet, block=bottleneck, depths=(3, 4, 6, 3)),
    "resnet101": partial(resnet, block=bottleneck, depths=(3, 4, 23, 3)),
    "preresnet18": partial(resnet, block=preactivated, depths=(2, 2, 2, 2)),
    "senet18": partial(resnet, block=partial(basic, gate=True), depths=(2, 2, 2, 2)),
    "wrn16": partial(wide_resnet, depth=16),
    "wrn28": partial(wide_resnet, depth=28),
    "resnext20": partial(resnext, depth=20),
    "resnext29": partial(resnext, depth=29),
    "densenet22": partial(densenet, depths=(3, 3, 3)),
    "densenet40": partial(densenet, depths=(6, 6, 6)),
    "densenet100": partial(densenet, depths=(16, 16, 16)),
    "densenet121": partial(densenet, depths=(6, 12, 24, 16), width=32),
    "densenet161": partial(densenet, depths=(6, 12, 36, 24), width=48),
    "densenet201": partial(densenet, depths=(6, 12, 48, 32), width=32),
    "vgg11": partial(vgg, depths=(1, 1, 2, 2, 2)),
    "vgg13": partial(vgg, depths=(2, 2, 2, 2, 2)),
    "vgg16": partial(vgg, depths=(2, 2, 3, 3, 3)),
    "vgg19": partial(vgg, depths=(2, 2, 4, 4, 4)),
    "googlenet": googlenet,
    "mobilenetv2": mobilenetv2,
    "cnn": cnn,
    "convmixer": convmixer,
    "vit": vit,
}
"""Name -> the function that makes the layers from an image shape and a `width`."""

PATCHED = ("convmixer", "vit")  # their first convolution cuts the image into patches


def register(name: str, layers: Callable[..., Body]) -> None:
    """Let specs and `build` know an architecture by its name.

    >>> register("linear", lambda image_shape, width=0: ([nn.Flatten()], math.prod(image_shape)))  # doctest: +SKIP
    >>> spec = TrainSpec("digits", "linear", Step(0.1), epochs=10)  # doctest: +SKIP

    Args:
        name: letters, digits, hyphens and underscores, free in `ARCHITECTURES`.
        layers: a function from (C, H, W) and the keyword `width`, with the full form as its default, to the layers
            that turn images into one vector each, and the length of that vector.

    Raises:
        ValueError: another kind of name, or one that is taken.
    """
    plain = isinstance(name, str) and name.replace("-", "").replace("_", "").isalnum()
    require(plain, f"the architecture's name is {name!r}; give letters, digits, hyphens and underscores.")
    require(callable(layers), f"the layers of {name} are {layers!r}; give a function that makes them.")
    free = ARCHITECTURES.get(name, layers) is layers
    require(free, f"the architecture {name!r} is there already; give another name.")
    ARCHITECTURES[name] = layers


def require_known(arch: str) -> None:
    """Raise `ValueError` unless `arch` is a name in `ARCHITECTURES`."""
    known = f"choose one of {', '.join(sorted(ARCHITECTURES))}, or register it{meant(arch, ARCHITECTURES)}"
    require(arch in ARCHITECTURES, f"unknown architecture {arch!r}: {known}.")


def build(
    arch: str,
    *,
    width: int | None = None,
    stem: int = 1,
    n_classes: int = 10,
    image_shape: ImageShape = (3, 32, 32),
    mean: float | Sequence[float] | None = None,
    std: float | Sequence[float] | None = None,
) -> Network:
    """A freshly initialised network, a function of torch's global seed alone.

    Convolutions start from He et al. (2015), fan-out; all else from PyTorch's defaults.

    Args:
        arch: a name in `ARCHITECTURES`.
        width: channels that the module's table says; None: the full published form.
        stem: stride of the first convolution. 2 halves the image before anything else is computed, at about a quarter
            of the cost; 1 is the usual form for small images. ConvMixer and ViT, which begin with patches, take 1
            alone.
        n_classes: the number of logits.
        image_shape: (C, H, W) of the images to come, sides of at least 4 pixels.
        mean, std: of the pixels, in units of [0, 1], a channel or for all; None: 0 and 1.

    Raises:
        ValueError: an unknown name, or numbers that make no network.
    """
    require_known(arch)
    if width is not None:
        _require_count("width", width, "or None for the full published form")
    _require_count("n_classes", n_classes, "the number of labels of the data")
    if len(image_shape) != 3:
        raise ValueError(f"image_shape is {image_shape!r}: give (channels, height, width).")
    _require_count("the number of channels in image_shape", image_shape[0], "such as 1 or 3")
    for side in image_shape[1:]:
        _require_count("a side in image_shape", side, "resize smaller images", least=4)

    normalize = Normalize(
        _per_channel("mean", 0.0 if mean is None else mean, image_shape[0]),
        _per_channel("std", 1.0 if std is None else std, image_shape[0], positive=True),
    )
    _require_count("stem", stem, "the stride of the first convolution")
    if stem > 1 and (arch in PATCHED or min(image_shape[1:]) // stem < 4):
        few = "begins with patches" if arch in PATCHED else f"would see less than 4x4 pixels of {image_shape}"
        raise ValueError(f"stem is {stem}, but {arch} {few}: give 1.")
    c, *sides = image_shape
    inner = (c, *(-(-side // stem) for side in sides))
    layers, dim = ARCHITECTURES[arch](inner, **({} if width is None else {"width": width}))
    if stem > 1:
        first = next(m for layer in layers for m in layer.modules() if isinstance(m, nn.Conv2d))
        first.stride = (stem, stem)
    network = Network(normalize, nn.Sequential(*layers), nn.Linear(dim, n_classes))
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return network


def _require_count(name: str, value: object, way_out: str, least: int = 1) -> None:
    if not is_whole(value, least):
        raise ValueError(f"{name} is {value!r}: give an integer of at least {least}, {way_out}.")


def _per_channel(name: str, value, channels: int, positive: bool = False) -> list[float]:
    values = [value] * channels if isinstance(value, int | float) else [float(v) for v in value]
    usable = all(math.isfinite(v) and (v > 0 or not positive) for v in values)
    if len(values) != channels or not usable:
        kind = "positive number" if positive else "finite number"
        raise ValueError(f"{name} is {value!r}: give one {kind}, or {channels}, one a channel.")
    return values
