"""How right the cameras of photos taken by hand are: bundled objects as snapshots, imported as a user would, against the true places.

    python -m benchmarks.handheld [--views 5 4] [--objects ...] [--out docs/results_rows/handheld.json]

Renders phone-like pictures (dataset/snapshots.py), removes their backgrounds (dataset/photos.py; needs requirements-photos.txt), runs stage 1 with
its default settings and prints the mean rotation error over pairs of photos, in degrees. Everything is made in a temporary folder.
"""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path

import numpy as np

from dataset.photos import import_photos
from dataset.snapshots import snapshots
from relposepp.config import RelPoseConfig
from relposepp.evaluate import measure, typed_scenes
from relposepp.network import load_network
from sap3d.errors import ArgumentParser, cli
from sap3d.results import markdown_table
from sap3d.scene import REPOSITORY, Scene, write_json

TYPE = "SNAPSHOTS"
OBJECTS = ("teddy_bear", "beetle_car", "cordless_drill", "chicken", "armchair", "ankle_boots")


def make(name: str, views: int, root: Path) -> None:
    """Photos of a bundled object below ``root``, imported, with the true places of the cameras beside them."""
    folder = root / "photos" / name
    cameras = snapshots(REPOSITORY / "dataset" / "3d_models" / "GSO_demo" / name / "meshes" / "model.obj", folder, views)
    import_photos(folder, TYPE, name, root, report=lambda line: None)
    poses = Scene(TYPE, name, views, root).truth_poses_dir
    poses.mkdir(parents=True)
    for k, camera in enumerate(cameras):
        np.save(poses / f"{k:03d}.npy", camera.camera_from_world())


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.handheld", description=__doc__.split(":")[0])
    parser.add_argument("--views", type=int, nargs="+", default=[5, 4])
    parser.add_argument("--objects", nargs="+", default=list(OBJECTS))
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    network, lines, stored = load_network(), [], {}
    with tempfile.TemporaryDirectory() as folder:
        os.environ["ROOT_DIR"] = folder  # where scenes are looked for
        for name in arguments.objects:
            make(name, max(arguments.views), Path(folder))
            print(f"{name}: photos imported", flush=True)
        for views in arguments.views:
            summary, table = measure(typed_scenes(TYPE, views, None), network, RelPoseConfig(), "cpu")
            stored[str(views)] = {"summary": summary, "scenes": table}
            lines.append([str(views), *(f"{table[name]['mean_deg']:.1f}" for name in arguments.objects), f"{summary['mean_deg']:.1f}", f"{summary['median_deg']:.1f}", f"{summary['seconds']:.0f}"])
            print(json.dumps({views: table}), flush=True)
    print(markdown_table(["photos", *arguments.objects, "mean", "median", "seconds an object"], lines))
    if arguments.out:
        write_json(arguments.out, stored)


if __name__ == "__main__":
    cli(main)
