"""Camera metrics: rotation, elevation, azimuth, radius and position errors, SAP3D's way and the strict way.

Cameras are known up to a similarity, so errors are taken over pairs of views or after the best alignment.

    compat      as SAP3D: elevations relative to view 0 (a constant error of elevation goes unseen), rotation error of all
                pairs, and the errors of |difference| between pairs, blind to its sign.
    corrected   absolute elevation, signed wrap-safe differences, rotations with their absolute elevation, rotation and
                camera-centre errors after the best similarity, shares under 5 / 10 / 15 / 30 degrees.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Mapping

import numpy as np

from sap3d.cameras import Camera, camera_centers, camera_from_pose, look_at_origin, rotation_angle_deg, spherical_to_center, wrap_to_pi

ANGLE_THRESHOLDS_DEG = (5, 10, 15, 30)


@dataclass(frozen=True)
class Similarity:
    """x -> scale * rotation @ x + translation."""

    scale: float
    rotation: np.ndarray
    translation: np.ndarray

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (..., 3)."""
        return self.scale * np.asarray(points) @ self.rotation.T + self.translation


def umeyama(source: np.ndarray, target: np.ndarray) -> Similarity:
    """The similarity that takes points ``source`` (N, 3) to ``target`` (N, 3) with the least squared error.

    Umeyama 1991, eq. 34 to 43: a proper rotation also for mirrored or flat point sets, any angle. N >= 3, and not all
    source points on one line, else the rotation about that line is arbitrary.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim != 2 or source.shape[1] != 3 or len(source) < 3:
        raise ValueError(f"umeyama needs two point sets (N >= 3, 3), got {source.shape} and {target.shape}")
    centred, aim = source - source.mean(0), target - target.mean(0)
    u, singular, vt = np.linalg.svd(aim.T @ centred)
    signs = np.array([1.0, 1.0, np.sign(np.linalg.det(u @ vt)) or 1.0])
    rotation = (u * signs) @ vt
    spread = np.square(centred).sum()
    scale = float((singular * signs).sum() / spread) if spread > 0 else 1.0
    return Similarity(scale, rotation, target.mean(0) - scale * rotation @ source.mean(0))


def align_cameras(predicted: Mapping[str, Camera], truth: Mapping[str, np.ndarray]) -> Similarity:
    """The similarity from the predicted world to the true one that the cameras tell, for any number of views.

    Its rotation is the mean of the rotations that each view asks for (chordal mean, Hartley et al. 2013); scale and
    translation then fit camera centres and the points looked at (the object's centre in both worlds) by least squares.
    One or two camera centres alone would leave the rotation open and take the scale from a single baseline.
    """
    names = _common(predicted, truth)
    poses = np.stack([predicted[name].camera_from_world() for name in names])
    true_poses = np.stack([np.asarray(truth[name], dtype=np.float64) for name in names])
    u, _, vt = np.linalg.svd(np.einsum("nji,njk->ik", true_poses[:, :, :3], poses[:, :, :3]))
    rotation = (u * np.array([1.0, 1.0, np.linalg.det(u @ vt)])) @ vt
    source = np.concatenate([camera_centers(poses), np.zeros((len(names), 3))]) @ rotation.T
    target = np.concatenate([camera_centers(true_poses), np.zeros((len(names), 3))])
    centred, aim = source - source.mean(0), target - target.mean(0)
    scale = float((centred * aim).sum() / np.square(centred).sum())
    scale = float(np.clip(scale, 0.1, 10.0))  # opposite cameras would ask for a scale of 0 or less, which loses the object
    return Similarity(scale, rotation, target.mean(0) - scale * source.mean(0))


def compat_errors(predicted: Mapping[str, Camera], truth: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """SAP3D's four errors over all pairs of views: "Rotation Error", "Elevation", "Azimuth" in degrees, "Radius".

    Args: predicted cameras and true poses (3, 4) ``camera_from_world``, keyed by view name; the first predicted view is view 0.
    Returns None for each with a single view. Differences of azimuth are wrapped before their sign is dropped (SAP3D's are
    not, and its azimuths are stored so that it does not matter).
    """
    names = _common(predicted, truth)
    keys = ("Rotation Error", "Elevation", "Azimuth", "Radius")
    if len(names) < 2:
        return dict.fromkeys(keys)
    true = {name: camera_from_pose(truth[name]) for name in names}
    pairs = list(itertools.combinations(names, 2))

    def sign_blind(value):
        return float(np.mean([abs(abs(value(predicted[a], predicted[b])) - abs(value(true[a], true[b]))) for a, b in pairs]))

    rotations = [_relative_to_first({name: views[name] for name in names}) for views in (predicted, true)]
    return {
        "Rotation Error": float(np.mean(_pair_rotation_errors(*rotations, pairs))),
        "Elevation": sign_blind(lambda a, b: a.elevation_deg - b.elevation_deg),
        "Azimuth": sign_blind(lambda a, b: np.rad2deg(wrap_to_pi(a.azimuth_rad - b.azimuth_rad))),
        "Radius": sign_blind(lambda a, b: a.radius - b.radius),
    }


def corrected_errors(predicted: Mapping[str, Camera], truth: Mapping[str, np.ndarray]) -> dict[str, float | None]:
    """Strict errors; angles in degrees, lengths in longest sides of the object. Pair errors are None for a single view.

    rotation_pairs            mean over pairs of the angle between predicted and true relative rotation
    rotation_pairs_under_D    share of pairs with less than D degrees
    rotation_aligned          mean over views of the angle that is left after ``align_cameras``
    elevation, elevation_bias mean absolute and mean signed error of the absolute elevation
    azimuth                   mean over pairs of the absolute error of the signed, wrapped difference of azimuth
    radius                    mean absolute error over views
    center_aligned            mean distance of camera centres after ``align_cameras``
    center_umeyama            the same after the best similarity of the centres alone (three views or more)
    """
    names = _common(predicted, truth)
    true = {name: camera_from_pose(truth[name]) for name in names}
    rotations = {name: predicted[name].camera_from_world()[:, :3] for name in names}
    true_rotations = {name: np.asarray(truth[name], dtype=np.float64)[:, :3] for name in names}
    pairs = list(itertools.combinations(names, 2))
    elevation = np.array([predicted[name].elevation_deg - true[name].elevation_deg for name in names])
    result: dict[str, float | None] = {
        "views": len(names),
        "elevation": float(np.abs(elevation).mean()),
        "elevation_bias": float(elevation.mean()),
        "radius": float(np.mean([abs(predicted[name].radius - true[name].radius) for name in names])),
    }
    under = [f"rotation_pairs_under_{d}" for d in ANGLE_THRESHOLDS_DEG]
    result.update(dict.fromkeys(["rotation_pairs", *under, "rotation_aligned", "azimuth", "center_aligned", "center_umeyama"]))
    if not pairs:
        return result
    angles = _pair_rotation_errors(rotations, true_rotations, pairs)
    azimuth = [
        wrap_to_pi((predicted[a].azimuth_rad - predicted[b].azimuth_rad) - (true[a].azimuth_rad - true[b].azimuth_rad)) for a, b in pairs
    ]
    alignment = align_cameras(predicted, truth)
    centers = np.stack([predicted[name].center() for name in names])
    true_centers = np.stack([camera_centers(np.asarray(truth[name])) for name in names])
    aligned = np.stack([rotations[name] @ alignment.rotation.T for name in names])
    result["rotation_pairs"] = float(angles.mean())
    result.update({f"rotation_pairs_under_{d}": float(np.mean(angles < d)) for d in ANGLE_THRESHOLDS_DEG})
    result["rotation_aligned"] = float(np.mean(rotation_angle_deg(aligned, np.stack([true_rotations[name] for name in names]))))
    result["azimuth"] = float(np.rad2deg(np.abs(azimuth)).mean())
    result["center_aligned"] = float(np.linalg.norm(alignment.apply(centers) - true_centers, axis=-1).mean())
    if len(names) >= 3:
        result["center_umeyama"] = float(np.linalg.norm(umeyama(centers, true_centers).apply(centers) - true_centers, axis=-1).mean())
    return result


def _common(predicted: Mapping[str, Camera], truth: Mapping[str, np.ndarray]) -> list[str]:
    names = [name for name in predicted if name in truth]
    if not names:
        raise ValueError(f"no view is both predicted ({', '.join(predicted)}) and known ({', '.join(truth)})")
    return names


def _relative_to_first(views: Mapping[str, Camera]) -> dict[str, np.ndarray]:
    """Rotations (3, 3) of cameras whose elevation is taken relative to the first view's, as SAP3D does."""
    first = next(iter(views.values()))
    return {
        name: look_at_origin(spherical_to_center(np.pi / 2 + view.polar_rad - first.polar_rad, view.azimuth_rad - first.azimuth_rad, 1.0))[:, :3]
        for name, view in views.items()
    }


def _pair_rotation_errors(predicted: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray], pairs) -> np.ndarray:
    """Angles (P,) between the relative rotations of predicted and true cameras."""
    return np.array([rotation_angle_deg(predicted[a] @ predicted[b].T, truth[a] @ truth[b].T) for a, b in pairs])
