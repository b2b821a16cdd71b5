"""The command line, a thin door: reproduce, run, status, data, bench, readme."""

from __future__ import annotations

import argparse
import re
import sys
import time

from rfnlib import scales


class OutOfTime(Exception):
    """The budget does not hold another unit of work."""


def main(argv: list[str] | None = None) -> int:
    """Run a command; errors that the user can mend are one sentence and exit status 2."""
    options = _parser().parse_args(argv)
    try:
        return options.command(options) or 0
    except (ValueError, LookupError, OSError, FloatingPointError) as error:
        print(f"rfnlib {options.name}: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(
            "Stopped. What was finished is kept; the same command goes on from there.",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m rfnlib", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True)

    def add(name: str, function, help: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help)
        sub.set_defaults(command=function)
        return sub

    def measured(sub: argparse.ArgumentParser, default: str) -> None:
        sub.add_argument(
            "--scale",
            default=default,
            help=f"one of {', '.join(scales.SCALES)} (default {default})",
        )
        sub.add_argument("--seeds", type=_seeds, help="such as 0,1,2 (default: the scale's)")
        sub.add_argument("--device", default="auto", help="auto, cpu or cuda")

    sub = add("reproduce", _reproduce, "run the notebooks in order through papermill, strictly")
    measured(sub, "smoke")
    sub.add_argument("--mode", default="run", help="run (compute what is missing) or replay (records only)")
    sub.add_argument("--only", action="append", help="a notebook's number or name; may be repeated")
    sub = add("run", _run, "compute and record what is missing, most useful first")
    measured(sub, "laptop")
    sub.add_argument(
        "--budget",
        type=_duration,
        help="such as 9m, 1.5h or 90s; stops in time (default: no limit)",
    )
    sub = add("status", _status, "list what is recorded, what is missing and about what it costs here")
    measured(sub, "laptop")
    sub = add("data", _data, "fetch a data set, or verify the one that is there")
    sub.add_argument("name", help="cifar10")
    sub = add("bench", _bench, "print speed as ratios, and how memory and time grow")
    sub.add_argument("--device", default="auto", help="auto, cpu or cuda")
    sub = add("readme", _readme, "write the README's table of claims anew from the records")
    sub.add_argument("--check", action="store_true", help="change nothing; fail if the table is out of date")
    return parser


def _reproduce(options: argparse.Namespace) -> int:
    from rfnlib.reproduce import reproduce

    return reproduce(
        options.scale,
        mode=options.mode,
        only=options.only,
        seeds=options.seeds,
        device=options.device,
    )


def _run(options: argparse.Namespace) -> int:
    from rfnlib.jobs import work
    from rfnlib.lab import Lab

    tick = _deadline(options.budget) if options.budget is not None else lambda: None
    lab = Lab(options.scale, "run", options.seeds, options.device, tick=tick)
    while True:  # what is found can make more work known
        jobs = work(lab)
        missing = [job for job in jobs if job.missing()]
        if not missing:
            break
        done = len(jobs) - len(missing)
        for job in missing:
            print(f"[{done + 1} of {len(jobs)}] {job.label}", flush=True)
            try:
                job.compute()
            except OutOfTime:
                print(f"Out of time: {done} of {len(jobs)} measurements are complete; the same command goes on here.")
                return 0
            done += 1
    print(f"All {len(jobs)} measurements of {lab.scale.name} scale are recorded.")
    return 0


def _status(options: argparse.Namespace) -> int:
    from rfnlib.jobs import estimate, work
    from rfnlib.lab import Lab

    lab = Lab(options.scale, "replay", options.seeds, options.device)
    jobs = work(lab)
    print(f"{'measurement':44s} {'recorded':>10s} {'missing':>8s} {'about':>9s}")
    total = 0.0
    for job, seconds in zip(jobs, estimate(lab, jobs), strict=True):
        missing = len(job.missing())
        total += seconds
        cost = _minutes(seconds) if missing else ""
        print(f"{job.label:44s} {len(job.epochs) - missing:>4d} of {len(job.epochs):<3d} {missing:>8d} {cost:>9s}")
    left = sum(bool(job.missing()) for job in jobs)
    print(f"{left} of {len(jobs)} measurements are incomplete" + (f"; about {_minutes(total)} here." if left else "."))
    return 0


def _data(options: argparse.Namespace) -> int:
    from rfnlib import data, fetch

    if options.name == "cifar10":
        fetch.fetch_cifar10()
    else:
        dataset = data.load(options.name)  # refuses an unknown name
        print(f"{dataset.name} comes with scikit-learn: nothing to fetch.")
    return 0


def _bench(options: argparse.Namespace) -> int:
    from rfnlib.bench import bench

    bench(options.device)
    return 0


def _readme(options: argparse.Namespace) -> int:
    from rfnlib.readme import update

    changed = update(write=not options.check)
    if options.check and changed:
        print("README.md is out of date; run `python -m rfnlib readme`.", file=sys.stderr)
    return int(options.check and changed)


def _deadline(budget: float):
    """A tick that raises when the longest unit of work so far, and a fifth more, no longer fits."""
    last = start = time.monotonic()
    longest = 0.0

    def tick() -> None:
        nonlocal last, longest
        now = time.monotonic()
        longest, last = max(longest, now - last), now
        if now + 1.2 * longest > start + budget:
            raise OutOfTime

    return tick


def _seeds(text: str) -> list[int]:
    if not re.fullmatch(r"\d+(,\d+)*", text):
        raise argparse.ArgumentTypeError(f"{text!r} is no list of seeds; write it as 0,1,2")
    return [int(s) for s in text.split(",")]


def _duration(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
    if not match:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; write it as 90s, 9m or 1.5h")
    return float(match[1]) * {"s": 1, "m": 60, "h": 3600}[match[2]]


def _minutes(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds > 5400 else f"{seconds / 60:.1f} min"


if __name__ == "__main__":
    sys.exit(main())
