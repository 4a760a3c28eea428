"""Classical structure from motion on the same photos: how many of them COLMAP can place, and how right it is.

    python -m benchmarks.structure_from_motion --type GSO_dev --views 2 3 5 [--objects ...] [--out docs/results_rows/structure_from_motion.json]

Needs the program colmap (Debian and Ubuntu: apt install colmap; 3.8 was used), on the CPU. The photos are put over white, the field
of view is given. Two settings: COLMAP's defaults, and "lenient" thresholds for a handful of small photos. A photo
that is not registered is a failure; rotation errors are over pairs of registered ones, so neither world nor scale matters. Reads true poses.
Two runs differ: the program's trees for matching are random whatever its seed is.
"""

from __future__ import annotations

import itertools
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from camerabooth.prior.truth import objects_of, true_poses
from sap3d.cameras import FOV_RAD, OPENCV_FROM_OPENGL, rotation_angle_deg
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import composite_white, load_input_views, save_image
from sap3d.scene import Scene, root_dir, write_json
from sap3d.suite_baselines import structure_from_motion_table

# What a program takes beyond its defaults. The mapper keeps the field of view, which is known; of a model of few photos it throws none away.
COMMON = {
    "feature_extractor": ("--SiftExtraction.use_gpu=0", "--ImageReader.camera_model=PINHOLE", "--ImageReader.single_camera=1"),
    "exhaustive_matcher": ("--SiftMatching.use_gpu=0",),
    "mapper": ("--Mapper.ba_refine_focal_length=0", "--Mapper.ba_refine_extra_params=0", "--Mapper.min_model_size=2"),
}
SETTINGS: dict[str, dict[str, tuple[str, ...]]] = {
    "default": {},
    "lenient": {
        "feature_extractor": ("--SiftExtraction.peak_threshold=0.002", "--SiftExtraction.edge_threshold=16", "--SiftExtraction.estimate_affine_shape=1"),
        "exhaustive_matcher": ("--SiftMatching.max_ratio=0.9", "--SiftMatching.min_num_inliers=8", "--SiftMatching.guided_matching=1"),
        "mapper": (
            "--Mapper.min_num_matches=8", "--Mapper.init_min_num_inliers=8", "--Mapper.init_min_tri_angle=4", "--Mapper.abs_pose_min_num_inliers=6",
            "--Mapper.abs_pose_min_inlier_ratio=0.1", "--Mapper.tri_ignore_two_view_tracks=0",
        ),
    },
}  # fmt: skip


def find_colmap() -> str:
    """Path of the program; raises InputError where it is not installed."""
    path = shutil.which("colmap")
    if path is None:
        raise InputError("colmap: no such program on PATH; install it (Debian and Ubuntu: apt install colmap) and run the same command again")
    return path


def version(program: str) -> str:
    """First line of the program's help, "COLMAP 3.8"."""
    text = subprocess.run([program, "help"], capture_output=True, text=True, env=_environment()).stdout
    return text.strip().split(" --")[0].splitlines()[0] if text.strip() else "unknown"


def registered_poses(model: Path) -> dict[str, np.ndarray]:
    """Poses (3, 4) ``camera_from_world``, OpenGL axes, by file name of the photos in a COLMAP text model.

    An image takes two lines of images.txt, the second, its points, may be empty. Quaternions have w first; the axes are OpenCV's.
    """
    path, poses = model / "images.txt", {}
    if not path.is_file():
        raise InputError(f"{path}: no such file; give the folder of a COLMAP text model (colmap model_converter --output_type TXT)")
    rows = [line for line in path.read_text().splitlines() if not line.startswith("#")][::2]
    for row in rows:
        try:
            _, *numbers, _, name = row.split(maxsplit=9)
            w, x, y, z, *translation = map(float, numbers)
            pose = np.concatenate([Rotation.from_quat([x, y, z, w]).as_matrix(), np.reshape(translation, (3, 1))], 1)
        except ValueError:
            raise InputError(f"{path}: {row[:60]!r} is not an image of a COLMAP text model; write it again with colmap model_converter") from None
        poses[name] = OPENCV_FROM_OPENGL @ pose
    return poses


def pair_errors(poses: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Degrees between predicted and true relative rotation, by "first second", for every pair of views that has a pose."""
    errors = {}
    for a, b in itertools.combinations(sorted(poses), 2):
        here, there = (found[b][:, :3] @ found[a][:, :3].T for found in (poses, truth))
        errors[f"{a} {b}"] = round(float(rotation_angle_deg(here, there)), 3)
    return errors


def run_colmap(program: str, photos: Mapping[str, np.ndarray], settings: str, folder: Path) -> dict[str, np.ndarray]:
    """Poses (``registered_poses``) by view name of the photos (S, S, 4) that COLMAP registers; the largest model counts.

    Raises InputError when a step fails other than by finding no model.
    """
    for name, image in photos.items():
        save_image(folder / "images" / f"{name}.png", composite_white(image))
    size = next(iter(photos.values())).shape[0]
    focal = size / 2 / np.tan(FOV_RAD / 2)
    database, models = folder / "database.db", folder / "models"
    models.mkdir()
    places = {
        "feature_extractor": (f"--database_path={database}", f"--image_path={folder / 'images'}", f"--ImageReader.camera_params={focal},{focal},{size / 2},{size / 2}"),
        "exhaustive_matcher": (f"--database_path={database}",),
        "mapper": (f"--database_path={database}", f"--image_path={folder / 'images'}", f"--output_path={models}"),
    }
    for step, given in places.items():
        code, text = _call([program, step, "--random_seed=0", *given, *COMMON[step], *SETTINGS[settings].get(step, ())])
        if code and step != "mapper":  # the mapper also ends with an error when it finds no first pair
            raise InputError(f"colmap {step} ended with status {code}: {(text.strip().splitlines() or ['no output'])[-1]}")
    found: dict[str, np.ndarray] = {}
    for model in sorted(path for path in models.iterdir() if (path / "images.bin").is_file()):
        code, text = _call([program, "model_converter", f"--input_path={model}", f"--output_path={model}", "--output_type=TXT"])
        if code:
            raise InputError(f"colmap model_converter ended with status {code}: {(text.strip().splitlines() or ['no output'])[-1]}")
        poses = registered_poses(model)
        found = poses if len(poses) > len(found) else found
    return {Path(name).stem: pose for name, pose in found.items()}


def _call(command: list[str]) -> tuple[int, str]:
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=_environment())
    return done.returncode, done.stdout


def _environment() -> dict[str, str]:
    return os.environ | {"QT_QPA_PLATFORM": "offscreen"}  # it is built with a window, which is not wanted


def measure(program: str, scene: Scene, settings: str) -> dict:
    """One row: which photos were registered, rotation errors of their pairs in degrees, seconds."""
    photos = load_input_views(scene, turned=False)
    start = time.time()
    with tempfile.TemporaryDirectory() as folder:
        poses = run_colmap(program, photos, settings, Path(folder))
    seconds = round(time.time() - start, 1)
    truth = true_poses(scene.truth_poses_dir, poses)
    return {
        "object": scene.object, "type": scene.type, "views": scene.views, "settings": settings, "registered": sorted(poses),
        "rotation_errors_deg": pair_errors(poses, truth), "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.structure_from_motion", description=__doc__.split("\n")[0])
    parser.add_argument("--type", required=True)
    parser.add_argument("--views", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--objects", nargs="+", help="default: all of the type")
    parser.add_argument("--settings", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--out", type=Path, help="JSON file for the rows")
    arguments = parser.parse_args()
    program = find_colmap()
    names = arguments.objects or objects_of(arguments.type)
    for name in names:  # photos and true poses of all, before anything is measured
        scene = Scene(arguments.type, name, max(arguments.views), root_dir())
        true_poses(scene.truth_poses_dir, load_input_views(scene, turned=False))
    made_with, rows = version(program), []
    for views, name, settings in itertools.product(arguments.views, names, arguments.settings):
        row = measure(program, Scene(arguments.type, name, views, root_dir()), settings) | {"program": made_with}
        rows.append(row)
        print(f"{name}, {views} photos, {settings}: {len(row['registered'])} registered, rotation errors {list(row['rotation_errors_deg'].values())}, {row['seconds']} s", flush=True)
        if arguments.out:
            write_json(arguments.out, rows)
    print(structure_from_motion_table(rows, []))


if __name__ == "__main__":
    cli(main)
