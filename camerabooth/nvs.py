"""2D novel views from the personal model: the 84 views of the protocol, or any cameras."""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from camerabooth.config import BoothConfig
from camerabooth.photo_field import GUESSED_VIEWS, LEAST_VIEWS, PhotoField
from camerabooth.training import compute_context
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.config import resolve_device
from sap3d.images import resize
from sap3d.progress import Progress
from sap3d.scene import BUNDLED_ZERO123, Scene, cameras_of, read_mirror_plane
from sap3d.symmetry import mirrored_views
from sap3d.zero123 import Zero123, load_personal, load_zero123
from sap3d.zero123.memory import DTYPES, check_card, prepare
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import guess_views, resolve_strategy, sample_views


def personal_model(scene: Scene, config: BoothConfig) -> Zero123:
    """The base model with what stage 2 has trained for the object, placed as ``config`` says."""
    device = resolve_device(config.device)
    check_card(config.model or BUNDLED_ZERO123, device, "novel_views", config.weights_dtype)
    model = load_personal(scene.personal_dir, base=load_zero123(config.model or None, dtype=DTYPES[config.weights_dtype]))
    prepare(model, device, config.vae_slicing, config.offload)
    return model


def conditions(photos: Mapping[str, np.ndarray], camera_file: Path, config: BoothConfig) -> tuple[dict[str, np.ndarray], dict[str, Camera]]:
    """What novel views are conditioned on: the photos (S, S, 4) and their cameras, and mirrored ones of an object with a mirror plane."""
    cameras = cameras_of(camera_file, photos, "run stage 2 again")
    images, mirrored = mirrored_views(photos, cameras, read_mirror_plane(camera_file) if config.symmetry else None)
    return {**photos, **images}, cameras | mirrored


def photo_field(model: Zero123, photos: Mapping[str, np.ndarray], camera_file: Path, config: BoothConfig) -> PhotoField | None:
    """The field that guides the novel views, fitted to the photos; None where there are too few, or the model cannot be guided, or looks at one photo at a time."""
    if len(photos) < LEAST_VIEWS or not config.field_steps or model.multiplane is None or resolve_strategy(config.condition_strategy, model) != "all":
        return None
    plane = read_mirror_plane(camera_file) if config.symmetry else None
    guesses = first_guesses(model, *conditions(photos, camera_file, config)) if len(photos) <= GUESSED_VIEWS else None
    return PhotoField.of(photos, cameras_of(camera_file, photos, "run stage 2 again"), plane, config.field_steps, config.seed, model.device, guesses)


@torch.no_grad()
def first_guesses(model: Zero123, images: Mapping[str, np.ndarray], cameras: Mapping[str, Camera]) -> dict[str, np.ndarray]:
    """What the model guesses, before diffusion, of every other test camera of the protocol: float32 (S, S, 3) at its own size, by name."""
    photos = photos_over_white(images).to(model.device)
    features = model.encode_condition(photos[:, :3], photos[:, 3:]).small
    targets = dict(list(protocol_test_cameras().items())[::2])
    guesses = guess_views(model, features, list(cameras.values()), list(targets.values()))
    return dict(zip(targets, guesses.float().cpu().permute(0, 2, 3, 1).numpy()))


def novel_views(
    model: Zero123, photos: Tensor, condition_cameras: Mapping[str, Camera], targets: Mapping[str, Camera], config: BoothConfig, field: PhotoField | None = None
) -> dict[str, np.ndarray]:  # fmt: skip
    """Views keyed by target name, float32 (S, S, 3) at ``config.output_size``; photos (N, 4, S, S)."""
    with torch.no_grad():
        features = model.encode_condition(photos[:, :3], photos[:, 3:])
        if config.output_size <= model.image_size:
            features = features.small  # nobody would see what a larger first guess shows
    with Progress("camerabooth novel views", len(targets)) as progress, compute_context(config.precision, model.device)():
        images = sample_views(
            model, features, list(condition_cameras.values()), list(targets.values()), config.nvs_steps, config.guidance_scale,
            config.condition_strategy, config.nvs_batch_size, config.seed, on_batch=progress.update, guide=field.guess if field else None, eta=config.ddim_eta,
        )  # fmt: skip
    arrays = images.float().cpu().permute(0, 2, 3, 1).numpy()
    return {name: resize(array, config.output_size) for name, array in zip(targets, arrays)}
