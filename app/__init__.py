"""A web page and a 3D viewer around the pipeline: optional, in an environment of their own (requirements-app.txt)."""

from sap3d.errors import InputError
from sap3d.scene import REPOSITORY


def check_port(port: int) -> int:
    """``port`` if it is one; raises InputError otherwise."""
    if not 1 <= port <= 65535:
        raise InputError(f"--port must be 1 to 65535, got {port}")
    return port


def not_installed(name: str | None) -> InputError:
    """The error of a package that the environment lacks."""
    install = "python3 -m venv .venv-app && .venv-app/bin/python -m pip install -r requirements-app.txt"
    return InputError(f"{name} is not installed in this environment; make the app's own in {REPOSITORY}: {install}, then use .venv-app/bin/python")
