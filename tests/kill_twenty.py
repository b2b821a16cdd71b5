"""Kill a training run with SIGKILL at random moments, until it is done; then compare every file of it.

    python tests/kill_twenty.py --kills 20

Every snapshot, and every full state with its momentum, must be bit for bit that of a run that nobody
disturbed, and nothing else may be left in the end. One line a kill says where it landed; the exit status is 0 if all
files are identical.
A run that ends before the last kill is compared, and another one is begun in a fresh folder.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

# Imports torch once and forks a process a run: what is killed is training, not importing.
SERVER = """
import os, sys
from pathlib import Path
import torch, torch._dynamo  # the second is what the first optimizer would take a second to import
torch.set_num_threads(1)
from rfnlib import data, training
from rfnlib.specs import Step, TrainSpec
training.SECONDS_BETWEEN_STATES = 0.0  # after every epoch
EPOCHS = int(sys.argv[1])
spec = TrainSpec(
    "digits", "resnet18", Step(0.05, (EPOCHS // 2,)), EPOCHS, n_train=200, width=4, batch=50
)
digits = data.load("digits").subset(200)
every = range(1, EPOCHS + 1)
for line in sys.stdin:
    folder, keep = line.split()
    child = os.fork()
    if child == 0:
        kept = every if keep == "all" else ()
        run = training.train(
            spec, every, dataset=digits, cache=Path(folder), keep=kept, device="cpu", progress=False
        )
        os._exit(0 if len(list(run)) == EPOCHS else 1)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Runs:
    """Training runs of `epochs` epochs, each in a process of its own that can be killed."""

    def __init__(self, epochs: int):
        self.epochs = epochs
        root = str(Path(__file__).resolve().parents[1])
        self.server = subprocess.Popen(
            [sys.executable, "-c", SERVER, str(epochs)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": root, "OMP_NUM_THREADS": "1"},
        )

    def __enter__(self) -> Runs:
        return self

    def __exit__(self, *_: object) -> None:
        self.server.communicate()

    def run(self, folder: Path, kill_after: float | None = None, keep: str = "-") -> bool:
        """Train into `folder`; whether it was killed, `kill_after` seconds after its first new file."""
        before = set(files(folder))
        print(folder, keep, file=self.server.stdin, flush=True)
        child = int(self.server.stdout.readline())
        if kill_after is not None:
            while not set(files(folder)) - before and not self.ended(child):
                time.sleep(0.001)
            time.sleep(kill_after)
            if not self.ended(child):
                os.kill(child, signal.SIGKILL)
        status = int(self.server.stdout.readline())
        if status == signal.SIGKILL:
            return True
        if status:
            raise RuntimeError(f"training ended with status {status}")
        return False

    def ended(self, child: int) -> bool:
        try:
            return Path(f"/proc/{child}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
        except FileNotFoundError:
            return True


def files(folder: Path) -> dict[str, bytes]:
    """Every finished file of a run, by name."""
    found = {}
    for path in (folder / "snapshots").glob("[0-9]*.safetensors"):
        try:
            found[path.name] = path.read_bytes()
        except FileNotFoundError:  # a state that a later one has just replaced
            continue
    return found


def kill_often(kills: int, seed: int, folder: Path, epochs: int = 30, say: Callable[[str], object] = print) -> bool:
    """Kill runs `kills` times and finish them: whether they end with the bits of a quiet one."""
    moments = random.Random(seed)
    done, rounds, same = 0, 0, True
    with Runs(epochs) as runs:
        runs.run(folder / "quiet")
        quiet = files(folder / "quiet")
        runs.run(folder / "states", keep="all")
        states = files(folder / "states")
        of_step = {name[:7]: content for name, content in states.items() if ".state." in name}
        while done < kills:
            rounds += 1
            here = folder / f"round-{rounds}"
            while done < kills:
                wait = moments.uniform(0.0, 0.3)
                if not runs.run(here, kill_after=wait):
                    break
                done += 1
                found = sorted(files(here))
                kinds = [name.split(".")[1] for name in found]
                parts = len(list((here / "snapshots").glob(".*.part")))
                say(
                    f"kill {done}: run {rounds}, {wait:.3f} s after its first new file; "
                    f"{kinds.count('weights')} of {epochs} snapshots, {kinds.count('resume')} states, "
                    f"{parts} half-written files so far"
                )
                same &= all(
                    content == (of_step[name[:7]] if ".resume." in name else quiet[name])
                    for name, content in files(here).items()
                )
            runs.run(here)
            same &= files(here) == quiet
            same &= not list((here / "snapshots").glob(".*"))
    return same


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        same = kill_often(given.kills, given.seed, Path(folder))
    print(f"{given.kills} kills: bit-identical: {same}")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
