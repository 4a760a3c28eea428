"""The baseline that runs COLMAP: its text model, errors of pairs, the table; and a real run where the program is installed."""

import json
import shutil

import numpy as np
import pytest
import trimesh
from scipy.spatial.transform import Rotation

from benchmarks import structure_from_motion as sfm
from sap3d import suite_baselines
from sap3d.cameras import OPENCV_FROM_OPENGL, Camera
from sap3d.errors import InputError
from sap3d.images import save_image
from sap3d.mesh_load import RenderMesh
from sap3d.mesh_render import render_rgba
from sap3d.scene import Scene

MODEL = """# Image list with two lines of data per image:
#   IMAGE_ID, QW, QX, QY, QZ, TX, TY, TZ, CAMERA_ID, NAME
#   POINTS2D[] as (X, Y, POINT3D_ID)
# Number of images: 3, mean observations per image: 1
2 0.7071067811865476 0 0 0.7071067811865476 1 2 3 1 001.png
10.5 20.5 7 30 40 -1
1 1 0 0 0 0 0 4 1 000.png

3 0 1 0 0 0 0 5 1 a name.png
1 2 -1
"""


def test_text_model_is_read_with_w_first_and_opencv_axes(tmp_path):
    (tmp_path / "images.txt").write_text(MODEL)
    poses = sfm.registered_poses(tmp_path)
    assert list(poses) == ["001.png", "000.png", "a name.png"]
    quarter_about_z = np.array([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    np.testing.assert_allclose(OPENCV_FROM_OPENGL @ poses["001.png"], np.column_stack([quarter_about_z, [1, 2, 3]]), atol=1e-12)
    np.testing.assert_allclose(poses["000.png"], np.column_stack([np.diag([1, -1, -1]), [0, 0, -4]]), atol=1e-12)  # OpenGL looks along -z


def test_broken_and_missing_models_are_named(tmp_path):
    with pytest.raises(InputError, match="images.txt: no such file"):
        sfm.registered_poses(tmp_path)
    (tmp_path / "images.txt").write_text("1 1 0 0 zero 0 0 4 1 000.png\n\n")
    with pytest.raises(InputError, match="not an image of a COLMAP text model"):
        sfm.registered_poses(tmp_path)


def test_pair_errors_do_not_depend_on_the_world():
    """Another world (turned, moved, scaled) changes nothing; a camera that is turned by 20 degrees is wrong in each of its pairs."""
    truth = {f"{k:03d}": Camera.from_degrees(10 * k, 50 * k).camera_from_world() for k in range(3)}
    world = Rotation.from_rotvec([0.3, -1.0, 0.5]).as_matrix()
    moved = {name: np.column_stack([pose[:, :3] @ world, 2.5 * pose[:, 3] + 1]) for name, pose in truth.items()}
    assert list(sfm.pair_errors(moved, truth)) == ["000 001", "000 002", "001 002"]
    np.testing.assert_allclose(list(sfm.pair_errors(moved, truth).values()), 0, atol=1e-3)
    moved["001"][:, :3] = Rotation.from_rotvec([0, np.deg2rad(20), 0]).as_matrix() @ moved["001"][:, :3]
    np.testing.assert_allclose(list(sfm.pair_errors(moved, truth).values()), [20, 0, 20], atol=1e-3)
    del moved["000"]
    assert list(sfm.pair_errors(moved, truth)) == ["001 002"]  # a photo that is not registered has no pairs


def test_table_counts_failures_and_sets_the_full_method_beside_it():
    def row(name, registered, errors):
        pairs = {str(k): error for k, error in enumerate(errors)}
        return {"object": name, "type": "TINY", "views": 3, "settings": "default", "registered": registered, "rotation_errors_deg": pairs, "seconds": 2.0}

    def ours(name, error, views=3, variant="full", type_="TINY"):
        return {"variant": variant, "result": {"NAME": name, "type": type_, "views": views, "corrected": {"cameras": {"rotation_pairs": error}}}}

    rows = [row("a", ["000", "001", "002"], [1.0, 2.0, 3.0]), row("b", ["000", "001", "002"], [90.0, 1.0, 1.0]), row("c", ["000", "002"], [7.0]), row("d", [], [])]
    suite_rows = [ours("a", 2.0), ours("b", 4.0), ours("e", 99.0), ours("a", 99.0, views=5), ours("a", 99.0, variant="base"), ours("c", 99.0, type_="OTHER")]
    line = suite_baselines.structure_from_motion_table(rows, suite_rows).splitlines()[2]
    assert line == "| 3 | default | 2 of 4 | 1 | 8 of 12 | 15.0 / 2.0 | 2 | 3.0 / 3.0 of 2 objects |"
    assert suite_baselines.structure_from_motion_table(rows[-1:], []).splitlines()[2] == "| 3 | default | 0 of 1 | 0 | 0 of 3 | - | 2 | - |"


def test_section_names_program_and_rows_and_is_empty_without_them(tmp_path, monkeypatch):
    monkeypatch.setattr(suite_baselines, "ROWS", tmp_path)
    assert suite_baselines.structure_from_motion_section([]) == ""
    row = {"object": "a", "type": "TINY", "views": 2, "settings": "default", "registered": [], "rotation_errors_deg": {}, "seconds": 1.0, "program": "COLMAP 3.8"}
    (tmp_path / suite_baselines.STRUCTURE_FROM_MOTION).write_text(json.dumps([row]))
    section = suite_baselines.structure_from_motion_section([])
    assert "COLMAP 3.8 on the first photos of 1 objects" in section and "| 2 | default | 0 of 1 | 0 | 0 of 2 | - | 1 | - |" in section


def test_without_the_program_one_line_says_how_to_install_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("sys.argv", ["structure_from_motion", "--type", "GSO_demo"])
    with pytest.raises(InputError, match="colmap: no such program on PATH; install it .*apt install colmap"):
        sfm.main()


def test_true_poses_are_looked_for_before_colmap_runs(monkeypatch, tmp_path):
    """Bundled objects are found from another root; of an object without true poses one line says so."""
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    monkeypatch.setattr(sfm, "find_colmap", lambda: "colmap")
    for name in ("version", "measure"):
        monkeypatch.setattr(sfm, name, lambda *_: pytest.fail("something was run"))
    for k in range(2):
        save_image(tmp_path / f"dataset/data/train/TINY/box/images/{k:03d}.png", np.full((8, 8, 4), 0.5 + k / 4, np.float32))
    for options, message in ((("TINY",), "TINY: no objects with true poses"), (("TINY", "--objects", "box"), "box/poses/000.npy: no such file; true poses are needed"),
                             (("GSO_demo", "--objects", "teddy_bear", "nobody"), "nobody/images: no such folder")):  # fmt: skip
        monkeypatch.setattr("sys.argv", ["structure_from_motion", "--views", "2", "--type", *options])
        with pytest.raises(InputError, match=message):
            sfm.main()
    measured = []
    monkeypatch.setattr(sfm, "version", lambda program: "COLMAP")
    monkeypatch.setattr(sfm, "measure", lambda program, scene, settings: measured.append(scene.object) or {"registered": [], "rotation_errors_deg": {}, "seconds": 1.0, "object": scene.object,
                                                                                                            "type": scene.type, "views": scene.views, "settings": settings})  # fmt: skip
    monkeypatch.setattr("sys.argv", ["structure_from_motion", "--views", "2", "--type", "GSO_demo", "--settings", "default"])
    sfm.main()
    assert "teddy_bear" in measured


@pytest.fixture
def speckled(tmp_path, monkeypatch):
    """Five photos of a box of random greys, 9 degrees apart, with true poses: what structure from motion is made for."""
    mesh = trimesh.creation.box((1.0, 0.8, 0.6))
    for _ in range(5):
        mesh = mesh.subdivide()
    faces = len(mesh.faces)
    colours = np.repeat(np.random.default_rng(0).uniform(0, 1, (faces, 1, 1)), 3, axis=1) * np.ones(3)
    white = [np.full((1, 1, 4), 255, np.uint8)]
    box = RenderMesh(mesh.vertices.astype(np.float32), mesh.faces.astype(np.int32), np.zeros((faces, 3, 2), np.float32), np.zeros(faces, np.int32), white, colours.astype(np.float32))
    cameras = [Camera.from_degrees(20 + 3 * k, 30 + 9 * k) for k in range(5)]
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    scene = Scene("TINY", "box", 5, tmp_path)
    scene.truth_poses_dir.mkdir(parents=True)
    for k, image in enumerate(render_rgba(box, [camera.camera_from_world() for camera in cameras], size=384)):
        save_image(scene.train_dir / "images" / f"{k:03d}.png", image)
        np.save(scene.truth_poses_dir / f"{k:03d}.npy", cameras[k].camera_from_world())
    return tmp_path


@pytest.mark.skipif(shutil.which("colmap") is None, reason="colmap is not installed")
def test_colmap_places_photos_of_a_speckled_box(speckled, monkeypatch, capsys):
    """All photos, every pair within a degree, in one of three runs: COLMAP's trees for matching are random whatever the seed is, and of some 200 runs one ended in a box turned inside out."""
    out = speckled / "rows.json"
    monkeypatch.setattr("sys.argv", ["structure_from_motion", "--type", "TINY", "--views", "5", "--settings", "default", "--out", str(out)])
    for _ in range(3):
        sfm.main()
        (row,) = json.loads(out.read_text())
        if len(row["registered"]) == 5 and max(row["rotation_errors_deg"].values()) < 1.0:
            break
    assert row["registered"] == [f"{k:03d}" for k in range(5)] and len(row["rotation_errors_deg"]) == 10
    assert max(row["rotation_errors_deg"].values()) < 1.0 and row["program"].startswith("COLMAP ")
    assert "| 5 | default | 1 of 1 | 1 | 5 of 5 |" in capsys.readouterr().out
