"""Refined cameras for other programs: ``python -m sap3d.camera_export --type T --object O --views N [--out FOLDER]``.

Writes a COLMAP text model (colmap/cameras.txt, images.txt, an empty points3D.txt), nerfstudio's transforms.json and the
project's own cameras.yaml, all of the photos at their own size. ``read_colmap`` and ``read_transforms`` are the inverse.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Mapping

import numpy as np
from scipy.spatial.transform import Rotation

from sap3d.cameras import OPENCV_FROM_OPENGL, Camera, turn_matrix
from sap3d.config import add_scene_arguments
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import input_files, load_input_views
from sap3d.scene import Scene, cameras_of, read_json, read_turns, write_cameras, write_json, write_text


@dataclass(frozen=True)
class PhotoCamera:
    """Where a photo file was taken from. pose: ``camera_from_world`` (3, 4), OpenGL axes, roll and aim as they are; size: of the square photo, pixels."""

    pose: np.ndarray
    fov_rad: float
    size: int

    @property
    def focal(self) -> float:
        """Focal length, pixels."""
        return self.size / 2 / float(np.tan(self.fov_rad / 2))


def photo_camera(camera: Camera, size: int, turn_rad: np.ndarray | None = None) -> PhotoCamera:
    """The camera of a photo that is turned against ``camera`` (``sap3d.cameras.turn_matrix``); None: it is not."""
    turn = np.eye(3) if turn_rad is None else turn_matrix(turn_rad)
    return PhotoCamera(turn @ camera.camera_from_world(), camera.fov_rad, size)


def write_colmap(folder: Path, cameras: Mapping[str, PhotoCamera]) -> None:
    """COLMAP's text format of photos by file name: a PINHOLE camera and a pose each, no points.

    COLMAP's camera axes are OpenCV's, its poses are camera_from_world as ours, quaternions have w first, and the first
    pixel's centre is at (0.5, 0.5) as ours.
    """
    intrinsics, images = ["# CAMERA_ID MODEL WIDTH HEIGHT FX FY CX CY"], ["# IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME, then a line of points (none)"]
    for number, (file, camera) in enumerate(cameras.items(), 1):
        size, pose = camera.size, OPENCV_FROM_OPENGL @ camera.pose
        x, y, z, w = Rotation.from_matrix(pose[:, :3]).as_quat()
        intrinsics.append(f"{number} PINHOLE {size} {size} {camera.focal:.9f} {camera.focal:.9f} {size / 2} {size / 2}")
        images += [" ".join([str(number), *(f"{value:.12f}" for value in (w, x, y, z, *pose[:, 3])), str(number), file]), ""]
    write_text(folder / "cameras.txt", "\n".join(intrinsics) + "\n")
    write_text(folder / "images.txt", "\n".join(images) + "\n")
    write_text(folder / "points3D.txt", "# POINT3D_ID X Y Z R G B ERROR TRACK (none)\n")


def read_colmap(folder: Path) -> dict[str, PhotoCamera]:
    """Cameras by file name of a text model as ``write_colmap`` writes it."""
    try:
        intrinsics = {row.split()[0]: row.split() for row in _lines(folder / "cameras.txt")}
        found = {}
        for row in _lines(folder / "images.txt"):
            _, *numbers, camera_id, file = row.split(maxsplit=9)
            w, x, y, z, *translation = map(float, numbers)
            pose = np.concatenate([Rotation.from_quat([x, y, z, w]).as_matrix(), np.array(translation)[:, None]], 1)
            _, model, width, _, focal, *_ = intrinsics[camera_id]
            if model != "PINHOLE":
                raise ValueError(f"camera model {model}")
            found[file] = PhotoCamera(OPENCV_FROM_OPENGL @ pose, 2 * float(np.arctan(float(width) / 2 / float(focal))), int(width))
        return found
    except (ValueError, KeyError) as error:
        raise InputError(f"{folder}: not a COLMAP text model of PINHOLE cameras without points ({error}); export it again") from None


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        raise InputError(f"{path}: no such file; export the cameras again")
    return [line for line in path.read_text().splitlines() if line.strip() and not line.startswith("#")]


def write_transforms(path: Path, cameras: Mapping[str, PhotoCamera]) -> None:
    """nerfstudio's transforms.json of photos by file path: intrinsics and world_from_camera (4 x 4, OpenGL axes, world z up, as ours) a frame."""
    frames = []
    for file, camera in cameras.items():
        world_from_camera = np.linalg.inv(np.concatenate([camera.pose, [[0, 0, 0, 1]]]))
        middle = camera.size / 2
        frames.append({"file_path": file, "w": camera.size, "h": camera.size, "fl_x": camera.focal, "fl_y": camera.focal, "cx": middle, "cy": middle, "transform_matrix": world_from_camera.tolist()})
    write_json(path, {"camera_model": "OPENCV", "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0, "frames": frames})


def read_transforms(path: Path) -> dict[str, PhotoCamera]:
    """Cameras by file path of a transforms.json as ``write_transforms`` writes it."""
    try:
        found = {}
        for frame in read_json(path)["frames"]:
            pose = np.linalg.inv(np.array(frame["transform_matrix"], dtype=np.float64))[:3]
            found[frame["file_path"]] = PhotoCamera(pose, 2 * float(np.arctan(frame["w"] / 2 / frame["fl_x"])), int(frame["w"]))
        return found
    except (KeyError, TypeError, ValueError, IndexError, np.linalg.LinAlgError) as error:
        raise InputError(f"{path}: not a transforms.json with intrinsics a frame ({type(error).__name__}: {error}); export it again") from None


def export(scene: Scene, out: Path) -> Path:
    """All three forms of the refined cameras in ``out``; raises InputError where stage 2 has not written them.

    COLMAP and nerfstudio get the cameras of the photo files; cameras.yaml has the project's own, against which photos may be turned.
    """
    photos = load_input_views(scene)
    cameras = cameras_of(scene.refined_cameras, photos, f"run stages 1 and 2 with {scene.views} views first")
    turns = read_turns(scene.initial_cameras) if scene.initial_cameras.is_file() else {}
    paths = {name: input_files(scene, [name])[f"photo {name}"] for name in photos}
    placed = {name: photo_camera(cameras[name], photo.shape[0], turns.get(name)) for name, photo in photos.items()}
    write_colmap(out / "colmap", {paths[name].name: camera for name, camera in placed.items()})
    folder = out.resolve()  # through a link ".." is not the folder that the link is in; a photo that is a link keeps its own name
    relative = {name: Path(os.path.relpath(path.parent.resolve() / path.name, folder)).as_posix() for name, path in paths.items()}
    write_transforms(out / "transforms.json", {relative[name]: camera for name, camera in placed.items()})
    write_cameras(out / "cameras.yaml", {name: cameras[name] for name in photos}, {name: turns[name] for name in photos if name in turns} or None)
    return out


def main() -> None:
    parser = ArgumentParser(prog="python -m sap3d.camera_export", description="Write an object's refined cameras for COLMAP and nerfstudio.")
    add_scene_arguments(parser)
    parser.add_argument("--out", type=Path, help="folder (default: cameras/ beside the object's results)")
    arguments = parser.parse_args()
    scene = Scene(arguments.type, arguments.object, arguments.views)
    print(f"cameras: {export(scene, arguments.out or scene.results_dir / 'cameras')}")


if __name__ == "__main__":
    cli(main)
