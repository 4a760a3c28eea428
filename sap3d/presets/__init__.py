"""Presets: one YAML file a preset, one section a stage, under the stage's other settings.

``full``: published weights at 256 pixels on a GPU; ``full-11gb``: the same on a small card; ``tiny``: the bundled small models, the default.
"""

from __future__ import annotations

from pathlib import Path

from sap3d.errors import InputError, first_line
from sap3d.scene import REPOSITORY, root_dir

FOLDER = Path(__file__).resolve().parent
_WEIGHTS = {"zero123": "weights/zero123", "relposepp": "weights/relposepp"}


def preset_names() -> list[str]:
    return sorted(path.stem for path in FOLDER.glob("*.yaml"))


def published_folder(model: str) -> Path:
    """Where converted published weights of ``zero123`` or ``relposepp`` lie: below ROOT_DIR, or the repository where it has none."""
    own, shared = root_dir() / _WEIGHTS[model], REPOSITORY / _WEIGHTS[model]
    return own if own.exists() or not shared.exists() else shared


def preset_settings(name: str, section: str, with_weights: bool = True) -> dict:
    """The settings of one stage (relpose, booth, recon, eval); ``{zero123}`` and ``{relposepp}`` become ``published_folder``.

    with_weights: false leaves those settings out. Raises InputError for an unknown preset, and for weights that are not there.
    """
    settings = dict(_sections(name).get(section) or {})
    for key, value in list(settings.items()):
        model = value[1:-1] if isinstance(value, str) and value.startswith("{") else None
        if model in _WEIGHTS and not with_weights:
            del settings[key]
        elif model in _WEIGHTS:
            folder = published_folder(model)
            if not folder.is_dir():
                raise InputError(f"preset {name}: {folder} is missing; python -m sap3d.weights says where the published weights are and how they get there")
            settings[key] = str(folder)
    return settings


def quick_settings(name: str, section: str) -> list[str] | None:
    """What ``--quick`` changes of a preset's stage, as key=value; None where the preset leaves that to the stage (its ``QUICK``)."""
    settings = (_sections(name).get("quick") or {}).get(section)
    return settings and [f"{key}={value}" for key, value in settings.items()]


def _sections(name: str) -> dict:
    import yaml

    path = FOLDER / f"{name}.yaml"
    if name not in preset_names():
        raise InputError(f"preset {name!r} is unknown; available: {', '.join(preset_names())}")
    try:
        return yaml.safe_load(path.read_text()) or {}
    except yaml.YAMLError as error:
        raise InputError(f"{path}: not valid YAML ({first_line(error)})") from None


def measured_need(preset: str, stage: str) -> float | None:
    """Peak memory in GB of a stage (train, novel_views, sds) at the published size, as benchmarks/full_size.py measured it, or None."""
    import json

    path = FOLDER / "measured.json"
    row = json.loads(path.read_text()).get(f"{preset} {stage}") if path.is_file() else None
    return row["peak_gb"] if row else None
