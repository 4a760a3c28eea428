"""The web page: drop photos, look at the masks, start, watch, turn the model, download.

    python -m app [--port 7860] [--home FOLDER] [--gpu 0]

It listens on 127.0.0.1 alone, starts nothing but run_pipeline.sh, and reads and writes below its home folder only (default:
ROOT_DIR/.work/app). Ending it (Ctrl-C) leaves a run that is under way; the next start finds it. requirements-app.txt says how to install it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import threading
from pathlib import Path

from app import check_port, not_installed
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.scene import root_dir


def listen(port: int) -> socket.socket:
    """A socket that listens on 127.0.0.1; InputError when the port cannot be had."""
    try:
        return socket.create_server(("127.0.0.1", port))
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise InputError(f"port {port} is taken: stop the other server, or give --port") from None
        raise InputError(f"port {port} cannot be used ({os.strerror(error.errno)}): give another with --port") from None


def main() -> None:
    parser = ArgumentParser(prog="python -m app", description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=7860, help="port on 127.0.0.1 (default 7860)")
    parser.add_argument("--home", type=Path, help="folder of the runs (default: .work/app below ROOT_DIR or the repository)")
    parser.add_argument("--gpu", default="cpu", help="index of the GPU, or cpu (default)")
    parser.add_argument("--python", default=os.environ.get("PYTHON", ""), help="Python that runs the pipeline (default: PYTHON, or the pipeline's own .venv)")
    args = parser.parse_args()
    check_port(args.port)
    if args.gpu != "cpu" and not args.gpu.isdigit():
        raise InputError(f"--gpu must be an index such as 0, or cpu, got {args.gpu!r}")
    home = (args.home or root_dir() / ".work" / "app").resolve()
    home.mkdir(parents=True, exist_ok=True)
    os.environ |= {"GRADIO_TEMP_DIR": str(home / "uploads"), "GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}  # before gradio is imported
    try:
        import uvicorn

        from app.page import application
    except ModuleNotFoundError as error:
        raise not_installed(error.name) from None
    from app.jobs import Queue, claim

    held = claim(home)  # noqa: F841, open as long as the server lives
    listener = listen(args.port)  # before anything is removed, started or promised
    shutil.rmtree(home / "uploads", ignore_errors=True)  # of an earlier server; runs have copies of their own
    queue = Queue(home, args.python, args.gpu)
    server = uvicorn.Server(uvicorn.Config(application(queue), log_level="warning", timeout_graceful_shutdown=2))
    threading.Thread(target=queue.run_forever, daemon=True).start()
    print(f"SAP3D on http://127.0.0.1:{args.port}, runs in {home}; Ctrl-C ends the page, not a run", flush=True)
    with contextlib.suppress(KeyboardInterrupt):  # raised again once the server has ended
        server.run(sockets=[listener])


if __name__ == "__main__":
    cli(main)
