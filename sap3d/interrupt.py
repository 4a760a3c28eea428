"""Ctrl-C and SIGTERM: long loops write a checkpoint and stop; everything else stops at once."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import threading
from typing import Iterator


class Terminated(KeyboardInterrupt):
    """SIGTERM: a batch system, a shutdown or ``kill`` asks for the end."""


def raise_at_sigterm():
    """SIGTERM raises ``Terminated``, as Ctrl-C raises KeyboardInterrupt; returns the handler before, None when nothing changed.

    Where SIGTERM is ignored, or in another thread than the main one, nothing changes.
    """
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGTERM) == signal.SIG_DFL:
        return signal.signal(signal.SIGTERM, _terminate)
    return None


def _terminate(*_):
    raise Terminated


def end_with_parent() -> None:
    """Ask Linux for SIGTERM when the driver whose process id is in SAP3D_DRIVER dies, so that nothing works on unseen."""
    driver = os.environ.get("SAP3D_DRIVER", "")
    if not driver.isdigit():
        return
    if os.getppid() == int(driver):
        with contextlib.suppress(OSError, AttributeError):
            ctypes.CDLL(None).prctl(1, signal.SIGTERM, 0, 0, 0)  # 1: PR_SET_PDEATHSIG
    try:
        os.kill(int(driver), 0)
    except ProcessLookupError:  # it died before that line
        raise Terminated from None
    except OSError:
        pass


class Stop:
    """What ``finish_step_first`` yields; ``requested`` is true once a signal has come."""

    def __init__(self):
        self.signal: int | None = None

    @property
    def requested(self) -> bool:
        return self.signal is not None

    def leave(self) -> None:
        """To be called when the checkpoint is written: raises what the signal would have raised."""
        raise Terminated if self.signal == signal.SIGTERM else KeyboardInterrupt


@contextlib.contextmanager
def finish_step_first() -> Iterator[Stop]:
    """Within the block the first Ctrl-C or SIGTERM only sets ``stop.requested``; a second one ends the program at once.

    Only the main thread receives signals; in others, and where a signal is ignored, nothing changes.
    """
    stop, before = Stop(), {}

    def request(number, _frame):
        if stop.requested:
            raise Terminated if number == signal.SIGTERM else KeyboardInterrupt
        stop.signal = number

    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) not in (signal.SIG_IGN, None):
                before[number] = signal.signal(number, request)
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
