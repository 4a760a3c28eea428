"""Textured meshes to RGBA images and depth maps by ray casting (trimesh reads the file, Embree finds the hits, NumPy shades).

    mesh = load_mesh_normalised("model.obj")                       # z up, centred, longest side 1
    images = render_rgba(mesh, poses, FOV_RAD, 256)                # (N, 256, 256, 4) straight alpha
    depths = render_depth(mesh, poses, FOV_RAD, 256)               # (N, 256, 256), 0 where nothing is hit

Shading is deliberately plain: albedo times (ambient + a few directional lights), in the textures' own sRGB values, with
normals turned toward the camera, since many meshes in the wild have flipped faces. Lights belong to the world, so that an
object looks the same from all its views.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sap3d import cameras
from sap3d.mesh_load import RenderMesh, load_mesh, load_mesh_normalised, normalise_vertices

__all__ = [
    "DEFAULT_LIGHTING", "Lighting", "MeshRenderer", "RenderMesh", "load_mesh", "load_mesh_normalised", "normalise_vertices",
    "random_lighting", "render_depth", "render_rgba",
]  # fmt: skip
_CREASE_COSINE = float(np.cos(np.deg2rad(40.0)))  # faces that meet at a smaller angle are shaded smoothly


@dataclass(frozen=True)
class Lighting:
    """Ambient level and directional lights of the world: directions (L, 3), unit, pointing to the light; levels (L,)."""

    ambient: float = 0.62
    directions: tuple[tuple[float, float, float], ...] = ((0.46, -0.36, 0.81), (-0.64, 0.43, 0.64), (0.2, 0.3, -0.93))
    levels: tuple[float, ...] = (0.28, 0.16, 0.12)


DEFAULT_LIGHTING = Lighting()


def random_lighting(generator: np.random.Generator) -> Lighting:
    """A key light from above, a fill light and a weak light from below, albedo-dominant; the brightest point is about 1."""
    azimuth = generator.uniform(0, 2 * np.pi) + np.array([0.0, generator.uniform(1.6, 4.7), generator.uniform(0, 6.3)])
    elevation = np.deg2rad([generator.uniform(20, 75), generator.uniform(-10, 60), generator.uniform(-80, -20)])
    directions = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    ambient = generator.uniform(0.5, 0.75)
    levels = (1.0 - ambient) * np.array([generator.uniform(0.7, 1.0), generator.uniform(0.2, 0.5), generator.uniform(0.1, 0.3)])
    return Lighting(float(ambient), tuple(map(tuple, directions.tolist())), tuple(levels.tolist()))


class MeshRenderer:
    """A mesh made ready to be rendered many times: Embree scene, smooth normals, texture pyramids."""

    def __init__(self, mesh: RenderMesh):
        from embreex.mesh_construction import TriangleMesh
        from embreex.rtcore_scene import EmbreeScene

        self.mesh = mesh
        corners = np.ascontiguousarray(mesh.vertices[mesh.faces], dtype=np.float32)
        self._scene = EmbreeScene()
        TriangleMesh(self._scene, corners)
        self._origin = corners[:, 0]
        self._edge1, self._edge2 = corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]
        normal = np.cross(self._edge1, self._edge2)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        self._normal = normal / np.maximum(length, 1e-20)
        self._normal_per_area2 = normal / np.maximum(length**2, 1e-20)
        self._corner_normal = _smooth_normals(mesh, self._normal, length[:, 0])
        self._texels, self._levels = _pyramids(mesh.textures)
        self._level_count = np.array([len(level) for level in self._levels])
        self._level_table = np.zeros((len(self._levels), self._level_count.max(), 3), np.int64)
        for index, levels in enumerate(self._levels):
            self._level_table[index, : len(levels)] = levels
        self._cutout = any((t[..., 3] < 128).any() for t in mesh.textures)
        uv = mesh.corner_uv
        size = self._level_table[mesh.face_material, 0, 1:][:, ::-1]  # (width, height)
        du, dv = (uv[:, 1] - uv[:, 0]) * size, (uv[:, 2] - uv[:, 0]) * size
        texel_area2 = np.abs(du[:, 0] * dv[:, 1] - du[:, 1] * dv[:, 0])
        self._texels_per_length = np.sqrt(texel_area2 / np.maximum(length[:, 0], 1e-20))

    def render(self, camera_from_world, fov_rad=cameras.FOV_RAD, size=256, supersample=2, lighting=DEFAULT_LIGHTING) -> np.ndarray:
        """One view, (size, size, 4) float32 in [0, 1], straight alpha; alpha is the covered share of the pixel's samples."""
        fine = size * supersample
        origins, directions = self._rays(camera_from_world, fov_rad, fine)
        hit, face, distance, weights = self._cast(origins, directions)
        footprint = distance * (2 * np.tan(fov_rad / 2) / fine)
        colour = self._shade(face, weights, footprint, directions[hit], lighting)
        image = np.zeros((fine * fine, 4), np.float32)
        image[hit, :3] = colour
        image[hit, 3] = 1
        image = image.reshape(size, supersample, size, supersample, 4).mean((1, 3))
        image[..., :3] /= np.maximum(image[..., 3:], 1e-6)
        return np.clip(image, 0, 1)

    def depth(self, camera_from_world, fov_rad=cameras.FOV_RAD, size=256) -> np.ndarray:
        """Depth along the viewing axis at pixel centres, (size, size) float32 in world units; 0 where nothing is hit."""
        origins, directions = self._rays(camera_from_world, fov_rad, size)
        hit, _, distance, _ = self._cast(origins, directions)
        forward = -np.asarray(camera_from_world, np.float32)[2, :3]
        image = np.zeros(size * size, np.float32)
        image[hit] = distance * (directions[hit] @ forward)
        return image.reshape(size, size)

    def _rays(self, camera_from_world, fov_rad, size):
        pose = np.asarray(camera_from_world, dtype=np.float64)
        if pose.shape != (3, 4):
            raise ValueError(f"a pose must be (3, 4), got {pose.shape}")
        origins, directions = cameras.rays(pose, fov_rad, size, size)
        return origins.reshape(-1, 3).astype(np.float32), directions.reshape(-1, 3).astype(np.float32)

    def _cast(self, origins, directions):
        """Nearest opaque hits: ray indices, faces, distances, barycentric weights of corners 1 and 2."""
        live = np.arange(len(origins))
        start = origins
        travelled = np.zeros(len(origins), np.float32)
        found = []
        for _ in range(16 if self._cutout else 1):
            face = self._scene.run(start, directions[live])
            on = face >= 0
            live, face, start, travelled = live[on], face[on], start[on], travelled[on]
            if not len(live):
                break
            direction = directions[live]
            normal = self._normal[face]
            slope = np.einsum("ij,ij->i", direction, normal)
            slope = np.where(np.abs(slope) < 1e-9, 1e-9, slope)
            step = np.einsum("ij,ij->i", self._origin[face] - start, normal) / slope
            step = np.clip(np.nan_to_num(step), 0, 1e4)
            weights = self._barycentric(face, start + direction * step[:, None])
            opaque = np.ones(len(live), bool)
            if self._cutout:
                opaque = self._texture(face, weights, np.zeros(len(face), np.float32))[:, 3] >= 0.5
            found.append((live[opaque], face[opaque], (travelled + step)[opaque], weights[opaque]))
            live, start, travelled, step = live[~opaque], start[~opaque], travelled[~opaque], step[~opaque] + 1e-4
            if not len(live):
                break
            start, travelled = start + directions[live] * step[:, None], travelled + step
        if not found:
            return np.zeros(0, int), np.zeros(0, int), np.zeros(0, np.float32), np.zeros((0, 2), np.float32)
        return tuple(np.concatenate(parts) for parts in zip(*found))

    def _barycentric(self, face, point):
        offset = point - self._origin[face]
        scaled = self._normal_per_area2[face]
        first = np.einsum("ij,ij->i", np.cross(offset, self._edge2[face]), scaled)
        second = np.einsum("ij,ij->i", np.cross(self._edge1[face], offset), scaled)
        return np.clip(np.stack([first, second], -1), 0, 1)

    def _shade(self, face, weights, footprint, direction, lighting):
        albedo = self._texture(face, weights, footprint)[:, :3]
        if self.mesh.corner_colour is not None:
            albedo = albedo * _interpolate(self.mesh.corner_colour[face], weights)
        normal = _interpolate(self._corner_normal[face], weights)
        geometric = self._normal[face]
        # The geometric normal says which side is seen; the smooth one must lie on that side too.
        side = -np.sign(np.einsum("ij,ij->i", geometric, direction))
        normal *= side[:, None]
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
        lights = np.asarray(lighting.directions, np.float32).reshape(-1, 3)
        lights = lights / np.linalg.norm(lights, axis=1, keepdims=True)
        light = lighting.ambient + np.maximum(normal @ lights.T, 0) @ np.asarray(lighting.levels, np.float32)
        return np.clip(albedo * light[:, None], 0, 1)

    def _texture(self, face, weights, footprint):
        """Bilinear lookup in the pyramid level whose texels are about as large as the sample, (n, 4) float32 in [0, 1]."""
        material = self.mesh.face_material[face]
        level = np.log2(np.maximum(footprint * self._texels_per_length[face], 1.0))
        level = np.minimum(np.round(level).astype(int), self._level_count[material] - 1)
        offset, height, width = self._level_table[material, level].T
        uv = _interpolate(self.mesh.corner_uv[face], weights)
        x = (uv[:, 0] % 1.0) * width - 0.5
        y = ((1.0 - uv[:, 1]) % 1.0) * height - 0.5
        x0, y0 = np.floor(x).astype(np.int64), np.floor(y).astype(np.int64)
        fx, fy = (x - x0)[:, None].astype(np.float32), (y - y0)[:, None].astype(np.float32)
        x1, y1 = (x0 + 1) % width, (y0 + 1) % height  # textures repeat
        x0, y0 = x0 % width, y0 % height
        row0, row1 = offset + y0 * width, offset + y1 * width
        top = self._texels[row0 + x0] * (1 - fx) + self._texels[row0 + x1] * fx
        bottom = self._texels[row1 + x0] * (1 - fx) + self._texels[row1 + x1] * fx
        return (top * (1 - fy) + bottom * fy) / 255


def render_rgba(mesh, poses, fov_rad=cameras.FOV_RAD, size=256, supersample=2, lighting=DEFAULT_LIGHTING) -> np.ndarray:
    """Views of a ``RenderMesh`` (or ``MeshRenderer``) from poses (N, 3, 4) camera_from_world: (N, size, size, 4) float32."""
    renderer = mesh if isinstance(mesh, MeshRenderer) else MeshRenderer(mesh)
    return np.stack([renderer.render(pose, fov_rad, size, supersample, lighting) for pose in poses])


def render_depth(mesh, poses, fov_rad=cameras.FOV_RAD, size=256) -> np.ndarray:
    """Depth maps along the viewing axis, (N, size, size) float32, 0 where nothing is hit."""
    renderer = mesh if isinstance(mesh, MeshRenderer) else MeshRenderer(mesh)
    return np.stack([renderer.depth(pose, fov_rad, size) for pose in poses])


def _interpolate(corners: np.ndarray, weights: np.ndarray) -> np.ndarray:
    first, second = weights[:, :1], weights[:, 1:]
    return corners[:, 0] * (1 - first - second) + corners[:, 1] * first + corners[:, 2] * second


def _smooth_normals(mesh: RenderMesh, normal: np.ndarray, area2: np.ndarray) -> np.ndarray:
    """Corner normals (F, 3, 3): area-weighted mean over the faces at the same point that meet within the crease angle.

    Faces of the opposite winding count with their normal turned, since winding is not to be trusted.
    """
    quantised = np.round(mesh.vertices[mesh.faces].reshape(-1, 3) * 1e5).astype(np.int64)
    key = (quantised[:, 0] * 2097169 + quantised[:, 1]) * 2097169 + quantised[:, 2]
    order = np.argsort(key, kind="stable")
    key = key[order]
    face = order // 3
    own, weighted = normal[face], (normal * area2[:, None])[face]
    total = weighted.copy()
    for shift in range(1, 24):  # corners at one point are neighbours in the sorted order; larger fans are cut off
        first = np.flatnonzero(key[shift:] == key[:-shift])
        if not len(first):
            break
        second = first + shift
        cosine = np.einsum("ij,ij->i", own[first], own[second])
        smooth = np.abs(cosine) > _CREASE_COSINE
        first, second, sign = first[smooth], second[smooth], np.sign(cosine[smooth])[:, None]
        total[first] += weighted[second] * sign
        total[second] += weighted[first] * sign
    result = np.empty_like(total)
    result[order] = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-20)
    return result.reshape(-1, 3, 3).astype(np.float32)


def _pyramids(textures: list[np.ndarray]) -> tuple[np.ndarray, list[list[tuple[int, int, int]]]]:
    """All levels of all textures in one flat array (T, 4) uint8, with (offset, height, width) of each level."""
    flat, table, offset = [], [], 0
    for texture in textures:
        level, entries = texture.astype(np.float32), []
        while True:
            height, width = level.shape[:2]
            flat.append(np.clip(np.round(level), 0, 255).astype(np.uint8).reshape(-1, 4))
            entries.append((offset, height, width))
            offset += height * width
            if min(height, width) < 16:
                break
            level = level[: height // 2 * 2, : width // 2 * 2]
            opacity = level[..., 3:] + 1e-3  # colours of transparent texels must not bleed
            weight = opacity.reshape(height // 2, 2, width // 2, 2, 1).sum((1, 3))
            colour = (level[..., :3] * opacity).reshape(height // 2, 2, width // 2, 2, 3).sum((1, 3)) / weight
            level = np.concatenate([colour, weight / 4 - 1e-3], -1)
        table.append(entries)
    return np.concatenate(flat), table
