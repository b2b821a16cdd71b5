"""Every recorded row as a line of one table, for readers who would rather have pandas than this library.

    python -m rfnlib records --scale laptop --csv records.csv

Shares are in [0, 1], epochs and passes in epochs of plain training. Success is that on the standard test targets (of
pilots: on the validation ones, which are all that may be looked at), or on robust or varied ones, with its 95 %
interval over the images of that one network; seeds are lines of their own. What `evaluate --role target` tried on a
model from outside has its name among the targets.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pandas as pd

from rfnlib import records, words
from rfnlib.evaluate import mirrored
from rfnlib.intervals import interval, share
from rfnlib.lab import Lab
from rfnlib.outside import Outside
from rfnlib.probes import Clean, Sharpness, outcomes
from rfnlib.scale import VARIED
from rfnlib.transfer import success

Reading = Callable[[Lab, records.Record, dict[str, Any]], dict[str, Any]]
Tried = dict[tuple[str, ...], tuple[Lab, str]]


def table(lab: Lab) -> pd.DataFrame:
    """A line a recorded row of `lab`'s scale, in the order of files; what a kind does not measure is empty."""
    tried = _tried(lab)
    return pd.DataFrame([line for record in lab.records.values() for line in _lines(lab, tried, record)])


def _tried(lab: Lab) -> Tried:
    """By the keys of the targets of an attack: the lab that knows their errors on clean images, and its word for them.

    Targets from outside, each alone, are those of `evaluate`.
    """
    theirs = [r.spec for r in lab.records.values() if r.kind == Clean.kind and isinstance(r.spec, Outside)]
    found: Tried = {}
    for of in (*(mirrored(spec, lab) for spec in theirs), lab):
        for against in ("standard", "robust", VARIED):
            found[of.scale.target_keys[against]] = of, against
    return found


def _lines(lab: Lab, tried: Tried, record: records.Record) -> Iterator[dict[str, Any]]:
    spec = record.spec
    about = {
        "kind": record.kind,
        "architecture": spec.arch,
        "width": spec.width,
        "stem": spec.stem,
        "learning rate": words.schedule(spec.schedule) if spec.schedule else "",
        "trained by": ", ".join(spec.traits) or "SGD",
        "seed": spec.seed,
        "attack": "",
        "recipe": str(record.settings.get("recipe", "")),
    }
    readings: dict[str, Reading] = {
        "transfer": partial(_transfer, tried), "sharpness": _sharpness, "robustness": _robustness
    }  # fmt: skip
    read = readings.get(record.kind)
    for row in record.rows:
        yield {
            **about,
            "epoch": row["epoch"],
            "natural accuracy": row.get("accuracy"),
            "training accuracy": row.get("train_accuracy"),
            "training loss": row.get("train_loss"),
            "passes of training": row["epochs_of_passes"],
            **(read(lab, record, row) if read else {}),
            "weights": row["weights"],
            "record": record.name,
        }


def _transfer(tried: Tried, lab: Lab, record: records.Record, row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"attack": str(record.settings["attack"]), "white-box success": row["whitebox"]}
    of, against = tried.get(tuple(record.settings["targets"]), (lab, ""))
    if not against:
        return found
    role = against if against != "standard" else "validation" if record.spec.seed in of.scale.pilots else "test"
    (hits,) = outcomes(of, against, role, [[row]], record.name)
    targets = [t.name for t in of.scale.targets_of(against) if t.role == role]
    if of is not lab:
        return found | {"targets": "".join(targets), **_estimate("success", success(hits))}
    found |= {"targets": role, **_estimate("success", success(hits))}
    return found | {f"on {name}": success(hits, targets=[i]).value for i, name in enumerate(targets)}


def _sharpness(lab: Lab, record: records.Record, row: dict[str, Any]) -> dict[str, Any]:
    return {words.MEASURES[name]: row.get(name) for name in Sharpness.measures}


def _robustness(lab: Lab, record: records.Record, row: dict[str, Any]) -> dict[str, Any]:
    n, found = record.settings["images"], dict[str, float]()
    for name, packed in row["correct"].items():
        what = "accuracy without attack" if name == "none" else f"robust accuracy, {name}"
        found |= _estimate(what, interval(share(records.unpack(packed, (1, n)))))
    return found


def _estimate(name: str, of: Any) -> dict[str, float]:
    return {name: of.value, f"{name}, low": of.low, f"{name}, high": of.high}
