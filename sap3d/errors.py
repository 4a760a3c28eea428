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
        return "out of memory: lower the batch size of this stage (batch_size, nvs_batch_size or rays_per_step) or use --quick"
    return None


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
