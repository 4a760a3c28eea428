"""Zero-1-to-3 against the reference implementation: seeded weights under its names, through our reader and converter, must give its outputs.

Expected outputs: tests/parity, made by benchmarks/reference.py from the reference's own modules (docs/FULL_PRESET.md).
"""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity import relative_error, zero123_errors, zero123_inputs, zero123_state
from camerabooth.training import diffusion_error
from sap3d.published.convert import convert
from sap3d.published.sources import read_published
from sap3d.zero123 import load_zero123
from sap3d.zero123.sampler import sampling_timesteps
from tests.published_files import PARITY, save_with_training_objects


@pytest.fixture(scope="module")
def expected():
    return load_file(PARITY / "zero123.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    save_with_training_objects(folder / "105000.ckpt", zero123_state(PARITY))
    convert(read_published(folder / "105000.ckpt"), folder / "zero123", image_size=64)
    return load_zero123(folder / "zero123")


def test_outputs_are_those_of_the_reference(model, expected):
    """Autoencoder, image encoder, projection with the pose, what is concatenated (the mode, not scaled), U-Net, training loss with and without
    conditions, a guided step and a whole guided run."""
    errors = zero123_errors(model, expected)
    assert set(errors) == {"alphas_cumprod", "vae_mode", "vae_decoded", "clip", "projected", "unet", "loss_all", "loss", "ddim_step", "ddim_sample", "concatenated", "view"}
    assert max(errors.values()) < 1e-4 and errors["alphas_cumprod"] < 1e-5, errors


def test_steps_of_the_sampler(model):
    assert sampling_timesteps(model, 50)[-14:-12].tolist() == [261, 241] and sampling_timesteps(model, 4).tolist() == [751, 501, 251, 1]


@torch.no_grad()
@pytest.mark.parametrize("name, chance", (("loss_all", [0.9, 0.9]), ("loss", [0.01, 0.12])))
def test_training_loss_of_test_time_training(model, expected, monkeypatch, name, chance):
    """The function that training calls, with the reference's noise and steps in the place of its own draws."""
    inputs = zero123_inputs(expected)
    features = model.encode_condition(inputs["images"])
    draws = iter([inputs["noise"], torch.tensor([100, 800]), torch.tensor(chance)])
    for function in ("randn", "randint", "rand"):
        monkeypatch.setattr(torch, function, lambda *args, **kwargs: next(draws))
    assert relative_error(diffusion_error(model, features, inputs["latents"], inputs["pose"], None, 0.05, 0.0).mean()[None], expected[name]) < 1e-4


@torch.no_grad()
def test_poses_are_those_of_the_reference():
    """Its T of two world-to-camera matrices: differences of polar angle, azimuth and distance of the centres, target minus condition."""
    import numpy as np

    from sap3d.cameras import Camera, pose_condition

    for target, condition in ((Camera.from_degrees(30, 100), Camera.from_degrees(-10, 350)), (Camera.from_degrees(5, 10, 1.8), Camera.from_degrees(40, 200))):
        spherical = []
        for camera in (target, condition):
            matrix = camera.camera_from_world()
            x, y, z = -matrix[:, :3].T @ matrix[:, 3]
            spherical.append((np.arctan2(np.hypot(x, y), z), np.arctan2(y, x), np.sqrt(x * x + y * y + z * z)))
        difference = np.subtract(*spherical)
        assert pose_condition(target, condition)[:4] == pytest.approx([difference[0], np.sin(difference[1]), np.cos(difference[1]), difference[2]], abs=1e-6)
