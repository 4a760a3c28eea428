"""The whole pipeline on one tiny object: what comes out, a second run, kills and resumes, many objects, one photo."""

import csv
import itertools
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np

from sap3d.cameras import protocol_test_cameras, rotation_angle_deg
from sap3d.images import composite_white, load_input_views, load_rgb, resize
from sap3d.mesh_load import load_mesh
from sap3d.results import load_results
from sap3d.scene import REPOSITORY, Scene, file_hash, read_cameras, read_json
from tests.tiny_scene import ALL_SETTINGS, OBJECT, TYPE, command, environment, make_tiny_object, run

HEADLINE_KEYS = {
    "NAME", "CD", "IOU", "F1_01", "F1_02", "F1_03", "Rotation Error", "Elevation", "Azimuth", "Radius",
    "2d_psnr_mean", "2d_ssim_mean", "2d_lpips_mean", "3d_psnr_mean", "3d_ssim_mean", "3d_lpips_mean",
}  # fmt: skip


def outputs(root: Path) -> dict[str, str]:
    """Hash of every output, without what holds times: records, logs, checkpoints."""
    found = {}
    for path in sorted(p for top in ("camerabooth", "3D_Recon", "results") for p in (root / top).rglob("*") if p.is_file()):
        name = str(path.relative_to(root))
        if "record" in path.name or path.suffix in (".pt", ".log") or path.name in ("results.json", "table.md", "table.csv"):
            continue
        found[name] = file_hash(path)
    return found


def figures(scene: Scene) -> dict:
    result = load_results(scene.results_dir / "results.json")
    return {key: value for key, value in result.items() if key not in ("seconds", "stages", "peak_memory_mb")}


def shows_the_object(scene: Scene, folder: Path) -> None:
    """Outlines are those of the true views, and colours at the photos' own cameras those of the photos, rather than what a wrong frame would show."""
    protocol = protocol_test_cameras()
    found, truth = (np.stack([resize(load_rgb(place / f"{name}.png"), 32) for name in protocol]) for place in (folder, scene.truth_test_dir / "images"))
    outlines, expected = (views.min(-1) < 0.5 for views in (found, truth))
    places = outlines.reshape(7, 12, 32, 32)  # elevations, azimuths
    wrong = [np.zeros_like(outlines), outlines[:, :, ::-1], outlines[:, ::-1], outlines[::-1], *(np.roll(places, step, 1).reshape(outlines.shape) for step in (1, -1, 3))]
    assert (outlines != expected).mean() < 0.65 * min((other != expected).mean() for other in wrong)
    photos = np.stack([composite_white(resize(photo, 32)) for photo in load_input_views(scene).values()])
    turns = [camera.camera_from_world()[:, :3] for camera in protocol.values()]
    nearest = [int(np.argmin([rotation_angle_deg(turn, camera.camera_from_world()[:, :3]) for turn in turns])) for camera in read_cameras(scene.refined_cameras).values()]
    white, given, *orders = np.ones_like(photos), *(found[nearest][list(order)] for order in itertools.permutations(range(3)))
    assert np.square(given - photos).mean() < 0.5 * min(np.square(other - photos).mean() for other in (white, *orders))


def test_outputs_of_a_run(undisturbed):
    scene, printed, _ = undisturbed
    for heading in ("stage 1 of 3", "stage 2 of 3", "stage 3 of 3", "evaluation", "on the CPU"):
        assert heading in printed
    for path in (
        scene.results_dir / "contact_sheet.png", scene.nerf_dir / "save" / "turntable.mp4", scene.mesh_dir / "model.glb", scene.results_dir / "results.json",
    ):  # fmt: skip
        assert path.stat().st_size > 100 and str(path) in printed
    assert list(read_cameras(scene.initial_cameras)) == list(read_cameras(scene.refined_cameras)) == ["000", "001", "002"]
    for folder in (scene.nvs_dir / "preds", scene.nerf_dir / "save" / "rgb_pred"):
        assert sorted(p.name for p in folder.glob("*.png")) == [f"{k:03d}.png" for k in range(84)]
        shows_the_object(scene, folder)
    mesh = load_mesh(scene.mesh_dir / "model.obj")
    assert len(mesh.faces) > 100 and np.isfinite(mesh.vertices).all() and np.abs(mesh.vertices).max() < 1
    result = figures(scene)
    assert HEADLINE_KEYS <= result.keys() and all(np.isfinite(result[key]) for key in HEADLINE_KEYS - {"NAME"}) and result["notes"] == []
    assert result["3d_psnr_mean"] > 8.5 and result["IOU"] > 0.5  # of white pages 7.5; stage 1 takes the left of this box for its right, so that colours are wrong there
    stages = load_results(scene.results_dir / "results.json")["stages"]
    assert [stage["stage"] for stage in stages] == ["relposepp", "camerabooth training", "camerabooth novel views", "3D_Recon nerf", "3D_Recon mesh"]
    assert all(stage["seconds"] > 0 and 50 < stage["peak_memory_mb"] < 6000 for stage in stages)


def test_second_run_skips_everything(undisturbed):
    scene, first, _ = undisturbed
    before = {path: path.stat().st_mtime_ns for path in scene.root.rglob("*") if path.is_file()}
    again = run(scene.root)
    assert before == {path: path.stat().st_mtime_ns for path in scene.root.rglob("*") if path.is_file()}
    assert again.splitlines()[-4:] == first.splitlines()[-4:] and "renders (3D)" in again


KILLER = """
import os, signal, sys
name, count = os.environ["KILL_AT"].rsplit(":", 1)
left = int(count)

def kill(event, arguments):
    global left
    if event == "os.rename" and str(arguments[1]).endswith(name):
        left -= 1
        if left == 0:
            os.killpg(0, signal.SIGKILL)

sys.addaudithook(kill)
"""
MOMENTS = (  # a kill just before the so-manieth file of this name takes its place, so that what was written for it is left behind
    "config_box_view_3.yaml:1",  # stage 1
    "personal.safetensors:1",  # the end of training
    "preds/040.png:1",  # novel views
    "last.pt:3",  # optimisation, with a checkpoint
    "save/turntable.mp4:1",  # renders
    "model.glb:1",  # mesh
    "results.json:1",  # evaluation
)


def test_killed_in_every_stage_and_resumed(undisturbed, tmp_path):
    reference, _, _ = undisturbed
    scene = make_tiny_object(tmp_path)
    for moment in MOMENTS:
        variables = environment(tmp_path, first=KILLER) | {"KILL_AT": moment}
        done = subprocess.run(command(), env=variables, capture_output=True, text=True, start_new_session=True)
        assert done.returncode == -signal.SIGKILL, moment + done.stdout + done.stderr
        assert list(tmp_path.rglob(".*.tmp-*"))  # as a kill leaves it
    run(tmp_path)
    expected = outputs(reference.root)
    found = outputs(tmp_path)
    assert len(expected) > 180 and sorted(found) == sorted(expected)
    assert [name for name in expected if found[name] != expected[name]] == []
    assert figures(scene) == figures(reference)
    assert list(tmp_path.rglob(".*")) == []  # nothing of the kills is left


def test_threads_do_not_depend_on_the_load():
    """PyTorch's own number or that of OMP_NUM_THREADS, and threads that spin for a moment at most while they wait, unless the user has it otherwise."""
    assert "OMP_NUM_THREADS" not in (REPOSITORY / "run_pipeline.sh").read_text()
    code = "import sap3d, os, torch; print(os.environ['OMP_WAIT_POLICY'], os.environ.get('GOMP_SPINCOUNT'), torch.get_num_threads(), len(os.sched_getaffinity(0)))"
    for given, spins in (({}, "2000"), ({"OMP_NUM_THREADS": "1"}, "2000"), ({"OMP_WAIT_POLICY": "ACTIVE"}, "None"), ({"GOMP_SPINCOUNT": "7"}, "7")):
        variables = {k: v for k, v in os.environ.items() if k not in ("OMP_NUM_THREADS", "OMP_WAIT_POLICY", "GOMP_SPINCOUNT")} | given
        done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=variables, capture_output=True, text=True)
        policy, spinning, threads, cores = done.stdout.split()
        assert policy == given.get("OMP_WAIT_POLICY", "PASSIVE") and spinning == spins
        assert threads == given["OMP_NUM_THREADS"] if "OMP_NUM_THREADS" in given else 1 <= int(threads) <= int(cores)


def test_many_objects(undisturbed):
    """A finished object, one with a single photo (nothing to train on: the base model carries it), and a broken one."""
    scene, _, _ = undisturbed
    broken = scene.train_dir.with_name("broken") / "images"
    broken.mkdir(parents=True)
    (broken / "000.png").write_text("no picture")
    arguments = ["--object_type", TYPE, "--views", "3", "1", "--objects", OBJECT, "broken", "--gpus", "cpu", "--set", *ALL_SETTINGS]
    done = subprocess.run([sys.executable, str(REPOSITORY / "run_pipeline.py"), *arguments], env=environment(scene.root), capture_output=True, text=True)
    assert done.returncode == 1
    assert "[1/4] box, 3 views: already finished" in done.stdout
    assert "[2/4] box, 1 view: done in" in done.stdout
    assert "[3/4] broken, 3 views: failed: " in done.stdout and "[4/4] broken, 1 view: failed: " in done.stdout
    failures = done.stderr.strip().splitlines()
    assert len(failures) == 2 and "it holds 1" in failures[0] and "is not an image" in failures[1] and "pipeline.log" in failures[0]
    folder = scene.root / "results" / TYPE
    assert "SAP3D, 3 views" in (folder / "table.md").read_text() and "TINY, 3 views, mean of 1" in done.stdout
    rows = list(csv.DictReader((folder / "table.csv").open()))
    assert [(row["object"], row["views"]) for row in rows] == [("box", "1"), ("box", "3")] and float(rows[1]["3d_psnr_mean"]) > 8.5
    assert "stage 3 of 3" in (folder / "box" / "1" / "pipeline.log").read_text()
    assert read_json(folder / "broken" / "3" / "results.json") is None
    one = Scene(TYPE, OBJECT, 1, scene.root)
    assert not (one.personal_dir / "personal.safetensors").exists() and (one.mesh_dir / "model.glb").is_file()
    assert np.isfinite(figures(one)["3d_psnr_mean"])
