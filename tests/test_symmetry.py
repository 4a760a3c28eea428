"""Mirror planes: mirrored cameras and photos, the search for the plane, and what the stages make of it."""

import importlib
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from recon_scenes import RADIUS, sphere_image

from camerabooth.config import BoothConfig
from camerabooth.nvs import conditions
from relposepp.config import RelPoseConfig
from relposepp.estimate import ACCEPTED_COLOURS, ACCEPTED_MISSED, SYMMETRY_WORTH, accepted_plane, symmetric_first
from relposepp.inference import Hypothesis
from relposepp.run import main
from relposepp.symmetry import MIRRORED_TURN, MirrorPlane, Symmetry, mirrored_points
from relposepp.tangency import axes_of
from sap3d.cameras import FOV_RAD, Camera, rays
from sap3d.errors import InputError
from sap3d.field import views
from sap3d.scene import Scene, read_cameras, read_mirror_plane, read_turns, write_cameras
from sap3d.symmetry import SUFFIX, mirrored_camera, mirrored_views
from tests.relposepp_spheres import mirrored_balls, render, write_scene

optimise = importlib.import_module("3D_Recon.threestudio.optimise")
recon_config = importlib.import_module("3D_Recon.threestudio.config")
mesh = importlib.import_module("3D_Recon.threestudio.mesh")

PLANE = np.deg2rad(37.0)
ANGLES = np.deg2rad([[0.0, 30.0, 20.0, 10.0], [0.0, 80.0, 255.0, 170.0]])
CAMERAS = [Camera(np.pi / 2 - e, a) for e, a in ANGLES.T]
LUMP = ((0.1, 0.38, -0.3), 0.12, (0.5, 0.5, 0.5))


def pose(count: int, angles=ANGLES):
    return angles[0, :count], angles[1, :count], np.full(count, 1.5)


@pytest.fixture(scope="module")
def symmetric():
    return [render(camera, 128, mirrored_balls(PLANE)) for camera in CAMERAS]


# --- mirrored cameras and photos --------------------------------------------------------------------------------------
def test_a_mirrored_camera_has_the_mirrored_rays():
    camera = Camera.from_degrees(25, 70, 1.7)
    normal = np.array([-np.sin(PLANE), np.cos(PLANE), 0])
    mirror = np.eye(3) - 2 * np.outer(normal, normal)
    origins, directions = rays(camera.camera_from_world(), FOV_RAD, 8, 8)
    other_origins, other_directions = rays(mirrored_camera(camera, PLANE).camera_from_world(), FOV_RAD, 8, 8)
    assert np.allclose(other_origins, (origins @ mirror)[:, ::-1]) and np.allclose(other_directions, (directions @ mirror)[:, ::-1])


def test_turned_cameras_are_mirrored_with_the_turn():
    turn = torch.tensor([0.1, -0.2, 0.15])
    elevation, azimuth = torch.tensor(0.4), torch.tensor(1.1)
    right, up, backward = axes_of(elevation, azimuth, turn)
    mirrored = axes_of(elevation, 2 * PLANE - azimuth, turn * torch.from_numpy(MIRRORED_TURN).float())
    for found, axis, sign in zip(mirrored, (right, up, backward), (-1, 1, 1)):
        assert torch.allclose(found, sign * mirrored_points(axis[None], torch.tensor([PLANE]).float())[0, 0], atol=1e-6)


def test_mirrored_points_come_back_and_those_of_the_plane_stay():
    points, planes = torch.randn(5, 3), torch.tensor([0.3, 2.0])
    there = mirrored_points(points, planes)
    assert there.shape == (2, 5, 3) and torch.allclose(mirrored_points(there[1], planes[1:])[0], points, atol=1e-6)
    stay = torch.tensor([[np.cos(0.3), np.sin(0.3), 0.7]]).float()
    assert torch.allclose(mirrored_points(stay, planes[:1])[0], stay, atol=1e-6)


def test_mirrored_photos_of_a_symmetric_object_are_photos_of_it(symmetric):
    cameras = dict(zip("abcd", CAMERAS))
    photos, found = mirrored_views(dict(zip("abcd", symmetric)), cameras, PLANE)
    assert list(photos) == list(found) == ["a" + SUFFIX, "b" + SUFFIX]  # c and d are mirror images of each other, nearly
    for name, photo in photos.items():
        assert np.abs(photo - render(found[name], 128, mirrored_balls(PLANE))).mean() < 2e-3


def test_views_that_a_photo_has_already_are_left_out():
    cameras = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(10, 90)}
    photos = {name: np.zeros((4, 4, 4), np.float32) for name in cameras}
    assert list(mirrored_views(photos, cameras, np.pi / 2)[0]) == ["000~"]  # 001 looks along the plane
    assert mirrored_views(photos, cameras, np.pi / 4)[0] == {}  # each is the other's mirror image, give or take ten degrees
    assert mirrored_views(photos, cameras, None) == ({}, {})


# --- the camera file --------------------------------------------------------------------------------------------------
def test_the_plane_comes_back_from_the_camera_file(tmp_path):
    path = tmp_path / "cameras.yaml"
    write_cameras(path, {"000": CAMERAS[0]})
    assert read_mirror_plane(path) is None
    write_cameras(path, {"000": CAMERAS[0]}, mirror_plane_azimuth_rad=PLANE)
    assert read_mirror_plane(path) == pytest.approx(PLANE, abs=1e-5)


@pytest.mark.parametrize("entry", ["ninety", [90], {}, {"azimuth_deg": "x"}, {"azimuth_deg": float("nan")}, {"azimuth_deg": [1]}])
def test_a_malformed_plane_is_one_line(tmp_path, entry):
    path = tmp_path / "cameras.yaml"
    write_cameras(path, {"000": CAMERAS[0]}, mirror_plane=entry)
    with pytest.raises(InputError, match="cameras.yaml: mirror_plane"):
        read_mirror_plane(path)


# --- stage 1: the search ----------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [2, 3, 4])
def test_the_plane_is_found(symmetric, count):
    plane = Symmetry(symmetric[:count]).best(*pose(count))
    assert abs(np.rad2deg(plane.azimuth_rad) - 37) < 2.5 and plane.missed < 0.004 and plane.colours > 0


def test_the_plane_turns_with_the_world(symmetric):
    turned = ANGLES + np.deg2rad([[0.0], [60.0]])
    assert abs(np.rad2deg(Symmetry(symmetric[:3]).best(*pose(3, turned)).azimuth_rad) - 97) < 2.5


def test_an_object_without_a_plane_misses_and_is_not_accepted():
    photos = [render(camera, 128, mirrored_balls(PLANE, [LUMP])) for camera in CAMERAS]
    symmetry = Symmetry(photos)
    assert symmetry.best(*pose(4)).missed > 2 * ACCEPTED_MISSED
    plane, facts = accepted_plane(symmetry, CAMERAS)
    assert plane is None and facts["mirror_plane"]["missed"] > ACCEPTED_MISSED


@pytest.mark.parametrize(("views", "missed", "colours", "accepted"), [
    (2, 0.0, 0.1, True), (2, 0.0, 0.0, False), (2, 0.02, 0.1, False), (3, 0.0, 0.0, True), (3, 0.02, 0.1, False)])  # fmt: skip
def test_two_photos_need_colours_that_bear_the_plane_out(views, missed, colours, accepted):
    """Their outlines allow nearly any plane; those of three do not."""

    class Found:
        photos = SimpleNamespace(missed=lambda *pose: 0.0)

        def best(self, *pose):
            return MirrorPlane(PLANE, missed, colours)

    plane, facts = accepted_plane(Found(), CAMERAS[:views])
    assert plane == (PLANE if accepted else None) and facts["mirror_plane"]["colours"] == colours


def test_cameras_that_explain_nothing_have_no_plane(symmetric):
    """With a hull that is empty, or nearly so, no plane makes it any emptier."""
    wrong = [camera.with_azimuth_offset(offset) for camera, offset in zip(CAMERAS[:3], (0.0, 0.6, -1.1))]
    symmetry = Symmetry([np.roll(photo, shift, 0) for photo, shift in zip(symmetric[:3], (0, 40, -40))])
    plane, facts = accepted_plane(symmetry, wrong)
    assert facts["mirror_plane"]["missed"] <= ACCEPTED_MISSED and plane is None


def test_what_two_photos_of_a_mirrored_object_show_is_accepted(symmetric):
    plane, facts = accepted_plane(Symmetry(symmetric[:2]), CAMERAS[:2])
    assert abs(np.rad2deg(plane) - 37) < 3 and facts["mirror_plane"]["colours"] > 2 * ACCEPTED_COLOURS


def test_right_cameras_gain_by_the_plane_that_wrong_ones_do_not_allow(symmetric):
    def hypothesis(angles, score):
        return Hypothesis(*angles[:, :3], score, np.full(3, 1.5))

    wrong = ANGLES + np.deg2rad([[0, 25.0, 0, 0], [0, 30.0, 0, 0]])
    far = hypothesis(wrong, -SYMMETRY_WORTH - 1)
    found = symmetric_first([hypothesis(wrong, 0.0), hypothesis(ANGLES, -0.5), far], Symmetry(symmetric[:3]))
    assert np.array_equal(found[0].azimuth_rad, ANGLES[1, :3]) and found[0].score > found[1].score + 1
    assert found[-1] is far  # too far behind to be looked at


def test_stage_1_writes_the_plane_and_passes_given_cameras_on(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    write_scene(tmp_path, CAMERAS[:3], balls=mirrored_balls(PLANE))
    scene, given = Scene("Balls", "balls", 3, tmp_path), tmp_path / "given.yaml"
    write_cameras(given, {f"{k:03d}": camera for k, camera in enumerate(CAMERAS)})
    output = main(scene, RelPoseConfig(cameras=str(given)))
    assert read_cameras(output)["002"].azimuth_rad == pytest.approx(CAMERAS[2].azimuth_rad) and len(read_cameras(output)) == 3
    assert abs(np.rad2deg(read_mirror_plane(output)) - 37) < 3
    assert read_mirror_plane(main(scene, RelPoseConfig(cameras=str(given), symmetry=False))) is None
    found = main(scene, RelPoseConfig(starts=1500, beam=30, candidates=20))  # an estimate of its own
    assert abs((np.rad2deg(read_mirror_plane(found)) - 37 + 90) % 180 - 90) < 6
    turn = np.array([0.05, 0.02, 0.0])  # photos by hand: how they are turned comes along
    write_cameras(given, {f"{k:03d}": camera for k, camera in enumerate(CAMERAS)}, {"001": turn})
    assert np.allclose(read_turns(main(scene, RelPoseConfig(cameras=str(given))))["001"], turn)
    write_cameras(given, {"000": CAMERAS[0]})
    with pytest.raises(InputError, match="given.yaml: has no camera for view 001"):
        main(scene, RelPoseConfig(cameras=str(given)))


# --- stages 2 and 3 ---------------------------------------------------------------------------------------------------
def test_novel_views_are_conditioned_on_mirrored_photos_too(symmetric, tmp_path):
    photos, path = {"000": symmetric[0]}, tmp_path / "cameras.yaml"
    write_cameras(path, {"000": CAMERAS[0]}, mirror_plane_azimuth_rad=PLANE)
    images, cameras = conditions(photos, path, BoothConfig())
    assert list(images) == list(cameras) == ["000", "000~"] and np.array_equal(images["000~"], symmetric[0][:, ::-1])
    assert list(conditions(photos, path, BoothConfig(symmetry=False))[0]) == ["000"]


def two_coloured(points):
    """Red where y > 0, and where y < 0 what a mirror at y = 0 makes of it; blue low down."""
    low = points[..., 2:] < 0
    return np.where(low, [0.1, 0.1, 0.8], [0.8, 0.1, 0.1])


TINY = dict(steps=40, grid=[12], level_starts=[0.0], photo_sizes=[16], rays=128, free_rays=0, occupancy_cells=12, sds=False, warm_start=False, device="cpu")
SIDE = {"000": Camera.from_degrees(0, 90)}


def reconstruction(plane, **changes):
    photos = {"000": sphere_image(SIDE["000"], 32, colour=two_coloured)}
    run = optimise.Reconstruction(photos, SIDE, recon_config.ReconConfig(**{**TINY, **changes}), mirror_plane=plane)
    run.run()
    return run


@pytest.fixture(scope="module")
def runs():
    """Runs without a mirror plane and with one."""
    return {plane: reconstruction(plane) for plane in (None, 0.0)}


def test_what_no_photo_shows_is_learned_from_the_mirrored_photo(runs):
    behind = Camera.from_degrees(0, -90)
    truth = sphere_image(behind, 32, colour=two_coloured)
    inside = truth[..., 3] > 0.99
    error = {}
    for plane, run in runs.items():
        seen = views.render_view(run.field, run.occupancy, behind, 32).colour.numpy()
        error[plane] = np.abs(seen - truth[..., :3])[inside].mean()
    assert error[0.0] < 0.5 * error[None]


def test_mirrored_photos_can_be_switched_off_and_count_little_where_a_photo_sees(runs):
    assert reconstruction(0.0, mirror_weight=0.0, steps=1).mirrored is None
    run = runs[0.0]
    run.seeing = torch.zeros_like(run.seeing)
    everywhere = run._mirror_loss().item()
    run.seeing = torch.full_like(run.seeing, 1.0)
    assert run._mirror_loss().item() < 0.2 * everywhere + 1e-9


def test_texture_takes_from_mirrored_photos_what_the_photos_do_not_see(runs):
    import trimesh

    ball = trimesh.creation.icosphere(3, RADIUS)
    photos = {"000": sphere_image(SIDE["000"], 128, colour=two_coloured)}
    mirrored = mirrored_views(photos, SIDE, 0.0)
    run = runs[None]
    vertices, faces = np.array(ball.vertices), np.array(ball.faces)
    plain = mesh.bake(run.field, run.occupancy, vertices, faces, 64, "vertex", [(photos, SIDE)])
    both = mesh.bake(run.field, run.occupancy, vertices, faces, 64, "vertex", [(photos, SIDE), mirrored])
    truth = two_coloured(vertices)
    clear = np.abs(vertices[:, 2]) > 0.05
    front, back = clear & (vertices[:, 1] > 0.3), clear & (vertices[:, 1] < -0.3)
    assert np.array_equal(plain.colours[front], both.colours[front])
    assert np.abs(both.colours[back] - truth[back]).max() < 0.1 < np.abs(plain.colours[back] - truth[back]).mean()
