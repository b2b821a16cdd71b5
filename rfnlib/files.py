"""Writing files so that a kill or a full disk leaves the old one or the new one, never half of one."""

from __future__ import annotations

import errno
import os
from pathlib import Path


class DiskFull(OSError):
    """No room left; nothing was changed."""


def write_atomic(path: Path, content: bytes) -> None:
    """Write `content` beside `path`, force it to disk, then rename it into place.

    Raises:
        DiskFull: no room; the file that was there before is untouched.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
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
