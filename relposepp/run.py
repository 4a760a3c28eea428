"""Stage 1: the first N photos of an object to initial cameras.

    python -m relposepp.run --type GSO_demo --object OBJECT --views 5 [--quick] [key=value ...]

Writes camerabooth/configs/TYPE/config_OBJECT_view_N.yaml and a completion record beside it (relposepp/README.md).
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from relposepp.config import RelPoseConfig
from sap3d.cameras import FOV_RAD, Camera
from sap3d.config import as_dict, resolve_device
from sap3d.errors import cli
from sap3d.images import fields_of_view, input_files, load_input_views, turn_photos
from sap3d.scene import Scene, cameras_of, completion_record, read_confidence, stage_complete, write_cameras
from sap3d.stage import run_stage

WEIGHTS = Path(__file__).resolve().parent / "weights"


def main(scene: Scene, config: RelPoseConfig) -> Path:
    """Estimate the cameras of a scene; returns the camera file. Nothing is done when it is there and still valid."""
    config.check()
    output = scene.initial_cameras
    record = output.with_suffix(".record.json")
    photos = load_input_views(scene, turned=False)
    handheld = fields_of_view(scene, list(photos)) if config.aim != "exact" else None
    if config.aim == "free" and handheld is None:
        handheld = [FOV_RAD] * len(photos)
    inputs = input_files(scene, list(photos))
    given = cameras_of(Path(config.cameras), photos, "give the camera file of these photos, or leave cameras= out") if config.cameras else None
    if given is None:
        inputs |= _weight_files("weights", Path(config.weights) if config.weights else WEIGHTS / "tiny")
        if config.judge and config.rerank:
            inputs |= _weight_files("judge", WEIGHTS / "judge")
    else:
        inputs["cameras"] = Path(config.cameras)
    if handheld:
        inputs["import"] = scene.train_dir / "photos.json"
    if stage_complete(record, as_dict(config), inputs, [output]):
        return output

    idle = {"cameras are given": given, "the photos are taken by hand": handheld, "rerank=false": not config.rerank, "there is one photo": len(photos) < 2}
    reason = next((reason for reason, holds in idle.items() if holds), "")
    if config.taken == "anywhere" and reason:
        print(f"warning: {scene.object}: relpose.taken=anywhere changes nothing here: {reason}", file=sys.stderr)
    if given is not None:
        with completion_record(record, "relposepp", as_dict(config), inputs):
            _pass_on(scene, given, photos, config)
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
        if "outlines_missed" in result.checks:
            missed = f"{result.checks['outlines_missed']:.1%}"
            print(f"warning: {scene.object}: no cameras were found that explain the photos' outlines ({missed} of the object is cut away by another photo); "
                  "look at the masks, and at how the photos were taken (docs/PHOTOS.md)", file=sys.stderr)  # fmt: skip
    return output


def _pass_on(scene: Scene, cameras: dict[str, Camera], photos: dict[str, np.ndarray], config: RelPoseConfig) -> None:
    """Write given cameras, and how photos are turned against them, as the stage's own, with the object's mirror plane if it has one."""
    from relposepp.estimate import accepted_plane
    from relposepp.symmetry import Symmetry

    images, turns = turn_photos(photos, Path(config.cameras))
    plane, facts = None, {}
    if config.symmetry and len(images) > 1:
        plane, facts = accepted_plane(Symmetry(list(images.values()), [c.fov_rad for c in cameras.values()]), list(cameras.values()))
    sure = {name: value for name, value in read_confidence(Path(config.cameras)).items() if name in cameras and value}
    write_cameras(scene.initial_cameras, cameras, turns, plane, checks=facts, source=config.cameras, **({"confidence": sure} if sure else {}))


def _weight_files(name: str, folder: Path) -> dict[str, Path]:
    """What of a folder of weights makes cameras out of date: not its card."""
    return {f"{name} {file}": folder / file for file in ("config.json", "model.safetensors")}


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
