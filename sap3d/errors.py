"""Errors a user can act on, and the one place that turns them into a line and an exit status."""

from __future__ import annotations

import errno
import sys
from typing import Callable


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file or option, the cause and the remedy.
    """


def one_line(error: BaseException) -> str | None:
    """The line to show for ``error``, or None when it is a fault of the program and deserves a traceback."""
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"no space left on the disk while writing {error.filename or 'an output'}: free some space and run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EROFS):
        return f"{error.filename or 'an output'} cannot be written ({error.strerror}): change its permissions or choose another root with ROOT_DIR"
    if isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError":
        return _out_of_memory(error)
    return None


def _out_of_memory(error: BaseException) -> str:
    """What was used and, where a preset of the published model was measured, what it needs."""
    from sap3d.presets import measured_need

    torch, used = sys.modules.get("torch"), ""
    if torch is not None and type(error).__name__ == "OutOfMemoryError" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        used = f" on {card.name}, which has {card.total_memory / 1e9:.1f} GB ({torch.cuda.max_memory_allocated() / 1e9:.1f} GB were in use)"
    needs = {preset: max(filter(None, (measured_need(preset, stage) for stage in ("train", "novel_views", "sds"))), default=None) for preset in ("full", "full-11gb")}
    measured = ", ".join(f"--preset {preset} {need:.1f} GB" for preset, need in needs.items() if need)
    known = f"; measured need of the published model: {measured}" if measured else ""
    return f"out of memory{used}: lower batch_size, nvs_batch_size, rays or tile_rays of this stage, or use --quick{known}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's name when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cli(main: Callable[[], object]) -> None:
    """Run a command line's ``main``; end with status 0, 2 (bad input, one line) or 130 (interrupted)."""
    try:
        main()
    except KeyboardInterrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        raise SystemExit(130) from None
    except Exception as error:
        line = one_line(error)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
