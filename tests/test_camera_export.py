"""Cameras for COLMAP and nerfstudio: what is written is read back, and means in their conventions what it means in ours."""

import json
from pathlib import Path

import numpy as np
import pytest

from sap3d.camera_export import export, photo_camera, read_colmap, read_transforms, write_colmap, write_transforms
from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.images import save_image, turn_photo
from sap3d.scene import Scene, read_cameras, read_turns, write_cameras

CAMERAS = {"000": Camera.from_degrees(20, 0), "001": Camera.from_degrees(-35, 110, 1.3, 40), "002": Camera.from_degrees(60, 250.5, 1.8)}
SIZES = {"000": 512, "001": 300, "002": 512}
TURNS = {"000": None, "001": np.array([0.03, -0.02, 0.1]), "002": None}
PLACED = {f"{name}.png": photo_camera(camera, SIZES[name], TURNS[name]) for name, camera in CAMERAS.items()}


def assert_same(found, expected):
    assert list(found) == list(expected)
    for first, second in zip(found.values(), expected.values()):
        assert first.pose == pytest.approx(second.pose, abs=1e-8) and first.size == second.size
        assert first.fov_rad == pytest.approx(second.fov_rad, abs=1e-8)


def test_colmap_text_model_is_read_back(tmp_path):
    write_colmap(tmp_path, PLACED)
    assert_same(read_colmap(tmp_path), PLACED)
    assert (tmp_path / "points3D.txt").read_text().startswith("#")


def test_transforms_are_read_back(tmp_path):
    write_transforms(tmp_path / "transforms.json", PLACED)
    assert_same(read_transforms(tmp_path / "transforms.json"), PLACED)


def pixel(camera, point, size):
    """Column and row of a world point by the project's own ray equation."""
    pose = camera.camera_from_world()
    x, y, z = pose[:, :3] @ point + pose[:, 3]
    tangent = np.tan(camera.fov_rad / 2)
    return (x / -z / tangent + 1) * size / 2, (1 - y / -z / tangent) * size / 2


def test_the_files_project_a_point_where_we_do(tmp_path):
    """By the formulas of COLMAP (K [R|t], w first) and nerfstudio (OpenGL axes), written out here on their own."""
    straight = {file: photo_camera(camera, SIZES[name]) for (name, camera), file in zip(CAMERAS.items(), PLACED)}
    write_colmap(tmp_path, straight)
    write_transforms(tmp_path / "transforms.json", straight)
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


def test_a_turned_photo_shows_a_point_where_its_exported_camera_sees_it():
    """``turn_photo`` undoes the turn: a dot painted where the turned camera sees a point appears where the straight one does."""
    camera, turn, size, point = CAMERAS["001"], TURNS["001"], 201, np.array([0.15, -0.1, 0.2])
    placed = photo_camera(camera, size, turn)
    x, y, z = placed.pose[:, :3] @ point + placed.pose[:, 3]
    column, row = placed.focal * x / -z + size / 2, size / 2 - placed.focal * y / -z
    photo = np.zeros((size, size, 4), np.float32)
    photo[int(row) - 1 : int(row) + 2, int(column) - 1 : int(column) + 2] = 1
    alpha = turn_photo(photo, turn, camera.fov_rad)[..., 3]
    rows, columns = np.mgrid[:size, :size] + 0.5
    seen = (columns * alpha).sum() / alpha.sum(), (rows * alpha).sum() / alpha.sum()
    assert seen == pytest.approx(pixel(camera, point, size), abs=1.0)
    assert np.hypot(column - seen[0], row - seen[1]) > 4


def test_export_of_an_object(tmp_path):
    scene = Scene("T", "o", 3, tmp_path)
    for name in CAMERAS:
        save_image(scene.train_dir / "images" / f"{name}.png", np.full((64, 64, 4), 0.3 + int(name) / 5, np.float32))
    with pytest.raises(InputError, match="cameras.yaml"):
        export(scene, tmp_path / "out")
    write_cameras(scene.refined_cameras, CAMERAS)
    write_cameras(scene.initial_cameras, CAMERAS, {"001": TURNS["001"]})
    export(scene, tmp_path / "out")
    assert read_cameras(tmp_path / "out" / "cameras.yaml").keys() == CAMERAS.keys() and read_turns(tmp_path / "out" / "cameras.yaml").keys() == {"001"}
    found = read_colmap(tmp_path / "out" / "colmap")
    assert found["001.png"].pose == pytest.approx(PLACED["001.png"].pose, abs=1e-6) and found["001.png"].size == 64
    for path in read_transforms(tmp_path / "out" / "transforms.json"):
        assert (tmp_path / "out" / Path(path)).resolve().is_file()


def test_photos_are_found_from_a_folder_reached_through_a_link(tmp_path):
    scene = Scene("T", "o", 2, tmp_path / "root")
    for name in ("000", "001"):
        save_image(scene.train_dir / "images" / f"{name}.png", np.full((64, 64, 4), 0.3 + int(name) / 5, np.float32))
    write_cameras(scene.refined_cameras, CAMERAS)
    (tmp_path / "far" / "away" / "out").mkdir(parents=True)
    (tmp_path / "link").symlink_to("far/away/out")
    export(scene, tmp_path / "link")
    for path in read_transforms(tmp_path / "link" / "transforms.json"):
        assert (tmp_path / "link" / path).is_file()  # as another program opens it: the system follows the link first


@pytest.mark.parametrize("content", ["1 PINHOLE 4 4", "1 2 3 4 5 6 7 8 1 a.png", "nothing"])
def test_files_of_others_are_refused(tmp_path, content):
    (tmp_path / "cameras.txt").write_text("1 SIMPLE_RADIAL 4 4 2 2 2 0\n")
    (tmp_path / "images.txt").write_text(content + "\n")
    (tmp_path / "transforms.json").write_text(json.dumps({"frames": [content]}))
    with pytest.raises(InputError, match="export"):
        read_colmap(tmp_path)
    with pytest.raises(InputError, match="export"):
        read_transforms(tmp_path / "transforms.json")
