"""Which measure predicts transfer, across all recorded surrogates and epochs? Notebook 06, without a verdict.

For every network of a judged seed of which success and a measure are recorded, each network once: Spearman's rank
correlation of the two, and the partial one given a third quantity z, the correlation of what is left of the ranks of
either after a least-squares line on those of z. Intervals are percentiles of a bootstrap over training runs, for the
networks of one run are no independent draws. A network that several runs pass through counts once, for one of them:
those before a decay belong to the run whose rate stays.

It reads records, and computes nothing; and nothing is shown before all seeds of the runs that claims C3 to C6 compare
are there, which most networks belong to.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rfnlib import keys, probes, records, transfer, words
from rfnlib.lab import Lab, MissingRecord
from rfnlib.measurements import Arm, At, Measurement, by_seed
from rfnlib.probes import Probe
from rfnlib.studies import interventions, lr_decay, rfn_gains, sharpness_drop

MEASURES = {
    **words.MEASURES,
    "input_top": "λ₁ in the input",
    "cosine": "gradient similarity",
    "train_loss": "training loss",
    "accuracy": "natural accuracy",
}
ENDS, WAY = "at the end of training", "on the way"
GIVEN = {"train_loss": "given training loss", "accuracy": "given natural accuracy"}
DRAWS = 500  # of the bootstrap
ENOUGH = 5  # networks, for a correlation to be said
KNOWN = 1.5  # the widest interval, of the 2 that there can be, that is worth a number


def arms(lab: Lab) -> dict[str, Arm]:
    """Surrogates of claims C4 to C6, where they are attacked: their likeness to the targets, the only new measurement.

    Raises:
        MissingRecord: in replay, RFN's ρ or the stopping epoch is not chosen yet.
    """
    at = interventions.similar(lab.scale)
    found = rfn_gains.main(lab) | {str(rho): arm for rho, arm in rfn_gains.grid(lab).items()}
    return {name: Arm(arm.name, arm.specs, At(at, arm.question().epochs)) for name, arm in found.items()}


def plan(lab: Lab) -> Iterator[Measurement]:
    """Those."""
    yield from by_seed(arms(lab).values())


# --- the table of networks --------------------------------------------------------------------------------


def networks(lab: Lab) -> pd.DataFrame:
    """A row a network of which success and at least one measure are recorded: its run, and all that is known of it.

    Columns: `run` (the key of the spec), `seed`, `epoch`, `end` (whether its run ends there), `success` on test images
    and test targets, and `MEASURES`, NaN where one is not recorded.
    """
    scale = lab.scale
    hits = _rows(lab, scale.transfer)
    sharp, alike = _rows(lab, scale.sharpness), _rows(lab, interventions.similar(scale))
    judged = len(scale.targets_of("test"))
    found = []
    for network, (record, row) in hits.items():
        flat, like = (of.get(network, (None, {}))[1] for of in (sharp, alike))
        if not (flat or like):
            continue
        outcomes = probes.outcomes(lab, "standard", "test", [[row]], record.name)
        about: dict[str, Any] = {name: flat.get(name) for name in words.MEASURES}
        about |= {"input_top": like.get("input_top"), "train_loss": row["train_loss"], "accuracy": row["accuracy"]}
        about |= {"cosine": np.mean(like["cosines"][:judged]) if like else None}
        about |= {"run": record.spec.key(), "seed": record.spec.seed, "epoch": row["epoch"]}
        about |= {"end": row["epoch"] == record.spec.epochs, "success": transfer.influence(outcomes[0]).value}
        found.append(about)
    columns = ["run", "seed", "epoch", "end", "success", *MEASURES]
    return pd.DataFrame(found, columns=columns).astype(dict.fromkeys(("success", *MEASURES), float))


def _rows(lab: Lab, probe: Probe) -> dict[tuple, tuple[records.Record, dict[str, Any]]]:
    """Rows of a probe on networks of judged seeds, by what was measured: history, weights and recipe."""
    settings = records.plain(probe.settings(lab.scale))
    found: dict[tuple, tuple[records.Record, dict[str, Any]]] = {}
    kept = [r for r in lab.records.values() if r.kind == probe.kind and r.spec.seed in lab.seeds and r.rows]
    for record in sorted(kept, key=lambda r: r.name):  # a constant rate comes before a decay
        plain = {name: value for name, value in record.settings.items() if name != "recipe"}
        if plain != settings:
            continue
        recipe = keys.key(record.settings.get("recipe"))
        for row in record.rows:
            found.setdefault((row["snapshot"], row["weights"], recipe), (record, row))
    return found


# --- correlations -----------------------------------------------------------------------------------------


def spearman(x: np.ndarray, y: np.ndarray, given: np.ndarray | None = None) -> float:
    """Spearman's rank correlation, or the partial one given a third quantity; NaN where one does not vary."""
    ranks = [rankdata(v) for v in (x, y)]
    if given is not None:
        z = rankdata(given)
        ranks = [_rest(v, z) for v in ranks]
    a, b = (v - v.mean() for v in ranks)
    length = np.linalg.norm(a) * np.linalg.norm(b)
    return float(a @ b / length) if length > 1e-9 * len(a) else float("nan")


def _rest(y: np.ndarray, z: np.ndarray) -> np.ndarray:
    """What is left of y after a least-squares line on z."""
    around = z - z.mean()
    square = around @ around
    return y - y.mean() - (around @ y / square if square else 0.0) * around


@dataclass(frozen=True)
class Correlation:
    """A correlation with its 95 % interval over runs, and how many networks and runs it rests on."""

    value: float
    low: float
    high: float
    networks: int
    runs: int

    def __str__(self) -> str:
        if not np.isfinite(self.value):
            return words.MISSING
        if self.runs < 2:
            return f"{_short(self.value)} (one run)"
        if self.high - self.low > KNOWN:
            return f"not determined by {self.runs} runs"
        return f"{_short(self.value)} ({_short(self.low)} to {_short(self.high)})"


def _short(value: float) -> str:
    return words.signed(value, 2) if np.isfinite(value) else "?"


def correlation(frame: pd.DataFrame, measure: str, given: str | None = None, draws: int = DRAWS) -> Correlation:
    """Of success with `measure` over the networks that have it, with its interval over runs.

    Args:
        given: a column, for the partial correlation.
        draws: of the bootstrap; the same ones for every measure.
    """
    columns = ["success", measure, *([given] if given and given != measure else [])]
    known = frame.dropna(subset=columns)
    parts = [part[columns].to_numpy() for _, part in known.groupby("run", sort=True)]
    if len(known) < ENOUGH or (given == measure):
        return Correlation(np.nan, np.nan, np.nan, len(known), len(parts))
    random = np.random.default_rng(0)
    value = spearman(*known[columns].to_numpy().T)
    found = []
    for _ in range(draws if len(parts) > 1 else 0):
        drawn = np.concatenate([parts[i] for i in random.integers(len(parts), size=len(parts))])
        found.append(spearman(*drawn.T))
    fine = [v for v in found if np.isfinite(v)]
    low, high = np.quantile(fine, [0.025, 0.975]) if fine else (np.nan, np.nan)
    return Correlation(value, float(low), float(high), len(known), len(parts))


def _counted(frame: pd.DataFrame) -> str:
    return f"{words.count(len(frame), 'network')} of {words.count(frame['run'].nunique(), 'run')}"


# --- what was found ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Predictors:
    """All networks, and how each measure goes with success over them.

    Attributes:
        frame: as `networks` makes it.
    """

    frame: pd.DataFrame
    labels: ClassVar[Mapping[str, str]] = MEASURES

    @property
    def ways(self) -> Mapping[str, pd.DataFrame]:
        """Parts of the networks: those at the end of their run, so across methods; those on the way."""
        ends = self.frame["end"].astype(bool)
        return {ENDS: self.frame[ends], WAY: self.frame[~ends]}

    @cached_property
    def _known(self) -> dict[tuple[str, str | None], Correlation]:
        return {}

    def of(self, measure: str, given: str | None = None) -> Correlation:
        """Of success with a measure over all networks; the bootstrap is made once."""
        if (measure, given) not in self._known:
            self._known[measure, given] = correlation(self.frame, measure, given)
        return self._known[measure, given]

    def table(self) -> pd.DataFrame:
        """A row a measure: its correlation with success over all networks, partial ones, and over parts of them."""
        columns = {"all": {m: self.of(m) for m in MEASURES}}
        columns |= {label: {m: self.of(m, given) for m in MEASURES} for given, label in GIVEN.items()}
        columns |= {way: {m: correlation(frame, m) for m in MEASURES} for way, frame in self.ways.items()}
        frame = pd.DataFrame(
            {name: {m: "–" if GIVEN.get(m) == name else str(c) for m, c in of.items()} for name, of in columns.items()}
        )
        frame.insert(0, "networks (runs)", {m: f"{c.networks} ({c.runs})" for m, c in columns["all"].items()})
        return frame.rename(index=MEASURES).rename_axis("measure")

    def ranked(self, among: Sequence[str] = tuple(MEASURES)) -> list[str]:
        """Measures by the size of their correlation, the largest first; those that have one."""
        found = {m: self.of(m) for m in among}
        known = [m for m in among if np.isfinite(found[m].value)]
        return sorted(known, key=lambda m: -abs(found[m].value))

    def over(self, way: str | None = None) -> str:
        """What a correlation is, and over how many networks; `way`: over which part of them."""
        frame = self.frame if way is None else self.ways[way]
        return f"rank correlation over {_counted(frame)}{f', {way}' if way else ''}"

    def said(self, measure: str, given: str | None = None) -> str:
        """A measure with its correlation."""
        return f"{MEASURES[measure]} {self.of(measure, given)}"

    def headline(self) -> str:
        """Which measure predicts transfer best here, and how λ₁ does, in words; over the networks that have them all.

        Raises:
            MissingRecord: fewer networks are recorded than a correlation takes.
        """
        measured = [m for m in MEASURES if self.frame[m].notna().any()]
        of = Predictors(self.frame.dropna(subset=measured))
        best = of.ranked([m for m in measured if m not in GIVEN])
        if not best:
            raise MissingRecord(
                f"success and sharpness are recorded of {len(of.frame)} networks, and a correlation takes {ENOUGH}; "
                "compute more with `python -m rfnlib run` at this scale."
            )
        beside = "" if best[0] == "top" else f"; {of.said('top')}"
        partial = ", ".join(f"{of.said(best[0], g).removeprefix(MEASURES[best[0]] + ' ')} {GIVEN[g]}" for g in GIVEN)
        return (
            f"Over {_counted(of.frame)}, those with every measure, what goes with success most closely is "
            f"{of.said(best[0])}, {partial}{beside}; beside them {of.said('train_loss')} and {of.said('accuracy')}."
        )


def measure(lab: Lab) -> Predictors:
    """All networks of judged seeds whose success is recorded with a measure.

    Raises:
        MissingRecord: in replay, the sharpness of a run that claim C3 compares, or a surrogate that claims C4 to C6
            compare, is not recorded.
    """
    lab.shown(sharpness_drop.arms(lab), needed=lr_decay.judged(lab))
    compared = rfn_gains.main(lab)
    lab.shown(compared, needed=compared)
    return Predictors(networks(lab))
