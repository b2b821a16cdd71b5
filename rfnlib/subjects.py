"""What probes work with: the images of a scale on a device, its targets, and the weights that are measured."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rfnlib import data, execution, outside, records, training, transfer
from rfnlib.checks import require
from rfnlib.keys import key, stream
from rfnlib.outside import Outside
from rfnlib.recipes import Recipe
from rfnlib.scale import Scale
from rfnlib.snapshots import Snapshot, weights_digest
from rfnlib.specs import TrainSpec
from rfnlib.surrogates import State, predictor


@dataclass(frozen=True)
class Subject:
    """The weights that are measured: those of `spec`'s run after `iteration` steps, or of a network from outside.

    Attributes:
        history: the key of the spec's history behind the weights.
        weights: a state dict on the CPU; empty for a network from outside, which has them itself.
        cost: forward-backward passes of a batch up to here, with those of the run that it started from, and the
            steps that were void; None where nobody knows.
        recipe, collected: what is made of the weights (None: their network), from these snapshots of the run.
        others: the other runs' networks that the recipe takes.
        execution: what trained them, as `Execution.describe` tells it; empty where nobody knows.
    """

    spec: TrainSpec | Outside
    iteration: int
    per_epoch: int
    history: str
    weights: dict[str, Tensor]
    cost: dict[str, int | None]
    recipe: Recipe | None = None
    collected: Sequence[Snapshot] = ()
    others: Sequence[Subject] = ()
    execution: dict[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def digest(self) -> str:
        """16 hexadecimal digits that name the weights themselves, those of `others` too."""
        own = self.spec.digest if isinstance(self.spec, Outside) else weights_digest(self.weights)
        return key(own, *(other.digest for other in self.others)) if self.others else own


class Bench:
    """The images of `scale` on `device`; `targets(against)` gives as networks what `Scale.targets_of` names.

    `weights(spec, epoch)` are those of a run after so many epochs, as they would be measured, for a probe that compares
    networks; `known(subject)` are the accuracies of a network that are recorded. A probe that takes long calls `tick`
    after each of its parts: it may raise to stop in time.

    One fixed order of the test images holds for everything: the attacked test images come first, then the attacked
    validation images; natural and robust accuracy are taken on the first so many of all of them.
    """

    def __init__(
        self,
        scale: Scale,
        dataset: data.Dataset,
        device: str,
        targets: Callable[[str], list[tuple[str, nn.Module]]],
        tick: Callable[[], None] = lambda: None,
        weights: Callable[[TrainSpec, float], State] = lambda spec, epoch: {},
        known: Callable[[Subject], dict[str, float | None] | None] = lambda subject: None,
    ):
        self.scale, self.dataset, self.how, self.targets = scale, dataset, execution.resolve(device), targets
        self.tick, self.weights, self.known = tick, weights, known
        drawn = torch.Generator().manual_seed(stream(0, "images"))
        self._order = torch.randperm(len(dataset.test_labels), generator=drawn).to(self.how.device)
        self.attacked = self.test_images(scale.test_images + scale.validation_images)
        self._measured: tuple[str, dict[str, float | None]] = ("", {})

    def test_images(self, n: int) -> tuple[Tensor, Tensor]:
        """The first `n` test images in the fixed order, float (n, C, H, W) in [0, 1], and their labels.

        Raises:
            ValueError: there are fewer.
        """
        require_images(n, self._order, f"test images of {self.dataset.name}")
        chosen = self._order[:n]
        return data.to_float(self.dataset.test_images[chosen]), self.dataset.test_labels[chosen]

    @functools.lru_cache(maxsize=1)  # noqa: B019 (a bench lives as long as its process)
    def training_batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        """The first `n` training images, not augmented, in equal batches.

        Raises:
            ValueError: there are fewer.
        """
        require_images(n, self.dataset.train_labels, f"training images of {self.dataset.name}")
        images, labels = self.dataset.train_images[:n], self.dataset.train_labels[:n]
        pairs = zip(images.split(even(n, 500)), labels.split(even(n, 500)), strict=True)
        return [(data.to_float(x), y) for x, y in pairs]

    def network(self, subject: Subject) -> nn.Module:
        """What `subject` stands for, on the device, in eval mode and frozen."""
        if isinstance(subject.spec, Outside):
            network = outside.model_of(subject.spec)
        else:
            network = training.network(subject.spec, self.dataset)
            network.load_state_dict(subject.weights)
        network = self.how.place(network).requires_grad_(False).eval()
        if subject.recipe is None:
            return network
        parts = self.dataset.train_images.split(500)
        others = [[self.network(other) for other in subject.others]] if subject.others else []
        made = subject.recipe(network, subject.collected, (data.to_float(x) for x in parts), *others)
        return self.how.place(made).requires_grad_(False).eval()

    def accuracies(self, subject: Subject, model: nn.Module) -> dict[str, float | None]:
        """Natural accuracy, and accuracy and mean cross-entropy on all training images, not augmented.

        These are the scale's own images with their true labels, whatever the run was trained on: of one trained on D_R
        or D_NR too, and of one trained on other images of the data set, which has never seen them. A network from
        outside was trained on others, so it is not asked about these.
        """
        named = f"{subject.digest} {subject.recipe}"
        if self._measured[0] != named:
            known = None if subject.recipe else self.known(subject)  # what a recipe makes predicts otherwise
            self._measured = (named, known or self._accuracies(subject, predictor(model)))
        return self._measured[1]

    def _accuracies(self, subject: Subject, model: nn.Module) -> dict[str, float | None]:
        images, labels = self.test_images(self.scale.accuracy_images)
        accuracy = round(float((transfer.predict(model, images) == labels).float().mean()), 4)
        on_training = {} if isinstance(subject.spec, Outside) else self._on_training(model)
        return {"accuracy": accuracy, **on_training}

    def _on_training(self, model: nn.Module) -> dict[str, float | None]:
        loss, right, n = 0.0, 0, len(self.dataset.train_labels)
        for x, y in zip(self.dataset.train_images.split(500), self.dataset.train_labels.split(500), strict=True):
            with torch.no_grad():
                logits = model(data.to_float(x)).float()
            loss += float(F.cross_entropy(logits, y, reduction="sum"))
            right += int((logits.argmax(1) == y).sum())
        return {"train_accuracy": round(right / n, 4), "train_loss": records.rounded(loss / n)}


def require_images(n: int, there: Tensor, what: str) -> None:
    """A measurement on fewer images than it says would pass for one on all of them."""
    require(0 < n <= len(there), f"{n} {what} are asked for; give from 1 to {len(there)}, as many as there are.")


def even(n: int, most: int) -> int:
    """The size of equal batches of at most `most`: one shape, so one compiled graph."""
    return -(-n // -(-n // most))
