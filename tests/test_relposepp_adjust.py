"""Bundle adjustment of photos taken by hand: the gradient reaches the cameras, and wrong ones come right."""

import numpy as np
import pytest
import torch

from relposepp.adjust import BOX, Cameras, Pixels, Volume, adjust
from relposepp.inference import Hypothesis
from relposepp.tangency import poses_of
from sap3d.cameras import FOV_RAD, Camera, rotation_angle_deg, turn_matrix
from sap3d.images import turn_photo
from tests.relposepp_spheres import render
from tests.test_relposepp_handheld import _turn_of

ELEVATION, AZIMUTH = np.deg2rad([10.0, 25, 15, 20, 12]), np.deg2rad([0.0, 75, 150, 230, 290])
TURN = np.random.default_rng(5).normal(0, (0.02, 0.02, 0.01), (5, 3))


def photos():
    """Balls seen by cameras turned by ``TURN``."""
    straight = [render(Camera(np.pi / 2 - e, a), 128) for e, a in zip(ELEVATION, AZIMUTH)]
    return [turn_photo(image, _turn_of(turn_matrix(turn).T), FOV_RAD) for image, turn in zip(straight, TURN)]


def wrong(spread_deg=6.0, seed=0):
    generator = np.random.default_rng(seed)
    off = np.deg2rad(generator.normal(0, spread_deg, (2, 5)))
    off[1, 0] = 0
    return Hypothesis(ELEVATION + off[0], AZIMUTH + off[1], 1.0, np.full(5, 1.5), np.zeros((5, 3)))


def errors_deg(found):
    pairs = [(i, j) for i in range(5) for j in range(i)]
    true, rotations = Hypothesis(ELEVATION, AZIMUTH, 0.0).rotations(), found.rotations()
    return np.array([rotation_angle_deg(rotations[i] @ rotations[j].T, true[i] @ true[j].T) for i, j in pairs])


def test_cameras_come_right_and_the_world_stays():
    start = wrong()
    found = adjust(photos(), [FOV_RAD] * 5, start, rounds=2, steps=100)
    before, after = errors_deg(start), errors_deg(found)
    assert before.mean() > 5 and after.mean() < 0.6 * before.mean() and after.max() < before.max(), (before, after)
    assert found.azimuth_rad[0] == start.azimuth_rad[0] == 0 and found.score == start.score
    assert np.abs(found.turn_rad - TURN).mean() < np.abs(TURN).mean()  # aims and rolls too
    again = adjust(photos(), [FOV_RAD] * 5, start, rounds=2, steps=100)
    np.testing.assert_array_equal(again.elevation_rad, found.elevation_rad)
    np.testing.assert_array_equal(start.elevation_rad, wrong().elevation_rad)  # what was given is not touched


def test_rays_are_those_of_the_cameras():
    start = wrong()
    cameras = Cameras(Hypothesis(start.elevation_rad, start.azimuth_rad, 0.0, start.radius, TURN))
    rotation, centre = poses_of(start.elevation_rad, start.azimuth_rad, start.radius, TURN)
    pixels = Pixels(torch.tensor([[0.0, 0.0, -1.0], [0.0, 0.0, -1.0]]), torch.tensor([1, 4]), torch.zeros(2, 3), torch.zeros(2))
    origins, directions = cameras.rays(pixels)
    torch.testing.assert_close(origins, centre[[1, 4]])
    torch.testing.assert_close(directions, -rotation[[1, 4], 2])
    corner = Pixels.of([np.ones((2, 2, 4), np.float32)], [np.pi / 2], 2).ray[1]  # row 0, column 1: up and to the right
    torch.testing.assert_close(corner, torch.nn.functional.normalize(torch.tensor([0.5, 0.5, -1.0]), dim=0))


def volume_of(masks, values=None):
    """Of outlines that are all seen from the x axis."""
    cameras = Cameras(Hypothesis(np.zeros(len(masks)), np.zeros(len(masks)), 0.0, np.full(len(masks), 1.5)))
    volume = Volume(masks, [FOV_RAD] * len(masks), cameras, torch.full((3,), 0.5))
    if values is not None:
        volume.values[:] = values.view(1, 4, 1, 1, 1)
    return volume


def test_rendering_of_a_uniform_volume_is_the_closed_form():
    """A camera on the x axis whose outline leaves everything: opacity is 1 - exp(-density times the way through the box)."""
    volume = volume_of([np.ones((32, 32))], torch.tensor([-2.0, 0.4, -0.4, 2.0]))
    origins, directions = torch.tensor([[2.0, 0.1, 0.2], [2.0, 0.1, 3.0]]), torch.tensor([[-1.0, 0.0, 0.0]]).expand(2, 3)
    colour, opacity = volume.render(origins, directions, torch.full((2, 1), 0.5))
    width = float(volume.bounds[1, 0] - volume.bounds[0, 0])
    assert width == pytest.approx(2 * BOX, abs=volume.cell)
    expected = 1 - np.exp(-40 * np.log1p(np.exp(-2.0)) * width)
    assert opacity[0] == pytest.approx(expected, abs=1e-4) and opacity[1] == 0
    torch.testing.assert_close(colour[0], opacity[0] * torch.sigmoid(torch.tensor([0.4, -0.4, 2.0])) + 1 - opacity[0])
    torch.testing.assert_close(colour[1], torch.ones(3))


def test_space_is_cut_by_outlines():
    half = np.zeros((64, 64))
    half[20:44, 36:48] = 1  # to the right: with the camera at azimuth 0 that is +y
    volume = volume_of([half])
    assert volume.bounds[0, 1] > -0.1 and volume.bounds[1, 1] > 0.2 and volume.bounds[1, 2] < 0.4
    assert not volume.allowed.all()
    assert volume_of([np.zeros((64, 64))]).allowed.all() and volume_of([half, half[:, ::-1].copy()]).allowed.all()  # what shows or leaves nothing cuts nothing
