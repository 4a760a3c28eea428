"""The program that measures the base model without test-time training: its command line, and what it says of truth that is not there."""

import csv
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from camerabooth.prior import evaluate
from camerabooth.prior.truth import objects_of, true_poses
from sap3d.errors import InputError, cli
from sap3d.scene import REPOSITORY
from sap3d.zero123 import tiny_random_model
from tests.tiny_scene import OBJECT, TYPE, make_tiny_object


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_tiny_object(tmp_path_factory.mktemp("evaluate"), views=2)


@pytest.fixture
def run(scene, tmp_path, monkeypatch):
    tiny_random_model(0, multiplane=4).save(tmp_path / "model")
    monkeypatch.setenv("ROOT_DIR", str(scene.root))

    def run(*options):
        monkeypatch.setattr(sys, "argv", ["evaluate", "--type", TYPE, "--model", str(tmp_path / "model"), *options])
        evaluate.main()

    return run


def test_settings_may_follow_an_option_of_several_values(run, tmp_path, capsys, monkeypatch):
    asked = []
    monkeypatch.setattr(evaluate, "novel_views", lambda model, photos, cameras, targets, config, **_: asked.append(config) or {name: np.ones((32, 32, 3), np.float32) for name in targets})
    monkeypatch.setattr(evaluate, "score_images", lambda truth, sets: {key: SimpleNamespace(compat=lambda: {"psnr": 1.0, "ssim": 1.0, "lpips": 0.0}) for key in sets})
    run("--rows", str(tmp_path / "rows.csv"), "--guess", "--views", "1", "2", "nvs_steps=3", "output_size=32")
    assert [config.nvs_steps for config in asked] == [3, 3] and "zero-shot" in capsys.readouterr().out
    with open(tmp_path / "rows.csv", newline="") as stream:
        assert [(row["way"], row["views"]) for row in csv.DictReader(stream)] == [("repeated photo", "1"), ("autoencoder", "0"), ("zero-shot", "1"), ("first guess", "1"), ("zero-shot", "2"), ("first guess", "2")]


@pytest.mark.parametrize("options, message", (
    (("steps=3",), "'steps=3' changes nothing here; settings that do: device, precision, seed, nvs_steps"), (("model=x",), "--model"), (("nvs_steps=0",), "nvs_steps=0 must lie"),
    (("device=cuda",), "no CUDA GPU can be used here"), (("precision=fp8",), "precision='fp8' is unknown"), (("--views", "0"), "at least 1"),
))  # fmt: skip
def test_what_has_no_effect_is_refused(run, options, message):
    with pytest.raises(InputError, match=message):
        run(*options)


def test_a_wrong_option_is_one_line(run, capsys):
    with pytest.raises(SystemExit) as ended:
        cli(lambda: run("--veiws", "1"))
    error = capsys.readouterr().err
    assert ended.value.code == 2 and error.startswith("error: ") and error.count("\n") == 1


def test_the_model_works_where_the_settings_say(run, monkeypatch):
    placed = []
    monkeypatch.setattr(evaluate, "resolve_device", lambda name: {"cuda:1": "meta"}[name])
    monkeypatch.setattr(evaluate, "evaluate_object", lambda model, *_: placed.append(model.device) or ([], None))
    monkeypatch.setattr(evaluate, "summary", lambda rows: "")
    run("device=cuda:1")
    assert placed == [torch.device("meta")]


def test_true_cameras_that_are_missing_or_damaged_are_one_line(scene, run):
    for folder in (scene.truth_poses_dir, scene.truth_test_dir / "poses"):
        path = folder / "001.npy"
        good = path.read_bytes()
        for content, message in ((b"garbage", "001.npy: not a 3 x 4 pose"), (good[:-8], "001.npy: not a 3 x 4 pose")):
            path.write_bytes(content)
            with pytest.raises(InputError, match=message):
                run("--views", "2")
        path.write_bytes(good)
    path = scene.truth_poses_dir / "001.npy"
    good = path.read_bytes()
    path.unlink()
    with pytest.raises(InputError, match="001.npy: no such file; true poses are needed here"):
        run("--views", "2")
    path.write_bytes(good)
    (scene.truth_test_dir / "poses").rename(scene.truth_test_dir / "moved")
    with pytest.raises(InputError, match="no true views there"):
        run()
    (scene.truth_test_dir / "moved").rename(scene.truth_test_dir / "poses")


def test_a_flat_thing_may_vanish_from_its_edge(scene):
    from PIL import Image

    path = scene.truth_test_dir / "images" / "040.png"
    kept = path.read_bytes()
    Image.new("RGBA", Image.open(path).size).save(path)
    try:
        cameras, views = evaluate.true_views(scene)
        assert len(cameras) == len(views) == 84 and (views["040"] == 1).all()
    finally:
        path.write_bytes(kept)


def test_bundled_objects_are_found_from_another_root(scene, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(scene.root))
    assert objects_of(TYPE) == [OBJECT] and "teddy_bear" in objects_of("GSO_demo")
    with pytest.raises(InputError, match="NOTHING: no objects with true poses"):
        objects_of("NOTHING")
    folder = REPOSITORY / "dataset/data/train/GSO_demo/teddy_bear/poses"
    assert true_poses(folder, ["001"])["001"].shape == (3, 4)
