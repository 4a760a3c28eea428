"""Shape metrics of triangle meshes: Chamfer distance and F-score of visible points, IoU of solids on a grid.

Both meshes are given in the world of the truth (z up, its bounding box centred, longest side 1); distances are in that unit.
Following SAP3D's evaluation (that of SyncDreamer, arXiv 2309.03453): points seen in 16 depth maps, thinned to one a voxel
of 0.01, Chamfer = mean of the two mean nearest distances, IoU of 64^3 cells over [-1, 1]^3, F-scores at 0.04, 0.05, 0.06.

What is solid. SAP3D takes the sign of a distance field that counts crossings along grid lines; on meshes that are not
closed, or have inner faces, that count is arbitrary. Here a cell is empty when the outside can be seen from its centre:
when more than 2 % of rays in all directions leave without meeting the mesh. For a closed surface without hidden
cavities that is the same answer; small holes do not empty an object, flipped or inner faces do not matter, and closed
cavities count as solid for truth and prediction alike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sap3d import cameras

VOXEL = 0.01
GRID = 64
GRID_HALF_SIDE = 1.0
F_THRESHOLDS = (0.04, 0.05, 0.06)
_DEPTH_SIZE = 256
_SIGHT_DIRECTIONS = 128
_SIGHT_SHARE = 0.02


@dataclass(frozen=True)
class ShapeScores:
    """Chamfer distance and F-scores (at F_THRESHOLDS) of points, IoU of solids; lengths in longest sides of the truth."""

    chamfer: float
    iou: float
    f_scores: tuple[float, float, float]


class RaySurface:
    """Triangles (V, 3), (F, 3) in an Embree scene: first hits and free sight along rays. Winding does not matter."""

    def __init__(self, vertices: np.ndarray, faces: np.ndarray):
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        vertices, faces = np.asarray(vertices, dtype=np.float64), np.asarray(faces)
        if vertices.ndim != 2 or vertices.shape[1] != 3 or faces.ndim != 2 or faces.shape[1] != 3 or not len(faces):
            raise ValueError(f"a mesh needs vertices (V, 3) and at least one face (F, 3), got {vertices.shape} and {faces.shape}")
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, np.ascontiguousarray(vertices[faces], dtype=np.float32))
        used = vertices[np.unique(faces)]
        self.low, self.high = used.min(0), used.max(0)

    def distance(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Distance (n,) to the first hit along unit directions; infinite where nothing is met."""
        found = self._scene.run(_float32(origins), _float32(directions), query="DISTANCE")
        return np.where(found < 1e30, found, np.inf)

    def blocked(self, origins: np.ndarray, directions: np.ndarray) -> np.ndarray:
        """Whether (n,) each ray meets the mesh at all."""
        return self._scene.run(_float32(origins), _float32(directions), query="OCCLUDED") >= 0


def visible_points(surface: RaySurface, views: list[cameras.Camera], size: int = _DEPTH_SIZE) -> np.ndarray:
    """World points (P, 3) of the pixels of depth maps of ``size`` x ``size`` in which the surface is seen."""
    found = []
    for view in views:
        origins, directions = cameras.rays(view.camera_from_world(), view.fov_rad, size, size)
        origins, directions = origins.reshape(-1, 3), directions.reshape(-1, 3)
        distance = surface.distance(origins, directions)
        seen = np.isfinite(distance)
        found.append(origins[seen] + directions[seen] * distance[seen, None])
    return np.concatenate(found)


def ring_of_views(elevation_deg: float = 30.0, count: int = 16, offset_deg: float = 0.0) -> list[cameras.Camera]:
    """Cameras at one elevation and equal steps of azimuth, protocol radius and field of view.

    The default is SAP3D's set of 16. It never sees undersides; ``all_round_views`` does.
    """
    return [cameras.Camera.from_degrees(elevation_deg, offset_deg + 360.0 * k / count) for k in range(count)]


def all_round_views() -> list[cameras.Camera]:
    """32 cameras: 16 from above and 16 from below, in between each other."""
    return ring_of_views() + ring_of_views(-30.0, offset_deg=11.25)


def voxel_downsample(points: np.ndarray, voxel: float = VOXEL) -> np.ndarray:
    """One point a voxel: the mean of the points in it, (Q, 3)."""
    points = np.asarray(points, dtype=np.float64)
    if not len(points):
        return points
    keys = np.floor((points - points.min(0)) / voxel).astype(np.int64)
    side = keys.max(0) + 1
    _, inverse = np.unique((keys[:, 0] * side[1] + keys[:, 1]) * side[2] + keys[:, 2], return_inverse=True)
    counts = np.bincount(inverse)
    return np.stack([np.bincount(inverse, weights=points[:, axis]) / counts for axis in range(3)], axis=-1)


def chamfer_and_f(predicted: np.ndarray, truth: np.ndarray, thresholds=F_THRESHOLDS) -> tuple[float, tuple[float, ...]]:
    """(Chamfer distance, F-scores) of point sets (P, 3) and (Q, 3).

    Chamfer is the mean of the two mean nearest distances; an F-score is the harmonic mean of precision (predicted points
    closer than the threshold to a true one) and recall. An empty set gives an infinite distance and F = 0.
    """
    if not len(predicted) or not len(truth):
        return float("inf"), tuple(0.0 for _ in thresholds)
    to_truth = cKDTree(truth).query(predicted, workers=-1)[0]
    to_predicted = cKDTree(predicted).query(truth, workers=-1)[0]
    scores = []
    for threshold in thresholds:
        precision, recall = np.mean(to_truth < threshold), np.mean(to_predicted < threshold)
        scores.append(float(2 * precision * recall / (precision + recall)) if precision + recall > 0 else 0.0)
    return float((to_truth.mean() + to_predicted.mean()) / 2), tuple(scores)


def solid_grid(surface: RaySurface, size: int = GRID, half_side: float = GRID_HALF_SIDE) -> np.ndarray:
    """Which cells of [-half_side, half_side]^3 are inside the object, bool (size, size, size) indexed x, y, z.

    A cell is judged at its centre, by free sight (see the top of the module). Cells beyond the mesh's box are empty.
    """
    step = 2 * half_side / size
    axis = (np.arange(size) + 0.5) * step - half_side
    inside = [(axis >= surface.low[k]) & (axis <= surface.high[k]) for k in range(3)]
    solid = np.ix_(*inside)
    counts = tuple(int(i.sum()) for i in inside)
    grid = np.zeros((size,) * 3, dtype=bool)
    if 0 in counts:
        return grid
    centres = np.stack(np.meshgrid(*(axis[i] for i in inside), indexing="ij"), axis=-1).reshape(-1, 3)
    escapes = np.zeros(len(centres), dtype=np.int64)
    allowed = int(_SIGHT_SHARE * _SIGHT_DIRECTIONS)
    live = np.arange(len(centres))
    for direction in _sphere_directions(_SIGHT_DIRECTIONS):
        escapes[live] += ~surface.blocked(centres[live], np.broadcast_to(direction, (len(live), 3)))
        live = live[escapes[live] <= allowed]
        if not len(live):
            break
    grid[solid] = (escapes <= allowed).reshape(counts)
    return grid


def intersection_over_union(first: np.ndarray, second: np.ndarray) -> float:
    """IoU of two boolean grids; 0 when both are empty."""
    if first.shape != second.shape:
        raise ValueError(f"grids differ in shape: {first.shape} and {second.shape}")
    union = np.count_nonzero(first | second)
    return float(np.count_nonzero(first & second) / union) if union else 0.0


def score_shape(
    predicted: tuple[np.ndarray, np.ndarray], truth: tuple[np.ndarray, np.ndarray], views: list[cameras.Camera] | None = None
) -> ShapeScores:
    """Scores of a predicted mesh (vertices, faces) against the true one, both in the truth's world.

    ``views`` are the cameras whose depth maps give the points: SAP3D's ring of 16 by default.
    """
    views = ring_of_views() if views is None else views
    surfaces = [RaySurface(*mesh) for mesh in (predicted, truth)]
    points = [voxel_downsample(visible_points(surface, views)) for surface in surfaces]
    chamfer, f_scores = chamfer_and_f(*points)
    return ShapeScores(chamfer, intersection_over_union(*(solid_grid(surface) for surface in surfaces)), f_scores)


def rotate_about_up(vertices: np.ndarray, angle_rad: float) -> np.ndarray:
    """Vertices (V, 3) turned counter-clockwise about z."""
    cosine, sine = np.cos(angle_rad), np.sin(angle_rad)
    return np.asarray(vertices) @ np.array([[cosine, sine, 0], [-sine, cosine, 0], [0, 0, 1]])


def _sphere_directions(count: int) -> np.ndarray:
    """Nearly even unit directions (Fibonacci lattice), in an order that spreads early members over the sphere."""
    index = np.arange(count)
    height = 1 - (2 * index + 1) / count
    angle = np.pi * (3 - np.sqrt(5)) * index
    flat = np.sqrt(1 - height**2)
    directions = np.stack([flat * np.cos(angle), flat * np.sin(angle), height], axis=-1)
    return directions[np.argsort((index * 0.6180339887) % 1.0)]


def _float32(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array, dtype=np.float32)
