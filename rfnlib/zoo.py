"""Released weights: networks in half precision, small enough to be committed, and named by the digest of what they are.

Every network is measured after rounding, so that records are about these very weights wherever they are read. A target
is put here as soon as it is trained, a surrogate by `Lab.release`.

>>> network = load("smoke/vgg11-w8-onecycle-s1000")
>>> network(torch.rand(2, 1, 8, 8)).shape
torch.Size([2, 10])
"""

from __future__ import annotations

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from rfnlib import data, keys, models, paths, scales, snapshots
from rfnlib.outside import Outside
from rfnlib.recipes import Recipe
from rfnlib.specs import TrainSpec, parse
from rfnlib.transforms import named

Weights = dict[str, Tensor]


class NotReleased(LookupError):
    """A network that is not among the released ones."""


def rounded(weights: Weights) -> Weights:
    """Floating-point weights to half precision and back; a tensor that half precision cannot hold stays as it is."""
    return {name: _half(value).to(value.dtype) for name, value in weights.items()}


def _half(value: Tensor) -> Tensor:
    half = value.half() if value.is_floating_point() else value
    return half if half.isfinite().all() else value


def path_of(
    folder: Path, spec: TrainSpec | Outside, iteration: int | None = None, name: str = "", recipe: Recipe | None = None
) -> Path:
    """The file of `spec`'s network after `iteration` steps (None: the last) in `folder`, there or not.

    Args:
        name: what it is called where it is not there yet; empty: after the spec.
        recipe: what the network is made by of the run's weights; None: they are its own.
    """
    made = [named(recipe)] if recipe else []
    key = keys.key("released", spec.key(), iteration, *made) if made or iteration is not None else spec.key()
    there = next(folder.glob(f"*-{key}.safetensors"), None)
    return there or folder / f"{name or spec.short_name}-{key}.safetensors"


def files(scale: str, root: Path | None = None) -> dict[str, Path]:
    """The released networks of a scale by name, in the order of names.

    Args:
        root: the folder of the scales' folders; None: the project's.

    Raises:
        ValueError: no scale of that name.
    """
    folder = (root or paths.weights_dir()) / scale
    if not folder.is_dir():
        scales.get(scale)  # a scale of which nothing is released has no files; what is no scale is refused
    return {path.stem.rpartition("-")[0]: path for path in sorted(folder.glob("*.safetensors"))}


def none_in(folder: Path) -> str:
    """To whoever finds nothing released in `folder`: where it was looked for, and how to name another place."""
    return f"there is none in {folder}; outside a checkout, name its folder data/weights in RFN_WEIGHTS"


def size(network: nn.Module) -> int:
    """Bytes of the file of `network`'s weights, about: two a number, and a line about each tensor."""
    return sum(2 * value.numel() + 120 for value in network.state_dict().values())


def load(name: str, root: Path | None = None) -> nn.Module:
    """A released network, such as "laptop/rfn-0", in eval mode, from images in [0, 1] to logits.

    Its file holds the digest of its weights, which are compared with it; no data set is needed.

    Args:
        name: scale and network; of a long name its first parts do, up to a hyphen, where no other begins so.

    Raises:
        NotReleased: there is none of that name, or more than one.
        DamagedSnapshot: the file was altered since it was written.
    """
    top = root or paths.weights_dir()
    scale, _, called = name.partition("/")
    known = files(scale, top) if (top / scale).is_dir() else {}
    found = [called] if called in known else [n for n in known if n.startswith(f"{called}-")]
    if len(found) != 1:
        what = f"{len(found)} networks are called {name}-…" if found else f"no network {name!r} is released"
        near = [f"{scale}/{n}" for n in found or get_close_matches(called, known, 3, 0.0)]
        rest = f" (the card of {scale} scale lists all {len(known)})" if len(near) < len(known) else ""
        there = sorted({path.parent.name for path in top.glob("*/*.safetensors")})
        other = f"give SCALE/NAME, scales being {', '.join(there)}" if there else none_in(top)
        one = f"give one of {', '.join(near)}{rest}"
        raise NotReleased(f"{what}; {one if known else other}.")
    weights, about = read(known[found[0]])
    return built(parse(about["spec"]), weights)


def built(spec: TrainSpec, weights: Weights) -> nn.Module:
    """The network of `spec` with `weights`, which hold the mean and deviation of its images too, in eval mode."""
    c, h, w = data.image_shape(spec.data)
    with torch.random.fork_rng(devices=[]):
        network = models.build(spec.arch, width=spec.width, stem=spec.stem, image_shape=(c, h, w),
                               n_classes=len(weights["head.bias"]))  # fmt: skip
    network.load_state_dict(weights)
    return network.eval()


def obtain(
    folder: Path, spec: TrainSpec, trained: Callable[[], tuple[Weights, dict[str, Any]]], name: str = ""
) -> tuple[Weights, dict[str, Any]]:
    """The released weights of `spec`'s last network in float32, and what their file says about them.

    Args:
        trained: gives weights and facts about them where nothing is released; they are rounded and written.
        name: see `path_of`.

    Raises:
        DamagedSnapshot: the file was altered since it was written.
    """
    path = path_of(folder, spec, name=name)
    if not path.exists():
        weights, about = trained()
        write(path, weights, spec=spec.describe(), **about)
    return read(path)


def write(path: Path, weights: Weights, **about: Any) -> None:
    """Write `weights`, rounded, to `path`, with more about them that is JSON."""
    halves = {name: _half(value) for name, value in weights.items()}
    snapshots.write(path, halves, "released", path.stem, **about)


def read(path: Path) -> tuple[Weights, dict[str, Any]]:
    """The weights at `path` in float32, and what the file says about them.

    Raises:
        DamagedSnapshot: it was altered since it was written, or is another one under this name.
    """
    halves, about = snapshots.read(path, "released", path.stem)
    return {k: v.to(torch.float32) if v.dtype == torch.float16 else v for k, v in halves.items()}, about
