"""One small JSON file a measurement: what was measured, with what, on what, and by whom it was computed.

A record holds the rows of one probe along one training run: a row a snapshot. It is rewritten whole
and atomically after every row, so that work cut short leaves what it finished, and takes in the rows that
another process has put into its file meanwhile. Reading checks everything before anything is used: a damaged
record is refused, never repaired or silently redone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import math
import re
import subprocess
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock

from rfnlib import execution, paths
from rfnlib.checks import is_number, is_whole
from rfnlib.files import write_atomic
from rfnlib.keys import key
from rfnlib.outside import Outside
from rfnlib.specs import SpecError, TrainSpec, parse

VERSION = 2
HEX = re.compile("[0-9a-f]{16}")
ACCURACIES = ("accuracy", "train_accuracy", "train_loss")  # what every row says of its network, whatever is measured


class BadRecord(ValueError):
    """A record that must not be used, with its path and the reason."""


@dataclass
class Record:
    """The rows of one kind of measurement along one training run.

    Attributes:
        kind: "transfer", "clean", …: a class in `rfnlib.probes`.
        spec: the training run, or what stands for a network from outside.
        settings: of the measurement, as JSON data.
        data: the first digits of the data set's checksum.
        per_epoch: steps of training an epoch; 0 while there are no rows.
        provenance: the machines and codes that computed rows.
        rows: dicts with at least `iteration`, `epoch`, `snapshot` (the key of the history), `weights` (the digest of
            what was measured) and `made` (the index in `provenance`).
    """

    kind: str
    spec: TrainSpec | Outside
    settings: dict[str, Any]
    data: str
    per_epoch: int = 0
    provenance: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @functools.cached_property  # what it is made of never changes; rows and provenance are no part of it
    def key(self) -> str:
        return key(self.kind, self.spec, self.settings, self.data)

    @property
    def name(self) -> str:
        """A file name that a person can read and that ends with the key."""
        return f"{self.kind}-{self.spec.short_name}-{self.key}.json"

    def add(self, row: dict[str, Any], made: dict[str, Any]) -> None:
        """Insert `row`, computed by `made`, in the order of iterations; one that is there already stays."""
        self.per_epoch = row.get("per_epoch", self.per_epoch)
        if any(r["iteration"] == row["iteration"] for r in self.rows):
            return
        if made not in self.provenance:
            self.provenance.append(made)
        kept = {k: v for k, v in row.items() if k != "per_epoch"}
        self.rows.append({**kept, "made": self.provenance.index(made)})
        self.rows.sort(key=lambda r: r["iteration"])

    def at(self, epoch: float) -> dict[str, Any] | None:
        """The row at `epoch`, if there is one."""
        wanted = max(1, round(epoch * self.per_epoch))
        return next((r for r in self.rows if r["iteration"] == wanted), None)


def write(record: Record, folder: Path) -> Record:
    """Put `record` into `folder` under its name, atomically, with the rows that are there already; gives what is there.

    Raises:
        DiskFull: no room; the earlier file is untouched.
        BadRecord: the file that is there is not to be trusted.
    """
    path = folder / record.name
    if path.parent != folder or not record.kind.isidentifier():
        raise BadRecord(f"a record is not written to {path}; give a kind and a spec whose names can be those of files.")
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / ".lock"):  # several processes may know of rows of one measurement
        if path.exists():
            there = read(path)
            for row in record.rows:
                there.add({**row, "per_epoch": record.per_epoch}, record.provenance[row["made"]])
            record = there
        write_atomic(path, _text(record).encode())
    return record


def _text(record: Record) -> str:
    head = {
        "version": VERSION,
        "kind": record.kind,
        "key": record.key,
        "data": record.data,
        "per_epoch": record.per_epoch,
        "spec": record.spec.describe(),
        "settings": record.settings,
        "provenance": record.provenance,
    }
    digest = _digest(head, record.rows)
    lines = [f" {json.dumps(k)}: {json.dumps(v)}," for k, v in {**head, "digest": digest}.items()]
    rows = ",\n".join("  " + json.dumps(r) for r in record.rows)  # one row a line: small diffs
    return "\n".join(["{", *lines, ' "rows": [', rows, " ]", "}\n"])


def read(path: Path) -> Record:
    """Read and check the record at `path`.

    Raises:
        BadRecord: not JSON, an unknown version, altered since it was written, not what its name says, or with rows
            that no measurement could have made.
    """

    def refuse(reason: str) -> BadRecord:
        way_out = "restore the file from version control, or move it away to have it computed anew"
        return BadRecord(f"{path} is refused: {reason}; {way_out}.")

    try:
        raw = json.loads(path.read_bytes())
        version = raw.get("version")
    except (ValueError, AttributeError) as error:
        raise refuse(f"it is not a whole JSON object ({error})") from error
    if version != VERSION:
        raise refuse(f"its version is {version!r}, and this code reads version {VERSION}")
    try:
        rows, digest, stated = raw.pop("rows"), raw.pop("digest"), raw["key"]
        if digest != _digest(raw, rows):
            raise refuse("its contents were altered after it was written (the digest differs)")
        record = Record(raw["kind"], _spec(raw["spec"]), raw["settings"], raw["data"], raw["per_epoch"],
                        raw["provenance"], rows)  # fmt: skip
        if wrong := _implausible(record):
            raise refuse(wrong)
    except (AttributeError, KeyError, TypeError, SpecError) as error:
        raise refuse(f"it lacks or misstates a field ({error})") from error
    if stated != record.key or path.name != record.name:
        raise refuse(f"it holds the measurement {record.name}, not the one it is named after")
    return record


def _spec(plain: dict[str, Any]) -> TrainSpec | Outside:
    return Outside(plain["outside"], plain["digest"]) if "outside" in plain else parse(plain)


def _implausible(record: Record) -> str:
    """What no measurement could have made, in words; empty where there is nothing of the kind."""
    steps = [row["iteration"] for row in record.rows]
    if any(not is_whole(i, 1) for i in steps) or steps != sorted(set(steps)):
        return f"its rows are at the steps {steps}, which do not rise"
    if record.rows and not is_whole(record.per_epoch, 1):
        return f"it has {record.per_epoch!r} steps an epoch"
    for row in record.rows:
        where = f"at step {row['iteration']}"
        if not is_whole(row["made"], 0, len(record.provenance) - 1):
            return f"nobody made the row {where} ({row['made']!r} of {len(record.provenance)})"
        if abs(row["epoch"] * record.per_epoch - row["iteration"]) > 1:
            return f"the row {where} is said to be at epoch {row['epoch']!r}"
        if any(not HEX.fullmatch(str(row[name])) for name in ("snapshot", "weights")):
            return f"the row {where} names no weights ({row['snapshot']!r}, {row['weights']!r})"
        for name in ("accuracy", "train_accuracy", "whitebox"):
            if not is_number(row.get(name, 0), 0, 1):
                return f"{name} is {row[name]!r} {where}, which is no share"
    return ""


def read_all(folder: Path) -> list[Record]:
    """Every record in `folder`, in the order of names; BadRecord if one is not to be trusted."""
    return [read(p) for p in sorted(folder.glob("*.json"))]


def accuracies(
    found: Iterable[Record], data: str, images: int, history: str, weights: str
) -> dict[str, float | None] | None:
    """What a row says of the same network alone, on this data set and as many images; None where no row says it all."""
    for record in found:
        if "recipe" in record.settings or (record.data, record.settings.get("accuracy_images")) != (data, images):
            continue
        for row in record.rows:
            if (row["snapshot"], row["weights"]) == (history, weights) and row.keys() >= set(ACCURACIES):
                return {name: row[name] for name in ACCURACIES}
    return None


def provenance(device: str, trained: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Who computes a row: machine, code and day; nothing that names a person or a host.

    Args:
        trained: what trained the network, as `Execution.describe` tells it: where that was another way of computing, or
            another machine, `trained` says in what.
    """
    here, today = execution.resolve(device).describe(), time.strftime("%Y-%m-%d", time.gmtime())
    otherwise = {name: value for name, value in (trained or {}).items() if here.get(name) != value}
    return {**here, **({"trained": otherwise} if otherwise else {}), "code": _commit(), "date": today}


@functools.cache
def _commit() -> str:
    """The checkout's commit, with "+" if the library has changes; "unknown" outside a checkout."""
    try:
        git = ["git", "-C", str(paths.root())]
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        changes = subprocess.run([*git, "status", "--porcelain", "rfnlib"], capture_output=True, text=True, check=True)
        return head.stdout.strip() + ("+" if changes.stdout.strip() else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def pack(bits: np.ndarray) -> str:
    """A boolean array as base64 of its bits, row-major; the shape is known from the record's probe."""
    return base64.b64encode(np.packbits(np.asarray(bits, bool)).tobytes()).decode()


def unpack(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """The boolean array of `shape` that `pack` wrote.

    Raises:
        ValueError: too few or too many bits for `shape`.
    """
    raw = np.frombuffer(base64.b64decode(text), np.uint8)
    count = int(np.prod(shape))
    if len(raw) != -(-count // 8):
        raise ValueError(f"{len(raw)} bytes hold {8 * len(raw)} bits, not the {count} of shape {shape}.")
    return np.unpackbits(raw, count=count).astype(bool).reshape(shape)


def rounded(x: Any) -> float | None:
    """Five significant digits; None for what is no number, which JSON does not know.

    >>> rounded(0.123456789), rounded(float("nan"))
    (0.12346, None)
    """
    return float(f"{float(x):.5g}") if math.isfinite(x) else None


def plain(value: Any) -> Any:
    """`value` as it is read back from JSON, tuples being lists."""
    return json.loads(json.dumps(value))


def _digest(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    # Through JSON once, so that what is hashed on writing is what reading gives back.
    plain = json.loads(json.dumps([head, rows]))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
