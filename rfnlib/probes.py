"""What is measured of one snapshot: functions of its weights and of the scale's settings, and of nothing else."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from rfnlib import data, execution, models, records, training, transfer
from rfnlib.attacks import IterativeAttack
from rfnlib.scales import Scale


class Probes:
    """The images of `scale` on `device`, and what is done to snapshots with them; each probe returns a row."""

    def __init__(self, scale: Scale, dataset: data.Dataset, device: str):
        self.scale, self.dataset, self.how = scale, dataset, execution.resolve(device)
        # One fixed order of the test images: the attacked test images come first, then the validation ones.
        drawn = torch.Generator().manual_seed(training.stream(0, "images"))
        self.order = torch.randperm(len(dataset.test_labels), generator=drawn).to(self.how.device)
        self.attacked = self._take(scale.test_images + scale.validation_images)
        self.accuracy_pool = self._take(scale.accuracy_images)

    def clean(self, snapshot: training.Snapshot) -> dict[str, Any]:
        """A target's natural accuracy, and on which of the attacked images it is wrong before the attack."""
        model = self.load(snapshot)
        return {"accuracy": self._accuracy(model), "clean_wrong": self._wrong(model, self.attacked[0]), "passes": 0}

    def transfer(
        self, attack: IterativeAttack, targets: Sequence[nn.Module], snapshot: training.Snapshot
    ) -> dict[str, Any]:
        """Attack `snapshot` as a surrogate and try the examples on `targets`; hits are kept image by image."""
        images, labels = self.attacked
        passes = attack.steps * len(labels)
        model, compiled, how = self._surrogate(snapshot.spec.arch, snapshot.spec.width, passes)
        snapshot.load_into(model)
        with how.autocast():
            adversarial = attack(compiled, images, labels, batch_size=_even(len(images), 256))
        hits = torch.stack([transfer.predict(target, adversarial) != labels for target in targets], 1)
        return {
            "accuracy": self._accuracy(model),
            "adv_wrong": records.pack(hits.cpu().numpy()),
            "surrogate_wrong": self._wrong(model, images),
            "whitebox": _share(transfer.predict(model, adversarial) != labels),
            "l2": round(float((adversarial - images).flatten(1).norm(dim=1).mean()), 4),
            "passes": passes,
        }

    def load(self, snapshot: training.Snapshot) -> nn.Module:
        """The network of `snapshot` on the device, in eval mode."""
        network = training.network(snapshot.spec, self.dataset)
        return self.how.place(snapshot.load_into(network)).requires_grad_(False)

    @functools.lru_cache(maxsize=4)  # noqa: B019 (probes live as long as their process)
    def _surrogate(self, arch: str, width: int | None, passes: int) -> tuple[nn.Module, nn.Module, execution.Execution]:
        """One network an architecture, compiled once if a run's worth of attacks pays for it."""
        how = execution.resolve(self.how.device, work=passes * self.scale.epochs)
        shape = self.dataset.image_shape
        about = {"n_classes": self.dataset.n_classes, "mean": self.dataset.mean, "std": self.dataset.std}
        model = how.place(models.build(arch, width=width, image_shape=shape, **about)).requires_grad_(False).eval()
        return model, how.compiled(model), how

    def _accuracy(self, model: nn.Module) -> float:
        images, labels = self.accuracy_pool
        return _share(transfer.predict(model, images) == labels)

    def _wrong(self, model: nn.Module, images: Tensor) -> str:
        return records.pack((transfer.predict(model, images) != self.attacked[1]).cpu().numpy())

    def _take(self, n: int) -> tuple[Tensor, Tensor]:
        chosen = self.order[:n]
        return data.to_float(self.dataset.test_images[chosen]), self.dataset.test_labels[chosen]


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def _even(n: int, most: int) -> int:
    """The size of equal batches of at most `most`: one shape, so one compiled graph."""
    return -(-n // -(-n // most))
