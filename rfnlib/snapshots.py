"""Snapshots on disk: weights for others to use, and states for a run to go on from.

A file is named by its step and by the key of all that this step depends on: the spec's history up to it, and the
data. Inside it are the tensors, what they are (kind, key, spec, what they cost), the digest of the tensors and one of
that description. All of it is compared when the file is read, so that one that is damaged, or another one under its
name, is never used.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from rfnlib import adversaries, keys, minimizers
from rfnlib.files import write_atomic
from rfnlib.specs import TrainSpec

Optimizer = torch.optim.Optimizer
Contents = tuple[dict[str, Tensor], dict[str, Any]]  # tensors by name, and what they are


class DamagedSnapshot(ValueError):
    """A file that cannot be read, or is not what its name says.

    Attributes:
        why: what is wrong with it.
    """

    def __init__(self, path: Path, why: str) -> None:
        super().__init__(f"{path.name} is damaged ({why}); delete it, and it is trained again.")
        self.why = why


@dataclass(frozen=True)
class Run:
    """A spec trained on a data set, and where its files lie.

    Attributes:
        spec: what is trained.
        data: `Dataset.digest` of what it is trained on.
        per_epoch: steps an epoch.
        cache: the folder of the cache.
    """

    spec: TrainSpec
    data: str
    per_epoch: int
    cache: Path

    @property
    def folder(self) -> Path:
        """Where the files of all runs of the cache lie."""
        return self.cache / "snapshots"

    @property
    def name(self) -> str:
        """The key of the whole run."""
        return keys.key("run", self.spec.key(), self.data)

    def key(self, iteration: int) -> str:
        """The key of the network after `iteration` steps: of the spec's history up to there, and of the data."""
        return keys.key("snapshot", self.spec.history_key(iteration, self.per_epoch), self.data)

    def snapshot(self, iteration: int) -> Snapshot:
        """The snapshot after `iteration` steps, on disk or not."""
        return Snapshot(self, iteration)

    def kept_state(self, iteration: int) -> Path:
        """Where the state after `iteration` steps is kept for all runs that share this one's past."""
        return self.folder / f"{iteration:07d}-{self.key(iteration)}.state.safetensors"

    def own_state(self, iteration: int) -> Path:
        """Where the state after `iteration` steps lies until this run has a later one."""
        return self.folder / f"{iteration:07d}-{self.name}.resume.safetensors"

    def files(self, iteration: int) -> list[Path]:
        """All that may lie on disk of it after `iteration` steps."""
        return [self.snapshot(iteration).path, self.kept_state(iteration), self.own_state(iteration)]

    def own_states(self) -> list[Path]:
        """The states on disk that are only this run's."""
        return sorted(self.folder.glob(f"*-{self.name}.resume.safetensors"))

    def states(self, before: int) -> Iterator[tuple[int, Path]]:
        """The states on disk that this run would have reached by step `before`, with their steps, the latest first."""
        found = {int(p.name[:7]) for p in self.folder.glob("*.state.safetensors")}
        candidates = [(i, self.kept_state(i)) for i in found] + [(int(p.name[:7]), p) for p in self.own_states()]
        for i, path in sorted(candidates, reverse=True):
            if i <= before and path.exists():
                yield i, path


@dataclass(frozen=True)
class Snapshot:
    """The weights of a run after `iteration` steps."""

    run: Run
    iteration: int

    @property
    def spec(self) -> TrainSpec:
        """What was trained."""
        return self.run.spec

    @property
    def per_epoch(self) -> int:
        """Steps an epoch."""
        return self.run.per_epoch

    @property
    def epoch(self) -> float:
        """Epochs trained, a fraction if need be."""
        return self.iteration / self.per_epoch

    @property
    def history(self) -> str:
        """The key of the spec's history behind these weights, on whatever data: `TrainSpec.history_key`."""
        return self.spec.history_key(self.iteration, self.per_epoch)

    @property
    def key(self) -> str:
        """The key of all that these weights depend on, the data included."""
        return self.run.key(self.iteration)

    @property
    def path(self) -> Path:
        """The file."""
        return self.run.folder / f"{self.iteration:07d}-{self.key}.weights.safetensors"

    @property
    def digest(self) -> str:
        """`weights_digest` of these weights; raises as `weights`."""
        return self._read()[1]["digest"]

    @property
    def cost(self) -> dict[str, int]:
        """What the training took: `passes`, forward-backward passes of a batch; `skipped`, steps that were void."""
        return self._read()[1]["cost"]

    @property
    def execution(self) -> dict[str, Any]:
        """What computed them, as `Execution.describe` tells it."""
        return self._read()[1]["execution"]

    def weights(self) -> dict[str, Tensor]:
        """Parameters and buffers by name, on the CPU.

        Raises:
            DamagedSnapshot: the file is damaged, or is another one under this name.
        """
        return self._read()[0]

    def load_into(self, model: nn.Module) -> nn.Module:
        """`model` with these weights, in eval mode; raises as `weights`."""
        model.load_state_dict(self.weights())
        return model.eval()

    def _read(self) -> Contents:
        return read(self.path, "weights", self.key)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """16 hexadecimal digits of SHA-256 over the names, types, shapes and values of `weights`, a state dict."""
    return keys.digest(weights)


# --- files ------------------------------------------------------------------------------------------


def write(path: Path, tensors: Mapping[str, Tensor], kind: str, key: str, **about: Any) -> None:
    """Write tensors together with what they are.

    Args:
        kind: "weights" or "state".
        key: of what they depend on.
        about: more that is JSON.

    Raises:
        DiskFull: no room; nothing has changed.
    """
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    about = {"kind": kind, "key": key, "digest": keys.digest(plain), **about}
    # One entry, because safetensors writes several in an order that differs from run to run.
    write_atomic(path, save(plain, {"rfnlib": json.dumps({**about, "seal": keys.key(about)})}))


def read(path: Path, kind: str, key: str) -> Contents:
    """What `write` wrote.

    Raises:
        DamagedSnapshot: the file is damaged, or of another kind or key.
        FileNotFoundError: there is none.
    """
    content = path.read_bytes()  # once, for another process may delete the file, or put another one in its place
    try:
        about = _described(content[8 : 8 + int.from_bytes(content[:8], "little")])
        seal, tensors = about.pop("seal"), load(content)
        whole = keys.key(about) == seal and keys.digest(tensors) == about["digest"]
        same = (about["kind"], about["key"]) == (kind, key)
    except Exception as error:  # a damaged header can fail in any way: all of them mean the same here
        raise DamagedSnapshot(path, str(error) or type(error).__name__) from error
    if not whole:
        raise DamagedSnapshot(path, "its content is not what was written")
    if not same:
        raise DamagedSnapshot(path, f"it holds the {about['kind']} of another run or step")
    return tensors, about


def _described(header: bytes) -> dict[str, Any]:
    """What the header of a safetensors file says of its tensors in our words."""
    return json.loads(json.loads(header)["__metadata__"]["rfnlib"])


def prune(cache: Path, runs: Iterable[Run], built: bool = False) -> int:
    """Delete all snapshots and states that none of `runs` passes through, and what was set aside as damaged.

    Args:
        cache: the folder of the cache.
        runs: what is still wanted of it.
        built: whether runs on built data sets are wanted too, all of them.

    Returns:
        Bytes freed.
    """
    freed, there = 0, list((cache / "snapshots").glob("[0-9]*-*.*"))
    steps = {int(path.name[:7]) for path in there}
    wanted = {file for run in runs for i in steps for file in run.files(i)}
    for path in there:
        with suppress(FileNotFoundError):  # another process was faster
            if path not in wanted and not (built and _on_built(path)):
                freed += path.stat().st_size
                path.unlink()
    return freed


def _on_built(path: Path) -> bool:
    """Whether a file is of a run on a built data set; a damaged one is of none."""
    try:
        with path.open("rb") as file:
            return bool(_described(file.read(int.from_bytes(file.read(8), "little")))["spec"]["features"])
    except (ValueError, LookupError, TypeError, MemoryError, OverflowError):
        return False


# --- states -----------------------------------------------------------------------------------------


def state_of(model: nn.Module, optimizer: Optimizer, adversary: adversaries.Natural) -> Contents:
    """All that the next steps depend on: tensors, and the minimizer's counts.

    A minimizer's lists of tensors go by `kept.name.index`.
    """
    state, counts = optimizer.state_dict(), {}
    tensors = {f"model.{k}": v for k, v in model.state_dict().items()}
    tensors |= {f"adversary.{k}": v for k, v in adversary.state.items()}
    if isinstance(optimizer, minimizers.SAM):
        counts = {k: v for k, v in state.items() if k not in ("base", "kept")}
        counts["kept"] = {k: v for k, v in state["kept"].items() if not isinstance(v, list)}
        lists = {k: v for k, v in state["kept"].items() if isinstance(v, list)}
        tensors |= {f"kept.{k}.{i}": v for k, vs in lists.items() for i, v in enumerate(vs)}
        state = state["base"]
    for index, slots in state["state"].items():
        tensors |= {f"optimizer.{index}.{k}": v for k, v in slots.items() if isinstance(v, Tensor)}
    return tensors, counts


def restore(
    tensors: Mapping[str, Tensor],
    counts: dict[str, Any],
    model: nn.Module,
    optimizer: Optimizer,
    adversary: adversaries.Natural,
) -> None:
    """Put `model`, `optimizer` and `adversary` where they were when `state_of` was asked."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "adversary": {}, "optimizer": {}, "kept": {}}
    for name, value in tensors.items():
        kind, _, rest = name.partition(".")
        parts[kind][rest] = value
    model.load_state_dict(parts["model"])
    adversary.state.update(parts["adversary"])
    wrapped = isinstance(optimizer, minimizers.SAM)
    base = optimizer.base if wrapped else optimizer
    weights = list(model.parameters())
    slots: dict[int, dict[str, Tensor]] = {}
    for name, value in parts["optimizer"].items():
        index, slot = name.split(".", 1)
        # The fused step walks through memory: a buffer must lie as its weights do.
        slots.setdefault(int(index), {})[slot] = torch.empty_like(weights[int(index)]).copy_(value)
    state = {**base.state_dict(), "state": slots}
    if not wrapped:
        base.load_state_dict(state)
        return
    kept: dict[str, dict[int, Tensor]] = {}
    for name, value in parts["kept"].items():
        of, index = name.rsplit(".", 1)
        kept.setdefault(of, {})[int(index)] = value
    lists = {of: [values[i] for i in sorted(values)] for of, values in kept.items()}
    optimizer.load_state_dict({**counts, "base": state, "kept": {**counts["kept"], **lists}})
