"""Stage 1: rotations, frames, absolute elevation."""

import numpy as np
import pytest

from relposepp import rotations as rot
from relposepp.estimate import upright
from relposepp.evaluate import centre_errors
from sap3d.cameras import look_at_origin, rotation_angle_deg, spherical_to_center
from tests.relposepp_spheres import TrueScores


def test_look_at_rotation_agrees_with_the_shared_cameras():
    elevation, azimuth = np.deg2rad([-70.0, 0, 30, 85]), np.deg2rad([0.0, 90, 180, -120])
    expected = look_at_origin(spherical_to_center(np.pi / 2 - elevation, azimuth, 1.5))[..., :3]
    np.testing.assert_allclose(rot.look_at_rotation(elevation, azimuth), expected, atol=1e-12)


def test_relative_rotation_and_chain_are_inverse_and_ignore_the_world():
    generator = np.random.default_rng(0)
    a, b, world = rot.random_rotations(3, generator)
    np.testing.assert_allclose(rot.chain_rotation(rot.relative_rotation(a, b), b), a, atol=1e-12)
    np.testing.assert_allclose(rot.relative_rotation(a @ world, b @ world), rot.relative_rotation(a, b), atol=1e-12)
    np.testing.assert_allclose(rot.relative_rotation(b, a), rot.relative_rotation(a, b).T, atol=1e-12)


def test_random_rotations_are_uniform_rotations():
    sample = rot.random_rotations(20000, np.random.default_rng(1))
    np.testing.assert_allclose(sample @ sample.transpose(0, 2, 1), np.broadcast_to(np.eye(3), sample.shape), atol=1e-10)
    np.testing.assert_allclose(np.linalg.det(sample), 1, atol=1e-10)
    assert np.abs(sample.mean(0)).max() < 0.02
    angle = rotation_angle_deg(sample, np.eye(3))
    assert abs(np.mean(angle) - np.rad2deg(np.pi / 2 + 2 / np.pi)) < 1.0  # of the Haar measure


def test_relative_rotations_of_training_stay_in_their_elevations():
    sample = rot.random_look_at_relative(4000, np.random.default_rng(0), (-10.0, 40.0))
    assert sample.shape == (4000, 3, 3)
    np.testing.assert_allclose(np.linalg.det(sample), 1, atol=1e-10)
    flip = np.diag([-1.0, 1.0, -1.0])  # PyTorch3D's axes
    found = [rot.elevations_from_rotations(np.stack([flip @ relative @ flip, np.eye(3)])) for relative in sample]
    elevations = np.rad2deg([elevation for elevation, _, conditioning in found if conditioning > 0.1])
    assert len(elevations) > 3000 and elevations.min() > -10.01 and elevations.max() < 40.01
    assert np.histogram(np.sin(np.deg2rad(elevations[:, 1])), 5)[0].min() > 400  # all over the range


@pytest.mark.parametrize("seed", range(5))
def test_absolute_elevation_from_the_common_up_axis_in_any_world_frame(seed):
    generator = np.random.default_rng(seed)
    elevation, azimuth = generator.uniform(-0.7, 1.2, 4), np.array([0.3, 1.9, -2.2, 3.1])
    world = rot.random_rotations(1, generator)[0]
    found_e, found_a, conditioning = rot.elevations_from_rotations(rot.look_at_rotation(elevation, azimuth) @ world)
    np.testing.assert_allclose(found_e, elevation, atol=1e-9)
    np.testing.assert_allclose(rot.wrap_to_pi(found_a - (azimuth - azimuth[0])), 0, atol=1e-9)
    assert conditioning > 0.3


def test_two_views_at_90_degrees_are_well_conditioned_and_at_180_are_not():
    quarter = rot.elevations_from_rotations(rot.look_at_rotation([0.1, 0.5], [0.0, np.pi / 2]))
    half = rot.elevations_from_rotations(rot.look_at_rotation([0.1, 0.5], [0.0, np.pi]))
    assert quarter[2] > 0.9 and half[2] < 1e-6
    np.testing.assert_allclose(quarter[0], [0.1, 0.5], atol=1e-9)


@pytest.mark.parametrize("azimuth", [np.pi, 0.0, np.pi - 0.02])
def test_opposite_azimuths_take_the_elevation_from_the_head(azimuth):
    rotations = rot.look_at_rotation(np.deg2rad([10.0, 30.0]), [0.0, azimuth])
    world = rot.random_rotations(1, np.random.default_rng(3))[0]
    elevation, found = upright(rotations @ world, TrueScores(rotations))
    np.testing.assert_allclose(np.rad2deg(elevation), [10, 30], atol=3.0)
    assert abs(np.rad2deg(rot.wrap_to_pi(found[1] - azimuth))) < 3


def test_one_view_takes_its_elevation_from_the_head():
    rotations = rot.look_at_rotation(np.deg2rad([25.0]), [0.4])
    elevation, azimuth = upright(np.eye(3)[None], TrueScores(rotations))
    assert abs(np.rad2deg(elevation[0]) - 25) < 3 and azimuth[0] == 0


def test_cameras_wrap_around():
    cameras = rot.cameras_from_angles(np.deg2rad([0.0, 95.0]), np.deg2rad([350.0, 10.0]), np.array([1.5, 2.0]), [0.857, 0.857])
    assert cameras[0].azimuth_rad == 0 and abs(cameras[1].azimuth_deg - 20) < 1e-6
    assert cameras[1].elevation_deg == pytest.approx(89.0)


def test_maximum_spanning_tree_takes_the_heaviest_edges():
    weights = np.array([[0, 1, 5, 0], [0, 0, 4, 2], [0, 0, 0, 0], [0, 0, 3, 0]])
    assert rot.maximum_spanning_tree(weights) == [(0, 2), (2, 1), (2, 3)]
    with pytest.raises(ValueError, match="square"):
        rot.maximum_spanning_tree(np.zeros((2, 3)))


def test_centre_errors_ignore_a_turn_of_the_world_and_nothing_else():
    generator = np.random.default_rng(0)
    centres = spherical_to_center(generator.uniform(0.8, 1.8, 4), generator.uniform(-3, 3, 4), generator.uniform(1.3, 1.8, 4))
    turn = np.array([[np.cos(2.5), -np.sin(2.5), 0], [np.sin(2.5), np.cos(2.5), 0], [0, 0, 1]])
    assert centre_errors(centres @ turn.T, centres) == pytest.approx(np.zeros(4), abs=1e-9)
    assert centre_errors(1.1 * centres @ turn.T, centres) == pytest.approx(0.1 * np.linalg.norm(centres, axis=1))
    assert centre_errors(centres + [0, 0, 0.2], centres) == pytest.approx(np.full(4, 0.2))
