"""Where training goes in the space of weights: loss and success over a plane of it, and what lies along a run.

BatchNorm's statistics are re-estimated at every point, those of networks themselves included: between two networks
they are neither's, and without it every segment would seem to cross a ridge. Only parameters count as places.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib import records, snapshots, training, transfer
from rfnlib.attacks import IterativeAttack
from rfnlib.measurements import At, Measurement
from rfnlib.minimizers import update_batchnorm
from rfnlib.outside import Outside
from rfnlib.probes import Transfer
from rfnlib.specs import TrainSpec
from rfnlib.surrogates import State

if TYPE_CHECKING:
    from rfnlib.lab import Lab
    from rfnlib.measurements import Arm
    from rfnlib.probes import Row
    from rfnlib.scale import Scale
    from rfnlib.subjects import Bench, Subject

Batches = Sequence[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Place:
    """A network: that of a training run after so many epochs."""

    spec: TrainSpec
    epoch: float

    def settings(self) -> list[Any]:
        """The place as JSON data."""
        return [self.spec.key(), self.epoch]

    def weights(self, bench: Bench) -> State:
        """Its weights, as they would be measured."""
        return bench.weights(self.spec, float(self.epoch))


@dataclass(frozen=True)
class Plane:
    """Loss and success over the plane through three networks, and where other networks lie beside it.

    With w₀ the subject and w₁, w₂ the corners, e₁ = (w₁ − w₀)/‖w₁ − w₀‖ and e₂ is the part of w₂ − w₀ that is
    orthogonal to e₁, at length 1. A network w has the coordinates x = ⟨w − w₀, e₁⟩, y = ⟨w − w₀, e₂⟩ and the distance
    ‖w − w₀ − x e₁ − y e₂‖ from the plane, all in units of the weights. At each point of a square grid around them: the
    mean cross-entropy on training images, not augmented, and the success of an attack on the scale's test targets.

    Attributes:
        corners: w₁ and w₂.
        others: networks to be projected.
        attack: how success is measured.
        images: training images of the loss, and of BatchNorm's statistics.
        attacked: test images of success; those that a target misclassifies do not count.
        steps: points a side of the grid.
        margin: what the grid has around the networks, as a share of their extent.
    """

    corners: tuple[Place, Place]
    others: tuple[Place, ...]
    attack: IterativeAttack
    images: int
    attacked: int
    steps: int = 13
    margin: float = 0.25
    kind: ClassVar[str] = "plane"
    label: ClassVar[str] = "plane of weights"

    @property
    def places(self) -> tuple[Place, ...]:
        """All networks besides the subject, corners first."""
        return (*self.corners, *self.others)

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {
            "corners": [place.settings() for place in self.corners],
            "others": [place.settings() for place in self.others],
            "attack": self.attack.describe(),
            **{name: getattr(self, name) for name in ("images", "attacked", "steps", "margin")},
            "accuracy_images": scale.accuracy_images,
            "targets": [*scale.target_keys["test"]],
        }

    def needs(self, scale: Scale) -> list[Measurement]:
        """Success of each network that is shown: its colour, and the sign that it is trained."""
        return [Measurement(place.spec, At(Transfer(self.attack), (place.epoch,))) for place in self.places]

    def row(self, bench: Bench, subject: Subject) -> Row:
        _run(subject)  # or it is refused
        model = bench.network(subject)
        accuracies = bench.accuracies(subject, model)
        origin, names = subject.weights, [name for name, _ in model.named_parameters()]
        w0 = flat(origin, names)
        e1 = flat(self.corners[0].weights(bench), names) - w0
        e1 /= e1.norm()
        e2 = flat(self.corners[1].weights(bench), names) - w0
        e2 -= (e2 @ e1) * e1
        e2 /= e2.norm()
        found, digests = [(0.0, 0.0, 0.0)], [subject.digest]
        for place in self.places:
            weights = place.weights(bench)
            d = flat(weights, names) - w0
            x, y = float(d @ e1), float(d @ e2)
            apart = float((d - x * e1 - y * e2).norm())
            found.append((x, y, apart))
            digests.append(snapshots.weights_digest(weights))
        xs, ys = axes(found, self.steps, self.margin)
        batches, hits = bench.training_batches(self.images), functools.partial(self._success, bench, model)
        loss, success = np.empty((2, self.steps, self.steps))
        for i, y in enumerate(ys):
            for j, x in enumerate(xs):
                loss[i, j] = loss_at(model, moved(origin, names, w0 + x * e1 + y * e2), batches)
                success[i, j] = hits()
                bench.tick()
        return {
            **accuracies,
            "x": [records.rounded(x) for x in xs],
            "y": [records.rounded(y) for y in ys],
            "loss": [[records.rounded(v) for v in line] for line in loss],
            "success": [[records.rounded(v) for v in line] for line in success],
            "places": [[records.rounded(v) for v in place] for place in found],  # x, y and the distance from the plane
            "digests": digests,
            "counted": len(_countable(bench, self.attacked)[1]),
            "passes": round(self.passes(bench.scale)),
        }

    def _success(self, bench: Bench, model: nn.Module) -> float:
        """Success of the network as it is now: the mean over counted images and test targets."""
        images, labels = _countable(bench, self.attacked)
        if not len(labels):
            return float("nan")
        adversarial = self.attack(model, images, labels)
        judged = _test_targets(bench)
        return float(np.mean([float((transfer.predict(t, adversarial) != labels).float().mean()) for t in judged]))

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> list[Row]:
        """The rows as they are, one a seed."""
        return [of[-1] for of in rows]

    def passes(self, scale: Scale) -> float:
        targets = len(scale.targets_of("test"))
        # The loss and BatchNorm's statistics take a forward pass each; so does every target.
        return self.steps**2 * (2 / 3 * self.images + self.attacked * (self.attack.passes + targets / 3))


@dataclass(frozen=True)
class Path:
    """How far a run goes, and which barriers lie between its networks.

    With w_i the networks after `epochs`, and w_0 where the run starts: ‖w_i − w_{i−1}‖, the legs of the path;
    ‖w_i − w_0‖, the displacement; ‖w_i‖; all over parameters. And the mean cross-entropy on training images, not
    augmented, at points of the straight segment between each pair of `between`, ends included: see `barrier`.

    Attributes:
        epochs: of the networks, in order.
        between: pairs of epochs.
        images: training images of the loss, and of BatchNorm's statistics.
        points: of a segment.
    """

    epochs: tuple[float, ...]
    between: tuple[tuple[float, float], ...]
    images: int
    points: int = 11
    kind: ClassVar[str] = "path"
    label: ClassVar[str] = "path"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {**asdict(self), "accuracy_images": scale.accuracy_images}

    def row(self, bench: Bench, subject: Subject) -> Row:
        model, spec = bench.network(subject), _run(subject)
        accuracies = bench.accuracies(subject, model)
        names = [name for name, _ in model.named_parameters()]
        start = bench.weights(spec.start, spec.start.epochs) if spec.start else None
        first = flat(start or training.network(spec, bench.dataset).state_dict(), names)
        legs, displaced, norms, digests, last = [], [], [float(first.norm())], [], first
        for epoch in self.epochs:
            weights = bench.weights(spec, epoch)
            here = flat(weights, names)
            legs.append(float((here - last).norm()))
            displaced.append(float((here - first).norm()))
            norms.append(float(here.norm()))
            digests.append(snapshots.weights_digest(weights))
            last = here
        batches, losses = bench.training_batches(self.images), []
        for ends in self.between:
            a, b = (bench.weights(spec, epoch) for epoch in ends)
            losses.append(along(model, a, b, names, batches, self.points))
            bench.tick()
        return {
            **accuracies,
            **{name: [records.rounded(v) for v in values]
               for name, values in (("legs", legs), ("displaced", displaced), ("norms", norms))},
            "losses": [[records.rounded(v) for v in line] for line in losses],
            "digests": digests,
            "passes": round(self.passes(bench.scale)),
        }  # fmt: skip

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> list[Row]:
        """The rows as they are, one a seed."""
        return [of[-1] for of in rows]

    def passes(self, scale: Scale) -> float:
        return len(self.between) * self.points * 2 / 3 * self.images


# --- places and what is there -----------------------------------------------------------------------------


def flat(weights: Mapping[str, Tensor], names: Sequence[str]) -> Tensor:
    """The tensors called `names` as one vector (P,), in float64 on the CPU, where sums over many weights are exact."""
    return torch.cat([weights[name].detach().cpu().double().flatten() for name in names])


def moved(weights: State, names: Sequence[str], to: Tensor) -> dict[str, Tensor]:
    """`weights` with the tensors called `names` as the vector `to` says."""
    parts = to.split([weights[name].numel() for name in names])
    new = {name: part.view_as(weights[name]).to(weights[name]) for name, part in zip(names, parts, strict=True)}
    return {**weights, **new}


def loss_at(model: nn.Module, weights: State, batches: Batches) -> float:
    """The mean cross-entropy of `model` with `weights`, BatchNorm re-estimated on the same images; it keeps both."""
    model.load_state_dict(weights)
    update_batchnorm(model, batches)
    with torch.no_grad():
        sums = [float(F.cross_entropy(model(x).float(), y, reduction="sum")) for x, y in batches]
    return sum(sums) / sum(len(y) for _, y in batches)


def along(model: nn.Module, a: State, b: State, names: Sequence[str], batches: Batches, points: int) -> list[float]:
    """The loss at so many points from `a` to `b`, ends included, on a straight line between their parameters."""
    start, end = flat(a, names), flat(b, names)
    return [loss_at(model, moved(a, names, torch.lerp(start, end, t)), batches) for t in np.linspace(0, 1, points)]


def barrier(losses: Sequence[float]) -> float:
    """How high a segment rises above the straight line between the losses at its ends (Entezari et al. 2022, ICLR).

    max_t L(t) − ((1 − t) L(0) + t L(1)), at least 0: 0 where both ends lie in one basin (Frankle et al. 2020, ICML).

    >>> barrier([1.0, 2.5, 3.0]), barrier([1.0, 0.0, 1.0])
    (0.5, 0.0)
    """
    line = np.linspace(losses[0], losses[-1], len(losses))
    return float(np.max(np.asarray(losses, float) - line))


def axes(places: Sequence[Sequence[float]], steps: int, margin: float) -> tuple[list[float], list[float]]:
    """`steps` even coordinates x, and y, of a square around all places (x, y, …) with the share `margin` beyond them.

    >>> axes([(0.0, 1.0), (2.0, 1.5)], 3, 0.5)
    ([-1.0, 1.0, 3.0], [-0.75, 1.25, 3.25])
    """
    low, high = (np.array([each(place[i] for place in places) for i in (0, 1)]) for each in (min, max))
    half = (0.5 + margin) * (high - low).max()
    xs, ys = (np.linspace(middle - half, middle + half, steps).tolist() for middle in (low + high) / 2)
    return xs, ys


def _run(subject: Subject) -> TrainSpec:
    if isinstance(subject.spec, Outside):
        raise ValueError(f"{subject.spec.short_name} comes from outside and has no path; give a run that is trained.")
    return subject.spec


def _test_targets(bench: Bench) -> list[nn.Module]:
    return [model for _, model in bench.targets("standard")[: len(bench.scale.targets_of("test"))]]


@functools.lru_cache(maxsize=1)
def _countable(bench: Bench, n: int) -> tuple[Tensor, Tensor]:
    """Those of the first `n` test images that every test target classifies correctly, and their labels."""
    images, labels = bench.test_images(n)
    right = torch.stack([transfer.predict(t, images) == labels for t in _test_targets(bench)]).all(0)
    return images[right], labels[right]
