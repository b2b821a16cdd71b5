"""Compute what the notebooks need, on all cores, then run them headlessly and strictly, and account for every one.

Papermill is permissive: a misspelt parameter is a warning, a cell may run for ever, `sys.exit(0)`
is success. `reproduce` refuses what it does not know before anything runs, bounds every cell, and
calls a notebook done only when each of its cells ran. `refresh` is for the other kind of run: it
re-executes the committed notebooks in place, with the parameters that they are committed with.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import nbformat
from filelock import FileLock, Timeout

from rfnlib import paths

if TYPE_CHECKING:
    from rfnlib.scale import Scale

KERNELSPEC = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
WORD = r"(?:supported|contradicted|no effect|inconclusive|not testable)"
VERDICT = re.compile(rf"^[CQ]\d+[a-z]? {WORD}: .*$", re.MULTILINE)
GATE = re.compile(r"gate '([^']+)' failed \((.*?)\)(?:; |$)")  # its name and its figure
EXPECTED = (
    "At {} scale that is expected: nothing is trained for long enough to test a claim. What it shows is that "
    "everything computes."
)
SCALE = re.compile(r'^(scale: str = )"\w+"', re.MULTILINE)  # as committed notebooks say it
# Cells that papermill adds; numbers that we print count those of the committed notebook.
ADDED_BY_PAPERMILL = {"injected-parameters", "papermill-error-cell-tag"}


@dataclass(frozen=True)
class Result:
    """What became of one notebook; `error` is empty when it ran to its end."""

    notebook: str
    error: str
    verdicts: tuple[str, ...]
    seconds: float
    peak_mb: float | None  # None where the platform does not tell


def reproduce(
    scale: str,
    *,
    mode: str = "run",
    only: str | Sequence[str] | None = None,
    seeds: Sequence[int] | None = None,
    device: str = "auto",
    out: Path | str | None = None,
    records: Path | str | None = None,
    timeout: float | None = None,
    workers: int | None = None,
    scheduler: str | None = None,
    anew: bool = False,
) -> int:
    """Compute what the notebooks' claims need, execute the notebooks in numeric order, then print verdicts and costs.

    A notebook that fails is named with its cell, and the rest still run. Executed notebooks, their logs and figures go
    to `out`. A scale that is `apart` also has its records, weights and cache there: what it shows is that everything
    computes, so it begins with none of the project's. What an earlier run left there is taken up, as everywhere.

    Args:
        scale: a name in `rfnlib.scales`.
        mode: "run" computes what is missing, "replay" only draws what is recorded.
        only: numbers or beginnings of names ("02"); all notebooks when None.
        seeds: of the surrogates; None: the scale's.
        device: "auto", "cpu" or "cuda".
        out: `build/<scale>` of the checkout when None.
        records: where records are read and written, if not where the scale has them.
        timeout: the most seconds that one cell may take; None: the scale's.
        workers, scheduler: who computes, see `rfnlib.workers.cluster`. As many notebooks run side by side; with a
            scheduler, one a core.
        anew: empty `build/<scale>` first, of a scale that has its records there.

    Returns:
        0 when every notebook ran to its end, else 1: an exit status.

    Raises:
        ValueError: before anything runs, for an unknown scale or mode, a parameter that a
            notebook does not have, a value of another type than the notebook's own, an `only`
            that matches nothing, a folder that another process is at work in, or `anew` where records lie elsewhere.
    """
    from rfnlib import parameters, scales  # here, so that the process that runs one notebook stays small
    from rfnlib.checks import require
    from rfnlib.workers import cores

    wanted = scales.get(scale)
    seeds = wanted.seeds if seeds is None else seeds
    seeds = list(seeds) if isinstance(seeds, tuple | range) else seeds
    given = {"mode": mode, "scale": scale, "seeds": seeds, "device": device}
    require(
        wanted.apart or not anew,
        f"anew is True, but records of {scale} scale are not in build/{scale}; move away those that are to be computed "
        f"again, from {paths.shown(paths.records_dir() / scale)}.",
    )
    notebooks = find_notebooks(only)
    for notebook in notebooks:
        parameters.defaults(notebook, given)

    folder = Path(out).resolve() if out else paths.root() / "build" / scale
    with _alone(folder):
        if out is None and anew:  # nobody's folder but ours is emptied
            shutil.rmtree(folder, ignore_errors=True)
        if wanted.apart and mode == "run" and any(folder.glob(f"records/{scale}/*.json")):
            print(f"What is recorded in {paths.shown(folder)}/ is not computed again; --anew (ANEW=1) forgets it.")
        folder.mkdir(parents=True, exist_ok=True)
        moved = _folders(wanted.apart, folder, records)
        if mode == "run":
            _fill(wanted, notebooks, seeds, device, moved, workers, scheduler)
        # Networks as small as those of a scale apart lose by sharing their work, most of all beside others.
        usual = {"OMP_NUM_THREADS": "1"} if wanted.apart else {}
        environment = {**usual, **os.environ, **{f"RFN_{name.upper()}": str(path) for name, path in moved.items()}}
        limit = int(timeout or wanted.cell_timeout)
        how = partial(_execute, given=given, folder=folder, timeout=limit, env=environment)
        results = _execute_all(notebooks, workers or cores(), how)
    complete = sum(not result.error for result in results)
    print(f"\n{_table(results)}\n")
    if gates := dict(gate for result in results for verdict in result.verdicts for gate in GATE.findall(verdict)):
        print("Not passed, so that what they go before is not testable:")
        print(*(f"  {name}: {figure}" for name, figure in gates.items()), sep="\n")
        print(f"{EXPECTED.format(scale)}\n" if wanted.apart else "")
    print(f"{complete} of {len(notebooks)} notebooks ran to their end; see {paths.shown(folder)}/")
    return 0 if complete == len(notebooks) else 1


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keep `folder` from other processes that reproduce.

    Raises:
        ValueError: one is at work there.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder.with_name(f".{folder.name}.lock"), timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(
            f"another process is at work in {paths.shown(folder)}/ and would lose what it has there; wait for its end."
        ) from None
    try:
        yield
    finally:
        lock.release()


def _folders(apart: bool, folder: Path, records: Path | str | None) -> dict[str, Path]:
    """Where `rfnlib.paths` is to send what notebooks and workers write, by the name of the kind."""
    moved = {"figures": folder / "figures"}
    if apart:
        moved |= {name: folder / name for name in ("records", "cache", "weights")}
    if records is not None:
        moved["records"] = Path(records).resolve()
    return moved


def _fill(
    scale: Scale,
    notebooks: Sequence[Path],
    seeds: Sequence[int],
    device: str,
    moved: Mapping[str, Path],
    workers: int | None,
    scheduler: str | None,
) -> None:
    """Record what the claims of `notebooks` need. What cannot be computed their cells will tell."""
    from rfnlib import jobs, studies
    from rfnlib.lab import Lab

    shown = {notebook.stem for notebook in notebooks}
    every = (*studies.STUDIES, *studies.BEYOND)
    claims = [claim for study in every if study.NOTEBOOK in shown for claim in study.CLAIMS]
    if claims:
        own = {f"{name}_dir": moved[name] for name in ("records", "cache", "weights") if name in moved}
        jobs.run(Lab(scale, "run", seeds, device, **own), claims=claims, workers=workers, scheduler=scheduler)


def refresh(only: str | Sequence[str] | None = None) -> None:
    """Re-execute the committed notebooks in place, in replay, leaving nothing of this machine.

    Each at the scale that the records decide most at, `studies.decided_at`. A notebook is written only when all of it
    ran, so an error leaves the file as it was.
    """
    from nbclient import NotebookClient

    from rfnlib import parameters, studies

    for notebook in find_notebooks(only):
        mode = parameters.defaults(notebook)["mode"]
        if mode != "replay":
            raise ValueError(
                f"{notebook.name} has mode = {mode!r}; committed notebooks replay, so set "
                "mode = 'replay' in its parameters cell."
            )
        print(f"{notebook.stem} ...", end=" ", flush=True)
        start = time.monotonic()
        content = nbformat.read(notebook, as_version=4)
        (cell,) = (c for c in content.cells if "parameters" in c.metadata.get("tags", ()))
        cell.source = SCALE.sub(rf'\g<1>"{studies.decided_at(notebook.stem)}"', cell.source)
        client = NotebookClient(
            content,
            kernel_name=KERNELSPEC["name"],
            timeout=600,
            record_timing=False,  # times of day would differ at every run
            coalesce_streams=True,  # where one output ends and the next begins would differ too
            extra_arguments=["--IPKernelApp.log_level=ERROR"],  # else it warns about the transport
            resources={"metadata": {"path": str(notebook.parent)}},
        )
        client.execute(env={**os.environ, "RFN_QUIET": "1"})
        content.metadata.pop("widgets", None)  # without their state GitHub renders nothing at all
        content.metadata.pop("papermill", None)
        content.metadata.update(kernelspec=KERNELSPEC, language_info={"name": "python"})
        for cell in content.cells:
            cell.metadata.pop("execution", None)
            cell.metadata.pop("papermill", None)
        _write(content, notebook)
        print(f"{time.monotonic() - start:.0f} s", flush=True)


def find_notebooks(only: str | Sequence[str] | None = None) -> list[Path]:
    """The notebooks in numeric order; with `only`, those whose number or name begins so."""
    folder = paths.notebooks_dir()
    found = list(folder.glob("*.ipynb"))
    if not found:
        raise ValueError(f"There is no notebook in {paths.shown(folder)}: run this in a checkout.")
    for path in found:
        if not re.match(r"\d+_", path.name):
            raise ValueError(f"{path.name} has no number; name it like 02_lr_decay_peak.ipynb.")
    found.sort(key=lambda path: (int(path.name.split("_")[0]), path.name))
    if only is None:
        return found
    chosen = set()
    for wanted in [only] if isinstance(only, str) else only:
        matching = {path for path in found if wanted and path.name.startswith(wanted)}
        if not matching:
            names = ", ".join(path.stem for path in found)
            raise ValueError(f"No notebook begins with {wanted!r}; there are {names}.")
        chosen |= matching
    return [path for path in found if path in chosen]


def _execute_all(notebooks: Sequence[Path], at_once: int, how: Callable[..., Result]) -> list[Result]:
    """Run the notebooks, so many side by side, and say of each in their order how it went.

    Args:
        how: `_execute`, given all but the notebook and the list of processes.
    """
    running: list[subprocess.Popen] = []
    results: list[Result] = []
    with ThreadPoolExecutor(at_once) as pool:
        found = [pool.submit(how, notebook, running) for notebook in notebooks]
        try:
            for number, (notebook, result) in enumerate(zip(notebooks, found, strict=True), 1):
                print(f"[{number}/{len(notebooks)}] {notebook.stem} ...", end=" ", flush=True)
                results.append(result.result())
                print(_in_short(results[-1]), flush=True)
        except BaseException:  # Ctrl-C, or SIGTERM: see `__main__`
            pool.shutdown(wait=False, cancel_futures=True)
            _stop(running, found)
            raise
    return results


def _stop(running: Sequence[subprocess.Popen], found: Sequence[Future]) -> None:
    """Have every process stop its kernel, also one that is only just started, until none of `found` is at work."""
    told, patience = set[int](), time.monotonic() + 30
    while not all(each.done() for each in found):
        for child in running:
            if time.monotonic() > patience:
                child.kill()
            elif child.pid not in told:
                child.terminate()
                told.add(child.pid)
        time.sleep(0.1)


def _execute(
    notebook: Path,
    running: list[subprocess.Popen],
    given: Mapping[str, Any],
    folder: Path,
    timeout: int,
    env: Mapping[str, str],
) -> Result:
    """Run one notebook in a process of its own, put among `running`; and read what happened from what it wrote."""
    target, log = folder / notebook.name, folder / f"{notebook.stem}.log"
    target.unlink(missing_ok=True)  # an earlier run's must not be taken for this one's
    request = {"source": notebook, "target": target, "parameters": given, "timeout": timeout}
    command = [sys.executable, "-m", "rfnlib.reproduce", json.dumps(request, default=str)]
    start = time.monotonic()
    with open(log, "w", encoding="utf-8") as sink:
        # The child ends when its standard input does: also when this process is killed.
        with subprocess.Popen(command, env=env, stdin=subprocess.PIPE, stdout=sink, stderr=subprocess.STDOUT) as child:
            running.append(child)
            status = child.wait()
    seconds = time.monotonic() - start

    content = nbformat.read(target, as_version=4) if target.exists() else nbformat.v4.new_notebook()
    outcome = content.metadata.get("rfnlib")
    if outcome is None:  # the process did not live to write one
        said = _last_line(log.read_text(encoding="utf-8", errors="replace"))
        outcome = {"error": f"its start: ended with status {status}, saying {said!r}"}
    printed = "".join(
        output.text
        for cell in content.cells
        for output in cell.get("outputs", ())
        if output.output_type == "stream" and output.name == "stdout"
    )
    verdicts = tuple(VERDICT.findall(printed))
    return Result(notebook.stem, outcome["error"], verdicts, seconds, outcome.get("peak_mb"))


def _stop_with_parent() -> None:
    """SIGTERM stops this process and its kernel, and so does the end of the one that started it."""

    def stop(*_: Any) -> None:
        raise KeyboardInterrupt

    def watch() -> None:
        sys.stdin.buffer.read()
        os.kill(os.getpid(), signal.SIGTERM)

    signal.signal(signal.SIGTERM, stop)
    threading.Thread(target=watch, daemon=True).start()


def _run_one(source: str, target: str, parameters: dict[str, Any], timeout: int) -> None:
    """The other process: papermill, and a note on how it went in the executed notebook.

    It is a process of its own so that the peak of its children's resident memory is that of this
    one kernel, and so that the caller may itself be a notebook.
    """
    import papermill

    logging.basicConfig(level=logging.INFO, format="%(message)s")
    problem = None
    try:
        papermill.execute_notebook(
            source,
            target,
            parameters,
            kernel_name=KERNELSPEC["name"],
            cwd=str(Path(source).parent),
            progress_bar=False,
            log_output=True,
            start_timeout=120,
            execution_timeout=timeout,
        )
    except Exception as error:  # whatever it was, the note below says it
        logging.exception("%s stopped", source)
        problem = error
    content = nbformat.read(target, as_version=4)
    content.metadata["rfnlib"] = {"error": _failure(content, problem), "peak_mb": _peak_mb()}
    _write(content, Path(target))


def _failure(content: nbformat.NotebookNode, problem: Exception | None) -> str:
    """One line on the cell that stopped a notebook; empty when all of it ran."""
    cells = [c for c in content.cells if not ADDED_BY_PAPERMILL & set(c.metadata.get("tags", ()))]
    begun = raised = unrun = 0  # the last cell begun, the first that raised, the first left out
    what = "was never run"
    for number, cell in enumerate(cells, 1):
        begun = number if cell.metadata.get("papermill", {}).get("start_time") else begun
        skipped = "skip-execution" in cell.metadata.get("tags", ())
        if cell.cell_type == "code" and cell.source.strip() and not skipped:
            unrun = unrun or (number if cell.execution_count is None else 0)
        for output in cell.get("outputs", ()):
            # SystemExit too, whatever its status: what follows it never ran.
            if output.output_type == "error" and not raised:
                raised, what = number, f"{output.ename}: {_last_line(output.evalue)}"
    # A cell that papermill stopped for its time, or whose kernel died, may also show an error, but
    # only that of being stopped.
    if problem is not None and not (raised and type(problem).__name__ == "PapermillExecutionError"):
        reason = (str(problem).strip() or "no message").splitlines()[0]
        raised, what = begun, f"{type(problem).__name__}: {reason}"
    number = raised or unrun
    return f"cell {number} of {len(cells)}: {what}" if number or problem else ""


def _peak_mb() -> float | None:
    """Peak resident memory of the kernel, in MiB; None on Windows, which has no such count."""
    try:
        import resource
    except ImportError:
        return None
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    return peak / (2**20 if sys.platform == "darwin" else 2**10)  # bytes there, KiB elsewhere


def _write(content: nbformat.NotebookNode, path: Path) -> None:
    """Write a notebook whole or not at all."""
    partial = path.with_suffix(".partial")
    nbformat.write(content, partial)
    os.replace(partial, path)


def _in_short(result: Result) -> str:
    memory = "" if result.peak_mb is None else f", {result.peak_mb:.0f} MB"
    return f"{result.seconds:.0f} s{memory}{', FAILED at ' if result.error else ''}{result.error}"


def _table(results: Sequence[Result]) -> str:
    """One row a notebook, and one more for each further verdict."""
    width = max(len("notebook"), *(len(result.notebook) for result in results))
    form = f"{{:<{width}}}  {{:<6}}  {{:>7}}  {{:>7}}  {{}}"
    lines = [form.format("notebook", "status", "seconds", "peak MB", "verdicts")]
    for result in results:
        status = "failed" if result.error else "ok"
        memory = "?" if result.peak_mb is None else f"{result.peak_mb:.0f}"
        first, *others = map(_short, result.verdicts or ("-",))
        lines.append(form.format(result.notebook, status, f"{result.seconds:.0f}", memory, first))
        lines += [form.format("", "", "", "", verdict) for verdict in others]
    return "\n".join(lines)


def _short(verdict: str) -> str:
    """A verdict as it is, or with no more than the names of the gates that failed, whose figures stand below."""
    failed = [name for name, _ in GATE.findall(verdict)]
    return f"{verdict.split(':')[0]}: {'; '.join(failed)}" if failed else verdict


def _last_line(text: str) -> str:
    return (text.strip() or "no message").splitlines()[-1]


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("This runs one notebook for `python -m rfnlib reproduce`: call that.")
    _stop_with_parent()
    _run_one(**json.loads(sys.argv[1]))
