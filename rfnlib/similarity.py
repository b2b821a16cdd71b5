"""How like its targets a surrogate is where it is attacked: the cosine of input gradients, and the input's curvature.

An example that is crafted on f transfers to g, to first order, as far as the gradients of their losses at the image
point the same way, cos(∇ₓℓ_f, ∇ₓℓ_g) (Demontis et al. 2019, USENIX Security), and as far as f's loss is smooth there,
which λ₁ of ∇ₓ²ℓ_f says (Zhang et al. 2024, IEEE S&P: transfer is smoothness and similarity together). Both are flatness
or likeness in the *input*, where sharpness is about weights.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from rfnlib import records, sharpness
from rfnlib.curves import SharpnessCurve
from rfnlib.landscape import Batches
from rfnlib.subjects import even

if TYPE_CHECKING:
    from rfnlib.lab import Lab
    from rfnlib.measurements import Arm, At, Measurement
    from rfnlib.probes import Row
    from rfnlib.scale import Scale
    from rfnlib.subjects import Bench, Subject


def cosines(mine: Tensor, theirs: Tensor) -> Tensor:
    """cos of the angle between rows of (N, D) and of (N, D): (N,); 0 where a row is 0."""
    return F.cosine_similarity(mine.double(), theirs.double().to(mine.device), dim=1, eps=1e-30)


@dataclass(frozen=True)
class Similarity:
    """Cosine of a surrogate's input gradients with those of the standard targets, and λ₁ of its input Hessian.

    Both on the first test images that are attacked, as they are. A row has the mean cosine with each target, test ones
    first; the mean over test targets is what is read.

    Attributes:
        images: of the gradients.
        curved: of λ₁, which takes tens of passes an image.
        tol, products: of λ₁: relative error, and Hessian-vector products an image at most.
    """

    images: int
    curved: int
    tol: float = 1e-2
    products: int = 30
    kind: ClassVar[str] = "similarity"
    label: ClassVar[str] = "gradient similarity"
    measures: ClassVar[tuple[str, ...]] = ("cosine", "input_top")

    def settings(self, scale: Scale) -> dict[str, Any]:
        targets = [*scale.target_keys["standard"]]
        return {**asdict(self), "accuracy_images": scale.accuracy_images, "targets": targets}

    def needs(self, scale: Scale) -> list[Measurement]:
        """The targets as they are: their networks are those whose errors are recorded."""
        return [*scale.cleans["standard"]]

    def row(self, bench: Bench, subject: Subject) -> Row:
        model = bench.network(subject)
        mine = sharpness.input_gradients(model, _batches(bench, self.images))
        theirs = _of_targets(bench, self.images)
        each = [float(cosines(mine, g).mean()) for _, g in theirs]
        bench.tick()
        top = sharpness.input_top_eigenvalue(model, _batches(bench, self.curved), tol=self.tol, products=self.products)
        return {
            **bench.accuracies(subject, model),
            "cosines": [records.rounded(c) for c in each],
            "input_top": records.rounded(top.value),
            "input_top_error": records.rounded(top.error),
            "targets": [digest for digest, _ in theirs],
            "passes": round(self.images + top.passes * self.curved),
        }

    def read(self, lab: Lab, arm: Arm, at: At, rows: Sequence[Sequence[Row]]) -> SharpnessCurve:
        judged = len(lab.scale.targets_of("test"))
        cosine = np.array([[np.mean(row["cosines"][:judged]) for row in of] for of in rows])
        names = ("input_top", "input_top_error", "accuracy", "train_accuracy", "train_loss")
        values = {name: np.array([[row.get(name) for row in of] for of in rows], float) for name in names}
        return SharpnessCurve(arm.name, arm.specs[0], at.epochs, {"cosine": cosine, **values})

    def passes(self, scale: Scale) -> float:
        # About ten Hessian-vector products an image, of three passes each.
        return self.images + 30 * self.curved


def _batches(bench: Bench, n: int) -> Batches:
    """The first `n` test images, in equal batches."""
    images, labels = bench.test_images(n)
    return list(zip(images.split(even(n, 250)), labels.split(even(n, 250)), strict=True))


@functools.lru_cache(maxsize=1)
def _of_targets(bench: Bench, n: int) -> list[tuple[str, Tensor]]:
    """The input gradients of the standard targets there with the digests of their weights, test targets first."""
    batches = _batches(bench, n)
    return [(digest, sharpness.input_gradients(target, batches).cpu()) for digest, target in bench.targets("standard")]
