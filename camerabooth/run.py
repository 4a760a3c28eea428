"""Stage 2: ``python -m camerabooth.run --type T --object O --views N``.

Reads the photos and stage 1's cameras; writes the personal model and the refined cameras (``scene.personal_dir``), then
the 84 novel views (``scene.nvs_dir``).
"""

from __future__ import annotations

import contextlib
import csv
import io
from pathlib import Path

import numpy as np

from camerabooth.config import BoothConfig
from sap3d.cameras import protocol_test_cameras, rotation_angle_deg
from sap3d.config import as_dict, resolve_device
from sap3d.errors import InputError, cli
from sap3d.images import contact_sheet, input_files, load_input_views, save_image, write_video
from sap3d.scene import BUNDLED_ZERO123, Scene, atomic_dir, cameras_of, completion_record, fingerprint, read_confidence, read_mirror_plane, read_turns, stage_complete, write_cameras, write_json, write_text
from sap3d.stage import run_stage

_TRAINING = ("model", "seed", "train", "trained", "steps", "steps_per_extra_view", "patience", "batch_size", "regulariser_batch", "regulariser", "regulariser_objects",
             "learning_rate", "camera_learning_rate", "camera_anchor", "trust_confident", "mirror", "drop_condition", "snr_gamma", "gradient_clip", "precision",
             "weights_dtype", "lora_rank")  # fmt: skip


def main(scene: Scene, config: BoothConfig) -> Path:
    """Run the stage; returns ``scene.nvs_dir``. A part whose completion record matches is skipped.

    Raises InputError for photos, cameras or settings that cannot be used; what is finished is left as it is.
    """
    config.check()
    images = load_input_views(scene)
    initial = cameras_of(scene.initial_cameras, images, "run stage 1 again")
    settings = as_dict(config)
    training_settings = {key: settings[key] for key in _TRAINING}
    base = Path(config.model) if config.model else BUNDLED_ZERO123
    if not (base / "model_index.json").is_file():
        raise InputError(f"model={base}: not a Zero-1-to-3 folder (no model_index.json); python -m sap3d.weights makes one from published weights")
    photos = input_files(scene, list(images))
    inputs = photos | {"cameras": scene.initial_cameras, "model": base}
    if config.regulariser == "similar" and scene.regulariser_list.is_file():
        inputs["regularisers"] = scene.regulariser_list
    record = scene.personal_dir / "record.json"
    trained = [scene.personal_dir / "personal.safetensors"] if config.train and len(images) > 1 else []
    if stage_complete(record, training_settings, inputs, [scene.refined_cameras, *trained]):
        print(f"camerabooth: {scene.personal_dir} is complete, skipped")
    else:
        _device(config)  # an unusable one is found before the old record goes
        with completion_record(record, "camerabooth training", training_settings, inputs) as extra:
            train(scene, config, images, initial, fingerprint(training_settings, inputs), extra)
    inputs = photos | {"model": base, "cameras": scene.refined_cameras, "personal": scene.personal_dir / "personal.safetensors"}
    if read_turns(scene.initial_cameras):  # photos are turned by it
        inputs["turns"] = scene.initial_cameras
    record = scene.nvs_dir / "record.json"
    views = [scene.nvs_dir / "preds" / f"{name}.png" for name in protocol_test_cameras()]
    if stage_complete(record, settings, inputs, views):
        print(f"camerabooth: {scene.nvs_dir} is complete, skipped")
    else:
        _device(config)
        with completion_record(record, "camerabooth novel views", settings, inputs):
            render(scene, config, images)
    return scene.nvs_dir


def _device(config: BoothConfig) -> str:
    import torch

    torch.manual_seed(config.seed)
    return resolve_device(config.device)


def train(scene: Scene, config: BoothConfig, images: dict[str, np.ndarray], initial: dict, run_fingerprint: str, extra: dict) -> None:
    """Test-time training; without it (one view, or ``train=false``) the initial cameras are passed on."""
    folder = scene.personal_dir
    folder.mkdir(parents=True, exist_ok=True)
    plane = read_mirror_plane(scene.initial_cameras)
    if len(images) < 2 or not config.train:
        for left in ("personal.safetensors", "loss.csv", "camera_changes.json", "regularisers.json", "checkpoint.pt"):
            (folder / left).unlink(missing_ok=True)
        print("camerabooth: " + ("one view has no pairs to train on" if config.train else "train=false") + "; the base model is used")
        write_cameras(scene.refined_cameras, initial, mirror_plane_azimuth_rad=plane)
        return
    from camerabooth.camera_table import CameraTable, freedom_of
    from camerabooth.regulariser import PACK_SIZE, choose_regularisers
    from camerabooth.training import PhotoPairs, fit
    from sap3d.zero123 import load_zero123, save_personal
    from sap3d.zero123.memory import DTYPES, check_card, prepare
    from sap3d.zero123.photos import photos_over_white
    from sap3d.zero123.personal import weights_hash

    device = _device(config)
    check_card(config.model or BUNDLED_ZERO123, device, "train", config.weights_dtype)
    model = load_zero123(config.model or None, dtype=DTYPES[config.weights_dtype])
    base = weights_hash(model)
    prepare(model, device, config.vae_slicing, config.offload, config.gradient_checkpointing)
    photos = photos_over_white(images).to(device)
    regularisers = choose_regularisers(scene, photos[:, :3], config.regulariser, config.regulariser_objects, config.seed, max(PACK_SIZE, model.image_size))
    confidence = read_confidence(scene.initial_cameras)
    freedom = freedom_of({name: confidence[name] for name in initial}) if config.trust_confident else None
    table = CameraTable(initial, freedom).to(device)
    checkpoint = folder / "checkpoint.pt"
    pairs = PhotoPairs(model, photos, regularisers, config.mirror, list(initial.values()))
    with contextlib.closing(_Curves(scene, table)) as curves:
        fitted = fit(model, table, pairs, config, checkpoint, run_fingerprint, curves.add)
    extra["resumed_seconds"] = fitted["resumed_seconds"]
    refined = table.cameras()
    save_personal(folder / "personal.safetensors", model, fitted["trained"], base)
    write_text(folder / "loss.csv", _csv(["step", "loss"], enumerate(fitted["losses"])))
    write_json(folder / "regularisers.json", [item.uid for item in regularisers])
    write_json(folder / "camera_changes.json", _changes(initial, refined))
    write_cameras(scene.refined_cameras, refined, mirror_plane_azimuth_rad=plane)
    checkpoint.unlink(missing_ok=True)


class _Curves:
    """Loss, learning rate and how far the cameras have moved (the mean angle and distance) for TensorBoard."""

    def __init__(self, scene: Scene, table):
        self.scene, self.table, self.log = scene, table, None

    def add(self, step: int, loss: float, learning_rate: float) -> None:
        from sap3d.tensorboard import EventLog, scene_log_folder

        if self.log is None:
            self.log = EventLog(scene_log_folder(self.scene, "camerabooth"), start=step)
        if self.log:
            moved = (self.table.delta * self.table.free).detach().abs().mean(0).tolist()
            shift = {f"camera_shift/{name}": value * factor for name, value, factor in zip(("polar_deg", "azimuth_deg", "log_radius"), moved, (np.rad2deg(1), np.rad2deg(1), 1))}
            self.log.scalars(step, {"loss": loss, "learning_rate": learning_rate} | shift)

    def close(self) -> None:
        if self.log is not None:
            self.log.close()


def _changes(initial: dict, refined: dict) -> dict:
    return {
        name: {
            "elevation_deg": [round(initial[name].elevation_deg, 3), round(refined[name].elevation_deg, 3)],
            "azimuth_deg": [round(initial[name].azimuth_deg, 3), round(refined[name].azimuth_deg, 3)],
            "radius": [round(initial[name].radius, 4), round(refined[name].radius, 4)],
            "rotation_change_deg": round(float(rotation_angle_deg(initial[name].camera_from_world()[:, :3], refined[name].camera_from_world()[:, :3])), 3),
        }
        for name in initial
    }


def render(scene: Scene, config: BoothConfig, images: dict[str, np.ndarray]) -> None:
    """The 84 views of the protocol, the condition images, a contact sheet and a video along the middle row."""
    from camerabooth.nvs import conditions, novel_views, personal_model, photo_field
    from sap3d.zero123.photos import photos_over_white

    _device(config)
    model = personal_model(scene, config)
    targets = protocol_test_cameras()
    conditioning, cameras = conditions(images, scene.refined_cameras, config)
    field = photo_field(model, images, scene.refined_cameras, config)
    views = novel_views(model, photos_over_white(conditioning).to(model.device), cameras, targets, config, field)
    with atomic_dir(scene.nvs_dir) as folder:
        for name, image in conditioning.items():
            save_image(folder / "conds" / f"{name}.png", image)
        for name, view in views.items():
            save_image(folder / "preds" / f"{name}.png", view)
        rows = [[views[f"{12 * row + column:03d}"] for column in range(12)] for row in range(7)]
        save_image(folder / "contact_sheet.png", contact_sheet(rows, [f"elevation {e}" for e in (45, 30, 15, 0, -15, -30, -45)]))
        write_video(folder / "nvs.mp4", rows[2], fps=6)


def _csv(header: list[str], rows) -> str:
    stream = io.StringIO()
    writer = csv.writer(stream)
    writer.writerow(header)
    writer.writerows([step, f"{value:.6f}"] for step, value in rows)
    return stream.getvalue()


def command_line(argv: list[str] | None = None) -> None:
    run_stage("Stage 2: test-time training, refined cameras and 2D novel views", BoothConfig, main, lambda scene, folder: print(f"novel views: {folder}"), argv)


if __name__ == "__main__":
    cli(command_line, lower="booth.batch_size (training) or booth.nvs_batch_size (novel views)")
