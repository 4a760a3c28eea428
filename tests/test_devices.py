"""Nothing is left behind on the CPU when the model is on another device.

PyTorch's "meta" device stands in for a GPU, which not every machine has: its tensors have shapes without numbers, and most operations refuse
to mix them with tensors of the CPU, as they do for a GPU's.
"""

import importlib
from contextlib import nullcontext

import pytest
import torch
from recon_scenes import sphere_image

from camerabooth import training
from camerabooth.camera_table import CameraTable
from camerabooth.config import BoothConfig
from camerabooth.photo_field import PhotoField
from camerabooth.regulariser import choose_regularisers, most_similar
from sap3d.cameras import Camera, pose_condition, protocol_test_cameras
from sap3d.regularisers import list_regularisers
from sap3d.scene import Scene
from sap3d.zero123 import sweep, tiny_random_model
from sap3d.zero123.memory import prepare
from sap3d.zero123.sampler import sample_views

prior = importlib.import_module("3D_Recon.threestudio.prior")
ReconConfig = importlib.import_module("3D_Recon.threestudio.config").ReconConfig
CAMERAS = {f"{k:03d}": Camera.from_degrees(10 * k, 60 * k) for k in range(3)}
PHOTOS = torch.rand(3, 4, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[0, 4])
def model(request, monkeypatch):
    """With and without first guesses; what meta tensors cannot do (draw numbers, autocast) is left out."""
    monkeypatch.setattr(torch, "autocast", lambda *arguments, **options: nullcontext())
    monkeypatch.setattr(training, "noise_like", lambda latents, generator: torch.empty_like(latents))
    return prepare(tiny_random_model(0, multiplane=request.param), "meta")


def test_all_of_the_model_moves(model):
    assert model.device.type == "meta"
    assert [name for name, value in (*model.named_parameters(), *model.named_buffers()) if value.device.type != "meta"] == []


def test_a_training_step(model):
    table, config = CameraTable(CAMERAS).to("meta"), BoothConfig(batch_size=4, regulariser_batch=2)
    data = training.PhotoPairs(model, PHOTOS.to("meta"), choose_regularisers(Scene("T", "o", 3), None, "random", 2, 0), True, list(CAMERAS.values()))
    for step in range(3):
        losses = training._step_loss(model, table, data, config, step)
        (losses["photos"] + losses["regulariser"] + table.anchor_loss()).backward()
    assert table.delta.grad.device.type == "meta"


@pytest.mark.parametrize("strategy", ["all", "near"])
def test_novel_views(model, strategy):
    photos = PHOTOS.to("meta")
    features = model.encode_condition(photos[:, :3], photos[:, 3:])
    views = sample_views(model, features, list(CAMERAS.values()), list(protocol_test_cameras().values())[:3], 2, 3.0, strategy, 2)
    assert views.device.type == "meta" and len(views) == 3


@pytest.mark.parametrize("condition", ["all", "mean", "near"])
def test_score_distillation(model, condition):
    photos = {name: photo for name, photo in zip(CAMERAS, PHOTOS.permute(0, 2, 3, 1).numpy())}
    guidance, generator = prior.Guidance(model, photos, CAMERAS, ReconConfig(sds_condition=condition)), torch.Generator().manual_seed(0)
    gradient = guidance.gradient(torch.rand(1, 3, 32, 32, device="meta"), guidance.random_camera(generator), 0.5, generator)
    assert gradient.device.type == "meta" and gradient.shape == (1, 3, 32, 32)


def test_regulariser_objects_are_compared_on_the_cpu():
    class OnGpu:
        """Photos of which nothing but a copy can be used."""

        def cpu(self):
            return PHOTOS[:, :3]

    scene = Scene("T", "o", 3)
    known = list_regularisers(scene.regulariser_dir)[:3]
    assert set(most_similar(scene, OnGpu(), known, 2)) <= set(known)


def test_bfloat16_moves_no_places_and_rounds_no_pictures(monkeypatch):
    """Under autocast, which a CPU has too: geometry and the patch autoencoder are as exact as without."""
    model, found = tiny_random_model(0, multiplane=4), []
    places = sweep.target_planes_in_condition
    monkeypatch.setattr(sweep, "target_planes_in_condition", lambda *arguments: found.append(places(*arguments)) or found[-1])
    cameras = list(CAMERAS.values())
    pose = torch.from_numpy(pose_condition(cameras[0], cameras[1])).float()[None, None]
    features = model.encode_condition(PHOTOS[:1, :3], PHOTOS[:1, 3:])

    def pictures():
        latents = model.encode_target(PHOTOS[:, :3])
        model.sweep(features.concat[:, None], pose, model.vae)
        return latents, model.decode(latents), model.cc_projection(features.tokens[:, None], pose)

    exact = pictures()
    with torch.autocast("cpu", torch.bfloat16):
        rounded = pictures()
        assert (PHOTOS[0, 0] @ PHOTOS[0, 1]).dtype == torch.bfloat16
    for one, other in zip((*exact, found[0]), (*rounded, found[1])):
        assert one.dtype == other.dtype == torch.float32 and torch.equal(one, other)


def test_bfloat16_leaves_the_field_of_the_photos_alone():
    photos = {name: sphere_image(camera) for name, camera in CAMERAS.items()}
    field = PhotoField.of(photos, CAMERAS, None, 5)
    exact = field.view(Camera.from_degrees(20, 30))
    with torch.autocast("cpu", torch.bfloat16):
        rounded = field.view(Camera.from_degrees(20, 30))
    assert all(torch.equal(one, other) for one, other in zip(exact, rounded))
