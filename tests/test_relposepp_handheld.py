"""Stage 1 on photos taken by hand: unknown aims, the search that allows for them, and photos turned for the stages that follow."""

import json

import numpy as np
import pytest
import torch
import yaml

from relposepp.config import RelPoseConfig
from relposepp.handheld import ELEVATION_DEG, Handheld, walks
from relposepp.run import main
from relposepp.tangency import Slack, Tangency, axes_of, likely_radius
from sap3d.cameras import FOV_RAD, Camera, rotation_angle_deg, turn_matrix
from sap3d.errors import InputError
from sap3d.images import fields_of_view, load_input_views, save_image, turn_photo
from sap3d.scene import Scene, read_cameras, read_turns, write_cameras
from tests.relposepp_spheres import render
from tests.test_relposepp_tangency import AZIMUTH, ELEVATION, rays, tensors

TURN = np.random.default_rng(5).normal(0, (0.02, 0.02, 0.015), (4, 3))


def turned_tangency(views):
    return Tangency.of_rays([rays(ELEVATION[v], AZIMUTH[v]) @ turn_matrix(TURN[v]).T for v in range(views)])


def turn_tensor(views):
    return torch.from_numpy(TURN[None, :views]).float()


def test_a_turn_is_the_same_matrix_everywhere():
    e, a, _ = tensors(4)
    expected = turn_matrix(TURN) @ torch.stack(axes_of(e, a), -2)[0].numpy()
    np.testing.assert_allclose(torch.stack(axes_of(e, a, turn_tensor(4)), -2)[0], expected, atol=1e-6)
    right, up, backward = turn_matrix(np.array([0.1, 0.0, 0.0]))  # about the up axis: the right axis moves forward
    assert up @ [0, 1, 0] == 1 and right[2] < 0 and backward[0] > 0
    assert turn_matrix(np.array([0.0, 0.1, 0.0]))[1, 2] > 0 and turn_matrix(np.array([0.0, 0.0, 0.1]))[0, 1] > 0


def test_residuals_and_derivatives_know_turns():
    scene = turned_tangency(3)
    assert scene.residuals(*tensors(3), range(3))[0].abs().max() > 5e-3
    assert scene.residuals(*tensors(3), range(3), turn=turn_tensor(3))[0].abs().max() < 1e-4
    turn = turn_tensor(3) + 0.03
    residual, _, slope = scene.residuals(*tensors(3), range(3), jacobian=True, turn=turn)
    for parameter in range(3):
        for view in range(3):
            moved = turn.clone()
            moved[:, view, parameter] += 1e-3
            difference = (scene.residuals(*tensors(3), range(3), turn=moved)[0] - residual) / 1e-3
            torch.testing.assert_close(slope[..., 3 + parameter, view], difference, atol=0.02, rtol=0.05)


def test_unknown_turns_explain_what_exact_aims_cannot():
    scene = turned_tangency(4)
    exact = scene.solve(*tensors(4), range(4), steps=12)
    free = scene.solve(*tensors(4), range(4), steps=12, slack=Slack(aim=0.02, roll=0.015))
    assert exact.cost[0] > 3 and free.cost[0] < 0.5 and exact.turn.abs().max() == 0
    assert free.turn.abs().max() < 0.06  # not more than beliefs allow
    stiff = scene.solve(*tensors(4), range(4), steps=12, slack=Slack(aim=0.02))
    assert stiff.turn[..., 2].abs().max() == 0 and torch.isfinite(stiff.cost).all()  # roll only where it is allowed


def test_starts_are_photos_somebody_would_take():
    hand = Handheld(turned_tangency(4), None, None, [FOV_RAD, FOV_RAD, np.deg2rad(40), FOV_RAD])
    elevation, azimuth, radius = hand.starts(4000, np.random.default_rng(0))
    assert (azimuth[:, 0] == 0).all() and abs(np.rad2deg(float(elevation.mean())) - ELEVATION_DEG[0]) < 1
    step = azimuth.diff(dim=1)
    assert (step[:3000] > 0).all(1).logical_or((step[:3000] < 0).all(1)).all()  # three quarters walk around
    assert 0.5 < (step[3000:] > 0).any(1).logical_and((step[3000:] < 0).any(1)).float().mean() < 0.9  # the others come and go
    degrees = np.deg2rad([[0, 80, 170, -100], [0, -80, -170, 100], [0, 80, 40, 170], [0, 170, -20, 150]])
    assert walks(degrees).tolist() == [True, True, False, False]  # the last goes around more than once
    assert radius[0, 0] == 1.5 and 1.7 < radius[0, 2] < 2  # narrower: from further away
    assert likely_radius(np.deg2rad([20.0]))[0] == likely_radius(np.deg2rad([28.0]))[0] < 3


def test_one_photo_by_hand_is_as_far_away_as_its_field_of_view_says():
    from relposepp.config import RelPoseConfig
    from relposepp.estimate import estimate
    from relposepp.network import load_network

    network, image = load_network(""), render(Camera.from_degrees(20, 30), 128)
    sizes = [float(estimate([image], network, RelPoseConfig(), "cpu", [np.deg2rad(fov)]).radius[0] * np.tan(np.deg2rad(fov) / 2)) for fov in (25, 49.1, 70)]
    assert sizes == pytest.approx([sizes[0]] * 3, rel=1e-6)  # the object has one size


def test_turned_photo_is_what_the_camera_sees():
    camera = Camera.from_degrees(20, 30)
    straight = render(camera, 256)
    turn = np.array([0.04, -0.03, 0.05])
    assert turn_photo(straight, np.zeros(3), FOV_RAD) is straight
    # Turned by R and then, seen from that camera, back by its inverse: the same picture but for two interpolations.
    back = _turn_of(turn_matrix(turn).T)
    there = turn_photo(straight, back, FOV_RAD)
    assert np.abs(there - straight).mean() > 0.02
    again = turn_photo(there, turn, FOV_RAD)
    assert np.abs(again - straight)[8:-8, 8:-8].mean() < 0.4 * np.abs(there - straight).mean()
    # The direction: a camera turned about its up axis so that its right axis moves forward looks to its left; turned back, the object goes left.
    left = turn_photo(straight, np.array([0.04, 0.0, 0.0]), FOV_RAD)
    column = lambda image: (image[..., 3].sum(0) * np.arange(256)).sum() / image[..., 3].sum()  # noqa: E731
    expected = 256 / 2 / np.tan(FOV_RAD / 2) * 0.04
    assert column(straight) - column(left) == pytest.approx(expected, rel=0.15)


def _turn_of(matrix):
    """The three angles of ``turn_matrix``."""
    from scipy.optimize import least_squares

    return least_squares(lambda x: (turn_matrix(x) - matrix).ravel(), np.zeros(3)).x


@pytest.fixture
def scene(tmp_path, monkeypatch):
    """Balls photographed by turned cameras, in the layout of dataset.photos."""
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    scene = Scene("MINE", "balls", 4, tmp_path)
    for k, (e, a) in enumerate(zip([10, 25, 15, 20], [0, 75, 150, 230])):
        photo = turn_photo(render(Camera.from_degrees(e, a), 128), TURN[k], FOV_RAD)
        save_image(scene.train_dir / "images" / f"{k:03d}.png", photo)
    write_record(scene, [49.1] * 4)
    return scene


def write_record(scene, fov_deg):
    (scene.train_dir / "photos.json").write_text(json.dumps({"views": {f"{k:03d}": {"fov_deg": fov} for k, fov in enumerate(fov_deg)}}))


def test_stage_finds_cameras_of_photos_taken_by_hand(scene):
    names = list(load_input_views(scene))
    small = RelPoseConfig(starts=6000, beam=30, candidates=80, judge=False)  # spheres are no things that the judge knows
    output = main(scene, small)
    cameras, turns = read_cameras(output), read_turns(output)
    truth = [Camera.from_degrees(e, a) for e, a in zip([10, 25, 15, 20], [0, 75, 150, 230])]
    error = [float(rotation_angle_deg(cameras[n].camera_from_world()[:, :3], c.camera_from_world()[:, :3])) for n, c in zip(names, truth)]
    assert max(error) < 15, error
    adjusted = yaml.safe_load(output.read_text())["checks"]["adjusted_deg"]
    assert len(adjusted) == 4 and max(adjusted) > 0
    assert set(turns) == set(names) and max(abs(t).max() for t in turns.values()) > 0.005
    straight, raw = load_input_views(scene), load_input_views(scene, turned=False)
    assert all(np.abs(straight[n] - raw[n]).mean() > 1e-3 for n in names)  # later stages see the photos turned, this one does not
    assert set(yaml.safe_load(output.read_text())["hypotheses"][0]["turn_deg"]) == set(names)
    before = output.stat().st_mtime_ns
    assert main(scene, small).stat().st_mtime_ns == before
    write_record(scene, [49.1, 49.1, 49.1, 44.0])  # another field of view: the stage runs again
    again = read_cameras(main(scene, RelPoseConfig(starts=1000, beam=30, candidates=20)))
    assert np.rad2deg(again["003"].fov_rad) == pytest.approx(44)
    main(scene, RelPoseConfig(starts=1000, beam=30, candidates=20, aim="exact"))
    assert read_turns(output) == {} and np.array_equal(load_input_views(scene)["001"], raw["001"])


@pytest.mark.parametrize("fov", [[49.1, 49.1, 49.1], [49.1, 49.1, 49.1, "wide"], [49.1, 49.1, 49.1, 0], [49.1, 49.1, 49.1, float("nan")]])
def test_unusable_record_of_the_import_is_one_line(scene, fov):
    write_record(scene, fov)
    with pytest.raises(InputError, match="photos.json: has no usable field of view"):
        main(scene, RelPoseConfig())


def test_photos_without_exif_and_photos_not_imported(scene):
    write_record(scene, [None, 40.0, None, 49.1])
    found = fields_of_view(scene, ["000", "001"])
    assert found == [FOV_RAD, pytest.approx(np.deg2rad(40))]
    (scene.train_dir / "photos.json").unlink()
    assert fields_of_view(scene, ["000"]) is None


@pytest.mark.parametrize("turn", ["far", [1, 2], [0, 0, 50], [0, 0, ".nan"]])
def test_impossible_turn_in_a_camera_file_is_one_line(tmp_path, turn):
    path = tmp_path / "cameras.yaml"
    write_cameras(path, {"000": Camera.from_degrees(10, 0)}, {"000": np.array([0.01, -0.02, 0.0])})
    np.testing.assert_allclose(read_turns(path)["000"], [0.01, -0.02, 0.0], atol=1e-6)
    text = path.read_text()
    path.write_text(text[: text.index("turn_deg")] + f"turn_deg: {turn}\n".replace("'", ""))
    with pytest.raises(InputError, match="turn_deg must be three angles"):
        read_turns(path)
