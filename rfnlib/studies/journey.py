"""A measured picture of training: planes of the loss coloured by success, paths, barriers. Notebook 06, no verdict.

Two planes (`planes.Plane`), one seed each, with the networks on the way projected on them:

- from one checkpoint: the end of `lower rate` and that of `RFN`, which are `interventions`, with every arm's way;
- whole trainings: SGD at the first decay, SGD at its end, and RFN at its end, with both paths.

And for SGD, the run with a constant rate and RFN (`planes.Path`): the length of the path, the displacement, and the
barriers on the straight segments from the first decay to just after it, from there to the end, and from the decay to
the end. Two networks without a barrier lie in one basin.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from rfnlib import words
from rfnlib.intervals import Estimate, over_seeds
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_name, by_seed
from rfnlib.planes import Path, Place, Plane, barrier
from rfnlib.scale import CONSTANT, Scale
from rfnlib.specs import Step
from rfnlib.studies import interventions, pilots
from rfnlib.studies.interventions import LOWER, MEAN, MOMENTS, RFN, START
from rfnlib.studies.predictors import spearman

SGD = "SGD"
BASIN = 0.05  # of the higher loss at the ends: a barrier below this share is none


# --- arms -----------------------------------------------------------------------------------------------


def images(scale: Scale) -> int:
    """Training images of losses along segments and over planes."""
    return min(1000, scale.sharpness.images * 2)


def _plane(scale: Scale, corners: tuple[Place, Place], others: list[Place]) -> Plane:
    return Plane(corners, tuple(others), scale.attack, images(scale), attacked=min(200, scale.test_images // 4),
                 steps=13 if scale.test_images > 500 else 5)  # fmt: skip


def local(lab: Lab) -> tuple[list[tuple[str, Place]], Arm]:
    """The plane from the checkpoint, and its networks besides the corners by arm.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, seed, first = lab.scale, lab.seeds[0], float(min(lab.scale.standard))
    runs = {name: specs[0] for name, specs in interventions.runs(lab, [seed]).items() if name != MEAN}
    ends = {name: Place(spec, float(spec.epochs)) for name, spec in runs.items()}
    way = [(n, Place(s, m * s.epochs)) for n, s in runs.items() for m in MOMENTS if m < 1 or n not in (LOWER, RFN)]
    plane = _plane(scale, (ends[LOWER], ends[RFN]), [place for _, place in way])
    start = scale.surrogate(Step(scale.lr), seed)
    shown = [(START, Place(start, first)), (LOWER, ends[LOWER]), (RFN, ends[RFN]), *way]
    return shown, Arm("from one checkpoint", [start], At(plane, (first,)))


def whole(lab: Lab) -> tuple[list[tuple[str, Place]], Arm]:
    """The plane through SGD at the first decay, SGD at its end and RFN at its end, with both paths.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, seed = lab.scale, lab.seeds[0]
    sgd, rfn = scale.flat(None, seed), pilots.sam(scale, pilots.chosen_rho(lab), seed)
    first, end = float(min(scale.standard)), scale.end
    way = [(n, Place(s, e)) for n, s in ((SGD, sgd), (RFN, rfn)) for e in stops(scale) if e not in (end, first)]
    way.append((RFN, Place(rfn, first)))
    plane = _plane(scale, (Place(sgd, end), Place(rfn, end)), [place for _, place in way])
    shown = [(SGD, Place(sgd, first)), (SGD, Place(sgd, end)), (RFN, Place(rfn, end)), *way]
    return shown, Arm("whole trainings", [sgd], At(plane, (first,)))


def stops(scale: Scale) -> tuple[float, ...]:
    """The epochs that paths go through: those where sharpness along the standard schedule is measured, coarsely."""
    return scale.sharp_at(Step(scale.lr, scale.standard), fine=False)


def segments(scale: Scale) -> dict[str, tuple[float, float]]:
    """The pairs of epochs between which barriers are measured, in words."""
    first = float(min(scale.standard))
    after, end = first + scale.judged_after, scale.end
    return {"before to just after": (first, after), "just after to the end": (after, end),
            "before to the end": (first, end)}  # fmt: skip


def paths(lab: Lab) -> dict[str, Arm]:
    """SGD, the run with a constant rate, and RFN: the first few seeds.

    Raises:
        MissingRecord: in replay, RFN's ρ is not chosen yet.
    """
    scale, rho = lab.scale, pilots.chosen_rho(lab)
    probe = Path(stops(scale), tuple(segments(scale).values()), images(scale))
    runs = {
        SGD: [scale.flat(None, seed) for seed in lab.few],
        CONSTANT: [scale.surrogate(Step(scale.lr), seed) for seed in lab.few],
        RFN: [pilots.sam(scale, rho, seed) for seed in lab.few],
    }
    return by_name(*(Arm(name, specs, At(probe, (scale.end,))) for name, specs in runs.items()))


def plan(lab: Lab) -> Iterator[Measurement]:
    """Paths and the plane from the checkpoint."""
    yield from by_seed(paths(lab).values())
    yield from local(lab)[1].measurements()


def later(lab: Lab) -> Iterator[Measurement]:
    """The plane of whole trainings."""
    yield from whole(lab)[1].measurements()


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Spot:
    """A network on a plane: whose, after how many epochs, where, how far from it, and its success if it is recorded."""

    arm: str
    epoch: float
    x: float
    y: float
    apart: float
    success: float | None


@dataclass(frozen=True)
class Landscape:
    """A plane of the loss: coordinates, loss and success on the grid, and the networks beside it.

    Attributes:
        x, y: coordinates of the grid, in units of the weights.
        loss, success: (y, x); success of images that count, in [0, 1].
        spots: the networks: the origin, the corners, the others.
    """

    name: str
    x: np.ndarray
    y: np.ndarray
    loss: np.ndarray
    success: np.ndarray
    spots: tuple[Spot, ...]

    @classmethod
    def of(cls, lab: Lab, shown: list[tuple[str, Place]], arm: Arm) -> Landscape:
        """What `lab` has of a plane and of its networks' success.

        Raises:
            MissingRecord: in replay, the plane is not recorded.
        """
        (row,) = lab.read(arm)
        spots = tuple(
            Spot(name, place.epoch, x, y, apart, _success(lab, place))
            for (name, place), (x, y, apart) in zip(shown, row["places"], strict=True)
        )
        x, y, loss, success = (np.array(row[name], float) for name in ("x", "y", "loss", "success"))
        return cls(arm.name, x, y, loss, success, spots)

    def along(self) -> float:
        """Spearman's correlation of loss and success over the grid."""
        known = np.isfinite(self.loss) & np.isfinite(self.success)
        return spearman(self.loss[known], self.success[known])

    def table(self) -> pd.DataFrame:
        """A row a network: where it is, how far from the plane, and its success."""
        rows = [
            {"network": f"{s.arm}, epoch {s.epoch:g}", "x": f"{s.x:z.2f}", "y": f"{s.y:z.2f}",
             "from the plane": f"{s.apart:.2f}", "success": words.percent(s.success)}
            for s in self.spots
        ]  # fmt: skip
        return pd.DataFrame(rows).set_index("network")


def _success(lab: Lab, place: Place) -> float | None:
    """Of a network, if it is recorded, with the scale's attack."""
    arm = Arm("shown", [place.spec], At(lab.scale.transfer, (place.epoch,)))
    try:
        return lab.replaying().read(arm).at().value
    except MissingRecord:
        return None


@dataclass(frozen=True)
class Journeys:
    """Paths of whole runs: rows of `planes.Path` by run, one a seed.

    Attributes:
        rows: by the run's name.
        stops: the epochs of the networks.
        segments: pairs of epochs by their names, as barriers were measured.
    """

    rows: Mapping[str, list[dict[str, Any]]]
    stops: tuple[float, ...]
    segments: Mapping[str, tuple[float, float]]

    def length(self, name: str, begin: float = 0.0, end: float = np.inf) -> Estimate:
        """The length of the polygon through the networks from `begin` to `end`, over seeds."""
        within = [begin < e <= end for e in self.stops]
        return over_seeds(np.array([np.sum(np.array(row["legs"])[within]) for row in self.rows[name]]))

    def displacement(self, name: str) -> Estimate:
        """How far the end is from the start."""
        return over_seeds(np.array([row["displaced"][-1] for row in self.rows[name]]))

    def barrier(self, name: str, segment: str) -> Estimate:
        """How high the segment rises above the line between its ends' losses, over seeds."""
        i = list(self.segments).index(segment)
        return over_seeds(np.array([barrier(row["losses"][i]) for row in self.rows[name]]))

    def one_basin(self, name: str, segment: str) -> bool:
        """Whether the barrier is below `BASIN` times the higher loss at the ends, in every seed."""
        i = list(self.segments).index(segment)
        return all(barrier(row["losses"][i]) < BASIN * max(row["losses"][i][0], row["losses"][i][-1])
                   for row in self.rows[name])  # fmt: skip

    def table(self) -> pd.DataFrame:
        """A row a run: lengths before and after the first decay, displacement, norm, barriers."""
        first = list(self.segments.values())[0][0]
        rows = {}
        for name, of in self.rows.items():
            rows[name] = {
                "seeds": str(len(of)),
                "path up to the first decay": plain(self.length(name, end=first)),
                "path after it": plain(self.length(name, begin=first)),
                "displacement": plain(self.displacement(name)),
                "norm at the end": plain(over_seeds(np.array([row["norms"][-1] for row in of]))),
                **{f"barrier, {s}": plain(self.barrier(name, s)) for s in self.segments},
            }
        return pd.DataFrame(rows).T.rename_axis("run")

    def headline(self) -> str:
        """Whether the decay leaves the basin, in words."""
        across = list(self.segments)[0]
        told = [f"{name} {plain(self.barrier(name, across))}" for name in self.rows]
        same = [name for name in self.rows if self.one_basin(name, list(self.segments)[-1])]
        basin = f"no barrier from there to the run's own end: {words.listed(same or ['none'])}"
        return f"Barrier of the loss within a run, from the first decay to just after it: {'; '.join(told)}; {basin}."


def plain(e: Estimate) -> str:
    """A quantity in units of its own with its interval."""
    return f"{e.value:.3g} {words.bounds(e, '{:.3g}'.format)}".replace("-", "−")


def journeys(lab: Lab) -> Journeys:
    """Paths and barriers of those runs that are complete.

    Raises:
        MissingRecord: in replay, SGD's are not recorded.
    """
    found = lab.curves(paths(lab), needed=(SGD,))
    return Journeys(found, stops(lab.scale), segments(lab.scale))


def landscapes(lab: Lab) -> list[Landscape]:
    """The planes that are recorded."""
    found = []
    for made in (local, whole):
        try:
            found.append(Landscape.of(lab, *made(lab)))
        except MissingRecord:
            continue
    return found
