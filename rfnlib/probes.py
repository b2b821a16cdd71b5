"""Kinds of measurement: each a frozen dataclass with its settings, its row of a record, its reading and its cost.

A kind of one's own is one more such class; nothing else has to know of it:

>>> @dataclass(frozen=True)
... class Confidence:
...     kind: ClassVar[str] = "confidence"
...     label: ClassVar[str] = "confidence"
...     images: int = 100
...     def settings(self, scale): return {"images": self.images}
...     def row(self, bench, subject): return {"mean": float(bench.network(subject)(...).softmax(1).amax(1).mean())}
...     def read(self, lab, arm, at, rows): return [[row["mean"] for row in of] for of in rows]
...     def passes(self, scale): return self.images
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import brentq
from torch import Tensor, nn

from rfnlib import records, sharpness, transfer
from rfnlib.attacks import PGD, IterativeAttack
from rfnlib.curves import RobustnessCurve, SharpnessCurve, TransferCurve
from rfnlib.surrogates import predictor

if TYPE_CHECKING:
    from rfnlib.lab import Lab
    from rfnlib.measurements import Arm, At, Measurement
    from rfnlib.scale import Scale
    from rfnlib.subjects import Bench, Subject

Row = dict[str, Any]


class Probe(Protocol):
    """A kind of measurement with its settings."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """What it measures, for people."""

    def settings(self, scale: Scale) -> dict[str, Any]:
        """All that its rows depend on besides the weights, as JSON data."""

    def row(self, bench: Bench, subject: Subject) -> Row:
        """Measure `subject`: JSON data."""

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> Any:
        """What `rows` (seeds, epochs) say of the arm; what else it takes has a default."""

    def passes(self, scale: Scale) -> float:
        """Forward-backward passes of one image that a row costs, about."""


@dataclass(frozen=True)
class Clean:
    """A target as it is: its natural accuracy, and on which of the attacked images it is wrong."""

    kind: ClassVar[str] = "clean"
    label: ClassVar[str] = "target"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return scale.images()

    def row(self, bench: Bench, subject: Subject) -> Row:
        model = bench.network(subject)
        return {**bench.accuracies(subject, model), "clean_wrong": _wrong(model, *bench.attacked), "passes": 0}

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> Any:
        return [row["accuracy"] for of in rows for row in of]

    def passes(self, scale: Scale) -> float:
        return 0.0


@dataclass(frozen=True)
class Transfer:
    """Attack a surrogate and try the examples on every target; hits are kept image by image.

    A hit is a target that is wrong. If the attack is targeted, what it wants is the next class (that of number y + 1,
    after the last one the first), and a hit is a target that says so.

    Attributes:
        attack: how the examples are made.
        against: "standard": the scale's test and validation targets; "robust": those trained adversarially; "varied":
            those of `Scale.targets_of` that are trained otherwise.
    """

    attack: IterativeAttack
    against: str = "standard"
    kind: ClassVar[str] = "transfer"

    @property
    def label(self) -> str:
        with_ = [name for name in self.attack.describe() if name not in ("norm", "eps", "step", "steps", "seed")]
        with_ = [*([self.attack.norm] if self.attack.norm != "linf" else []), *with_]
        to = "" if self.against == "standard" else f" to {self.against} targets"
        said = f" with {' and '.join(with_)}" if with_ else ""
        return f"transfer{said}{to}"

    def settings(self, scale: Scale) -> dict[str, Any]:
        targets = [*scale.target_keys[self.against]]
        wanted = {"wanted": "the next class"} if self.attack.targeted else {}
        return {"attack": self.attack.describe(), **scale.images(), "targets": targets, **wanted}

    def needs(self, scale: Scale) -> list[Measurement]:
        """The targets as they are, without which no row can be made."""
        return [*scale.cleans[self.against]]

    def row(self, bench: Bench, subject: Subject) -> Row:
        (images, labels), model = bench.attacked, bench.network(subject)
        wanted = (labels + 1) % bench.dataset.n_classes if self.attack.targeted else None
        adversarial = self.attack(model, images, labels if wanted is None else wanted)

        def hit(network: nn.Module) -> Tensor:
            said = transfer.predict(network, adversarial)
            return said != labels if wanted is None else said == wanted

        judged, targets = predictor(model), bench.targets(self.against)
        hits = torch.stack([hit(target) for _, target in targets], 1)
        return {
            **bench.accuracies(subject, model),
            "adv_wrong": records.pack(hits.cpu().numpy()),
            "surrogate_wrong": _wrong(judged, images, labels),
            "whitebox": round(float(hit(judged).float().mean()), 4),
            "l2": round(float((adversarial - images).flatten(1).norm(dim=1).mean()), 4),
            "targets": [digest for digest, _ in targets],
            "passes": round(self.attack.passes_on(model) * len(labels)),
        }

    def read(
        self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]], role: str | None = None
    ) -> TransferCurve:
        """The curve on the test images and targets; `role` "validation": on those that choices are made by."""
        role = role or ("test" if self.against == "standard" else self.against)
        hits = outcomes(lab, self.against, role, rows, arm.name)
        names = tuple(t.name for t in lab.scale.targets_of(self.against) if t.role == role)
        columns = ("accuracy", "train_accuracy", "train_loss", "epochs_of_passes", "l2")
        # None, which is NaN, where a network from outside has no value.
        values = (np.array([[row.get(name) for row in of] for of in rows], float) for name in columns)
        return TransferCurve(arm.name, arm.specs[0], at.epochs, names, hits, *values)

    def passes(self, scale: Scale) -> float:
        return self.attack.passes * (scale.test_images + scale.validation_images)


@dataclass(frozen=True)
class Sharpness:
    """The sharpness of the training loss, on training images that are not augmented, in fp32.

    Beside λ₁ and the trace of the Hessian: λ₁ once more for logits scaled so that the loss is `level` (`matched`, and
    the `scale`), because a small cross-entropy alone makes the Hessian small. None where no scale reaches that loss.
    Each value comes with its error estimate, `…_error`.

    Attributes:
        images: how many training images.
        tol, products: of the top eigenvalue: relative error, and Hessian-vector products at most.
        probes, deflate: of the trace.
        rho: of the worst case.
        level: the loss at which networks are compared once their logits are scaled to have it.
    """

    images: int
    tol: float = 1e-2
    products: int = 60
    probes: int = 5
    deflate: int = 5
    rho: float = 0.05
    level: float = 1.8
    kind: ClassVar[str] = "sharpness"
    label: ClassVar[str] = "sharpness"

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {**asdict(self), "accuracy_images": scale.accuracy_images}

    def row(self, bench: Bench, subject: Subject) -> Row:
        model = bench.network(subject)
        row: Row = dict(bench.accuracies(subject, model))
        model.requires_grad_(True)
        batches = bench.training_batches(self.images)
        with torch.no_grad():
            logits = torch.cat([model(x) for x, _ in batches])
        labels = torch.cat([y for _, y in batches])
        lanczos = {"tol": self.tol, "products": self.products}
        measures: dict[str, Callable[[], sharpness.Measured]] = {
            "top": lambda: sharpness.top_eigenvalue(model, batches, **lanczos),
            "trace": lambda: sharpness.trace(model, batches, probes=self.probes, deflate=self.deflate),
            "worst_case": lambda: sharpness.worst_case(model, batches, self.rho),
            "relative": lambda: sharpness.relative_flatness(model, batches),
            "input_gradient": lambda: sharpness.input_gradient_norm(model, batches),
        }
        if not isinstance(getattr(model, "head", None), nn.Linear):
            del measures["relative"]  # of no layer's weights, in a network from outside
        scale = scale_to_loss(logits, labels, self.level)
        if scale is not None:
            measures["matched"] = lambda: sharpness.top_eigenvalue(Scaled(model, scale), batches, **lanczos)
        found = {}
        for name, measure in measures.items():
            found[name] = measure()
            bench.tick()
        row |= {"loss": records.rounded(F.cross_entropy(logits, labels)), "scale": scale}
        for name in self.measures:
            m = found.get(name)
            row |= {name: m and records.rounded(m.value), f"{name}_error": m and records.rounded(m.error)}
        return {**row, "passes": round(sum(m.passes for m in found.values()) * len(labels))}

    measures: ClassVar[tuple[str, ...]] = ("top", "trace", "matched", "worst_case", "relative", "input_gradient")

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> SharpnessCurve:
        # None stands for a value that is not defined there; as a float it is NaN.
        errors = [f"{m}_error" for m in self.measures]
        names = (*self.measures, *errors, "loss", "accuracy", "train_accuracy", "train_loss")
        values = {m: np.array([[row.get(m) for row in of] for of in rows], float) for m in names}
        return SharpnessCurve(arm.name, arm.specs[0], at.epochs, values)

    def passes(self, scale: Scale) -> float:
        # A Hessian-vector product takes three passes on its graph; Lanczos needs about ten of them, twice.
        return self.images * 3 * (20 + self.probes + self.deflate)


@dataclass(frozen=True)
class Robustness:
    """Robust accuracy: PGD from random starts on the first `images` test images.

    Attributes:
        images: how many.
        balls: pairs of norm and ε; a step has the length 2.5 ε/`steps` (Madry et al. 2018).
        steps, restarts: of PGD.
    """

    images: int
    balls: tuple[tuple[str, float], ...] = (("l2", 0.25), ("l2", 0.5), ("linf", 1 / 255), ("linf", 2 / 255))
    steps: int = 10
    restarts: int = 2
    kind: ClassVar[str] = "robustness"
    label: ClassVar[str] = "robust accuracy"

    def attacks(self) -> dict[str, IterativeAttack]:
        """The attack in each ball, by the ball's name."""
        return {
            ball(norm, eps): PGD(eps, norm=norm, steps=self.steps, step=2.5 * eps / self.steps)
            for norm, eps in self.balls
        }

    def settings(self, scale: Scale) -> dict[str, Any]:
        return {**asdict(self), "accuracy_images": scale.accuracy_images}

    def row(self, bench: Bench, subject: Subject) -> Row:
        model, (images, labels) = bench.network(subject), bench.test_images(self.images)
        correct = {"none": transfer.predict(model, images) == labels}
        for name, attack in self.attacks().items():
            correct[name] = transfer.is_robust(model, images, labels, attack, self.restarts)
        packed = {name: records.pack(c.cpu().numpy()) for name, c in correct.items()}
        return {**bench.accuracies(subject, model), "correct": packed, "passes": self.passes(bench.scale)}

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> RobustnessCurve:
        def unpacked(name: str) -> np.ndarray:
            return np.array([[records.unpack(row["correct"][name], (self.images,)) for row in of] for of in rows])

        return RobustnessCurve(arm.name, arm.specs[0], at.epochs, {n: unpacked(n) for n in ("none", *self.attacks())})

    def passes(self, scale: Scale) -> float:
        return self.images * self.steps * self.restarts * len(self.balls)


def outcomes(lab: Lab, against: str, role: str, rows: Sequence[Sequence[Row]], name: str) -> tuple[transfer.Hits, ...]:
    """What rows of transfer recorded of `name` on the images and targets of `role`, epoch by epoch.

    Args:
        against: "standard", "robust" or "varied", as the rows were.
        role: of the targets; "validation" has images of its own.
        rows: by seed and epoch.

    Raises:
        BadRecord: rows against other weights of the targets than those whose clean errors are recorded.
    """
    targets, clean, digests = lab.clean(against)
    if any(row["targets"] != digests for of in rows for row in of):
        raise records.BadRecord(
            f"{name} was recorded against other weights of the targets than those whose clean errors are recorded; "
            "delete the records of one of the two (the older `clean-…` or `transfer-…` files) and run again."
        )
    images = (np.arange(len(clean)) < lab.scale.test_images) == (role != "validation")
    wanted = np.array([t.role == role for t in targets])

    def hits(rows: Sequence[Row]) -> transfer.Hits:
        adversarial = np.stack([records.unpack(row["adv_wrong"], clean.shape) for row in rows])
        own = np.stack([records.unpack(row["surrogate_wrong"], (len(clean),)) for row in rows])
        return transfer.Hits(adversarial[:, images][:, :, wanted], clean[images][:, wanted], own[:, images])

    return tuple(hits(of) for of in zip(*rows, strict=True))


def ball(norm: str, eps: float) -> str:
    """A name of a ball, such as "l2 0.25" or "linf 1/255".

    >>> ball("linf", 4 / 255)
    'linf 4/255'
    """
    return f"{norm} {255 * eps:g}/255" if norm == "linf" else f"{norm} {eps:g}"


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


def _wrong(model: nn.Module, images: Tensor, labels: Tensor) -> str:
    return records.pack((transfer.predict(model, images) != labels).cpu().numpy())
