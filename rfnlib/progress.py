"""Progress as plain text that knows how much is left: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import os
import sys
import time

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 30.0


class Progress:
    """Counts `total` steps of work. Silent when `RFN_QUIET` is set or `enabled` is False.

    On a terminal this is tqdm's bar; in a log or a notebook (whose saved widgets and control
    characters nobody can read) it is one line every half minute.
    """

    def __init__(self, total: float, label: str, enabled: bool = True):
        self.total, self.label, self.done = total, label, 0.0
        self.on = enabled and not os.environ.get("RFN_QUIET")
        self.bar = None
        if self.on and sys.stderr.isatty():
            form = "{desc} {percentage:3.0f}% |{bar:20}| {elapsed} gone, {remaining} left {postfix}"
            self.bar = tqdm(total=total, desc=label, bar_format=form, ascii=True, leave=False)
        self.start = self.last = time.monotonic()

    def advance(self, steps: float = 1, note: str = "") -> None:
        """Report `steps` more done; `note` says what about (an epoch, a loss)."""
        self.done += steps
        if self.bar is not None:
            self.bar.set_postfix_str(note, refresh=False)
            self.bar.update(steps)
        elif self.on and time.monotonic() - self.last > SECONDS_BETWEEN_LINES:
            self.last = time.monotonic()
            spent = self.last - self.start
            left = spent * (self.total - self.done) / max(self.done, 1e-9)
            form = tqdm.format_interval
            print(
                f"{self.label}: {self.done / self.total:4.0%}, {form(spent)} gone, {form(left)} left. {note}",
                flush=True,
            )

    def close(self) -> None:
        if self.bar is not None:
            self.bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def duration(seconds: float) -> str:
    """For people: seconds, minutes or hours.

    >>> duration(42), duration(600), duration(86400)
    ('42 s', '10.0 min', '24.0 h')
    """
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * length:
            return f"{seconds / length:,.1f} {unit}"
    return f"{seconds:.0f} s"
