"""The textured mesh, rendered from the 84 test cameras and scored like the NeRF's renders: what is lost or won on the way to the mesh.

    python -m benchmarks.mesh_views --type GSO_dev --views 2 5 [--root FOLDER] [--objects ...] [--out docs/results_rows/mesh_views.json]

Reads what finished runs left below --root (a suite's are in .work/suites/NAME/VARIANT) and the true views there, else the bundled ones. Headline metrics
(results/README.md): PSNR pooled over the views, SSIM, LPIPS-AlexNet fed [0, 1], at 256 pixels over white. The mesh is shown unlit.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from sap3d.cameras import FOV_RAD, protocol_test_cameras
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import composite_white, load_rgb
from sap3d.mesh_load import load_mesh
from sap3d.mesh_render import Lighting, render_rgba
from sap3d.metrics.image import score_images
from sap3d.results import markdown_table
from sap3d.scene import Scene, root_dir, write_json

SETS = ("nerf", "mesh")


def score(scene: Scene) -> dict[str, dict[str, float]]:
    """Figures of the NeRF's renders and of the mesh's; raises InputError where one is missing."""
    mesh_path, truth_folder, cameras = scene.mesh_dir / "model.obj", scene.truth_test_dir / "images", protocol_test_cameras()
    if not mesh_path.is_file():
        raise InputError(f"{mesh_path}: no such mesh; run stage 3, or give its folder with --root")
    truth = {name: load_rgb(truth_folder / f"{name}.png") for name in cameras if (truth_folder / f"{name}.png").is_file()}
    if not truth:
        raise InputError(f"{truth_folder}: no true views to compare with")
    images = render_rgba(load_mesh(mesh_path), [cameras[name].camera_from_world() for name in truth], FOV_RAD, 256, lighting=Lighting(1.0, (), ()))
    renders = {name: load_rgb(scene.nerf_dir / "save" / "rgb_pred" / f"{name}.png") for name in truth}
    scores = score_images(truth, {"nerf": renders, "mesh": {name: composite_white(image) for name, image in zip(truth, images)}})
    return {key: {name: float(value) for name, value in scores[key].compat().items()} for key in SETS}


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.mesh_views", description=__doc__.split(":")[0])
    parser.add_argument("--type", required=True)
    parser.add_argument("--views", type=int, nargs="+", default=[5])
    parser.add_argument("--root", type=Path, default=root_dir(), help="where the runs are")
    parser.add_argument("--objects", nargs="+", help="default: all that have a mesh there")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    arguments = parser.parse_args()
    rows, lines = [], []
    for views in arguments.views:
        folder = Scene(arguments.type, "x", views, arguments.root).mesh_dir.parent
        names = arguments.objects or sorted(path.name for path in folder.glob("*") if (path / "model.obj").is_file())
        if not names:
            raise InputError(f"{folder}: no meshes there; give the folder of the runs with --root")
        for name in names:
            found = score(Scene(arguments.type, name, views, arguments.root))
            rows.append({"object": name, "views": views, **found})
            print(json.dumps(rows[-1]), flush=True)
        here = [row for row in rows if row["views"] == views]
        mean = {key: {metric: np.mean([row[key][metric] for row in here]) for metric in here[0][key]} for key in SETS}
        lines.append([str(views), str(len(here)), *(f"{mean[key]['psnr']:.2f} / {mean[key]['ssim']:.3f} / {mean[key]['lpips']:.3f}" for key in SETS)])
    print(markdown_table(["views", "objects", "NeRF: PSNR / SSIM / LPIPS", "mesh"], lines))
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    cli(main)
