"""Refined cameras for other programs: ``python -m sap3d.camera_export --type T --object O --views N [--out FOLDER]``.

Writes a COLMAP text model (colmap/cameras.txt, images.txt, an empty points3D.txt), nerfstudio's transforms.json and the
project's own cameras.yaml, all of the photos at their own size; and photos/ where the stored ones are turned against the cameras.
``read_colmap`` and ``read_transforms`` are the inverse.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from sap3d.cameras import OPENCV_FROM_OPENGL, Camera, camera_from_pose
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import input_files, load_input_views, save_image
from sap3d.scene import Scene, read_cameras, read_json, read_turns, write_cameras, write_json, write_text


def focal_length(camera: Camera, size: int) -> float:
    """In pixels, of a square image of side ``size``."""
    return size / 2 / float(np.tan(camera.fov_rad / 2))


def write_colmap(folder: Path, cameras: Mapping[str, Camera], sizes: Mapping[str, int], files: Mapping[str, str]) -> None:
    """COLMAP's text format: a PINHOLE camera and a pose a photo, no points.

    sizes: side of each square photo, pixels; files: its file name. COLMAP's camera axes are OpenCV's, its poses are
    camera_from_world as ours, quaternions have w first, and the first pixel's centre is at (0.5, 0.5) as ours.
    """
    intrinsics, images = ["# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"], ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of points (none)"]
    for number, (name, camera) in enumerate(cameras.items(), 1):
        size, focal = sizes[name], focal_length(camera, sizes[name])
        pose = OPENCV_FROM_OPENGL @ camera.camera_from_world()
        x, y, z, w = Rotation.from_matrix(pose[:, :3]).as_quat()
        intrinsics.append(f"{number} PINHOLE {size} {size} {focal:.9f} {focal:.9f} {size / 2} {size / 2}")
        images += [" ".join([str(number), *(f"{value:.12f}" for value in (w, x, y, z, *pose[:, 3])), str(number), files[name]]), ""]
    write_text(folder / "cameras.txt", "\n".join(intrinsics) + "\n")
    write_text(folder / "images.txt", "\n".join(images) + "\n")
    write_text(folder / "points3D.txt", "# POINT3D_ID X Y Z R G B ERROR TRACK (none)\n")


def read_colmap(folder: Path) -> dict[str, Camera]:
    """Cameras by file name of a text model as ``write_colmap`` writes it; a roll or a look-at offset would be lost."""
    try:
        intrinsics = {row.split()[0]: row.split() for row in _lines(folder / "cameras.txt")}
        found = {}
        for row in _lines(folder / "images.txt"):
            _, *numbers, camera_id, file = row.split(maxsplit=9)
            w, x, y, z, *translation = map(float, numbers)
            rotation = OPENCV_FROM_OPENGL @ Rotation.from_quat([x, y, z, w]).as_matrix()
            pose = np.concatenate([rotation, (OPENCV_FROM_OPENGL @ np.array(translation))[:, None]], 1)
            _, model, width, _, focal, *_ = intrinsics[camera_id]
            if model != "PINHOLE":
                raise ValueError(f"camera model {model}")
            found[file] = camera_from_pose(pose, 2 * float(np.arctan(float(width) / 2 / float(focal))))
        return found
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a COLMAP text model of PINHOLE cameras without points ({error}); export it again") from None


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; export the cameras again")
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def write_transforms(path: Path, cameras: Mapping[str, Camera], sizes: Mapping[str, int], files: Mapping[str, str]) -> None:
    """nerfstudio's transforms.json: intrinsics and world_from_camera (4 x 4, OpenGL axes as ours) a frame; its world is z up as ours."""
    frames = []
    for name, camera in cameras.items():
        pose = camera.camera_from_world()
        world_from_camera = np.eye(4)
        world_from_camera[:3, :3], world_from_camera[:3, 3] = pose[:, :3].T, camera.center()
        size, focal = sizes[name], focal_length(camera, sizes[name])
        frames.append({"file_path": files[name], "w": size, "h": size, "fl_x": focal, "fl_y": focal, "cx": size / 2, "cy": size / 2, "transform_matrix": world_from_camera.tolist()})
    write_json(path, {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "frames": frames})


def read_transforms(path: Path) -> dict[str, Camera]:
    """Cameras by file path of a transforms.json as ``write_transforms`` writes it."""
    try:
        found = {}
        for frame in read_json(path)["frames"]:
            world_from_camera = np.array(frame["transform_matrix"], dtype=np.float64)
            rotation = world_from_camera[:3, :3].T
            pose = np.concatenate([rotation, -(rotation @ world_from_camera[:3, 3])[:, None]], 1)
            found[frame["file_path"]] = camera_from_pose(pose, 2 * float(np.arctan(frame["w"] / 2 / frame["fl_x"])))
        return found
    except (KeyError, TypeError, ValueError, IndexError) as error:
        raise InputError(f"{path}: not a transforms.json with intrinsics a frame ({type(error).__name__}: {error}); export it again") from None


def export(scene: Scene, out: Path) -> Path:
    """All three forms of the refined cameras in ``out``; raises InputError where stage 2 has not written them."""
    cameras = read_cameras(scene.refined_cameras)
    photos = load_input_views(scene)
    missing = [name for name in photos if name not in cameras]
    if missing:
        raise InputError(f"{scene.refined_cameras}: has no camera for view {missing[0]}; run stage 2 again")
    cameras = {name: cameras[name] for name in photos}
    paths = input_files(scene, list(photos))
    sizes = {name: photo.shape[0] for name, photo in photos.items()}
    if scene.initial_cameras.is_file() and read_turns(scene.initial_cameras):  # the stored photos look elsewhere: those that fit the cameras
        for name, photo in photos.items():
            save_image(out / "photos" / f"{name}.png", photo)
            paths[f"photo {name}"] = out / "photos" / f"{name}.png"
    write_colmap(out / "colmap", cameras, sizes, {name: paths[f"photo {name}"].name for name in photos})
    relative = {name: Path(os.path.relpath(paths[f"photo {name}"], out)).as_posix() for name in photos}
    write_transforms(out / "transforms.json", cameras, sizes, relative)
    write_cameras(out / "cameras.yaml", cameras)
    return out


def main() -> None:
    parser = ArgumentParser(prog="python -m sap3d.camera_export", description="Write an object's refined cameras for COLMAP and nerfstudio.")
    parser.add_argument("--type", required=True)
    parser.add_argument("--object", required=True)
    parser.add_argument("--views", type=int, required=True)
    parser.add_argument("--out", type=Path, help="folder (default: cameras/ beside the object's results)")
    arguments = parser.parse_args()
    scene = Scene(arguments.type, arguments.object, arguments.views)
    print(f"cameras: {export(scene, arguments.out or scene.results_dir / 'cameras')}")


if __name__ == "__main__":
    cli(main)
