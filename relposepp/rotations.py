"""Rotations of stage 1: frames, sampling, spanning tree, and the way back to cameras that look at the object.

A relative rotation of views i and j is here ``camera_i_from_camera_j`` in PyTorch3D camera axes (x left, y up, z forward),
the frame of the published network: A R_i R_j^T A with R ``camera_from_world`` in OpenGL axes and A = diag(-1, 1, -1).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sap3d.cameras import PYTORCH3D_FROM_OPENGL, Camera, common_up_axis, rotation_between, wrap_to_pi


def relative_rotation(rotation_i: np.ndarray, rotation_j: np.ndarray) -> np.ndarray:
    """``camera_i_from_camera_j`` (..., 3, 3) in PyTorch3D axes from two ``camera_from_world`` rotations (OpenGL axes)."""
    product = np.asarray(rotation_i) @ np.swapaxes(np.asarray(rotation_j), -1, -2)
    return PYTORCH3D_FROM_OPENGL @ product @ PYTORCH3D_FROM_OPENGL


def chain_rotation(relative: np.ndarray, rotation_j: np.ndarray) -> np.ndarray:
    """``camera_from_world`` of view i from the relative rotation of i and j and the one of view j."""
    return PYTORCH3D_FROM_OPENGL @ np.asarray(relative) @ PYTORCH3D_FROM_OPENGL @ np.asarray(rotation_j)


def look_at_rotation(elevation_rad, azimuth_rad) -> np.ndarray:
    """``camera_from_world`` rotations (..., 3, 3) of cameras without roll that look at the origin (OpenGL axes)."""
    elevation, azimuth = np.broadcast_arrays(np.asarray(elevation_rad, float), np.asarray(azimuth_rad, float))
    ce, se, ca, sa, zero = np.cos(elevation), np.sin(elevation), np.cos(azimuth), np.sin(azimuth), np.zeros_like(elevation)
    right = np.stack([-sa, ca, zero], -1)
    up = np.stack([-se * ca, -se * sa, ce], -1)
    backward = np.stack([ce * ca, ce * sa, se], -1)
    return np.stack([right, up, backward], -2)


def random_rotations(count: int, generator: np.random.Generator) -> np.ndarray:
    """Uniform rotations (count, 3, 3): normalised Gaussian quaternions."""
    q = generator.standard_normal((count, 4))
    w, x, y, z = (q / np.linalg.norm(q, axis=1, keepdims=True)).T
    rows = [
        [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
        [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
        [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
    ]
    return np.stack([np.stack(row, -1) for row in rows], -2)


def random_look_at_relative(count: int, generator: np.random.Generator, elevation_range_deg=(-55.0, 75.0)) -> np.ndarray:
    """Relative rotations (count, 3, 3) of random pairs of cameras without roll, uniform on the sphere between elevations."""
    low, high = np.sin(np.deg2rad(elevation_range_deg))
    elevation = np.arcsin(generator.uniform(low, high, (2, count)))
    azimuth = generator.uniform(-np.pi, np.pi, count)
    return relative_rotation(look_at_rotation(elevation[0], azimuth), look_at_rotation(elevation[1], 0.0))


def maximum_spanning_tree(weights: np.ndarray) -> list[tuple[int, int]]:
    """Edges (known, new) of a maximum spanning tree of a dense graph, in the order in which Prim's algorithm adds them.

    weights (N, N): of the edge i-j the larger of [i, j] and [j, i] counts; the diagonal is ignored. Node 0 is the root.
    """
    weights = np.asarray(weights, dtype=np.float64)
    if weights.ndim != 2 or weights.shape[0] != weights.shape[1]:
        raise ValueError(f"weights must be square, got {weights.shape}")
    weights = np.maximum(weights, weights.T)
    known, edges = [0], []
    while len(known) < len(weights):
        rest = [k for k in range(len(weights)) if k not in known]
        block = weights[np.ix_(known, rest)]
        a, b = np.unravel_index(int(np.argmax(block)), block.shape)
        edges.append((known[a], rest[b]))
        known.append(rest[b])
    return edges


def elevations_from_rotations(rotations: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """Absolute elevation and azimuth of cameras without roll that are known up to one rotation of the world.

    rotations (N >= 2, 3, 3): ``camera_from_world`` in OpenGL axes, in any common world frame. The common up axis of the
    cameras' x axes is turned to +z (sap3d.cameras.common_up_axis).
    Returns: elevation (N,) and azimuth (N,) in radians, azimuth 0 at the first view, and the conditioning in [0, 1].
    """
    up, conditioning = common_up_axis(rotations)
    world_from_frame = rotation_between(up, np.array([0.0, 0.0, 1.0]))
    backward = np.asarray(rotations, float)[:, 2, :] @ world_from_frame.T
    elevation = np.arcsin(np.clip(backward[:, 2], -1, 1))
    azimuth = np.arctan2(backward[:, 1], backward[:, 0])
    return elevation, wrap_to_pi(azimuth - azimuth[0]), conditioning


def cameras_from_angles(elevation_rad: np.ndarray, azimuth_rad: np.ndarray, radius: np.ndarray, fov_rad: Sequence[float]) -> list[Camera]:
    """Cameras with azimuth counted from the first one; elevation is kept 1 degree off the poles, where azimuth ends."""
    limit = np.deg2rad(89.0)
    return [
        Camera(float(np.pi / 2 - np.clip(e, -limit, limit)), float(wrap_to_pi(a - azimuth_rad[0])), float(r), fov)
        for e, a, r, fov in zip(elevation_rad, azimuth_rad, radius, fov_rad)
    ]
