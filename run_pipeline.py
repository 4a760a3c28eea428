"""Many objects: runs run_pipeline.sh for each of them and collects the figures.

    python run_pipeline.py --object_type GSO_demo [--views 3 5] [--gpus 0,1] [--objects a b] [--quick] [--set booth.steps=100]

One object runs at a time on every GPU, or on the CPU where there is none. Finished objects are skipped, interrupted ones
resumed. Output of each goes to results/<TYPE>/<OBJECT>/<N>/pipeline.log. At the end the figures of the type are printed
and written to results/<TYPE>/table.md and table.csv. Exit status: 0, 1 (an object failed), 2 (bad input), 130 (interrupted).
"""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
DRIVER = HERE / "run_pipeline.sh"
NEEDED = ("torch", "diffusers", "omegaconf", "embreex", "lpips")  # as in run_pipeline.sh
CONFIGS = {  # prefix of a setting on the command line -> where its keys are
    "relpose": ("relposepp.config", "RelPoseConfig"),
    "booth": ("camerabooth.config", "BoothConfig"),
    "recon": ("3D_Recon.threestudio.config", "ReconConfig"),
    "eval": ("sap3d.evaluate", "EvaluationConfig"),
}


def bootstrap() -> None:
    """Go on in a Python that has the requirements: this one, the one PYTHON names, or .venv, which is made when needed."""
    if all(importlib.util.find_spec(name) for name in NEEDED):
        os.environ["PYTHON"] = sys.executable
        return
    given = os.environ.get("PYTHON")
    setup = subprocess.run(["sh", str(DRIVER), "--setup"])  # also checks a Python that PYTHON names
    if setup.returncode:
        raise SystemExit(setup.returncode)
    python = shutil.which(given) if given else str(HERE / ".venv" / "bin" / "python")
    os.execv(python, [python, *sys.argv])


@dataclass
class Job:
    """One object with one number of views on its way through run_pipeline.sh."""

    label: str  # "[2/7] armchair, 5 views"
    command: list[str]
    log: Path
    results: Path
    started: float = 0.0
    offset: int = 0  # where this run begins in the log
    process: subprocess.Popen | None = None
    outcome: str = ""  # "", "done", "already finished" or "failed"
    cause: str = ""

    def run(self, gpu: str) -> None:
        """Run to the end; sets ``outcome`` and, for a failure, ``cause``."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        before = self.results.stat().st_mtime_ns if self.results.is_file() else 0
        self.started = time.time()
        with open(self.log, "a") as stream:
            stream.write(f"--- {time.strftime('%Y-%m-%d %H:%M:%S')} on {gpu if gpu == 'cpu' else 'GPU ' + gpu}\n")
            stream.flush()
            self.offset = stream.tell()
            command = [part if part != "GPU" else gpu for part in self.command]
            self.process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True)
        status = self.process.wait()
        if status:
            lines = self.lines() or [f"status {status}, no output"]
            self.cause = next((line for line in reversed(lines) if line.startswith("error: ")), lines[-1]).removeprefix("error: ")
            self.outcome = "failed"
        else:
            self.outcome = "done" if self.results.stat().st_mtime_ns != before else "already finished"

    def lines(self) -> list[str]:
        with open(self.log, errors="replace") as stream:
            stream.seek(self.offset)
            return [line.strip() for line in stream.read().splitlines() if line.strip()]

    def report(self) -> str:
        if self.outcome == "failed":
            return f"{self.label}: failed: {self.cause}"
        return f"{self.label}: {self.outcome}" + (f" in {(time.time() - self.started) / 60:.1f} min" if self.outcome == "done" else "")


class Board:
    """On a terminal a line for every running object that shows the end of its log; elsewhere a line at start and end."""

    def __init__(self):
        self.terminal, self.drawn, self.lock = sys.stdout.isatty(), 0, threading.Lock()

    def say(self, text: str) -> None:
        with self.lock:
            self._clear()
            print(text, flush=True)

    def draw(self, jobs: list[Job]) -> None:
        if not self.terminal:
            return
        with self.lock:
            self._clear()
            width = shutil.get_terminal_size().columns - 1
            for job in jobs:
                now = (job.lines() or ["starting"])[-1] if job.offset else "starting"
                print(f"{job.label}  {time.time() - job.started:.0f} s  {now}"[:width])
            self.drawn = len(jobs)
            sys.stdout.flush()

    def _clear(self) -> None:
        print("\033[F\033[K" * self.drawn, end="")
        self.drawn = 0


def run_all(jobs: list[Job], devices: list[str]) -> None:
    """Run every job, one at a time on each device; an interrupt ends the running ones and is passed on."""
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    for job in jobs:
        waiting.put(job)
    running: dict[str, Job] = {}
    board, stop = Board(), threading.Event()

    def work(device: str) -> None:
        while not stop.is_set():
            try:
                job = waiting.get_nowait()
            except queue.Empty:
                return
            if not board.terminal:
                board.say(f"{job.label}: started, log {job.log}")
            job.started = time.time()
            running[device] = job
            try:
                job.run(device)
            except OSError as error:
                job.outcome, job.cause = "failed", str(error)
            running.pop(device)
            if not stop.is_set():
                board.say(job.report())

    def interrupt(*_):
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, interrupt)
    threads = [threading.Thread(target=work, args=(device,), daemon=True) for device in devices]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            board.draw(list(running.values()))
            threads[0].join(0.5) if threads[0].is_alive() else time.sleep(0.5)
    except KeyboardInterrupt:
        stop.set()
        for job in running.values():
            if job.process and job.process.poll() is None:
                os.killpg(job.process.pid, signal.SIGINT)
        for thread in threads:
            thread.join(30)
        raise
    board.draw([])


def find_devices(wanted: str | None) -> list[str]:
    """GPU indices to use, or ["cpu"]: those asked for, else all that nvidia-smi lists."""
    from sap3d.errors import InputError

    if wanted is not None:
        devices = wanted.split(",")
        if devices != ["cpu"] and not all(device.isdigit() for device in devices):
            raise InputError(f"--gpus {wanted}: write indices such as 0,1, or cpu")
        return list(dict.fromkeys(devices))
    if shutil.which("nvidia-smi"):
        listed = subprocess.run(["nvidia-smi", "--query-gpu=index", "--format=csv,noheader"], capture_output=True, text=True)
        if listed.returncode == 0 and listed.stdout.split():
            return listed.stdout.split()
    return ["cpu"]


def find_objects(type_: str, root: Path, wanted: list[str]) -> list[str]:
    """Objects of a type, below ``root`` or in the repository; raises InputError for an unknown type or object."""
    from sap3d.errors import InputError
    from sap3d.scene import check_name

    check_name(type_, "dataset type")
    bases = [base / "dataset" / "data" / "train" for base in (root, HERE)]
    found = sorted({path.parent.name for base in bases for path in base.glob(f"{type_}/[!.]*/images")})
    if not found:
        types = sorted({path.parent.parent.name for base in bases for path in base.glob("*/*/images")})
        raise InputError(f"unknown dataset type {type_!r}; available: {', '.join(types)}")
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(f"unknown object {unknown[0]!r} of type {type_}; available: {', '.join(found)}")
    return list(dict.fromkeys(wanted)) or found


def check_settings(settings: list[str], preset: str = "") -> None:
    """Raises InputError for a setting ``stage.key=value`` that its stage does not know or cannot take, and for a preset that cannot be used."""
    from sap3d.config import load_config
    from sap3d.errors import InputError

    for module, name in CONFIGS.values() if preset else ():
        load_config(getattr(importlib.import_module(module), name), preset=preset)
    for setting in settings:
        prefix, _, setting_of_stage = setting.partition(".")
        if prefix not in CONFIGS or "=" not in setting:
            raise InputError(f"{setting!r} is not a setting: write {', '.join(f'{name}.key=value' for name in CONFIGS)}")
        module, name = CONFIGS[prefix]
        try:
            load_config(getattr(importlib.import_module(module), name), None, [setting_of_stage])
        except InputError as error:
            raise InputError(f"{prefix}.{error}") from None


def write_table(type_: str, root: Path) -> str:
    """Write results/<TYPE>/table.md and table.csv; returns the Markdown."""
    from sap3d.report import collect, flat_row, markdown, write_csv
    from sap3d.scene import write_text

    results = collect(root, type_)
    text = markdown(results)
    write_text(root / "results" / type_ / "table.md", text)
    write_csv(root / "results" / type_ / "table.csv", [flat_row(result) for result in results])
    return text


def main() -> None:
    from sap3d.errors import InputError
    from sap3d.scene import root_dir

    if sys.argv[1:2] == ["--check_settings"]:
        presets = [item.partition("=")[2] for item in sys.argv[2:] if item.startswith("--preset=")]
        return check_settings([item for item in sys.argv[2:] if not item.startswith("--")], *presets[-1:])
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--object_type", "--type", required=True, help="dataset type: a folder of dataset/data/train")
    parser.add_argument("--views", type=int, nargs="+", default=[5], metavar="N", help="numbers of photos to use (default 5)")
    parser.add_argument("--gpus", help="GPU indices such as 0,1, or cpu (default: all GPUs, or the CPU)")
    parser.add_argument("--objects", nargs="+", default=[], metavar="NAME", help="only these objects")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a first look")
    parser.add_argument("--preset", default="", help="tiny (default), full or full-11gb")
    parser.add_argument("--set", dest="settings", nargs="+", default=[], metavar="stage.key=value", help="settings of relpose, booth, recon or eval")
    arguments = parser.parse_args()
    if min(arguments.views) < 1:
        raise InputError(f"--views must be at least 1, got {min(arguments.views)}")
    check_settings(arguments.settings, arguments.preset)
    root, type_ = root_dir(), arguments.object_type
    devices = find_devices(arguments.gpus)
    pairs = [(name, views) for name in find_objects(type_, root, arguments.objects) for views in dict.fromkeys(arguments.views)]
    options = [*(["--quick"] if arguments.quick else []), *([f"--preset={arguments.preset}"] if arguments.preset else []), *arguments.settings]
    jobs = []
    for index, (name, views) in enumerate(pairs, 1):
        folder = root / "results" / type_ / name / str(views)
        command = ["sh", str(DRIVER), type_, name, str(views), "GPU", *options]
        jobs.append(Job(f"[{index}/{len(pairs)}] {name}, {views} view{'s' * (views > 1)}", command, folder / "pipeline.log", folder / "results.json"))
    run_all(jobs, devices)
    failed = [job for job in jobs if job.outcome != "done" and job.outcome != "already finished"]
    if len(failed) < len(jobs):
        print(f"\n{write_table(type_, root)}\n{root / 'results' / type_ / 'table.md'}\n{root / 'results' / type_ / 'table.csv'}")
    for job in failed:
        print(f"{job.label}: failed: {job.cause} (log: {job.log})", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    bootstrap()
    from sap3d.errors import cli

    cli(main)
