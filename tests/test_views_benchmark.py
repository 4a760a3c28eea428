"""The programs that time novel views and training steps, and the one that scores the mesh, at a tiny size."""

import sys
from types import SimpleNamespace

import numpy as np
import pytest

from benchmarks import mesh_views, novel_views, prior_step
from camerabooth.photo_field import PhotoField
from sap3d.errors import InputError
from sap3d.images import save_image
from sap3d.scene import REPOSITORY, Scene
from sap3d.zero123 import tiny_random_model


class OwnField:
    """In the place of a fitted field: the model's own guesses."""

    def guess(self, targets, own, size):
        return own()


@pytest.fixture
def run(tmp_path, monkeypatch):
    tiny_random_model(0, multiplane=4).save(tmp_path / "model")
    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "root"))  # bundled objects are found all the same
    cameras = dict(list(novel_views.protocol_test_cameras().items())[:2])
    monkeypatch.setattr(novel_views, "protocol_test_cameras", lambda: cameras)

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["novel_views", "--model", str(tmp_path / "model"), "--steps", "1", "--share", "1", "--device", "cpu", *options])
        novel_views.main()

    return run


@pytest.mark.parametrize("views, fitted, guessed", ((1, False, 0), (2, True, 42), (4, True, 0)))
def test_the_pipeline_s_own_way_is_timed_with_all_that_makes_its_field(run, monkeypatch, capsys, views, fitted, guessed):
    seen = []
    monkeypatch.setattr(PhotoField, "of", lambda photos, cameras, plane, steps, seed, device, guesses: seen.append((len(photos), len(guesses or {}))) or OwnField())
    run("--views", str(views))
    assert seen == ([(views, guessed)] if fitted else [])
    printed = capsys.readouterr().out
    assert ("guided by the field of the photos" in printed) == fitted and "a guided pair of U-Net evaluations: " in printed


def test_bad_options_and_missing_truth_are_refused_before_anything_runs(run, monkeypatch, tmp_path):
    monkeypatch.setattr(novel_views, "load_zero123", lambda *_: pytest.fail("the model was loaded"))
    for options in (("--share", "0"), ("--steps", "0")):
        with pytest.raises(InputError, match="--share and --steps must be at least 1"):
            run(*options)
    scene = Scene("GSO_demo", "thing", 2, tmp_path / "root")
    for k in range(2):
        save_image(scene.root / f"dataset/data/train/GSO_demo/thing/images/{k:03d}.png", np.full((8, 8, 4), 0.5 + k / 4, np.float32))
    with pytest.raises(InputError, match="thing/poses/000.npy: no such file; true poses are needed"):
        run("--object", "thing", "--views", "2")


def test_a_training_step_is_reported_for_the_targets_it_had(monkeypatch, capsys):
    sizes = []
    monkeypatch.setattr(prior_step, "timed", lambda model, batch, *_: sizes.append(batch["target"].shape[:2].numel()) or (1.0, 0.5, 0.0))
    monkeypatch.setattr(sys, "argv", ["prior_step", "--targets", "10", "--photos", "1", "--ways", "plain", "--device", "cpu"])
    prior_step.main()
    assert sizes == [8] and "plain, 1 photos, 8 targets: 500 ms a step, 16 targets a second" in capsys.readouterr().out
    for options in (("--targets", "3"), ("--steps", "0")):
        monkeypatch.setattr(sys, "argv", ["prior_step", "--device", "cpu", *options])
        with pytest.raises(InputError, match="must be at least 4"):
            prior_step.main()


def test_the_mesh_is_compared_with_the_true_views_of_its_root(tmp_path, monkeypatch):
    """Those below --root where there are any, else the bundled ones."""
    scene = Scene("T", "armchair", 2, tmp_path)
    scene.mesh_dir.mkdir(parents=True)
    (scene.mesh_dir / "model.obj").touch()
    looked = []
    monkeypatch.setattr(mesh_views, "load_rgb", lambda path: looked.append(path.parent.parent) or np.ones((8, 8, 3), np.float32))
    monkeypatch.setattr(mesh_views, "load_mesh", lambda path: None)
    monkeypatch.setattr(mesh_views, "render_rgba", lambda mesh, poses, *_, **__: np.ones((len(poses), 8, 8, 4), np.float32))
    monkeypatch.setattr(mesh_views, "score_images", lambda truth, sets: {key: SimpleNamespace(compat=dict) for key in sets})
    assert mesh_views.score(scene) == {"nerf": {}, "mesh": {}} and looked[0] == REPOSITORY / "dataset/data/test/armchair"
    (tmp_path / "dataset/data/test/armchair/images").mkdir(parents=True)
    with pytest.raises(InputError, match=f"{tmp_path}.*no true views to compare with"):
        mesh_views.score(scene)
