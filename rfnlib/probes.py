"""What is measured of one snapshot: functions of its weights and of the scale's settings, and of nothing else."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor, nn

from rfnlib import data, execution, models, records, sharpness, training, transfer
from rfnlib.attacks import IterativeAttack
from rfnlib.keys import stream
from rfnlib.recipes import Recipe
from rfnlib.scales import RobustnessProbe, Scale, SharpnessProbe
from rfnlib.surrogates import Cycle, Ensemble


class Probes:
    """The images of `scale` on `device`, and what is done to snapshots with them; each probe returns a row."""

    def __init__(self, scale: Scale, dataset: data.Dataset, device: str):
        self.scale, self.dataset, self.how = scale, dataset, execution.resolve(device)
        # One fixed order of the test images: the attacked test images come first, then the validation ones.
        drawn = torch.Generator().manual_seed(stream(0, "images"))
        self.order = torch.randperm(len(dataset.test_labels), generator=drawn).to(self.how.device)
        self.attacked = self._take(scale.test_images + scale.validation_images)
        self.accuracy_pool = self._take(scale.accuracy_images)

    def clean(self, snapshot: training.Snapshot) -> dict[str, Any]:
        """A target's natural accuracy, and on which of the attacked images it is wrong before the attack."""
        model = self.load(snapshot)
        return {"accuracy": self._accuracy(model), "clean_wrong": self._wrong(model, self.attacked[0]), "passes": 0}

    def transfer(
        self,
        attack: IterativeAttack,
        targets: Sequence[nn.Module],
        snapshot: training.Snapshot,
        recipe: Recipe | None = None,
        collected: Sequence[training.Snapshot] = (),
    ) -> dict[str, Any]:
        """Attack `snapshot` as a surrogate, or what `recipe` makes of it, and try the examples on `targets`.

        Hits are kept image by image. The accuracy of several networks is that of their mean probabilities.
        """
        images, labels = self.attacked
        if recipe is None:
            model, compiled, how = self._surrogate(snapshot.spec.arch, snapshot.spec.width, snapshot.spec.stem)
            snapshot.load_into(model)
        else:
            model, how = self.load(snapshot, recipe, collected), self.how
            compiled = model
        with how.autocast():
            adversarial = attack(compiled, images, labels, batch_size=_even(len(images), 256))
        judged = Ensemble(model.members, "probabilities") if isinstance(model, Cycle) else model
        hits = torch.stack([transfer.predict(target, adversarial) != labels for target in targets], 1)
        return {
            "accuracy": self._accuracy(judged),
            "adv_wrong": records.pack(hits.cpu().numpy()),
            "surrogate_wrong": self._wrong(judged, images),
            "whitebox": _share(transfer.predict(judged, adversarial) != labels),
            "training": snapshot.cost,
            "l2": round(float((adversarial - images).flatten(1).norm(dim=1).mean()), 4),
            "passes": attack.passes * len(labels),
        }

    def sharpness(self, probe: SharpnessProbe, model: nn.Module) -> dict[str, Any]:
        """The sharpness of the training loss of `model`, on training images that are not augmented, in fp32.

        Beside λ₁ and the trace of the Hessian: λ₁ once more for logits scaled so that the loss is `probe.level`
        (`matched`, and the `scale`), because a small cross-entropy alone makes the Hessian small. None where no scale
        reaches that loss. Each value comes with its error estimate, `…_error`.
        """
        model.requires_grad_(True)
        batches = self._training_batches(probe.images)
        with torch.no_grad():
            logits = torch.cat([model(x) for x, _ in batches])
        labels = torch.cat([y for _, y in batches])
        lanczos = {"tol": probe.tol, "products": probe.products}
        found = {
            "top": sharpness.top_eigenvalue(model, batches, **lanczos),
            "trace": sharpness.trace(model, batches, probes=probe.probes, deflate=probe.deflate),
            "worst_case": sharpness.worst_case(model, batches, probe.rho),
            "relative": sharpness.relative_flatness(model, batches),
            "input_gradient": sharpness.input_gradient_norm(model, batches),
        }
        scale = scale_to_loss(logits, labels, probe.level)
        if scale is not None:
            found["matched"] = sharpness.top_eigenvalue(Scaled(model, scale), batches, **lanczos)
        row = {"accuracy": self._accuracy(model), "loss": _digits(F.cross_entropy(logits, labels)), "scale": scale}
        for name in ("top", "trace", "matched", "worst_case", "relative", "input_gradient"):
            m = found.get(name)
            row |= {name: m and _digits(m.value), f"{name}_error": m and _digits(m.error)}
        return {**row, "passes": round(sum(m.passes for m in found.values()) * len(labels))}

    def robust(self, probe: RobustnessProbe, model: nn.Module) -> dict[str, Any]:
        """Which of the first test images `model` classifies correctly, as they are and under each attack of `probe`."""
        images, labels = self._take(probe.images)
        seen = [0]

        def count(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[0] += len(inputs[0]) if torch.is_grad_enabled() else 0

        handle = model.register_forward_pre_hook(count)
        stands = {"none": transfer.predict(model, images) == labels}
        for name, attack in probe.attacks().items():
            stands[name] = transfer.is_robust(model, images, labels, attack, probe.restarts)
        handle.remove()
        packed = {name: records.pack(s.cpu().numpy()) for name, s in stands.items()}
        return {"accuracy": self._accuracy(model), "stands": packed, "passes": seen[0]}

    @functools.lru_cache(maxsize=1)  # noqa: B019 (probes live as long as their process)
    def _training_batches(self, n: int) -> list[tuple[Tensor, Tensor]]:
        images, labels = self.dataset.train_images[:n], self.dataset.train_labels[:n]
        pairs = zip(images.split(_even(n, 500)), labels.split(_even(n, 500)), strict=True)
        return [(data.to_float(x).to(self.how.device), y.to(self.how.device)) for x, y in pairs]

    def load(
        self,
        snapshot: training.Snapshot,
        recipe: Recipe | None = None,
        collected: Sequence[training.Snapshot] = (),
    ) -> nn.Module:
        """The network of `snapshot` on the device, in eval mode, or what `recipe` makes of it and of `collected`."""
        network = training.network(snapshot.spec, self.dataset)
        network = self.how.place(snapshot.load_into(network)).requires_grad_(False)
        if recipe is None:
            return network
        parts = self.dataset.train_images.split(500)
        made = recipe(network, collected, (data.to_float(x).to(self.how.device) for x in parts))
        return self.how.place(made).requires_grad_(False).eval()

    @functools.lru_cache(maxsize=4)  # noqa: B019 (probes live as long as their process)
    def _surrogate(self, arch: str, width: int | None, stem: int) -> tuple[nn.Module, nn.Module, execution.Execution]:
        """One network an architecture, compiled once if a run's worth of the scale's attack pays for it."""
        work = self.scale.attack.passes * len(self.attacked[1]) * self.scale.epochs
        shape = self.dataset.image_shape
        about = {"n_classes": self.dataset.n_classes, "mean": self.dataset.mean, "std": self.dataset.std}
        model = self.how.place(models.build(arch, width=width, stem=stem, image_shape=shape, **about))
        model.requires_grad_(False).eval()
        images = self.attacked[0][: _even(len(self.attacked[1]), 256)].contiguous(memory_format=self.how.layout)
        how = execution.choose(self.how, model, images, work)
        return model, how.compiled(model), how

    def _accuracy(self, model: nn.Module) -> float:
        images, labels = self.accuracy_pool
        return _share(transfer.predict(model, images) == labels)

    def _wrong(self, model: nn.Module, images: Tensor) -> str:
        return records.pack((transfer.predict(model, images) != self.attacked[1]).cpu().numpy())

    def _take(self, n: int) -> tuple[Tensor, Tensor]:
        chosen = self.order[:n]
        return data.to_float(self.dataset.test_images[chosen]), self.dataset.test_labels[chosen]


class Scaled(nn.Module):
    """A model whose logits are multiplied by a number: the same classes, another temperature."""

    def __init__(self, model: nn.Module, scale: float):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.model(x)


def scale_to_loss(logits: Tensor, labels: Tensor, level: float) -> float | None:
    """The smallest s > 0 with mean cross-entropy(s · logits, labels) = `level`; None where there is none.

    In s the loss is convex, and log(classes) at 0: below that, the first crossing is the one before its minimum.
    """

    def excess(s: float) -> float:
        return float(F.cross_entropy(s * logits.double(), labels)) - level

    if excess(0.0) <= 0:
        return None
    high = 1e-3
    while excess(high) > 0:
        if high > 1e3 or excess(1.01 * high) > excess(high):
            return None
        high *= 1.01
    return round(brentq(excess, 0.0, high), 6)


def _digits(x: Tensor | float) -> float | None:
    """Five significant digits; None for what is no number, which JSON does not know."""
    return float(f"{float(x):.5g}") if math.isfinite(x) else None


def _share(hits: Tensor) -> float:
    return round(float(hits.float().mean()), 4)


def _even(n: int, most: int) -> int:
    """The size of equal batches of at most `most`: one shape, so one compiled graph."""
    return -(-n // -(-n // most))
