"""What recovery by re-rendering repairs, and what it costs: cameras of stage 1, and true cameras of which one is turned away.

    python -m benchmarks.recovery --type GSO_dev --views 3 4 5 [--objects ...] [--starts stage_1 one_wrong] [--rows docs/results_rows/recovery.json]

stage_1: as ``camerabooth.recovery`` would begin. one_wrong: the true cameras, one of them, drawn from the object's name, at another azimuth (60 to 300
degrees away) and elevation (up to 20 degrees away, and between -15 and 60): whether the others find it again. Rows of other types, objects or numbers of photos stay in the file.
"""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from benchmarks.rows import replace_row, stored
from camerabooth.recovery import RecoveryConfig, recover
from relposepp.evaluate import pair_errors_deg, typed_scenes
from relposepp.rotations import cameras_from_angles
from sap3d.cameras import FOV_RAD, Camera, azimuths_from_first
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import available_objects
from sap3d.scene import Scene

STARTS = ("stage_1", "one_wrong")
ELEVATION_DEG = (-15.0, 60.0)  # where a camera that is turned away may end


def cameras_from_rotations(rotations: np.ndarray, radius: np.ndarray) -> dict[str, Camera]:
    """Cameras by number from rotations (N, 3, 3), camera from world, of cameras that look at the origin, and their distances (N,); azimuths from the first."""
    backward = rotations[:, 2]
    cameras = cameras_from_angles(np.arcsin(backward[:, 2]), np.arctan2(backward[:, 1], backward[:, 0]), radius, [FOV_RAD] * len(radius))
    return {f"{k:03d}": camera for k, camera in enumerate(cameras)}


def one_wrong(cameras: Mapping[str, Camera], name: str) -> dict[str, Camera]:
    """The cameras, one of them turned away; which and by how much follows from the object's name."""
    rng = np.random.default_rng([len(cameras), *hashlib.sha256(name.encode()).digest()[:4]])
    view = list(cameras)[rng.integers(len(cameras))]
    elevation = np.clip(cameras[view].elevation_deg + rng.uniform(-20, 20), *ELEVATION_DEG)
    turned = replace(cameras[view], polar_rad=float(np.deg2rad(90 - elevation)), azimuth_rad=cameras[view].azimuth_rad + float(np.deg2rad(rng.uniform(60, 300))))
    return azimuths_from_first({**cameras, view: turned})


def error_deg(cameras: Mapping[str, Camera], rotations: np.ndarray) -> float:
    """Mean error of the relative rotations of all pairs, degrees."""
    return float(pair_errors_deg(np.stack([camera.camera_from_world()[:, :3] for camera in cameras.values()]), rotations).mean())


def check_objects(type_: str, wanted: Sequence[str] | None) -> None:
    """Raises InputError where a type has no objects below ROOT_DIR, or not one of the wanted ones."""
    scene = Scene(type_, "any", 1)
    known = available_objects(scene)
    if not known:
        raise InputError(f"{scene.train_dir.parent}: no objects there; give another --type, or their root with ROOT_DIR")
    missing = [name for name in wanted or () if name not in known]
    if missing:
        raise InputError(f"{scene.train_dir.parent}: no object {missing[0]!r}; it holds {', '.join(known)}")


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.recovery", description=__doc__.split(":")[0])
    parser.add_argument("--type", required=True)
    parser.add_argument("--views", type=int, nargs="+", default=[3, 4, 5])
    parser.add_argument("--objects", nargs="+")
    parser.add_argument("--starts", nargs="+", choices=STARTS, default=list(STARTS))
    parser.add_argument("--rows", type=Path, help="JSON file that the figures are added to")
    arguments = parser.parse_args()
    check_objects(arguments.type, arguments.objects)
    if arguments.rows:
        stored(arguments.rows, list)  # a damaged file is found before anything is measured
    from relposepp.config import RelPoseConfig
    from relposepp.estimate import estimate
    from relposepp.network import load_network

    network, config = load_network(), RecoveryConfig()
    for views in arguments.views:
        measured = 0
        for name, photos, rotations, radius, fov in typed_scenes(arguments.type, views, None):
            if arguments.objects and name not in arguments.objects:
                continue
            if fov is not None:  # taken by hand: with a field of view of their own, and aimed a little beside the centre
                raise InputError(f"{arguments.type} {name}: was imported by dataset.photos, but this is for photos that look at the object's centre; give another --type")
            measured += 1
            truth = cameras_from_rotations(rotations, radius)
            for start in arguments.starts:
                cameras = one_wrong(truth, name) if start == "one_wrong" else dict(zip(truth, estimate(photos, network, RelPoseConfig()).cameras))
                found = recover(dict(zip(truth, photos)), cameras, config)
                row = {"type": arguments.type, "start": start, "views": views, "object": name, "before_deg": round(error_deg(cameras, rotations), 3),
                       "after_deg": round(error_deg(found.cameras, rotations), 3), "seconds": round(found.seconds, 1), "moves": found.moves}  # fmt: skip
                print(f"{views} photos, {start}, {name}: {row['before_deg']:.1f} -> {row['after_deg']:.1f} degrees, {sum(m['kept'] for m in found.moves)} moved, {found.seconds:.0f} s", flush=True)
                if arguments.rows:
                    add_row(arguments.rows, row)
        if not measured:
            raise InputError(f"{arguments.type}: none of the objects has {views} photos; lower --views")


def add_row(path: Path, row: dict) -> None:
    """Add a row to a file, in the place of one of the same type, start, number of photos and object."""
    replace_row(path, row, ("type", "start", "views", "object"), ordered=True)


if __name__ == "__main__":
    cli(main)
