"""The app in a real headless Chromium: photos in, masks seen, start, progress, reload; nothing leaves 127.0.0.1.

Runs in the app's environment with a chromium on the PATH: .venv-app/bin/python -m pip install pytest pytest-timeout, then
.venv-app/bin/python -m pytest --noconftest tests/test_app_browser.py tests/test_viewer.py. Elsewhere it is skipped. SHOTS=FOLDER keeps screenshots.
"""

import os
import shutil
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
import pytest
from PIL import Image

from tests.app_server import free_port, serve, status_of

pytest.importorskip("gradio", reason="gradio is not installed: requirements-app.txt")
playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
SCRIPT = """
echo "== stage 1 of 3: cameras (RelPose++)"; echo "[relposepp] 3/4  1 s, about 3 s left"
while [ ! -e "$GO" ]; do sleep 0.1; done
mkdir -p "$ROOT_DIR/3D_Recon/threestudio/experiments_APP_mesh_view_$3/$2"; cp "$GLB" "$ROOT_DIR/3D_Recon/threestudio/experiments_APP_mesh_view_$3/$2/model.glb"
"""


@pytest.mark.skipif(not CHROMIUM, reason="no chromium on the PATH")
def test_photos_in_model_out_in_a_browser(tmp_path):
    import trimesh

    home, port = tmp_path / "home", free_port()
    (tmp_path / "script.sh").write_text(SCRIPT)
    box = trimesh.creation.box((1, 0.6, 0.4))
    box.visual.vertex_colors = [200, 60, 40, 255]
    box.export(tmp_path / "model.glb")
    for k in range(3):
        y, x = np.mgrid[:300, :400]
        inside = ((x - 200) / (70 + 20 * k)) ** 2 + ((y - 150) / 80) ** 2 < 1
        Image.fromarray(np.dstack([np.full((300, 400), 60 + 60 * k, np.uint8), *[np.full((300, 400), 90, np.uint8)] * 2, inside * np.uint8(255)])).save(tmp_path / f"p{k}.png")
    shots = Path(os.environ.get("SHOTS", tmp_path))
    address = f"http://127.0.0.1:{port}/"
    server = serve(home, port)
    try:
        with playwright.sync_playwright() as driver:
            browser = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox", "--use-gl=swiftshader", "--enable-unsafe-swiftshader"])
            page = browser.new_page(viewport={"width": 1360, "height": 950})
            page.set_default_timeout(180_000)
            asked = []
            page.on("request", lambda request: asked.append(request.url))
            page.goto(address)
            page.get_by_text("From photos to a model").wait_for()
            page.screenshot(path=shots / "app_empty.png")
            page.set_input_files("#photos input[type=file]", [str(tmp_path / f"p{k}.png") for k in range(3)])
            page.get_by_text("p2").first.wait_for()
            page.click("#find")
            page.locator("img[alt='Photos and masks']").wait_for()
            page.screenshot(path=shots / "app_masks.png")
            page.click("#start")
            page.locator(".title .state.running").wait_for()
            page.locator(".steps li.now").wait_for()
            page.screenshot(path=shots / "app_running.png")
            page.reload()  # a reload shows the same run
            page.locator(".title .state.running").wait_for()
            server.terminate()  # and a new server too, with the pipeline going on meanwhile
            server.wait(60)
            (tmp_path / "go").write_text("")
            server = serve(home, port)
            page.goto(address)
            page.locator(".title .state.done").wait_for()
            frame = page.frame_locator("iframe.model")
            frame.locator("canvas[data-ready=yes]").wait_for()
            pixels = frame.locator("canvas").evaluate("c => { const g = c.getContext('webgl'), p = new Uint8Array(4); g.readPixels(c.width / 2, c.height / 2, 1, 1, g.RGBA, g.UNSIGNED_BYTE, p); return [...p] }")
            assert pixels[3] == 255 and pixels[0] > 100 and pixels[0] > 2 * pixels[2]  # the red box is in the middle
            page.wait_for_timeout(1000)
            page.screenshot(path=shots / "app_done.png")
            assert page.locator(".links a").count() >= 2
            browser.close()
        hosts = {urlsplit(url).hostname for url in asked if urlsplit(url).scheme not in ("data", "blob")}
        assert hosts == {"127.0.0.1"}, hosts
        (run,) = [path for path in home.iterdir() if path.name[:1] == "2"]
        assert status_of(f"{address}runs/{run.name}/model.glb") == 200
        for outside in (f"runs/{run.name}/job.json", f"runs/{run.name}/..%2f..%2fscript.sh", "runs/..%2fhome/log.txt", f"gradio_api/file={tmp_path}/script.sh", "gradio_api/file=/etc/passwd", f"gradio_api/file={run}/job.json"):
            assert status_of(address + outside) in (400, 403, 404), outside
    finally:
        (tmp_path / "go").write_text("")
        server.terminate()
        server.wait(60)
