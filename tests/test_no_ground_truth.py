"""No stage reads ground truth: true poses, test views or true meshes are opened by the evaluation alone.

Two nets: an audit hook that sees every file that Python opens and every folder it lists while the stages run on a tiny
object that has all of them; and a search of the stages' sources for the names of these places.
"""

import ast
import json
import os
import subprocess
import sys

import pytest

from sap3d.scene import REPOSITORY
from tests.test_imports import reachable
from tests.tiny_scene import OBJECT, SETTINGS, TYPE, make_tiny_object

STAGES = {"relposepp.run": "relpose", "camerabooth.run": "booth", "3D_Recon.threestudio.launch": "recon"}
WATCH = """
import json, os, sys
from pathlib import Path

places = [Path(place) for place in json.loads(sys.argv[1])]
seen = set()

def watch(event, arguments):
    if event in ("open", "os.listdir", "os.scandir") and isinstance(arguments[0], (str, bytes, os.PathLike)):
        path = Path(os.path.realpath(os.fsdecode(arguments[0])))
        seen.update(str(path) for place in places if path.is_relative_to(place))

sys.addaudithook(watch)
import runpy
for module, arguments in json.loads(sys.argv[2]):
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
VIOLATION
print(json.dumps(sorted(seen)))
"""


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    return make_tiny_object(tmp_path_factory.mktemp("root"), views=2)


def opened(scene, modules=(), violation="") -> list[str]:
    """Ground-truth files and folders that the given command lines (and the code ``violation``) open."""
    places = [str(base.resolve() / part) for base in (scene.root, REPOSITORY) for part in ("dataset/data/test", "dataset/3d_models")]
    places += [str((base / "dataset/data/train" / TYPE / OBJECT / "poses").resolve()) for base in (scene.root, REPOSITORY)]
    runs = [(module, ["--type", TYPE, "--object", OBJECT, "--views", "2", *SETTINGS[prefix]]) for module, prefix in modules]
    command = [sys.executable, "-c", WATCH.replace("VIOLATION", violation), json.dumps(places), json.dumps(runs)]
    done = subprocess.run(command, cwd=REPOSITORY, env={**os.environ, "ROOT_DIR": str(scene.root)}, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.strip().splitlines()[-1])


def test_stages_open_no_ground_truth(scene):
    assert scene.truth_mesh.is_file() and scene.truth_test_dir.is_dir() and scene.truth_poses_dir.is_dir()  # there is something to open
    assert opened(scene, STAGES.items()) == []
    assert (scene.mesh_dir / "model.glb").is_file()  # and the stages did run
    found = opened(scene, [("sap3d.evaluate", "eval")])
    assert any("/poses/" in path for path in found) and any("/test/" in path for path in found) and any("model.obj" in path for path in found)


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
    assert any(path.endswith(place) for path in opened(scene, violation=code))


MEASURING = {"sap3d/evaluate.py", "sap3d/suite.py", "relposepp/evaluate.py"}  # programs that measure; no stage can reach them


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
