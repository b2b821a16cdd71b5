"""What the networks of `rfnlib.models` are made of: normalisation, branches and joints, convolutions, blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ImageShape = tuple[int, int, int]
Body = tuple[list[nn.Module], int]
"""The layers that turn normalised images (B, C, H, W) into vectors (B, D), and D."""


# ------------------------------------------------------------------------------ what every model is


class Normalize(nn.Module):
    """`(x - mean) / std` a channel, for images (B, C, H, W) in [0, 1]; not trainable."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        super().__init__()
        self.register_buffer("mean", torch.tensor(mean, dtype=torch.float32).view(-1, 1, 1))
        self.register_buffer("std", torch.tensor(std, dtype=torch.float32).view(-1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.std


class Network(nn.Module):
    """A classifier in three parts: `normalize`, `body` to one vector an image, `head` to logits."""

    def __init__(self, normalize: Normalize, body: nn.Module, head: nn.Linear):
        super().__init__()
        self.normalize, self.body, self.head = normalize, body, head

    def features(self, x: Tensor) -> Tensor:
        """Penultimate representation (B, D) of images (B, C, H, W) in [0, 1]."""
        return self.body(self.normalize(x))

    def forward(self, x: Tensor) -> Tensor:
        """Logits (B, n_classes) of images (B, C, H, W) in [0, 1]."""
        return self.head(self.features(x))


class Residual(nn.Module):
    """`activation(shortcut(x) + branch(x))`; the shortcut is the identity where shapes allow."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module):
        super().__init__()
        self.branch, self.shortcut, self.activation = branch, shortcut, activation

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.shortcut(x) + self.branch(x))


class Dense(nn.Module):
    """DenseNet's join: the channels of `shortcut(x)`, followed by those of `branch(x)`."""

    def __init__(self, branch: nn.Module):
        super().__init__()
        self.branch, self.shortcut = branch, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shortcut(x), self.branch(x)], dim=1)


class Parallel(nn.ModuleList):
    """Inception's join: the channels of every member's output, in order."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([member(x) for member in self], dim=1)


class MeanPool(nn.Module):
    """The mean over all positions of maps (B, D, H, W) or, with `dims=1`, of tokens (B, N, D)."""

    def __init__(self, dims: int | tuple[int, ...] = (2, 3)):
        super().__init__()
        self.dims = dims

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(self.dims)


# -------------------------------------------------------------------------------- bricks and joints


def fit_strides(plan: Iterable[int], image_shape: ImageShape) -> list[int]:
    """The planned strides, with 1 for those that would leave less than 2x2 positions.

    >>> fit_strides((1, 2, 2, 2), (3, 32, 32)), fit_strides((1, 2, 2, 2), (1, 8, 8))
    ([1, 2, 2, 2], [1, 2, 2, 1])
    """
    side, strides = min(image_shape[1:]), []
    for stride in plan:
        strides.append(stride if side // stride >= 2 else 1)
        side //= strides[-1]
    return strides


def scaled(channels: int, factor: float) -> int:
    """Channels times factor, in the eights that fast kernels like and the full forms consist of."""
    return max(8, 8 * round(channels * factor / 8))


def conv(c_in: int, c_out: int, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    """A convolution without bias that keeps the image's size but for its stride."""
    kind = Sampled if kernel == 1 < stride and c_in < 8 else nn.Conv2d
    return kind(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)


class Sampled(nn.Conv2d):
    """A 1x1 convolution with a stride, as one without on the pixels that it visits.

    The gradient of the former writes out of bounds on processors with AVX2 and no AVX-512, for fewer than 8 channels
    laid out channels last (oneDNN issue 6035).
    """

    def forward(self, x: Tensor) -> Tensor:
        down, right = self.stride
        return F.conv2d(x[:, :, ::down, ::right], self.weight, self.bias, groups=self.groups)


def conv_bn(*args, activation: Callable[[], nn.Module] | None = nn.ReLU, **kwargs) -> list:
    """Convolution (arguments of `conv`), batch norm, activation (None: linear)."""
    layer = conv(*args, **kwargs)
    return [layer, nn.BatchNorm2d(layer.out_channels), *([activation()] if activation else [])]


def bn_relu_conv(c_in: int, *args, **kwargs) -> list:
    """The same in pre-activation order."""
    return [nn.BatchNorm2d(c_in), nn.ReLU(), conv(c_in, *args, **kwargs)]


def projection(c_in: int, c_out: int, stride: int) -> nn.Module:
    """The shortcut of a post-activation residual block."""
    if c_in == c_out and stride == 1:
        return nn.Identity()
    return nn.Sequential(*conv_bn(c_in, c_out, 1, stride, activation=None))


class SqueezeExcite(nn.Module):
    """Channels rescaled by a gate in (0, 1) that sees their spatial means (reduction 16)."""

    def __init__(self, channels: int):
        super().__init__()
        squeezed = max(1, channels // 16)
        self.gate = nn.Sequential(
            MeanPool(),
            nn.Linear(channels, squeezed),
            nn.ReLU(),
            nn.Linear(squeezed, channels),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.gate(x)[:, :, None, None]


# Blocks: (channels in, width, stride) -> (module, channels out)


def basic(c_in: int, width: int, stride: int, *, gate: bool = False) -> tuple[nn.Module, int]:
    """ResNet-18's block, and with `gate` SENet-18's."""
    branch = [*conv_bn(c_in, width, 3, stride), *conv_bn(width, width, activation=None)]
    branch += [SqueezeExcite(width)] if gate else []
    return Residual(nn.Sequential(*branch), projection(c_in, width, stride), nn.ReLU()), width


def bottleneck(c_in: int, width: int, stride: int, *, expansion: int = 4, groups: int = 1) -> tuple[nn.Module, int]:
    """ResNet-50's block, and with `groups` ResNeXt's."""
    c_out = expansion * width
    branch = nn.Sequential(
        *conv_bn(c_in, width, 1),
        *conv_bn(width, width, 3, stride, groups),
        *conv_bn(width, c_out, 1, activation=None),
    )
    return Residual(branch, projection(c_in, c_out, stride), nn.ReLU()), c_out


def preactivated(c_in: int, width: int, stride: int) -> tuple[nn.Module, int]:
    """The block of pre-activation and wide ResNets: nothing follows the sum."""
    rest = [conv(c_in, width, 3, stride), *bn_relu_conv(width, width)]
    first = [nn.BatchNorm2d(c_in), nn.ReLU()]
    if c_in == width and stride == 1:
        return Residual(nn.Sequential(*first, *rest), nn.Identity(), nn.Identity()), width
    # Where shapes change, branch and shortcut both read the activated input: it precedes the fork.
    shortcut = conv(c_in, width, 1, stride)
    return nn.Sequential(*first, Residual(nn.Sequential(*rest), shortcut, nn.Identity())), width


def inverted(c_in: int, width: int, stride: int, *, expansion: int = 6) -> tuple[nn.Module, int]:
    """MobileNetV2's block: wide inside, linear outside; no shortcut where shapes change."""
    inner = expansion * c_in
    branch = nn.Sequential(
        *(conv_bn(c_in, inner, 1, activation=nn.ReLU6) if expansion > 1 else []),
        *conv_bn(inner, inner, 3, stride, inner, activation=nn.ReLU6),
        *conv_bn(inner, width, 1, activation=None),
    )
    if c_in == width and stride == 1:
        return Residual(branch, nn.Identity(), nn.Identity()), width
    return branch, width


def stack(block: Callable, c_in: int, widths: Sequence[int], depths: Sequence[int], strides: Sequence[int]) -> Body:
    """`depths[i]` blocks of `widths[i]` for each stage i, the first of them with `strides[i]`."""
    layers = []
    for width, depth, stride in zip(widths, depths, strides, strict=True):
        for position in range(depth):
            layer, c_in = block(c_in, width, stride if position == 0 else 1)
            layers.append(layer)
    return layers, c_in
