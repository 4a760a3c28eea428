"""Runs an experiment over many objects and variants, keeps its raw rows and sets the tables of docs/results.md.

    python -m sap3d.suite dev-16                               docs/suites/dev-16.yaml, resumes where it stopped
    python -m sap3d.suite dev-16 --variants full --views 5 --objects SCHOOL_BUS
    python -m sap3d.suite ablations --plan                     only say what would be run, taken and shared
    python -m sap3d.suite --render                             only docs/results.md, from the stored rows
    python -m sap3d.evaluate suite dev-16                      the same as python -m sap3d.suite dev-16

A suite (fields below: ``Suite`` and ``Variant``) names objects, numbers of views and variants of the settings. Each
variant works in a root of its own, .work/suites/<suite>/<variant>; a variant may take outputs of stages that it does
not change from an earlier one, so that time goes where the difference is. Figures go to docs/results_rows/<suite>.json
and .csv; a row is measured again when its settings, the stages' defaults or the bundled weights change, or with --again.
A suite may take rows of the same settings from another one (``take_from``) instead of measuring them a second time.
"""

from __future__ import annotations

import argparse
import fcntl
import functools
import importlib
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Iterable

import numpy as np

from sap3d import evaluate
from sap3d.cameras import azimuths_from_first, camera_from_pose
from sap3d.config import as_dict, load_config
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.report import flat_row, write_csv
from sap3d.results import FIGURE, load_results, summary_lines
from sap3d.scene import BUNDLED_ZERO123, REPOSITORY, Scene, fingerprint, read_json, read_pose, root_dir, write_cameras, write_json

STAGES = {"relposepp": "relposepp.run", "camerabooth": "camerabooth.run", "3D_Recon": "3D_Recon.threestudio.launch"}
CONFIGS = (("relposepp.config", "RelPoseConfig"), ("camerabooth.config", "BoothConfig"), ("3D_Recon.threestudio.config", "ReconConfig"))
SUITES = REPOSITORY / "docs" / "suites"
ROWS = REPOSITORY / "docs" / "results_rows"


@dataclass
class Variant:
    about: str = ""  # a sentence for the tables
    stages: list[str] = field(default_factory=lambda: list(STAGES))  # stages to have; the others are left out
    settings: dict[str, list[str]] = field(default_factory=dict)  # stage -> key=value settings
    quick: bool = False  # give every stage --quick
    cameras: str = "estimated"  # "true": the true input cameras stand in for stage 1 (relposepp is not run)
    share_from: str = ""  # an earlier variant ...
    share: list[str] = field(default_factory=list)  # ... whose outputs of these stages are copied; with settings of its own a stage then makes again what they change
    views: list[int] = field(default_factory=list)  # only these of the suite's numbers of views; empty: all


@dataclass
class Claim:
    better: str = ""  # "variant@views"
    worse: str = ""  # "variant@views"
    figures: list[str] = field(default_factory=lambda: ["3d_psnr_mean", "3d_lpips_mean"])  # keys of results.json
    part: str = ""  # what it and the claims after it are about: a table of their own under these words


@dataclass
class Gallery:
    """The worst objects, shown on docs/results.md (sap3d/suite_gallery.py)."""

    variant: str = ""
    views: int = 0  # number of photos; 0: no gallery
    figure: str = "3d_lpips_mean"  # key of results.json that tells how bad an object is
    count: int = 5
    causes: dict[str, str] = field(default_factory=dict)  # object -> why it fails: a sentence by hand, from looking at it


@dataclass
class Suite:
    title: str = ""
    about: str = ""  # a paragraph for docs/results.md
    type: str = ""
    objects: list[str] = field(default_factory=list)
    views: list[int] = field(default_factory=list)
    more_views: dict[str, list[int]] = field(default_factory=dict)  # object -> further numbers of views
    variants: dict[str, Variant] = field(default_factory=dict)
    claims: list[Claim] = field(default_factory=list)  # comparisons that docs/results.md spells out
    evaluation: list[str] = field(default_factory=list)  # key=value settings of sap3d.evaluate
    gallery: Gallery = field(default_factory=Gallery)
    beside_released: str = ""  # variant whose means docs/results.md sets beside SAP3D's released ones
    take_from: list[str] = field(default_factory=list)  # other suites whose rows count here where variant, settings and weights agree


def load_suite(name: str) -> tuple[str, Suite]:
    """(short name, suite) of a file in docs/suites or of a path; raises InputError with the cause."""
    path = Path(name) if name.endswith((".yaml", ".yml")) else SUITES / f"{name}.yaml"
    if not path.is_file():
        raise InputError(f"{path}: no such suite; there are {', '.join(sorted(p.stem for p in SUITES.glob('*.yaml'))) or 'none'}")
    suite = load_config(Suite, path)
    if not suite.type or not suite.objects or not suite.views or not suite.variants:
        raise InputError(f"{path}: a suite needs type, objects, views and variants")
    earlier: list[str] = []
    for key, variant in suite.variants.items():
        unknown = [stage for stage in (*variant.stages, *variant.settings, *variant.share) if stage not in STAGES]
        if unknown:
            raise InputError(f"{path}: variant {key} names {unknown[0]}, which is not a stage ({', '.join(STAGES)})")
        if variant.cameras not in ("estimated", "true"):
            raise InputError(f"{path}: variant {key}: cameras must be estimated or true, not {variant.cameras}")
        if bool(variant.share) != bool(variant.share_from) or (variant.share_from and variant.share_from not in earlier):
            raise InputError(f"{path}: variant {key}: share and share_from go together and name an earlier variant")
        idle = [stage for stage in variant.settings if stage not in variant.stages]
        if idle:
            raise InputError(f"{path}: variant {key} has settings for {idle[0]}, which is not among its stages")
        earlier.append(key)
    gallery = suite.gallery
    if gallery.views and (gallery.variant not in suite.variants or gallery.figure not in FIGURE):
        raise InputError(f"{path}: gallery needs a variant of the suite ({', '.join(suite.variants)}) and a figure of results.json, not {gallery.variant} and {gallery.figure}")
    if suite.beside_released and suite.beside_released not in suite.variants:
        raise InputError(f"{path}: beside_released names {suite.beside_released}, which is not a variant of the suite ({', '.join(suite.variants)})")
    strangers = [object_ for object_ in gallery.causes if object_ not in (*suite.objects, *suite.more_views)]
    if strangers:
        raise InputError(f"{path}: gallery gives a cause for {strangers[0]}, which is not an object of the suite")
    missing = [other for other in suite.take_from if other == path.stem or not (SUITES / f"{other}.yaml").is_file()]
    if missing:
        raise InputError(f"{path}: take_from names {missing[0]}, which is not another suite of {SUITES}")
    return path.stem, suite


def plan(suite: Suite) -> list[tuple[str, str, int]]:
    """(variant, object, views) of every run, a whole object at a time, in an order in which sharing works."""
    runs = []
    for object_ in dict.fromkeys([*suite.objects, *suite.more_views]):
        counts = list(dict.fromkeys([*(suite.views if object_ in suite.objects else []), *suite.more_views.get(object_, [])]))
        runs += [(key, object_, n) for n in counts for key, variant in suite.variants.items() if not variant.views or n in variant.views]
    return runs


def stage_outputs(scene: Scene, stage: str) -> list[Path]:
    """All that a stage leaves behind for one object."""
    if stage == "relposepp":
        stem = scene.initial_cameras.stem
        return [path for path in sorted(scene.initial_cameras.parent.glob(f"*{stem}*")) if path.name.split(stem)[1][:1] in (".", "_", "-")]
    return {"camerabooth": [scene.personal_dir, scene.nvs_dir], "3D_Recon": [scene.nerf_dir, scene.mesh_dir]}[stage]


def remove_outputs(scene: Scene, stages: Iterable[str]) -> None:
    for path in (path for stage in stages for path in stage_outputs(scene, stage)):
        shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)


def share_outputs(source: Scene, target: Scene, stage: str) -> None:
    """Copy a stage's outputs to the same object in another root; raises InputError when there are none."""
    found = [path for path in stage_outputs(source, stage) if path.exists()]
    if not found:
        what = f"{stage} for {source.object} with {source.views} views"
        raise InputError(f"{source.root}: no outputs of {what}; run the variant that makes them first, with --again where its row is stored without them")
    for path in found:
        copy = target.root / path.relative_to(source.root)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_dir():
            shutil.rmtree(copy, ignore_errors=True)
            shutil.copytree(path, copy)
        else:
            shutil.copy2(path, copy)


def write_true_cameras(scene: Scene) -> Path:
    """The true input cameras as a file for stage 1 to pass on: an oracle that tells what better cameras would give."""
    paths = sorted(scene.truth_poses_dir.glob("*.npy"))[: scene.views]
    if len(paths) < scene.views:
        raise InputError(f"{scene.truth_poses_dir}: {len(paths)} true cameras where {scene.views} are needed")
    cameras = {path.stem: camera_from_pose(read_pose(path)) for path in paths}
    path = scene.root / "true_cameras" / scene.type / f"{scene.object}_view_{scene.views}.yaml"
    write_cameras(path, azimuths_from_first(cameras), source="ground truth")
    return path


def run_one(name: str, suite: Suite, key: str, object_: str, views: int, again: bool) -> dict:
    """Make and measure one object under one variant; returns its row. Raises InputError when a stage fails."""
    variant = suite.variants[key]
    scene = Scene(suite.type, object_, views, variant_root(name, key))
    if again:
        remove_outputs(scene, STAGES)
    # What an earlier definition of the variant has left behind would be measured with the rest.
    remove_outputs(scene, [stage for stage in STAGES if stage not in (*variant.stages, *variant.share) and not (stage == "relposepp" and variant.cameras == "true")])
    load, wall = os.getloadavg()[0], {}
    for stage in STAGES:
        if stage in variant.share:
            share_outputs(Scene(suite.type, object_, views, outputs_root(name, variant.share_from, object_, views)), scene, stage)
        oracle = stage == "relposepp" and variant.cameras == "true"
        if oracle or is_run(variant, stage):
            given = [f"cameras={write_true_cameras(scene)}"] if oracle else []
            wall[stage] = run_program(scene, STAGES[stage], [*(["--quick"] if variant.quick else []), *variant.settings.get(stage, []), *given])
    wall["evaluate"] = run_program(scene, "sap3d.evaluate", list(suite.evaluation))
    result = load_results(scene.results_dir / "results.json")
    print("\n".join(f"    {line}" for line in summary_lines(result)), flush=True)
    return {
        "suite": name,
        "variant": key,
        "definition": definition(variant),
        "made_by": made_by(suite, key),
        "made_from": made_from(suite, key),
        "commit": commit(),
        "cores": os.cpu_count(),
        "load_before": round(load, 2),
        "wall_seconds": wall,
        "finished": time.strftime("%Y-%m-%d %H:%M"),
        "result": result,
    }


def suite_root(name: str, key: str) -> Path:
    """Where a variant's own root is, whether it exists or not."""
    return root_dir() / ".work" / "suites" / name / key


def is_run(variant: Variant, stage: str) -> bool:
    """Whether a stage runs under the variant's settings: one of its stages, and not merely copied from another variant."""
    return stage in variant.stages and (stage not in variant.share or bool(variant.settings.get(stage)))


def variant_root(name: str, key: str) -> Path:
    """The variant's own root. It sees the same data: the repository's, or that below ROOT_DIR."""
    root = suite_root(name, key)
    root.mkdir(parents=True, exist_ok=True)
    data = root_dir() / "dataset"
    if root_dir() != REPOSITORY and data.is_dir() and not (root / "dataset").exists():
        (root / "dataset").symlink_to(data)
    return root


def outputs_root(name: str, key: str, object_: str, views: int) -> Path:
    """Where the outputs behind a row are: in the root of the suite that it was taken from, if it was."""
    row = next((row for row in load_rows(name) if row_key(row) == (key, object_, views)), {})
    return variant_root(row.get("taken_from", name), key)


def run_program(scene: Scene, module: str, settings: list[str]) -> float:
    """Run a command line for ``scene``, its output in a log; returns its wall time in seconds, start-up and all.

    Raises InputError with the last line of the log when it fails.
    """
    log = scene.root / "logs" / f"{scene.object}_{scene.views}_{module}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", module, "--type", scene.type, "--object", scene.object, "--views", str(scene.views), *settings]
    environment = os.environ | {"ROOT_DIR": str(scene.root)}
    start = time.time()
    with open(log, "w") as stream:
        code = subprocess.run(command, cwd=REPOSITORY, env=environment, stdout=stream, stderr=subprocess.STDOUT).returncode
    seconds = round(time.time() - start, 1)
    print(f"    {module} {' '.join(settings)}: {seconds:.0f} s", flush=True)
    if code:
        last = (log.read_text(errors="replace").strip().splitlines() or ["no output"])[-1]
        raise InputError(f"{module} ended with status {code}: {last} (log: {log})")
    return seconds


def definition(variant: Variant) -> dict:
    """What makes a row out of date when it changes."""
    values = as_dict(variant)
    return {key: values[key] for key in ("stages", "settings", "quick", "cameras", "share_from", "share")}


def made_by(suite: Suite, key: str) -> str:
    """Hash of the settings that a variant's stages, and those whose outputs it shares, start from, and of the bundled weights: another one makes rows out of date."""
    return _defaults_and_weights(frozenset(one["quick"] for one in lineage(suite, key)))


@functools.lru_cache(maxsize=3)
def _defaults_and_weights(quick: frozenset[bool]) -> str:
    """Of the stages' settings with --quick (True), without (False), or both."""
    settings, files = {}, []
    for module, name in CONFIGS:
        config = getattr(importlib.import_module(module), name)
        settings[name] = [as_dict(load_config(config, None, config.QUICK if flag else ())) for flag in sorted(quick)]
    for folder in (BUNDLED_ZERO123, REPOSITORY / "relposepp" / "weights"):
        files += sorted(path for path in folder.rglob("*") if path.suffix in (".safetensors", ".json"))
    return fingerprint(settings, {path.relative_to(REPOSITORY).as_posix(): path for path in files})[:12]


def commit() -> str:
    """Short name of the code's commit, with a + when the work tree differs from it; empty outside of a checkout."""
    done = subprocess.run(["git", "describe", "--always", "--dirty=+"], cwd=REPOSITORY, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def made_from(suite: Suite, key: str) -> dict:
    """What else makes a row of a variant out of date: data, evaluation, its definition and those of the variants whose outputs it shares."""
    return {"type": suite.type, "evaluation": list(suite.evaluation), "format": evaluate.FORMAT, "lineage": lineage(suite, key)}


def up_to_date(row: dict | None, suite: Suite, key: str) -> bool:
    """Whether a stored row was measured under the settings of variant ``key`` with the present defaults and weights."""
    return bool(row) and row.get("made_by") == made_by(suite, key) and row.get("made_from") == made_from(suite, key)


def taken_row(name: str, suite: Suite, key: str, object_: str, views: int) -> dict | None:
    """A row that a suite of ``take_from`` has measured already, marked with that suite's name; None where there is none.

    It must be up to date, of the same variant, object and number of views.
    """
    for other in suite.take_from:
        for row in load_rows(other):
            if row_key(row) == (key, object_, views) and up_to_date(row, suite, key):
                return row | {"suite": name, "taken_from": row.get("taken_from", other)}
    return None


def lineage(suite: Suite, key: str) -> list[dict]:
    """Definitions of a variant and of those that its shared outputs come from; empty when the suite lacks it."""
    found = []
    while key in suite.variants:
        found.append(definition(suite.variants[key]))
        key = suite.variants[key].share_from
    return found


def row_key(row: dict) -> tuple:
    return row["variant"], row["result"]["NAME"], row["result"]["views"]


def load_rows(name: str) -> list[dict]:
    """The stored rows of a suite; an empty list when there are none."""
    rows = read_json(ROWS / f"{name}.json")
    return rows if isinstance(rows, list) else []


def store_rows(name: str, rows: list[dict]) -> None:
    """Write docs/results_rows/<suite>.json (everything) and .csv (the same, flat)."""
    write_json(ROWS / f"{name}.json", rows)
    common = ("variant", "commit", "cores", "load_before", "finished", *(["taken_from"] if any("taken_from" in row for row in rows) else []))
    write_csv(ROWS / f"{name}.csv", [{key: row.get(key) for key in common} | flat_row(row["result"]) for row in rows])


def add_row(name: str, suite: Suite, row: dict) -> None:
    """Store one more row, in the place of an older one of the same run, in the order of the plan.

    Several processes may work on different objects of a suite at the same time: nobody else writes between reading and writing.
    """
    lock = ROWS / f".{name}.lock"  # beside the rows, which are the same for every ROOT_DIR
    lock.parent.mkdir(parents=True, exist_ok=True)
    with open(lock, "w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # freed when the file is closed
        stored = {row_key(old): old for old in load_rows(name)} | {row_key(row): row}
        order = {run: place for place, run in enumerate(plan(suite))}
        store_rows(name, sorted(stored.values(), key=lambda r: order.get(row_key(r), len(order))))


def chosen_runs(suite: Suite, arguments: argparse.Namespace) -> list[tuple[str, str, int]]:
    """The suite's runs that --variants, --objects and --views leave."""
    return [
        (key, object_, n)
        for key, object_, n in plan(suite)
        if all(not chosen or value in chosen for value, chosen in ((key, arguments.variants), (object_, arguments.objects), (n, arguments.views)))
    ]


def check_chosen(name: str, suite: Suite, arguments: argparse.Namespace) -> None:
    """Raises InputError for a variant, an object or a number of views that the suite has not, and where together they leave nothing to run."""
    for what, chosen, known in zip(("variant", "object", "number of views"), (arguments.variants, arguments.objects, arguments.views), zip(*plan(suite))):
        unknown = [value for value in chosen if value not in known]
        if unknown:
            raise InputError(f"suite {name} has no {what} {unknown[0]}; it has {', '.join(map(str, dict.fromkeys(known)))}")
    if not chosen_runs(suite, arguments):
        raise InputError(f"suite {name} has no run of these variants, objects and numbers of views together; --plan without them lists its runs")


def run_suite(name: str, suite: Suite, arguments: argparse.Namespace) -> list[str]:
    """Run what is missing or out of date; returns the failures, a line each."""
    wanted = chosen_runs(suite, arguments)
    failures = []
    for index, (key, object_, n) in enumerate(wanted):
        stored = {row_key(row): row for row in load_rows(name)}
        label = f"[{index + 1}/{len(wanted)}] {key}, {object_}, {n} views"
        if up_to_date(stored.get((key, object_, n)), suite, key) and not arguments.again:
            print(f"{label}: measured already", flush=True)
            continue
        row = None if arguments.again else taken_row(name, suite, key, object_, n)
        print(f"{label}: taken from {row['taken_from']}" if row else label, flush=True)
        try:
            row = row or run_one(name, suite, key, object_, n, arguments.again)
        except InputError as error:
            failures.append(f"{label}: {error}")
            print(f"    failed: {error}", file=sys.stderr, flush=True)
            continue
        add_row(name, suite, row)
    return failures


def plan_lines(name: str, suite: Suite, arguments: argparse.Namespace) -> list[str]:
    """What ``run_suite`` would do, a line a run: stages that are run, stages whose outputs are shared, or where its row is."""
    stored, lines = {row_key(row): row for row in load_rows(name)}, []
    for key, object_, n in chosen_runs(suite, arguments):
        variant = suite.variants[key]
        taken = taken_row(name, suite, key, object_, n)
        if up_to_date(stored.get((key, object_, n)), suite, key) and not arguments.again:
            what = "measured already"
        elif taken and not arguments.again:
            what = f"taken from {taken['taken_from']}"
        else:
            given = ["the true cameras"] if variant.cameras == "true" else []
            run = [stage for stage in STAGES if is_run(variant, stage) and not (given and stage == "relposepp")]
            what = f"run {', '.join(run) or 'no stage'}; {', '.join([*(f'{stage} of {variant.share_from}' for stage in variant.share), *given]) or 'nothing'} given"
        lines.append(f"{key}, {object_}, {n} views: {what}")
    return lines


def main(argv: list[str] | None = None) -> None:
    from sap3d.suite_tables import write_results_page

    parser = ArgumentParser(prog="python -m sap3d.suite", description="Run an experiment of docs/suites and set the tables of docs/results.md.")
    parser.add_argument("suite", nargs="?", help="name of a file in docs/suites, or a path to a YAML file")
    parser.add_argument("--variants", nargs="+", action="extend", default=[], help="only these variants")
    parser.add_argument("--objects", nargs="+", action="extend", default=[], help="only these objects")
    parser.add_argument("--views", nargs="+", type=int, action="extend", default=[], help="only these numbers of views")
    parser.add_argument("--again", action="store_true", help="throw stored outputs away and measure again")
    parser.add_argument("--plan", action="store_true", help="run nothing, only list what would be run, taken and shared")
    parser.add_argument("--render", action="store_true", help="run nothing, only write docs/results.md from the stored rows")
    arguments = parser.parse_args(argv)
    failures = []
    if not arguments.render:
        if not arguments.suite:
            raise InputError(f"name a suite: {', '.join(sorted(p.stem for p in SUITES.glob('*.yaml'))) or 'there are none'}")
        name, suite = load_suite(arguments.suite)
        check_chosen(name, suite, arguments)
        if arguments.plan:
            print("\n".join(plan_lines(name, suite, arguments)))
            return
        failures = run_suite(name, suite, arguments)
    print(write_results_page())
    if failures:
        raise InputError(f"{len(failures)} runs failed, the first: {failures[0]}")


if __name__ == "__main__":
    cli(main)
