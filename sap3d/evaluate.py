"""Measures one reconstructed object and draws it.

    python -m sap3d.evaluate --type GSO_demo --object OBJECT --views 5
    python -m sap3d.evaluate suite NAME     many objects and settings (sap3d/suite.py)

Reads what the stages wrote (novel views, renders, mesh, cameras) and, where it exists, the ground truth: true cameras,
84 test views and the true mesh. Only this program reads ground truth. Whatever is missing is left out and said.

Writes to results/<TYPE>/<OBJECT>/<N>/ (fields in results/README.md)
    results.json        the figures under SAP3D's keys, and the strict ones under "corrected"; stage times and memory
    per_view.csv        image metrics of each of the 84 views
    contact_sheet.png   inputs; true, 2D and 3D views; the mesh
    cameras.png         true, initial and refined cameras
"""

from __future__ import annotations

import csv
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np

from sap3d.cameras import Camera, camera_from_pose, protocol_test_cameras, wrap_to_pi
from sap3d.config import check_limits, resolve_device
from sap3d.errors import InputError, cli
from sap3d.evaluation_pictures import SHEET_VIEWS, silhouette_agreement, write_camera_plot, write_contact_sheet
from sap3d.images import load_input_views, load_rgb, load_rgba
from sap3d.mesh_load import RenderMesh, load_mesh, load_mesh_normalised
from sap3d.metrics import pose, shape
from sap3d.results import load_results, summary_lines
from sap3d.scene import REPOSITORY, Scene, atomic_path, completion_record, read_cameras, read_json, read_pose, stage_complete, write_json
from sap3d.stage import run_stage

FORMAT = 1  # raise when figures change their meaning, so that old results are measured again
FRAME_DEG = 2.0  # true azimuth of view 000 that is still taken to be 0


@dataclass
class EvaluationConfig:
    size: int = 256  # side at which images are compared, pixels (256 is the protocol's)
    device: str = "auto"  # auto, cpu or cuda: where LPIPS runs
    force: bool = False  # measure again even if nothing has changed

    QUICK: ClassVar[tuple[str, ...]] = ()  # evaluation is the same in a quick run

    def check(self) -> None:
        """Raises InputError for a setting that cannot be used."""
        check_limits(self, {"size": (16, 4096)})


def main(scene: Scene, config: EvaluationConfig) -> Path:
    """Evaluate ``scene``; returns the path of results.json. Does nothing when it is up to date."""
    config.check()
    target = scene.results_dir / "results.json"
    record, inputs = scene.results_dir / "record.json", _inputs(scene)
    if not any(inputs[name].exists() for name in ("novel_views", "renders", "mesh", "refined_cameras", "initial_cameras")):
        raise InputError(f"{scene.type} {scene.object} with {scene.views} views: nothing to evaluate below {scene.root}; run the stages first")
    settings = {"size": config.size, "format": FORMAT}
    outputs = [target, scene.results_dir / "contact_sheet.png", scene.results_dir / "per_view.csv"]
    if config.force or not stage_complete(record, settings, inputs, outputs):
        with completion_record(record, "evaluate", settings, inputs):
            _evaluate(scene, config, target)
    return target


def _inputs(scene: Scene) -> dict[str, Path]:
    return {
        "photos": scene.train_dir / "images",
        "novel_views": scene.nvs_dir / "preds",
        "renders": scene.nerf_dir / "save" / "rgb_pred",
        "mesh": scene.mesh_dir / "model.obj",
        "initial_cameras": scene.initial_cameras,
        "refined_cameras": scene.refined_cameras,
        "true_cameras": scene.truth_poses_dir,
        "true_views": scene.truth_test_dir,
        "render_record": scene.train_dir / "render.json",
        "true_mesh": scene.truth_mesh,
        **({"import": scene.train_dir / "photos.json"} if (scene.train_dir / "photos.json").is_file() else {}),
        **{f"record {index}": path for index, path in enumerate(path for path, _ in _stage_records(scene))},
    }


def _evaluate(scene: Scene, config: EvaluationConfig, target: Path) -> None:
    notes: list[str] = []
    photos = load_input_views(scene)
    truth = _true_views(scene, notes)
    sets = {
        "2d": _views_in(scene, scene.nvs_dir / "preds", "novel views", notes),
        "3d": _views_in(scene, scene.nerf_dir / "save" / "rgb_pred", "renders", notes),
    }
    sets = {key: images for key, images in sets.items() if images}
    cameras = {
        label: read_cameras(path)
        for label, path in (("initial", scene.initial_cameras), ("refined", scene.refined_cameras))
        if path.is_file() or notes.append(f"no {label} cameras: {_short(scene, path)} is missing")
    }
    final = cameras.get("refined") or cameras.get("initial") or {}
    true_poses = _true_poses(scene, final, notes)
    mesh = _mesh(scene, notes)

    result: dict = {"NAME": scene.object, "type": scene.type, "views": scene.views}
    corrected: dict = {}
    result.update(dict.fromkeys(["CD", "IOU", "F1_01", "F1_02", "F1_03"]))
    _measure_shape(scene, mesh, final, true_poses, truth, result, corrected, notes)
    if final and true_poses:
        result.update(pose.compat_errors(final, true_poses))
        corrected["cameras"] = pose.corrected_errors(final, true_poses)
        if "refined" in cameras and "initial" in cameras:
            corrected["initial_cameras"] = pose.corrected_errors(cameras["initial"], true_poses)
    else:
        result.update(dict.fromkeys(["Rotation Error", "Elevation", "Azimuth", "Radius"]))
    truth = _in_frame_of_photos(truth, true_poses, notes)
    _measure_images(scene, sets, truth, config, result, corrected)
    timing = ("stage", "seconds", "peak_memory_mb", "peak_gpu_memory_mb", "energy_joules")
    stages = [{key: record[key] for key in timing if key in record} for _, record in _stage_records(scene)]
    result["corrected"] = corrected
    result["stages"] = stages
    result["seconds"] = round(sum(stage["seconds"] for stage in stages), 2)
    result["peak_memory_mb"] = max((stage.get("peak_memory_mb") or 0 for stage in stages), default=0)
    if stages and all("energy_joules" in stage for stage in stages):
        result["energy_joules"] = round(sum(stage["energy_joules"] for stage in stages), 1)
    result["notes"] = notes

    rows = {"true\nviews": truth, "novel views\n(2D)": sets.get("2d"), "renders\n(3D)": sets.get("3d")}
    write_contact_sheet(scene.results_dir / "contact_sheet.png", photos, {label: images for label, images in rows.items() if images}, mesh)
    if cameras:
        true_cameras = {"true": {name: camera_from_pose(p) for name, p in true_poses.items() if name in final}} if true_poses else {}
        write_camera_plot(scene.results_dir / "cameras.png", true_cameras | cameras, f"{scene.type} {scene.object}, {scene.views} views")
    write_json(target, [_finite(result)])


def _measure_images(scene: Scene, sets: dict, truth: dict, config: EvaluationConfig, result: dict, corrected: dict) -> None:
    """Image figures of each set and per_view.csv; None for a set that is missing."""
    scores = {}
    if sets and truth:
        from sap3d.metrics.image import score_images

        scores = score_images(truth, sets, config.size, resolve_device(config.device))
    for key in ("2d", "3d"):
        values = scores[key].compat() if key in scores else dict.fromkeys(("psnr", "ssim", "lpips"))
        result.update({f"{key}_{metric}_mean": value for metric, value in values.items()})
        if key in scores:
            corrected[key] = scores[key].corrected()
    protocol = protocol_test_cameras()
    columns = ["set", "view", "elevation_deg", "azimuth_deg", "psnr", "ssim", "lpips_compat", "lpips"]
    with atomic_path(scene.results_dir / "per_view.csv") as temporary, open(temporary, "w", newline="") as stream:
        writer = csv.DictWriter(stream, columns, lineterminator="\n")
        writer.writeheader()
        for key, score in scores.items():
            for row in score.rows():
                camera = protocol[row["view"]]
                writer.writerow({"set": key, "elevation_deg": round(camera.elevation_deg), "azimuth_deg": round(camera.azimuth_deg), **row})


def _measure_shape(scene, mesh, final, true_poses, truth, result, corrected, notes) -> None:
    """Shape figures: as it stands but for view 0's azimuth (compat), and after alignment by the cameras (corrected)."""
    lacking = _without_truth(scene) or ("" if scene.truth_mesh.is_file() else f"{_short(scene, scene.truth_mesh)} is missing")
    if mesh is None or lacking:
        if mesh is not None:
            notes.append(f"no true mesh: {lacking}")
        return
    true_mesh = load_mesh_normalised(scene.truth_mesh)
    if truth:
        alphas = {name: load_rgba(scene.truth_test_dir / "images" / f"{name}.png")[..., 3] for name in SHEET_VIEWS[:3] if name in truth}
        agreement = silhouette_agreement(true_mesh, alphas) if alphas else 1.0
        if agreement < 0.9:
            notes.append(f"the true mesh and the true views disagree (silhouette IoU {agreement:.2f}): shape figures mean little")
    turn = 0.0
    first = next(iter(final), None)
    if first is not None and first in true_poses:
        turn = float(wrap_to_pi(camera_from_pose(true_poses[first]).azimuth_rad - final[first].azimuth_rad))
    reference = (true_mesh.vertices, true_mesh.faces)
    scores = shape.score_shape((shape.rotate_about_up(mesh.vertices, turn), mesh.faces), reference)
    result.update(CD=scores.chamfer, IOU=scores.iou, F1_01=scores.f_scores[0], F1_02=scores.f_scores[1], F1_03=scores.f_scores[2])
    if first is not None and true_poses:
        alignment = pose.align_cameras(final, true_poses)
        scores = shape.score_shape((alignment.apply(mesh.vertices), mesh.faces), reference, shape.all_round_views())
        f_scores = {f"f_{threshold}": score for threshold, score in zip(shape.F_THRESHOLDS, scores.f_scores)}
        corrected["shape"] = {"chamfer": scores.chamfer, "iou": scores.iou, **f_scores, "scale": alignment.scale}


def _without_truth(scene: Scene) -> str:
    """Why true views and a mesh of the object's name are not of its photos; empty when they may be. Photos that were imported have a truth only where true cameras lie beside them."""
    imported = (scene.train_dir / "photos.json").is_file() and not any(scene.truth_poses_dir.glob("*.npy"))
    return f"the photos were imported, without true cameras in {_short(scene, scene.truth_poses_dir)}" if imported else ""


def _true_views(scene: Scene, notes: list[str]) -> dict[str, np.ndarray]:
    lacking = _without_truth(scene)
    if lacking:
        notes.append(f"no true test views: {lacking}")
        return {}
    folder = scene.truth_test_dir / "images"
    owner = read_json(scene.truth_test_dir / "source.json")  # the folder has no level for the type; without this file it is trusted
    if isinstance(owner, dict) and owner.get("type") != scene.type and owner.get("mesh") != (read_json(scene.train_dir / "render.json") or {}).get("mesh"):
        notes.append(f"no true test views: {_short(scene, folder)} holds those of another object, {owner.get('type')} {scene.object}; names must differ between types")
        return {}
    names = [name for name in protocol_test_cameras() if (folder / f"{name}.png").is_file()]
    if len(names) < len(protocol_test_cameras()):
        where = _short(scene, folder)
        notes.append(f"{len(names)} true test views in {where}" if names else f"no true test views: {where} is missing")
    return {name: load_rgb(folder / f"{name}.png") for name in names}


def _in_frame_of_photos(truth: dict[str, np.ndarray], true_poses: dict[str, np.ndarray], notes: list[str]) -> dict[str, np.ndarray]:
    """The true views, or none where they show the object from other places than the views of the same names do: both count azimuths from view 000 (docs/conventions.md)."""
    azimuth = np.rad2deg(wrap_to_pi(camera_from_pose(true_poses["000"]).azimuth_rad)) if "000" in true_poses else 0.0
    if truth and abs(azimuth) > FRAME_DEG:
        notes.append(f"no figures of views: the true test views count azimuths from view 000, but its true azimuth is {azimuth:.0f} degrees; render photos and test views anew")
        return {}
    return truth


def _true_poses(scene: Scene, cameras: dict[str, Camera], notes: list[str]) -> dict[str, np.ndarray]:
    """The true cameras by view; none where they are of other views than ``cameras``, which cannot be compared with them."""
    folder = scene.truth_poses_dir
    paths = sorted(folder.glob("*.npy")) if folder.is_dir() else []
    if not paths:
        notes.append(f"no true cameras: {_short(scene, folder)} is missing")
    poses = {path.stem: read_pose(path) for path in paths}
    if poses and cameras and not set(poses) & set(cameras):
        notes.append(f"no true cameras: {_short(scene, folder)} has views {', '.join(poses)}, the photos are {', '.join(cameras)}")
        return {}
    return poses


def _views_in(scene: Scene, folder: Path, what: str, notes: list[str]) -> dict[str, np.ndarray]:
    names = [name for name in protocol_test_cameras() if (folder / f"{name}.png").is_file()]
    if not names:
        notes.append(f"no {what}: {_short(scene, folder)} is missing")
    elif len(names) < len(protocol_test_cameras()):
        raise InputError(f"{folder}: holds {len(names)} of 84 {what}; run its stage again")
    return {name: load_rgb(folder / f"{name}.png") for name in names}


def _mesh(scene: Scene, notes: list[str]) -> RenderMesh | None:
    path = scene.mesh_dir / "model.obj"
    if not path.is_file():
        notes.append(f"no mesh: {_short(scene, path)} is missing")
        return None
    return load_mesh(path)


def _stage_records(scene: Scene) -> list[tuple[Path, dict]]:
    """Completion records of the stages that made this object, in order: any JSON in their folders with stage and seconds."""
    stem = scene.initial_cameras.stem
    beside_cameras = [p for p in scene.initial_cameras.parent.glob(f"*{stem}*.json") if not re.search(re.escape(stem) + r"\d", p.name)]
    folders = (scene.personal_dir, scene.nvs_dir, scene.nerf_dir, scene.mesh_dir)
    found, seen = [], set()
    for path in [*sorted(beside_cameras), *(p for folder in folders for p in sorted(folder.glob("*.json")))]:
        record = read_json(path)
        if isinstance(record, dict) and {"stage", "seconds"} <= record.keys():
            key = (record["stage"], record["seconds"], record.get("finished"))
            if key not in seen:
                seen.add(key)
                found.append((path, record))
    return found


def _short(scene: Scene, path: Path) -> str:
    """A path as a note shows it: below the root or the repository, without what is particular to this machine."""
    for base in (scene.root, REPOSITORY):
        if path.is_relative_to(base):
            return str(path.relative_to(base))
    return str(path)


def _finite(value):
    """``value`` with numbers that JSON has not (infinite, not a number) as None, and floats cut to six decimals."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return round(float(value), 6) if np.isfinite(value) else None
    return value


def print_summary(scene: Scene) -> None:
    """The figures beside SAP3D's, what could not be measured, and where things lie."""
    result = load_results(scene.results_dir / "results.json")
    print("\n".join(summary_lines(result)))
    for note in result.get("notes", []):
        print(f"note: {note}")
    for label, path in (
        ("contact sheet", scene.results_dir / "contact_sheet.png"),
        ("turntable", scene.nerf_dir / "save" / "turntable.mp4"),
        ("mesh", scene.mesh_dir / "model.glb"),
        ("results", scene.results_dir / "results.json"),
    ):
        if path.exists():
            print(f"{label:14}{path}")


def command_line(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["suite"]:
        from sap3d.suite import main as run_suites

        run_suites(argv[1:])
        return
    run_stage("Measure one reconstructed object and draw it.", EvaluationConfig, main, lambda scene, _: print_summary(scene), argv)


if __name__ == "__main__":
    cli(command_line, lower="eval.size")
