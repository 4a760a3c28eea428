"""What trainings and stages leave for TensorBoard, read back from the event files; and that the log changes no result."""

import importlib
import importlib.util

import numpy as np
import pytest

from sap3d.tensorboard import EventLog, scene_log_folder
from tests.event_files import read
from tests.recon_scenes import write_sphere_scene
from tests.test_camerabooth import make_scene, model_folder  # noqa: F401  (fixtures)
from tests.test_recon_optimise import tiny_config

installed = pytest.mark.skipif(importlib.util.find_spec("tensorboard") is None, reason="needs requirements-tensorboard.txt")


@installed
def test_resumed_runs_append_and_new_runs_begin_again(tmp_path):
    with EventLog(tmp_path) as log:
        for step in range(4):
            log.scalars(step, {"loss": step / 10, "free dist": 1})
        log.picture(3, "view", np.full((4, 6, 3), 0.5))
    with EventLog(tmp_path, start=2) as log:  # the run before was killed after its checkpoint of step 2
        for step in (2, 3, 4):
            log.scalars(step, {"loss": step})
    scalars, pictures = read(tmp_path)
    assert [step for step, _ in scalars["loss"]] == [0, 1, 2, 3, 4] and scalars["loss"][1:3] == [(1, pytest.approx(0.1)), (2, 2.0)]
    assert "free_dist" in scalars
    with EventLog(tmp_path) as log:
        log.scalars(0, {"other": 1})
    assert read(tmp_path)[0] == {"other": [(0, 1.0)]}


def test_nothing_is_written_where_it_is_not_installed(tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with EventLog(tmp_path / "log") as log:
        assert not log
        log.scalars(0, {"loss": 1})
        log.picture(0, "view", np.zeros((2, 2, 3)))
    assert list(tmp_path.iterdir()) == []


@installed
def test_reconstruction_logs_losses_and_views(tmp_path, monkeypatch):
    launch = importlib.import_module("3D_Recon.threestudio.launch")
    logged, plain = write_sphere_scene(tmp_path / "logged"), write_sphere_scene(tmp_path / "plain")
    config = tiny_config(sds=False, steps=40)
    launch.main(logged, config)
    scalars, pictures = read(scene_log_folder(logged, "3D_Recon"))
    assert [step for step, _ in scalars["loss/rgb"]] == [20, 40] and "learning_rate" in scalars
    assert pictures["render"] == list(range(4, 41, 4))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    launch.main(plain, config)
    assert not (plain.root / "tensorboard").exists()
    name = "save/rgb_pred/040.png"
    assert (logged.nerf_dir / name).read_bytes() == (plain.nerf_dir / name).read_bytes()


@installed
def test_test_time_training_logs_loss_rate_and_cameras(make_scene):
    from camerabooth import run

    scene, config = make_scene(3)
    run.main(scene, config)
    scalars, _ = read(scene_log_folder(scene, "camerabooth"))
    losses = [float(line.split(",")[1]) for line in (scene.personal_dir / "loss.csv").read_text().splitlines()[1:]]
    assert [value for _, value in scalars["loss"]] == pytest.approx(losses, abs=1e-5)
    assert set(scalars) == {"loss", "learning_rate", "camera_shift/polar_deg", "camera_shift/azimuth_deg", "camera_shift/log_radius"}
    assert scalars["camera_shift/azimuth_deg"][-1][1] > 0
