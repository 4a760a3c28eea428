"""Progress of long work: a line that updates itself on a terminal, plain lines now and then in a log."""

from __future__ import annotations

import sys
import time


class Progress:
    """``with Progress("camerabooth", total) as p: p.update(step, "loss 0.12")``; prints stage, step, rate and ETA."""

    def __init__(self, stage: str, total: int, every_seconds: float = 10.0, start: int = 0):
        self.stage, self.total, self.first = stage, total, start
        self.terminal = sys.stderr.isatty()
        self.every = 0.2 if self.terminal else every_seconds
        self.begin = self.last = time.time()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_):
        if self.terminal:
            print(file=sys.stderr)

    def update(self, step: int, note: str = "") -> None:
        """Report that ``step`` of ``total`` steps are done."""
        now = time.time()
        if now - self.last < self.every and step < self.total:
            return
        self.last = now
        elapsed = now - self.begin
        left = elapsed / max(step - self.first, 1) * (self.total - step)
        line = f"[{self.stage}] {step}/{self.total}  {elapsed:.0f} s, about {left:.0f} s left  {note}"
        print(f"\r\033[K{line}" if self.terminal else line, end="" if self.terminal else "\n", file=sys.stderr, flush=True)
