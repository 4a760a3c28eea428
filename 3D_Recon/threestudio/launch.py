"""Stage 3: photos, refined cameras and the personal diffusion model to a NeRF and a textured mesh.

python -m 3D_Recon.threestudio.launch --type T --object O --views N [--config FILE] [--quick] [key=value ...]
"""

from __future__ import annotations

from pathlib import Path

from sap3d.cameras import protocol_test_cameras
from sap3d.config import as_dict, resolve_device
from sap3d.errors import InputError, cli
from sap3d.images import input_files, load_input_views
from sap3d.scene import BUNDLED_ZERO123, Scene, cameras_of, completion_record, fingerprint, read_mirror_plane, read_turns, stage_complete, write_cameras, write_json
from sap3d.stage import run_stage
from sap3d.tensorboard import EventLog, scene_log_folder

from .config import ReconConfig

# Settings that shape the outputs and not the optimisation: changing them keeps the checkpoint.
OUTPUT_SETTINGS = (
    "device", "vae_slicing", "offload", "render_size", "photo_detail", "outline_sharpness", "turntable_frames", "turntable_size", "mesh_cells", "mesh_slack", "mesh_faces", "texture", "texture_from_photos", "texture_size", "checkpoint_seconds", "tile_rays",
)  # fmt: skip


def main(scene: Scene, config: ReconConfig) -> Path:
    """Run stage 3 for one scene, from where an earlier run stopped; returns the folder of the mesh.

    Raises InputError for photos, cameras, novel views or settings that cannot be used.
    """
    config.check()
    photos = load_input_views(scene)
    inputs = _inputs(scene, config, list(photos))
    settings = as_dict(config)
    nerf_record, mesh_record = scene.nerf_dir / "record.json", scene.mesh_dir / "record.json"
    nerf_outputs = [scene.nerf_dir / "save" / "rgb_pred" / f"{name}.png" for name in protocol_test_cameras()] + [scene.nerf_dir / "save" / "turntable.mp4"]
    mesh_outputs = [scene.mesh_dir / f"model.{suffix}" for suffix in ("obj", "glb", *(("mtl", "png") if config.texture == "uv" else ()))]
    if stage_complete(nerf_record, settings, inputs, nerf_outputs) and stage_complete(mesh_record, settings, inputs, mesh_outputs):
        print(f"3D_Recon: {scene.object} with {scene.views} views is done already, see {scene.mesh_dir}")
        return scene.mesh_dir

    cameras = _cameras(scene, config, list(photos))
    from sap3d.field.finish import finishing

    from . import export  # torch and the rest take seconds to import

    recon = _reconstruction(scene, config, photos, cameras)
    checkpoint = scene.nerf_dir / "checkpoints" / "last.pt"
    mesh_record.unlink(missing_ok=True)
    with completion_record(nerf_record, "3D_Recon nerf", settings, inputs) as facts:
        identity = _fingerprint(config, inputs)
        facts["resumed_seconds"] = recon.resume(checkpoint, identity)
        with EventLog(scene_log_folder(scene, "3D_Recon"), recon.step and recon.step + 1) as log:
            recon.run(checkpoint, identity, (lambda recon: _log_step(log, recon)) if log else None)
        write_json(scene.nerf_dir / "config.json", settings)
        finish = finishing(recon, config.render_size, config.photo_detail if config.photos else 0, config.outline_sharpness)
        views = export.export_renders(scene, config, recon, finish)
        export.export_turntable(scene, config, recon, finish)
        export.export_sheet(scene, photos, views)
        write_cameras(scene.nerf_dir / "cameras.yaml", recon.cameras.current())
        facts.update(hull_margin=round(recon.margin, 4), optimisation_seconds=round(recon.seconds, 2), history=recon.history)
    with completion_record(mesh_record, "3D_Recon mesh", settings, inputs) as facts:
        facts.update(export.export_mesh(scene, config, recon, views))
    return scene.mesh_dir


def _log_step(log: EventLog, recon) -> None:
    """Losses and rates for TensorBoard whenever the optimisation notes them, a view ten times a run."""
    if recon.history and recon.history[-1]["step"] == recon.step:
        log.scalars(recon.step, {f"loss/{name}": value for name, value in recon.history[-1].items() if name != "step"} | {"learning_rate": recon.optimiser.param_groups[0]["lr"]})
    if recon.step % max(recon.config.steps // 10, 1) == 0:
        from sap3d.field.views import render_view

        camera = protocol_test_cameras()["013"]  # elevation 30, azimuth 30
        log.picture(recon.step, "render", render_view(recon.field, recon.occupancy, camera, 128).colour.cpu().numpy())


def _reconstruction(scene, config, photos, cameras):
    from .optimise import Reconstruction
    from .prior import load_novel_views

    device = resolve_device(config.device)
    novel_views = load_novel_views(scene.nvs_dir / "preds", list(protocol_test_cameras())) if config.warm_start else None
    model = None
    if config.sds:
        from sap3d.zero123 import load_personal, load_zero123
        from sap3d.zero123.memory import DTYPES, check_card, prepare

        check_card(Path(config.model or BUNDLED_ZERO123), device, "sds", config.weights_dtype)
        model = load_personal(scene.personal_dir, base=load_zero123(config.model or None, dtype=DTYPES[config.weights_dtype]))
        prepare(model, device, config.vae_slicing, config.offload)
        model.requires_grad_(False)
    return Reconstruction(photos, cameras, config, novel_views, model, device, read_mirror_plane(_camera_file(scene, config)))


def _camera_file(scene: Scene, config: ReconConfig) -> Path:
    return Path(config.cameras) if config.cameras else scene.refined_cameras


def _cameras(scene: Scene, config: ReconConfig, names: list[str]) -> dict:
    path = _camera_file(scene, config)
    remedy = "give the camera file of these photos in cameras=" if config.cameras else f"run stage 2 again with {len(names)} views"
    cameras = cameras_of(path, names, remedy)
    for name, camera in cameras.items():
        if not (0.2 < camera.radius < 100 and 0.01 < camera.fov_rad < 3):
            raise InputError(f"{path}: the camera of view {name} is impossible ({camera}); {remedy}")
    return cameras


def _inputs(scene: Scene, config: ReconConfig, names: list[str]) -> dict[str, Path]:
    """Every file that the result depends on, by a name for the record."""
    inputs = {"cameras": _camera_file(scene, config)}
    if scene.initial_cameras.is_file() and read_turns(scene.initial_cameras):  # photos are turned by it
        inputs["turns"] = scene.initial_cameras
    if not inputs["cameras"].is_file():
        remedy = f"correct cameras={config.cameras} (relative paths count from {Path.cwd()})" if config.cameras else "run stage 2 (camerabooth) first"
        raise InputError(f"{inputs['cameras']}: no such camera file; {remedy}")
    inputs |= input_files(scene, names)
    if config.warm_start:
        inputs["novel views"] = scene.nvs_dir / "preds"
        for name in protocol_test_cameras():
            if not (inputs["novel views"] / f"{name}.png").is_file():
                raise InputError(f"{inputs['novel views']}: novel view {name}.png is missing; run stage 2 (camerabooth) first or set warm_start=false")
    if config.sds:
        inputs["personal model"] = scene.personal_dir / "personal.safetensors"
        if config.model:
            inputs["base model"] = Path(config.model)
    return inputs


def _fingerprint(config: ReconConfig, inputs: dict[str, Path]) -> str:
    """Identity of an optimisation: its settings and inputs, without those of the outputs."""
    return fingerprint({name: value for name, value in as_dict(config).items() if name not in OUTPUT_SETTINGS}, inputs)


def command_line(argv: list[str] | None = None) -> None:
    run_stage("Stage 3: NeRF and textured mesh.", ReconConfig, main, lambda scene, folder: print(f"3D_Recon: mesh in {folder}"), argv)


if __name__ == "__main__":
    cli(command_line, lower="recon.rays, recon.tile_rays, the last number of recon.grid or recon.texture_size")
