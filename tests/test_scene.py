"""Scene files: paths, camera files, atomic writes and completion records, also under SIGKILL."""

import errno
import hashlib
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import yaml

from sap3d import scene as scenes
from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.scene import (
    REPOSITORY, Scene, atomic_dir, atomic_path, cameras_of, completion_record, file_hash, objects_by_type, read_cameras, read_confidence, read_json, stage_complete, write_cameras, write_json,
)  # fmt: skip


# --- names and paths --------------------------------------------------------------------------------------------------
def test_paths_of_the_contract(tmp_path):
    scene = Scene("GSO_demo", "cactus", 3, tmp_path)
    assert scene.initial_cameras == tmp_path / "camerabooth/configs/GSO_demo/config_cactus_view_3.yaml"
    assert scene.personal_dir == tmp_path / "camerabooth/experiments_GSO_demo_view_3/cactus"
    assert scene.nvs_dir == tmp_path / "camerabooth/experiments_nvs/GSO_demo/cactus_view_3"
    assert scene.nerf_dir == tmp_path / "3D_Recon/threestudio/experiments_GSO_demo_view_3_nerf/cactus"
    assert scene.mesh_dir == tmp_path / "3D_Recon/threestudio/experiments_GSO_demo_mesh_view_3/cactus"
    assert scene.results_dir == tmp_path / "results/GSO_demo/cactus/3"
    assert scene.train_dir == REPOSITORY / "dataset/data/train/GSO_demo/cactus"  # bundled data is read where it is
    (tmp_path / "dataset/data/train/GSO_demo/cactus").mkdir(parents=True)
    assert scene.train_dir == tmp_path / "dataset/data/train/GSO_demo/cactus"  # the root's own comes first


def test_root_comes_from_the_environment(monkeypatch, tmp_path):
    assert Scene("T", "o", 1).root == REPOSITORY
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    assert Scene("T", "o", 1).root == tmp_path.resolve()


def test_objects_are_those_that_a_scene_finds(tmp_path):
    """Below the root and in the repository: a folder of the root's own stands in for a bundled one of that name."""
    for folder in ("T/o/images", "GSO_demo/mine/images", "GSO_demo/cactus/masks", "T/empty", "T/.o.tmp-12345678/images", ".hidden/o/images"):
        (tmp_path / "dataset/data/train" / folder).mkdir(parents=True)
    bundled = {path.parent.name for path in (REPOSITORY / "dataset/data/train/GSO_demo").glob("*/images")}
    found = objects_by_type(tmp_path)
    assert found["T"] == ["o"] and found["GSO_demo"] == sorted(bundled - {"cactus"} | {"mine"}) and ".hidden" not in found
    assert all((Scene(type_, name, 1, tmp_path).train_dir / "images").is_dir() for type_ in found for name in found[type_])


@pytest.mark.parametrize("name", ("", ".", "..", "a/b", "/a", "../a", "a\\b", "a..b", ".hidden", "-option", "a b", "a\n", "é", "x" * 200, "a\0", "$(x)", None, 3))
def test_names_with_paths_are_refused(name):
    for arguments in ((name, "o"), ("T", name)):
        with pytest.raises(InputError, match="plain name"):
            Scene(*arguments, 2)


@pytest.mark.parametrize("views", (0, -1, 1.5, "2", True, None))
def test_number_of_views(views):
    with pytest.raises(InputError, match="at least 1"):
        Scene("T", "o", views)


# --- camera files -----------------------------------------------------------------------------------------------------
def test_cameras_round_trip(tmp_path):
    generator = np.random.default_rng(0)
    views = {f"{k:03d}": Camera.from_degrees(generator.uniform(-89, 89), generator.uniform(-400, 400), generator.uniform(0.5, 4), generator.uniform(20, 90)) for k in range(9)}
    views = {"view_b": Camera.from_degrees(0, 180), **views, "010": Camera.from_degrees(10, 359.9999999)}
    path = tmp_path / "deep" / "cameras.yaml"
    write_cameras(path, views, confidence={"000": 0.5})
    found = read_cameras(path)
    assert list(found) == list(views)  # names stay text ("010" is no octal number), the order is kept
    for name, camera in views.items():
        assert found[name].center() == pytest.approx(camera.center(), abs=1e-6)
        assert found[name].fov_rad == pytest.approx(camera.fov_rad, abs=1e-7)
        assert 0 <= found[name].azimuth_deg <= 360
    assert yaml.safe_load(path.read_text())["confidence"] == {"000": 0.5}
    assert read_confidence(path) == {name: 0.5 if name == "000" else 0.0 for name in views}


@pytest.mark.parametrize(
    "content",
    (b"", b"views:", b"views: 3", b"views: [1, 2]", b"cameras: {}", b"views: {'000': {elevation_deg: 1}}", b"{", b"\xff\xfe\x00", b"\x89PNG\r\n",
     b"views: {'000': {elevation_deg: x, azimuth_deg: 0, radius: 1, fov_deg: 49}}", b"!!python/object/apply:os.system ['true']"),
)  # fmt: skip
def test_damaged_camera_files(tmp_path, content):
    path = tmp_path / "cameras.yaml"
    path.write_bytes(content)
    with pytest.raises(InputError, match="cameras.yaml"):
        read_cameras(path)


@pytest.mark.parametrize("entry, value", (("radius", 0), ("radius", -1.5), ("radius", ".nan"), ("elevation_deg", ".inf"), ("elevation_deg", 91), ("fov_deg", 0), ("fov_deg", 180), ("azimuth_deg", ".nan")))
def test_impossible_cameras(tmp_path, entry, value):
    numbers = {"elevation_deg": 10, "azimuth_deg": 0, "radius": 1.5, "fov_deg": 49.1, entry: value}
    (tmp_path / "cameras.yaml").write_text("views: {'000': {" + ", ".join(f"{k}: {v}" for k, v in numbers.items()) + "}}")
    with pytest.raises(InputError, match="cameras.yaml"):
        read_cameras(tmp_path / "cameras.yaml")


def test_missing_camera_file(tmp_path):
    with pytest.raises(InputError, match="no such camera file; run the stage that writes it first"):
        read_cameras(tmp_path / "cameras.yaml")
    for read in (lambda path: read_cameras(path, "correct the path"), lambda path: cameras_of(path, ["000"], "correct the path")):
        with pytest.raises(InputError, match="no such camera file; correct the path$"):
            read(tmp_path / "cameras.yaml")


# --- atomic writes ----------------------------------------------------------------------------------------------------
def test_an_error_while_writing_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.json"
    write_json(path, {"a": 1})
    with pytest.raises(RuntimeError), atomic_path(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert read_json(path) == {"a": 1} and os.listdir(tmp_path) == ["file.json"]


def test_an_error_while_writing_leaves_the_old_folder(tmp_path):
    for number in (1, 2):
        with atomic_dir(tmp_path / "out") as folder:
            (folder / f"{number}.txt").write_text(str(number))
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["2.txt"]
    with pytest.raises(RuntimeError), atomic_dir(tmp_path / "out") as folder:
        (folder / "3.txt").write_text("3")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["out"] and (tmp_path / "out/2.txt").is_file()


TEMPORARY = """
import sys, time
from pathlib import Path
from sap3d.scene import atomic_dir, atomic_path
with atomic_path(Path(sys.argv[1]) / "file.json") as file, atomic_dir(Path(sys.argv[1]) / "out") as folder:
    file.write_text("half")
    (folder / "a").mkdir()
    (folder / "a" / "1.txt").write_text("half")
    print("ready", flush=True)
    time.sleep(600)
"""


def test_what_a_kill_leaves_is_removed_and_what_runs_is_not(tmp_path, monkeypatch):
    """By whoever writes the same or another file beside it next, and at the first time only."""
    monkeypatch.setattr(scenes, "_swept", set())
    command = [sys.executable, "-c", TEMPORARY, str(tmp_path)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as dead, subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE) as alive:
        for process in (dead, alive):
            process.stdout.readline()
        (tmp_path / ".mine.tmp-12345678").write_text("a file, not one of ours")
        (tmp_path / ".other").mkdir()
        dead.kill()
        dead.wait()
        before = set(os.listdir(tmp_path))
        assert len(before) == 6  # two temporary folders of each
        write_json(tmp_path / "another.json", 1)
        left = set(os.listdir(tmp_path))
        assert len(left & before) == 4 and "another.json" in left
        for folder in (path for path in tmp_path.glob(".*.tmp-*") if path.is_dir()):
            assert (folder / "file.json").exists() or (folder / "a" / "1.txt").exists()  # what is being written is whole
        alive.kill()
        alive.wait()
    write_json(tmp_path / "another.json", 2)  # this process has looked already
    assert set(os.listdir(tmp_path)) == left
    scenes.remove_leftovers(tmp_path)
    assert set(os.listdir(tmp_path)) == {"another.json", ".mine.tmp-12345678", ".other"}


def test_without_locks_nothing_is_removed(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(scenes.fcntl, "flock", refuse)
    (tmp_path / ".value.json.tmp-abcdefgh").mkdir()
    write_json(tmp_path / "value.json", 1)
    assert sorted(os.listdir(tmp_path)) == [".value.json.tmp-abcdefgh", "value.json"]


def test_two_writers_at_a_time(tmp_path):
    """Each looks for leftovers while the others write: nothing that lives is taken away, nothing is left."""
    code = "import sys; from pathlib import Path; from sap3d import scene\nfor k in range(150): scene._swept.clear(); scene.write_json(Path(sys.argv[1]) / 'value.json', k)"
    writers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=REPOSITORY) for _ in range(3)]
    assert [writer.wait() for writer in writers] == [0, 0, 0]
    assert os.listdir(tmp_path) == ["value.json"] and read_json(tmp_path / "value.json") == 149


def test_json_that_is_none(tmp_path):
    (tmp_path / "half.json").write_text('{"a": ')
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe")
    assert read_json(tmp_path / "half.json") is None and read_json(tmp_path / "binary.json") is None and read_json(tmp_path / "none.json") is None


# --- completion records -----------------------------------------------------------------------------------------------
@pytest.fixture
def stage(tmp_path):
    """A stage that copies its input; returns (run, input, output, record). ``run(config)`` says whether it did anything."""
    source, output, record = tmp_path / "in", tmp_path / "out.txt", tmp_path / "record.json"
    source.mkdir()
    (source / "a.txt").write_text("a")

    def run(config, fail=False):
        if stage_complete(record, config, {"source": source}, [output]):
            return False
        with completion_record(record, "copy", config, {"source": source}) as extra:
            output.write_text((source / "a.txt").read_text())
            extra["note"] = 1
            if fail:
                raise RuntimeError
        return True

    return run, source, output, record


def test_record_matches_only_its_own_configuration_and_inputs(stage):
    run, source, output, record = stage
    config = {"steps": 3, "pair": (1, 2)}
    assert run(config) and not run(config) and not run({"pair": [1, 2], "steps": 3})
    stored = read_json(record)
    assert stored["stage"] == "copy" and stored["note"] == 1 and stored["seconds"] >= 0 and stored["peak_memory_mb"] > 10
    assert stored["versions"]["torch"] and stored["inputs"]["source"] == file_hash(source)
    assert run({"steps": 4, "pair": (1, 2)}) and run(config)
    (source / "a.txt").write_text("b")  # another content
    assert run(config) and output.read_text() == "b" and not run(config)
    (source / "b.txt").write_text("")  # another file
    assert run(config) and not run(config)
    (source / "b.txt").rename(source / "c.txt")  # another name
    assert run(config) and not run(config)
    output.unlink()
    assert run(config) and not run(config)


@pytest.mark.parametrize("damage", ("", "{", "[]", "null", '{"config": {}}', "\0"))
def test_a_damaged_record_means_run_again(stage, damage):
    run, _, _, record = stage
    assert run({"a": 1})
    record.write_text(damage)
    assert run({"a": 1}) and not run({"a": 1})


def test_a_failed_run_leaves_no_record(stage):
    run, _, _, record = stage
    assert run({"a": 1})
    with pytest.raises(RuntimeError):
        run({"a": 2}, fail=True)
    assert not record.exists()  # the outputs may be mixed now, so the old record is gone too
    assert run({"a": 1})


def test_resumed_time_is_added(tmp_path):
    with completion_record(tmp_path / "record.json", "s", {}, {}) as extra:
        extra["resumed_seconds"] = 100.0
    assert 100 <= read_json(tmp_path / "record.json")["seconds"] < 101


KILLED = """
import os, signal, sys
from pathlib import Path
from sap3d.scene import atomic_dir, completion_record, read_json, stage_complete, write_json
root, left = Path(sys.argv[1]), 0

def hook(event, arguments):
    global left
    if left and event in ("open", "os.mkdir", "os.rename", "os.remove", "os.rmdir"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

def write(number):
    with completion_record(root / "record.json", "s", {"number": number}, {}):
        write_json(root / "value.json", [number] * 20000)
        with atomic_dir(root / "folder") as folder:
            for k in range(4):
                (folder / f"{k}.txt").write_text(str(number) * 1000)

def check():
    value, texts, record = None, None, read_json(root / "record.json")
    if (root / "value.json").exists():  # whole, whatever number it is of
        (value,) = set(read_json(root / "value.json"))
    if (root / "folder").exists():
        (texts,) = {(root / "folder" / f"{k}.txt").read_text() for k in range(4)}
    if record is not None:  # a record is there only beside the outputs it was written for
        assert value == record["config"]["number"] and texts == str(value) * 1000
        assert stage_complete(root / "record.json", {"number": value}, {}, []) and not list(root.glob(".*"))

sys.addaudithook(hook)
for number in (1, 2):  # without and with earlier outputs
    moments = 0
    while True:
        child = os.fork()
        if child == 0:
            left = moments + 1
            write(number)
            os._exit(0)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        check()
        if code == 0:
            break
        assert code == -signal.SIGKILL
        moments += 1
    assert read_json(root / "record.json")["config"] == {"number": number}
    assert sorted(os.listdir(root)) == ["folder", "record.json", "value.json"]  # nothing of the kills is left
    print(moments)
"""


def test_killed_at_any_moment(tmp_path):
    """Before every single change of a file or folder, with what the kill before it has left."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(int(moments) > 20 for moments in done.stdout.split())


def test_file_hash_sees_names_and_contents(tmp_path):
    assert file_hash(tmp_path / "none") == "missing"
    (tmp_path / "a").write_text("1")
    first = file_hash(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    assert file_hash(tmp_path) != first and len(first) == 64
    assert scenes.file_hash(tmp_path / "b") == __import__("hashlib").sha256(b"1").hexdigest()


def test_a_file_is_read_once_for_its_hash_until_it_changes(tmp_path, monkeypatch):
    path, read = tmp_path / "weights", []
    digest = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda stream, name: read.append(stream.name) or digest(stream, name))
    path.write_text("1")
    first = file_hash(path)
    assert file_hash(path) == first == file_hash(tmp_path / "." / "weights") and len(read) == 1
    path.write_text("2")
    os.utime(path, ns=(0, 0))  # another time, whatever the clock's steps are
    assert file_hash(path) != first and len(read) == 2


def test_a_record_tells_what_gpus_held(tmp_path, monkeypatch):
    torch = pytest.importorskip("torch")
    record = tmp_path / "record.json"
    with completion_record(record, "s", {}, {}):
        pass
    assert "peak_gpu_memory_mb" not in read_json(record)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda device: (3 + device) * 2**20)
    with completion_record(record, "s", {}, {}):
        pass
    assert read_json(record)["peak_gpu_memory_mb"] == 4
