"""Textured meshes to RGBA images and depth maps by ray casting (trimesh reads the file, Embree finds the hits, NumPy shades).

    mesh = load_mesh_normalised("model.obj")                       # z up, centred, longest side 1
    images = render_rgba(mesh, poses, FOV_RAD, 256)                # (N, 256, 256, 4) straight alpha
    depths = render_depth(mesh, poses, FOV_RAD, 256)               # (N, 256, 256), 0 where nothing is hit

Shading is deliberately plain: albedo times (ambient + a few directional lights), in the textures' own sRGB values, with
normals turned toward the camera, since many meshes in the wild have flipped faces. Lights belong to the world, so that an
object looks the same from all its views.
"""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sap3d import cameras
from sap3d.errors import InputError

MESH_SUFFIXES = (".obj", ".glb", ".gltf", ".ply", ".off", ".stl")
_DEFAULT_COLOUR = np.array([0.8, 0.8, 0.8, 1.0], np.float32)  # of faces without any material
_CREASE_COSINE = float(np.cos(np.deg2rad(40.0)))  # faces that meet at a smaller angle are shaded smoothly
_Y_UP_TO_Z_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # (x, y, z) -> (x, -z, y): a rotation about x


@dataclass
class RenderMesh:
    """Triangles with materials, ready to render.

    vertices (V, 3) float32; faces (F, 3) int32; corner_uv (F, 3, 2) float32, v upwards; face_material (F,) int32 into
    ``textures``, each (H, W, 4) uint8 straight alpha (a plain colour is one texel); corner_colour (F, 3, 3) float32 in
    [0, 1] multiplies the texture, or None. ``notes`` are remarks of the loader, e.g. a texture that was not found.
    """

    vertices: np.ndarray
    faces: np.ndarray
    corner_uv: np.ndarray
    face_material: np.ndarray
    textures: list[np.ndarray]
    corner_colour: np.ndarray | None = None
    notes: list[str] = field(default_factory=list)


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


# ---------------------------------------------------------------------------------------------------------------- loading


def load_mesh_normalised(path: str | Path, up: str = "z", rotation: np.ndarray | None = None) -> RenderMesh:
    """Read a mesh with its materials and put it into the world frame: z up, centred, longest side of its box 1.

    Args:
        path: OBJ (with MTL and textures beside it), GLB, glTF, PLY, OFF or STL.
        up: the file's up axis, "z" or "y" (y is turned to z by a rotation about x).
        rotation: optional (3, 3) applied to the file's vertices first.
    Raises:
        InputError: the file is missing, of an unknown type, unreadable or without triangles.
    """
    mesh = load_mesh(path)
    if up not in ("z", "y"):
        raise InputError(f"{path}: the up axis must be y or z, got {up!r}")
    matrix = np.eye(3) if rotation is None else np.asarray(rotation, dtype=np.float64).reshape(3, 3)
    if up == "y":
        matrix = _Y_UP_TO_Z_UP @ matrix
    mesh.vertices, _, _ = normalise_vertices(mesh.vertices.astype(np.float64) @ matrix.T, mesh.faces)
    return mesh


def normalise_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(vertices, centre, scale): normalised = (vertices - centre) * scale, by the bounding box of the vertices in use."""
    used = vertices[np.unique(faces)]
    low, high = used.min(0), used.max(0)
    side = float((high - low).max())
    if not np.isfinite(side) or side <= 0:
        raise InputError("the mesh has no extent: all its vertices are one point, or not finite")
    centre = (low + high) / 2
    return ((vertices - centre) / side).astype(np.float32), centre, 1.0 / side


def load_mesh(path: str | Path) -> RenderMesh:
    """Read a mesh with its materials, in the file's own frame. See ``load_mesh_normalised``."""
    import trimesh

    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such mesh file")
    if path.suffix.lower() not in MESH_SUFFIXES:
        raise InputError(f"{path}: unknown mesh type, use one of {', '.join(MESH_SUFFIXES)}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scene = trimesh.load_scene(str(path), process=False)
            instances = [(scene.geometry[name], matrix) for matrix, name in _instances(scene)]
    except Exception as error:  # a parser met by broken bytes raises nearly anything
        raise InputError(f"{path}: cannot be read as a mesh ({type(error).__name__}: {error}); export it again") from error
    instances = [(g, m) for g, m in instances if isinstance(g, trimesh.Trimesh) and len(g.faces)]
    if not instances:
        raise InputError(f"{path}: no triangles in it; export a surface mesh")

    notes = missing_textures(path) if path.suffix.lower() == ".obj" else []
    vertices, faces, uvs, materials, colours, textures = [], [], [], [], [], []
    offset, coloured = 0, False
    for geometry, matrix in instances:
        triangles = np.asarray(geometry.faces, dtype=np.int64)
        points = np.asarray(geometry.vertices, dtype=np.float64) @ matrix[:3, :3].T + matrix[:3, 3]
        texture, uv, colour = _appearance(geometry, triangles)
        coloured |= colour is not None
        vertices.append(points)
        faces.append(triangles + offset)
        uvs.append(np.zeros((len(triangles), 3, 2), np.float32) if uv is None else uv)
        colours.append(np.ones((len(triangles), 3, 3), np.float32) if colour is None else colour)
        materials.append(np.full(len(triangles), len(textures), np.int32))
        textures.append(texture)
        offset += len(points)
    vertices, faces = np.concatenate(vertices), np.concatenate(faces)
    face_material = np.concatenate(materials)
    # A texel colour of zero opacity everywhere means "not there" (helper geometry), unless it is all there is.
    visible = np.array([t[..., 3].max() > 5 for t in textures])[face_material]
    keep = np.isfinite(vertices).all(1)[faces].all(1) & (visible if visible.any() else True)
    if not keep.any():
        raise InputError(f"{path}: no finite triangles in it; export it again")
    vertices = np.where(np.isfinite(vertices), vertices, 0.0)
    return RenderMesh(
        vertices, faces[keep].astype(np.int32), np.concatenate(uvs)[keep].astype(np.float32), face_material[keep],
        textures, np.concatenate(colours)[keep] if coloured else None, notes,
    )  # fmt: skip


def missing_textures(obj_path: Path) -> list[str]:
    """Names of the material files and textures that an OBJ refers to and that are not beside it, as sentences."""
    notes = []
    with obj_path.open(errors="replace") as lines:
        libraries = [line.split(None, 1)[1].strip() for line in lines if line.startswith("mtllib") and len(line.split()) > 1]
    for library in dict.fromkeys(libraries):
        material_path = obj_path.parent / library
        if not material_path.is_file():
            notes.append(f"{obj_path}: material file {library} not found, its faces are grey")
            continue
        for line in material_path.read_text(errors="replace").splitlines():
            words = line.split()
            if len(words) > 1 and words[0].lower() == "map_kd":
                name = line.strip()[6:].strip()
                if not (material_path.parent / name).is_file() and not (material_path.parent / words[-1]).is_file():
                    notes.append(f"{material_path}: texture {name} not found, its faces have the material's plain colour")
    return list(dict.fromkeys(notes))


def _instances(scene):
    for node in scene.graph.nodes_geometry:
        matrix, name = scene.graph[node]
        yield matrix, name


def _appearance(geometry, triangles):
    """(texture (H, W, 4) uint8, corner uv or None, corner colour or None) of one trimesh geometry."""
    visual = geometry.visual
    if visual.kind == "texture":
        material = visual.material
        if hasattr(material, "materials"):  # several PBR materials in one mesh: the first stands for all
            material = material.materials[0]
        image = getattr(material, "baseColorTexture", None)
        factor = getattr(material, "baseColorFactor", None)
        if image is None:
            image = getattr(material, "image", None)
        if factor is None:
            factor = getattr(material, "diffuse", None)
        factor = _DEFAULT_COLOUR if factor is None else _unit_colour(factor)
        uv = None if visual.uv is None else np.asarray(visual.uv, np.float32)
        if image is not None and uv is not None and len(uv) == len(geometry.vertices):
            texels = np.asarray(image.convert("RGBA"))
            if texels[..., 3].max() < 128:  # an opacity channel that hides everything is an exporter's mistake
                texels = np.concatenate([texels[..., :3], np.full_like(texels[..., 3:], 255)], -1)
            # In OBJ files Kd beside map_Kd is mostly an exporter's left-over; in glTF the factor is meant to multiply.
            colour = None
            if hasattr(material, "baseColorFactor") and not np.allclose(factor[:3], 1):
                colour = np.broadcast_to(factor[:3], (len(triangles), 3, 3)).astype(np.float32)
            return np.ascontiguousarray(texels), np.nan_to_num(uv)[triangles], colour
        return _texel(factor), None, None
    if visual.kind == "vertex":
        return _texel(np.ones(4)), None, np.asarray(visual.vertex_colors, np.float32)[triangles][..., :3] / 255
    if visual.kind == "face":
        colours = np.asarray(visual.face_colors, np.float32)[:, None, :3] / 255
        return _texel(np.ones(4)), None, np.repeat(colours, 3, axis=1)
    return _texel(_DEFAULT_COLOUR), None, None


def _unit_colour(values) -> np.ndarray:
    values = np.asarray(values)
    scale = 255.0 if values.dtype.kind in "ui" else 1.0
    colour = np.ones(4, np.float32)
    colour[: min(4, values.size)] = values.reshape(-1)[:4] / scale
    return np.clip(colour, 0, 1)


def _texel(colour) -> np.ndarray:
    return np.round(np.asarray(colour, np.float64) * 255).astype(np.uint8).reshape(1, 1, 4)


# -------------------------------------------------------------------------------------------------------------- rendering


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
    """All levels of all textures in one flat array (T, 4) float32 (0..255), with (offset, height, width) of each level."""
    flat, table, offset = [], [], 0
    for texture in textures:
        level, entries = texture.astype(np.float32), []
        while True:
            height, width = level.shape[:2]
            flat.append(level.reshape(-1, 4))
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
