"""No stage reads ground truth: true poses, test views or true meshes are opened by the evaluation alone.

Two nets: an audit hook that sees every file that Python opens and every folder it lists while the pipeline runs on a tiny
object that has all of them; and a search of the stages' sources for the names of these places.
"""

import ast
import subprocess
import sys

import pytest

from sap3d.scene import REPOSITORY
from tests.test_imports import reachable
from tests.tiny_scene import OBJECT, TYPE, make_tiny_object, opened, watched

STAGES = ("relposepp.run", "camerabooth.run", "3D_Recon.threestudio.launch")


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_tiny_object(tmp_path_factory.mktemp("root"), views=2)


def test_stages_open_no_ground_truth(undisturbed):
    scene, _, found = undisturbed
    assert scene.truth_mesh.is_file() and scene.truth_test_dir.is_dir() and scene.truth_poses_dir.is_dir()  # there is something to open
    for module in STAGES:
        ((_, paths),) = [entry for entry in found if f"-m {module} " in entry[0]]
        assert paths == []
    assert (scene.mesh_dir / "model.glb").is_file()  # and the stages did run
    ((_, paths),) = [entry for entry in found if "-m sap3d.evaluate " in entry[0]]
    assert any("/poses/" in path for path in paths) and any("/test/" in path for path in paths) and any("model.obj" in path for path in paths)
    assert [name for name, paths in found if paths and "-m sap3d.evaluate " not in name] == []


@pytest.mark.parametrize(
    "violation, place",
    (
        ("import numpy; numpy.load(scene.truth_poses_dir / '000.npy')", "poses/000.npy"),
        ("from PIL import Image; Image.open(scene.truth_test_dir / 'images' / '003.png').load()", "test/box/images/003.png"),
        ("from sap3d.mesh_load import load_mesh; load_mesh(scene.truth_mesh)", "model.obj"),
        ("import os; os.listdir(scene.truth_poses_dir)", "poses"),
        ("list(scene.truth_test_dir.glob('*/*.png'))", "test/box"),
        ("import os; os.chdir(scene.truth_test_dir); open('poses/000.npy', 'rb')", "test/box/poses/000.npy"),
    ),
)
def test_the_hook_sees_violations(scene, violation, place):
    code = f"from sap3d.scene import Scene; scene = Scene({TYPE!r}, {OBJECT!r}, 2); {violation}"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, env=watched(scene), check=True)
    assert any(path.endswith(place) for path in opened(scene)[-1][1])


MEASURING = {"sap3d/evaluate.py", "sap3d/suite.py", "relposepp/evaluate.py", "camerabooth/prior/evaluate.py", "camerabooth/prior/truth.py"}  # programs that measure; no stage can reach them


def mentions(source: str) -> set[str]:
    """Names and strings of a source that lead to ground truth; comments and docstrings do not count."""
    tree = ast.parse(source)
    documentation = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)}
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr in ("truth_poses_dir", "truth_test_dir", "truth_mesh"):
            found.add(node.attr)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in documentation:
            found |= {place for place in ("3d_models", "data/test") if place in node.value}
    return found


def test_sources_name_no_ground_truth():
    for folder in ("sap3d", "relposepp", "camerabooth", "3D_Recon"):
        for path in (REPOSITORY / folder).rglob("*.py"):
            name = str(path.relative_to(REPOSITORY))
            assert name in MEASURING or name == "sap3d/scene.py" or not mentions(path.read_text()), name
    for stage in STAGES:
        assert not {name.removesuffix(".py").replace("/", ".") for name in MEASURING} & reachable(stage)
    assert mentions("x = scene.truth_mesh\ny = root / '3d_models'") == {"truth_mesh", "3d_models"} and not mentions("'''3d_models'''\n# data/test")
