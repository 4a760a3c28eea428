"""The app as a server of its own, for tests in its environment; HOME's neighbour script.sh takes the pipeline's place."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

from sap3d.scene import REPOSITORY


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def serve(home, port):
    code = (
        "import os, sys, threading, uvicorn; from pathlib import Path\n"
        "home, port = Path(sys.argv[1]), int(sys.argv[2])\n"
        "os.environ['GRADIO_TEMP_DIR'] = str(home / 'uploads')\n"
        "from app.jobs import Queue; from app.page import application\n"
        "queue = Queue(home, sys.executable, command=('sh', str(home.parent / 'script.sh')))\n"
        "threading.Thread(target=queue.run_forever, daemon=True).start()\n"
        "uvicorn.run(application(queue), host='127.0.0.1', port=port, log_level='warning', timeout_graceful_shutdown=1)"
    )
    server = subprocess.Popen([sys.executable, "-c", code, str(home), str(port)], cwd=REPOSITORY, env={**os.environ, "GO": str(home.parent / "go"), "GLB": str(home.parent / "model.glb")})
    for _ in range(1200):
        try:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5).read()
            return server
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.25)
    raise AssertionError("the server does not answer")


def status_of(url) -> int:
    try:
        return urllib.request.urlopen(url, timeout=20).status
    except urllib.error.HTTPError as error:
        return error.code
