"""Stage 1: the first N photos of an object to initial cameras.

    python -m relposepp.run --type GSO_demo --object OBJECT --views 5 [--quick] [key=value ...]

Writes camerabooth/configs/TYPE/config_OBJECT_view_N.yaml and a completion record beside it (relposepp/README.md).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from relposepp.config import RelPoseConfig
from sap3d.cameras import FOV_RAD, Camera
from sap3d.config import as_dict, resolve_device
from sap3d.errors import InputError, cli
from sap3d.images import fields_of_view, load_input_views, turn_photos
from sap3d.scene import Scene, completion_record, read_cameras, stage_complete, write_cameras
from sap3d.stage import run_stage

WEIGHTS = Path(__file__).resolve().parent / "weights"


def main(scene: Scene, config: RelPoseConfig) -> Path:
    """Estimate the cameras of a scene; returns the camera file. Nothing is done when it is there and still valid."""
    check(config)
    output = scene.initial_cameras
    record = output.with_suffix(".record.json")
    photos = load_input_views(scene, turned=False)
    handheld = fields_of_view(scene, list(photos)) if config.aim != "exact" else None
    if config.aim == "free" and handheld is None:
        handheld = [FOV_RAD] * len(photos)
    inputs = {name: _photo_path(scene, name) for name in photos}
    given = read_cameras(Path(config.cameras)) if config.cameras else None
    if given is not None and not set(photos) <= set(given):
        raise InputError(f"{config.cameras}: has no camera for view {min(set(photos) - set(given))}")
    if given is None:
        inputs["weights"] = _weights_folder(config)
        if config.judge and config.rerank:
            inputs["judge"] = WEIGHTS / "judge"
    else:
        inputs["cameras"] = Path(config.cameras)
    for name in photos:
        mask = scene.train_dir / "masks" / f"{name}.png"
        if mask.is_file():
            inputs[f"mask_{name}"] = mask
    if handheld:
        inputs["import"] = scene.train_dir / "photos.json"
    if stage_complete(record, as_dict(config), inputs, [output]):
        return output

    if given is not None:
        with completion_record(record, "relposepp", as_dict(config), inputs):
            _pass_on(scene, {name: given[name] for name in photos}, photos, config)
        return output

    from relposepp.estimate import estimate  # PyTorch is imported only when there is work to do
    from relposepp.network import load_network

    device = resolve_device(config.device)
    network = load_network(config.weights, device, config.precision)  # unusable weights are found before the old record goes
    with completion_record(record, "relposepp", as_dict(config), inputs) as extra:
        result = estimate(list(photos.values()), network, config, device, handheld)
        names = list(photos)
        write_cameras(
            output,
            dict(zip(names, result.cameras)),
            None if result.turn_rad is None else dict(zip(names, result.turn_rad)),
            result.mirror_plane_rad,
            confidence={name: round(float(c), 4) for name, c in zip(names, result.confidence)},
            hypotheses=[_hypothesis_entry(names, h, p) for h, p in zip(result.hypotheses, result.probabilities)],
            checks=result.checks,
        )
        extra["confidence"] = float(np.mean(result.confidence))
    return output


def _pass_on(scene: Scene, cameras: dict[str, Camera], photos: dict[str, np.ndarray], config: RelPoseConfig) -> None:
    """Write given cameras, and how photos are turned against them, as the stage's own, with the object's mirror plane if it has one."""
    from relposepp.estimate import accepted_plane
    from relposepp.symmetry import Symmetry

    images, turns = turn_photos(photos, Path(config.cameras))
    plane, facts = None, {}
    if config.symmetry and len(images) > 1:
        plane, facts = accepted_plane(Symmetry(list(images.values()), [c.fov_rad for c in cameras.values()]), list(cameras.values()))
    write_cameras(scene.initial_cameras, cameras, turns, plane, checks=facts, source=config.cameras)


def check(config: RelPoseConfig) -> None:
    """Raises InputError for a setting that cannot be used."""
    if config.search not in ("look_at", "so3"):
        raise InputError(f"search={config.search!r} is unknown: use look_at or so3")
    if config.aim not in ("auto", "exact", "free"):
        raise InputError(f"aim={config.aim!r} is unknown: use auto, exact or free")
    if config.precision not in ("fp32", "bf16", "fp16"):
        raise InputError(f"precision={config.precision!r} is unknown: use fp32, bf16 or fp16")
    if config.hypotheses < 1 or config.candidates < 1 or config.queries < 100 or config.iterations < 0:
        raise InputError("relposepp needs hypotheses >= 1, candidates >= 1, queries >= 100 and iterations >= 0")
    if config.starts < 100 or config.beam < 4:
        raise InputError("relposepp needs starts >= 100 and beam >= 4")
    low, high = config.elevation_range_deg
    if not (-85 <= low < high <= 85) or not 1 <= config.azimuth_step_deg <= 45 or not 1 <= config.elevation_step_deg <= high - low:
        raise InputError("relposepp needs -85 <= elevation_range_deg <= 85, 1 <= azimuth_step_deg <= 45 and an elevation step within the range")


def _weights_folder(config: RelPoseConfig) -> Path:
    return Path(config.weights) if config.weights else WEIGHTS / "tiny"


def _photo_path(scene: Scene, name: str) -> Path:
    return next(p for p in sorted((scene.train_dir / "images").iterdir()) if p.stem == name)


def _hypothesis_entry(names: list[str], hypothesis, probability: float) -> dict:
    turns = {} if hypothesis.turn_rad is None else {"turn_deg": {n: np.round(np.rad2deg(t), 3).tolist() for n, t in zip(names, hypothesis.turn_rad)}}
    return {
        "score": round(float(hypothesis.score), 4),
        "probability": round(float(probability), 5),
        "elevation_deg": {n: round(float(e), 3) for n, e in zip(names, np.rad2deg(hypothesis.elevation_rad))},
        "azimuth_deg": {n: round(float(a) % 360, 3) for n, a in zip(names, np.rad2deg(hypothesis.azimuth_rad))},
        **turns,
    }


def command_line(argv: list[str] | None = None) -> None:
    run_stage(__doc__.split("\n")[0], RelPoseConfig, main, lambda scene, path: print(path), argv)


if __name__ == "__main__":
    cli(command_line, lower="relpose.starts, relpose.beam or relpose.queries")
