"""Evaluation, report and suite on a small scene whose true answers are known."""

import argparse
import base64
import csv
import html
import importlib
import json
import re
import shutil
import textwrap
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import trimesh
from PIL import Image

from sap3d import evaluate, report, results, suite, suite_baselines, suite_claims, suite_tables
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.config import load_config
from sap3d.errors import InputError
from sap3d.evaluation_pictures import SHEET_VIEWS
from sap3d.images import save_image
from sap3d.intervals import mean_interval
from sap3d.mesh_load import load_mesh_normalised
from sap3d.mesh_render import MeshRenderer
from sap3d.scene import REPOSITORY, Scene, completion_record, write_cameras, write_json

HEADLINE_KEYS = {
    "NAME", "CD", "IOU", "F1_01", "F1_02", "F1_03", "Rotation Error", "Elevation", "Azimuth", "Radius",
    "2d_psnr_mean", "2d_ssim_mean", "2d_lpips_mean", "3d_psnr_mean", "3d_ssim_mean", "3d_lpips_mean",
}  # fmt: skip
INPUTS = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90), "002": Camera.from_degrees(30, 270)}
SMALL = evaluate.EvaluationConfig(size=40, device="cpu")


def car() -> trimesh.Trimesh:
    """A mesh that looks different from all sides and is centred with longest side 1."""
    body = trimesh.creation.box((1.0, 0.4, 0.3))
    roof = trimesh.creation.box((0.4, 0.4, 0.2), transform=trimesh.transformations.translation_matrix((0.2, 0, 0.25)))
    body.visual.face_colors, roof.visual.face_colors = (200, 40, 30, 255), (40, 80, 200, 255)
    mesh = trimesh.util.concatenate([body, roof])
    return mesh.apply_translation((0, 0, -0.1))


def write_obj(path, mesh, turn_deg=0.0):
    path.parent.mkdir(parents=True, exist_ok=True)
    mesh.copy().apply_transform(trimesh.transformations.rotation_matrix(np.deg2rad(turn_deg), (0, 0, 1))).export(path)


@pytest.fixture(scope="module")
def truth(tmp_path_factory):
    """A root with photos and ground truth of one object, and nothing predicted."""
    root = tmp_path_factory.mktemp("truth")
    scene = Scene("TINY", "car", 3, root)
    write_obj(root / "dataset/3d_models/TINY/car/meshes/model.obj", car())
    renderer = MeshRenderer(load_mesh_normalised(scene.truth_mesh))
    for folder, cameras, size in ((root / "dataset/data/train/TINY/car", INPUTS, 96), (root / "dataset/data/test/car", protocol_test_cameras(), 64)):
        (folder / "poses").mkdir(parents=True)
        for name, camera in cameras.items():
            save_image(folder / "images" / f"{name}.png", renderer.render(camera.camera_from_world(), size=size))
            np.save(folder / "poses" / f"{name}.npy", camera.camera_from_world())
    return root


@pytest.fixture
def scene(truth, tmp_path):
    """The same with a perfect prediction, in a folder of the test's own."""
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    return predict(Scene("TINY", "car", 3, tmp_path))


def predict(scene: Scene, cameras=INPUTS, turn_deg=0.0) -> Scene:
    for folder in (scene.nvs_dir / "preds", scene.nerf_dir / "save" / "rgb_pred"):
        shutil.copytree(scene.truth_test_dir / "images", folder, dirs_exist_ok=True)
    write_obj(scene.mesh_dir / "model.obj", car(), turn_deg)
    write_cameras(scene.initial_cameras, INPUTS)
    write_cameras(scene.refined_cameras, cameras)
    records = {
        "relposepp": scene.initial_cameras.with_suffix(".record.json"),
        "camerabooth": scene.personal_dir / "record.json",
        "3D_Recon": scene.nerf_dir / "record.json",
    }
    for stage, path in records.items():
        with completion_record(path, stage, {}, {}):
            pass
    return scene


def read(scene: Scene) -> dict:
    return results.load_results(scene.results_dir / "results.json")


def test_a_perfect_reconstruction(scene):
    path = evaluate.main(scene, SMALL)
    stored = json.loads(path.read_text())
    assert isinstance(stored, list) and len(stored) == 1 and HEADLINE_KEYS <= stored[0].keys()
    result = read(scene)
    assert result["2d_psnr_mean"] == 100 and result["3d_ssim_mean"] == pytest.approx(1) and result["3d_lpips_mean"] == pytest.approx(0, abs=1e-4)
    assert result["CD"] < 1e-4 and result["IOU"] == 1.0 and result["F1_01"] == 1.0
    assert result["Rotation Error"] == pytest.approx(0, abs=1e-4) and result["corrected"]["cameras"]["elevation"] == pytest.approx(0, abs=1e-4)
    assert [stage["stage"] for stage in result["stages"]] == ["relposepp", "camerabooth", "3D_Recon"] and result["peak_memory_mb"] > 0
    assert result["notes"] == []
    rows = list(csv.DictReader((scene.results_dir / "per_view.csv").open()))
    assert len(rows) == 2 * 84 and rows[13]["view"] == "013" and rows[13]["elevation_deg"] == "30" and rows[13]["azimuth_deg"] == "30"
    for name in ("contact_sheet.png", "cameras.png"):
        with Image.open(scene.results_dir / name) as picture:
            assert np.asarray(picture.convert("L")).std() > 5


def test_figures_get_worse_with_errors(scene):
    predict(scene, cameras=INPUTS | {"002": Camera.from_degrees(30, 300)})
    for name in SHEET_VIEWS:
        save_image(scene.nvs_dir / "preds" / f"{name}.png", np.ones((64, 64, 3)))
    write_obj(scene.mesh_dir / "model.obj", car().apply_scale((1, 1, 1.5)))
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert result["2d_psnr_mean"] < 25 < result["3d_psnr_mean"] and result["2d_lpips_mean"] > 0.005
    assert result["CD"] > 0.01 and result["IOU"] < 0.9
    assert result["Rotation Error"] == pytest.approx(20, abs=0.1)  # two of three pairs are off by a turn of 30 degrees


def test_view_000_sets_the_azimuth_of_the_mesh(scene):
    """A prediction whose whole world is turned by 90 degrees is the same reconstruction."""
    turned = {name: camera.with_azimuth_offset(np.pi / 2) for name, camera in INPUTS.items()}
    predict(scene, cameras=turned, turn_deg=90)
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert result["CD"] < 0.001 and result["IOU"] > 0.95 and result["corrected"]["shape"]["chamfer"] < 0.001
    write_obj(scene.mesh_dir / "model.obj", car())
    evaluate.main(scene, SMALL)
    assert read(scene)["CD"] > 0.02


def test_cameras_align_the_mesh(scene):
    """Predicted at 0.8 of the true size, from cameras at 0.8 of the true distance: wrong as it stands, right after alignment."""
    predict(scene, cameras={name: Camera(c.polar_rad, c.azimuth_rad, c.radius * 0.8) for name, c in INPUTS.items()})
    write_obj(scene.mesh_dir / "model.obj", car().apply_scale(0.8))
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert result["CD"] > 0.02 and result["corrected"]["shape"]["chamfer"] < 0.001 and result["corrected"]["shape"]["scale"] == pytest.approx(1.25, abs=1e-4)


def test_nothing_is_measured_twice_and_changes_are_noticed(scene):
    path = evaluate.main(scene, SMALL)
    stamp = path.stat().st_mtime_ns
    evaluate.main(scene, SMALL)
    assert path.stat().st_mtime_ns == stamp
    save_image(scene.nvs_dir / "preds" / "005.png", np.ones((64, 64, 3)))
    evaluate.main(scene, SMALL)
    assert path.stat().st_mtime_ns != stamp


def test_without_ground_truth_there_are_pictures_and_times(scene):
    for folder in (scene.truth_poses_dir, scene.truth_test_dir, scene.truth_mesh.parent):
        shutil.rmtree(folder)
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert HEADLINE_KEYS <= result.keys() and all(result[key] is None for key in HEADLINE_KEYS - {"NAME"})
    assert len(result["stages"]) == 3
    assert (scene.results_dir / "contact_sheet.png").is_file() and (scene.results_dir / "cameras.png").is_file()
    assert any("dataset/data/test/car" in note for note in result["notes"]) and not any(str(scene.root) in note for note in result["notes"])


@pytest.mark.parametrize("type_, mesh, used", [("TINY", None, True), ("OTHER", "1", True), ("OTHER", "2", False), ("OTHER", None, False)])
def test_true_views_of_another_type_are_left_out(truth, tmp_path, type_, mesh, used):
    """data/test has no level for the type: the same name in two types is noticed, the same mesh in two types is fine."""
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    scene, notes = Scene("TINY", "car", 3, tmp_path), []
    write_json(scene.truth_test_dir / "source.json", {"type": type_, "mesh": "1"})
    write_json(scene.train_dir / "render.json", {"mesh": mesh} if mesh else {})
    assert bool(evaluate._true_views(scene, notes)) == used
    assert used or "holds those of another object, OTHER car" in notes[0]


def test_imported_photos_have_no_truth_of_another_object(scene):
    """True views and a mesh of the same name are of an object that was rendered before, or bundled, unless true cameras lie beside the imported photos."""
    write_json(scene.train_dir / "photos.json", {"views": {}})
    evaluate.main(scene, SMALL)
    assert read(scene)["2d_psnr_mean"] == 100 and read(scene)["CD"] < 1e-4  # the user's own truth
    shutil.rmtree(scene.truth_poses_dir)
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert all(result[key] is None for key in HEADLINE_KEYS - {"NAME"}) and result["corrected"].keys() <= {"cameras"}
    assert [note.split(":")[0] for note in result["notes"] if "the photos were imported, without true cameras in dataset/data" in note] == ["no true test views", "no true mesh"]


def test_one_view_and_missing_parts(truth, tmp_path):
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    scene = Scene("TINY", "car", 1, tmp_path)
    write_cameras(scene.initial_cameras, {"000": Camera.from_degrees(12, 0)})
    shutil.copytree(scene.truth_test_dir / "images", scene.nvs_dir / "preds")
    evaluate.main(scene, SMALL)
    result = read(scene)
    assert result["Rotation Error"] is None and result["corrected"]["cameras"]["elevation"] == pytest.approx(12, abs=1e-4)
    assert result["3d_psnr_mean"] is None and result["CD"] is None and result["2d_psnr_mean"] == 100


def test_true_views_that_begin_elsewhere_are_not_compared(truth, tmp_path):
    """Predicted views count azimuths from view 000; where its true azimuth is another one they show the object from other places than the true views."""
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    scene = Scene("TINY", "car", 3, tmp_path)
    predict(scene)
    for name, camera in INPUTS.items():
        np.save(scene.truth_poses_dir / f"{name}.npy", camera.with_azimuth_offset(np.deg2rad(30)).camera_from_world())
    result = results.load_results(evaluate.main(scene, SMALL))
    assert result["2d_psnr_mean"] is None and result["3d_lpips_mean"] is None and result["Rotation Error"] == pytest.approx(0, abs=1e-3)
    assert any("its true azimuth is 30 degrees" in note for note in result["notes"])


def test_true_cameras_of_other_views_are_left_out(truth, tmp_path):
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    scene = Scene("TINY", "car", 3, tmp_path)
    predict(scene)
    for path in list(scene.truth_poses_dir.iterdir()):
        path.rename(path.with_name(f"IMG_{path.name}"))
    result = results.load_results(evaluate.main(scene, SMALL))
    assert result["Rotation Error"] is None and any("has views IMG_000" in note for note in result["notes"])


def test_bad_input_is_one_clear_line(truth, tmp_path):
    shutil.copytree(truth, tmp_path, dirs_exist_ok=True)
    scene = Scene("TINY", "car", 3, tmp_path)
    with pytest.raises(InputError, match="nothing to evaluate"):
        evaluate.main(scene, SMALL)
    predict(scene)
    (scene.nvs_dir / "preds" / "083.png").unlink()
    with pytest.raises(InputError, match="holds 83 of 84 novel views"):
        evaluate.main(scene, SMALL)
    predict(scene)
    for wrong in (np.eye(4), np.full((3, 4), "x"), np.array([{}], dtype=object)):
        np.save(scene.truth_poses_dir / "001.npy", wrong, allow_pickle=True)
        with pytest.raises(InputError, match="001.npy: not a (finite )?3 x 4 pose"):
            evaluate.main(scene, SMALL)
    assert not (scene.results_dir / "record.json").exists()


def test_command_line_prints_figures_beside_the_released_ones(scene, monkeypatch, capsys):
    monkeypatch.setenv("ROOT_DIR", str(scene.root))
    monkeypatch.setattr("sys.argv", ["evaluate", "--type", "TINY", "--object", "car", "--views", "3", "size=40", "device=cpu"])
    evaluate.command_line()
    printed = capsys.readouterr().out
    assert "18.48 / 0.833 / 0.144" in printed and "mean of 17 GSO objects" in printed  # released, 3 views
    assert str(scene.results_dir / "contact_sheet.png") in printed and str(scene.results_dir / "results.json") in printed


# --- report -----------------------------------------------------------------------------------------------------------
def test_report_collects_everything(scene):
    evaluate.main(scene, SMALL)
    write_json(scene.results_dir.parent / "9" / "results.json", "no result")  # is left out
    text = report.write_report(scene.root)
    assert "TINY, 3 views, mean of 1" in text and "SAP3D, 3 views, mean of 17 GSO objects" in text
    row = next(csv.DictReader((scene.root / "results" / "summary.csv").open()))
    assert row["object"] == "car" and float(row["2d_psnr_mean"]) == 100 and float(row["corrected.3d.psnr"]) == 100 and "seconds.3D_Recon" in row
    page = (scene.root / "results" / "index.html").read_text()
    photos, views, renders = 3, 12, 12
    assert page.count("data:image/jpeg;base64,") == photos + views + renders + 2
    text = re.sub(r"base64,[A-Za-z0-9+/=]+|<script type=.text/plain.*?</script>", "", page, flags=re.S)
    assert len(text) < 60_000 and not re.search(r"https?:|//[a-z]|src=[\"']?/|@import|url\(", re.sub(r"// .*", "", text))  # nothing is fetched


def test_report_embeds_mesh_cameras_and_turntable(scene):
    evaluate.main(scene, SMALL)
    scene.mesh_dir.mkdir(parents=True, exist_ok=True)
    (scene.mesh_dir / "model.glb").write_bytes(b"glTF of a mesh")
    (scene.nerf_dir / "save" / "turntable.mp4").write_bytes(b"a video")
    report.write_report(scene.root)
    page = (scene.root / "results" / "index.html").read_text()
    assert base64.b64encode(b"glTF of a mesh").decode() in page and base64.b64encode(b"a video").decode() in page
    cameras = json.loads(html.unescape(re.search('data-cameras="(.*?)"', page)[1]))
    assert [c["name"] for c in cameras] == list(INPUTS)
    for camera, true in zip(cameras, INPUTS.values()):
        centre, right, up = (np.array(camera[key]) for key in ("centre", "right", "up"))
        assert np.allclose(np.cross(right, up), centre / np.linalg.norm(centre), atol=1e-4)  # it looks at the origin, and is not mirrored
        assert np.linalg.norm(centre) == pytest.approx(true.radius, abs=0.2) and np.rad2deg(np.arcsin(centre[2] / np.linalg.norm(centre))) == pytest.approx(true.elevation_deg, abs=15)


def test_report_escapes_what_others_wrote(scene):
    evaluate.main(scene, SMALL)
    path = scene.results_dir / "results.json"
    found = json.loads(path.read_text())
    found[0]["notes"] = ["<script>alert(1)</script>"]
    path.write_text(json.dumps(found))
    report.write_report(scene.root)
    assert "<script>alert" not in (scene.root / "results" / "index.html").read_text()


def test_odd_results_do_not_stop_the_report(tmp_path):
    """Files that are not results, or those of another folder, are left out; what is no number in a result counts as missing."""
    def write(found, type_="T", name="o", views="3"):
        write_json(tmp_path / "results" / type_ / name / views / "results.json", found)

    good = {"type": "T", "NAME": "good", "views": 3, "CD": 0.5, "corrected": {"cameras": {"elevation": 2.0}}, "stages": [{"stage": "nerf", "seconds": 3.0}], "seconds": 3.0}
    write([good], name="good")
    figures = {key: "much" for key in results.FIGURE} | {"CD": True, "IOU": float("nan"), "seconds": "long", "peak_memory_mb": [1], "energy_joules": "?"}
    stages = [{"seconds": 3}, {"stage": "nerf"}, {"stage": "mesh", "seconds": "3", "peak_memory_mb": {}}, 7, {"stage": ["x"], "seconds": 1}]
    groups = {"cameras": {"elevation": "up", "rotation_pairs": 10**400}, "shape": 3}
    write([{"type": "T", "NAME": "odd", "views": 3, "corrected": groups, "stages": stages, "notes": [1, "a note"]} | figures], name="odd")
    write([{"type": "T", "NAME": "none", "views": 3, "corrected": None, "stages": None, "notes": None}], name="none")
    write([{"type": "T", "NAME": "text", "views": 3, "corrected": "x", "stages": {"stage": 1}, "notes": "x"}], name="text")
    for index, wrong in enumerate(({"type": None}, {"type": 3}, {"type": "../T"}, {"NAME": ["o"]}, {"NAME": "other"}, {"views": "3"}, {"views": True}, {"views": 0}, {"views": 3.0}, {"views": 4}, {"type": "U"})):
        write([{"type": "T", "NAME": f"wrong{index}", "views": 3} | wrong], name=f"wrong{index}")
    write([{"NAME": "o"}])
    write([{"type": "T", "NAME": "nested", "views": 3}], name="nested")
    (tmp_path / "results/T/nested/3/results.json").write_text("[" * 100000)

    report.write_report(tmp_path)
    rows = {row["object"]: row for row in csv.DictReader((tmp_path / "results" / "summary.csv").open())}
    assert list(rows) == ["good", "none", "odd", "text"] and rows["good"]["CD"] == "0.5" and rows["good"]["corrected.cameras.elevation"] == "2.0"
    assert all(rows["odd"][key] == "" for key in (*results.FIGURE, "seconds", "corrected.cameras.elevation", "seconds.mesh")) and "energy_joules" not in rows["odd"]
    assert rows["good"]["seconds.nerf"] == "3.0" and "a note" not in (tmp_path / "results" / "summary.md").read_text()
    assert "T, 3 views, mean of 4" in (tmp_path / "results" / "summary.md").read_text()


def test_report_says_when_there_is_nothing(tmp_path):
    with pytest.raises(InputError, match="no results yet"):
        report.write_report(tmp_path)


# --- suite ------------------------------------------------------------------------------------------------------------
# A stage may be any program that writes the same files: this one copies true views, and blurs them unless "sharp".
FOREIGN_STAGE = """
import argparse, pathlib, shutil, sys
import numpy as np
from sap3d.images import load_rgb, resize, save_image
from sap3d.scene import Scene, completion_record, read_cameras, write_cameras
from sap3d.cameras import Camera
parser = argparse.ArgumentParser()
parser.add_argument("--type"); parser.add_argument("--object"); parser.add_argument("--views", type=int)
parser.add_argument("--quick", action="store_true"); parser.add_argument("settings", nargs="*")
a = parser.parse_args()
scene = Scene(a.type, a.object, a.views)
if "fail" in a.settings:
    sys.exit("error: asked to fail")
if not scene.initial_cameras.is_file():
    given = [text.split("=", 1)[1] for text in a.settings if text.startswith("cameras=")]
    write_cameras(scene.initial_cameras, read_cameras(pathlib.Path(given[0])) if given else {f"{k:03d}": Camera.from_degrees(10, 100 * k) for k in range(a.views)})
else:
    with completion_record(scene.nvs_dir / "record.json", "camerabooth", {}, {}):
        for path in (scene.truth_test_dir / "images").glob("*.png"):
            image = load_rgb(path)
            save_image(scene.nvs_dir / "preds" / path.name, image if "sharp" in a.settings else resize(resize(image, 8), 64))
"""
SUITE = """
title: small
type: TINY
objects: [car]
views: [2]
evaluation: [size=40, device=cpu]
variants:
  full: {about: blurred, stages: [relposepp, camerabooth]}
  sharp: {stages: [camerabooth], share_from: full, share: [relposepp], settings: {camerabooth: [sharp]}, views: [2]}
  oracle: {stages: [camerabooth], cameras: "true", views: [2]}
claims:
  - {better: sharp@2, worse: full@2, figures: [2d_psnr_mean, 3d_psnr_mean]}
  - {better: full@2, worse: sharp@2, figures: [2d_lpips_mean]}
"""


@pytest.fixture
def small_suite(truth, tmp_path, monkeypatch):
    shutil.copytree(truth, tmp_path / "root")
    (tmp_path / "foreign_stage.py").write_text(textwrap.dedent(FOREIGN_STAGE))
    (tmp_path / "suites").mkdir()
    (tmp_path / "suites" / "small.yaml").write_text(SUITE)
    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "root"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}:{REPOSITORY}")
    monkeypatch.setattr(suite, "STAGES", {"relposepp": "foreign_stage", "camerabooth": "foreign_stage", "3D_Recon": "foreign_stage"})
    for module in (suite, suite_tables, suite_baselines):
        monkeypatch.setattr(module, "SUITES", tmp_path / "suites", raising=False)
        monkeypatch.setattr(module, "ROWS", tmp_path / "rows")
    return tmp_path


def run_small(**chosen):
    name, loaded = suite.load_suite("small")
    arguments = argparse.Namespace(**({"variants": [], "objects": [], "views": [], "again": False} | chosen))
    return suite.run_suite(name, loaded, arguments), {suite.row_key(row): row for row in suite.load_rows(name)}


def test_new_weights_or_defaults_make_rows_out_of_date(small_suite, capsys, monkeypatch):
    run_small(variants=["full"])
    capsys.readouterr()
    monkeypatch.setattr(suite, "made_by", lambda suite, key: "others")
    _, rows = run_small(variants=["full"])
    assert "measured already" not in capsys.readouterr().out and rows["full", "car", 2]["made_by"] == "others"


def test_a_change_of_the_variant_whose_cameras_are_shared_makes_rows_out_of_date(small_suite, capsys):
    run_small()
    path = small_suite / "suites" / "small.yaml"
    path.write_text(SUITE.replace("about: blurred,", "quick: true,"))
    capsys.readouterr()
    run_small()
    assert capsys.readouterr().out.count("measured already") == 1  # oracle: it shares nothing
    path.write_text(SUITE.replace("size=40", "size=48"))
    run_small()
    assert "measured already" not in capsys.readouterr().out


def test_rows_are_of_default_settings_and_weights(monkeypatch):
    from camerabooth.config import BoothConfig

    def versions():
        return tuple(suite._defaults_and_weights.__wrapped__(frozenset(flags)) for flags in ([False], [True], [False, True]))

    default, quick, both = versions()
    assert versions() == (default, quick, both) and len({default, quick, both}) == 3 and len(default) == 12
    monkeypatch.setattr(BoothConfig, "QUICK", ("steps=7",))
    assert [now == before for now, before in zip(versions(), (default, quick, both))] == [True, False, False]
    monkeypatch.undo()
    monkeypatch.setattr(BoothConfig.__dataclass_fields__["field_steps"], "default", 7)  # which --quick replaces
    assert [now == before for now, before in zip(versions(), (default, quick, both))] == [False, True, False]


def test_suite_runs_shares_resumes_and_renders(small_suite, capsys):
    failures, rows = run_small()
    assert not failures and list(rows) == [("full", "car", 2), ("sharp", "car", 2), ("oracle", "car", 2)]
    assert rows["sharp", "car", 2]["result"]["2d_psnr_mean"] > 60 > 30 > rows["full", "car", 2]["result"]["2d_psnr_mean"]
    shared = [rows[key, "car", 2]["result"]["Rotation Error"] for key in ("full", "sharp")]
    assert shared[0] == shared[1] > 5 and rows["oracle", "car", 2]["result"]["Rotation Error"] == pytest.approx(0, abs=1e-3)
    capsys.readouterr()
    _, again = run_small()
    assert again == rows and capsys.readouterr().out.count("measured already") == 3

    page = suite_tables.write_results_page(small_suite / "results.md").read_text()
    assert re.search(r"\| sharp@2 over full@2 \| \+\d\d\.\d\d, 1 of 1, \*open\* \| - \| - \|", page)  # one object: no interval; no 3D here
    assert re.search(r"\| full@2 over sharp@2 \| - \| \*\*worse\*\* \+0\.\d{4}, 0 of 1, \*open\* \| - \|", page) and "| 2 | *SAP3D, released* | 19 | *17.61* |" in page
    assert str(small_suite) not in page and (small_suite / "rows" / "small.csv").read_text().startswith("variant,")


def test_rows_of_processes_at_work_side_by_side_are_all_kept(small_suite, monkeypatch):
    name, loaded = suite.load_suite("small")
    load = suite.load_rows
    monkeypatch.setattr(suite, "load_rows", lambda name: (load(name), time.sleep(0.02))[0])
    row = lambda k: {"variant": "full", "result": {"type": "TINY", "NAME": f"object {k}", "views": 2}}  # noqa: E731
    with ThreadPoolExecutor(8) as pool:  # flock keeps threads apart as it does processes
        list(pool.map(lambda k: suite.add_row(name, loaded, row(k)), range(8)))
    assert {r["result"]["NAME"] for r in load(name)} == {f"object {k}" for k in range(8)}


def test_the_table_of_camera_steps_compares_stage_1_and_training():
    _, loaded = suite.load_suite("dev-16")

    def row(variant, name, before, after):
        errors = lambda value: {"rotation_pairs": value, "elevation": 1.0, "center_aligned": 0.1} | {f"rotation_pairs_under_{d}": float(value < d) for d in (5, 10, 15, 30)}  # noqa: E731
        stages = [{"stage": "relposepp", "seconds": 7.0}, {"stage": "camerabooth training", "seconds": 20.0}]
        return {"variant": variant, "result": {"NAME": name, "views": 2, "stages": stages, "corrected": {"initial_cameras": errors(before), "cameras": errors(after)}}}

    rows = [row("full", "a", 12.0, 4.0), row("full", "b", 8.0, 3.0), row("base", "a", 12.0, 12.0), row("no_prior", "a", 12.0, 4.0)]
    lines = suite_tables.camera_steps_table(loaded, rows).splitlines()[2:]
    assert [line.split(" | ")[1:6] for line in lines] == [
        ["full", "stage 1", "10.00 / 10.00", "0 / 50 / 100 / 100", "1.0"],
        ["full", "test-time training", "3.50 / 3.50", "100 / 100 / 100 / 100", "1.0"],
        ["base", "stage 1", "12.00 / 12.00", "0 / 0 / 100 / 100", "1.0"],  # which has no training; no_prior has full's cameras
    ]
    assert [line.split(" | ")[7].rstrip(" |") for line in lines] == ["7", "20", "7"] and suite_tables.camera_steps_table(loaded, [{"variant": "full", "result": {"views": 1}}]) == ""


def claim_rows(first, second, key, views=5):
    return [
        {"variant": variant, "result": {"NAME": f"object {index}", "views": views, key: value}}
        for variant, values in (("a", first), ("b", second))
        for index, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    "key, first, second, cell",
    [
        ("3d_psnr_mean", 18.4549, 18.4451, "**equal** +0.01 [+0.01, +0.01], 0 of 2"),
        ("3d_psnr_mean", 18.456, 18.454, "+0.00 [+0.00, +0.00], 2 of 2"),
        ("3d_lpips_mean", 0.16911, 0.16914, "**equal** -0.0000 [-0.0000, -0.0000], 0 of 2"),
        ("3d_lpips_mean", 0.1691, 0.1692, "-0.0001 [-0.0001, -0.0001], 2 of 2"),  # alike in the table of means, which has three digits
        ("3d_lpips_mean", 0.170, 0.169, "**worse** +0.0010 [+0.0010, +0.0010], 0 of 2"),
        ("Rotation Error", 3.0, 4.5, "-1.5 [-1.5, -1.5], 2 of 2"),
        ("IOU", 0.6, 0.7, "**worse** -0.1000 [-0.1000, -0.1000], 0 of 2"),
        ("CD", float("nan"), 0.169, "-"),
        ("Rotation Error", None, 4.5, "-"),
    ],
)  # fmt: skip
def test_claims_are_judged_by_the_printed_digits(key, first, second, cell):
    rows = claim_rows([first] * 2, [second] * 2, key)
    assert suite_claims.claim_cell(suite.Claim("a@5", "b@5", [key]), key, rows) == cell


def test_claims_are_paired_by_object_and_open_where_zero_is_possible():
    """Objects differ by 10 dB, the two sides by 1: only differences of the same object show it."""
    first = [11.0, 21.1, 30.9, 41.0, 50.9]
    rows = claim_rows(first, [value - 1 + 0.1 * (-1) ** k for k, value in enumerate(first)], "3d_psnr_mean")
    claim = suite.Claim("a@5", "b@5", ["3d_psnr_mean"])
    assert re.fullmatch(r"\+0\.98 \[\+0\.9\d, \+1\.0\d\], 5 of 5", suite_claims.claim_cell(claim, "3d_psnr_mean", rows))
    rows[-1]["result"]["NAME"] = "another"  # without a partner
    assert suite_claims.claim_cell(claim, "3d_psnr_mean", rows).endswith("4 of 4")
    rows = claim_rows([11.0, 12.0, 13.0], [10.9, 12.2, 12.8], "3d_psnr_mean")
    assert suite_claims.claim_cell(claim, "3d_psnr_mean", rows).endswith("2 of 3, *open*")
    rows = claim_rows([10.9, 12.2, 12.8], [11.0, 12.3, 12.7], "3d_psnr_mean")
    assert re.fullmatch(r"\*\*worse\*\* -0\.03 .*, 1 of 3, \*open\*", suite_claims.claim_cell(claim, "3d_psnr_mean", rows))
    table = suite_claims.claims_table([claim, suite.Claim("a@5", "c@5", ["CD"])], rows).splitlines()
    assert table[0] == "| claim | 3D PSNR (more is better) | Chamfer (less is better) |" and table[3] == "| a@5 over c@5 | - | - |"


def test_claims_stand_in_parts_with_the_columns_that_each_needs():
    rows = claim_rows([1.0, 2.0], [0.5, 0.6], "CD")
    claims = [suite.Claim("a@5", "b@5", ["CD"]), suite.Claim("b@5", "a@5", ["IOU"], part="The other way round"), suite.Claim("a@5", "c@5", ["CD", "IOU"])]
    lines = suite_claims.claims_section(claims, rows).splitlines()
    start, other = lines.index("| claim | Chamfer (less is better) |"), lines.index("**The other way round**")
    assert lines[0] == suite_claims.LEGEND and start < other and lines[start + 2].startswith("| a@5 over b@5 | **worse** +0.9500")
    assert lines[other + 2].count("|") == 4 and [line.split(" | ")[0] for line in lines[other + 4 :]] == ["| b@5 over a@5", "| a@5 over c@5"]


def test_the_page_begins_with_links_to_its_sections_the_main_suite_first(small_suite):
    for name, extra in (("alpha", ""), ("main", "beside_released: full\n")):
        (small_suite / "suites" / f"{name}.yaml").write_text(f"title: '{name}: a (small) one'\n" + SUITE.replace("title:", "# title:") + extra)
        result = {"NAME": "car", "type": "TINY", "views": 2, "2d_psnr_mean": 20.0}
        suite.store_rows(name, [{"variant": "full", "commit": "", "cores": 2, "finished": "2026-01-01 00:00", "load_before": 0, "result": result}])
    page = suite_tables.write_results_page(small_suite / "results.md").read_text()
    links = re.findall(r"^\* \[(.*)\]\(#(.*)\)$", page, re.MULTILINE)
    assert links[1:3] == [("main: a (small) one", "main-a-small-one"), ("alpha: a (small) one", "alpha-a-small-one")] and links[0][1] == "beside-sap3ds-released-figures"
    assert [heading for heading, _ in links] == re.findall(r"^## (.*)$", page, re.MULTILINE)


def test_rows_of_other_weights_are_marked():
    _, loaded = suite.load_suite("dev-16")

    def row(variant, name, made_by, finished):
        return {"variant": variant, "made_by": made_by, "finished": finished, "result": {"NAME": name, "views": 2, "3d_psnr_mean": 18.0}}

    rows = [row("full", "a", "new", "2026-02-01"), row("full", "b", "new", "2026-02-02"), row("base", "a", "old", "2026-01-01"), row("base", "c", "new", "2026-02-01")]
    lines = suite_tables.means_table(loaded, rows).splitlines()
    assert lines[2].startswith("| 2 | full | 2 |") and lines[3].startswith("| 2 | base † | 2 |")
    claims = [suite.Claim("full@2", "base@2", ["3d_psnr_mean"])]
    assert suite_claims.claims_table(claims, rows).splitlines()[2].startswith("| full@2 over base@2 † |")
    rows[2]["made_by"] = "new"
    for k, quick in enumerate((True, True, False, False)):
        rows[k]["made_from"] = {"lineage": [{"quick": quick}]}
    rows[0]["made_by"] = rows[1]["made_by"] = "new, quick"  # what the others are without --quick
    assert "†" not in suite_claims.claims_table(claims, rows)
    rows[0]["made_by"] = "old, quick"
    assert suite_claims.claims_table(claims, rows).splitlines()[2].startswith("| full@2 over base@2 † |")
    rows[0]["made_by"] = "new, quick"
    assert "†" not in suite_tables.means_table(loaded, rows) + suite_claims.claims_table(claims, rows)


def test_means_are_set_beside_the_released_ones():
    from sap3d.suite_released import released_section

    results = [{"NAME": f"o{k}", "views": 5, "3d_psnr_mean": 25.0 + 0.1 * k, "3d_lpips_mean": 0.2 + 0.1 * (-1) ** k, "CD": 0.030 + 0.001 * k} for k in range(4)]
    rows = [{"variant": "full", "result": result} for result in results]
    loaded = suite.Suite(title="t", type="T", objects=["a"] * 4, views=[1, 5], variants={"full": suite.Variant()}, beside_released="full")
    text = released_section("small", loaded, rows)
    line = next(line for line in text.splitlines() if line.startswith("| 5 |"))
    assert re.search(r"\*\*25\.15 \[25\.0\d, 25\.2\d\]\*\* / 19\.78 \|", line) and re.search(r"\| 0\.200 \[.*\] / 0\.108, \*open\* \|", line)  # better; worse, but it may be chance
    assert text.rstrip().endswith("**: 3D LPIPS with 5 photos (0.200, released 0.108); Chamfer with 5 photos (0.032, released 0.019).") and "| 1 |" not in text
    loaded.beside_released = ""
    assert released_section("small", loaded, rows) == ""


def test_intervals_cover_the_mean_of_new_objects():
    """Of 200 samples of 16 objects about 95 % hold the mean that they were drawn with, whatever the shape of the distribution."""
    generator = np.random.default_rng(1)
    held = [mean_interval(generator.exponential(2.0, 16)).holds(2.0) for _ in range(200)]
    assert 0.85 <= np.mean(held) <= 0.98
    values = generator.normal(5.0, 1.0, 16)
    interval = mean_interval(values)
    assert interval == mean_interval(values) and interval.mean == pytest.approx(values.mean()) and interval.count == 16
    spread = 1.96 * values.std() / 4  # of the mean, as a normal distribution has it
    np.testing.assert_allclose([interval.low, interval.high], [values.mean() - spread, values.mean() + spread], atol=0.08)
    assert mean_interval([]) is None and mean_interval([3.0]).text(1) == "3.0" and mean_interval([3.0]).holds(99.0)


def test_shared_stage_with_settings_is_made_again_and_left_out_stages_leave_nothing(small_suite):
    """Sharing what a setting does not change, and no figures from what an earlier definition of a variant has made."""
    path = small_suite / "suites" / "small.yaml"
    path.write_text(SUITE.replace("share: [relposepp], settings", "share: [relposepp, camerabooth], settings"))
    failures, rows = run_small(variants=["full", "sharp"])
    assert not failures and list(rows["full", "car", 2]["wall_seconds"]) == ["relposepp", "camerabooth", "evaluate"]
    assert list(rows["sharp", "car", 2]["wall_seconds"]) == ["camerabooth", "evaluate"] and rows["sharp", "car", 2]["result"]["2d_psnr_mean"] > 60
    path.write_text(SUITE.replace("sharp: {stages: [camerabooth]", "sharp: {stages: [relposepp]").replace("settings: {camerabooth: [sharp]}, ", ""))
    failures, rows = run_small(variants=["sharp"])
    result = rows["sharp", "car", 2]["result"]
    assert not failures and result["2d_psnr_mean"] is None and result["Rotation Error"] > 5
    assert not (small_suite / "root/.work/suites/small/sharp/camerabooth/experiments_nvs/TINY/car_view_2").exists()


SECOND = SUITE.replace("title: small", "title: second\ntake_from: [small]")


def run_second(**chosen):
    name, loaded = suite.load_suite("second")
    arguments = argparse.Namespace(**({"variants": [], "objects": [], "views": [], "again": False} | chosen))
    return suite.run_suite(name, loaded, arguments), {suite.row_key(row): row for row in suite.load_rows(name)}


def test_suite_takes_rows_of_the_same_settings_from_another(small_suite, capsys, monkeypatch):
    """What was measured counts, and outputs are shared from where they lie; other settings or weights are measured anew."""
    path = small_suite / "suites" / "second.yaml"
    path.write_text(SECOND)
    _, rows = run_small(variants=["full"])
    failures, second = run_second(variants=["full", "sharp"])
    assert not failures and second["full", "car", 2] == rows["full", "car", 2] | {"suite": "second", "taken_from": "small"}
    assert "taken_from" not in second["sharp", "car", 2] and not (small_suite / "root/.work/suites/second/full/results").exists()
    assert second["sharp", "car", 2]["result"]["Rotation Error"] == rows["full", "car", 2]["result"]["Rotation Error"]  # small's cameras
    assert ",taken_from," in (small_suite / "rows" / "second.csv").read_text().splitlines()[0]
    capsys.readouterr()
    assert run_second(variants=["full"])[1] == second and "measured already" in capsys.readouterr().out

    path.write_text(SECOND.replace("[size=40,", "[size=32,"))
    assert suite.taken_row("second", suite.load_suite("second")[1], "full", "car", 2) is None
    path.write_text(SECOND.replace("stages: [relposepp, camerabooth]", "stages: [relposepp, camerabooth], quick: true"))
    changed = suite.load_suite("second")[1]
    assert suite.taken_row("second", changed, "full", "car", 2) is None
    run_small(variants=["sharp"])
    assert suite.taken_row("second", changed, "sharp", "car", 2) is None  # its cameras come from the variant that has changed
    path.write_text(SECOND)
    assert suite.taken_row("second", suite.load_suite("second")[1], "sharp", "car", 2)
    monkeypatch.setattr(suite, "made_by", lambda suite, key: "others")
    assert suite.taken_row("second", suite.load_suite("second")[1], "full", "car", 2) is None
    _, again = run_second(variants=["full"])
    assert again["full", "car", 2]["made_by"] == "others" and "taken_from" not in again["full", "car", 2]


def test_suite_plan_says_what_would_be_run_taken_and_shared(small_suite, capsys, monkeypatch):
    (small_suite / "suites" / "second.yaml").write_text(SECOND)
    run_small(variants=["full"])
    monkeypatch.setattr("sys.argv", ["evaluate", "suite", "second", "--plan"])
    capsys.readouterr()
    evaluate.command_line()
    assert capsys.readouterr().out.splitlines() == [
        "full, car, 2 views: taken from small",
        "sharp, car, 2 views: run camerabooth; relposepp of full given",
        "oracle, car, 2 views: run camerabooth; the true cameras given",
    ]
    run_second(variants=["full"])
    suite.main(["second", "--plan"])
    assert capsys.readouterr().out.count("measured already") == 1 and not (small_suite / "root/.work/suites/second/oracle").exists()
    once = "--variants sharp --objects car --views 2"
    suite.main(f"second --plan {once} --variants oracle --objects car --views 2".split())
    assert [line.split(",")[0] for line in capsys.readouterr().out.splitlines()] == ["sharp", "oracle"]


def test_suite_keeps_going_after_a_failure(small_suite):
    path = small_suite / "suites" / "small.yaml"
    path.write_text(SUITE.replace('cameras: "true"', "settings: {camerabooth: [fail]}"))
    failures, rows = run_small(variants=["sharp", "oracle"])
    assert "no outputs of relposepp for car with 2 views" in failures[0] and "asked to fail" in failures[1] and not rows


@pytest.mark.parametrize(
    "options, message",
    [
        (["--variants", "full", "blunt"], "no variant blunt; it has full, sharp, oracle"),
        (["--objects", "car", "cart"], "no object cart; it has car"),
        (["--views", "2", "5"], "no number of views 5; it has 2, 3"),
        (["--variants", "sharp", "--views", "3"], "no run of these variants, objects and numbers of views together"),
    ],
)
@pytest.mark.parametrize("more", [[], ["--plan"]])
def test_suite_refuses_to_choose_what_it_has_not(small_suite, options, message, more):
    (small_suite / "suites" / "small.yaml").write_text(SUITE.replace("views: [2]\nevaluation", "views: [2, 3]\nevaluation"))
    with pytest.raises(InputError, match=f"suite small has {message}"):
        suite.main(["small", *options, *more])
    assert not (small_suite / "rows").exists()


def test_suite_plans_extra_views_and_restricted_variants(small_suite):
    path = small_suite / "suites" / "small.yaml"
    path.write_text(SUITE.replace("views: [2]\nevaluation", "views: [2]\nmore_views: {car: [1], bus: [3]}\nevaluation"))
    _, loaded = suite.load_suite("small")
    assert suite.plan(loaded) == [("full", "car", 2), ("sharp", "car", 2), ("oracle", "car", 2), ("full", "car", 1), ("full", "bus", 3)]


@pytest.mark.parametrize(
    "old, new, message",
    [
        ("stages: [camerabooth], share_from", "stages: [camerabooths], share_from", "camerabooths, which is not a stage"),
        ("share_from: full", "share_from: later", "name an earlier variant"),
        ('cameras: "true"', "cameras: good", "must be estimated or true"),
        ("title: small", "titel: small", "titel"),
        ("settings: {camerabooth: [sharp]}", "settings: {3D_Recon: [sharp]}", "settings for 3D_Recon, which is not among its stages"),
        ("title: small", "take_from: [smaller]", "smaller, which is not another suite"),
        ("title: small", "take_from: [small]", "small, which is not another suite"),
        ("objects: [car]", "objects: []", "needs type, objects, views and variants"),
    ],
)
def test_suite_refuses_mistakes(small_suite, old, new, message):
    path = small_suite / "suites" / "small.yaml"
    path.write_text(SUITE.replace(old, new))
    with pytest.raises(InputError, match=message):
        suite.load_suite("small")


def test_committed_suites_load_and_sheet_views_are_protocol_views():
    for path in (REPOSITORY / "docs" / "suites").glob("*.yaml"):
        _, loaded = suite.load_suite(str(path))
        assert suite.plan(loaded)
        for variant in loaded.variants.values():
            for stage, settings in variant.settings.items():
                module = importlib.import_module(suite.STAGES[stage].rpartition(".")[0] + ".config")
                config_class = {"relposepp": "RelPoseConfig", "camerabooth": "BoothConfig", "3D_Recon": "ReconConfig"}[stage]
                load_config(getattr(module, config_class), None, settings)  # as the stage would
        named = {text.partition("@")[0] for claim in loaded.claims for text in (claim.better, claim.worse)}
        assert named <= set(loaded.variants) and {key for claim in loaded.claims for key in claim.figures} <= set(results.FIGURE)
    azimuths = [protocol_test_cameras()[name].azimuth_deg for name in SHEET_VIEWS]
    np.testing.assert_allclose(azimuths, np.arange(0, 360, 30))
    assert {round(protocol_test_cameras()[name].elevation_deg) for name in SHEET_VIEWS} == {15, 30, -15, 0, 45, -30}
