"""Read a mesh file with its materials (trimesh does the parsing) and put it into the world frame."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from sap3d.errors import InputError

MESH_SUFFIXES = (".obj", ".glb", ".gltf", ".ply", ".off", ".stl")
_DEFAULT_COLOUR = np.array([0.8, 0.8, 0.8, 1.0], np.float32)  # of faces without any material
Z_UP_FROM_Y_UP = np.array([[1.0, 0, 0], [0, 0, -1], [0, 1, 0]])  # (x, y, z) -> (x, -z, y): a rotation about x


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
        matrix = Z_UP_FROM_Y_UP @ matrix
    try:
        mesh.vertices, _, _ = normalise_vertices(mesh.vertices.astype(np.float64) @ matrix.T, mesh.faces)
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return mesh


def normalise_vertices(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray, float]:
    """(vertices, centre, scale): normalised = (vertices - centre) * scale, by the bounding box of the vertices in use."""
    used = vertices[np.unique(faces)]
    low, high = used.min(0), used.max(0)
    side = float((high - low).max())
    if not np.isfinite(side) or side <= 0:
        raise InputError("the mesh has no extent: all its vertices are one point; export it again")
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
        points = np.asarray(geometry.vertices, dtype=np.float64)
        if points.ndim != 2 or points.shape[1] != 3 or triangles.min() < 0 or triangles.max() >= len(points):
            raise InputError(f"{path}: its vertices have not three coordinates, or a face names a vertex that is not there; export it again")
        with np.errstate(all="ignore"):  # what is not finite is left out below
            points = points @ matrix[:3, :3].T + matrix[:3, 3]
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
            is_pbr = hasattr(material, "baseColorFactor")
            opaque = is_pbr and (material.alphaMode or "OPAQUE") == "OPAQUE"  # glTF: alpha is then to be ignored
            if opaque or texels[..., 3].max() < 128:  # an opacity channel that hides everything is an exporter's mistake
                texels = np.concatenate([texels[..., :3], np.full_like(texels[..., 3:], 255)], -1)
            # In OBJ files Kd beside map_Kd is mostly an exporter's left-over; in glTF the factor is meant to multiply.
            colour = None
            if is_pbr and not np.allclose(factor[:3], 1):
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
