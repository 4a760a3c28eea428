"""Recovery by re-rendering: views that the others contradict are found, placed anew and kept only where that helps."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks import recovery as benchmark
from benchmarks.recovery import add_row, cameras_from_rotations, error_deg, one_wrong
from camerabooth import recovery
from camerabooth.recovery import RecoveryConfig, fit_field, place, recover, refine, view_error
from sap3d.cameras import Camera, azimuths_from_first, rotation_angle_deg
from sap3d.errors import InputError
from sap3d.field.photos import pixel_bank
from sap3d.scene import Scene, read_cameras, read_confidence, read_json, write_cameras, write_json
from tests.relposepp_spheres import render, write_scene

CAMERAS = {f"{k:03d}": Camera.from_degrees(e, a) for k, (e, a) in enumerate([(0, 0), (30, 75), (15, 160), (20, 250)])}
SMALL = RecoveryConfig(steps=25, size=20, refined=3, tried=1, refine_steps=20, moves=1)


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    monkeypatch.setattr(recovery, "FIT", replace(recovery.FIT, grid=[16, 24], photo_sizes=[24, 48], rays=512, free_rays=64))
    monkeypatch.setattr(recovery, "AZIMUTH_STEP_DEG", 20.0)


@pytest.fixture(scope="module")
def photos():
    return {name: render(camera, 64) for name, camera in CAMERAS.items()}


def turned(name: str, azimuth_deg: float) -> dict[str, Camera]:
    return azimuths_from_first({**CAMERAS, name: CAMERAS[name].with_azimuth_offset(np.deg2rad(azimuth_deg))})


def apart(first: Camera, second: Camera) -> float:
    return float(rotation_angle_deg(first.camera_from_world()[:, :3], second.camera_from_world()[:, :3]))


@pytest.mark.parametrize("name", ["000", "003"])
def test_a_view_that_is_turned_away_comes_back(photos, name):
    found = recover(photos, turned(name, 140), SMALL)
    assert [move["view"] for move in found.moves if move["kept"]] == [name] and found.seconds > 0
    assert list(found.cameras) == list(CAMERAS) and abs(found.cameras["000"].azimuth_rad) < 1e-9
    relative = azimuths_from_first(found.cameras)
    assert max(apart(relative[n], CAMERAS[n]) for n in CAMERAS) < 10


def test_right_cameras_stay(photos):
    found = recover(photos, CAMERAS, SMALL)
    assert not any(move["kept"] for move in found.moves) and found.cameras == CAMERAS


def test_a_move_that_does_not_help_all_photos_is_taken_back(photos, monkeypatch):
    errors = iter([0.01] + [0.01] * 20)
    monkeypatch.setattr(recovery, "whole_error", lambda *arguments: next(errors))
    start = turned("003", 140)
    found = recover(photos, start, SMALL)
    assert found.cameras == start and [move["view"] for move in found.moves] and not any(move["kept"] for move in found.moves)


def test_two_photos_come_back_as_they_are(photos):
    two = {name: photos[name] for name in ("000", "001")}
    assert recover(two, turned("001", 90), SMALL).cameras == {name: turned("001", 90)[name] for name in two}


def test_the_place_of_a_photo_is_found_and_refined(photos):
    found = place("002", photos, turned("002", 120), replace(SMALL, steps=60, refined=6))
    assert apart(found.cameras[0], CAMERAS["002"]) < 8 and found.contradiction > 2 and found.errors == sorted(found.errors)
    fit, photo = fit_field(photos, CAMERAS, SMALL), pixel_bank([photos["002"]], 20)
    start = Camera(CAMERAS["002"].polar_rad + 0.08, CAMERAS["002"].azimuth_rad - 0.1, 1.55)
    (camera, error), = refine(fit, [start], photo, 30)
    assert apart(camera, CAMERAS["002"]) < 0.4 * apart(start, CAMERAS["002"]) and error < 0.5 * view_error(fit, start, photo)
    assert not any(parameter.requires_grad for parameter in fit.field.parameters())


def test_the_command_writes_cameras_that_the_pipeline_takes(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    write_scene(tmp_path, list(CAMERAS.values()), size=64)
    scene = Scene("Balls", "balls", 4, tmp_path)
    more = {**turned("003", 140), "009": Camera.from_degrees(0, 10)}  # a camera file may be of more photos
    write_cameras(scene.initial_cameras, more, {"001": np.array([0.0, 0.0, 0.01]), "009": np.array([0.0, 0.0, 0.02])}, confidence=dict.fromkeys(more, 0.9))
    settings = ["steps=25", "size=20", "refined=3", "tried=1", "refine_steps=20", "moves=1"]
    monkeypatch.setattr("sys.argv", ["recovery", "--type", "Balls", "--object", "balls", "--views", "4", *settings])
    recovery.main()
    found = read_cameras(scene.initial_cameras.with_name("config_balls_view_4_recovered.yaml"))
    assert list(found) == list(CAMERAS) and apart(found["003"], CAMERAS["003"]) < 10 and "1 of 4 views moved" in capsys.readouterr().out
    sure = read_confidence(scene.initial_cameras.with_name("config_balls_view_4_recovered.yaml"))
    assert sure == dict.fromkeys(CAMERAS, 0.9) | {"003": 0.0}  # nobody is sure of a view that was moved
    for bad in ("size=0", "tried=0", "refined=0"):
        monkeypatch.setattr("sys.argv", ["recovery", "--type", "Balls", "--object", "balls", "--views", "4", bad])
        with pytest.raises(InputError, match=f"{bad} must lie in"):
            recovery.main()
    for views, message in (("2", "needs at least 3 photos"), ("9", "views were asked for")):
        monkeypatch.setattr("sys.argv", ["recovery", "--type", "Balls", "--object", "balls", "--views", views])
        with pytest.raises(InputError, match=message):
            recovery.main()


# --- the benchmark ----------------------------------------------------------------------------------------------------
def test_one_true_camera_is_turned_away_and_rows_take_each_others_place(tmp_path):
    truth = np.stack([camera.camera_from_world()[:, :3] for camera in CAMERAS.values()])
    cameras = cameras_from_rotations(truth, np.full(4, 1.5))
    assert error_deg(cameras, truth) < 1e-3 and cameras["000"].azimuth_rad == 0 and max(apart(cameras[n], CAMERAS[n]) for n in CAMERAS) < 1e-3
    wrong = azimuths_from_first(one_wrong(cameras, "thing"))
    assert wrong == azimuths_from_first(one_wrong(cameras, "thing")) and 20 < error_deg(wrong, truth) < 80
    row = {"type": "T", "start": "one_wrong", "views": 3, "object": "o", "after_deg": 1.0}
    for new in (row, {**row, "views": 4}, {**row, "after_deg": 2.0}):
        add_row(tmp_path / "rows.json", new)
    assert [(r["views"], r["after_deg"]) for r in read_json(tmp_path / "rows.json")] == [(3, 2.0), (4, 1.0)]
    (tmp_path / "rows.json").write_text("[{")
    with pytest.raises(InputError, match="rows.json: not valid JSON"):
        add_row(tmp_path / "rows.json", row)
    assert (tmp_path / "rows.json").read_text() == "[{"


def test_objects_that_are_not_there_are_refused_and_rows_lie_where_they_were_asked_for(tmp_path, monkeypatch):
    def run(*options):
        monkeypatch.setattr("sys.argv", ["recovery", "--type", "Balls", "--views", "4", "--starts", "one_wrong", *options])
        benchmark.main()

    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "root"))
    with pytest.raises(InputError, match="Balls: no objects there"):
        run()
    write_scene(tmp_path / "root", list(CAMERAS.values()), size=64)
    scene = Scene("Balls", "balls", 4, tmp_path / "root")
    scene.truth_poses_dir.mkdir()
    for name, camera in CAMERAS.items():
        np.save(scene.truth_poses_dir / f"{name}.npy", camera.camera_from_world())
    monkeypatch.setattr(benchmark, "recover", lambda photos, cameras, config: recovery.Recovery(cameras, [], 1.0))
    with pytest.raises(InputError, match="no object 'bals'; it holds balls"):
        run("--objects", "balls", "bals")
    with pytest.raises(InputError, match="none of the objects has 9 photos"):
        run("--views", "9")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "here" / "rows.json").write_text("[{")
    with pytest.raises(InputError, match="rows.json: not valid JSON"):
        run("--rows", "rows.json")
    (tmp_path / "here" / "rows.json").unlink()
    run("--rows", "rows.json", "--objects", "balls")
    assert [row["object"] for row in read_json(tmp_path / "here" / "rows.json")] == ["balls"]
    write_json(scene.train_dir / "photos.json", {"views": {name: {"fov_deg": 40.0} for name in CAMERAS}})
    with pytest.raises(InputError, match="Balls balls: was imported by dataset.photos"):
        run()
