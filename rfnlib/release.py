"""Releasing the main surrogates of a scale, once they are measured: in half precision, by name, with their card.

Run it where the snapshots are, `python -m rfnlib release --scale laptop`: what was trained elsewhere is another network
than the recorded one, and is refused.
"""

from __future__ import annotations

from pathlib import Path

from rfnlib import cards
from rfnlib.lab import Lab
from rfnlib.specs import TrainSpec
from rfnlib.studies import state_of_the_art

MAIN = {"sgd-early": state_of_the_art.STOPPED, "sgd": "SGD", "sam": "SAM", "rfn": "RFN"}  # by the names of files


def release(lab: Lab) -> list[Path]:
    """Put the surrogates of `MAIN`, each seed of `lab`, among its scale's released weights; their files.

    LGV is not among them: its mean is taken of weights in full precision, so that rounded it would be another network
    than the one that was measured.

    Raises:
        MissingRecord: one of them, or a choice that it rests on, is not recorded.
        BadRecord: one is another network here than the recorded one.
    """
    view, paths = lab.replaying(), []
    arms = state_of_the_art.arms(view)
    for slug, name in MAIN.items():
        (epoch,) = arms[name].asked[0].epochs
        paths += [lab.release(spec, epoch, f"{slug}-{spec.seed}") for spec in arms[name].specs
                  if isinstance(spec, TrainSpec)]  # fmt: skip
    cards.write(lab)
    return paths
