"""The photos' own colours on the surface: finer than a grid can hold, for the texture of the mesh and for the renders.

A photo sees a point that the surface does not hide from it and that lies well inside its mask. Photos are mixed by the cosine at which
they look at the surface, to a high power: nearly the best one alone, as mixtures of inexact cameras are blurred, yet without a seam where
another becomes the best. This is texture mapping from photos as in Debevec, Taylor and Malik 1996, section 4, on the reconstructed surface.
"""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from sap3d.cameras import Camera
from sap3d.images import resize

from sap3d.field.fields import Field
from sap3d.field.photos import camera_rays
from sap3d.field.rendering import Occupancy
from sap3d.field.views import View, render_view

GRAZING = (0.15, 0.5)  # cosines between a photo's ray and the surface: below, the photo's colours count nothing, above, fully
SHARPNESS = 8  # power of the cosine with which photos are mixed
MARGIN = 0.006  # of a photo's side: that close to its outline, a mask's pixels may be background
HIDDEN = 0.015  # object lengths by which a photo may see past the surface

Sources = Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, Camera]]]
# Distances (P,) from a camera's centre at which the surface is met on the rays through points (P, 3); infinite where it is not.
Hits = Callable[[Camera, torch.Tensor], torch.Tensor]


class PhotoColours:
    """Colours of surface points in several sets of photos.

    sources: pairs of photos (RGBA (S, S, 4) in [0, 1] by name) and their cameras; what the first ones see is not asked of the next ones.
    """

    def __init__(self, sources: Sources, hits: Hits, device="cpu"):
        self.hits = hits
        self.sources = [[(cameras[name], _layers(photo).to(device)) for name, photo in photos.items()] for photos, cameras in sources]

    @torch.no_grad()
    def __call__(self, points: torch.Tensor, normals: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(colours (P, 3), belief (P,) in [0, 1]) of points with unit outward normals, (P, 3) each; colours are 0 where the belief is."""
        colours, left = torch.zeros_like(points), torch.ones_like(points[:, 0])  # left: share of the colour that is still open
        for photos in self.sources:
            open_ = (left > 0).nonzero()[:, 0]
            found, share = self._of_one_set(photos, points[open_], normals[open_])
            colours[open_] += (left[open_] * share)[:, None] * found
            left[open_] *= 1 - share
        return colours / (1 - left).clamp_min(1e-6)[:, None], 1 - left

    def _of_one_set(self, photos, points, normals):
        total, weights, best = torch.zeros_like(points), torch.zeros_like(points[:, 0]), torch.zeros_like(points[:, 0])
        for camera, layers in photos:
            offset = points - torch.as_tensor(camera.center(), dtype=points.dtype, device=points.device)
            distance = offset.norm(dim=1)
            cosine = -(offset * normals).sum(1) / distance
            facing = (cosine > GRAZING[0]).nonzero()[:, 0]
            read = F.grid_sample(layers[None], project(camera, points[facing])[None, :, None], align_corners=False)[0, :, :, 0]
            seen = (self.hits(camera, points[facing]) > distance[facing] - HIDDEN) & (read[3] > 0.99)
            rows = facing[seen]
            weight = cosine[rows] ** SHARPNESS
            total[rows] += weight[:, None] * read[:3, seen].T
            weights[rows] += weight
            best[rows] = torch.maximum(best[rows], cosine[rows])
        low, high = GRAZING
        return total / weights.clamp_min(1e-12)[:, None], ((best - low) / (high - low)).clamp(0, 1)


def project(camera: Camera, points: torch.Tensor) -> torch.Tensor:
    """Places (P, 2) of world points (P, 3) in a camera's image as ``grid_sample`` takes them: -1 to 1, to the right and downwards."""
    pose = torch.as_tensor(camera.camera_from_world(), dtype=points.dtype, device=points.device)
    local = points @ pose[:, :3].T + pose[:, 3]
    half = -local[:, 2:] * float(np.tan(camera.fov_rad / 2))
    return torch.cat([local[:, :1] / half, -local[:, 1:2] / half], 1)


def _layers(photo: np.ndarray) -> torch.Tensor:
    """Colour and the least coverage near by, (4, S, S)."""
    window = max(3, round(MARGIN * len(photo)) * 2 + 1)
    image = torch.from_numpy(np.ascontiguousarray(photo, np.float32)).permute(2, 0, 1)
    inside = -F.max_pool2d(-image[None, 3:], window, 1, window // 2)[0]
    return torch.cat([image[:3], inside])


def mesh_hits(vertices: np.ndarray, faces: np.ndarray) -> Hits:
    """``Hits`` of a triangle mesh."""
    from sap3d.metrics.shape import RaySurface

    surface = RaySurface(vertices, faces)

    def hits(camera, points):
        centre = camera.center()
        directions = points.numpy() - centre
        directions = directions / np.linalg.norm(directions, axis=1, keepdims=True)
        return torch.from_numpy(surface.distance(np.tile(centre, (len(points), 1)), directions)).to(points)

    return hits


class PhotoDetail:
    """What a field's renders lack of the photos, to be added to renders from other cameras.

    The difference between a photo and the field's own render of it is small where the grid can follow, so that it does little harm where a
    camera or the surface is a little wrong; the photos' colours themselves would bring their misplaced edges and light along.
    """

    def __init__(self, field: Field, occupancy: Occupancy, sources: Sources, size: int, strength: float = 1.0):
        """sources: see ``PhotoColours``; size: side in pixels at which photos and renders are compared; strength: factor on what is added."""
        self.strength = strength
        self.depths: dict[Camera, torch.Tensor] = {}
        lacking = []
        for photos, cameras in sources:
            differences = {}
            for name, photo in photos.items():
                view = render_view(field, occupancy, cameras[name], size)
                self.depths[cameras[name]] = F.max_pool2d(view.depth.clamp_max(1e3)[None, None], 3, 1, 1)  # the farthest of the pixels around
                photo = resize(photo, size)
                own = view.colour.cpu().numpy() - (1 - view.opacity.cpu().numpy())[..., None]
                differences[name] = np.concatenate([photo[..., :3] * photo[..., 3:] - own, photo[..., 3:]], -1)
            lacking.append((differences, cameras))
        self.differences = PhotoColours(lacking, self._hits, field.bounds.device)

    def _hits(self, camera: Camera, points: torch.Tensor) -> torch.Tensor:
        return F.grid_sample(self.depths[camera], project(camera, points)[None, :, None], mode="nearest", align_corners=False)[0, 0, :, 0]

    @torch.no_grad()
    def add(self, view: View, camera: Camera) -> View:
        """The view (S, S) of ``camera`` with the detail of the photos that see the surface of its pixels."""
        hit = torch.isfinite(view.depth)
        origins, directions = (rays.view(*hit.shape, 3) for rays in camera_rays(camera, len(view.depth), view.depth.device))
        points = origins + directions * view.depth[..., None]
        normals = surface_normals(points)
        difference, belief = self.differences(points[hit], normals[hit])
        colour = view.colour.clone()
        colour[hit] = (colour[hit] + self.strength * (belief * view.opacity[hit])[:, None] * difference).clamp(0, 1)
        seen = torch.zeros_like(view.opacity)
        seen[hit] = belief
        return View(colour, view.opacity, view.depth, view.normal, seen)


def surface_normals(points: torch.Tensor, reach: int = 2) -> torch.Tensor:
    """Unit normals (S, S, 3), towards the camera, of an image's surface points (S, S, 3), which are not finite where there is none.

    From the pixels ``reach`` to each side; 0 where one of them is missing, as at outlines, which photos are not to be trusted with anyway.
    """
    along = []
    for axis in (0, 1):
        step = points.roll(-reach, axis) - points.roll(reach, axis)
        step.narrow(axis, 0, reach).fill_(float("nan"))
        step.narrow(axis, points.shape[axis] - reach, reach).fill_(float("nan"))
        along.append(step)
    normals = F.normalize(torch.linalg.cross(*along), dim=-1)  # rows go down and columns to the right: towards the camera
    return torch.where(torch.isfinite(normals).all(-1, keepdim=True), normals, torch.zeros_like(normals))
