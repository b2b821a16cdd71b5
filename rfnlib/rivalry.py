"""What claims C7 and C8 are judged by: RFN among other surrogates, and under other techniques."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.stats import rankdata

from rfnlib import experiments
from rfnlib.attacks import IterativeAttack
from rfnlib.claims import Finding
from rfnlib.findings import WEAK, points, with_interval
from rfnlib.intervals import Estimate, Influence, interval
from rfnlib.lab import Lab
from rfnlib.recipes import Recipe
from rfnlib.series import Flatness, Robustness, Series

# --- C7: other surrogates ---------------------------------------------------------------------------

RIVALS = ("SAT", "LGV", "LGV-SWA", "More Bayesian", "aligned", "SAM & IR")
MARGIN = 0.05  # RFN rivals a surrogate if it succeeds less often by no more than this


@dataclass(frozen=True)
class Rivalry:
    """Surrogates trained in different ways, under one protocol; each at its own `Contender.epoch`.

    `series` are on the test targets, `robust` on those trained adversarially; `flatness` and `robustness` are of one
    network where several are attacked. `cost` is that of training, in epochs of plain training: forward-backward
    passes of the run and of the one that it starts from (a witness is not counted).
    """

    series: dict[str, Series]
    robust: dict[str, Series]
    flatness: dict[str, Flatness]
    robustness: dict[str, Robustness]
    cost: dict[str, float]

    def against(self, name: str) -> Influence:
        """Success of RFN less that of surrogate `name`: same seeds, same images."""
        rfn, other = self.series["RFN"], self.series[name]
        seeds = min(len(rfn.accuracy), len(other.accuracy))
        rfn, other = rfn.first(seeds), other.first(seeds)
        return rfn.at(rfn.end) - other.at(other.end)

    def differences(self) -> list[Finding]:
        """RFN against each of the rivals that is recorded."""
        pairs = [(name, self.against(name)) for name in RIVALS if name in self.series]
        level = 1 - 0.05 / max(len(pairs), 1)
        return [Finding("RFN", name, interval(d), interval(d, level)) for name, d in pairs]

    def judge(self) -> list[Finding]:
        """The comparisons behind C7: RFN loses to no rival by `MARGIN` or more (a test of non-inferiority)."""
        return [
            replace(f, difference=_raised(f.difference, MARGIN), guarded=_raised(f.guarded, MARGIN))
            for f in self.differences()
        ]

    def by_success(self) -> list[str]:
        """The surrogates, the most successful first."""
        rates = {name: s.at(s.end).value for name, s in self.series.items()}
        return sorted(rates, key=rates.get, reverse=True)

    def ranks(self) -> dict[str, float]:
        """The mean rank by success, 1 being the best, over targets and the seeds that all have."""
        seeds = min(len(s.accuracy) for s in self.series.values())
        rates = []
        for s in self.series.values():
            hits = s.first(seeds).hits[-1]
            rates.append(hits.adv_wrong[:, ~hits.clean_wrong.any(1)].mean(1))
        ranks = rankdata(-np.array(rates), axis=0).mean((1, 2))
        return dict(zip(self.series, ranks.tolist(), strict=True))

    def table(self) -> pd.DataFrame:
        """One row a surrogate, the most successful first."""
        rows, ranks = {}, self.ranks()
        for name in self.by_success():
            s, robust, flat, stands = (of[name] for of in (self.series, self.robust, self.flatness, self.robustness))
            rows[name] = {
                "seeds": len(s.accuracy),
                "success": with_interval(interval(s.at(s.end))),
                "RFN less it": "" if name == "RFN" else points(self.against(name)),
                "mean rank": f"{ranks[name]:.1f}",
                "on robust targets": with_interval(interval(robust.at(robust.end))),
                "natural accuracy": f"{s.accuracy.mean():.1%}",
                f"robust, {WEAK}": f"{stands.at(stands.end, WEAK).value:.1%}",
                "λ₁": f"{flat.values['top'].mean():.3g}",
                "cost in epochs": f"{self.cost[name]:g}",
            }
        return pd.DataFrame(rows).T.rename_axis("surrogate")


def _raised(estimate: Estimate, by: float) -> Estimate:
    raised = (estimate.bounds[0] + by, estimate.bounds[1] + by)
    return replace(estimate, value=estimate.value + by, centre=estimate.centre + by, bounds=raised)


def c7(lab: Lab) -> Rivalry:
    """Surrogates trained in different ways under one protocol, at `lab`'s scale."""
    runs = experiments.contenders(lab)

    def along(ask: Callable[..., dict[str, Any]], single: bool = False, **how: Any) -> dict[str, Any]:
        def of(name: str, c: experiments.Contender) -> Any:
            return ask({name: c.specs}, epochs=[c.epoch], recipe=c.single if single else c.recipe, **how)[name]

        return {name: of(name, c) for name, c in runs.items()}

    return Rivalry(
        along(lab.transfer),
        along(lab.transfer, role="robust"),
        along(lab.sharpness, single=True),
        along(lab.robustness, single=True),
        {name: _cost(lab, c) for name, c in runs.items()},
    )


def _cost(lab: Lab, contender: experiments.Contender) -> float:
    spec, total = contender.specs[0], 0.0
    at, recipe = contender.epoch, contender.recipe
    while spec:
        record = lab.measure("transfer", spec, [at], recipe=recipe)
        row = record.row(round(at * record.per_epoch))
        # The oldest records do not tell: they are of plain SGD, a pass an iteration.
        total += row.get("training", {"passes": row["iteration"]})["passes"] / record.per_epoch
        spec, recipe, at = spec.start, None, float(lab.scale.epochs)
    return round(total, 1)


# --- C8: techniques ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Grid:
    """Success of each surrogate under each technique, `rates[surrogate][technique]`; SGD and RFN on the same seeds.

    `first`: that of the first seed alone, the only one that every surrogate has.
    """

    rates: dict[str, dict[str, Influence]]
    first: dict[str, dict[str, Influence]]

    def differences(self) -> dict[str, Influence]:
        """Success of each technique on RFN less that on SGD trained to its end."""
        rfn, sgd = self.rates["RFN"], self.rates["SGD"]
        return {t: rfn[t] - sgd[t] for t in rfn if t != "none"}

    def judge(self) -> list[Finding]:
        """The comparisons behind C8: each technique succeeds more often on RFN than on SGD."""
        found = self.differences()
        level = 1 - 0.05 / max(len(found), 1)
        return [Finding(f"RFN + {t}", f"SGD + {t}", interval(d), interval(d, level)) for t, d in found.items()]

    def success(self) -> pd.DataFrame:
        """Success rates of the first seed, a row a surrogate, a column a technique."""
        return pd.DataFrame({s: {t: r.value for t, r in of.items()} for s, of in self.first.items()}).T

    def help(self) -> pd.DataFrame:
        """What each technique adds to the plain attack on the same surrogate, in points with half the interval."""
        rows = {}
        for s, of in self.rates.items():
            added = {t: points(r - of["none"]) for t, r in of.items() if t != "none"}
            rows[s] = {"seeds": interval(of["none"]).seeds, **added}
        return pd.DataFrame(rows).T.rename_axis("surrogate")


def c8(lab: Lab) -> Grid:
    """The grid of surrogates and techniques at `lab`'s scale."""
    rows, columns = experiments.technique_grid(lab)

    def seen(c: experiments.Contender, attack: IterativeAttack, recipe: Recipe | None) -> Series:
        return lab.transfer({"": c.specs}, epochs=[c.epoch], attack=attack, recipe=recipe)[""]

    found = {name: {t: seen(c, *how) for t, how in columns.items()} for name, c in rows.items()}
    rates = {name: {t: s.at(s.end) for t, s in of.items()} for name, of in found.items()}
    return Grid(rates, {name: {t: s.first(1).at(s.end) for t, s in of.items()} for name, of in found.items()})


def trade_off(lab: Lab) -> pd.DataFrame:
    """Success and white-box robust accuracy of SAT by ε and of RFN by ρ, both from SGD (0) on; one seed."""
    end, rows = float(lab.scale.epochs), []
    for name, specs in experiments.trade_off(lab).items():
        for x, spec in {0.0: lab.scale.flat(None, lab.seeds[0]), **specs}.items():
            (seen,), (run,) = (ask({name: [spec]}, epochs=[end]).values() for ask in (lab.transfer, lab.robustness))
            success, robust = interval(seen.at(end)), interval(run.at(end, WEAK))
            rows.append({"surrogate": name, "ε or ρ": x, "success": success.value, "low": success.low,
                         "high": success.high, "robust": robust.value, "natural": seen.accuracy.mean()})  # fmt: skip
    return pd.DataFrame(rows).set_index(["surrogate", "ε or ρ"])


def at_equal_robustness(frame: pd.DataFrame) -> pd.DataFrame:
    """RFN's success for each ρ, and that of SAT at the same robust accuracy, linearly between its ε (SGD being 0).

    A ρ whose robust accuracy SAT has nowhere has no number beside it.
    """
    sat, rfn = frame.loc["SAT"].sort_values("robust"), frame.loc["RFN"].drop(index=0.0)
    there = np.interp(rfn["robust"], sat["robust"], sat["success"], left=np.nan, right=np.nan)
    shown = {"robust": rfn["robust"], "RFN": rfn["success"], "SAT": there, "RFN less SAT": rfn["success"] - there}
    return pd.DataFrame(shown).rename_axis("ρ")
