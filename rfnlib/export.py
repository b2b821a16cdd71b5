"""Every recorded row as a line of one table, for readers who would rather have pandas than this library.

    python -m rfnlib records --scale laptop --csv records.csv

Shares are in [0, 1], epochs and passes in epochs of plain training. Success is that on the standard test targets (of
pilots: on the validation ones, which are all that may be looked at), or on robust or varied ones, with its 95 %
interval over the images of that one network; seeds are lines of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pandas as pd

from rfnlib import records, words
from rfnlib.intervals import interval, share
from rfnlib.lab import Lab
from rfnlib.probes import Sharpness, outcomes
from rfnlib.scale import VARIED
from rfnlib.transfer import success


def table(lab: Lab) -> pd.DataFrame:
    """A line a recorded row of `lab`'s scale, in the order of files; what a kind does not measure is empty."""
    return pd.DataFrame([line for record in lab.records.values() for line in _lines(lab, record)])


def _lines(lab: Lab, record: records.Record) -> Iterator[dict[str, Any]]:
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
    read = {"transfer": _transfer, "sharpness": _sharpness, "robustness": _robustness}.get(record.kind)
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


def _transfer(lab: Lab, record: records.Record, row: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"attack": str(record.settings["attack"]), "white-box success": row["whitebox"]}
    scale = lab.scale
    for against in ("standard", "robust", VARIED):
        if record.settings["targets"] != [scale.target(t).key() for t in scale.targets_of(against)]:
            continue
        role = against if against != "standard" else "validation" if record.spec.seed in scale.pilots else "test"
        (hits,) = outcomes(lab, against, role, [[row]], record.name)
        found |= {"targets": role, **_estimate("success", success(hits))}
        names = [t.name for t in scale.targets_of(against) if t.role == role]
        found |= {f"on {name}": success(hits, targets=[i]).value for i, name in enumerate(names)}
    return found


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
