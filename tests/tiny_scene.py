"""One tiny object for whole-pipeline tests: a coloured box rendered at a few views, with ground truth, and settings for seconds."""

import json
import os
import subprocess
import sys
from pathlib import Path

from dataset.render import RenderSettings, render_object
from sap3d.mesh_load import load_mesh_normalised
from sap3d.scene import REPOSITORY, Scene
from tests.mesh_examples import write_cube

TYPE, OBJECT = "TINY", "box"
SETTINGS = {  # what makes each stage take seconds
    "relpose": ["candidates=24", "starts=1500", "beam=30"],
    "booth": ["steps=6", "steps_per_extra_view=2", "batch_size=2", "regulariser=random", "regulariser_objects=2", "regulariser_batch=1", "nvs_steps=2", "field_steps=6", "output_size=64"],
    "recon": ["steps=24", "grid=[16,24]", "level_starts=[0.0,0.5]", "photo_sizes=[32,64]", "rays=256", "warm_start_rays=128", "sds_every=6", "render_size=32",
              "turntable_frames=4", "turntable_size=32", "mesh_cells=32", "mesh_faces=2000", "texture_size=128", "checkpoint_seconds=0"],
    "eval": ["size=32"],
}  # fmt: skip
ALL_SETTINGS = [f"{stage}.{setting}" for stage, settings in SETTINGS.items() for setting in settings]


def make_tiny_object(root: Path, views: int = 3) -> Scene:
    """Photos (128 px), true cameras, 84 test views (32 px) and the true mesh below ``root``."""
    mesh = load_mesh_normalised(write_cube(root / "source", scale=(1.0, 0.6, 0.4)))
    render_object(mesh, TYPE, OBJECT, root, RenderSettings(views=views, input_size=128, test_size=32))
    return Scene(TYPE, OBJECT, views, root)


def environment(root, first: str = "") -> dict:
    """Variables for the drivers; every Python that they start runs the code ``first`` before anything else."""
    variables = {**os.environ, "ROOT_DIR": str(root), "PYTHON": sys.executable}
    if first:
        folder = Path(root).resolve() / "first"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "sitecustomize.py").write_text(first)
        variables["PYTHONPATH"] = str(folder)
    return variables


def command(views=3, *more) -> list[str]:
    return ["sh", str(REPOSITORY / "run_pipeline.sh"), TYPE, OBJECT, str(views), "0", *ALL_SETTINGS, *more]


def run(root, views=3, cwd=None, variables=None) -> str:
    """The whole pipeline on the tiny object below ``root``; returns what it printed."""
    done = subprocess.run(command(views), env=variables or environment(root), cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


WATCH = """
import atexit, json, os, sys
from pathlib import Path

places = [Path(place) for place in json.loads(os.environ["WATCHED"])]
seen = set()

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        seen.update(str(path) for place in places if path.is_relative_to(place))

def write():
    with open(os.environ["WATCH_LOG"], "a") as log:
        log.write(json.dumps([sys.orig_argv, sorted(seen)]) + "\\n")

sys.addaudithook(watch)
atexit.register(write)
"""


def watched(scene: Scene) -> dict:
    """An ``environment`` in which every Python notes the ground truth that it opens or lists, for ``opened``."""
    places = [str(base.resolve() / part) for base in (scene.root, REPOSITORY) for part in ("dataset/data/test", "dataset/3d_models")]
    places += [str((base / "dataset/data/train" / TYPE / OBJECT / "poses").resolve()) for base in (scene.root, REPOSITORY)]
    return environment(scene.root, first=WATCH) | {"WATCHED": json.dumps(places), "WATCH_LOG": str(scene.root / "watch.log")}


def opened(scene: Scene) -> list[tuple[str, list[str]]]:
    """(command line, ground-truth files and folders) of every Python that has ended so far."""
    return [(" ".join(arguments), paths) for arguments, paths in map(json.loads, (scene.root / "watch.log").read_text().splitlines())]
