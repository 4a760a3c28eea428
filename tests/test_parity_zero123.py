"""Zero-1-to-3 against the reference implementation: seeded weights under its names, through our reader and converter, must give its outputs.

Expected outputs: tests/parity, made by benchmarks/reference.py from the reference's own modules (docs/FULL_PRESET.md).
"""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.seeded import seeded
from camerabooth.training import diffusion_error
from sap3d.published.convert import convert
from sap3d.published.sources import read_published
from sap3d.zero123 import load_zero123
from sap3d.zero123.sampler import sampling_timesteps
from tests.published_files import PARITY, save_with_training_objects, zero123_state


@pytest.fixture(scope="module")
def expected():
    return load_file(PARITY / "zero123.safetensors")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("parity")
    save_with_training_objects(folder / "105000.ckpt", zero123_state())
    convert(read_published(folder / "105000.ckpt"), folder / "zero123", image_size=64)
    return load_zero123(folder / "zero123")


@pytest.fixture(scope="module")
def inputs():
    """The inputs of benchmarks/reference.py in our form: images in [0, 1], poses of eight numbers."""
    images = (seeded("images", (2, 3, 64, 64)).tanh() + 1) / 2
    pose = torch.cat([0.5 * seeded("pose", (2, 4)), torch.zeros(2, 4)], 1)
    return {"images": images, "pose": pose, "latents": seeded("latents", (2, 4, 8, 8)), "noise": seeded("noise", (2, 4, 8, 8))}


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).norm() / expected.norm())


@torch.no_grad()
def test_noise_schedule(model, expected):
    assert relative_error(model.alphas_cumprod, expected["alphas_cumprod"]) < 1e-5
    assert sampling_timesteps(model, 50)[-14:-12].tolist() == [261, 241]


@torch.no_grad()
def test_autoencoder(model, expected, inputs):
    assert relative_error(model.encode_target(inputs["images"]) / 0.18215, expected["vae_mode"]) < 1e-4
    decoded = model.vae.decode(inputs["latents"]).sample
    assert relative_error(decoded, expected["vae_decoded"]) < 1e-4
    assert relative_error(model.decode(0.18215 * inputs["latents"]), (expected["vae_decoded"] / 2 + 0.5).clamp(0, 1)) < 1e-4


@pytest.fixture(scope="module")
def features(model, inputs):
    with torch.no_grad():
        return model.encode_condition(inputs["images"])


@torch.no_grad()
def test_conditions(model, expected, inputs, features):
    """The image encoder's token, the projection with the pose, and what is concatenated: the mode, not scaled."""
    assert relative_error(features.tokens, expected["clip"]) < 1e-4
    tokens, concat = model.conditions(features, inputs["pose"])
    assert relative_error(tokens, expected["projected"]) < 1e-4 and relative_error(concat, expected["vae_mode"]) < 1e-4


@torch.no_grad()
def test_unet(model, expected, inputs, features):
    assert relative_error(model.predict(inputs["latents"], torch.tensor([100, 800]), features, inputs["pose"]), expected["unet"]) < 1e-4


@torch.no_grad()
def test_training_loss(model, expected, inputs, features):
    """With all conditions, and with the token of the first and the concatenation of the second dropped."""
    t = torch.tensor([100, 800])
    noisy = model.add_noise(inputs["latents"], inputs["noise"], t)
    for name, kept in (("loss_all", ()), ("loss", (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])))):
        out = model.predict(noisy, t, features, inputs["pose"], *kept)
        loss = (out - model.training_target(inputs["latents"], inputs["noise"], t)).square().mean()
        assert relative_error(loss[None], expected[name]) < 1e-4, name


@torch.no_grad()
@pytest.mark.parametrize("name, chance", (("loss_all", [0.9, 0.9]), ("loss", [0.01, 0.12])))
def test_training_loss_of_test_time_training(model, expected, inputs, features, monkeypatch, name, chance):
    """The function that training calls, with the reference's noise and steps in the place of its own draws."""
    draws = iter([inputs["noise"], torch.tensor([100, 800]), torch.tensor(chance)])
    for function in ("randn", "randint", "rand"):
        monkeypatch.setattr(torch, function, lambda *args, **kwargs: next(draws))
    assert relative_error(diffusion_error(model, features, inputs["latents"], inputs["pose"], None, 0.05, 0.0).mean()[None], expected[name]) < 1e-4


def ddim(model, latents, features, pose, timesteps, step):
    from sap3d.zero123.sampler import ddim_step

    return ddim_step(model, latents, timesteps, step, *model.conditions(features, pose), 3.0)


@torch.no_grad()
def test_guided_ddim_step(model, expected, inputs, features):
    timesteps = sampling_timesteps(model, 50)
    step = timesteps.tolist().index(261)
    assert relative_error(ddim(model, inputs["noise"], features, inputs["pose"], timesteps, step), expected["ddim_step"]) < 1e-4


@torch.no_grad()
def test_whole_guided_sampling(model, expected, inputs, features):
    """Four steps from noise to the end, the last one included."""
    timesteps, latents = sampling_timesteps(model, 4), inputs["noise"]
    for step in range(4):
        latents = ddim(model, latents, features, inputs["pose"], timesteps, step)
    assert timesteps.tolist() == [751, 501, 251, 1] and relative_error(latents, expected["ddim_sample"]) < 1e-4


@torch.no_grad()
def test_poses_are_those_of_the_reference(inputs):
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
