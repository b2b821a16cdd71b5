"""Data sets that hold chosen features only, after Ilyas et al. (2019, NeurIPS).

>>> robust = robust_dataset(adversarially_trained, cifar10, kind="robust")        # D_R  # doctest: +SKIP
>>> non_robust = robust_dataset(standard, cifar10, kind="non-robust")             # D_NR  # doctest: +SKIP
>>> train(TrainSpec(robust.name, "resnet18", Step(0.1, (50, 100)), 150), dataset=robust)  # doctest: +SKIP

========================  ==========================================================  ==============
function                  image (of x with the label y)                               its label
========================  ==========================================================  ==============
`robust_dataset`          an unrelated image, moved until the model sees in it        y
                          the features it sees in x
`random_label_dataset`    x, moved within a small ball towards a random class t       t
`next_label_dataset`      x, moved within a small ball towards the next class t       t = y + 1 mod K
========================  ==========================================================  ==============

What the model does not see is gone from D_R. From an adversarially trained model it keeps robust features alone;
from a standard one (D_NR) those that this model uses, under images that look like something else. In D_rand and
D_det what people see contradicts the label, so that only non-robust features can be learnt.

All of them replace the training set and keep the test set, the order of the images and the normalisation. Images
are rounded to uint8, each pixel by up to 1/510, so that one at the edge of an l2 ball can end up to √(C·H·W)/510
outside. A chunk of images is written as soon as it is made, under the key of all that makes it: an interrupted
construction goes on where it was, and a finished one is read. On the same processor it ends with the same bits; on a
GPU as far as its kernels repeat themselves. What computed a chunk is in its metadata, and not in the key.

Give `TrainSpec` the name of the built set, as above: it holds the key, so that runs on different sets never meet.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from rfnlib import execution
from rfnlib.attacks import IterativeAttack, frozen
from rfnlib.built import CHUNK, Tick, built, digest_of, model_digest, require
from rfnlib.checks import is_number, is_whole
from rfnlib.data import Dataset, to_float
from rfnlib.keys import key
from rfnlib.specs import FeatureSet
from rfnlib.transforms import norms

BEYOND_CHANCE = 1e-6  # starting images are refused if so strong a tie to the labels is less likely than this

Layer = str | Callable[[nn.Module, Tensor], Tensor] | None


# --- the three data sets -----------------------------------------------------------------------------------


def robust_dataset(
    model: nn.Module,
    data: Dataset,
    *,
    layer: Layer = None,
    starts: Tensor | None = None,
    steps: int = 1000,
    step: float = 0.1,
    seed: int = 0,
    kind: str = "robust",
    precision: str = "fp32",
    compile: bool | str = "auto",
    **how: Any,
) -> Dataset:
    """D_R or D_NR: for every training image x an unrelated image that has its features, with its label.

    x_r = argmin ‖g(x_r) − g(x)‖₂ from x₀, another training image drawn at random, by `invert`; g are the features.
    That costs `steps` forward-backward passes an image.

    Args:
        model: trained adversarially for D_R, without for D_NR; on the device to compute on, left as it was.
        layer: None: the model's `features`; the name of the submodule whose output g is; or a function of the model
            and images, defined in a module so that it has a name to be known by (its code is not looked at).
        starts: x₀ by choice: int64 (N,), indices of training images, or uint8 images of the shape of the training
            set. None: for each image one of the others, drawn by `seed`.
        steps, step: see `invert`. The defaults are those of public reconstructions of the paper's appendix C.
        seed: of the draw of the starting images; without effect, and hence not allowed, if `starts` are given.
        kind: goes into the name of the data set.
        precision: "fp32" or "bf16", which is faster on a GPU and blurs the last features.
        compile: whether to compile the model: "auto" (see `execution.choose`), True or False.
        how: `chunk`, `cache`, `progress`, `tick`, as in `random_label_dataset`.

    Raises:
        FeatureError: no feature layer, too few images, starting images tied to the labels of the images.
        DamagedFeatures: a damaged file in the cache.
        DiskFull: no room for a chunk; those before are kept.
    """
    _check_images(data)
    require(is_whole(steps, 1), f"steps is {steps!r}; give an integer of at least 1.")
    positive = is_number(step) and step > 0
    require(positive, f"step is {step!r}; give a positive length in units of [0, 1] pixels, such as 0.1.")
    require(starts is None or seed == 0, f"seed is {seed}, but starts are given, which need none; give one of them.")
    device = _device(model)
    chosen = execution.resolve(device.type, precision, compile, False)
    features = Features(model, layer)
    began = _starts(data, starts, seed)
    settings = {
        "set": "inverted features", "model": model_digest(model), "layer": features.name, "data": data.digest,
        "starts": digest_of([began]), "steps": steps, "step": step, "precision": chosen.precision,
    }  # fmt: skip

    @functools.cache  # not before there is something to build
    def fast() -> nn.Module:
        some = to_float(data.train_images[: how.get("chunk", CHUNK)].to(device))
        work = steps * len(data.train_labels)
        return execution.choose(chosen, features, some, work, how.get("cache")).compiled(features)

    def g(x: Tensor) -> Tensor:
        with chosen.autocast():
            return fast()(x).float()

    def make(span: slice, tick: Tick) -> Tensor:
        x, start = to_float(data.train_images[span].to(device)), to_float(began[span].to(device))
        with frozen([features]):
            made = invert(g, x, start, steps, step, tick)
        finite = bool(made.isfinite().all())
        require(finite, "the features or their gradient are not finite; give another model, or precision='fp32'.")
        return made

    with frozen([features]), torch.no_grad():
        features(to_float(data.train_images[:2].to(device)))  # fails before anything long has begun
    return built(data, kind, settings, data.train_labels, make, ticks=steps, **how)


def build(wanted: FeatureSet, model: nn.Module, data: Dataset, **how: Any) -> Dataset:
    """The data set that `wanted` describes, from `model`, the last network of `wanted.model`'s run.

    Args:
        how: `cache` and the like, as the function of each kind takes them.
    """
    how |= {"steps": wanted.steps, "step": wanted.step, "kind": wanted.name.replace("_", "-")}
    if wanted.method == "inverted":
        return robust_dataset(model, data, seed=wanted.seed, **how)
    if wanted.method == "next-label":
        return next_label_dataset(model, data, eps=wanted.eps, **how)
    return random_label_dataset(model, data, eps=wanted.eps, seed=wanted.seed, **how)


def random_label_dataset(
    model: nn.Module,
    data: Dataset,
    *,
    eps: float = 0.5,
    step: float = 0.1,
    steps: int = 100,
    seed: int = 0,
    kind: str = "random-label",
    **how: Any,
) -> Dataset:
    """D_rand: every training image moved towards a class drawn uniformly from all, which becomes its label.

    By targeted PGD in the l2 ball of radius `eps` around the image, from the image, on `model` (a standard one).
    The defaults are those of public reconstructions of the paper. The class is independent of the image's own,
    and is the same by chance for one in K.

    Args:
        how: `chunk`, images made and written together (500); `cache`, the folder of the cache (the project's);
            `progress` (True); `tick`, called after every chunk is written, which may raise to stop in time.

    Raises:
        AttackError: a negative radius and the like.
        FeatureError, DamagedFeatures, DiskFull: as in `robust_dataset`.
    """
    targets = torch.randint(0, data.n_classes, data.train_labels.shape, generator=_generator("targets", seed))
    return _towards(model, data, targets, kind, eps, step, steps, **how)


def next_label_dataset(
    model: nn.Module,
    data: Dataset,
    *,
    eps: float = 0.5,
    step: float = 0.1,
    steps: int = 100,
    kind: str = "next-label",
    **how: Any,
) -> Dataset:
    """D_det: as `random_label_dataset`, towards the class y + 1 mod K of an image of class y.

    Here robust features tell the label as well, but they are those of the class before it: on real images a network
    that learnt from them is wrong.
    """
    targets = (data.train_labels.cpu() + 1) % data.n_classes
    return _towards(model, data, targets, kind, eps, step, steps, **how)


def _towards(
    model: nn.Module, data: Dataset, targets: Tensor, kind: str, eps: float, step: float, steps: int, **how: Any
) -> Dataset:
    _check_images(data)
    attack, device = IterativeAttack(eps, step, steps, "l2", targeted=True), _device(model)
    settings = {
        "set": "targeted", "model": model_digest(model), "data": data.digest, "targets": digest_of([targets]),
        "eps": attack.radius, "step": attack.step_size, "steps": attack.steps,
    }  # fmt: skip

    def make(span: slice, tick: Tick) -> Tensor:
        x, t = to_float(data.train_images[span].to(device)), targets[span].to(device)
        made = attack(model, x, t, batch_size=len(x))
        tick()
        return made

    return built(data, kind, settings, targets, make, **how)


# --- inverting features ------------------------------------------------------------------------------------


def invert(
    features: Callable[[Tensor], Tensor],
    images: Tensor,
    starts: Tensor,
    steps: int = 1000,
    step: float = 0.1,
    tick: Tick = lambda: None,
) -> Tensor:
    """Images that begin at `starts` and end with the features of `images`.

    x₀ = start;  xᵢ₊₁ = clip₀₁( xᵢ − step · ∇/‖∇‖₂ ),  ∇ = ∇ₓ ½‖g(xᵢ) − g(x)‖₂²

    for each image alone, with no ball around the start, the last iterate being the result. Since the gradient is
    normalised, the distance may as well be squared or not, or divided by ‖g(x)‖: the steps are the same. Within
    about a step of the goal it walks around it.

    Args:
        features: g, differentiable, from (N, C, H, W) to (N, D); in eval mode.
        images, starts: float (N, C, H, W) in [0, 1].
        step: in units of [0, 1] pixels, of the whole image.
        tick: called after every step.

    Returns:
        float (N, C, H, W) in [0, 1], detached.

    Source: Ilyas et al. 2019, appendix C, in the form of its public reconstructions.
    """
    with torch.no_grad():
        goal = features(images)
    x = starts.detach().clone()
    for _ in range(steps):
        x.requires_grad_()
        with torch.enable_grad():
            loss = (features(x) - goal).square().sum() / 2
            (gradient,) = torch.autograd.grad(loss, x)
        x = (x.detach() - step * gradient / norms(gradient).clamp_min(1e-12)).clamp(0.0, 1.0)
        tick()
    return x


class Features(nn.Module):
    """g: images (N, C, H, W) in [0, 1] to their features (N, D) in `model`; see `robust_dataset` for `layer`.

    Raises:
        FeatureError: there is no such layer, or it gives no tensor with a row an image.
    """

    def __init__(self, model: nn.Module, layer: Layer = None) -> None:
        super().__init__()
        self.model, self.layer = model, layer
        own = getattr(model, "features", None)
        if layer is None and isinstance(own, nn.Module):
            self.layer = "features"  # a submodule may not see the images first, so let the model call it
        elif layer is None:
            require(callable(own), f"{type(model).__name__} has no `features`; {_ways(model)}.")
        if isinstance(self.layer, str):
            found = self.layer in dict(model.named_modules()) and self.layer
            require(found, f"layer is {layer!r}, which {type(model).__name__} does not have; {_ways(model)}.")
        elif self.layer is not None:
            name = f"{getattr(layer, '__module__', '')}.{getattr(layer, '__qualname__', '')}"
            known = callable(layer) and not isinstance(layer, type) and "<" not in name and not name.endswith(".")
            require(known, f"layer is {layer!r}, which has no name to know it by; {_ways(model)}.")

    @property
    def name(self) -> str:
        """What tells this layer from others of the same model."""
        if callable(self.layer):
            return f"function {self.layer.__module__}.{self.layer.__qualname__}"
        return "features()" if self.layer is None else f"output of {self.layer}"

    def forward(self, x: Tensor) -> Tensor:
        if self.layer is None:
            out = self.model.features(x)
        elif isinstance(self.layer, str):
            out = self._caught(x)
        else:
            out = self.layer(self.model, x)
        fine = isinstance(out, Tensor) and out.dim() > 1 and len(out) == len(x)
        shape = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        require(fine, f"{self.name} gives {shape} for {len(x)} images; name a layer with one row of numbers an image.")
        return out.flatten(1)

    def _caught(self, x: Tensor) -> Any:
        seen: list[Any] = []
        handle = self.model.get_submodule(self.layer).register_forward_hook(lambda _, __, out: seen.append(out))
        try:
            self.model(x)
        finally:
            handle.remove()
        require(len(seen) == 1, f"{self.layer} ran {len(seen)} times in a pass; name a layer that runs once.")
        return seen[0]


def _ways(model: nn.Module) -> str:
    some = [name for name, _ in model.named_children()][:8]
    inside = f"its parts are {', '.join(some)}" if some else "it has no parts"
    return f"name the submodule whose output they are ({inside}), or give a function of a module as layer"


@torch.no_grad()
def feature_distance(
    model: nn.Module, images: Tensor, others: Tensor, layer: Layer = None, batch_size: int = 500
) -> Tensor:
    """‖g(x) − g(x′)‖₂/‖g(x′)‖₂, float32 (N,): 0 where the model sees in x what it sees in x′.

    Args:
        images, others: x and x′, (N, C, H, W), uint8 or float in [0, 1], on the model's device.
        layer: see `robust_dataset`.
    """
    g, found = Features(model, layer), []
    with frozen([g]):
        for a, b in zip(images.split(batch_size), others.split(batch_size), strict=True):
            there = g(_unit(b)).float()
            found.append((g(_unit(a)).float() - there).norm(dim=1) / there.norm(dim=1).clamp_min(1e-12))
    return torch.cat(found)


def _unit(images: Tensor) -> Tensor:
    return to_float(images) if images.dtype == torch.uint8 else images


# --- what may be built -------------------------------------------------------------------------------------


def _check_images(data: Dataset) -> None:
    n, least = len(data.train_labels), 2 * data.n_classes
    require(n >= least, f"{data.name} has {n} training images; give at least {least}, two a class.")
    present = len(data.train_labels.unique())
    require(present > 1, f"all training images of {data.name} have one label; give images of two classes or more.")


def _starts(data: Dataset, starts: Tensor | None, seed: int) -> Tensor:
    """uint8 (N, C, H, W), the images to begin at, which say nothing of the labels."""
    images, labels = data.train_images.cpu(), data.train_labels.cpu()
    n = len(labels)
    if starts is None:
        other = torch.randint(0, n - 1, (n,), generator=_generator("starts", seed))
        return images[other + (other >= torch.arange(n))]  # any but itself
    starts = starts.cpu()
    if starts.dtype == torch.int64 and starts.shape == (n,):
        fine = 0 <= int(starts.min()) and int(starts.max()) < n
        require(fine, f"starts run from {int(starts.min())} to {int(starts.max())}; give indices from 0 to {n - 1}.")
        chance = label_tie(labels[starts], labels)
        starts = images[starts]
    else:
        fine = starts.dtype == torch.uint8 and starts.shape == images.shape
        found = f"{starts.dtype} of shape {tuple(starts.shape)}"
        require(fine, f"starts are {found}; give int64 ({n},), or uint8 images of shape {tuple(images.shape)}.")
        chance = image_tie(starts, labels)
    require(
        chance > BEYOND_CHANCE,
        f"starts tell the labels of the images (by chance: {chance:.0e}), and the built set would leak them; draw "
        "starts that do not depend on the image, or give None.",
    )
    return starts


def label_tie(ours: Tensor, theirs: Tensor) -> float:
    """The chance that independent labels (N,) would be tied as strongly as these: Pearson's χ² test (1900)."""
    table = np.zeros((int(ours.max()) + 1, int(theirs.max()) + 1))
    np.add.at(table, (ours.numpy(), theirs.numpy()), 1)
    table = table[table.sum(1) > 0][:, table.sum(0) > 0]
    return float(stats.chi2_contingency(table, correction=False).pvalue) if min(table.shape) > 1 else 1.0


def image_tie(images: Tensor, labels: Tensor, permutations: int = 100) -> float:
    """The chance that images independent of their labels would differ as much between classes as these.

    T = Σ_c n_c ‖m_c − m‖²,  m_c and m the mean images of class c and of all

    against T under `permutations` of the labels, whose mean and variance a gamma distribution is given.
    """
    pixels = to_float(images).flatten(1)
    pixels -= pixels.mean(0)
    if not pixels.any():
        return 1.0  # one image for all says nothing
    counts = labels.bincount().clamp_min(1)
    drawn = _generator("image_tie", 0)

    def between(y: Tensor) -> float:
        sums = pixels.new_zeros(len(counts), pixels.shape[1]).index_add_(0, y, pixels)
        return float((sums.square().sum(1) / counts).sum())

    null = np.array([between(labels[torch.randperm(len(labels), generator=drawn)]) for _ in range(permutations)])
    scale = null.var(ddof=1) / null.mean()
    return float(stats.gamma.sf(between(labels), null.mean() / scale, scale=scale)) if scale > 0 else 1.0


def _generator(*names: object) -> torch.Generator:
    """A random stream with these names: adding one never shifts another."""
    return torch.Generator().manual_seed(int(key("features", *names), 16) >> 1)


def _device(model: nn.Module) -> torch.device:
    return next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))


# --- looking at them ---------------------------------------------------------------------------------------


def image_grid(*rows: Tensor, gap: int = 1) -> np.ndarray:
    """Rows of images as one picture, uint8 (height, width, 3), white between them: for matplotlib's `imshow`.

    >>> image_grid(data.train_images[:10], robust.train_images[:10])  # what became of each, below it  # doctest: +SKIP

    Args:
        rows: uint8, or float in [0, 1], (N, C, H, W) with the same C (1 or 3), H and W; shorter rows end in white.
        gap: pixels between images.
    """
    require(bool(rows) and all(len(row) for row in rows), "there are no images; give rows of at least one.")
    shapes = {tuple(row.shape[1:]) for row in rows}
    require(len(shapes) == 1, f"images are of the shapes {sorted(shapes)}; give images of one shape.")
    (channels, height, width), columns = shapes.pop(), max(len(row) for row in rows)
    require(channels in (1, 3), f"images have {channels} channels; give 1 or 3.")
    down, right = height + gap, width + gap
    picture = torch.full((3, len(rows) * down - gap, columns * right - gap), 255, dtype=torch.uint8)
    for i, row in enumerate(rows):
        pixels = row if row.dtype == torch.uint8 else (row * 255).round().to(torch.uint8)
        for j, image in enumerate(pixels.detach().cpu()):
            picture[:, i * down : i * down + height, j * right : j * right + width] = image
    return picture.permute(1, 2, 0).numpy()
