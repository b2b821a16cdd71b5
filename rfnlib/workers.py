"""Processes that measure for `rfnlib.jobs`: the cluster they form, and what one of them does.

On this machine they are one a core with one thread, or one a GPU. With a Dask scheduler's address they are whatever a
group's cluster gives: see `cluster`. A worker writes snapshots, built data sets and released weights, each atomically
and the same whoever writes it; rows it hands over.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import dask
import torch
from distributed import Client, Nanny, Scheduler, SpecCluster, get_worker
from distributed.core import Status
from distributed.worker import thread_state

from rfnlib import records
from rfnlib.checks import require
from rfnlib.lab import Lab
from rfnlib.measurements import Measurement
from rfnlib.scale import Scale

# Read when BLAS, OpenMP and glibc are loaded. glibc keeps what torch frees for its next tensors: asking the system for
# the pages of large ones anew took up to a fifth of an attack's time, and under Dask's own trim threshold half of it.
ENVIRONMENT = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
}
SETTINGS = {
    "distributed.nanny.pre-spawn-environ": ENVIRONMENT,
    "distributed.scheduler.allowed-failures": 20,  # work that was killed goes on from its states, so try again
    "distributed.scheduler.work-stealing": False,  # nobody is given more than one thing to do
    "distributed.comm.timeouts.connect": "60s",
    "distributed.scheduler.worker-ttl": None,  # nor is one given up that is silent while it compiles
    "distributed.admin.tick.limit": "1h",
    # What watches the cluster would take its share of the cores.
    "distributed.worker.profile.enabled": False,
    "distributed.admin.tick.interval": "500ms",
    "distributed.admin.system-monitor.interval": "10s",
}
NICE = 5  # so that whoever sits before the machine does not notice


class OutOfTime(Exception):
    """The time that is left does not hold another unit of work."""


class Abandoned(Exception):
    """Whoever asked for this work is gone."""


@dataclass(frozen=True)
class Place:
    """What a worker needs to stand in for the lab that asks: the scale, the device and the folders, seen by both."""

    scale: Scale
    device: str
    records: Path
    cache: Path
    weights: Path

    @classmethod
    def of(cls, lab: Lab) -> Place:
        """Where `lab` works."""
        return cls(lab.scale, lab.device, lab.folder.parent, lab.cache.parent, lab.weights.parent)


# --- the processes ----------------------------------------------------------------------------------


def cores() -> int:
    """How many cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def cluster(workers: int | None = None, scheduler: str | None = None, device: str = "cpu") -> Iterator[Client]:
    """A client of `workers` processes on this machine, which end with the block; or of the cluster at `scheduler`.

    With SLURM (through dask-jobqueue) or Kubernetes (through dask-kubernetes) the address is that of the cluster which
    they start, with one thread a worker; records, cache and weights must lie on a file system that all of them see
    under the same paths (`RFN_RECORDS`, `RFN_CACHE`, `RFN_WEIGHTS`):

    >>> from dask_jobqueue import SLURMCluster                                        # doctest: +SKIP
    >>> cluster = SLURMCluster(cores=1, processes=1, memory="8GB", walltime="08:00:00",
    ...                        job_extra_directives=["--gres=gpu:1"])                 # doctest: +SKIP
    >>> cluster.scale(jobs=16); print(cluster.scheduler_address)                      # doctest: +SKIP

    Dask's messages are pickled: whoever can reach a scheduler can run code on its workers. The one started here listens
    on this machine alone; give others a network of their own, or TLS by Dask's configuration.

    Args:
        workers: None: one a GPU if `device` is "cuda", else one a core.
        scheduler: such as "tcp://10.0.0.1:8786"; then `workers` must be None.

    Raises:
        ValueError: fewer than one worker, or a scheduler that does not answer.
    """
    if scheduler is not None:
        require(workers is None, f"workers is {workers} with a scheduler, whose cluster has its own; leave one out.")
        with _client(scheduler) as client:
            yield client
        return
    gpus = torch.cuda.device_count() if device == "cuda" else 0
    workers = (gpus or cores()) if workers is None else workers
    require(workers >= 1, f"workers is {workers}; give at least 1.")
    with tempfile.TemporaryDirectory(prefix="rfnlib-", ignore_cleanup_errors=True) as scratch:
        with dask.config.set(SETTINGS):
            processes = {i: _process(i, gpus, scratch) for i in range(workers)}
            here = {
                "cls": Scheduler,
                "options": {"host": "127.0.0.1", "port": 0, "dashboard": False, "dashboard_address": "127.0.0.1:0"},
            }
            local = SpecCluster(processes, here, name="rfnlib", silence_logs="CRITICAL")
            try:
                with _client(local) as client:
                    try:
                        yield client
                    finally:
                        end(local)
            finally:
                local.close(timeout=10)


def _process(number: int, gpus: int, scratch: str) -> dict[str, Any]:
    env = {"RFN_QUIET": "1"} | ({"CUDA_VISIBLE_DEVICES": _gpu(number % gpus)} if gpus else {})
    # No limit of memory: Dask would pause a worker that holds a data set, or restart it.
    options = {"nthreads": 1, "memory_limit": 0, "dashboard": False, "local_directory": scratch, "env": env}
    return {"cls": Nanny, "options": {**options, "silence_logs": "CRITICAL"}}


def _gpu(number: int) -> str:
    """The name of the GPU that is number `number` to this process."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return visible.split(",")[number].strip() if visible else str(number)


def _client(address: SpecCluster | str) -> Client:
    try:
        return Client(address, timeout=30, set_as_default=False)
    except (OSError, ValueError) as error:
        raise ValueError(f"no Dask scheduler answers at {address} ({error}); give tcp://HOST:PORT of one.") from error


def end(local: SpecCluster) -> None:
    """Kill the processes of `local`, whatever they do: what they have finished is on disk."""
    for nanny in local.workers.values():
        nanny.status = Status.closing_gracefully  # else it starts another one
        child = getattr(nanny.process, "process", None)
        if child is not None and child.pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, getattr(signal, "SIGKILL", signal.SIGTERM))


# --- in a worker ------------------------------------------------------------------------------------


def measure(place: Place, m: Measurement, topic: str, within: float | None = None) -> dict[str, Any]:
    """Compute what is missing of `m`. Each row goes to `topic` at once, and all of them back at the end.

    Args:
        within: seconds to stop in; None: no limit.

    Returns:
        `rows`, each with who made it; `in_time`: whether all were; `seconds` that it took: of a core its own, for what
        else the machine does is no property of it; by the clock where a GPU or several threads work.

    Raises:
        TrainingDiverged, DiskFull, BadRecord: as the lab does.
    """
    worker, task = get_worker(), thread_state.key
    _settle(worker.state.nthreads)
    clock = _clock()
    clock.begin(within)
    lab = _lab(place)
    spent = time.process_time if lab.device == "cpu" and worker.state.nthreads == 1 else time.monotonic
    begin = spent()
    lab.records = {r.key: r for r in records.read_all(lab.folder)}

    def tick() -> None:
        found = worker.state.tasks.get(task)
        if found is None or found.state == "cancelled":
            raise Abandoned(f"nobody waits for {m.label} any more")
        clock.tick()

    lab.tick, rows, in_time = tick, [], True
    try:
        clock.look()
        for row, made in lab.rows(m):
            rows.append((row, made))
            worker.log_event(topic, json.dumps({"task": task, "row": row, "made": made}))
    except OutOfTime:
        in_time = False
    return {"rows": rows, "in_time": in_time, "seconds": spent() - begin}


class Clock:
    """Tells in time that time is up: when the longest unit of work so far, and a fifth more, no longer fits.

    The first unit of a process does not count: it compiles, and reads what others find read.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self.now, self.longest, self.units = now, 0.0, 0
        self.last = self.stop = float("inf")

    def begin(self, within: float | None) -> None:
        """Begin a piece of work that may take so many seconds (None: any)."""
        self.last = self.now()
        self.stop = float("inf") if within is None else self.last + within

    def tick(self) -> None:
        """A unit is done.

        Raises:
            OutOfTime: another does not fit.
        """
        now = self.now()
        if self.units:
            self.longest = max(self.longest, now - self.last)
        self.last, self.units = now, self.units + 1
        self.look()

    def look(self) -> None:
        """Raise `OutOfTime` if another unit does not fit."""
        if self.now() + 1.2 * self.longest >= self.stop:
            raise OutOfTime


@functools.cache
def _clock() -> Clock:
    return Clock()


@functools.lru_cache(maxsize=1)
def _lab(place: Place) -> Lab:
    """The lab of this process: its images and targets stay for the measurements to come."""
    return Lab(place.scale, "run", device=place.device, records_dir=place.records, cache_dir=place.cache,
               weights_dir=place.weights)  # fmt: skip


@functools.cache
def _be_nice() -> None:
    if hasattr(os, "nice"):
        os.nice(NICE)


def _settle(threads: int) -> None:
    _be_nice()
    torch.set_num_threads(threads)  # each thread of a process has a count of its own
