"""Runs of the app: a folder each, one at a time, in the order they came; they outlive a reload and a restart of the server.

Everything lies below one folder, HOME/<id>/: job.json (what was asked), root/ (the pipeline's ROOT_DIR), log.txt, pid and status (of
run_pipeline.sh). State is read from these files alone, so that a new server finds what an old one left: a process that is still
running is watched on, one that is gone without a status waits again, and the pipeline resumes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import shutil
import signal
import subprocess
import threading
import time
from dataclasses import dataclass
from pathlib import Path

from sap3d.errors import InputError
from sap3d.scene import REPOSITORY, Scene, check_name, read_json, remove_leftovers, write_json, write_text

TYPE = "APP"
MAX_PHOTOS, MAX_BYTES = 12, 25_000_000  # of an upload; pixels are limited by sap3d.images.MAX_PIXELS
MAX_RUNS, MAX_WAITING = 100, 10
_ID = re.compile(r"[0-9]{8}-[0-9]{6}-[0-9a-f]{8}")
_STAGE = re.compile(r"^== (.+)$", re.M)
_PROGRESS = re.compile(r"\[([\w .-]+)\] (\d+)/(\d+) +(.*)")


# What runs the pipeline: a shell that writes its number, and the pipeline's status at the end, whether or not this server still lives. It passes SIGTERM on
# to run_pipeline.sh alone, which tells the stage: one that hears it twice would not stay for its checkpoint.
WRAPPER = """
folder=$1 child= stop=; shift
echo $$ > "$folder/pid"
trap 'stop=1; [ -z "$child" ] || kill -TERM "$child"' TERM
"$@" >> "$folder/log.txt" 2>&1 &
child=$!
[ -z "$stop" ] || kill -TERM "$child"
while wait "$child"; status=$?; kill -0 "$child" 2> /dev/null; do :; done
echo $status > "$folder/status.new"; mv "$folder/status.new" "$folder/status"
"""


@dataclass(frozen=True)
class Job:
    """One run; ``folder`` is HOME/<id>."""

    folder: Path

    @property
    def id(self) -> str:
        return self.folder.name

    @property
    def asked(self) -> dict:
        """What job.json holds: name, views, quick, created; an empty dictionary when it is missing."""
        return read_json(self.folder / "job.json") or {}

    @property
    def name(self) -> str:
        return str(self.asked.get("name", "object"))

    @property
    def scene(self) -> Scene:
        return Scene(TYPE, self.name, int(self.asked.get("views", 1)), self.folder / "root")

    @property
    def state(self) -> str:
        """masks (photos are in, not started), waiting, running, done, failed, stopping (cancelled, still writing a checkpoint) or cancelled."""
        if (self.folder / "cancelled").exists():
            return "cancelled" if self.pid is None else "stopping"
        status = self.status
        if status is not None:
            return "done" if status == 0 else "failed"
        if self.pid is not None:
            return "running"
        return "waiting" if (self.folder / "wanted").exists() else "masks"

    @property
    def status(self) -> int | None:
        try:
            return int((self.folder / "status").read_text())
        except (OSError, ValueError):
            return None

    @property
    def pid(self) -> int | None:
        """Of the process that runs the pipeline for this job, if it lives; a number that another program has now does not count."""
        try:
            pid = int((self.folder / "pid").read_text())
            command = Path(f"/proc/{pid}/cmdline").read_bytes()
        except (OSError, ValueError):
            return None
        return pid if str(self.folder).encode() in command else None

    def log(self) -> str:
        try:
            with open(self.folder / "log.txt", "rb") as stream:
                stream.seek(max(0, stream.seek(0, 2) - 40_000))
                return stream.read().decode(errors="replace")
        except OSError:
            return ""

    def progress(self) -> tuple[str, float, str]:
        """(stage, share of it that is done in [0, 1], what it says), from the log."""
        text = self.log()
        stages = list(_STAGE.finditer(text))
        if not stages:
            return "", 0.0, ""
        rest = text[stages[-1].end() :]
        steps = list(_PROGRESS.finditer(rest))
        if not steps:
            return stages[-1][1], 0.0, ""
        _, step, total, note = steps[-1].groups()
        return stages[-1][1], min(1.0, int(step) / max(int(total), 1)), note

    def cause(self) -> str:
        """The line that says why it failed."""
        lines = [line for line in self.log().splitlines() if line.startswith("error:")]
        return lines[-1] if lines else "see the log"


@contextlib.contextmanager
def _still_there():
    """Within the block an uploaded file is read: InputError when it is gone. Gradio keeps equal photos of two windows as one file, which the first import removes."""
    try:
        yield
    except FileNotFoundError:
        raise InputError("an uploaded photo is gone (used in another window, or the server was restarted); add the photos again") from None


def claim(home: Path):
    """The open file that keeps a second server off ``home`` while this process lives; InputError when there is one already."""
    stream = open(home / "server.lock", "w")  # the system frees it, however the server ends
    try:
        fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        stream.close()
        raise InputError(f"{home}: another app works on these runs; use its page, or give --home another folder") from None
    except OSError:  # a file system without locks
        pass
    return stream


class Queue:
    """All runs below ``home``. One is started at a time by a thread; every method may be called from any thread."""

    def __init__(self, home: Path, python: str, gpu: str = "cpu", command: tuple[str, ...] = ("sh", str(REPOSITORY / "run_pipeline.sh"))):
        self.home, self.python, self.gpu, self.command = Path(home).resolve(), python, gpu, command
        self.home.mkdir(parents=True, exist_ok=True)
        remove_leftovers(self.home)
        self._lock, self._stop = threading.Lock(), threading.Event()

    # --- runs ------------------------------------------------------------------------------------------------------------
    def jobs(self) -> list[Job]:
        """All runs, newest first."""
        return [Job(path) for path in sorted(self.home.iterdir(), reverse=True) if _ID.fullmatch(path.name) and (path / "job.json").is_file()]

    def get(self, identifier: str) -> Job | None:
        """The run of that id; None for one that is not there and for anything that is no id, such as a path."""
        if not isinstance(identifier, str) or not _ID.fullmatch(identifier):
            return None
        job = Job(self.home / identifier)
        return job if (job.folder / "job.json").is_file() else None

    def add(self, name: str, files: list[Path], report=lambda line: None) -> Job:
        """Import uploaded photos, in the order of their names, into a new run; raises InputError when they are too many, too large, gone or unusable."""
        from dataset.photos import import_photos
        from sap3d.images import name_order

        check_name(name, "object name")
        if not files:
            raise InputError("no photos yet: add 1 to 12 pictures of one object")
        if len(files) > MAX_PHOTOS:
            raise InputError(f"{len(files)} photos are too many; give at most {MAX_PHOTOS}")
        for path in files:
            with _still_there():
                size = path.stat().st_size
            if size > MAX_BYTES:
                raise InputError(f"{path.name}: {size / 1e6:.0f} MB are too much; give photos of at most {MAX_BYTES / 1e6:.0f} MB")
        if len(self.jobs()) >= MAX_RUNS:
            raise InputError(f"there are {MAX_RUNS} runs already; delete some")
        folder = self.home / f"{time.strftime('%Y%m%d-%H%M%S')}-{secrets.token_hex(4)}"
        try:
            (folder / "photos").mkdir(parents=True)
            for k, path in enumerate(sorted(files, key=name_order)):  # names of the upload give the order and are not used otherwise: they are not ours
                with _still_there():
                    shutil.copyfile(path, folder / "photos" / f"{k:03d}{path.suffix.lower()}")
            import_photos(folder / "photos", TYPE, name, folder / "root", report=report)
            write_json(folder / "job.json", {"name": name, "views": len(files), "quick": True, "created": time.strftime("%Y-%m-%d %H:%M")})
        except BaseException as error:
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, InputError):
                raise InputError(str(error).replace(f"{folder}/photos/", "photo ").replace(f"{folder}/", "")) from None
            raise
        return Job(folder)

    def start(self, job: Job, quick: bool) -> None:
        """Put a run into the queue; again after a failure or a cancellation it resumes. InputError while the cancelled run still writes its checkpoint."""
        with self._lock:  # of two starts at once the second finds it waiting
            if self.get(job.id) is None:  # nothing may be written into its folder, which would make it anew
                raise InputError("the run was deleted; choose another")
            if job.state in ("running", "waiting", "done"):
                return
            if job.state == "stopping":  # its end would be taken for the end of the new run
                raise InputError("the run is still stopping; start it again in a few seconds")
            if sum(j.state == "waiting" for j in self.jobs()) >= MAX_WAITING:
                raise InputError(f"{MAX_WAITING} runs wait already; try again when some are done")
            write_json(job.folder / "job.json", job.asked | {"quick": bool(quick)})
            for name in ("cancelled", "status", "pid"):
                (job.folder / name).unlink(missing_ok=True)
            write_text(job.folder / "wanted", str(time.time()))

    def cancel(self, job: Job) -> None:
        """Stop a run, or take it out of the queue; what it finished is kept."""
        with self._lock:
            if job.state not in ("running", "waiting"):
                return
            write_text(job.folder / "cancelled", "")
            pid = job.pid
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def delete(self, job: Job) -> None:
        """Stop a run at once and remove all of it."""
        away = self.home / f".{job.id}.tmp-{secrets.token_hex(4)}"  # no id of a run; what a killed server leaves of it the next one removes
        while True:
            self.cancel(job)
            with self._lock:  # nothing is started meanwhile, and no other thread sees a run of which some files are gone
                pid = job.pid
                if pid is None:
                    with contextlib.suppress(FileNotFoundError):  # deleted twice
                        job.folder.rename(away)
                    break
            with contextlib.suppress(ProcessLookupError):
                os.killpg(pid, signal.SIGKILL)
            time.sleep(0.1)
        shutil.rmtree(away, ignore_errors=True)

    def position(self, job: Job) -> int:
        """How many runs come before it."""
        waiting = self._waiting()
        return (waiting.index(job) if job in waiting else 0) + any(j.pid is not None for j in self.jobs())

    def _waiting(self) -> list[Job]:
        """Runs that wait, the next one first; without those whose files cannot be read (any more)."""
        since: dict[Job, float] = {}
        for job in self.jobs():
            with contextlib.suppress(OSError, ValueError):
                if job.state == "waiting":
                    since[job] = float((job.folder / "wanted").read_text() or 0)
        return sorted(since, key=since.get)

    # --- the worker --------------------------------------------------------------------------------------------------------
    def run_forever(self, every: float = 0.5) -> None:
        """Start what waits, one after the other, until ``stop``; a run of an earlier server counts as the one that runs.

        No error of the system ends it: a run that cannot be started fails, and what cannot even be written down is tried again.
        """
        children: list[subprocess.Popen] = []
        while not self._stop.wait(every):
            children = [child for child in children if child.poll() is None]  # reaps them
            with contextlib.suppress(OSError), self._lock:
                if any(job.pid is not None for job in self.jobs()):
                    continue
                waiting = self._waiting()
                if waiting:
                    try:
                        children.append(self._launch(waiting[0]))
                    except OSError as error:
                        self._not_started(waiting[0], error)

    def stop(self) -> None:
        """End the worker; a run that is under way goes on by itself."""
        self._stop.set()

    def _launch(self, job: Job) -> subprocess.Popen:
        arguments = [*self.command, TYPE, job.name, str(job.scene.views), self.gpu, *(["--quick"] if job.asked.get("quick") else [])]
        environment = {**os.environ, "ROOT_DIR": str(job.folder / "root"), **({"PYTHON": self.python} if self.python else {})}
        child = subprocess.Popen(["sh", "-c", WRAPPER, "sap3d-app", str(job.folder), *arguments], env=environment, start_new_session=True, stdin=subprocess.DEVNULL)
        try:
            write_text(job.folder / "pid", str(child.pid))
        except OSError:  # it would not be known as the one that runs
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
            raise
        return child

    def _not_started(self, job: Job, error: OSError) -> None:
        """Let a run fail, as run_pipeline.sh would, because of what the system said when it was to be started."""
        write_text(job.folder / "status", "1")  # first: a log that cannot be written to must not make it be tried for ever
        with open(job.folder / "log.txt", "a") as stream:
            stream.write(f"error: cannot be started ({error.strerror or error}); mend that, then start it again\n")
