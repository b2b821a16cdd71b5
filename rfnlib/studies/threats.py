"""The settings of questions Q4 to Q6: what an attacker trains on, how targets were trained, the attack. Notebook 07."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import gcd, prod, sqrt
from typing import Any

import pandas as pd

from rfnlib import data, words
from rfnlib.attacks import DI, MI, PGN, RAP, IterativeAttack
from rfnlib.lab import Lab
from rfnlib.probes import Transfer
from rfnlib.scale import VARIED, Scale
from rfnlib.transforms import GradientNorm

USUAL = "as in notebook 04"
NOISE = 0.2  # the share of the labels that an attacker has wrong
LONGER = 3  # times the steps of the scale's attack, for a targeted one, which takes more to succeed (Zhao et al. 2021)


@dataclass(frozen=True)
class Setting:
    """One way to attack, or to be attacked.

    Attributes:
        probe: the attack and its targets.
        changed: fields of the surrogates' training that differ from the scale's.
        judged: whether the question's primary difference takes it in.
        few: the first few seeds alone.
    """

    probe: Transfer
    changed: dict[str, Any] = field(default_factory=dict)
    judged: bool = True
    few: bool = False


def left(scale: Scale) -> int:
    """How many images of the training set no target is trained on, in a class-balanced choice; at most as many."""
    return min(scale.n_train, data.most(scale.data) - scale.n_train) if scale.n_train else 0


def own_images(scale: Scale) -> dict[str, dict[str, Any]]:
    """What the attacker trains on, by name: fields of `TrainSpec`.

    First as many images as the targets have (or what is left) and none of theirs, which is judged, then half of these,
    then those without augmentation, and with some labels wrong. Where the targets take all images that there are, the
    last two are of these, and Q4 cannot be tested.
    """
    n, most = scale.n_train, left(scale)
    other: dict[str, dict[str, Any]] = {}
    less: dict[str, Any] = {}
    if n and most:
        unit = gcd(n, data.most(scale.data))  # a multiple of the number of classes
        less = {"skip": n, "n_train": max(unit, most // 2 // unit * unit)}
        other = {"other images": {"skip": n, "n_train": most}, "half as many": less}
    return other | {"no augmentation": {**less, "augment": False}, "noisy labels": {**less, "label_noise": NOISE}}


def attacks(scale: Scale) -> dict[str, IterativeAttack]:
    """Attacks other than the scale's, which Q6 is judged by: BIM with one thing changed, or two.

    From a random start, and no restarts: to keep the best of several takes an answer of the target, and the surrogate
    itself is fooled by all of them. The l2 ball has half the radius that reaches the corners of the scale's, as in the
    authors' earlier code (3 beside 4/255 at 224 × 224).
    """
    plain, pixels = scale.attack, prod(data.image_shape(scale.data))
    return {
        "random start": replace(plain, random_start=True),
        "MI+DI": plain | MI() | DI(),
        "margin loss": replace(plain, loss="margin"),
        "logit loss": replace(plain, loss="logit"),
        "l2": replace(plain, norm="l2", eps=round(plain.radius * sqrt(pixels) / 2, 2)),
    }


def further(scale: Scale) -> dict[str, IterativeAttack]:
    """Attacks that stand beside: of input diversity alone, flat in the input, and targeted."""
    plain, points = scale.attack, GradientNorm(n=scale.rivals.neighbours)
    return {
        "DI": plain | DI(),
        "targeted": replace(plain, targeted=True, loss="logit", steps=LONGER * plain.steps),
        "RAP": plain | RAP(),
        "PGN": plain | PGN(around=(points,)),
    }


def settings(scale: Scale, claim: str) -> dict[str, Setting]:
    """The settings of a question by name; the first is that of notebook 04, which the others are compared with."""
    beside = {name: Setting(Transfer(a), judged=False) for name, a in further(scale).items()}
    own = enumerate(own_images(scale).items())
    of = {
        "Q4": {name: Setting(scale.transfer, how, judged=i == 0, few=i > 0) for i, (name, how) in own},
        "Q5": {VARIED: Setting(Transfer(scale.attack, VARIED))},
        "Q6": {name: Setting(Transfer(a)) for name, a in attacks(scale).items()} | beside,
    }
    return {USUAL: Setting(scale.transfer, judged=False), **of[claim]}


# --- for readers ------------------------------------------------------------------------------------------


def threat_table(lab: Lab) -> pd.DataFrame:
    """A row a thing that an attacker may know: what the one of notebook 04 knows, and what is changed here."""
    scale, own, other = lab.scale, own_images(lab.scale), left(lab.scale)
    n = f"{scale.n_train or data.most(scale.data):,}"
    fewer = "nothing: no others are left (Q4)"
    if other:
        fewer = f"{other:,} others, none of the targets'; then {own['half as many']['n_train']:,} of these (Q4)"
    rows = {
        "training images": (f"the {n} that the targets were trained on", fewer),
        "labels": ("all true", f"{NOISE:.0%} replaced by another class (Q4)"),
        "augmentation": ("that of the targets", "none (Q4)"),
        "architecture": (f"his is {scale.surrogates[0].label}, which no test target has", "unchanged"),
        "how targets are trained": (
            "by SGD, all for as many epochs and at the same highest rate",
            f"{'; '.join(t.name for t in scale.targets_of(VARIED))} (Q5)",
        ),
        "answers of targets": ("none of the test targets'; ρ and the epoch at which SGD is stopped were chosen on "
                               "validation targets, trained on the same images", "the same choices"),
        "attack": (words.attack(scale.attack), f"{words.listed(list(attacks(scale)))} (Q6)"),
    }  # fmt: skip
    return pd.DataFrame(rows, index=["the attacker of notebook 04", "changed here"]).T.rename_axis("known")


def attack_table(lab: Lab) -> pd.DataFrame:
    """A row an attack of Q6 and beside it: its settings, and its passes in those of the scale's attack."""
    scale = lab.scale
    every = {USUAL: scale.attack, **attacks(scale), **further(scale)}
    rows = {
        name: {
            "settings": words.attack(a),
            "passes": f"×{a.passes / scale.attack.passes:g}",
            "judged": "yes" if name in attacks(scale) else "",
        }
        for name, a in every.items()
    }
    return pd.DataFrame(rows).T.rename_axis("attack")
