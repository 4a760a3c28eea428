"""The procedural objects of the training corpus: made from their ids alone, whole, painted, rendered, resumed, split."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from mesh_examples import write_cube

from dataset import corpus, make_splits, procedural, sweethome
from dataset.corpus_reader import PARTS, CorpusReader, split_ids
from dataset.procedural import shapes as sh
from dataset.procedural.paint import Dice, Palette, label
from sap3d import cameras
from sap3d.errors import InputError
from sap3d.mesh_render import MeshRenderer, load_mesh_normalised
from sap3d.scene import write_json

REPOSITORY = Path(__file__).resolve().parent.parent


def fingerprint(mesh) -> str:
    digest = hashlib.sha256()
    for array in (np.round(mesh.vertices, 4) + 0.0, mesh.faces, mesh.face_material, np.round(mesh.corner_uv, 4), *mesh.textures):
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def test_same_id_same_object():
    first = [fingerprint(procedural.load_object(f"procedural__{k:05d}")) for k in range(6)]
    assert first == [fingerprint(procedural.load_object(item.id)) for item in procedural.list_objects(6)]
    assert len(set(first)) == 6


def test_same_object_in_another_process():
    code = "import sys; sys.path.insert(0, 'tests'); from test_dataset_procedural import *; print(fingerprint(procedural.load_object('procedural__00042')))"
    other = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert other.stdout.strip() == fingerprint(procedural.load_object("procedural__00042"))


@pytest.mark.parametrize("family", sorted(procedural.FAMILIES))
def test_every_family_gives_whole_painted_meshes(family):
    painted = 0
    for number in range(12):
        mesh = procedural.load_object(f"procedural__{number:05d}", family)
        used = mesh.vertices[np.unique(mesh.faces)]
        assert np.isfinite(mesh.vertices).all() and 20 < len(mesh.faces) < 60_000
        assert np.ptp(used, axis=0).max() == pytest.approx(1, abs=1e-4)
        assert (used.max(0) + used.min(0)) == pytest.approx([0, 0, 0], abs=1e-4)
        assert mesh.corner_uv.min() >= 0 and mesh.corner_uv.max() <= 1
        assert mesh.face_material.max() < len(mesh.textures) and 0.7 < mesh.corner_colour.min() <= mesh.corner_colour.max() <= 1
        assert all(t.shape[2] == 4 and t.dtype == np.uint8 and max(t.shape) <= 256 for t in mesh.textures)
        painted += any(len(t) > 1 for t in mesh.textures)
    assert painted >= 10
    image = MeshRenderer(mesh).render(cameras.Camera(1.2, 0.5, 1.5).camera_from_world(), size=48)
    assert 0.02 < image[..., 3].mean() < 0.9


def test_families_follow_their_weights_and_ids_are_checked():
    names = [procedural.family_of(item.id) for item in procedural.list_objects(1000)]
    for name, (_, weight) in procedural.FAMILIES.items():
        assert names.count(name) / 1000 == pytest.approx(weight / sum(w for _, w in procedural.FAMILIES.values()), abs=0.04)
    for bad in ("procedural__7", "scopia__box", "procedural__x"):
        with pytest.raises(InputError, match="no id of a procedural object"):
            procedural.load_object(bad)


def test_parts_are_disjoint_and_sized():
    parts = {part: [i.id for i in procedural.list_objects(2400) if procedural.part_of(i.id) == part] for part in PARTS}
    assert {part: len(ids) for part, ids in parts.items()} == {"train": 2260, "validation": 60, "test": 80}
    assert not any(procedural.is_procedural(identifier) for part in PARTS for identifier in split_ids(part))


def test_corpus_of_procedural_objects_is_resumed_and_read(tmp_path, monkeypatch):
    monkeypatch.setattr(
        procedural, "list_objects", lambda count: [procedural.ProceduralObject(f"procedural__{k:05d}") for k in (5, 8, 11)[:count]]
    )
    index = corpus.build(None, tmp_path, workers=1, procedural_count=2)
    assert [record["id"] for record in index["objects"]] == ["procedural__00005", "procedural__00008"]
    assert {record["licence"] for record in index["objects"]} == {"CC0-1.0"} and not index["failed"]
    path = tmp_path / "objects" / "procedural__00005.npz"
    stamp = path.stat().st_mtime_ns
    index = corpus.build(None, tmp_path, workers=1, procedural_count=3)
    assert len(index["objects"]) == 3 and path.stat().st_mtime_ns == stamp
    assert len(corpus.build(None, tmp_path, workers=1, procedural_count=1)["objects"]) == 3  # what is there stays
    for part, name in (("validation", "procedural__00005"), ("train", "procedural__00008"), ("test", "procedural__00011")):
        assert CorpusReader(tmp_path, part, size=32).names == [name]
    reader = CorpusReader(tmp_path, "all", size=64)
    assert reader.images.shape == (3, 24, 64, 64, 4) and (reader.images[..., 3].mean((1, 2, 3)) > 2).all()
    monkeypatch.setattr(procedural, "VERSION", procedural.VERSION + 1)  # another generator: made again
    corpus.build(None, tmp_path, workers=1, procedural_count=1)
    assert path.stat().st_mtime_ns != stamp


class Box(sweethome.CorpusObject):
    def load(self):
        return load_mesh_normalised(write_cube(self.library_path.parent / "cube"))


def test_furniture_and_procedural_objects_share_a_folder(tmp_path, monkeypatch):
    corpus.build(None, tmp_path, workers=1, procedural_count=1)
    box = Box("scopia__box", tmp_path / "Scopia.sh3f", "box.obj", "Box", "", "Somebody", "CC-BY-3.0", None)
    monkeypatch.setattr(sweethome, "find_libraries", lambda *_: [])
    monkeypatch.setattr(sweethome, "list_objects", lambda _: [box])
    index = corpus.build(tmp_path, tmp_path, workers=1)
    assert [record["id"] for record in index["objects"]] == ["procedural__00000", "scopia__box"]
    assert "furniture" in index["source"] and "procedural" in index["source"]


def test_nothing_to_render_is_an_error():
    failed = subprocess.run([sys.executable, "-m", "dataset.corpus"], cwd=REPOSITORY, capture_output=True, text=True)
    assert failed.returncode == 2 and failed.stderr.startswith("error: nothing to render") and failed.stderr.count("\n") == 1


@pytest.mark.parametrize("number", [0, 7, 23])
def test_renderer_of_the_box_gives_the_same_image(number):
    mesh = procedural.load_object(f"procedural__{number:05d}")
    for radius in (1.5, 0.9, 0.4):  # partly outside of the image, and from within
        pose = cameras.Camera(1.0, 2.0, radius).camera_from_world()
        assert corpus.BoxRenderer(mesh).render(pose, size=32) == pytest.approx(MeshRenderer(mesh).render(pose, size=32), abs=1e-5)


def test_split_lists_are_of_the_libraries_only(tmp_path, monkeypatch):
    record = {"name": "x", "author": "y", "licence": "z", "faces": 1, "extent": [1, 1, 1]}
    write_json(tmp_path / "index.json", {"objects": [{"id": "a__b"} | record, {"id": "procedural__00000"} | record]})
    monkeypatch.setattr(sys, "argv", ["make_splits", "--cache", str(tmp_path), "--out", str(tmp_path / "out")])
    make_splits.main()
    assert "procedural" not in "".join(path.read_text() for path in (tmp_path / "out").iterdir())


def test_shapes_keep_their_own_box_when_deformed():
    shape = sh.bend(sh.twist(sh.taper(sh.superquadric(3, 3), 0.4), 40), 30)
    local = np.concatenate([grid.reshape(-1, 3) for grid in shape.local])
    assert local.min(0) == pytest.approx([-1] * 3) and local.max(0) == pytest.approx([1] * 3)
    ring = np.linspace(0, sh.TAU, 33)
    loop = sh.tube(np.stack([np.cos(ring), np.sin(ring), 0.3 * np.sin(2 * ring)], -1), 0.1, closed=True).grids[0]
    assert loop[0] == pytest.approx(loop[-1], abs=1e-6)  # a closed tube closes


def test_labels_have_contrast():
    for seed in range(8):
        dice = Dice(seed)
        picture = label(dice, Palette(dice), 1.5)
        assert picture.shape[2] == 3 and picture.shape[1] > picture.shape[0] and np.ptp(picture) > 0.2
