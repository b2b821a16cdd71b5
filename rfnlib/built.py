"""Training sets that are built image by image: made a chunk at a time, kept in the cache, and read from there.

A chunk is written as soon as it is made, under the key of all that makes it, with the digest of its content: what is
read is what was written, or it is refused.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from rfnlib import checks, execution, paths
from rfnlib.checks import is_whole
from rfnlib.data import Dataset
from rfnlib.files import write_atomic
from rfnlib.keys import key
from rfnlib.progress import Progress

CHUNK = 500  # images made and written together

NUMERICS_VERSION = 1  # raised when the same arguments would, by a change of the code, make other images

Tick = Callable[[], None]


class FeatureError(ValueError):
    """Arguments that no data set can be built from."""


require = partial(checks.require, error=FeatureError)


class DamagedFeatures(FeatureError):
    """A file of a built data set that cannot be read, or is not what its name says."""


@dataclass(frozen=True)
class _Part:
    """A chunk of a built set: the images from `first` on, with their `labels`, in a file of the folder `name`."""

    name: str
    folder: Path
    first: int
    labels: Tensor
    image_shape: tuple[int, ...]

    @property
    def path(self) -> Path:
        return self.folder / f"{self.first:07d}.safetensors"

    def write(self, images: Tensor, settings: dict[str, Any]) -> None:
        tensors = {"images": (images * 255).round().to(torch.uint8).cpu().contiguous(), "labels": self.labels}
        about = {
            "key": self.name, "first": self.first, "sha256": digest_of(tensors.values()), "settings": settings,
            "torch": torch.__version__, "processor": execution.cpu_name(), "device": images.device.type,
        }  # fmt: skip
        write_atomic(self.path, save(tensors, {"rfnlib": json.dumps(about)}))

    def read(self) -> Tensor:
        """uint8 (n, C, H, W), checked."""
        try:
            with safe_open(self.path, "pt") as f:
                about = json.loads((f.metadata() or {}).get("rfnlib", "{}"))
                tensors = {name: f.get_tensor(name) for name in ("images", "labels")}
        except (SafetensorError, json.JSONDecodeError) as error:
            raise self._damaged(str(error)) from error
        if about.get("sha256") != digest_of(tensors.values()):
            raise self._damaged("its content is not what was written")
        images, same = tensors["images"], (about.get("key"), about.get("first")) == (self.name, self.first)
        fits = images.dtype == torch.uint8 and images.shape == (len(self.labels), *self.image_shape)
        if not (same and fits and torch.equal(tensors["labels"], self.labels)):
            raise self._damaged("it belongs to another data set")
        return images

    def _damaged(self, why: str) -> DamagedFeatures:
        where = f"{self.folder.name}/{self.path.name}"
        return DamagedFeatures(f"{where} is damaged ({why}); delete it, and it is made again.")


def built(
    data: Dataset,
    kind: str,
    settings: dict[str, Any],
    labels: Tensor,
    make: Callable[[slice, Tick], Tensor],
    *,
    ticks: int = 1,
    chunk: int = CHUNK,
    cache: Path | None = None,
    progress: bool = True,
    tick: Tick = lambda: None,
) -> Dataset:
    """The data set whose images `make` makes, a chunk at a time, those that are not on disk."""
    require(is_whole(chunk, 1), f"chunk is {chunk!r}; give an integer of at least 1.")
    require(kind.replace("-", "").isalnum(), f"kind is {kind!r}; give a name of letters, digits and hyphens.")
    settings |= {"chunk": chunk}  # which moves the last bits
    name, labels = key("features", NUMERICS_VERSION, settings), labels.cpu()
    folder = (cache or paths.cache_dir()) / "features" / name
    spans = [slice(a, min(a + chunk, len(labels))) for a in range(0, len(labels), chunk)]
    parts = [_Part(name, folder, span.start, labels[span], data.image_shape) for span in spans]
    missing = [part for part in parts if not part.path.exists()]
    with Progress(max(1, len(missing) * ticks), f"{data.name}-{kind}", progress) as bar:
        for number, part in enumerate(missing, 1):
            note = f"chunk {number} of {len(missing)}"
            span = slice(part.first, part.first + len(part.labels))
            part.write(make(span, lambda note=note: bar.advance(1, note)), settings)
            tick()
    images = torch.cat([part.read() for part in parts])
    device = data.train_labels.device
    contents = [images, labels, data.test_images, data.test_labels]
    return replace(
        data,
        name=f"{data.name}-{kind}-{name}",
        built_from=data.name,
        train_images=images.to(device),
        train_labels=labels.to(device),
        checksum=digest_of(contents),
    )


def model_digest(model: nn.Module) -> str:
    """SHA-256 of a model's structure, parameters and buffers."""
    state = model.state_dict()
    return digest_of(state.values(), repr(model), *state)


def digest_of(tensors: Iterable[Tensor], *words: object) -> str:
    """SHA-256 of what tensors hold, with types and shapes, and of `words`."""
    found = hashlib.sha256(repr(words).encode())
    for t in tensors:
        found.update(f"{t.dtype} {tuple(t.shape)}".encode())
        found.update(t.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
