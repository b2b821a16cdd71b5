"""One small JSON file a measurement: what was measured, with what, on what, and by whom it was computed.

A record holds the rows of one probe along one training run: a row a snapshot. It is rewritten whole
and atomically after every row, so that work cut short leaves what it finished. Reading checks
everything before anything is used: a damaged record is refused, never repaired or silently redone.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rfnlib import execution, paths
from rfnlib.files import write_atomic
from rfnlib.keys import key
from rfnlib.specs import SpecError, TrainSpec, parse

VERSION = 1


class BadRecord(ValueError):
    """A record that must not be used, with its path and the reason."""


@dataclass
class Record:
    """`kind` ("transfer", "clean", …) names the probe's procedure, `probe` its settings as JSON data.

    `rows` are dicts with at least `iteration`, `epoch`, `snapshot` (the key of the weights) and `made`
    (the index in `provenance` of the machine and code that computed the row).
    """

    kind: str
    spec: TrainSpec
    probe: dict[str, Any]
    per_epoch: int
    provenance: list[dict[str, Any]] = field(default_factory=list)
    rows: list[dict[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        return key(self.kind, self.spec, self.probe)

    @property
    def name(self) -> str:
        """A file name that a person can read and that ends with the key."""
        s = self.spec
        schedule = type(s.schedule).__name__.lower()
        at = "-".join(f"{m:g}" for m in getattr(s.schedule, "milestones", ()))
        width = f"w{s.width}" if s.width else "full"
        return "-".join([self.kind, s.arch, width, f"{schedule}{at}", *s.traits, f"s{s.seed}", f"{self.key}.json"])

    def add(self, row: dict[str, Any], made: dict[str, Any]) -> None:
        """Insert `row`, computed by `made`, in the order of iterations."""
        if made not in self.provenance:
            self.provenance.append(made)
        self.rows.append({**row, "made": self.provenance.index(made)})
        self.rows.sort(key=lambda r: r["iteration"])

    def row(self, iteration: int) -> dict[str, Any] | None:
        return next((r for r in self.rows if r["iteration"] == iteration), None)


def write(record: Record, folder: Path) -> Path:
    """Write `record` into `folder` under its name, atomically.

    Raises:
        DiskFull: no room; the earlier file is untouched.
    """
    head = {
        "version": VERSION,
        "kind": record.kind,
        "key": record.key,
        "per_epoch": record.per_epoch,
        "spec": record.spec.describe(),
        "probe": record.probe,
        "provenance": record.provenance,
    }
    digest = _digest(head, record.rows)
    lines = [f" {json.dumps(k)}: {json.dumps(v)}," for k, v in {**head, "digest": digest}.items()]
    rows = ",\n".join("  " + json.dumps(r) for r in record.rows)  # one row a line: small diffs
    path = folder / record.name
    write_atomic(path, "\n".join(["{", *lines, ' "rows": [', rows, " ]", "}\n"]).encode())
    return path


def read(path: Path) -> Record:
    """Read and check the record at `path`.

    Raises:
        BadRecord: not JSON, an unknown version, altered since it was written, or not what its name says.
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
        record = Record(raw["kind"], parse(raw["spec"]), raw["probe"], raw["per_epoch"], raw["provenance"], rows)
    except (KeyError, SpecError) as error:
        raise refuse(f"it lacks or misstates a field ({error})") from error
    if stated != record.key or path.name != record.name:
        raise refuse(f"it holds the measurement {record.name}, not the one it is named after")
    return record


def read_all(folder: Path) -> list[Record]:
    """Every record in `folder`, in the order of names; BadRecord if one is not to be trusted."""
    return [read(p) for p in sorted(folder.glob("*.json"))]


def made(device: str, checksum: str) -> dict[str, Any]:
    """Who computes a row: machine, code, data and day; nothing that names a person or a host."""
    how = execution.resolve(device)
    today = time.strftime("%Y-%m-%d", time.gmtime())
    return {**how.describe(), "code": _commit(), "data": checksum[:16], "date": today}


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


def _digest(head: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    # Through JSON once, so that what is hashed on writing is what reading gives back.
    plain = json.loads(json.dumps([head, rows]))
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()
