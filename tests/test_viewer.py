"""The viewer's geometry and refusals, and the whole scene where viser is installed."""

import subprocess
import sys
import types

import numpy as np
import pytest

from app import viewer
from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.scene import REPOSITORY, Scene, write_cameras


@pytest.mark.parametrize("elevation, azimuth", [(0, 0), (30, 90), (-40, 250), (75, 181)])
def test_the_object_is_in_the_middle_of_every_frustum(elevation, azimuth):
    camera = Camera.from_degrees(elevation, azimuth, 1.7)
    rotation, centre = viewer.pose_of(camera)
    assert np.linalg.det(rotation) == pytest.approx(1) and np.linalg.norm(centre) == pytest.approx(1.7)
    assert np.allclose(rotation[:, 2], -centre / 1.7)  # OpenCV: z looks at the origin
    assert rotation[2, 1] < 0  # and y is down
    w, x, y, z = viewer.quaternion(rotation)
    assert np.allclose([1 - 2 * (y * y + z * z), 2 * (x * y + w * z), 2 * (x * z - w * y)], rotation[:, 0])


def test_without_cameras_it_says_what_to_run(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "app.viewer", "--type", "GSO_demo", "--object", "cactus", "--views", "3"],
        cwd=REPOSITORY, env={"ROOT_DIR": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "run_pipeline.sh GSO_demo cactus 3" in done.stderr


def test_the_port_is_the_servers_own_and_what_is_missing_is_named(tmp_path, monkeypatch, capsys):
    def view(*options):
        monkeypatch.setattr(sys, "argv", ["viewer", "--type", "GSO_demo", "--object", "cactus", "--views", "2", *options])
        viewer.main()

    def asleep(seconds):
        raise KeyboardInterrupt

    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    write_cameras(Scene("GSO_demo", "cactus", 2, tmp_path).initial_cameras, {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90)})
    for port in ("0", "65536"):
        with pytest.raises(InputError, match="--port must be 1 to 65535"):
            view("--port", port)
    monkeypatch.setitem(sys.modules, "viser", None)
    with pytest.raises(InputError, match="viser is not installed.*-m pip install -r requirements-app.txt"):
        view()
    server = types.SimpleNamespace(get_port=lambda: 8081)  # viser takes the next port where one is in use
    monkeypatch.setitem(sys.modules, "viser", types.SimpleNamespace(ViserServer=lambda **options: server))
    monkeypatch.setattr(viewer, "build", lambda server, scene: 2)
    monkeypatch.setattr(viewer.time, "sleep", asleep)
    with pytest.raises(KeyboardInterrupt):
        view("--port", "8080")
    assert "http://127.0.0.1:8081;" in capsys.readouterr().out


def test_everything_is_shown(tmp_path):
    viser = pytest.importorskip("viser", reason="viser is not installed: requirements-app.txt")
    scene = Scene("GSO_demo", "cactus", 2, tmp_path)  # photos are the bundled ones
    views = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(30, 90)}
    write_cameras(scene.initial_cameras, views)
    server = viser.ViserServer(host="127.0.0.1", port=0, verbose=False)
    try:
        assert viewer.build(server, scene) == 2
        write_cameras(scene.refined_cameras, views)
        assert viewer.build(server, scene) == 4
    finally:
        server.stop()
