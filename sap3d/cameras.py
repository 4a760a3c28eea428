"""Cameras: the one module that owns frames, axes, pixel centres and units (docs/conventions.md says the same in prose).

Frames
    world: right-handed, z up, object centred at the origin, longest side of its bounding box 1.
    camera: OpenGL axes (x right, y up, the camera looks along -z). Stored poses are 3 x 4 ``camera_from_world`` [R|t].

Angles are in radians unless a name ends in ``_deg``. ``polar`` is measured from +z (elevation = 90 degrees - polar),
``azimuth`` about z, counter-clockwise from +x. Functions accept and return NumPy arrays of float64.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Mapping

import numpy as np

FOV_RAD = float(np.deg2rad(49.1))  # full angle, square images: Zero-1-to-3's renders (35 mm lens on a 32 mm sensor)
RADIUS = 1.5  # the protocol's distance of camera and object centre

# The axes of OpenCV (x right, y down, z forward) and of PyTorch3D (x left, y up, z forward) in OpenGL camera axes.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0])
PYTORCH3D_FROM_OPENGL = np.diag([-1.0, 1.0, -1.0])


@dataclass(frozen=True)
class Camera:
    """A camera that looks at the origin without roll.

    polar_rad in (0, pi), azimuth_rad any (wrapped on output), radius > 0 in object lengths, fov_rad the full angle.
    """

    polar_rad: float
    azimuth_rad: float
    radius: float = RADIUS
    fov_rad: float = FOV_RAD

    @classmethod
    def from_degrees(cls, elevation_deg: float, azimuth_deg: float, radius: float = RADIUS, fov_deg: float = 49.1) -> Camera:
        return cls(np.deg2rad(90.0 - elevation_deg), np.deg2rad(azimuth_deg), float(radius), float(np.deg2rad(fov_deg)))

    @property
    def elevation_deg(self) -> float:
        return float(90.0 - np.rad2deg(self.polar_rad))

    @property
    def azimuth_deg(self) -> float:
        return float(np.rad2deg(self.azimuth_rad) % 360.0)

    def center(self) -> np.ndarray:
        """Camera centre in the world, shape (3,)."""
        return spherical_to_center(self.polar_rad, self.azimuth_rad, self.radius)

    def camera_from_world(self) -> np.ndarray:
        """The pose as stored on disk, shape (3, 4)."""
        return look_at_origin(self.center())

    def with_azimuth_offset(self, offset_rad: float) -> Camera:
        return replace(self, azimuth_rad=float(wrap_to_pi(self.azimuth_rad + offset_rad)))


def azimuths_from_first(cameras: Mapping[str, Camera]) -> dict[str, Camera]:
    """The cameras turned together about the up axis so that the first has azimuth 0."""
    first = next(iter(cameras.values())).azimuth_rad
    return {name: camera.with_azimuth_offset(-first) for name, camera in cameras.items()}


def radius_at_fov(radius, fov_rad):
    """Distance at which an object fills as much of a photo of this field of view as it does at ``radius`` of one of the protocol's (``FOV_RAD``)."""
    return radius * np.tan(FOV_RAD / 2) / np.tan(np.asarray(fov_rad) / 2)


def wrap_to_pi(angle_rad):
    """Angle(s) mapped to [-pi, pi)."""
    return (np.asarray(angle_rad) + np.pi) % (2 * np.pi) - np.pi


def spherical_to_center(polar_rad, azimuth_rad, radius) -> np.ndarray:
    """Points of a sphere about the origin; inputs broadcast, output has a last axis of 3."""
    polar_rad, azimuth_rad, radius = np.broadcast_arrays(polar_rad, azimuth_rad, radius)
    return np.stack(
        [
            radius * np.sin(polar_rad) * np.cos(azimuth_rad),
            radius * np.sin(polar_rad) * np.sin(azimuth_rad),
            radius * np.cos(polar_rad),
        ],
        axis=-1,
    )


def center_to_spherical(center: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(polar_rad in [0, pi], azimuth_rad in [-pi, pi), radius) of points (..., 3)."""
    center = np.asarray(center, dtype=np.float64)
    _check_last(center, 3, "center")
    radius = np.linalg.norm(center, axis=-1)
    horizontal = np.linalg.norm(center[..., :2], axis=-1)
    return np.arctan2(horizontal, center[..., 2]), wrap_to_pi(np.arctan2(center[..., 1], center[..., 0])), radius


def look_at_origin(center: np.ndarray) -> np.ndarray:
    """``camera_from_world`` (..., 3, 4) of cameras at ``center`` (..., 3) that look at the origin, z up, no roll.

    Straight above or below the object the horizontal axis is not defined by "no roll"; it is then the limit along azimuth 0.
    """
    center = np.asarray(center, dtype=np.float64)
    _check_last(center, 3, "center")
    backward = center / np.linalg.norm(center, axis=-1, keepdims=True)  # camera +z points away from the object
    right = np.cross(np.array([0.0, 0.0, 1.0]), backward)
    length = np.linalg.norm(right, axis=-1, keepdims=True)
    right = np.where(length > 1e-9, right / np.maximum(length, 1e-12), np.array([0.0, 1.0, 0.0]))
    up = np.cross(backward, right)
    rotation = np.stack([right, up, backward], axis=-2)
    translation = -np.einsum("...ij,...j->...i", rotation, center)
    return np.concatenate([rotation, translation[..., None]], axis=-1)


def turn_matrix(turn_rad) -> np.ndarray:
    """Rotation (..., 3, 3) from camera axes to those of the camera turned about its own up, right and backward axes, in this order.

    turn_rad (..., 3): radians, as stored in camera files (docs/conventions.md).
    """
    (cx, cy, cr), (sx, sy, sr) = (np.moveaxis(f(np.asarray(turn_rad, dtype=np.float64)), -1, 0)[..., None] for f in (np.cos, np.sin))
    right, up, backward = (np.broadcast_to(axis, (*cx.shape[:-1], 3)) for axis in np.eye(3))
    right, backward = cx * right - sx * backward, sx * right + cx * backward
    up, backward = cy * up + sy * backward, cy * backward - sy * up
    return np.stack([cr * right + sr * up, cr * up - sr * right, backward], -2)


def camera_centers(camera_from_world: np.ndarray) -> np.ndarray:
    """Camera centres (..., 3) of poses (..., 3, 4): -R^T t."""
    camera_from_world = np.asarray(camera_from_world, dtype=np.float64)
    _check_pose(camera_from_world)
    return -np.einsum("...ji,...j->...i", camera_from_world[..., :3], camera_from_world[..., 3])


def camera_from_pose(camera_from_world: np.ndarray, fov_rad: float = FOV_RAD) -> Camera:
    """The look-at camera with the centre of a stored pose (its roll and look-at offset, if any, are dropped)."""
    polar, azimuth, radius = center_to_spherical(camera_centers(camera_from_world))
    return Camera(float(polar), float(azimuth), float(radius), fov_rad)


def pose_condition(target: Camera, condition: Camera) -> np.ndarray:
    """What a model is told of the two cameras, shape (8,): Zero-1-to-3's T, and what fixes the cameras completely.

    The first four are T = [polar_t - polar_c, sin(d_azimuth), cos(d_azimuth), radius_t - radius_c] (arXiv 2303.11328, section
    3.2; signs as in its training data loader: target minus condition), all that the published model sees. Then the polar
    angle and the radius of the condition camera, and the tangents of half the fields of view, condition and target.
    """
    delta = target.azimuth_rad - condition.azimuth_rad
    return np.array(
        [
            target.polar_rad - condition.polar_rad, np.sin(delta), np.cos(delta), target.radius - condition.radius,
            condition.polar_rad, condition.radius, np.tan(condition.fov_rad / 2), np.tan(target.fov_rad / 2),
        ]
    )  # fmt: skip


def rays(camera_from_world: np.ndarray, fov_rad: float, height: int, width: int) -> tuple[np.ndarray, np.ndarray]:
    """World rays through all pixel centres of a square-pixel image.

    Returns origins and unit directions, both (height, width, 3). Pixel (row i, column j) has its centre at
    (j + 0.5, i + 0.5); ``fov_rad`` is the full angle across the width.
    """
    camera_from_world = np.asarray(camera_from_world, dtype=np.float64)
    _check_pose(camera_from_world)
    if camera_from_world.ndim != 2:
        raise ValueError(f"rays takes one pose of shape (3, 4), got {camera_from_world.shape}")
    tangent = np.tan(fov_rad / 2)
    x = ((np.arange(width) + 0.5) / width * 2 - 1) * tangent
    y = -((np.arange(height) + 0.5) / height * 2 - 1) * tangent * height / width
    directions = np.stack(np.broadcast_arrays(x[None, :], y[:, None], -1.0), axis=-1)
    directions = directions @ camera_from_world[:, :3]  # rows times R equals R^T d
    directions /= np.linalg.norm(directions, axis=-1, keepdims=True)
    return np.broadcast_to(camera_centers(camera_from_world), directions.shape).copy(), directions


def rotation_angle_deg(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Geodesic angle between rotations (..., 3, 3), in degrees in [0, 180]; exact at 0 and 180 degrees."""
    first, second = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    if first.shape[-2:] != (3, 3) or second.shape[-2:] != (3, 3):
        raise ValueError(f"rotations must end in (3, 3), got {first.shape} and {second.shape}")
    relative = np.einsum("...ij,...kj->...ik", first, second)
    # ||R - I||_F = 2 sqrt(2) sin(angle / 2): well-conditioned near 0, where the arc cosine of the trace is not.
    sine_half = np.linalg.norm(relative - np.eye(3), axis=(-2, -1)) / (2 * np.sqrt(2))
    cosine_half = np.sqrt(np.maximum(0.0, (np.trace(relative, axis1=-2, axis2=-1) + 1) / 4))
    return np.rad2deg(2 * np.arctan2(sine_half, cosine_half))


def common_up_axis(camera_from_world_rotations: np.ndarray) -> tuple[np.ndarray, float]:
    """The world's up axis from rotations alone, for cameras without roll.

    Without roll every camera's x axis is horizontal, so up is the direction most orthogonal to all of them: the last
    right singular vector of the stacked x axes. Its sign puts the cameras' own y axes upwards.

    Args: rotations (N, 3, 3), N >= 2, in any common frame.
    Returns: the unit axis (3,) in that frame, and a conditioning in [0, 1]: the second singular value over the first.
    Near 0 the azimuths are all equal or opposite and the axis is not determined.
    """
    rotations = np.asarray(camera_from_world_rotations, dtype=np.float64)
    if rotations.ndim != 3 or rotations.shape[1:] != (3, 3) or len(rotations) < 2:
        raise ValueError(f"common_up_axis needs rotations of shape (N >= 2, 3, 3), got {rotations.shape}")
    _, singular, vt = np.linalg.svd(rotations[:, 0, :])
    second = singular[1] if len(singular) > 1 else 0.0
    up = vt[-1]
    if np.sum(rotations[:, 1, :] @ up) < 0:
        up = -up
    return up, float(second / max(singular[0], 1e-12))


def rotation_between(source: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The smallest rotation (3, 3) that takes unit vector ``source`` to ``target``, also when they are opposite."""
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    cross, dot = np.cross(source, target), float(source @ target)
    if dot < -1 + 1e-9:
        axis = np.cross(source, [1.0, 0, 0] if abs(source[0]) < 0.9 else [0, 1.0, 0])
        axis /= np.linalg.norm(axis)
        return 2 * np.outer(axis, axis) - np.eye(3)
    skew = np.array([[0, -cross[2], cross[1]], [cross[2], 0, -cross[0]], [-cross[1], cross[0], 0]])
    return np.eye(3) + skew + skew @ skew / (1 + dot)


def protocol_test_cameras() -> dict[str, Camera]:
    """The 84 evaluation cameras: elevations 45 .. -45 in steps of 15 (rows) by azimuths 0 .. 330 in steps of 30."""
    cameras = [Camera.from_degrees(e, a) for e in (45, 30, 15, 0, -15, -30, -45) for a in range(0, 360, 30)]
    return {f"{index:03d}": camera for index, camera in enumerate(cameras)}


def turntable_cameras(frames: int, elevation_deg: float = 15.0, radius: float = RADIUS) -> list[Camera]:
    """One turn about the object, azimuth rising from 0."""
    return [Camera.from_degrees(elevation_deg, 360.0 * k / frames, radius) for k in range(frames)]


def _check_last(array: np.ndarray, size: int, name: str) -> None:
    if array.shape[-1:] != (size,):
        raise ValueError(f"{name} must end in ({size},), got {array.shape}")


def _check_pose(pose: np.ndarray) -> None:
    if pose.shape[-2:] != (3, 4):
        raise ValueError(f"a pose must end in (3, 4), got {pose.shape}")
