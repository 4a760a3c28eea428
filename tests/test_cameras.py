"""Geometry of cameras as properties over ranges of angles: past 90, at 180 degrees, at the poles, through the wrap-around."""

import numpy as np
import pytest

from sap3d import cameras
from sap3d.cameras import Camera

ELEVATIONS = (-89.0, -60.0, -1e-4, 0.0, 30.0, 75.0, 89.0)
AZIMUTHS = (-720.0, -190.0, -90.0, 0.0, 45.0, 90.0, 135.0, 179.999, 180.0, 225.0, 270.0, 359.0, 400.0)


def rotation(axis, angle_deg):
    axis = np.asarray(axis, float) / np.linalg.norm(axis)
    k = np.array([[0, -axis[2], axis[1]], [axis[2], 0, -axis[0]], [-axis[1], axis[0], 0]])
    angle = np.deg2rad(angle_deg)
    return np.eye(3) + np.sin(angle) * k + (1 - np.cos(angle)) * k @ k


@pytest.mark.parametrize("elevation", ELEVATIONS)
@pytest.mark.parametrize("azimuth", AZIMUTHS)
def test_look_at_camera(elevation, azimuth):
    camera = Camera.from_degrees(elevation, azimuth, 1.7)
    pose = camera.camera_from_world()
    r = pose[:, :3]
    assert np.allclose(r @ r.T, np.eye(3), atol=1e-12) and np.linalg.det(r) == pytest.approx(1)
    assert pose[:, 3] == pytest.approx([0, 0, -1.7], abs=1e-12)  # the object's centre lies on the viewing axis
    assert r[0, 2] == pytest.approx(0, abs=1e-12) and r[1, 2] > 0  # no roll: x is horizontal, y points up
    assert cameras.camera_centers(pose) == pytest.approx(camera.center(), abs=1e-12)
    assert camera.center()[2] == pytest.approx(1.7 * np.sin(np.deg2rad(elevation)))
    back = cameras.camera_from_pose(pose)
    assert back.elevation_deg == pytest.approx(elevation, abs=1e-6) and back.radius == pytest.approx(1.7)
    assert float(cameras.wrap_to_pi(back.azimuth_rad - np.deg2rad(azimuth))) == pytest.approx(0, abs=1e-6)


def test_axes_of_the_world_by_hand():
    front = Camera.from_degrees(0, 0)
    assert front.center() == pytest.approx([1.5, 0, 0])
    assert front.camera_from_world()[:, :3] == pytest.approx(np.array([[0, 1, 0], [0, 0, 1], [1, 0, 0]]))  # right is +y, up is +z
    assert Camera.from_degrees(0, 90).center() == pytest.approx([0, 1.5, 0])
    assert Camera.from_degrees(30, 0).center() == pytest.approx([1.5 * np.sqrt(0.75), 0, 0.75])
    assert cameras.FOV_RAD == pytest.approx(0.857, abs=1e-3)


@pytest.mark.parametrize("height", (1.0, -1.0, 2.5))
def test_straight_above_and_below(height):
    pose = cameras.look_at_origin(np.array([0, 0, height]))
    assert np.isfinite(pose).all() and np.linalg.det(pose[:, :3]) == pytest.approx(1)
    assert cameras.camera_centers(pose) == pytest.approx([0, 0, height])
    near = cameras.look_at_origin(np.array([1e-5, 0, height]))  # the limit along azimuth 0
    assert cameras.rotation_angle_deg(pose[:, :3], near[:, :3]) < 0.01


def test_wrap_around():
    angles = np.linspace(-20, 20, 401)
    wrapped = cameras.wrap_to_pi(angles)
    assert (wrapped >= -np.pi).all() and (wrapped < np.pi).all()
    assert np.cos(wrapped) == pytest.approx(np.cos(angles)) and np.sin(wrapped) == pytest.approx(np.sin(angles))
    assert cameras.wrap_to_pi(np.pi) == -np.pi
    camera = Camera.from_degrees(10, 350).with_azimuth_offset(np.deg2rad(20))
    assert camera.azimuth_deg == pytest.approx(10) and camera.elevation_deg == pytest.approx(10)


def test_pose_condition_signs():
    reference = Camera.from_degrees(0, 0)
    higher, turned, farther = Camera.from_degrees(30, 0), Camera.from_degrees(0, 90), Camera.from_degrees(0, 0, 1.9)
    published = lambda target, condition: cameras.pose_condition(target, condition)[:4]  # noqa: E731
    assert published(reference, reference) == pytest.approx([0, 0, 1, 0])
    assert published(higher, reference) == pytest.approx([-np.deg2rad(30), 0, 1, 0])  # polar angle falls when rising
    assert published(turned, reference) == pytest.approx([0, 1, 0, 0])  # target minus condition
    assert published(reference, turned) == pytest.approx([0, -1, 0, 0])
    assert published(farther, reference) == pytest.approx([0, 0, 1, 0.4])
    for azimuth in AZIMUTHS:  # only the difference counts, and it passes through the wrap-around
        moved = published(turned.with_azimuth_offset(azimuth), reference.with_azimuth_offset(azimuth))
        assert moved == pytest.approx([0, 1, 0, 0], abs=1e-9)
    narrow = Camera(1.2, 0.5, 1.7, 0.6)  # beyond the published four: what fixes both cameras
    assert cameras.pose_condition(narrow, farther)[4:] == pytest.approx([np.pi / 2, 1.9, np.tan(np.deg2rad(49.1) / 2), np.tan(0.3)])


def test_rays_and_pixel_centres():
    camera = Camera.from_degrees(20, 70)
    pose = camera.camera_from_world()
    origins, directions = cameras.rays(pose, camera.fov_rad, 5, 5)
    assert origins.shape == directions.shape == (5, 5, 3)
    assert np.linalg.norm(directions, axis=-1) == pytest.approx(np.ones((5, 5)))
    assert directions[2, 2] == pytest.approx(-camera.center() / 1.5)  # the middle pixel looks at the object's centre
    in_camera = directions @ pose[:, :3].T
    assert (in_camera[..., 2] < 0).all()
    assert (np.diff(in_camera[2, :, 0]) > 0).all() and (np.diff(in_camera[:, 2, 1]) < 0).all()  # x to the right, image rows downwards
    edge = in_camera[2, 4] / -in_camera[2, 4, 2]
    assert edge[0] == pytest.approx(0.8 * np.tan(camera.fov_rad / 2))  # pixel centres, not corners: (4.5 / 5) * 2 - 1


def test_rays_project_back():
    camera = Camera.from_degrees(-35, 200, 2.0, 60)
    pose = camera.camera_from_world()
    origins, directions = cameras.rays(pose, camera.fov_rad, 8, 12)
    points = origins + directions * np.linspace(0.5, 3, 12)[None, :, None]
    local = points @ pose[:, :3].T + pose[:, 3]
    tangent = np.tan(camera.fov_rad / 2)
    column = (local[..., 0] / -local[..., 2] / tangent + 1) / 2 * 12
    row = (1 - local[..., 1] / -local[..., 2] / (tangent * 8 / 12)) / 2 * 8
    assert column == pytest.approx(np.broadcast_to(np.arange(12) + 0.5, (8, 12)))
    assert row == pytest.approx(np.broadcast_to((np.arange(8) + 0.5)[:, None], (8, 12)))


@pytest.mark.parametrize("angle", (0, 1e-6, 0.5, 45, 89.9, 90, 90.1, 135, 179, 179.9999, 180))
def test_rotation_angle(angle):
    generator = np.random.default_rng(int(angle * 10))
    for _ in range(5):
        base = rotation(generator.normal(size=3), generator.uniform(0, 360))
        turned = rotation(generator.normal(size=3), angle) @ base
        assert cameras.rotation_angle_deg(turned, base) == pytest.approx(angle, abs=1e-5)
        assert cameras.rotation_angle_deg(base, turned) == pytest.approx(angle, abs=1e-5)


@pytest.mark.parametrize("azimuths", ((0, 90), (0, 20, 40), (0, 90, 180), (10, 200, 300, 350)))
def test_common_up_axis_gives_absolute_elevation(azimuths):
    generator = np.random.default_rng(len(azimuths))
    views = [Camera.from_degrees(generator.uniform(-40, 70), a) for a in azimuths]
    rotations = np.stack([v.camera_from_world()[:, :3] for v in views])
    for tilt in (0, 60, 120, 180):  # an unknown frame: up may point anywhere in it
        frame = rotation(generator.normal(size=3), tilt)
        up, conditioning = cameras.common_up_axis(rotations @ frame.T)
        assert up == pytest.approx(frame @ [0, 0, 1], abs=1e-9) and conditioning > 0.1
        elevation = np.rad2deg(np.arcsin(np.einsum("ni,i->n", (rotations @ frame.T)[:, 2], up)))
        assert elevation == pytest.approx([v.elevation_deg for v in views], abs=1e-6)


def test_common_up_axis_says_when_it_cannot_know():
    for azimuths in ((0, 0), (0, 180), (30, 210, 30)):
        rotations = np.stack([Camera.from_degrees(e, a).camera_from_world()[:, :3] for e, a in zip((0, 30, 20), azimuths)])
        assert cameras.common_up_axis(rotations)[1] < 1e-6


@pytest.mark.parametrize("angle", (0, 30, 90, 120, 179, 180))
def test_rotation_between(angle):
    generator = np.random.default_rng(angle)
    for _ in range(5):
        source = generator.normal(size=3)
        source /= np.linalg.norm(source)
        target = rotation(np.cross(source, generator.normal(size=3)), angle) @ source
        found = cameras.rotation_between(source, target)
        assert found @ source == pytest.approx(target, abs=1e-6)
        assert found @ found.T == pytest.approx(np.eye(3), abs=1e-6) and np.linalg.det(found) == pytest.approx(1)
        assert cameras.rotation_angle_deg(found, np.eye(3)) == pytest.approx(angle, abs=1e-4)


def test_the_protocol():
    views = cameras.protocol_test_cameras()
    assert list(views) == [f"{k:03d}" for k in range(84)]
    assert views["000"].elevation_deg == pytest.approx(45) and views["083"].elevation_deg == pytest.approx(-45)
    assert views["037"].azimuth_deg == pytest.approx(30) and views["037"].elevation_deg == pytest.approx(0)
    assert {round(v.radius, 3) for v in views.values()} == {1.5}
    turn = cameras.turntable_cameras(8)
    assert [round(c.azimuth_deg) for c in turn] == list(range(0, 360, 45))


def test_other_axes():
    seen = np.array([1.0, 2.0, -3.0])  # right of the camera's axis, above it and in front
    assert (cameras.OPENCV_FROM_OPENGL @ seen).tolist() == [1, -2, 3]  # x right, y down, looks along +z
    assert (cameras.PYTORCH3D_FROM_OPENGL @ seen).tolist() == [-1, 2, 3]  # x left, y up, looks along +z


def test_wrong_shapes_raise():
    for call in (
        lambda: cameras.rays(np.eye(4), 1.0, 4, 4),
        lambda: cameras.rays(np.zeros((2, 3, 4)), 1.0, 4, 4),
        lambda: cameras.camera_centers(np.eye(3)),
        lambda: cameras.center_to_spherical(np.zeros(2)),
        lambda: cameras.look_at_origin(np.ones(4)),
        lambda: cameras.rotation_angle_deg(np.eye(4), np.eye(4)),
        lambda: cameras.common_up_axis(np.eye(3)[None]),
        lambda: cameras.common_up_axis(np.zeros((3, 3, 4))),
    ):
        with pytest.raises(ValueError):
            call()
