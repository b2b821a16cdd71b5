"""What several modules of tests set up alike.

`TINY` is a scale small enough for a lab to do all its work inside a test. `start` is a training that leaves no choice
to the machine it runs on. `same` compares weights to the bit. `run_extended` is the command in a process of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from rfnlib import scales, training
from rfnlib.attacks import BIM
from rfnlib.data import Dataset
from rfnlib.scale import Arch, Target
from rfnlib.specs import TrainSpec

TINY = replace(
    scales.SMOKE,
    name="tiny",
    n_train=200,
    surrogates=(Arch("resnet18", 4),),
    epochs=3,
    batch=40,
    decays=(1, 2),
    standard=(1, 2),
    cycle=2,
    targets=(Target(Arch("cnn", 16), 6, "validation"), Target(Arch("cnn", 8), 6), Target(Arch("resnet18", 8), 6)),
    attack=BIM(eps=32 / 255, steps=3),
    test_images=30,
    validation_images=11,
    accuracy_images=50,
    seeds=(0, 1),
    pilots=(100,),
    robustness=replace(scales.SMOKE.robustness, images=20),
)


def start(dataset: Dataset, spec: TrainSpec, cache: Path, at: Sequence[float] | None = None, **options):
    """Train eagerly on the CPU in float32, where the bits are the same every time; `options` can say otherwise."""
    eager = {"device": "cpu", "precision": "fp32", "compile": False, "progress": False}
    return training.train(spec, at, dataset=dataset, cache=cache, **{**eager, **options})


def same(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """Whether two state dicts have the same names and bits."""
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def run_extended(folder: Path, module: str, text: str, scale: str) -> None:
    """`rfnlib run` of a scale that the extension `module`, with this text, registers; what it writes is in `folder`."""
    (folder / f"{module}.py").write_text(text)
    env = {
        **os.environ, "RFN_EXTENSIONS": module, "PYTHONPATH": f"{folder}:{Path(__file__).parent}:{Path.cwd()}",
        **{f"RFN_{name.upper()}": str(folder / name) for name in ("records", "cache", "weights")},
    }  # fmt: skip
    command = [sys.executable, "-m", "rfnlib", "run", "--scale", scale, "--device", "cpu", "--workers", "1"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
