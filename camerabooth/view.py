"""Novel views at any cameras: ``python -m camerabooth.view --type T --object O --views N --elevation 20 --azimuth 0,45,90``.

Uses what stage 2 has left: the personal model and the refined cameras. Azimuths count from view 000, counter-clockwise
seen from above; radius is in object lengths.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from camerabooth.config import BoothConfig
from sap3d.cameras import RADIUS, Camera
from sap3d.config import add_scene_arguments, load_config
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import contact_sheet, load_input_views, save_image
from sap3d.scene import Scene, read_cameras


def cameras_at(elevation_deg: list[float], azimuth_deg: list[float], radius: list[float]) -> dict[str, Camera]:
    """Cameras by number; a list of one value holds for all. Raises InputError for lists that do not fit or impossible values."""
    count = max(map(len, (elevation_deg, azimuth_deg, radius)))
    if any(len(values) not in (1, count) for values in (elevation_deg, azimuth_deg, radius)):
        raise InputError("--elevation, --azimuth and --radius need the same number of values, or one")
    table = np.stack([np.broadcast_to(values, count) for values in (elevation_deg, azimuth_deg, radius)], 1)
    if not np.isfinite(table).all() or (np.abs(table[:, 0]) > 89.9).any() or (table[:, 2] < 0.9).any() or (table[:, 2] > 10).any():
        raise InputError("elevations must lie in -89.9 .. 89.9 degrees and radii in 0.9 .. 10 object lengths")
    return {f"{k:03d}": Camera.from_degrees(*map(float, row)) for k, row in enumerate(table)}


def render(scene: Scene, targets: dict[str, Camera], config: BoothConfig, out: Path) -> None:
    """Write each target's view as ``out``/NAME.png, and a sheet of all."""
    photos = load_input_views(scene)
    from camerabooth.nvs import conditions, novel_views, personal_model, photo_field
    from sap3d.zero123.photos import photos_over_white

    images, cameras = conditions(photos, scene.refined_cameras, config)
    model = personal_model(scene, config)
    field = photo_field(model, photos, scene.refined_cameras, config)
    views = novel_views(model, photos_over_white(images).to(model.device), cameras, targets, config, field)
    for name, view in views.items():
        save_image(out / f"{name}.png", view)
    names = list(views)
    rows = [names[k : k + 8] for k in range(0, len(names), 8)]
    save_image(out / "contact_sheet.png", contact_sheet([[views[name] for name in row] for row in rows]))


def _numbers(text: str) -> list[float]:
    try:
        return [float(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number, or several with commas between them") from None


def main() -> None:
    parser = ArgumentParser(prog="python -m camerabooth.view", description="Novel views of an object at any cameras, from stage 2's personal model.")
    add_scene_arguments(parser)
    parser.add_argument("--elevation", type=_numbers, default=[15.0], metavar="DEG[,DEG..]", help="degrees; write --elevation=-10,20 when the first is negative (default 15)")
    parser.add_argument("--azimuth", type=_numbers, default=[0.0], metavar="DEG[,DEG..]", help="degrees from view 000, counter-clockwise from above (default 0)")
    parser.add_argument("--radius", type=_numbers, default=[RADIUS], metavar="R[,R..]", help=f"object lengths (default {RADIUS})")
    parser.add_argument("--cameras", type=Path, help="camera file (docs/conventions.md) instead: one view a camera, under its name")
    parser.add_argument("--out", type=Path, help="folder (default: views/ beside the object's results)")
    parser.add_argument("--preset", default="", help="as for the stage")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of stage 2, e.g. nvs_steps=4")
    arguments = parser.parse_args()
    config = load_config(BoothConfig, None, arguments.settings, arguments.preset)
    targets = read_cameras(arguments.cameras, "correct --cameras") if arguments.cameras else cameras_at(arguments.elevation, arguments.azimuth, arguments.radius)
    scene = Scene(arguments.type, arguments.object, arguments.views)
    out = arguments.out or scene.results_dir / "views"
    render(scene, targets, config, out)
    print(f"{len(targets)} views: {out}")


if __name__ == "__main__":
    cli(main, lower="nvs_batch_size")
