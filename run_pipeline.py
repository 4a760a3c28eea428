"""Many objects: runs run_pipeline.sh for each of them and collects the figures.

    python run_pipeline.py --object_type GSO_demo [--views 3 5] [--gpus 0,1] [--objects a b] [--quick] [--set booth.steps=100]
    python run_pipeline.py --object_type GSO_demo --engine ray [--address auto]

One object runs at a time on every GPU, or on the CPU where there is none; or on every free place of a Ray cluster. Finished
objects are skipped, interrupted ones resumed. Output of each goes to results/<TYPE>/<OBJECT>/<N>/pipeline.log. At the end the
figures of the type are printed and written to results/<TYPE>/table.md and table.csv. Exit status: 0, 1 (an object failed),
2 (bad input), 130 (interrupted), 143 (terminated).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Sequence

if TYPE_CHECKING:
    import argparse

    from sap3d.batch.jobs import Job

HERE = Path(__file__).resolve().parent
DRIVER = HERE / "run_pipeline.sh"
NEEDED = ("torch", "diffusers", "omegaconf", "embreex", "lpips")  # as in run_pipeline.sh
CONFIGS = {  # prefix of a setting on the command line -> where its keys are
    "relpose": ("relposepp.config", "RelPoseConfig"),
    "booth": ("camerabooth.config", "BoothConfig"),
    "recon": ("3D_Recon.threestudio.config", "ReconConfig"),
    "eval": ("sap3d.evaluate", "EvaluationConfig"),
}
PATHS = ("relpose.weights", "relpose.cameras", "booth.model", "recon.model", "recon.cameras")  # settings that name a file or folder, as in run_pipeline.sh


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
    from sap3d.scene import check_name, objects_by_type

    check_name(type_, "dataset type")
    objects = objects_by_type(root)
    found = objects.get(type_, [])
    if not found:
        raise InputError(f"unknown dataset type {type_!r}; available: {', '.join(objects)}")
    unknown = [name for name in wanted if name not in found]
    if unknown:
        raise InputError(f"unknown object {unknown[0]!r} of type {type_}; available: {', '.join(found)}")
    return list(dict.fromkeys(wanted)) or found


def stages_to_run(first: str | None, only: str | None) -> list[str]:
    """Prefixes of the stages that --from-stage and --only-stage leave, in order."""
    return [only] if only else list(CONFIGS)[list(CONFIGS).index(first) if first else 0 :]


def check_settings(settings: list[str], preset: str = "", stages: Sequence[str] = tuple(CONFIGS)) -> None:
    """Raises InputError for settings ``stage.key=value`` that their stage does not know or cannot take together, and for a preset that cannot be used.

    stages: those that run. Theirs are the paths that must be there, seen from the present folder, and the models that must be one.
    """
    from sap3d.config import load_config
    from sap3d.errors import InputError

    given: dict[str, list[str]] = {prefix: [] for prefix in CONFIGS}
    for setting in settings:
        prefix, _, setting_of_stage = setting.partition(".")
        if prefix not in CONFIGS or "=" not in setting:
            raise InputError(f"{setting!r} is not a setting: write {', '.join(f'{name}.key=value' for name in CONFIGS)}")
        given[prefix].append(setting_of_stage)
    configs = {}
    for prefix, (module, name) in CONFIGS.items():
        if preset or given[prefix]:
            try:
                configs[prefix] = load_config(getattr(importlib.import_module(module), name), None, given[prefix], preset)
            except InputError as error:
                raise InputError(f"{prefix}.{error}" if given[prefix] else str(error)) from None
    for prefix, key in (setting.split(".") for setting in PATHS):
        path = getattr(configs[prefix], key) if prefix in configs and prefix in stages else ""
        if path and not os.path.exists(path):
            raise InputError(f"{prefix}.{key}={os.path.abspath(path)}: no such {'camera file' if key == 'cameras' else 'folder'}; correct the path or leave {prefix}.{key} out")
    if {"booth", "recon"} <= set(stages) and {"booth", "recon"} & set(configs):
        _check_one_model(*(configs.get(prefix) or getattr(importlib.import_module(CONFIGS[prefix][0]), CONFIGS[prefix][1])() for prefix in ("booth", "recon")))


def _check_one_model(booth, recon) -> None:
    """Raises InputError where stage 3 would load another base model than stage 2 has trained a personal one from, which it refuses only when stage 2 is done."""
    from sap3d.errors import InputError
    from sap3d.scene import BUNDLED_ZERO123

    if not booth.train or not recon.sds:  # there is no personal model then, or nobody asks it
        return
    for key, of_booth, of_recon in (("model", booth.model or BUNDLED_ZERO123, recon.model or BUNDLED_ZERO123), ("weights_dtype", booth.weights_dtype, recon.weights_dtype)):
        if of_booth != of_recon and (key != "model" or os.path.realpath(of_booth) != os.path.realpath(of_recon)):
            raise InputError(f"booth.{key}={of_booth} and recon.{key}={of_recon} differ, but stage 3 goes on with the model of stage 2: give both the same")


def write_table(type_: str, root: Path) -> str:
    """Write results/<TYPE>/table.md and table.csv; returns the Markdown."""
    from sap3d.report import collect, flat_row, markdown, write_csv
    from sap3d.scene import write_text

    results = collect(root, type_)
    text = markdown(results)
    write_text(root / "results" / type_ / "table.md", text)
    write_csv(root / "results" / type_ / "table.csv", [flat_row(result) for result in results])
    return text


def parse() -> argparse.Namespace:
    from sap3d.errors import ArgumentParser

    parser = ArgumentParser(prog="python run_pipeline.py", description=__doc__.split("\n")[0])
    parser.add_argument("--object_type", "--type", required=True, help="dataset type: a folder of dataset/data/train")
    parser.add_argument("--views", type=int, nargs="+", action="extend", metavar="N", help="numbers of photos to use (default 5)")
    parser.add_argument("--objects", nargs="+", action="extend", default=[], metavar="NAME", help="only these objects")
    parser.add_argument("--gpus", help="GPU indices such as 0,1, or cpu (default: all GPUs, or the CPU)")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a first look")
    parser.add_argument("--preset", default="", help="tiny (default), full or full-11gb")
    parser.add_argument("--seed", type=int, help="the seed of every stage")
    parser.add_argument("--from-stage", choices=tuple(CONFIGS), help="begin at this stage; what lies before it is taken as it is")
    parser.add_argument("--only-stage", choices=tuple(CONFIGS), help="run this stage alone")
    parser.add_argument("--set", dest="settings", nargs="+", action="extend", default=[], metavar="stage.key=value", help="settings of relpose, booth, recon or eval")
    parser.add_argument("--retries", type=int, default=1, help="how often an object that failed for another reason than bad input is tried again (default 1)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing: which stages of which objects would run, and why")
    parser.add_argument("--engine", choices=("local", "ray"), default="local", help="local: this machine; ray: a Ray cluster")
    parser.add_argument("--address", help="Ray: address of a cluster, or auto for the one of this machine (default: a new one)")
    parser.add_argument("--cpus", type=float, default=1, help="Ray: CPU cores an object takes (default 1)")
    parser.add_argument("--memory_gb", type=float, default=0, help="Ray: memory an object takes of its node, GB (default: not counted)")
    arguments = parser.parse_args()
    arguments.views = arguments.views or [5]  # no default above: an option that is given more than once would extend it
    return arguments


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raises InputError for options that cannot be used."""
    from sap3d.errors import InputError

    if min(arguments.views) < 1:
        raise InputError(f"--views must be at least 1, got {min(arguments.views)}")
    if arguments.retries < 0 or (arguments.seed or 0) < 0:
        raise InputError("--retries and --seed must be at least 0")
    if arguments.from_stage and arguments.only_stage:
        raise InputError("--from-stage and --only-stage exclude each other")
    if arguments.engine != "ray" and (arguments.address or arguments.memory_gb or arguments.cpus != 1):
        raise InputError("--address, --cpus and --memory_gb belong to --engine ray")
    if not arguments.cpus >= 0 or not arguments.memory_gb >= 0:
        raise InputError("--cpus and --memory_gb must be at least 0")
    check_settings(arguments.settings, arguments.preset, stages_to_run(arguments.from_stage, arguments.only_stage))


def make_jobs(arguments: argparse.Namespace, root: Path) -> list[Job]:
    """A job for every object and number of views, objects in the order of their names."""
    from sap3d.batch.jobs import DEVICE, Job

    options = [*(["--quick"] if arguments.quick else []), *([f"--preset={arguments.preset}"] if arguments.preset else [])]
    for name in ("seed", "from_stage", "only_stage"):
        if getattr(arguments, name) is not None:
            options.append(f"--{name.replace('_', '-')}={getattr(arguments, name)}")
    type_ = arguments.object_type
    pairs = [(name, views) for name in find_objects(type_, root, arguments.objects) for views in dict.fromkeys(arguments.views)]
    jobs = []
    for index, (name, views) in enumerate(pairs, 1):
        folder = root / "results" / type_ / name / str(views)
        command = ["sh", str(DRIVER), type_, name, str(views), DEVICE, *options, *arguments.settings]
        jobs.append(Job(name, views, f"[{index}/{len(pairs)}] {name}, {views} view{'s' * (views > 1)}", command, folder / "pipeline.log", folder / "results.json"))
    return jobs


def dry_run(jobs: list[Job]) -> int:
    """Print what each job would do; returns the status of the last that has bad input, else 0."""
    from sap3d.batch.jobs import DEVICE

    status = 0
    for job in jobs:
        print(job.label, flush=True)
        done = subprocess.run([*("cpu" if part == DEVICE else part for part in job.command), "--dry-run"])
        status = done.returncode or status
    return status


def main() -> None:
    from sap3d.scene import root_dir

    if sys.argv[1:2] == ["--check_settings"]:
        options = dict(item.partition("=")[::2] for item in sys.argv[2:] if item.startswith("--"))
        stages = stages_to_run(options.get("--from-stage"), options.get("--only-stage"))
        return check_settings([item for item in sys.argv[2:] if not item.startswith("--")], options.get("--preset", ""), stages)
    from sap3d.batch.board import Board, summary

    arguments = parse()
    check_arguments(arguments)
    root, type_ = root_dir(), arguments.object_type
    devices = find_devices(arguments.gpus)
    jobs = make_jobs(arguments, root)
    if arguments.dry_run:
        raise SystemExit(dry_run(jobs))
    board = Board(jobs)
    if arguments.engine == "ray":
        from sap3d.batch.ray_cluster import run_ray

        variables = {name: os.environ[name] for name in ("ROOT_DIR", "PYTHON", "OMP_NUM_THREADS") if name in os.environ}
        run_ray(jobs, arguments.retries, board, arguments.address, arguments.gpus and devices, arguments.cpus, arguments.memory_gb, variables)
    else:
        from sap3d.batch.local import run_local

        run_local(jobs, devices, arguments.retries, board)
    print(f"\n{summary(jobs)}")
    failed = [job for job in jobs if job.outcome == "failed"]
    if len(failed) < len(jobs) and any(job.results.is_file() for job in jobs):
        print(f"\n{write_table(type_, root)}\n{root / 'results' / type_ / 'table.md'}\n{root / 'results' / type_ / 'table.csv'}")
    sys.stdout.flush()
    for job in failed:
        print(f"{job.label}: failed: {job.cause} (log: {job.log})", file=sys.stderr)
    if failed:
        raise SystemExit(1)


if __name__ == "__main__":
    bootstrap()
    from sap3d.errors import cli

    cli(main)
