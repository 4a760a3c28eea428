"""Cameras for COLMAP and nerfstudio: what is written is read back, and means in their conventions what it means in ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from sap3d.camera_export import export, read_colmap, read_transforms, write_colmap, write_transforms
from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.images import save_image
from sap3d.scene import Scene, read_cameras, write_cameras

CAMERAS = {"000": Camera.from_degrees(20, 0), "001": Camera.from_degrees(-35, 110, 1.3, 40), "002": Camera.from_degrees(60, 250.5, 1.8)}
SIZES = {"000": 512, "001": 300, "002": 512}
FILES = {name: f"{name}.png" for name in CAMERAS}


def assert_same(found, expected):
    assert list(found) == [FILES[name] for name in expected]
    for first, second in zip(found.values(), expected.values()):
        assert first.camera_from_world() == pytest.approx(second.camera_from_world(), abs=1e-8)
        assert first.fov_rad == pytest.approx(second.fov_rad, abs=1e-8)


def test_colmap_text_model_is_read_back(tmp_path):
    write_colmap(tmp_path, CAMERAS, SIZES, FILES)
    assert_same(read_colmap(tmp_path), CAMERAS)
    assert (tmp_path / "points3D.txt").read_text().startswith("#")


def test_transforms_are_read_back(tmp_path):
    write_transforms(tmp_path / "transforms.json", CAMERAS, SIZES, FILES)
    assert_same(read_transforms(tmp_path / "transforms.json"), CAMERAS)


def pixel(camera, point, size):
    """Column and row of a world point by the project's own ray equation."""
    pose = camera.camera_from_world()
    x, y, z = pose[:, :3] @ point + pose[:, 3]
    tangent = np.tan(camera.fov_rad / 2)
    return (x / -z / tangent + 1) * size / 2, (1 - y / -z / tangent) * size / 2


def test_the_files_project_a_point_where_we_do(tmp_path):
    """By the formulas of COLMAP (K [R|t], w first) and nerfstudio (OpenGL axes), written out here on their own."""
    write_colmap(tmp_path, CAMERAS, SIZES, FILES)
    write_transforms(tmp_path / "transforms.json", CAMERAS, SIZES, FILES)
    point = np.array([0.2, -0.1, 0.3])
    rows = [line.split() for line in (tmp_path / "images.txt").read_text().splitlines() if line and line[0] != "#"]
    intrinsics = [line.split() for line in (tmp_path / "cameras.txt").read_text().splitlines() if line[0] != "#"]
    frames = json.loads((tmp_path / "transforms.json").read_text())["frames"]
    for row, camera_row, frame, (name, camera) in zip(rows, intrinsics, frames, CAMERAS.items()):
        expected = pixel(camera, point, SIZES[name])
        w, x, y, z, *t = map(float, row[1:8])
        rotation = np.array([[1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
                             [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
                             [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)]])  # fmt: skip
        px, py, pz = rotation @ point + t
        fx, fy, cx, cy = map(float, camera_row[4:8])
        assert pz > 0 and (fx * px / pz + cx, fy * py / pz + cy) == pytest.approx(expected, abs=1e-4)
        gx, gy, gz, _ = np.linalg.inv(np.array(frame["transform_matrix"])) @ [*point, 1]
        assert gz < 0 and (frame["fl_x"] * gx / -gz + frame["cx"], frame["cy"] - frame["fl_y"] * gy / -gz) == pytest.approx(expected, abs=1e-6)


def test_export_of_an_object(tmp_path):
    scene = Scene("T", "o", 3, tmp_path)
    for name in CAMERAS:
        save_image(scene.train_dir / "images" / f"{name}.png", np.full((64, 64, 4), 0.3 + int(name) / 5, np.float32))
    with pytest.raises(InputError, match="cameras.yaml"):
        export(scene, tmp_path / "out")
    write_cameras(scene.refined_cameras, CAMERAS)
    export(scene, tmp_path / "out")
    assert_same(read_colmap(tmp_path / "out" / "colmap"), {n: c for n, c in read_cameras(tmp_path / "out" / "cameras.yaml").items()})
    for path in read_transforms(tmp_path / "out" / "transforms.json"):
        assert (tmp_path / "out" / Path(path)).resolve().is_file()
    write_cameras(scene.initial_cameras, CAMERAS, {name: np.array([0.02, 0.0, 0.0]) for name in CAMERAS})  # photos that look elsewhere
    export(scene, tmp_path / "turned")
    assert {(tmp_path / "turned" / path).parent.name for path in read_transforms(tmp_path / "turned" / "transforms.json")} == {"photos"}
    assert all((tmp_path / "turned" / path).is_file() for path in read_transforms(tmp_path / "turned" / "transforms.json"))


@pytest.mark.parametrize("content", ["1 PINHOLE 4 4", "1 2 3 4 5 6 7 8 1 a.png", "nothing"])
def test_files_of_others_are_refused(tmp_path, content):
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_RADIAL 4 4 2 2 2 0\n")
    (tmp_path / "images.txt").write_text(content + "\n")
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": [content]}))
    with pytest.raises(InputError, match="export"):
        read_colmap(tmp_path)
    with pytest.raises(InputError, match="export"):
        read_transforms(tmp_path / "transforms.json")
