"""Claim C2: transferability peaks when the learning rate decays, whichever epoch that is. Notebook 02.

With s(e) the success rate of a run that decays once, at epoch d, and c(e) that of the run whose rate stays constant,
two differences are judged, each the mean over the decays: s(d + a) − c(d + a), the jump that the constant run does
not share, and s(d + a) − s(end), the later decline. a is the scale's `judged_after`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from rfnlib import claims
from rfnlib.curves import TransferCurve
from rfnlib.intervals import Influence, average
from rfnlib.lab import Lab
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.studies import pilots
from rfnlib.transfer import DENOMINATORS

NOTEBOOK = "02_lr_decay_peak"
CLAIMS = ("C2",)


def arms(lab: Lab, seeds: Sequence[int] | None = None) -> dict[str, Arm]:
    """One arm a schedule, attacked all along its training; `seeds` None: the judged ones."""
    seeds, found = lab.seeds if seeds is None else seeds, {}
    for name, schedule in lab.scale.schedules().items():
        runs = [lab.scale.surrogate(schedule, seed) for seed in seeds]
        found[name] = Arm(name, runs, At(lab.scale.transfer, lab.scale.attacked_at(schedule)))
    return found


def plan(lab: Lab) -> Iterator[Measurement]:
    """All schedules, seed by seed."""
    yield from by_seed(arms(lab).values())


def measure(lab: Lab) -> Peak:
    """The curves of claim C2 at `lab`'s scale."""
    judged = ["constant", *(f"decay at {d}" for d in lab.scale.decays)]
    shown = lab.shown(arms(lab), needed=judged)
    curves = {name: lab.read(arm) for name, arm in shown.items()}
    return Peak(curves, lab.scale.decays, lab.scale.judged_after, pilots.gates(lab))


@dataclass(frozen=True)
class Peak:
    """Success along training, by schedule."""

    curves: dict[str, TransferCurve]
    decays: tuple[int, ...]
    after: float
    gates: list[claims.Gate]

    def above_constant(self, decay: int) -> Influence:
        """s(d + a) − c(d + a)."""
        at = decay + self.after
        return self.curves[f"decay at {decay}"].at(at) - self.curves["constant"].at(at)

    def above_end(self, decay: int) -> Influence:
        """s(d + a) − s(end)."""
        run = self.curves[f"decay at {decay}"]
        return run.at(decay + self.after) - run.at(run.end)

    def jump(self, decay: int) -> Influence:
        """s(d + a) − s(d): secondary."""
        run = self.curves[f"decay at {decay}"]
        return run.at(decay + self.after) - run.at(decay)
