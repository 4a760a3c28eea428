"""Scenes with known answers for the tests of stage 3."""

from pathlib import Path

import numpy as np
import torch

from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.field import fields, rendering
from sap3d.images import composite_white, save_image
from sap3d.scene import Scene, write_cameras


RADIUS = 0.4
CAMERAS = {f"{k:03d}": Camera.from_degrees(e, a) for k, (e, a) in enumerate([(0, 0), (30, 90), (0, 225)])}


def box(side: float = 0.5) -> torch.Tensor:
    return torch.tensor([[-side] * 3, [side] * 3])


def full_occupancy(bounds: torch.Tensor, cells: int = 16):
    return rendering.Occupancy(bounds, torch.ones(cells, cells, cells, dtype=torch.bool))


def random_field(seed: int = 0, voxels: int = 9**3):
    field = fields.DenseGrid(box(), voxels)
    generator = torch.Generator().manual_seed(seed)
    field.set_values(torch.randn(field.values.shape, generator=generator) * 2 - 1)
    return field


def solid_field(solid, voxels: int = 64**3, density: float = 400.0, colour=None):
    """A grid that is dense where ``solid`` (points (P, 3) -> signed distance, negative inside) says so."""
    field = fields.DenseGrid(box(0.55), voxels)
    z, y, x = field.values.shape[2:]
    axes = [torch.linspace(-0.55, 0.55, n) for n in (z, y, x)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).flip(-1)
    distance = solid(points.reshape(-1, 3)).view(z, y, x)
    values = torch.zeros_like(field.values)
    values[0, 0] = -distance * density / fields.DENSITY_UNIT / field.voxel_size()
    values[0, 1:] = 3.0 if colour is None else torch.logit(colour(points).clamp(0.02, 0.98)).permute(3, 0, 1, 2)
    field.set_values(values)
    return field


def random_rays(count: int, seed: int = 0):
    """Rays (count, 3), (count, 3) from outside towards points in the box."""
    generator = torch.Generator().manual_seed(seed)
    origins = torch.nn.functional.normalize(torch.randn(count, 3, generator=generator), dim=-1) * 1.5
    targets = torch.rand(count, 3, generator=generator) * 0.8 - 0.4
    return origins, torch.nn.functional.normalize(targets - origins, dim=-1)


def sphere_image(camera: Camera, size: int = 64, radius: float = RADIUS, colour=lambda points: points / RADIUS * 0.4 + 0.5) -> np.ndarray:
    """RGBA (size, size, 4) of a sphere about the origin, coloured by its points (..., 3), 3 x 3 samples a pixel."""
    from sap3d.cameras import rays

    fine = size * 3
    origins, directions = rays(camera.camera_from_world(), camera.fov_rad, fine, fine)
    half = -(origins * directions).sum(-1)
    discriminant = half**2 - (origins**2).sum(-1) + radius**2
    hit = discriminant > 0
    points = origins + directions * (half - np.sqrt(np.maximum(discriminant, 0)))[..., None]
    rgba = np.concatenate([colour(points) * hit[..., None], hit[..., None]], -1)
    rgba = rgba.reshape(size, 3, size, 3, 4).mean((1, 3))
    rgba[..., :3] /= np.maximum(rgba[..., 3:], 1e-6)
    return rgba.astype(np.float32)


def write_sphere_scene(root: Path, views: int = 3, novel_size: int = 16) -> Scene:
    """Photos, cameras and novel views of a sphere, laid out as stages 1 and 2 leave them."""
    scene = Scene("tiny", "ball", views, root)
    names = list(CAMERAS)[:views]
    folder = root / "dataset" / "data" / "train" / "tiny" / "ball" / "images"
    for name in names:
        save_image(folder / f"{name}.png", sphere_image(CAMERAS[name]))
    write_cameras(scene.refined_cameras, {name: CAMERAS[name] for name in names})
    for name, camera in protocol_test_cameras().items():
        save_image(scene.nvs_dir / "preds" / f"{name}.png", composite_white(sphere_image(camera, novel_size)))
    return scene
