"""The command line, a thin door: reproduce, run, status, records, evaluate, release, data, bench, readme."""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import signal
import sys
from collections.abc import Callable, Iterator
from typing import Any

from rfnlib import __version__, scales

DONE, FAILED, REFUSED, OUT_OF_TIME, INTERRUPTED, UNREAD, TERMINATED = 0, 1, 2, 3, 130, 141, 143
CODES = """exit status: 0 all is done; 1 a notebook or a measurement failed; 2 refused, or wrong usage: one line says
why; 3 the budget is used up: the same command goes on; 130 after Ctrl-C and 143 after SIGTERM: likewise; 141 nobody
reads what it prints any more"""
LOOKS = ("status", "records", "bench", "readme")  # commands that keep nothing to go on from


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends everything as Ctrl-C does."""


def main(argv: list[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status, see `CODES`. Errors that the user can mend are one sentence on the standard error.
    """
    options = (parser := _parser()).parse_args(argv)
    if not options.name:
        parser.print_help(sys.stderr)
        return REFUSED
    try:
        with _terminating():
            status = options.command(options)
            sys.stdout.flush()
            return status
    except BrokenPipeError:  # of `| head`, say; what is still to be flushed at the end goes nowhere
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    except (ValueError, LookupError, OSError, FloatingPointError) as error:
        print(f"rfnlib {options.name}: {error}", file=sys.stderr)
        return REFUSED
    except KeyboardInterrupt as stopped:
        kept = "" if options.name in LOOKS else " What was finished is kept; the same command goes on from there."
        print(f"Stopped.{kept}", file=sys.stderr)
        return TERMINATED if isinstance(stopped, Terminated) else INTERRUPTED


@contextlib.contextmanager
def _terminating() -> Iterator[None]:
    """SIGTERM raises `Terminated` inside, so that whatever is under way cleans up."""

    def stop(*_: Any) -> None:
        raise Terminated

    try:
        before = signal.signal(signal.SIGTERM, stop)
    except ValueError:  # not the main thread: whoever called from another one deals with signals
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="rfnlib", description=__doc__, epilog=CODES)
    parser.add_argument("--version", action="version", version=f"rfnlib {__version__}")
    commands = parser.add_subparsers(dest="name")

    def add(command: Callable[[argparse.Namespace], int], help: str, default: str = "") -> argparse.ArgumentParser:
        sub = commands.add_parser(command.__name__.strip("_"), help=help, description=help, epilog=CODES)
        sub.set_defaults(command=command)
        if default:
            of_scale(sub, default)
            sub.add_argument("--seeds", type=_seeds, help="such as 0,1,2 (default: the scale's)")
            sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
        return sub

    def of_scale(sub: argparse.ArgumentParser, default: str) -> None:
        sub.add_argument("--scale", default=default, help=f"one of {', '.join(scales.SCALES)} (default {default})")

    def at_work(sub: argparse.ArgumentParser) -> None:
        sub.add_argument("--workers", type=_count, help="processes (default: one a GPU, or one a core)")
        sub.add_argument("--scheduler", help="tcp://HOST:PORT of a Dask cluster to use instead")

    sub = add(_reproduce, "compute what is missing on all cores, then run the notebooks in order, strictly", "smoke")
    sub.add_argument("--mode", default="run", help="run (compute what is missing) or replay (records only)")
    sub.add_argument("--only", action="append", help="a notebook's number or name; may be repeated")
    sub.add_argument("--anew", action="store_true", help="of smoke: forget what an earlier run recorded in build/")
    at_work(sub)
    sub = add(_run, "compute and record what is missing, most useful first, on all cores or on a cluster", "laptop")
    sub.add_argument("--only", action="append", metavar="CLAIM", help="what this claim needs; may be repeated")
    sub.add_argument("--budget", type=_duration, help="such as 9m, 1.5h or 90s; stops in time (default: no limit)")
    sub.add_argument("--prune", action="store_true", help="delete snapshots that nothing needs any more, to save room")
    at_work(sub)
    sub = add(_status, "how much is recorded, how much is missing, and about how long that takes here", "laptop")
    sub.add_argument("--only", action="append", metavar="CLAIM", help="what this claim needs; may be repeated")
    sub.add_argument("--all", action="store_true", help="every measurement in a line")
    sub = add(_records, "every recorded row as a line of a table, with intervals")
    of_scale(sub, "laptop")
    sub.add_argument("--csv", metavar="FILE", default=sys.stdout, help="where to write it (default: standard output)")
    sub = add(_evaluate, "how well a surrogate of one's own transfers, or how vulnerable a target is", "laptop")
    sub.add_argument("model", metavar="FILE.py:NAME", help="a module in a file, or a released network: smoke/NAME")
    sub.add_argument("--role", default="surrogate", help="surrogate or target (default surrogate)")
    add(_release, "put the main surrogates among the released weights, and write the card of all of them", "laptop")
    sub = add(_data, "fetch a data set, or verify the one that is there")
    sub.add_argument("data", metavar="NAME", help="cifar10, say")
    sub = add(_bench, "print speed as ratios, and how memory and time grow")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
    sub = add(_readme, "write the README's tables, and the cards of released weights, anew from the records")
    sub.add_argument("--check", action="store_true", help="change nothing; fail if the table is out of date")
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    from rfnlib.reproduce import reproduce

    names = ("mode", "only", "seeds", "device", "anew", "workers", "scheduler")
    return reproduce(options.scale, **{name: getattr(options, name) for name in names})


def _run(options: argparse.Namespace) -> int:
    from rfnlib.jobs import run
    from rfnlib.lab import Lab

    lab = Lab(options.scale, "run", options.seeds, options.device)
    asked = {"claims": options.only, "workers": options.workers, "scheduler": options.scheduler}
    report = run(lab, **asked, budget=options.budget, prune=options.prune)
    for m, why in report.failed.items():
        print(f"{m.label} failed: {why}", file=sys.stderr)
    if report.complete:
        print(f"All {report.planned} measurements of {lab.scale.name} scale are recorded.")
        return DONE
    done = f"{report.recorded} of {report.planned} measurements are complete"
    if report.in_time:
        print(f"{done}; the others failed, or need what failed.")
        return FAILED
    print(f"Out of time: {done}; the same command goes on here.")
    return OUT_OF_TIME


def _status(options: argparse.Namespace) -> int:
    from rfnlib.lab import Lab
    from rfnlib.status import status

    print(status(Lab(options.scale, "replay", options.seeds, options.device), options.only, long=options.all))
    return DONE


def _records(options: argparse.Namespace) -> int:
    from rfnlib.export import table
    from rfnlib.lab import Lab

    table(Lab(options.scale)).to_csv(options.csv, index=False)
    return DONE


def _evaluate(options: argparse.Namespace) -> int:
    from rfnlib.evaluate import blaming, evaluate, given
    from rfnlib.lab import Lab

    with blaming(options.model.partition(":")[0]):
        name, model = given(options.model)
        lab = Lab(options.scale, "run", options.seeds, options.device)
        table = evaluate(model, name, lab, options.role)
    print(table.to_string(), *table.attrs["notes"], sep="\n")
    return DONE


def _release(options: argparse.Namespace) -> int:
    from rfnlib import words
    from rfnlib.lab import Lab
    from rfnlib.release import BUDGET, release

    released, left_out = release(Lab(options.scale, "run", options.seeds, options.device))
    for path in released:
        print(f"{path.name}, {path.stat().st_size / 1000:.0f} kB")
    if left_out:
        print(f"left out, so that all released weights stay below {BUDGET / 1e6:g} MB: seeds {words.listed(left_out)}")
    return DONE


def _data(options: argparse.Namespace) -> int:
    from rfnlib import data, fetch

    if options.data == "cifar10":
        fetch.fetch_cifar10()
        return DONE
    found = data.load(options.data)  # refuses an unknown name
    counts = f"{len(found.train_labels)} training and {len(found.test_labels)} test images"
    print(f"{found.name} is there: {counts}, checksum {found.checksum[:16]}; nothing to fetch.")
    return DONE


def _bench(options: argparse.Namespace) -> int:
    from rfnlib.bench import bench

    bench(options.device)
    return DONE


def _readme(options: argparse.Namespace) -> int:
    from rfnlib import addresses, cards
    from rfnlib.readme import update

    if not options.check:
        cards.update()
    changed = [*addresses.update(write=not options.check), *["README.md"] * update(write=not options.check)]
    if options.check and changed:
        print(f"Out of date: {', '.join(changed)}; run `python -m rfnlib readme`.", file=sys.stderr)
        return FAILED
    return DONE


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; write it as 0,1,2")
    return [int(s) for s in text.split(",")]


def _count(text: str) -> int:
    if not re.fullmatch(r"[1-9]\d*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no number of processes; write it as 2")
    return int(text)


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it as 90s, 9m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


if __name__ == "__main__":
    sys.exit(main())
