"""Writing files so that a kill or a full disk leaves the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import os
import platform
import threading
import time
import zlib
from pathlib import Path

ABANDONED_AFTER = 24 * 3600.0  # seconds after which a half-written file of another machine belongs to nobody


class DiskFull(OSError):
    """No room left; nothing was changed."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, force it to disk, then rename it into place.

    Any number of threads and processes may write one file: the last one to finish counts.

    Args:
        path: the file; its folder is made.
        content: all of it.

    Raises:
        DiskFull: no room; the file that was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{threading.get_ident()}.part")
    try:
        with open(part, "wb") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(
                f"No room on the disk for {path.name} ({len(content) / 1e6:.1f} MB); free some space and run the same "
                "command again: what was finished is kept, and nothing was overwritten."
            ) from error
        raise
    finally:
        part.unlink(missing_ok=True)


def sweep(folder: Path) -> None:
    """Delete what writers that were killed left half-written in `folder`.

    Files of processes that live are left alone, and so are those of other machines for a day.
    """
    for part in folder.glob(".*.part"):
        if _abandoned(part):
            part.unlink(missing_ok=True)


def _abandoned(part: Path) -> bool:
    machine, _, rest = part.name.split(".")[-2].partition("-")
    pid = rest.partition("-")[0]
    if machine == _machine() and pid.isdigit() and os.name == "posix":  # elsewhere the question would kill it
        try:
            os.kill(int(pid), 0)
        except ProcessLookupError:
            return True
        except (PermissionError, OverflowError):
            return False
        return False
    try:
        return time.time() - part.stat().st_mtime > ABANDONED_AFTER
    except FileNotFoundError:  # finished meanwhile
        return False


def _machine() -> str:
    """Tells machines that share a folder apart, and names none."""
    return f"{zlib.crc32(platform.node().encode()):08x}"
