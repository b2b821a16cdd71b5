"""Releasing the main surrogates of a scale, once they are measured: in half precision, by name, with their card.

Run it where the snapshots are, `python -m rfnlib release --scale laptop`: what was trained elsewhere is another network
than the recorded one, and is refused.
"""

from __future__ import annotations

from pathlib import Path

from rfnlib import cards, training, zoo
from rfnlib.checks import require
from rfnlib.lab import Lab
from rfnlib.measurements import At
from rfnlib.specs import TrainSpec
from rfnlib.studies import state_of_the_art

# By the names of files; LGV's collection is released as its mean.
MAIN = {"sgd-early": state_of_the_art.STOPPED, "sgd": "SGD", "sam": "SAM", "rfn": "RFN", "lgv": "LGV-SWA"}
BUDGET = 40_000_000  # bytes of all released weights, for they lie in the repository


def release(lab: Lab) -> tuple[list[Path], list[int]]:
    """Put the surrogates of `MAIN` among the scale's released weights: all of a seed, as many seeds as `BUDGET` holds.

    Returns:
        Their files, and the seeds that are left out.

    Raises:
        MissingRecord: one of them, or a choice that it rests on, is not recorded.
        BadRecord: one is another network here than the recorded one.
        ValueError: there is no room for a single seed.
    """
    wanted = of_seeds(lab)
    fitting = _fitting(lab, wanted)
    paths = []
    for seed in fitting:
        for name, (spec, at) in wanted[seed].items():
            (epoch,) = at.epochs
            paths.append(lab.release(spec, epoch, name, at.recipe))
    cards.write(lab)
    return paths, [seed for seed in wanted if seed not in fitting]


def of_seeds(lab: Lab) -> dict[int, dict[str, tuple[TrainSpec, At]]]:
    """By seed and name of a file: the run that a main surrogate comes from, and when and how it is used."""
    found: dict[int, dict[str, tuple[TrainSpec, At]]] = {seed: {} for seed in lab.seeds}
    arms = state_of_the_art.arms(lab.replaying())
    for slug, name in MAIN.items():
        for spec in arms[name].specs:
            if isinstance(spec, TrainSpec):
                found[spec.seed][f"{slug}-{spec.seed}"] = spec, arms[name].question()
    return found


def _fitting(lab: Lab, wanted: dict[int, dict[str, tuple[TrainSpec, At]]]) -> list[int]:
    """The first seeds that fit beside what is released already.

    Raises:
        ValueError: not even one does.
    """
    anew = {zoo.files(lab.scale.name, lab.weights.parent).get(name) for of in wanted.values() for name in of}
    others = [path for path in lab.weights.parent.glob("*/*.safetensors") if path not in anew]
    left = BUDGET - sum(path.stat().st_size for path in others)
    fitting: list[int] = []
    for seed, of in wanted.items():
        needed = sum(zoo.size(training.network(spec, lab.dataset(spec.features))) for spec, _ in of.values())
        left -= needed
        if left < 0:
            require(fitting, f"the main surrogates of a seed of {lab.scale.name} scale take {needed / 1e6:.1f} MB, and "
                             f"{(left + needed) / 1e6:.1f} of the {BUDGET / 1e6:g} MB for all released weights are "
                             "left; release single ones by Lab.release.")  # fmt: skip
            break
        fitting.append(seed)
    return fitting
