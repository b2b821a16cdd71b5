"""`run(lab)`: makes every measurement of the plan, on all cores or on a cluster, and writes the records.

This process hands a worker that is idle the first measurement of the plan that can be made now: the measurements that
it needs are recorded, and no other worker is at a unit of its work (an epoch of a run that both share, say). It writes
each row as soon as a worker has it. A worker that dies loses what it had not saved, and the measurement goes on with
another; when this process dies, its workers die with it, and the same command goes on from the records and states.
"""

from __future__ import annotations

import json
import queue
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from distributed import Client, Future, KilledWorker

from rfnlib import files, snapshots, studies
from rfnlib.costs import Ledger, Pace, Unit
from rfnlib.lab import Lab
from rfnlib.measurements import Measurement
from rfnlib.progress import duration
from rfnlib.workers import Place, cluster, measure

SECONDS_BETWEEN_LINES = 30.0


@dataclass(frozen=True)
class Report:
    """How a run ended.

    Attributes:
        planned, recorded: measurements that are known to be needed, and those of them that are complete.
        failed: what went wrong, by measurement; the others were made.
        in_time: whether the time was enough.
    """

    planned: int
    recorded: int
    failed: Mapping[Measurement, str]
    in_time: bool

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return self.recorded == self.planned


def run(
    lab: Lab,
    *,
    claims: Sequence[str] | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    budget: float | None = None,
    prune: bool = False,
    say: Callable[[str], None] = lambda line: print(line, flush=True),
) -> Report:
    """Compute and record what is missing of `lab`'s plan, most useful first.

    Args:
        claims: only what these need; None: everything.
        workers, scheduler: see `rfnlib.workers.cluster`.
        budget: seconds to stop in; None: no limit.
        prune: whether to delete, as the work goes on, the snapshots and states that nothing that is known to be needed
            still needs. What becomes known later trains again what it finds deleted.
        say: takes a line of progress.

    Raises:
        ValueError: no such worker, scheduler or claim.
        BadRecord, DiskFull: what was finished is kept.
    """
    stop = None if budget is None else time.monotonic() + budget
    todo = Todo(lab, claims)
    if not todo.missing:
        return todo.report({}, True)
    for folder in (lab.folder, lab.weights):
        files.sweep(folder)
    with cluster(workers, scheduler, lab.device) as client:
        return _Run(todo, client, stop, prune, say).go()


class Todo:
    """What of a lab's plan is missing, in order, and how much work that is."""

    def __init__(self, lab: Lab, claims: Sequence[str] | None = None):
        self.lab, self.claims = lab, claims
        self.ledger, self.pace = Ledger(lab), Pace(lab)
        self.look()

    def look(self) -> None:
        """Ask for the plan anew: what was found can make more work known."""
        start = time.monotonic()
        self.plan = studies.plan(self.lab, self.claims)
        self.missing = [m for m in self.plan if self.lab.missing(m)]
        self._units: dict[str, Unit] = {}
        for m in self.missing:
            self._units |= self.ledger.left(m)
        self.looked, self.took = time.monotonic(), time.monotonic() - start

    @property
    def stale(self) -> bool:
        """Whether to look again; that is not done so often that it takes the time of a core."""
        return time.monotonic() - self.looked > 50 * self.took

    def done(self, m: Measurement, epochs: Iterable[float]) -> None:
        """The rows of `m` at `epochs` are recorded."""
        self.ledger.finish(m, epochs)
        if not self.lab.missing(m):
            self.missing = [other for other in self.missing if other != m]

    def ready(self, busy: Iterable[str]) -> Iterator[tuple[Measurement, dict[str, Unit]]]:
        """What can be made now, and its units of work, while others are at the units named in `busy`.

        A judged seed waits for the pilots that the plan has before it: gates are read and choices made first.
        """
        busy, waiting = set(busy), False
        for m in list(self.missing):
            if waiting and m.spec.seed in self.lab.seeds:
                continue
            waiting |= m.spec.seed in self.lab.scale.pilots
            if any(self.lab.missing(needed) for needed in m.needs(self.lab.scale)):
                continue
            units = self.ledger.left(m)
            if not busy & units.keys():
                yield m, units

    def prune(self) -> int:
        """Delete what nothing that is missing needs of the snapshots and states; return the bytes freed."""
        specs = {spec for m in self.missing for spec in m.spec.lineage()}
        wanted = [self.ledger.run(spec) for spec in specs if not spec.features]
        return snapshots.prune(self.lab.cache, wanted, built=any(spec.features for spec in specs))

    def seconds(self) -> float:
        """What all that is missing would take one worker, one unit after the other."""
        return self.pace.seconds(unit for name, unit in self._units.items() if name not in self.ledger.done)

    def report(self, failed: Mapping[Measurement, str], in_time: bool) -> Report:
        """How things stand."""
        return Report(len(self.plan), len(self.plan) - len(self.missing), failed, in_time)


@dataclass
class _Task:
    """A measurement that a worker has in hand: its units of work, and the epochs that it lacked and has now."""

    m: Measurement
    units: dict[str, Unit]
    future: Future
    lacking: int
    begun: float = field(default_factory=time.monotonic)
    epochs: set[float] = field(default_factory=set)


class _Run:
    """The loop. All that workers tell arrives in one queue, and is acted on here, in one thread."""

    def __init__(self, todo: Todo, client: Client, stop: float | None, prune: bool, say: Callable[[str], None]):
        self.todo, self.lab, self.client, self.stop, self.prune, self.say = todo, todo.lab, client, stop, prune, say
        self.place, self.topic = Place.of(todo.lab), f"rfnlib-{uuid.uuid4().hex}"
        self.inbox: queue.SimpleQueue[tuple[str, Any]] = queue.SimpleQueue()
        self.running: dict[str, _Task] = {}
        self.failed: dict[Measurement, str] = {}
        self.in_time, self.said = True, time.monotonic()

    def go(self) -> Report:
        """Until nothing more can be made, or time is up."""
        self.client.subscribe_topic(self.topic, lambda event: self.inbox.put(("row", event[1])))
        while True:
            self._submit()
            if not self.running:
                self._prune()
                return self.todo.report(self.failed, self.in_time)
            try:
                what, news = self.inbox.get(timeout=SECONDS_BETWEEN_LINES)
            except queue.Empty:
                pass
            else:
                (self._row if what == "row" else self._end)(news)
            self._tell()

    def _submit(self) -> None:
        """Give every idle worker something to do."""
        if not self.in_time or not (idle := sum(self.client.nthreads().values()) - len(self.running)):
            return
        if self.todo.stale:
            self.todo.look()
            self._prune()
        if not self._hand_out(idle) and not self.running:
            self.todo.look()
            self._hand_out(idle)

    def _prune(self) -> None:
        if self.prune and (freed := self.todo.prune()):
            self.say(f"  {freed / 1e6:,.0f} MB of snapshots deleted that nothing needs any more")

    def _hand_out(self, idle: int) -> bool:
        given = False
        while idle > 0 and (found := next(self._candidates(), None)):
            m, units = found
            within = None if self.stop is None else self.stop - time.monotonic()
            future = self.client.submit(measure, self.place, m, self.topic, within, pure=False)
            self.running[str(future.key)] = _Task(m, units, future, len(self.lab.missing(m)))
            future.add_done_callback(lambda f: self.inbox.put(("end", f)))
            idle, given = idle - 1, True
        return given

    def _candidates(self) -> Iterator[tuple[Measurement, dict[str, Unit]]]:
        busy = [name for task in self.running.values() for name in task.units]
        at_work = {task.m for task in self.running.values()}
        for m, units in self.todo.ready(busy):
            if m not in at_work and m not in self.failed:
                yield m, units

    def _row(self, text: str) -> None:
        news = json.loads(text)
        if task := self.running.get(news["task"]):
            self._add(task, news["row"], news["made"])

    def _add(self, task: _Task, row: dict[str, Any], made: dict[str, Any]) -> None:
        if row["epoch"] in task.epochs:  # told at once, and told again at the end
            return
        task.epochs.add(row["epoch"])
        self.lab.add(task.m, row, made)
        self.todo.ledger.finish(task.m, (row["epoch"],))

    def _end(self, future: Future) -> None:
        task = self.running.pop(str(future.key))
        if future.status == "error":
            self._failed(task, future.exception())
            return
        if future.status != "finished":
            raise OSError(
                "the scheduler is gone, and the work that was under way with it; what was recorded is kept, and the "
                "same command goes on from there."
            )
        outcome = future.result()
        for row, made in outcome["rows"]:
            self._add(task, row, made)
        self.in_time &= outcome["in_time"]
        self.todo.done(task.m, task.epochs)
        if len(outcome["rows"]) == task.lacking and task.units:  # in one go
            self.todo.pace.observe(task.units.values(), outcome["seconds"])
        report, rows = self.todo.report({}, True), len(task.epochs)
        self.say(
            f"[{report.recorded} of {report.planned}] {task.m.label}: {rows} row{'s' * (rows != 1)} in "
            f"{duration(time.monotonic() - task.begun)}{'' if outcome['in_time'] else ', out of time'}"
        )

    def _failed(self, task: _Task, error: BaseException) -> None:
        """A run that diverges fails alone; anything else concerns the others, too."""
        if isinstance(error, KilledWorker):
            raise OSError(
                f"{task.m.label}: the process at work on it was killed again and again, as it is where memory runs "
                "out; give fewer workers. What was finished is kept."
            ) from error
        if not isinstance(error, FloatingPointError):
            raise error
        self.failed[task.m] = str(error)
        self.todo.done(task.m, task.epochs)
        self.say(f"FAILED {task.m.label}: {error}")

    def _tell(self) -> None:
        """What every worker is at, and how much is left: a line now and then."""
        now = time.monotonic()
        if now - self.said < SECONDS_BETWEEN_LINES:
            return
        self.said = now
        at_work = "; ".join(f"{t.m.label} ({len(t.epochs)} of {t.lacking})" for t in self.running.values())
        left, n = self.todo.seconds(), max(1, sum(self.client.nthreads().values()))
        self.say(f"  about {duration(left / n)} to go on {n} worker{'s' * (n != 1)}, now at: {at_work}")
