"""What claims C1 to C6 are judged by: the comparisons behind each verdict, fixed beforehand, and tables beside them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from rfnlib import experiments
from rfnlib.claims import Finding
from rfnlib.intervals import Estimate, Influence, interval, over_seeds
from rfnlib.lab import Lab
from rfnlib.scales import Scale
from rfnlib.series import Flatness, Robustness, Series
from rfnlib.specs import Step
from rfnlib.transfer import DENOMINATORS

# --- C1 ---------------------------------------------------------------------------------------------

# Natural accuracy, and robust accuracy at l2 0.25, of ResNet-50 on the whole of CIFAR-10: the README of the
# data sets that Ilyas et al. published (MadryLab/constructed-datasets). Not numbers of the paper reproduced here.
PUBLISHED = {"D_R": (0.84, 0.48), "D_NR": (0.88, 0.0), "D_rand, ε = 0.5": (0.63, 0.0), "D_det, ε = 0.5": (0.44, 0.0)}
WEAK = "l2 0.25"


@dataclass(frozen=True)
class EarlyStopping:
    """Surrogates trained on D, D_R, D_NR (and the controls): transfer and robustness along their training.

    `stops` are the epochs chosen on validation images and targets; `series` are the test ones; `budgets` the same of
    the first seed under other ε.
    """

    stops: dict[str, float]
    series: dict[str, Series]
    robustness: dict[str, Robustness]
    budgets: dict[float, dict[str, Series]]

    def help(self, name: str) -> Influence:
        """What stopping early brings: success at the chosen epoch less that at the end."""
        run = self.series[name]
        return run.at(self.stops[name]) - run.at(run.end)

    def judge(self) -> list[Finding]:
        """The comparisons behind C1: early stopping helps on robust features, and on non-robust ones."""
        pairs = [(name, self.help(name)) for name in ("D_R", "D_NR")]
        return [Finding(name, "the end of the run", interval(d), interval(d, 0.975)) for name, d in pairs]

    def peaks(self) -> pd.DataFrame:
        """Success and robust accuracy where SGD is stopped early (or at the nearest epoch probed) and at its end."""
        rows = {}
        for name, run in self.robustness.items():
            seen, stop = self.series[name], self.stops[name]
            robust = [run.at(e, WEAK).value for e in run.epochs]
            most = run.epochs[int(np.argmax(robust))]
            close = min(run.epochs, key=lambda e: abs(e - stop))
            rows[name] = {
                "stopped at epoch": f"{stop:g}",
                "success there": with_interval(interval(seen.at(stop))),
                "at the end": with_interval(interval(seen.at(seen.end))),
                f"robust ({WEAK}), stopped": f"{run.at(close, WEAK).value:.1%}",
                "robust at the end": f"{robust[-1]:.1%}",
                "most robust": f"{max(robust):.1%}, epoch {most:g}",
            }
        return pd.DataFrame(rows).T.rename_axis("trained on")


def with_interval(rate: Estimate) -> str:
    return f"{rate.value:.1%} ± {(rate.high - rate.low) / 2:.1%}"


def c1(lab: Lab) -> EarlyStopping:
    """Transfer and robustness of surrogates trained on robust and on non-robust features, at `lab`'s scale."""
    runs = experiments.feature_runs(lab)
    main = {name: specs for name, specs in runs.items() if name not in experiments.CONTROLS}
    schedule = main["D"][0].schedule
    coarse, first = lab.scale.sharp(schedule, fine=False), {name: specs[:1] for name, specs in main.items()}
    budgets = {
        eps: lab.transfer(first, epochs=coarse, attack=replace(lab.scale.attack, eps=eps))
        for eps in lab.scale.features.budgets
        if lab.mode == "run" or experiments.attacked(lab, first, coarse, eps)
    }
    return EarlyStopping(
        experiments.feature_stops(lab, runs),
        lab.transfer(runs),
        lab.robustness(runs, coarse),
        {lab.scale.attack.radius: lab.transfer(first, epochs=coarse), **budgets},
    )


def checks(lab: Lab) -> pd.DataFrame:
    """What networks trained on each built set should show, and show at the end of their training."""
    return check_table(lab.robustness(experiments.checked_runs(lab), [float(lab.scale.epochs)], kind="check"))


def check_table(runs: dict[str, Robustness]) -> pd.DataFrame:
    """Natural and robust accuracy of `runs`, named as in `PUBLISHED`, and whether they are as they should be."""
    chance, rows = 0.1, {}
    for name, run in runs.items():
        ours, weak = interval(run.at(run.end)), interval(run.at(run.end, WEAK))
        stands = {"D_R": weak.low > chance, "D_NR": weak.high < chance}.get(name, True)
        wanted = {"D_R": "accurate and robust", "D_NR": "accurate, not robust"}.get(name, "above chance")
        rows[name] = {
            "a network trained on it is": wanted,
            "seeds": ours.seeds,
            "natural accuracy": with_interval(ours),
            f"robust, {WEAK}": with_interval(weak),
            "published": ", ".join(f"{share:.0%}" for share in PUBLISHED.get(name, ())),
            "as it should be": "yes" if ours.low > chance and stands else "not shown",
        }
    return pd.DataFrame(rows).T.rename_axis("trained on")


def by_steps(lab: Lab) -> pd.DataFrame:
    """Accuracy and robustness of networks trained on D_R and D_NR, by the steps that the inversion took."""
    end, rows = float(lab.scale.epochs), {}
    for steps, runs in experiments.inversion_runs(lab).items():
        found = lab.robustness(runs, [end], kind="check")
        rows[steps] = {
            f"{name}, {label}": with_interval(interval(run.at(end, attack)))
            for name, run in found.items()
            for attack, label in (("none", "natural"), (WEAK, f"robust, {WEAK}"))
        }
    return pd.DataFrame(rows).T.rename_axis("steps")


# --- C2 ---------------------------------------------------------------------------------------------


def judge_decay_peak(series: dict[str, Series], decays: Iterable[int], after: float) -> list[Finding]:
    """The comparisons behind C2, each at epochs fixed beforehand, on test images and test targets.

    For each run that decays once, at epoch d, with s(e) its success rate and c(e) that of the run
    whose rate stays constant: a rise s(d + after) − s(d) > 0; a rise that the constant run does not
    share, s(d + after) − c(d + after) > 0; and a later decline, s(d + after) − s(end) > 0.
    """
    decays, constant = list(decays), series["constant"]
    pairs = []
    for d in decays:
        run = series[f"decay at {d}"]
        peak = run.at(d + after)
        pairs += [
            (run.name, "just before it", peak - run.at(d)),
            (run.name, "no decay, same epoch", peak - constant.at(d + after)),
            (run.name, "the end of the run", peak - run.at(run.epochs[-1])),
        ]
    level = 1 - 0.05 / len(pairs)
    return [Finding(name, against, interval(d), interval(d, level)) for name, against, d in pairs]


def by_denominator(series: dict[str, Series], decays: Iterable[int], after: float) -> pd.DataFrame:
    """Success `after` epochs past each decay under every denominator: how much the choice matters."""
    rows = {}
    for d in decays:
        rates = {name: interval(series[f"decay at {d}"].at(d + after, name)) for name in DENOMINATORS}
        rows[f"decay at {d}"] = {n: with_interval(r) for n, r in rates.items()}
    return pd.DataFrame(rows).T


# --- C3 ---------------------------------------------------------------------------------------------

MEASURES = {"top": "λ₁", "trace": "trace", "matched": "λ₁ at equal loss", "loss": "training loss"}


def judge_sharpness_drop(
    runs: dict[str, Flatness], decays: Iterable[int], after: float, measures: Sequence[str] = ("top", "trace")
) -> list[Finding]:
    """The comparisons behind C3: natural logarithms of ratios, positive where sharpness is less after the decay.

    For each run that decays once, at epoch d, with λ(e) a measure of its sharpness and κ(e) that of the run whose
    rate stays constant: log λ(d)/λ(d + after) > 0, and log κ(d + after)/λ(d + after) > 0.
    """
    constant, pairs = runs["constant"], []
    for d in decays:
        run = runs[f"decay at {d}"]
        for m in measures:
            later = _log(run.at(d + after, m))
            pairs += [
                (run.name, f"{MEASURES[m]}, just before it", _log(run.at(d, m)) - later),
                (run.name, f"{MEASURES[m]}, no decay, same epoch", _log(constant.at(d + after, m)) - later),
            ]
    level = 1 - 0.05 / len(pairs)
    return [Finding(name, against, over_seeds(x), over_seeds(x, level)) for name, against, x in pairs]


def _log(values: np.ndarray) -> np.ndarray:
    """The logarithm, NaN for what is not positive (a trace may be): such a comparison decides nothing."""
    return np.log(np.where(values > 0, values, np.nan))


# --- C4 to C6 ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Gains:
    """Flat surrogates of one architecture against SGD stopped early, at `stop`, and trained to its end.

    `stop` and `rho` (RFN's) were chosen on validation images and targets; `series` are the test ones.
    """

    stop: float
    rho: float
    series: dict[str, Series]
    targets: list[str]

    def gain(self, name: str, over: float, targets: list[int] | None = None) -> Influence:
        """Success at the end of run `name` less that of SGD at epoch `over`: same seeds, same images."""
        run = self.series[name]
        sgd = self.series["SGD"].first(len(run.accuracy))
        return run.at(run.end, targets=targets) - sgd.at(over, targets=targets)

    def against_stopping(self, name: str) -> list[Finding]:
        """The gain of `name` over early stopping on every target."""
        level = 1 - 0.05 / len(self.targets)
        pairs = [(target, self.gain(name, self.stop, [t])) for t, target in enumerate(self.targets)]
        return [Finding(name, target, interval(d), interval(d, level)) for target, d in pairs]

    def against_small(self) -> list[Finding]:
        """The comparisons behind C6: RFN against SAM, more success and less natural accuracy."""
        rfn, sam = self.series["RFN"], self.series["SAM"]
        n = min(len(rfn.accuracy), len(sam.accuracy))
        success = rfn.first(n).at(rfn.end) - sam.first(n).at(sam.end)
        cost = (sam.accuracy[:n] - rfn.accuracy[:n])[:, -1]
        return [
            Finding("RFN", "success above SAM's", interval(success), interval(success, 0.975)),
            Finding("RFN", "natural accuracy below SAM's", over_seeds(cost), over_seeds(cost, 0.975)),
        ]

    def table(self) -> pd.DataFrame:
        """One row a surrogate: natural accuracy, success, and gains in points with half their 95 % intervals."""
        rows = {}
        for name, run in {"SGD, stopped early": None, **self.series}.items():
            epoch, run = (self.stop, self.series["SGD"]) if run is None else (run.end, run)
            success = interval(run.at(epoch))
            row = {
                "seeds": len(run.accuracy),
                "natural accuracy": f"{run.accuracy[:, run.epochs.index(epoch)].mean():.1%}",
                "success": with_interval(success),
            }
            if epoch != self.stop:
                best = max(range(len(self.targets)), key=lambda t: self.gain(name, self.stop, [t]).value)
                row |= {
                    "over early stopping, mean": points(self.gain(name, self.stop)),
                    "max": f"{100 * self.gain(name, self.stop, [best]).value:+.1f} ({self.targets[best]})",
                }
                row["over full training, mean"] = "" if name == "SGD" else points(self.gain(name, run.end))
            rows[name] = row
        return pd.DataFrame(rows).T.fillna("").rename_axis("surrogate")


def points(difference: Influence) -> str:
    d = interval(difference)
    return f"{100 * d.value:+.1f} ± {50 * (d.high - d.low):.1f}"


# --- what the notebooks ask for ---------------------------------------------------------------------


def c2(lab: Lab) -> tuple[dict[str, Series], list[Finding]]:
    """The curves and the comparisons of claim C2 at `lab`'s scale."""
    series = lab.transfer(experiments.decay_runs(lab))
    return series, judge_decay_peak(series, lab.scale.decays, lab.scale.judged_after)


def c3(lab: Lab) -> tuple[dict[str, Series], dict[str, Flatness], list[Finding]]:
    """Transfer and sharpness along the same runs, and the comparisons of claim C3, at `lab`'s scale."""
    runs = experiments.sharpness_runs(lab)
    flatness = {name: lab.sharpness({name: specs}, epochs)[name] for name, (specs, epochs) in runs.items()}
    seen = {name: lab.transfer({name: specs}, epochs=epochs)[name] for name, (specs, epochs) in runs.items()}
    return seen, flatness, judge_sharpness_drop(flatness, lab.scale.decays, lab.scale.judged_after)


def late_phase(series: dict[str, Series], flatness: dict[str, Flatness], scale: Scale) -> pd.DataFrame:
    """Success and sharpness under the standard schedule, from its last decay to the end: means over seeds."""
    name = next(n for n, f in flatness.items() if f.spec.schedule == Step(scale.lr, scale.standard))
    seen, flat, rows = series[name], flatness[name], {}
    for e in (e for e in flat.epochs if e >= max(scale.standard)):
        rate = interval(seen.at(e))
        means = {label: f"{np.mean(flat.at(e, m)):.4g}" for m, label in MEASURES.items()}
        rows[f"{e:g}"] = {"success": with_interval(rate), **means}
    return pd.DataFrame(rows).T.rename_axis("epoch")


def gains(lab: Lab, which: int = 0) -> Gains:
    """Flat surrogates of architecture number `which` against early stopping: claims C4 to C6."""
    runs, end = experiments.flat_runs(lab, which), [float(lab.scale.epochs)]
    series = {n: lab.transfer({n: specs}, epochs=None if n == "SGD" else end)[n] for n, specs in runs.items()}
    stop, rho = experiments.stopping_epoch(lab, which), experiments.chosen_rho(lab, which)
    return Gains(stop, rho, series, [t.arch for t in lab.targets("test")])


def sweep(lab: Lab, which: int = 0) -> pd.DataFrame:
    """Success, natural accuracy and sharpness at the end of training, by ρ (0 is SGD): means over seeds."""
    end = [float(lab.scale.epochs)]
    rows = []
    runs = {"SGD": experiments.flat_runs(lab, which)["SGD"], **experiments.sweep_runs(lab, which)}
    for name, specs in runs.items():
        (seen,), flat = lab.transfer({name: specs}, epochs=end).values(), lab.sharpness({name: specs[:1]}, end)[name]
        rate = interval(seen.at(end[0]))
        rho = specs[0].minimizer.rho if specs[0].minimizer else 0.0
        rows.append(
            {"ρ": rho, "success": rate.value, "low": rate.low, "high": rate.high, "accuracy": seen.accuracy.mean()}
            | {m: float(flat.at(end[0], m).mean()) for m in ("top", "trace", "matched", "loss")}
        )
    return pd.DataFrame(rows).set_index("ρ")


def by_budget(lab: Lab, found: Gains) -> pd.DataFrame:
    """Success of the main surrogates under every ε of the scale."""
    end, rows = [float(lab.scale.epochs)], {}
    runs = experiments.budget_runs(lab, found.stop)
    for eps in sorted({lab.scale.attack.radius, *lab.scale.budgets}):
        attack = replace(lab.scale.attack, eps=eps)
        for name, specs, epoch in (("SGD, stopped early", runs["SGD"], found.stop),
                                   *((n, runs[n], end[0]) for n in ("SGD", "SAM", "RFN"))):  # fmt: skip
            rate = interval(lab.transfer({name: specs}, epochs=[epoch], attack=attack)[name].at(epoch))
            cell = with_interval(rate)
            rows.setdefault(name, {})[f"ε = {255 * eps:g}/255"] = cell
    return pd.DataFrame(rows).T.rename_axis("surrogate")
