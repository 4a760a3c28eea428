"""The data tools: rendering and importing into the GSO layout, the training corpus, the bundled objects."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
from mesh_examples import quadrants, write_cube, write_distributed_object, write_textured_square
from PIL import Image

from dataset import corpus, demo, gso, make_splits, render, sweethome
from dataset.corpus_reader import PARTS, CorpusReader, premultiplied, split_ids
from dataset.mesh_io import save_obj
from dataset.render import RenderSettings, object_folders, protocol_input_cameras, random_input_cameras, render_object
from sap3d.cameras import protocol_test_cameras
from sap3d.errors import InputError
from sap3d.images import composite_white, load_rgba
from sap3d.mesh_render import MeshRenderer, load_mesh_normalised
from sap3d.regularisers import list_regularisers, load_regularisers
from sap3d.scene import read_json

REPOSITORY = Path(__file__).resolve().parent.parent
SMALL = RenderSettings(views=3, input_size=32, test_size=16)


def run_module(*arguments):
    return subprocess.run([sys.executable, "-m", *map(str, arguments)], cwd=REPOSITORY, capture_output=True, text=True)


# --- the protocol and the GSO layout ------------------------------------------------------------------------------------


def test_protocol_input_cameras():
    fourths, elevations = set(), set()
    for name in ("chair", "bus", "mug", "shoe", "plant", "drill"):
        cameras = protocol_input_cameras(name, 8)
        azimuths = [round(camera.azimuth_deg) for camera in cameras.values()]
        assert azimuths[:3] == [0, 90, 270] and azimuths[3] in (135, 180) and azimuths[4] == 225
        assert sorted(azimuths) == list(range(0, 360, 45))
        assert list(cameras) == [f"{k:03d}" for k in range(8)]
        assert protocol_input_cameras(name, 5) == {key: cameras[key] for key in list(cameras)[:5]}
        assert {camera.radius for camera in cameras.values()} == {1.5}
        fourths.add(azimuths[3])
        elevations |= {round(camera.elevation_deg) for camera in cameras.values()}
    assert fourths == {135, 180} and elevations == {0, 30}
    for views in (0, 9):
        with pytest.raises(InputError, match="input views"):
            protocol_input_cameras("chair", views)


def test_random_input_cameras():
    names = [f"object {k}" for k in range(40)]
    cameras = [camera for name in names for camera in random_input_cameras(name, 8).values()]
    elevation, azimuth, radius = np.array([(c.elevation_deg, c.azimuth_deg, c.radius) for c in cameras]).T
    assert (azimuth[::8] == 0).all()  # test views count azimuths from view 000
    others = np.arange(len(azimuth)) % 8 > 0
    for values, low, high in ((elevation, -20, 60), (azimuth[others], 0, 360), (radius, 1.3, 1.8)):
        assert low <= values.min() < low + 0.05 * (high - low) and high - 0.05 * (high - low) < values.max() <= high
    assert np.abs(np.corrcoef([elevation[others], azimuth[others], radius[others]]) - np.eye(3)).max() < 0.2
    chair = random_input_cameras("chair", 8)
    assert list(chair) == [f"{k:03d}" for k in range(8)] and random_input_cameras("chair", 3) == {key: chair[key] for key in list(chair)[:3]}
    assert chair == random_input_cameras("chair", 8) != random_input_cameras("bus", 8)
    for views in (0, 9):
        with pytest.raises(InputError, match="input views"):
            random_input_cameras("chair", views)


def test_random_inputs_are_a_type_of_their_own(tmp_path):
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    random = RenderSettings(views=3, inputs="random", input_size=32, test_size=16)
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) and render_object(mesh, "T_random", "cube", tmp_path, random)
    for type_, settings, cameras in (("T", SMALL, protocol_input_cameras), ("T_random", random, random_input_cameras)):
        train, test, _ = object_folders(tmp_path, type_, "cube")
        for name, camera in cameras("cube", 3).items():
            assert np.load(train / "poses" / f"{name}.npy") == pytest.approx(camera.camera_from_world())
        assert render_object(mesh, type_, "cube", tmp_path, settings) is False
        assert np.load(test / "poses" / "000.npy") == pytest.approx(protocol_test_cameras()["000"].camera_from_world())
    assert "inputs" not in read_json(object_folders(tmp_path, "T", "cube")[0] / "render.json")["settings"]
    assert render_object(mesh, "T_random", "cube", tmp_path, SMALL) is True  # other views are rendered anew


def test_render_object_writes_the_layout_once(tmp_path):
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) is True
    train, test, model = object_folders(tmp_path, "T", "cube")
    assert sorted(p.name for p in (train / "images").iterdir()) == ["000.png", "001.png", "002.png"]
    assert len(list((test / "images").glob("*.png"))) == len(list((test / "poses").glob("*.npy"))) == 84
    image = load_rgba(train / "images" / "000.png")
    assert image.shape == (32, 32, 4) and 0 < image[..., 3].mean() <= 1
    for name, camera in protocol_test_cameras().items():
        assert np.load(test / "poses" / f"{name}.npy") == pytest.approx(camera.camera_from_world())
    stamp = (test / "images" / "000.png").stat().st_mtime_ns
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) is False
    assert (test / "images" / "000.png").stat().st_mtime_ns == stamp
    (test / "images" / "000.png").unlink()
    (train / "render.json").write_text("{")  # damaged
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) is True and (test / "images" / "000.png").is_file()
    assert render_object(mesh, "T", "cube", tmp_path, RenderSettings(views=4, input_size=32, test_size=16)) is True
    again = load_mesh_normalised(model / "meshes" / "model.obj")
    assert again.vertices.max() == pytest.approx(0.5) and len(again.faces) == 12


def test_a_rendering_that_was_killed_is_done_again(tmp_path, monkeypatch):
    """Also with the settings of before it: the true views are of the new ones by then."""
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    other = RenderSettings(views=2, input_size=32, test_size=32)
    train, test, _ = object_folders(tmp_path, "T", "cube")
    render_views = render.render_views

    def killed(renderer, folder, views, size, supersample):
        if len(views) <= 8:  # the input views come last
            raise KeyboardInterrupt
        render_views(renderer, folder, views, size, supersample)

    for before in (None, SMALL):
        if before is not None:
            assert render_object(mesh, "T", "cube", tmp_path, before) is True
        monkeypatch.setattr(render, "render_views", killed)
        with pytest.raises(KeyboardInterrupt):
            render_object(mesh, "T", "cube", tmp_path, other)
        monkeypatch.undo()
    assert load_rgba(test / "images" / "000.png").shape[0] == 32 and load_rgba(train / "images" / "000.png").shape[0] == 32
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) is True
    assert load_rgba(test / "images" / "000.png").shape[0] == 16 and render_object(mesh, "T", "cube", tmp_path, SMALL) is False


@pytest.mark.parametrize("own", ["train/T/cube", "test/cube"])
def test_a_folder_of_others_is_not_replaced(tmp_path, own):
    """One that dataset.photos has made, say, or a user by hand."""
    folder = tmp_path / "dataset/data" / own / "images"
    folder.mkdir(parents=True)
    (folder / "000.png").write_bytes(b"precious")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=f"{own}: was not rendered by this program.*--name"):
        render_object(load_mesh_normalised(write_cube(tmp_path / "source")), "T", "cube", tmp_path, SMALL)
    assert (folder / "000.png").read_bytes() == b"precious" and set(tmp_path.rglob("*")) - set(before) == set((tmp_path / "source").rglob("*")) | {tmp_path / "source"}


def test_one_name_in_two_types(tmp_path):
    """data/test has no level for the type: another mesh of that name is refused, the same mesh is not."""
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    assert render_object(mesh, "T", "cube", tmp_path, SMALL) and render_object(mesh, "U", "cube", tmp_path, SMALL)
    other = load_mesh_normalised(write_cube(tmp_path / "other", scale=(1.0, 0.6, 0.4)))
    with pytest.raises(InputError, match="true views of another object, U cube"):
        render_object(other, "V", "cube", tmp_path, SMALL)
    assert not (tmp_path / "dataset/data/train/V").exists()
    assert render_object(other, "U", "cube", tmp_path, SMALL)  # a new mesh of the same object


def test_names_differ_from_those_in_the_repository_too(tmp_path):
    """What is missing below another root is read in the repository: true views of one name would be mixed up."""
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    with pytest.raises(InputError, match="data/test/teddy_bear: holds the true views of another object, GSO_demo teddy_bear"):
        render_object(mesh, "T", "teddy_bear", tmp_path, SMALL)
    assert not (tmp_path / "dataset").exists()


def test_a_folder_of_others_in_the_repository_is_not_hidden(tmp_path, monkeypatch):
    (tmp_path / "repository/dataset/data/train/T/cube/images").mkdir(parents=True)
    monkeypatch.setattr(render, "REPOSITORY", tmp_path / "repository", raising=False)
    with pytest.raises(InputError, match="repository/dataset/data/train/T/cube: was not rendered by this program"):
        render_object(load_mesh_normalised(write_cube(tmp_path / "source")), "T", "cube", tmp_path / "root", SMALL)
    assert not (tmp_path / "root").exists()


def test_another_mesh_of_the_name_is_said_to_replace_it(tmp_path, capsys):
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    render_object(mesh, "T", "cube", tmp_path, SMALL)
    render_object(mesh, "T", "cube", tmp_path, RenderSettings(views=2, input_size=32, test_size=16))
    assert capsys.readouterr().out == ""
    render_object(load_mesh_normalised(write_cube(tmp_path / "other", scale=(1.0, 0.6, 0.4))), "T", "cube", tmp_path, SMALL)
    assert capsys.readouterr().out == "replaces the earlier cube (another mesh)\n"


def test_bundled_objects_say_whose_their_true_views_are():
    for folder in (REPOSITORY / "dataset/data/train/GSO_demo").glob("*/"):
        if folder.is_dir():
            mesh = read_json(folder / "render.json")["mesh"]
            assert read_json(REPOSITORY / "dataset/data/test" / folder.name / "source.json") == {"type": "GSO_demo", "mesh": mesh}


def test_kept_mesh_looks_like_the_original(tmp_path):
    pose = protocol_test_cameras()["030"].camera_from_world()
    for folder, path in (("a", write_cube(tmp_path / "c")), ("b", write_textured_square(tmp_path / "t", quadrants()))):
        mesh = load_mesh_normalised(path)
        kept = load_mesh_normalised(save_obj(mesh, tmp_path / folder))
        assert MeshRenderer(kept).render(pose, size=48) == pytest.approx(MeshRenderer(mesh).render(pose, size=48), abs=0.02)
    small = load_mesh_normalised(save_obj(mesh, tmp_path / "small", texture_size=16))
    assert max(small.textures[0].shape) == 16


@pytest.mark.parametrize("type_, name", [("T", "../up"), ("a/b", "cube"), ("T", ""), (".hidden", "cube")])
def test_names_with_paths_are_refused(tmp_path, type_, name):
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    with pytest.raises(InputError, match="plain name"):
        render_object(mesh, type_, name, tmp_path / "out", SMALL)
    assert not (tmp_path / "out").exists()


def test_render_command_line(tmp_path):
    path = write_cube(tmp_path / "source")
    options = ["--type", "T", "--name", "box", "--views", 2, "--input-size", 32, "--test-size", 16, "--root", tmp_path]
    first = run_module("dataset.render", path, *options)
    assert first.returncode == 0, first.stderr
    assert len(list((tmp_path / "dataset/data/train/T/box/images").iterdir())) == 2
    assert "already there" in run_module("dataset.render", path, *options).stdout
    for bad in (["none.obj", *options], [path, *options[:4], "--views", 0]):
        failed = run_module("dataset.render", *bad)
        assert failed.returncode == 2 and failed.stderr.startswith("error: ") and failed.stderr.count("\n") == 1


# --- scanned objects ----------------------------------------------------------------------------------------------------


def make_zip(path: Path, folder: Path, extra: dict[str, str] | None = None) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(p for p in folder.rglob("*") if p.is_file()):
            archive.write(file, file.relative_to(folder))
        for name, text in (extra or {}).items():
            archive.writestr(name, text)
    return path


def test_import_of_a_distributed_zip(tmp_path):
    source = make_zip(tmp_path / "My_Scan.zip", write_distributed_object(tmp_path / "scan", quadrants()))
    assert gso.import_object(source, "GSO", tmp_path, SMALL) == ("My_Scan", True)
    assert gso.import_object(source, "GSO", tmp_path, SMALL) == ("My_Scan", False)
    image = load_rgba(tmp_path / "dataset/data/train/GSO/My_Scan/images/000.png")
    upper_left = image[10:14, 10:14][..., :3].reshape(-1, 3).mean(0)
    assert upper_left[0] > 0.6 and upper_left[1:].max() < 0.05  # the texture was found and is upright
    assert (tmp_path / "dataset/3d_models/GSO/My_Scan/meshes/texture_0.png").is_file()


def test_import_of_folders(tmp_path):
    write_textured_square(tmp_path / "plain" / "One", quadrants())
    write_distributed_object(tmp_path / "plain" / "Two", quadrants())
    (tmp_path / "plain" / "notes").mkdir()
    assert [p.name for p in gso.object_sources(tmp_path / "plain")] == ["One", "Two"]
    for source in gso.object_sources(tmp_path / "plain"):
        assert gso.import_object(source, "GSO", tmp_path, SMALL)[1]
    one, two = (tmp_path / f"dataset/data/test/{name}/images/003.png" for name in ("One", "Two"))
    assert one.read_bytes() == two.read_bytes()


def test_material_file_may_be_absent(tmp_path):
    folder = tmp_path / "Bare"
    write_textured_square(folder, quadrants())
    (folder / "model.mtl").unlink()
    gso.import_object(folder, "GSO", tmp_path, SMALL)
    image = load_rgba(tmp_path / "dataset/data/train/GSO/Bare/images/000.png")
    assert image[12, 12, 0] > 0.6 and image[12, 12, 1] < 0.05


@pytest.mark.parametrize("member", ["../outside.txt", "meshes/../../outside.txt", "/outside.txt", "..\\outside.txt", "C:/outside.txt"])
def test_climbing_zip_is_refused(tmp_path, member):
    folder = write_distributed_object(tmp_path / "scan", quadrants())
    (tmp_path / "zips").mkdir()
    source = make_zip(tmp_path / "zips" / "Evil.zip", folder, {member: "x"})
    with pytest.raises(InputError, match="points outside"):
        gso.import_object(source, "GSO", tmp_path, SMALL)
    assert not list(tmp_path.rglob("outside.txt")) and not (tmp_path / "dataset").exists()


def test_zip_with_a_link_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "Link.zip", "w") as archive:
        info = zipfile.ZipInfo("model.obj")
        info.external_attr = 0o120777 << 16
        archive.writestr(info, "/etc/hostname")
    with pytest.raises(InputError, match="points outside"):
        gso.unpack_zip(tmp_path / "Link.zip", tmp_path / "out")


def write_damaged_zip(path):
    """A deflated member with an impossible block type: zlib's own error, before any checksum."""
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model.obj", "v 0 0 0\n" * 1000)
    data = bytearray(path.read_bytes())
    start = 30 + len("model.obj")
    data[start : start + 4] = b"\xff" * 4
    path.write_bytes(data)


def test_one_bad_object_does_not_stop_the_others(tmp_path):
    write_distributed_object(tmp_path / "in" / "Good", quadrants())
    write_distributed_object(tmp_path / "in" / "NoTexture", None)
    (tmp_path / "in" / "Truncated.zip").write_bytes(b"PK\x03\x04 and nothing more")
    broken = write_distributed_object(tmp_path / "in" / "BrokenMesh", quadrants())
    (broken / "meshes" / "model.obj").write_text("mtllib model.mtl\nv 0 0 0\n")
    write_damaged_zip(tmp_path / "in" / "Damaged.zip")
    result = run_module(
        "dataset.gso", tmp_path / "in", "--views", 2, "--input-size", 32, "--test-size", 16, "--root", tmp_path
    )  # fmt: skip
    assert result.returncode == 2 and "1 of 5 objects" in result.stdout
    errors = result.stderr.strip().splitlines()
    assert len(errors) == 4 and all(line.startswith("error: ") for line in errors)
    assert re.search("NoTexture.*texture.png is missing", result.stderr)
    assert re.search("BrokenMesh.*no triangles", result.stderr) and re.search("Truncated.zip.*unpacked", result.stderr)
    assert re.search("Damaged.zip.*unpacked", result.stderr)
    assert (tmp_path / "dataset/data/test/Good/images/083.png").is_file()
    assert not (tmp_path / "dataset/data/test/NoTexture").exists()


def test_two_scans_of_one_name_do_not_replace_each_other(tmp_path):
    for name in ("A B", "A_B", "C"):
        write_distributed_object(tmp_path / "in" / name, quadrants())
    sources = [tmp_path / "in", tmp_path / "in" / "C"]  # C twice: the same scan
    result = run_module("dataset.gso", *sources, "--views", 2, "--input-size", 32, "--test-size", 16, "--root", tmp_path)
    assert result.returncode == 2 and "3 of 4 objects" in result.stdout and "A_B: rendered\nC: rendered\nC: already there\n" in result.stdout
    assert result.stderr == f"error: {tmp_path}/in/A_B: would take the place of {tmp_path}/in/A B, whose name is A_B too; rename one of them and import it again\n"


# --- the corpus ---------------------------------------------------------------------------------------------------------

CATALOGUE = """name=Hand-made
license=whatever
id#1=x
name#1=Caf\\u00e9 box
model#1=/lib/box/box.obj
creator#1=Somebody
category#1=Kitchen
id#2=y
name#2=Broken
model#2=/lib/broken/broken.obj
creator#2=Nobody
id#3=z
name#3=Long box
model#3=/lib/longBox2/longBox2.obj
modelRotation#3=1 0 0 0 0 1 0 -1 0
creator#3=Somebody
"""


@pytest.fixture
def library(tmp_path):
    write_cube(tmp_path / "work/lib/box", stem="box")
    write_cube(tmp_path / "work/lib/longBox2", scale=(1, 2, 3), stem="longBox2")
    (tmp_path / "work/lib/broken").mkdir()
    (tmp_path / "work/lib/broken/broken.obj").write_text("no mesh")
    (tmp_path / "work/PluginFurnitureCatalog.properties").write_text(CATALOGUE, encoding="latin-1")
    (tmp_path / "source").mkdir()
    make_zip(tmp_path / "source" / "Scopia.sh3f", tmp_path / "work")
    return tmp_path / "source"


def test_catalogue_gives_author_and_licence(library, tmp_path):
    items = sweethome.list_objects(sweethome.find_libraries(library, tmp_path))
    assert [item.id for item in items] == ["scopia__box", "scopia__broken", "scopia__longBox2"]
    assert (items[0].name, items[0].author, items[0].licence) == ("Café box", "Somebody", "CC-BY-3.0")
    # The catalogue's rotation takes the file's z to y (up), and y up becomes z up: the longest side stands again.
    assert np.ptp(sweethome.load_object(items[2]).vertices, axis=0) == pytest.approx([1 / 3, 2 / 3, 1], abs=1e-5)


def test_source_without_libraries_is_refused(tmp_path):
    (tmp_path / "x.deb").write_bytes(b"nothing")
    for source in (tmp_path, tmp_path / "none", tmp_path / "x.deb"):
        with pytest.raises(InputError, match="apt-get download"):
            sweethome.find_libraries(source, tmp_path / "unpacked")


def write_deb(path, member, content):
    data = b"!<arch>\n"
    for name, body in (("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), (member, content)):
        data += f"{name:<16}{'0':<12}{'0':<6}{'0':<6}{'100644':<8}{len(body):<10}`\n".encode() + body + b"\n" * (len(body) % 2)
    path.write_bytes(data)


def test_debian_package_is_unpacked(library, tmp_path):
    import io
    import tarfile

    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:xz") as archive:
        archive.add(library / "Scopia.sh3f", "./usr/share/sweethome3d/furniture/Scopia.sh3f")
    write_deb(tmp_path / "p.deb", "data.tar.xz", buffer.getvalue())
    found = sweethome.find_libraries(tmp_path / "p.deb", tmp_path / "unpacked")
    assert found[0].read_bytes() == (library / "Scopia.sh3f").read_bytes()
    # A compression that Python cannot read (zstandard before 3.14), and a download that ended early
    for member, content in (("data.tar.zst", b"\x28\xb5\x2f\xfd" + bytes(600)), ("data.tar.xz", buffer.getvalue()[: len(buffer.getvalue()) // 2])):
        write_deb(tmp_path / "q.deb", member, content)
        with pytest.raises(InputError, match=f"q.deb: its {member} .*dpkg -x"):
            sweethome.find_libraries(tmp_path / "q.deb", tmp_path / "unpacked")


def test_corpus_is_built_resumed_and_read_back(library, tmp_path, capfd):
    out = tmp_path / "cache"
    index = corpus.build(library, out, workers=1)
    assert [record["id"] for record in index["objects"]] == ["scopia__box", "scopia__longBox2"]
    assert list(index["failed"]) == ["scopia__broken"] and "skipped scopia__broken" in capfd.readouterr().err
    path = out / "objects" / "scopia__box.npz"
    stamp, content = path.stat().st_mtime_ns, path.read_bytes()
    corpus.build(library, out, workers=1)
    assert path.stat().st_mtime_ns == stamp
    path.write_bytes(content[:1000])  # a damaged file is rendered again, to the same bytes
    corpus.build(library, out, workers=1)
    with np.load(path) as data:
        assert len(data["offsets"]) == corpus.VIEWS + 1 and int(data["size"]) == corpus.SIZE
    assert path.read_bytes() == content

    reader = CorpusReader(out, "all", size=64)
    assert reader.images.shape == (2, 24, 64, 64, 4) and reader.images.dtype == np.uint8
    assert reader.radius.shape == (2, 24) and (reader.radius[:, ::3] == 1.5).all()
    assert 1.3 <= reader.radius.min() and reader.radius.max() <= 1.8
    elevation = 90 - np.rad2deg(reader.polar_rad)
    assert elevation.min() > -50.1 and elevation.max() < 70.1
    assert (reader.images[..., :3] <= reader.images[..., 3:]).all()
    assert reader.licences == ["CC-BY-3.0"] * 2 and reader.missing == []
    assert isinstance(CorpusReader(out, "all", size=64).images, np.memmap)

    # What is read is what the stored camera sees.
    item = sweethome.list_objects(sweethome.find_libraries(library, tmp_path))[0]
    full = CorpusReader(out, "all", size=128)
    camera = corpus.cameras.Camera(float(full.polar_rad[0, 5]), float(full.azimuth_rad[0, 5]), float(full.radius[0, 5]))
    alpha = MeshRenderer(sweethome.load_object(item)).render(camera.camera_from_world(), size=128)[..., 3]
    assert np.abs(full.images[0, 5, ..., 3] / 255 - alpha).max() < 0.01
    for bad in (lambda: CorpusReader(out, "all", size=50), lambda: CorpusReader(out, "rest"), lambda: CorpusReader(tmp_path / "none")):
        with pytest.raises(InputError):
            bad()
    path.unlink()  # an object of the index without its file
    with pytest.raises(InputError, match="scopia__box.npz: missing or damaged object of the corpus .* run python -m dataset.corpus again"):
        CorpusReader(out, "all", size=64)


def test_webp_keeps_pictures_close():
    import io

    y, x = np.mgrid[:128, :128] / 127
    image = np.stack([x, y, 1 - x, ((x - 0.5) ** 2 + (y - 0.5) ** 2 < 0.16).astype(float)], -1)
    decoded = np.asarray(Image.open(io.BytesIO(corpus.encode_webp(image))).convert("RGBA")) / 255
    error = composite_white(decoded) - composite_white(image)
    assert -10 * np.log10((error**2).mean()) > 35 and (decoded[..., 3] == image[..., 3]).all()


def test_premultiplied_reduction_is_exact_over_white():
    generator = np.random.default_rng(0)
    image = generator.integers(0, 256, (8, 8, 4)).astype(np.uint8)
    small = premultiplied(image, 4)
    white = composite_white(image.astype(np.float64) / 255).reshape(4, 2, 4, 2, 3).mean((1, 3))
    assert (small[..., :3] + (255 - small[..., 3:].astype(int))) / 255 == pytest.approx(white, abs=1.01 / 255)


# --- splits and what is bundled -----------------------------------------------------------------------------------------


def test_committed_splits_are_disjoint_and_sized():
    parts = {part: split_ids(part) for part in PARTS}
    every = [identifier for ids in parts.values() for identifier in ids]
    assert len(every) == len(set(every)) == 820
    assert (len(parts["validation"]), len(parts["test"])) == (41, 80)
    families = {part: {make_splits.family(identifier) for identifier in ids} for part, ids in parts.items()}
    assert not families["train"] & families["test"] and not families["train"] & families["validation"]
    table = (REPOSITORY / "dataset/splits/attribution.csv").read_text().splitlines()
    assert len(table) == 821 and all(line.rsplit(",", 1)[1].startswith(("CC0", "CC-BY")) for line in table[1:])


def test_near_duplicates_stay_together():
    def record(identifier, faces, extent=(1, 0.5, 0.2)):
        return {"id": identifier, "faces": faces, "extent": extent}

    records = [record("a__redChair1", 10), record("a__blue_chair_2", 20), record("b__thing", 20), record("c__other", 30)]
    assert sorted(map(len, make_splits.groups(records))) == [1, 3]
    parts = make_splits.split(records, test_first=("b__thing",))
    assert {"a__redChair1", "a__blue_chair_2", "b__thing"} <= set(parts["test"])


def test_test_objects_are_others_of_the_test_part_and_always_the_same():
    chosen = demo.test_objects(40)
    assert len(set(chosen)) == 40 and set(chosen) <= set(split_ids("test")) - set(demo.DEMO.values()) and chosen == demo.test_objects(40)
    for count in (0, 74):
        with pytest.raises(InputError, match="73 objects"):
            demo.test_objects(count)


@pytest.mark.parametrize("name", sorted(demo.DEMO))
def test_bundled_demo_object(name):
    train, test, model = object_folders(REPOSITORY, demo.TYPE, name)
    cameras = protocol_input_cameras(name, 8)
    for key, camera in cameras.items():
        assert load_rgba(train / "images" / f"{key}.png").shape == (512, 512, 4)
        assert np.load(train / "poses" / f"{key}.npy") == pytest.approx(camera.camera_from_world())
    assert len(list((test / "poses").glob("*.npy"))) == 84
    renderer = MeshRenderer(load_mesh_normalised(model / "meshes" / "model.obj"))
    for key in ("004", "077"):
        stored = load_rgba(test / "images" / f"{key}.png")
        assert stored.shape == (256, 256, 4)
        again = renderer.render(protocol_test_cameras()[key].camera_from_world(), size=256)
        assert np.abs(composite_white(stored) - composite_white(again)).mean() < 0.01  # the mesh is in the poses' frame
    assert demo.DEMO[name] in split_ids("test")


def test_bundled_objects_are_attributed_and_small():
    text = (REPOSITORY / "dataset/data/train" / demo.TYPE / "ATTRIBUTION.md").read_text()
    for name in demo.DEMO:
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} |"))
        assert "CC0-1.0" in row or "CC-BY-3.0" in row
    files = [path for name in demo.DEMO for folder in object_folders(REPOSITORY, demo.TYPE, name) for path in folder.rglob("*")]
    assert sum(path.stat().st_size for path in files if path.is_file()) < 26e6


def test_bundled_regularisers_are_training_objects():
    folder = REPOSITORY / "dataset/data/objaverse"
    with np.load(folder / "regularisers.npz") as pack:
        uids = [str(uid) for uid in pack["uids"]]
    assert len(uids) >= 40 and set(uids) <= set(split_ids("train"))
    assert set(uids) <= set(list_regularisers(folder))
    first = load_regularisers(folder, uids[3:5], size=64)
    assert first[0].uid == uids[3] and first[0].images.shape == (24, 64, 64, 4) and len(first[0].cameras) == 24
    assert first[0].over_white()[:, 0, 0].mean() > 200
    some = load_regularisers(folder, uids[3:5], size=64, views=4)
    assert np.array_equal(some[1].images, first[1].images[::6]) and some[1].cameras == first[1].cameras[::6]
    attribution = (folder / "ATTRIBUTION.md").read_text()
    assert all(f"| {uid} |" in attribution for uid in uids)


def test_regularisers_in_folders_are_read_too(tmp_path):
    mesh = load_mesh_normalised(write_cube(tmp_path / "source"))
    render_object(mesh, "T", "cube", tmp_path, SMALL)
    (tmp_path / "objaverse").mkdir()
    (tmp_path / "dataset/data/test/cube").rename(tmp_path / "objaverse/uid1")
    found = load_regularisers(tmp_path / "objaverse", size=8)
    assert found[0].uid == "uid1" and found[0].images.shape == (84, 8, 8, 4)
    assert found[0].cameras[13].azimuth_deg == pytest.approx(30) and found[0].cameras[13].elevation_deg == pytest.approx(30)
    some = load_regularisers(tmp_path / "objaverse", size=8, views=6)
    assert np.array_equal(some[0].images, found[0].images[::14]) and some[0].cameras == found[0].cameras[::14]
    assert list_regularisers(tmp_path / "none") == []
    with pytest.raises(InputError, match="no regulariser object"):
        load_regularisers(tmp_path / "objaverse", ["uid2"])
    (tmp_path / "objaverse/uid1/poses/000.npy").unlink()
    with pytest.raises(InputError, match="missing"):
        load_regularisers(tmp_path / "objaverse")
    (tmp_path / "objaverse" / "bad.npz").write_bytes(b"zip")
    with pytest.raises(InputError, match="bad.npz"):
        list_regularisers(tmp_path / "objaverse")
