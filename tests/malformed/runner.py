"""Runs one malformed input, in this process or as a real one, and says what is wrong with how it ended."""

from __future__ import annotations

import contextlib
import io
import os
import runpy
import shutil
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from sap3d.scene import REPOSITORY
from tests.malformed.scene import contents, make_model, make_scene

LONGEST = 1500  # characters of the line


@dataclass
class Case:
    """One input: ``prepare(place)`` makes it, ``command`` is run on it. {root}, {place} and {model} in the command are filled in."""

    group: str
    name: str
    command: list[str]  # a module or a driver, then its arguments
    prepare: Callable[[Place], None] | None = None
    says: str = ""  # part of the line, where it must name something

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


class Place:
    """A folder with a finished object below ``root`` (ROOT_DIR), a model, and a file ``canary`` that no input may make."""

    def __init__(self, folder: Path):
        self.folder, self.root, self.model, self.spare = folder, folder / "root", folder / "model", folder / "finished"
        self.scene = make_scene(self.root)
        self.root.rename(self.spare)
        self.inputs, self.canary = folder / "inputs", folder / "canary"

    def reset(self, model: bool) -> None:
        """Everything as it was at first, with a model where ``model`` asks for it."""
        for path in (self.root, self.inputs):
            shutil.rmtree(path, ignore_errors=True)
        shutil.copytree(self.spare, self.root)
        self.inputs.mkdir()
        if model and not self.model.exists():
            make_model(self.model, self.scene)
            shutil.copytree(self.scene.personal_dir, self.spare / self.scene.personal_dir.relative_to(self.root), dirs_exist_ok=True)
        self.canary.unlink(missing_ok=True)

    def photo(self, name="001.png") -> Path:
        return self.scene.train_dir / "images" / name


@dataclass
class Ending:
    status: int
    output: str
    errors: str


def in_process(command: list[str]) -> Ending:
    """As ``python -m`` would, in this process: what a module prints, and its status. run_pipeline.sh is always a process."""
    if command[0].endswith(".sh"):
        return as_process(command)
    kept, output, errors, status = (sys.argv, os.getcwd()), io.StringIO(), io.StringIO(), 0
    sys.argv = list(command)
    os.environ.pop("SAP3D_DRY_RUN", None)
    try:
        with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*found in sys.modules after import", category=RuntimeWarning)  # of runpy: it has run here before
            if command[0].endswith(".py"):
                runpy.run_path(str(REPOSITORY / command[0]), run_name="__main__")
            else:
                runpy.run_module(command[0], run_name="__main__", alter_sys=True)
    except SystemExit as ending:
        status = ending.code if isinstance(ending.code, int) else 1 if ending.code else 0
    except Exception as error:
        status = 1
        errors.write(f"Traceback: {type(error).__name__}: {error}\n")
    finally:
        sys.argv = kept[0]
        os.chdir(kept[1])
        os.environ.pop("SAP3D_DRY_RUN", None)
    return Ending(status, output.getvalue(), errors.getvalue())


def as_process(command: list[str]) -> Ending:
    program = ["sh"] if command[0].endswith(".sh") else [sys.executable] if command[0].endswith(".py") else [sys.executable, "-m"]
    done = subprocess.run([*program, *command], cwd=REPOSITORY, env={**os.environ, "PYTHON": sys.executable}, capture_output=True, text=True, errors="replace")
    return Ending(done.returncode, done.stdout, done.stderr)


def run_case(case: Case, place: Place, run: Callable[[list[str]], Ending] = in_process) -> list[str]:
    """What is wrong with how ``case`` ended; empty when all is well."""
    begins = case.group in ("pickles", "novel views", "memory")  # found out by a stage that has begun, and so has removed its outdated record
    place.reset(model=begins)
    for record in place.root.rglob("*record.json") if begins else ():
        record.unlink()
    if case.prepare:
        case.prepare(place)
    before, around = contents(place.root) | contents(place.inputs), sorted(os.listdir(place.folder.parent))
    os.environ["ROOT_DIR"] = str(place.root)
    try:
        ended = run([part.replace("{root}", str(place.root)).replace("{inputs}", str(place.inputs)).replace("{model}", str(place.model)) for part in case.command])
    finally:
        os.environ.pop("ROOT_DIR", None)
    lines = [line for line in ended.errors.splitlines() if line.strip() and not line.startswith("[")]  # without progress
    faults = []
    if ended.status in (0, None) or ended.status < 0:
        faults.append(f"status {ended.status}")
    if "Traceback" in ended.output + ended.errors:
        faults.append("a traceback")
    if len(lines) != 1 or not lines[0].startswith("error: ") or len(lines[0]) > LONGEST:
        faults.append("not one line")
    if case.says not in ended.errors:
        faults.append(f"does not say {case.says!r}")
    after = contents(place.root) | contents(place.inputs)
    if before != after:
        faults.append(f"changed files: {sorted(key for key in {**before, **after} if before.get(key) != after.get(key))[:5]}")
    if place.canary.exists():
        faults.append("ran the code of its input")
    if sorted(os.listdir(place.folder.parent)) != around or Path("/tmp/sap3d_climbed").exists():
        faults.append("wrote outside of its folders")
    return [*faults, ended.errors[-1500:]] if faults else []
