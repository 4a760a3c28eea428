"""The plane sweep: geometry against the camera module, several conditions, gradients in the poses."""

import numpy as np
import pytest
import torch

from sap3d.cameras import Camera, pose_condition
from sap3d.zero123 import tiny_random_model
from sap3d.zero123.sweep import direction_cosine, target_planes_in_condition


def pose_of(target, condition):
    return torch.tensor(pose_condition(target, condition), dtype=torch.float64)[None]


def random_cameras(seed):
    rng = np.random.default_rng(seed)
    return [Camera(rng.uniform(0.4, 2.7), rng.uniform(-7, 7), rng.uniform(1.3, 1.8), rng.uniform(0.7, 1.0)) for _ in range(2)]


def image_coordinates(camera, point):
    """(x to the right, y downwards) in -1 .. 1 across the image, and depth, by the camera module's own pose."""
    pose = camera.camera_from_world()
    x, y, z = pose[:, :3] @ point + pose[:, 3]
    return np.array([x, -y]) / -z / np.tan(camera.fov_rad / 2), -z


@pytest.mark.parametrize("seed", range(8))
def test_planes_agree_with_the_cameras(seed):
    target, condition = random_cameras(seed)
    size, offsets = 16, [-0.3, 0.2]
    where = target_planes_in_condition(pose_of(target, condition), torch.tensor(offsets, dtype=torch.float64), size)[0].numpy()
    pose, tangent = target.camera_from_world(), np.tan(target.fov_rad / 2)
    for k, row, column in ((0, 0, 0), (1, 3, 12), (0, 15, 7), (1, 8, 8)):
        depth = target.radius + offsets[k]
        x, y = ((column + 0.5) / size * 2 - 1) * tangent, -((row + 0.5) / size * 2 - 1) * tangent
        point = (np.array([x * depth, y * depth, -depth]) - pose[:, 3]) @ pose[:, :3]
        expected, ahead = image_coordinates(condition, point)
        if ahead > 0.1:
            assert where[k, row, column] == pytest.approx(expected, abs=1e-9)


def test_direction_cosine():
    for seed in range(5):
        target, condition = random_cameras(seed)
        expected = target.center() @ condition.center() / target.radius / condition.radius
        assert float(direction_cosine(pose_of(target, condition))[0]) == pytest.approx(expected, abs=1e-9)


@pytest.fixture(scope="module")
def model():
    return tiny_random_model(0)


@torch.no_grad()
def test_the_condition_itself_comes_back_on_the_plane_through_the_object():
    model = tiny_random_model(0)
    model.sweep.offsets.copy_(torch.tensor([0.0, 0.1, 0.2, 0.3]))
    images, cover = torch.rand(2, 3, 32, 32), torch.rand(2, 1, 32, 32)
    features = model.encode_condition(images, cover)
    camera = Camera(1.2, 0.4)
    pose = pose_of(camera, camera).float().expand(2, 8)
    _, channels = model.conditions(features, pose)
    planes = channels.view(2, 4, -1, 8, 8)
    assert torch.allclose(planes[:, 0, :6], model.vae.encode(images * 2 - 1).latent_dist.mode()[:, :6], atol=1e-3)
    coverage = torch.nn.functional.pixel_shuffle(planes[:, 0, 6:10], 2)
    assert torch.allclose(coverage, torch.nn.functional.avg_pool2d(cover, 2), atol=1e-3)
    turned = model.conditions(features, pose_of(Camera(1.2, 0.7), camera).float().expand(2, 8))[1].view(2, 4, -1, 8, 8)
    assert torch.allclose(planes[:, 3, :6], planes[:, 0, :6], atol=1e-3) and not torch.allclose(turned[:, 3, :6], turned[:, 0, :6], atol=1e-2)


@torch.no_grad()
def test_several_conditions(model):
    """Order does not matter, equal ones agree, and what one sees empty is empty."""
    cameras = [Camera.from_degrees(0, 0), Camera.from_degrees(20, 80), Camera.from_degrees(10, 200)]
    features = model.encode_condition(torch.rand(3, 3, 32, 32), torch.rand(3, 1, 32, 32))
    target = Camera.from_degrees(10, 30)
    pose = torch.cat([pose_of(target, c) for c in cameras]).float()
    channels = lambda chosen: model.conditions(features[[chosen]], pose[None, chosen])[1].view(4, 11, 8, 8)  # noqa: E731
    every = channels([0, 1, 2])
    assert torch.allclose(every, channels([2, 0, 1]), atol=1e-4)
    assert torch.allclose(channels([1, 1])[:, :10], channels([1])[:, :10], atol=1e-4) and float(channels([1, 1])[:, 10].max()) < 2e-3
    assert (every[:, 6:10] <= torch.stack([channels([k])[:, 6:10] for k in range(3)]).amin(0) + 1e-5).all()
    assert float(every[:, 10].mean()) > 0.05


def test_gradients_reach_the_poses(model):
    features = model.encode_condition(torch.rand(2, 3, 32, 32))
    pose = torch.cat([pose_of(Camera.from_degrees(10, 30), Camera.from_degrees(0, a)) for a in (0, 90)]).float().requires_grad_(True)
    model.conditions(features[[[0, 1]]], pose[None])[1].square().mean().backward()
    assert (pose.grad[:, :6].abs() > 0).all()
