"""Jobs on this machine: one at a time on every device."""

from __future__ import annotations

import queue
import subprocess
import threading
import time
from typing import Sequence

from sap3d.batch.board import Board
from sap3d.batch.jobs import Attempt, Job, run_attempt, stop


def run_local(jobs: Sequence[Job], devices: Sequence[str], retries: int, board: Board) -> None:
    """Run every job; an interrupt ends the running ones with a checkpoint and is passed on, and so does the end of who reads the output."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    running: dict[str, Job] = {}
    processes: dict[str, subprocess.Popen] = {}
    halt = threading.Event()
    unread: list[BrokenPipeError] = []  # nobody reads the output any more

    def work(device: str) -> None:
        while not halt.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            again = True
            while again and not halt.is_set():
                job.begin()
                board.started(job)
                running[device] = job
                try:
                    result = run_attempt(job.command, job.log, job.results, device, on_start=lambda process: processes.__setitem__(device, process), bound=True)
                except OSError as error:
                    result = Attempt(2, str(error), False, "")
                if halt.is_set():
                    return
                again = job.finish(result, retries)
                running.pop(device)
                board.ended(job, again)

    def work_while_read(device: str) -> None:
        try:
            work(device)
        except BrokenPipeError as error:
            unread.append(error)

    threads = [threading.Thread(target=work_while_read, args=(device,), daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            board.draw(list(running.values()))
            time.sleep(0.3)
            if unread:
                break
        if unread:
            raise unread[0]
    except (KeyboardInterrupt, BrokenPipeError):
        halt.set()
        stop(*processes.values())
        raise
    finally:
        board.clear()
