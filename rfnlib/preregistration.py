"""`PREREGISTRATION.md`: what is fixed before a judged seed is trained, held to the code by a fingerprint.

    python -m rfnlib.preregistration              # write the generated parts anew: settings, gates, choices
    python -m rfnlib.preregistration "why"        # the same, and log a change of what is fixed, with the reason

The last fingerprint of the log must be that of the code: a test demands it, so nothing fixed changes in silence.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import asdict
from types import ModuleType

import pandas as pd

from rfnlib import paths, readme, scales, studies, transfer, words
from rfnlib.keys import key
from rfnlib.lab import Lab
from rfnlib.scale import Scale, Target
from rfnlib.specs import TrainSpec
from rfnlib.studies import better_surrogate, features, pilots, rfn_gains, state_of_the_art
from rfnlib.transforms import named

FILE = "PREREGISTRATION.md"
JUDGED = (scales.LAPTOP, scales.GPU)  # the scales that the plan is for
FREE = ("cell_timeout", "apart")  # settings of scales that move no number
LOGGED = re.compile(r"^- (\d{4}-\d\d-\d\d), `([0-9a-f]{16})`: (.+)$", re.MULTILINE)


def fixed() -> dict[str, object]:
    """All that must not change once it is written down; defaults are spelt out, for they are fixed as well."""
    return {
        "scales": {s.name: {n: v for n, v in asdict(s).items() if n not in FREE} for s in JUDGED},
        "training": {s.name: [run.describe() for run in _runs(s)] for s in JUDGED},
        "techniques": {s.name: _techniques(s) for s in JUDGED},
        "compared": [pilots.RIVALS, state_of_the_art.JUDGED, state_of_the_art.SLOW],
        "counted over": transfer.DEFAULT,
        "primaries": _judged(None),
        "questions": _judged(studies.BEYOND),
        "searched": [better_surrogate.BUDGET, better_surrogate.RIVALS],
        "gates": [pilots.PLATEAU, pilots.FIT, pilots.STILL, pilots.ENOUGH],
        "gates of": pilots.GATES,
        "minimizers": {s.name: {n: asdict(m) for n, m in pilots.minimizers(s).items()} for s in JUDGED},
        "secondary": rfn_gains.LONG,
    }


def _runs(scale: Scale) -> list[TrainSpec]:
    """One training run of each kind, for what scales do not say: momentum, weight decay, LGV's rate."""
    slight = pilots.slight(scale, scale.rivals.slight[0], scale.seeds[0])
    return [scale.flat(None, scale.seeds[0]), slight, pilots.lgv(scale, scale.seeds[0])]


def _techniques(scale: Scale) -> dict[str, list]:
    found = state_of_the_art.techniques(scale).items()
    return {name: [attack.describe(), named(recipe) if recipe else None] for name, (attack, recipe) in found}


def _judged(group: Iterable[ModuleType] | None) -> dict[str, list]:
    every = studies.every_claim(group).values()
    return {c.id: [c.primary, c.margin, c.unit, c.non_inferiority] for c in every}


def fingerprint() -> str:
    """16 hexadecimal digits of what is `fixed`."""
    return key("preregistration", fixed())


# --- generated parts ------------------------------------------------------------------------------------


def settings() -> pd.DataFrame:
    """A row a setting, a column a scale."""
    return pd.DataFrame({f"`{scale.name}`": _settings(scale) for scale in JUDGED}).rename_axis("setting")


def _settings(scale: Scale) -> dict[str, str]:
    run = scale.flat(None, scale.seeds[0])
    first, *second = (arch.label for arch in scale.surrogates)
    slight = scale.rivals.slight
    images = f"{scale.n_train:,}, as many of each class" if scale.n_train else "all"
    return {
        "training images": f"{scale.data}, {images}, augmented",
        "surrogate": first,
        "second architecture": words.listed(second) if second else "none",
        "training": f"{scale.epochs} epochs of SGD, batch {scale.batch}, momentum {run.momentum:g}, weight decay "
        f"{run.weight_decay:g}",
        "learning rate": words.schedule(run.schedule),
        "runs with one decay": f"at epochs {words.listed(scale.decays)}, judged "
        f"{words.count(scale.judged_after, 'epoch')} later",
        "judged seeds": words.listed(scale.seeds),
        "pilot seeds": words.listed(scale.pilots),
        "test targets": _targets(scale, "test"),
        "validation targets": _targets(scale, "validation"),
        "robust targets": _targets(scale, "robust"),
        "attack": words.attack(scale.attack),
        "images": f"{scale.test_images:,} test and {scale.validation_images:,} validation images attacked; natural "
        f"accuracy on {scale.accuracy_images:,}",
        "grid of ρ": f"{words.listed([f'{r:g}' for r in scale.rhos])}; the first is SAM's, RFN's is one of the others",
        "grid of SAT": f"{slight[0].norm}, ε {words.listed([f'{a.eps:g}' for a in slight])}, PGD-{slight[0].steps}",
        "sharpness": f"{scale.sharpness.images:,} training images, tolerance {scale.sharpness.tol:g}",
        "other minimizers": "; ".join(words.minimizer(m) for m in pilots.minimizers(scale).values()),
    }


def _targets(scale: Scale, role: str) -> str:
    chosen: list[Target] = [t for t in scale.targets if t.role == role]
    return f"{len(chosen)}: {'; '.join(t.name for t in chosen)}"


def primaries(group: Iterable[ModuleType] | None = None) -> pd.DataFrame:
    """A row a claim of a group of studies (None: the paper's): what it is judged by."""
    rows = {}
    for c in studies.every_claim(group).values():
        kind = "non-inferiority" if c.non_inferiority else "difference"
        rows[c.id] = {"primary": "; and ".join(c.primary), "test": kind, "margin": c.matters}
    return pd.DataFrame(rows).T.rename_axis("")


def gates() -> pd.DataFrame:
    """What the pilots show, by scale and gate."""
    return pd.concat({f"`{s.name}`": pilots.gate_table(Lab(s, "replay")) for s in JUDGED}, names=["scale"])


def choices() -> pd.DataFrame:
    """What the pilots choose, a column a scale."""
    labs = {f"`{s.name}`": Lab(s, "replay") for s in JUDGED}
    made = {name: [study.choice_table(lab) for study in (pilots, features)] for name, lab in labs.items()}
    found = {name: pd.concat(tables)["chosen"] for name, tables in made.items()}
    return pd.DataFrame(found).fillna("none").rename_axis("choice")


def questions() -> pd.DataFrame:
    """The same for the questions that go beyond the paper, with their text."""
    asked = {c.id: c.sentence for c in studies.every_claim(studies.BEYOND).values()}
    return pd.concat([pd.Series(asked, name="question"), primaries(studies.BEYOND)], axis=1).rename_axis("")


PARTS = {"settings": settings, "primaries": primaries, "questions": questions, "gates": gates, "choices": choices}


# --- the file -------------------------------------------------------------------------------------------


def logged(text: str) -> list[tuple[str, str, str]]:
    """The log's entries: date, fingerprint, reason."""
    return LOGGED.findall(text)


def written(text: str) -> str:
    """`text` with its generated parts made anew.

    Raises:
        ValueError: `text` has lost marks.
    """
    parts = {what: lambda table=table: readme.markdown(table()) for what, table in PARTS.items()}
    return readme.filled(text, parts, FILE)


def main(why: str = "") -> int:
    """Bring the file up to date; with `why`, log a change."""
    path = paths.root() / FILE
    text = written(path.read_text())
    now, entries = fingerprint(), logged(text)
    if not entries or entries[-1][1] != now:
        if not why:
            print(
                f"What is fixed is now {now}, which the log of {FILE} does not say; give the reason.", file=sys.stderr
            )
            return 1
        gap, today = "\n" if entries else "\n\n", time.strftime("%Y-%m-%d", time.gmtime())
        text = f"{text.rstrip()}{gap}- {today}, `{now}`: {why}\n"
    path.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
