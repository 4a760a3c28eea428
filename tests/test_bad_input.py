"""Bad input ends in one clear line and a non-zero status, and leaves alone what is finished: what the lines say.

Hundreds of further inputs, which need only end well: tests/test_malformed.py.
"""

import os
import runpy
import subprocess
import sys

import numpy as np
import pytest
import torch

from sap3d.scene import REPOSITORY, write_cameras
from sap3d.zero123 import save_personal, tiny_random_model
from sap3d.zero123.personal import weights_hash
from tests.malformed.files import disc
from tests.malformed.scene import VIEWS, contents, make_scene, write

QUICK_SETTINGS = ("steps=1", "grid=[8]", "level_starts=[0.0]", "photo_sizes=[16]", "render_size=16", "turntable_frames=1", "mesh_cells=16", "texture_size=64")
STAGES = ("relposepp.run", "camerabooth.run", "3D_Recon.threestudio.launch")


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "tiny"
    tiny_random_model(0).save(folder, torch.float32)
    return folder


@pytest.fixture
def scene(tmp_path, monkeypatch, model_folder):
    """An object with three photos and the outputs of all stages (stand-ins, but of the right form), ROOT_DIR set to it."""
    scene = make_scene(tmp_path / "root")
    model = tiny_random_model(0)
    save_personal(scene.personal_dir / "personal.safetensors", model, ["cc_projection.linear.bias"], weights_hash(model))
    monkeypatch.setenv("ROOT_DIR", str(scene.root))
    return scene


def refused(capsys, monkeypatch, module: str, *settings, views="3", type_="T", object_="o") -> str:
    """Run a stage's command line as a program would be run; returns the one line it must end with."""
    monkeypatch.setattr(sys, "argv", [module, "--type", type_, "--object", object_, "--views", views, *map(str, settings)])
    capsys.readouterr()
    with pytest.raises(SystemExit) as ending:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    printed = capsys.readouterr()
    lines = [line for line in printed.err.strip().splitlines() if not line.startswith("[")]  # without progress
    assert ending.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: "), printed.err
    assert len(lines[0]) < 1200 and "Traceback" not in printed.out + printed.err
    return lines[0]


# --- photos -----------------------------------------------------------------------------------------------------------
def photo(scene, name="001.png"):
    return scene.train_dir / "images" / name


def rename_folder(scene):
    (scene.train_dir / "images").rename(scene.train_dir / "pictures")


PHOTOS = {
    "missing folder": (rename_folder, "images: no such folder"),
    "fewer photos than views": (lambda s: photo(s).unlink(), "3 views were asked for but it holds 2"),
    "no image": (lambda s: photo(s).write_text("hello"), "001.png: is not an image"),
    "a folder": (lambda s: (photo(s).unlink(), photo(s).mkdir()), "001.png: no such image file"),
    "cut off": (lambda s: photo(s).write_bytes(photo(s).read_bytes()[:90]), "001.png: cannot be decoded"),
    "no alpha": (lambda s: write(photo(s), disc(1)[..., :3]), "001.png: has no alpha channel"),
    "transparent": (lambda s: write(photo(s), disc(1) * np.uint8([1, 1, 1, 0])), "001.png: every pixel is transparent"),
    "other size": (lambda s: write(photo(s), disc(1, 40)), "make all photos the same size"),
    "not square": (lambda s: write(photo(s), disc(1)[:, :20].copy()), "photos must be square"),
    "the same picture": (lambda s: write(photo(s), disc(0)), "000 and 001 are the same picture"),
    "damaged mask": (lambda s: (s.train_dir / "masks").mkdir() or (s.train_dir / "masks/001.png").write_text("x"), "masks/001.png: is not an image"),
}  # fmt: skip


@pytest.mark.parametrize("module", STAGES)
@pytest.mark.parametrize("case", PHOTOS)
def test_photos(scene, capsys, monkeypatch, module, case):
    damage, message = PHOTOS[case]
    damage(scene)
    before = contents(scene.root)
    assert message in refused(capsys, monkeypatch, module)
    assert contents(scene.root) == before


# --- names, numbers, settings -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("module", (*STAGES, "sap3d.evaluate"))
def test_names_and_numbers(scene, capsys, monkeypatch, module):
    before = contents(scene.root)
    for views in ("0", "-0"):
        assert "at least 1" in refused(capsys, monkeypatch, module, views=views)
    for name in ("../o", "/etc", "a/b", "..", "o\n", ""):
        assert "plain name" in refused(capsys, monkeypatch, module, object_=name)
        assert "plain name" in refused(capsys, monkeypatch, module, type_=name)
    assert "known keys" in refused(capsys, monkeypatch, module, "stepz=3")
    assert "give device a value like its default, 'auto'" in refused(capsys, monkeypatch, module, "device={a: 1}")
    assert f"; python -m {module} --help lists the options" in refused(capsys, monkeypatch, module, "--fast")
    assert "no such configuration file" in refused(capsys, monkeypatch, module, "--config", scene.root / "none.yaml")
    assert contents(scene.root) == before


SETTINGS = {
    "relposepp.run": ("device=tpu", "search=all", "hypotheses=0", "azimuth_step_deg=0", "elevation_range_deg=[50, 10]", "weights=/nowhere", "device=cuda:0"),
    "camerabooth.run": ("device=tpu", "trained=all", "regulariser=best", "precision=fp4", "condition_strategy=best", "steps=0", "batch_size=0",
                        "learning_rate=-1", "nvs_steps=0", "nvs_steps=1001", "nvs_batch_size=0", "output_size=0", "model=/nowhere", "device=cuda:0"),
    "3D_Recon.threestudio.launch": ("device=tpu", "steps=0", "grid=[]", "grid=[9999]", "texture=none", "sds_condition=best", "level_starts=[0.0,0.9,0.5]", "final_rate=-0.1", "initial_density=0", "sds_t_start=[0.5]", "sds_elevations=[60,-45]",
                                    "render_size=1", "prior_where_seen=-1", "free_rays=-1", "hull_margin=0.3",
                                    "model=/nowhere", "cameras=/nowhere.yaml", "device=cuda:0"),
    "sap3d.evaluate": ("size=0", "size=-5"),
}  # fmt: skip


@pytest.mark.parametrize("module, setting", [(module, setting) for module, settings in SETTINGS.items() for setting in settings])
def test_settings_out_of_range(scene, capsys, monkeypatch, module, setting):
    before = contents(scene.root)
    line = refused(capsys, monkeypatch, module, setting)
    assert setting.split("=")[0].split("_")[0] in line or "nowhere" in line
    assert contents(scene.root) == before


# --- files of earlier stages ------------------------------------------------------------------------------------------
@pytest.mark.parametrize("content", (b"", b"{", b"views: 3", b"\xff\xfe", b"views: {'000': {elevation_deg: 0, azimuth_deg: 0, radius: -1, fov_deg: 49}}"))
@pytest.mark.parametrize("module, which", (("camerabooth.run", "initial_cameras"), ("3D_Recon.threestudio.launch", "refined_cameras")))
def test_damaged_cameras(scene, capsys, monkeypatch, module, which, content):
    getattr(scene, which).write_bytes(content)
    before = contents(scene.root)
    assert getattr(scene, which).name in refused(capsys, monkeypatch, module)
    assert contents(scene.root) == before


@pytest.mark.parametrize("module, which", (("camerabooth.run", "initial_cameras"), ("3D_Recon.threestudio.launch", "refined_cameras")))
def test_missing_cameras(scene, capsys, monkeypatch, module, which):
    write_cameras(getattr(scene, which), {"000": VIEWS["000"], "007": VIEWS["001"]})
    assert "no camera for view 001" in refused(capsys, monkeypatch, module)
    getattr(scene, which).unlink()
    assert "no such camera file" in refused(capsys, monkeypatch, module)


def test_missing_and_damaged_novel_views(scene, capsys, monkeypatch, model_folder):
    """They are read for the warm start alone; the other settings only make a run short that should have been refused."""
    stage, settings = "3D_Recon.threestudio.launch", ("warm_start=true", f"model={model_folder}", *QUICK_SETTINGS)
    (scene.nvs_dir / "preds/040.png").write_text("x")
    assert "040.png: is not an image" in refused(capsys, monkeypatch, stage, *settings)
    (scene.nvs_dir / "preds/040.png").unlink()
    assert "040.png is missing" in refused(capsys, monkeypatch, stage, *settings)


@pytest.mark.parametrize("content", (b"", b"x" * 100, None))
def test_damaged_personal_model(scene, capsys, monkeypatch, model_folder, content):
    path = scene.personal_dir / "personal.safetensors"
    if content is None:
        save_personal(path, tiny_random_model(1), ["cc_projection.linear.bias"], weights_hash(tiny_random_model(1)))
    else:
        path.write_bytes(content)
    before = contents(scene.root)
    assert "personal.safetensors" in refused(capsys, monkeypatch, "3D_Recon.threestudio.launch", f"model={model_folder}", *QUICK_SETTINGS)
    assert contents(scene.root) == before


@pytest.mark.parametrize("content", (b"", b"PK\x03\x04half", b"\x80\x04."))
def test_damaged_checkpoint(scene, capsys, monkeypatch, model_folder, content):
    (scene.personal_dir / "checkpoint.pt").write_bytes(content)
    assert "checkpoint.pt: damaged" in refused(capsys, monkeypatch, "camerabooth.run", f"model={model_folder}", "regulariser=none", "steps=2")


def test_damaged_weights(scene, capsys, monkeypatch, tmp_path):
    for name, content in (("config.json", "{"), ("config.json", "{}"), ("model.safetensors", "x")):
        folder = tmp_path / "weights"
        folder.mkdir(exist_ok=True)
        for part in ("config.json", "model.safetensors"):
            (folder / part).write_bytes((REPOSITORY / "relposepp/weights/tiny" / part).read_bytes())
        (folder / name).write_text(content)
        assert str(folder) in refused(capsys, monkeypatch, "relposepp.run", f"weights={folder}")


def test_nothing_to_evaluate(scene, capsys, monkeypatch):
    assert "run the stages first" in refused(capsys, monkeypatch, "sap3d.evaluate", object_="nobody")


# --- the drivers ------------------------------------------------------------------------------------------------------
def drive(*arguments, program=("sh", "run_pipeline.sh"), **environment):
    given = {**os.environ, "PYTHON": sys.executable, **environment}
    return subprocess.run([program[0], str(REPOSITORY / program[1]), *arguments], env=given, capture_output=True, text=True)


def test_usage_needs_no_python():
    for arguments, status in (((), 2), (("-h",), 0), (("--help",), 0)):
        done = drive(*arguments, PYTHON="/nowhere")
        assert done.returncode == status and "usage: sh run_pipeline.sh TYPE OBJECT VIEWS GPU" in done.stdout and done.stderr == ""
        assert "GSO_demo: ankle_boots armchair beetle_car" in done.stdout


BAD_CALLS = {
    "T o 3": "TYPE OBJECT VIEWS GPU are needed",
    "--quick T o 3 0": "TYPE OBJECT VIEWS GPU come first and options after them, got '--quick' first",
    "--fast": "TYPE OBJECT VIEWS GPU come first",
    "none o 3 0": "unknown dataset type 'none'; available: ",  # with types of the user's own among them
    "T nobody 3 0": "unknown object 'nobody' of type T; available: o",
    "T ../o 3 0": "plain name",
    "../T o 3 0": "plain name",
    "T /etc 3 0": "plain name",
    "T o 0 0": "at least 1, got '0'",
    "T o abc 0": "at least 1, got 'abc'",
    "T o -3 0": "at least 1, got '-3'",
    "T o 2.5 0": "at least 1",
    "T o 3 a": "GPU must be an index",
    "T o 3 -1": "GPU must be an index",
    "T o 3 0 --fast": "unknown option '--fast'",
    "T o 3 0 steps=3": "'steps=3' is not a setting",
    "T o 3 0 booth.stepz=3": "booth.stepz=3: Key 'stepz' not in 'BoothConfig'",
    "T o 3 0 recon.steps=many": "recon.steps=many",
    "T o 3 0 recon.texture=foo": "recon.texture='foo' is unknown",
    "T o 3 0 recon.grid=[32,64,96]": "one entry a level",
    "T o 9 0": "9 views were asked for but it holds 3",
    "T o;true 3 0": "plain name",
    "T $(true) 3 0": "plain name",
    "T * 3 0": "plain name",
}


@pytest.mark.parametrize("call", BAD_CALLS)
def test_run_pipeline_sh(scene, call):
    before = contents(scene.root)
    done = drive(*call.split(" "))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ")
    assert BAD_CALLS[call] in done.stderr and contents(scene.root) == before
    assert ("unknown dataset type" in done.stderr) == ("GSO_demo" in done.stderr)


def test_run_pipeline_sh_stops_at_the_failing_stage(scene):
    scene.initial_cameras.with_suffix(".record.json").unlink()
    write(photo(scene), disc(1)[..., :3])
    done = drive("T", "o", "3", "0")
    assert done.returncode == 2 and "stage 1" in done.stdout and "stage 2" not in done.stdout
    assert done.stderr.strip().splitlines() == [done.stderr.strip()] and "no alpha channel" in done.stderr


def test_environment(scene, tmp_path):
    assert "no such program" in drive("T", "o", "3", "0", PYTHON="/nowhere").stderr
    (tmp_path / "old").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "old").chmod(0o755)
    assert "not Python 3.11" in drive("T", "o", "3", "0", PYTHON=str(tmp_path / "old")).stderr
    (tmp_path / "file").write_text("")
    done = drive("GSO_demo", "cactus", "3", "0", ROOT_DIR=str(tmp_path / "file"))
    assert done.returncode == 2 and "cannot be used as a folder" in done.stderr


@pytest.mark.parametrize(
    "arguments, message",
    (
        ("--object_type none", "unknown dataset type 'none'; available: "),
        ("--object_type ../T", "plain name"),
        ("--object_type T --objects nobody", "unknown object 'nobody' of type T; available: o"),
        ("--object_type T --views 0", "--views must be at least 1"),
        ("--object_type T --gpus a,b", "--gpus a,b"),
        ("--object_type T --set booth.stepz=3", "booth.stepz=3"),
        ("--object_type T --set stepz=3", "is not a setting"),
        ("--object_type T --set booth.nvs_steps=0", "booth.nvs_steps=0 must lie in 1 .. 1000"),
    ),
)
def test_run_pipeline_py(scene, arguments, message):
    before = contents(scene.root)
    done = drive(*arguments.split(" "), program=(sys.executable, "run_pipeline.py"))
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and done.stderr.startswith("error: ") and message in done.stderr
    assert ("unknown dataset type" in done.stderr) == ("GSO_demo" in done.stderr) and contents(scene.root) == before
