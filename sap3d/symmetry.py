"""Mirror symmetry: a photo of an object with a vertical mirror plane is, mirrored, one more photo of it.

Stage 1 finds the plane (relposepp/symmetry.py) and leaves it in the camera file (``sap3d.scene.read_mirror_plane``); stages 2 and 3 take
the mirrored photos, with mirrored cameras, beside the photos.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np

from sap3d.cameras import Camera

SUFFIX = "~"  # a mirrored view's name is the view's and this
APART_DEG = 20.0  # a mirrored camera nearer than this to a photo's shows nothing new, and asymmetries in the wrong place


def mirrored_camera(camera: Camera, plane_azimuth_rad: float) -> Camera:
    """The camera that sees the mirrored object as ``camera`` sees the object, left and right exchanged; the plane is vertical and holds the origin."""
    return dataclasses.replace(camera, azimuth_rad=2 * plane_azimuth_rad - camera.azimuth_rad)


def mirrored_views(photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], plane_azimuth_rad: float | None) -> tuple[dict[str, np.ndarray], dict[str, Camera]]:
    """Mirrored photos (H, W, C) and their cameras, by the views' names and ``SUFFIX``, as far as they look from elsewhere than all the photos.

    plane_azimuth_rad: None for an object without a mirror plane, which has none.
    """
    if plane_azimuth_rad is None:
        return {}, {}
    directions = np.stack([cameras[name].center() / cameras[name].radius for name in photos])
    images, found = {}, {}
    for name, photo in photos.items():
        camera = mirrored_camera(cameras[name], plane_azimuth_rad)
        if (directions @ camera.center() / camera.radius).max() < np.cos(np.deg2rad(APART_DEG)):
            images[name + SUFFIX], found[name + SUFFIX] = np.ascontiguousarray(photo[:, ::-1]), camera
    return images, found
