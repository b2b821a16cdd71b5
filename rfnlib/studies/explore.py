"""Success over epoch, ρ, ε and target, as far as it is recorded, and live on digits: what notebook 09 has sliders for.

It judges nothing and asks for nothing of its own: what it shows are arms of other studies, once these are complete.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from rfnlib import training, transfer, words, zoo
from rfnlib.curves import SharpnessCurve, TransferCurve
from rfnlib.intervals import Influence
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm
from rfnlib.probes import Transfer
from rfnlib.scale import Scale, decaying
from rfnlib.specs import Minimizer
from rfnlib.studies import lr_decay, pilots, rfn_gains, sharpness_drop

NOTEBOOK, ABOUT = "09_explore", rfn_gains.NOTEBOOK  # and the notebook that decides at which scale it is committed
MEAN = None  # in the place of a target's number: the mean of all


@dataclass(frozen=True)
class Seen:
    """What is recorded of SGD (ρ = 0) and SAM under the standard schedule, on the first architecture.

    Attributes:
        success: by ρ, ε and epoch: a curve that was measured there, the one with the most seeds.
        sharpness: by ρ and epoch, likewise.
        rfn: the ρ that is RFN's; None while pilots cannot tell.
    """

    scale: Scale
    success: dict[tuple[float, float, float], TransferCurve]
    sharpness: dict[tuple[float, float], SharpnessCurve]
    rfn: float | None

    @property
    def targets(self) -> tuple[str, ...]:
        """The names of the test targets."""
        return next(iter(self.success.values())).targets

    @property
    def rhos(self) -> list[float]:
        return sorted({rho for rho, _, _ in self.success})

    @property
    def radii(self) -> list[float]:
        """The ε of the attacks."""
        return sorted({eps for _, eps, _ in self.success})

    def epochs(self, rho: float | None = None, eps: float | None = None) -> list[float]:
        """The epochs that are recorded of `rho` under attack with `eps`; None: of any."""
        return sorted({e for r, a, e in self.success if rho in (None, r) and eps in (None, a)})

    def at(self, rho: float, eps: float, epoch: float, target: int | None = MEAN) -> Influence | None:
        """Success there, on one test target or the mean of all; None where it is not recorded."""
        run = self.success.get((rho, eps, epoch))
        return None if run is None else run.at(epoch, targets=None if target is MEAN else [target])

    def told(self, rho: float, eps: float, epoch: float, target: int | None = MEAN) -> str:
        """What is recorded there, in a sentence; or that nothing is, and what is instead."""
        on = f"the mean of {words.count(len(self.targets), 'target')}" if target is MEAN else self.targets[target]
        here = f"{named(rho, self.rfn)}, epoch {epoch:g}, ε {words.length(eps)}, on {on}"
        success = self.at(rho, eps, epoch, target)
        if success is None:
            there = self.epochs(rho, eps)
            instead = f"at epoch{'s' * (len(there) > 1)} {words.listed(there)}" if there else "at another ε or ρ alone"
            return f"{here}: not recorded; this ρ and ε are {instead}."
        run, sharp = self.success[rho, eps, epoch], self.sharpness.get((rho, epoch))
        flat = "not measured there" if sharp is None else words.level(sharp.level(epoch))
        accuracy = words.percent(run.mean("accuracy", epoch))
        seeds = f"; {words.count(run.seeds, 'seed')}" if run.seeds > 1 else ""  # λ₁ says so of one
        return f"{here}: success {words.percent(success)}, natural accuracy {accuracy}, λ₁ {flat}{seeds}."

    def coverage(self) -> str:
        """What there is to explore, a line for every ρ and ε."""
        if not self.success:
            return (
                f"Nothing that this page shows is recorded at {self.scale.name} scale yet; compute it with "
                f"`python -m rfnlib run --scale {self.scale.name}`, or take another scale."
            )
        lines = []
        for rho in self.rhos:
            for eps in self.radii:
                epochs = self.epochs(rho, eps)
                at = f"epoch{'s' * (len(epochs) > 1)} {words.listed(epochs)}" if epochs else "not recorded"
                lines.append(f"{named(rho, self.rfn):24s} ε {words.length(eps):7s} {at}")
        return "\n".join(lines)


def named(rho: float, rfn: float | None = None) -> str:
    """What a surrogate is called by its ρ: 0 is SGD's, and one of SAM's is RFN's.

    >>> named(0.0), named(0.05, 0.2), named(0.2, 0.2)
    ('SGD', 'SAM, ρ 0.05', 'SAM, ρ 0.2 (RFN)')
    """
    return words.minimizer(_minimizer(rho)) + (" (RFN)" if rho and rho == rfn else "")


def measure(lab: Lab) -> Seen:
    """What is recorded at `lab`'s scale, possibly nothing; nothing is computed for it, whatever the lab's mode."""
    lab = lab.replaying()
    success: dict[tuple[float, float, float], TransferCurve] = {}
    sharpness: dict[tuple[float, float], SharpnessCurve] = {}
    for arm in _arms(lab):
        minimizer = arm.specs[0].minimizer
        rho = minimizer.rho if minimizer else 0.0
        for asked in arm.asked:
            for curve in lab.curves({arm.name: arm}, asked.probe).values():
                for epoch in curve.epochs:
                    if isinstance(curve, SharpnessCurve):
                        _keep(sharpness, (rho, epoch), curve)
                    elif isinstance(asked.probe, Transfer) and _plain(asked.probe, lab.scale):
                        _keep(success, (rho, asked.probe.attack.eps, epoch), curve)
    rfn = None
    with suppress(MissingRecord):
        rfn = pilots.chosen_rho(lab)
    return Seen(lab.scale, success, sharpness, rfn)


def _arms(lab: Lab) -> Iterator[Arm]:
    """The arms of other studies that are about this: those that know RFN's ρ only where pilots have chosen it."""
    standard = decaying(*lab.scale.standard)
    yield lr_decay.arms(lab)[standard]
    yield sharpness_drop.arms(lab)[standard]
    chosen: list[Callable[[], Mapping[Any, Arm]]] = [
        functools.partial(rfn_gains.sharp, lab),
        functools.partial(rfn_gains.main, lab),
        functools.partial(rfn_gains.along, lab),
        functools.partial(sharpness_drop.flat_arms, lab),
    ]
    chosen += [functools.partial(rfn_gains.main, lab, attack=a) for a in rfn_gains.other_attacks(lab).values()]
    for arms in chosen:
        with suppress(MissingRecord):
            yield from arms().values()


def _plain(probe: Transfer, scale: Scale) -> bool:
    """Whether it is the scale's attack but for its ε."""
    return replace(probe, attack=replace(probe.attack, eps=scale.attack.eps)) == scale.transfer


def _keep(found: dict[Any, Any], key: tuple[Any, ...], curve: TransferCurve | SharpnessCurve) -> None:
    if key not in found or found[key].seeds < curve.seeds:
        found[key] = curve


def _minimizer(rho: float) -> Minimizer | None:
    return Minimizer("SAM", rho) if rho else None


# --- live -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Attacked:
    """Digits that every target got right, attacked.

    Attributes:
        images, adversarial: float (N, C, H, W) in [0, 1].
        labels: their classes, which all targets saw in the images.
        after: what the one target sees in the adversarial ones.
        told: what came of it, in a sentence.
    """

    images: Tensor
    adversarial: Tensor
    labels: Tensor
    after: Tensor
    told: str


def live(device: str = "auto") -> Lab:
    """The lab of smoke scale, whose digits and released targets are attacked here and now."""
    return Lab("smoke", "replay", device=device)


def attacked(lab: Lab, rho: float, eps: float, epoch: float, target: int) -> Attacked:
    """The test digits of `lab`'s scale, attacked on the surrogate that its first seed and `rho` give at `epoch`.

    It is the network that the records are about, trained when it is first asked for, and counted as there.
    """
    wanted = lab.scale.test_images
    images, labels = (part[:wanted] for part in lab.bench.attacked)
    targets = [model for _, model in lab.bench.targets("standard")]  # test ones first
    right = [transfer.predict(m, images) == labels for m in targets[: len(lab.scale.targets_of("test"))]]
    counted = functools.reduce(Tensor.logical_and, right)
    adversarial = replace(lab.scale.attack, eps=eps)(_surrogates(lab, rho)[epoch], images, labels)
    after = transfer.predict(targets[target], adversarial)
    fooled = int((counted & (after != labels)).sum())
    told = (
        f"{named(rho)}, epoch {epoch:g}, ε {words.length(eps)}: {lab.scale.targets_of('standard')[target].name} gets "
        f"{fooled} of {int(counted.sum())} digits wrong that all targets got right before, "
        f"{words.percent(fooled / int(counted.sum()))}."
    )
    return Attacked(images[counted], adversarial[counted], labels[counted], after[counted], told)


@functools.lru_cache(maxsize=8)
def _surrogates(lab: Lab, rho: float) -> dict[float, nn.Module]:
    """The surrogate after each of its epochs, rounded as it was measured."""
    spec = lab.scale.flat(_minimizer(rho), lab.seeds[0])
    options: dict[str, Any] = {"cache": lab.cache, "device": lab.device, "compile": False, "progress": False}
    snapshots = training.train(spec, dataset=lab.dataset(), **options)
    place = lab.bench.how.place
    return {s.epoch: place(zoo.built(spec, zoo.rounded(s.weights()))).requires_grad_(False) for s in snapshots}
