"""Errors a user can act on, and the one place that turns them into a line and an exit status."""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import select
import signal
import sys
from typing import Callable

from sap3d.interrupt import Terminated, end_with_parent, raise_at_sigterm


class InputError(Exception):
    """Something the user gave cannot be used.

    The message is one line that names the file or option, the cause and the remedy.
    """


class ArgumentParser(argparse.ArgumentParser):
    """argparse's, whose complaint is one line like every other error of the project; settings may stand before, between and behind the options.

    prog: the command that the line names; without it the module that was started with ``python -m``.
    """

    def __init__(self, prog: str | None = None, **options):
        spec = getattr(sys.modules["__main__"], "__spec__", None)
        super().__init__(prog=prog or (spec and f"python -m {spec.name.removesuffix('.__main__')}"), **options)

    def parse_args(self, args=None, namespace=None):
        return self.parse_intermixed_args(args, namespace)

    def error(self, message: str):
        print(f"error: {' '.join(message.split())}; {self.prog} --help lists the options", file=sys.stderr)
        raise SystemExit(2)


def one_line(error: BaseException, lower: str = "the batch size") -> str | None:
    """The line to show for ``error``, or None when it is a fault of the program and deserves a traceback.

    ``lower``: the settings that decide how much memory the program takes.
    """
    if isinstance(error, InputError):
        return " ".join(str(error).split())
    for cause in _causes(error):
        text, number = str(cause), getattr(cause, "errno", None)
        name = getattr(cause, "filename", None) or "an output"
        if number in (errno.ENOSPC, errno.EDQUOT) or any(part in text for part in _FULL):
            return f"no space left on the disk while writing {name}: free some space and run the same command again"
        if number == errno.EFBIG:
            return f"{name} is larger than a file may be here (ulimit -f): raise that limit and run the same command again"
        if isinstance(cause, OSError) and number in (errno.EACCES, errno.EPERM, errno.EROFS):
            return f"{name} cannot be read or written ({cause.strerror}): change its permissions or choose another root with ROOT_DIR"
        if isinstance(cause, OSError) and number in (errno.ENOTDIR, errno.EISDIR, errno.EEXIST, errno.ENAMETOOLONG, errno.ELOOP):
            return f"{name} cannot be used ({cause.strerror}): remove what is in its place or choose another root with ROOT_DIR"
        if isinstance(cause, MemoryError) or type(cause).__name__ == "OutOfMemoryError" or any(part in text for part in _MEMORY) or number == errno.ENOMEM:
            return _out_of_memory(cause, lower)
    if isinstance(error, (OSError, RuntimeError)) and _disk_is_full():  # a program that was started to write a file, say
        return "no space left on the disk: free some space and run the same command again"
    return None


def _disk_is_full() -> bool:
    with contextlib.suppress(OSError):
        disk = os.statvfs(os.environ.get("ROOT_DIR") or os.path.dirname(__file__))
        return disk.f_bavail * disk.f_frsize < 1 << 16
    return False


# How libraries say it that do not pass the system's error on
_FULL = ("No space left on device", "PytorchStreamWriter failed writing", "unexpected pos ")
_MEMORY = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc", "Unable to allocate", "CUDA out of memory", "could not create a memory object")


def _causes(error: BaseException | None):
    """``error``, what it was raised from, and what was being handled when it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _out_of_memory(error: BaseException, lower: str) -> str:
    """What was used and, where a preset of the published model was measured, what it needs."""
    from sap3d.presets import measured_need

    torch, used = sys.modules.get("torch"), ""
    if torch is not None and type(error).__name__ == "OutOfMemoryError" and torch.cuda.is_available():
        card = torch.cuda.get_device_properties(torch.cuda.current_device())
        used = f" on {card.name}, which has {card.total_memory / 1e9:.1f} GB ({torch.cuda.max_memory_allocated() / 1e9:.1f} GB were in use)"
    needs = {preset: max(filter(None, (measured_need(preset, stage) for stage in ("train", "novel_views", "sds"))), default=None) for preset in ("full", "full-11gb")}
    measured = ", ".join(f"--preset {preset} {need:.1f} GB" for preset, need in needs.items() if need)
    known = f"; measured need of the published model: {measured}" if measured else ""
    return f"out of memory{used}: lower {lower}, or use --quick{known}"


@contextlib.contextmanager
def explaining(say: Callable[[Exception], str]):
    """Within the block a file is read, by libraries that raise nearly anything where it is damaged: InputError of ``say(error)`` for all of it.

    What ``one_line`` knows (an InputError, too little memory, no permission) passes as it is: nothing is wrong with the file then.
    """
    try:
        yield
    except Exception as error:
        if one_line(error) is not None:
            raise
        raise InputError(say(error)) from None


def first_line(error: BaseException) -> str:
    """The first line of another library's error message, or the error's name when it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def cli(main: Callable[[], object], lower: str = "the batch size") -> None:
    """Run a command line's ``main``; end with status 0, 2 (bad input, one line), 130 (Ctrl-C), 141 (nobody reads the output any more) or 143 (SIGTERM).

    ``lower``: what to lower when memory runs out.
    """
    before = raise_at_sigterm()
    try:
        end_with_parent()
        main()
        print(end="", flush=True)  # here, where it is known what an error means
    except KeyboardInterrupt as interrupt:
        print("interrupted: run the same command again to resume", file=sys.stderr)
        raise SystemExit(143 if isinstance(interrupt, Terminated) else 130) from None
    except Exception as error:
        if isinstance(error, BrokenPipeError) and _is_unread(sys.stdout):  # "| head" has seen enough: the status of a program that SIGPIPE ends, and no word
            raise SystemExit(141) from None
        line = one_line(error, lower)
        if line is None:
            raise
        print(f"error: {line}", file=sys.stderr)
        raise SystemExit(2) from None
    finally:
        if before is not None:
            signal.signal(signal.SIGTERM, before)
        _drop_unwritten()


def _is_unread(stream) -> bool:
    """Whether ``stream`` is a pipe whose reader has gone; a BrokenPipeError may be of another pipe."""
    with contextlib.suppress(OSError, ValueError, AttributeError):  # no file behind it, closed, or none at all
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return bool(poll.poll(0))
    return False


def _drop_unwritten() -> None:
    """Leave nothing to write that cannot be written: Python would try once more at its end, complain, and change the status."""
    try:
        print(end="", flush=True)
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except ValueError:  # closed
        pass
