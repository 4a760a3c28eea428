"""Stage 1: outlines of synthetic convex bodies give the cameras back."""

import numpy as np
import pytest
import torch

from relposepp.multistart import Effort, add_view, distinct, search_outlines
from relposepp.rotations import look_at_rotation
from relposepp.tangency import Slack, Solution, Tangency, outline_rays
from sap3d.cameras import FOV_RAD, rotation_angle_deg

ELEVATION, AZIMUTH = np.deg2rad([5.0, 30.0, -10.0, 20.0]), np.deg2rad([0.0, 80.0, 250.0, 150.0])
BODY = np.random.default_rng(3).uniform(-0.5, 0.5, (12, 3)) * [1.0, 0.6, 0.8]


def rays(elevation, azimuth, radius=1.5, body=BODY):
    """Camera-frame directions of the body's corners: their convex hull is the outline of the body's convex hull."""
    rotation = look_at_rotation(elevation, azimuth)
    points = (body - radius * rotation[2]) @ rotation.T
    return points / np.linalg.norm(points, axis=1, keepdims=True)


def tangency(views, body=BODY, radii=(1.5, 1.5, 1.5, 1.5)):
    return Tangency.of_rays([rays(ELEVATION[v], AZIMUTH[v], radii[v], body) for v in range(views)])


def tensors(views, copies=1, radius=1.5):
    rows = [np.tile(x[:views], (copies, 1)) for x in (ELEVATION, AZIMUTH, np.full(4, radius))]
    return [torch.from_numpy(x).float() for x in rows]


def angle(solution, k=0):
    found = look_at_rotation(solution.elevation[k].double().numpy(), solution.azimuth[k].double().numpy())
    return rotation_angle_deg(found, look_at_rotation(ELEVATION, AZIMUTH)[: len(found)]).max()


def test_residuals_vanish_at_the_true_cameras_and_nowhere_near():
    scene = tangency(4)
    residual, counts = scene.residuals(*tensors(4), range(4))
    assert counts.any() and residual.abs().max() < 1e-4
    for parameter in range(3):
        moved = tensors(4)
        moved[parameter][:, 2] += 0.05
        assert scene.residuals(*moved, range(4))[0].abs().max() > 5e-3


def test_derivatives_agree_with_differences():
    scene = tangency(3)
    moved = tensors(3)
    moved[0] += 0.1
    residual, _, slope = scene.residuals(*moved, range(3), jacobian=True)
    for parameter in range(3):
        for view in range(3):
            step = [x.clone() for x in moved]
            step[parameter][:, view] += 1e-3
            difference = (scene.residuals(*step, range(3))[0] - residual) / 1e-3
            torch.testing.assert_close(slope[..., parameter, view], difference, atol=0.02, rtol=0.05)


def test_a_baseline_through_the_object_is_no_tangent_and_must_be_so_in_both_photos():
    opposite = Tangency.of_rays([rays(0.0, 0.0), rays(0.1, np.pi)])
    place = torch.tensor([[0.0, 0.1]]), torch.tensor([[0.0, np.pi]]), torch.full((1, 2), 1.5)
    residual, counts = opposite.residuals(*place, [0, 1])
    assert not counts.any() and residual.abs().max() == 0
    small = Tangency.of_rays([rays(0.0, 0.0), rays(0.1, np.pi, body=BODY * 0.1)])  # beside the baseline in one photo only
    assert small.residuals(*place, [0, 1])[0].min() > 0.01
    same = torch.zeros(1, 2), torch.zeros(1, 2), torch.full((1, 2), 1.5)
    assert opposite.residuals(*same, [0, 1])[0].min() > 0.01  # two different photos from one place


def test_perturbed_cameras_converge_to_the_true_ones():
    scene, copies = tangency(4), 48
    start, generator = tensors(4, copies), np.random.default_rng(0)
    for parameter in (0, 1):
        start[parameter] += torch.from_numpy(generator.normal(0, np.deg2rad(4), (copies, 4))).float()
    start[1][:, 0] = 0
    solution = scene.solve(*start, list(range(4)), steps=12, start_sigma=0.01)
    errors = np.array([angle(solution, k) for k in range(copies)])
    assert np.median(errors) < 0.1 and (errors < 0.5).mean() > 0.5
    assert solution.azimuth[:, 0].abs().max() == 0 and (solution.radius == 1.5).all()


def test_distances_are_found_where_they_may_move():
    radii = (1.5, 1.6, 1.45, 1.5)
    scene, start = tangency(4, radii=radii), tensors(4)
    fixed = scene.solve(*start, list(range(4)), steps=12, start_sigma=0.01)
    solution = scene.solve(*start, list(range(4)), steps=20, start_sigma=0.01, slack=Slack(0.1))
    assert fixed.cost > 5 and solution.cost < 0.5 and angle(solution) < angle(fixed)
    ratio = solution.radius[0].numpy() / np.array(radii)
    np.testing.assert_allclose(ratio / ratio.mean(), 1, atol=0.02)


def test_search_from_nothing_finds_the_true_cameras_and_not_their_mirror_image():
    effort = Effort(starts=8000, keep_first=150, keep=100, stirred=10, copies=8)
    found = search_outlines(tangency(4), effort, (-40.0, 70.0), 1.5, np.random.default_rng(0))
    assert angle(found) < 0.5 and found.cost[0] < 0.1
    again = search_outlines(tangency(4), effort, (-40.0, 70.0), 1.5, np.random.default_rng(0))
    assert torch.equal(found.azimuth, again.azimuth)
    mirrored = tensors(4)
    mirrored[1] *= -1
    assert tangency(4).cost(*mirrored, list(range(4))) > 5 * found.cost[0] + 1  # perspective tells them apart


def test_a_view_is_placed_beside_known_ones():
    known = tensors(3)
    starts = add_view(tangency(4), Solution(*known, torch.zeros(1)), [0, 1, 2], 3, (-40.0, 70.0), 1.5, places=6)
    distance = [rotation_angle_deg(look_at_rotation(float(e), float(a)), look_at_rotation(ELEVATION[3], AZIMUTH[3])) for e, a in zip(starts[0][:, 3], starts[1][:, 3])]
    assert min(distance) < 12 and torch.equal(starts[0][:, :3], known[0].expand(6, -1))


def test_distinct_keeps_the_best_of_every_group():
    azimuth = torch.tensor([[0.0, 1.0], [0.0, 1.01], [0.0, 2.0]])
    solution = Solution(torch.zeros(3, 2), azimuth, torch.ones(3, 2), torch.tensor([2.0, 1.0, 3.0]))
    assert distinct(solution, 5, 3.0).cost.tolist() == [1.0, 3.0]


@pytest.mark.parametrize("size", [64, 256])
def test_outline_of_a_disc(size):
    x = (np.arange(size) + 0.5) / size - 0.5
    distance = np.hypot(x[:, None], x[None, :])
    image = np.ones((size, size, 4), np.float32)
    image[..., 3] = np.clip((0.3 - distance) * size + 0.5, 0, 1)
    directions = outline_rays(image)
    across = np.linalg.norm(directions[:, :2], axis=1) / -directions[:, 2]
    assert len(directions) <= 40
    np.testing.assert_allclose(across, 0.6 * np.tan(FOV_RAD / 2), atol=0.3 / size)
    assert len(outline_rays(np.zeros((8, 8, 4), np.float32))) >= 4  # nothing to see: the whole photo
