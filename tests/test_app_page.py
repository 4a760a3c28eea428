"""The app's page and command line: what they refuse. Real where gradio is installed (tests/test_app_browser.py says how to run that), otherwise with stand-ins."""

import importlib
import io
import json
import os
import socket
import subprocess
import sys
import types
import urllib.request
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from app import __main__ as command
from app.jobs import Queue
from sap3d.errors import InputError
from sap3d.scene import REPOSITORY
from tests.app_server import free_port, serve, status_of


# --- without gradio -----------------------------------------------------------------------------------------------------
@pytest.fixture
def page(monkeypatch):
    """app.page with stand-ins for gradio and fastapi, which the pipeline's environment does not have."""
    for name in ("gradio", "fastapi", "fastapi.middleware", "fastapi.middleware.trustedhost", "fastapi.responses"):
        monkeypatch.setitem(sys.modules, name, MagicMock())
    sys.modules["gradio"].Error = type("Error", (Exception,), {"__init__": lambda self, text, **options: Exception.__init__(self, text)})
    monkeypatch.delitem(sys.modules, "app.page", raising=False)
    yield importlib.import_module("app.page")
    sys.modules.pop("app.page", None)


def test_gradio_is_told_to_check_the_paths_that_a_request_names(page):
    page.application(MagicMock())
    (mounted,) = page.gr.mount_gradio_app.call_args_list
    assert mounted.args[1].has_launched is True


def test_a_name_that_is_no_text_is_not_repeated(page, tmp_path):
    page.blocks(Queue(tmp_path, "python3"))
    added = next(call.args[0] for call in page.gr.Button.return_value.click.call_args_list if call.args[0].__name__ == "added")
    for name in ({"path": "/etc/passwd", "meta": {"_type": "gradio.FileData"}}, 5, None):
        with pytest.raises(page.gr.Error, match="^object name '' is not a plain name"):
            added([], name)


@pytest.mark.parametrize(
    "method, headers, foreign",
    [
        ("POST", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860"}, False),
        ("POST", {"host": "localhost:9000", "origin": "http://localhost:9000"}, False),  # the other end of a tunnel
        ("POST", {"host": "127.0.0.1:7860"}, False),  # no browser
        ("GET", {"host": "127.0.0.1:7860", "origin": "http://evil.example"}, False),
        ("POST", {"host": "127.0.0.1:7860", "origin": "http://evil.example"}, True),
        ("POST", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:8000"}, True),
        ("POST", {"host": "127.0.0.1:7860", "origin": "http://127.0.0.1:7860.evil.example"}, True),
        ("POST", {"host": "127.0.0.1:7860", "origin": "null"}, True),
        ("DELETE", {"host": "127.0.0.1:7860", "origin": "http://evil.example"}, True),
    ],
)
def test_only_its_own_page_gives_orders(page, method, headers, foreign):
    assert page.is_foreign(method, headers) is foreign


def test_a_taken_port_is_said_before_anything_starts(tmp_path, monkeypatch, capsys):
    started = []
    for name in ("GRADIO_TEMP_DIR", "GRADIO_ANALYTICS_ENABLED", "HF_HUB_OFFLINE"):  # main sets them
        monkeypatch.setenv(name, os.environ.get(name, ""))
    monkeypatch.setattr("app.jobs.Queue.run_forever", lambda queue: started.append(queue))
    monkeypatch.setitem(sys.modules, "uvicorn", MagicMock())
    monkeypatch.setitem(sys.modules, "app.page", types.SimpleNamespace(application=lambda queue: None))
    (tmp_path / "home" / "uploads").mkdir(parents=True)
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        monkeypatch.setattr(sys, "argv", ["app", "--port", str(port), "--home", str(tmp_path / "home")])
        with pytest.raises(InputError, match=f"^port {port} is taken: stop the other server, or give --port$"):
            command.main()
    assert not started and capsys.readouterr().out == "" and (tmp_path / "home" / "uploads").is_dir()


# --- the real app -------------------------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Address of a real app."""
    pytest.importorskip("gradio", reason="gradio is not installed: requirements-app.txt")
    port = free_port()
    process = serve(tmp_path_factory.mktemp("app") / "home", port)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.wait(60)


def asked(address, data, **headers):
    """What Gradio answers to "Find the object in the photos" with these inputs."""
    config = json.load(urllib.request.urlopen(f"{address}/config", timeout=60))
    number = next(entry["id"] for entry in config["dependencies"] if entry["api_name"] == "added")
    body = {"data": data, "fn_index": number, "session_hash": "test", "event_data": None, "trigger_id": None}
    request = urllib.request.Request(f"{address}/gradio_api/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json", **headers})
    urllib.request.urlopen(request, timeout=60).read()
    with urllib.request.urlopen(f"{address}/gradio_api/queue/data?session_hash=test", timeout=60) as stream:
        for line in stream:
            if line.startswith(b"data:") and json.loads(line[5:])["msg"] == "process_completed":
                return json.loads(line[5:])
    raise AssertionError("it does not answer")


def test_no_file_that_a_request_names_is_taken(server, tmp_path):
    secret = tmp_path / "secret.png"
    secret.write_text("not to be seen")
    named = {"path": str(secret), "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}}
    for data in ([[named], "toy"], [[], named]):
        answer = asked(server, data)
        assert answer["success"] is False and "uploads" not in json.dumps(answer), answer


def test_an_upload_arrives_and_the_second_window_with_it_is_told_that_it_is_gone(server):
    y, x = np.mgrid[:200, :200]
    picture, files = io.BytesIO(), []
    Image.fromarray(np.dstack([*[np.full((200, 200), 90, np.uint8)] * 3, ((x - 100) ** 2 + (y - 100) ** 2 < 70**2) * np.uint8(255)])).save(picture, "png")
    body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\nContent-Type: image/png\r\n\r\n' + picture.getvalue() + b"\r\n--x--\r\n"
    for _ in range(2):
        request = urllib.request.Request(f"{server}/gradio_api/upload", body, {"Content-Type": "multipart/form-data; boundary=x", "Origin": server})
        files.append({"path": json.load(urllib.request.urlopen(request, timeout=60))[0], "orig_name": "a.png", "meta": {"_type": "gradio.FileData"}})
    first, second = (asked(server, [[file], "toy"], Origin=server) for file in files)
    assert first["success"] is True, first
    assert second["success"] is False and "an uploaded photo is gone" in second["output"]["error"], second


def test_other_names_and_other_pages_are_refused(server):
    port = server.rpartition(":")[2]
    for path in ("/", "/config", "/runs/20200101-000000-00000000/log.txt"):
        assert status_of(urllib.request.Request(server + path, headers={"Host": f"evil.example:{port}"})) == 400
    for host in (f"localhost:{port}", "localhost:9000", "[::1]:9000", "127.0.0.1"):  # another port: the other end of a tunnel
        assert status_of(urllib.request.Request(f"{server}/config", headers={"Host": host})) == 200
        for origin, status in ((f"http://{host}", 422), ("http://evil.example", 403), ("null", 403)):  # 422: the body is no request
            headers = {"Host": host, "Origin": origin, "Content-Type": "application/json"}
            assert status_of(urllib.request.Request(f"{server}/gradio_api/queue/join", b"{}", headers)) == status


def test_a_taken_port_is_one_line(tmp_path):
    pytest.importorskip("gradio", reason="gradio is not installed: requirements-app.txt")
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        done = subprocess.run([sys.executable, "-m", "app", "--port", str(port), "--home", str(tmp_path)], cwd=REPOSITORY, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (2, "", f"error: port {port} is taken: stop the other server, or give --port\n")
