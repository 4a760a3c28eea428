"""A mesh from the field: surface, clean-up, texture atlas, and the files that other programs open."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image

from sap3d.cameras import Camera
from sap3d.errors import InputError
from sap3d.field.fields import Field
from sap3d.field.photo_colours import PhotoColours, mesh_hits, project
from sap3d.field.rendering import Occupancy, render
from sap3d.scene import write_text

Y_UP_FROM_Z_UP = np.array([[1.0, 0, 0], [0, 0, 1], [0, -1, 0]])  # (x, y, z) -> (x, z, -y): glTF's up axis is y


@dataclass
class TexturedMesh:
    """World frame (z up, object centred, longest side about 1). ``uv`` (V, 2), v upwards, and ``texture`` (T, T, 3), or
    ``colours`` (V, 3) of the vertices; values in [0, 1]."""

    vertices: np.ndarray  # (V, 3)
    faces: np.ndarray  # (F, 3), counter-clockwise seen from outside
    uv: np.ndarray | None = None
    texture: np.ndarray | None = None
    colours: np.ndarray | None = None


# ------------------------------------------------------------------------------------------------------------ surface
@torch.no_grad()
def carve(occupancy: Occupancy, depths: Mapping[str, torch.Tensor], cameras: Mapping[str, Camera], cells: int, slack: float = 0.0) -> tuple[np.ndarray, np.ndarray, float]:
    """Solidity of a lattice: (values (X, Y, Z) in [-1, 1], position of its first point (3,), spacing).

    Depth maps say where half of a ray's light is gone. A point is empty if it lies in front of that in at least two of the
    views, and solid otherwise: 0 is the surface that the renders show, without the cavities and the fog that a level of
    the density itself would bring along. Two views, because one depth map has outliers. Of many depth maps with errors the second
    farthest still lies behind the surface, so a point is empty only if it is in front by more than ``slack`` (object lengths). One
    voxel around the box stays empty.
    """
    bounds = occupancy.bounds
    spacing = float((bounds[1] - bounds[0]).max()) / cells
    counts = (((bounds[1] - bounds[0]) / spacing).ceil().long() + 3).tolist()
    axes = [bounds[0, a] + (torch.arange(n, device=bounds.device) - 1) * spacing for a, n in enumerate(counts)]
    points = torch.stack(torch.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 3)
    values = torch.full((len(points),), -1.0, device=bounds.device)
    inside = ((points > bounds[0]) & (points < bounds[1])).all(1)
    candidate = inside.clone()
    direction = torch.zeros_like(points[:1])
    cell = occupancy.flat_index(points[inside], direction.expand(int(inside.sum()), 3), torch.zeros(int(inside.sum()), 1, device=bounds.device))
    candidate[inside] = occupancy.occupied.view(-1)[cell[:, 0]]
    rows = candidate.nonzero()[:, 0]
    chosen = points[rows]
    first = torch.full((len(rows),), -1.0, device=bounds.device)
    second = first.clone()
    for name, depth in depths.items():
        camera, size = cameras[name], depth.shape[0]
        column, row = ((project(camera, chosen) + 1) * (size / 2) - 0.5).floor().long().clamp(0, size - 2).unbind(1)
        distance = (chosen - torch.as_tensor(camera.center(), dtype=chosen.dtype, device=chosen.device)).norm(dim=1)
        # The nearest of the four pixels around the point: a single one misjudges slanted surfaces and outlines.
        nearest = -F.max_pool2d(-depth[None, None], 2, 1)[0, 0]
        in_front = ((nearest[row, column] - distance - slack) / (3 * spacing)).clamp(-1, 1)
        second = torch.maximum(second, torch.minimum(in_front, first))
        first = torch.maximum(first, in_front)
    values[rows] = -second
    return values.view(counts).cpu().numpy(), (bounds[0] - spacing).cpu().numpy().astype(np.float64), spacing


def extract(values: np.ndarray, origin: np.ndarray, spacing: float, faces: int, smallest_part: float = 0.01) -> tuple[np.ndarray, np.ndarray]:
    """(vertices (V, 3) float64, faces (F, 3)) of the surface where ``values`` pass through 0; positive is solid.

    Parts smaller than ``smallest_part`` of the largest are dropped, cavities filled, the surface smoothed without
    shrinking (Taubin) and decimated to at most ``faces`` triangles. Raises InputError when nothing is solid.
    """
    import fast_simplification
    import trimesh
    from scipy import ndimage
    from skimage.measure import marching_cubes

    values = np.pad(values.astype(np.float32), 1, constant_values=-1.0)
    parts, count = ndimage.label(values > 0)
    if count == 0:
        raise InputError("the reconstruction holds nothing solid, so there is no mesh; check the photos' masks and the cameras of stage 2")
    sizes = np.bincount(parts.ravel())[1:]
    dropped = np.concatenate([[False], sizes < smallest_part * sizes.max()])[parts]
    values = np.where(dropped, -np.abs(values), values)
    free, _ = ndimage.label(values <= 0)
    values = np.where((free != 0) & (free != free[0, 0, 0]), np.maximum(np.abs(values), 1e-3), values)
    vertices, triangles, _, _ = marching_cubes(values, 0.0, gradient_direction="descent")
    mesh = trimesh.Trimesh(vertices, triangles, process=False)
    trimesh.smoothing.filter_taubin(mesh, iterations=10)
    vertices, triangles = np.asarray(mesh.vertices), np.asarray(mesh.faces)
    if len(triangles) > faces:
        vertices, triangles = fast_simplification.simplify(vertices.astype(np.float32), triangles.astype(np.int32), target_count=faces)
    mesh = trimesh.Trimesh(vertices, triangles, process=True)
    if mesh.volume < 0:
        mesh.invert()
    return np.asarray(mesh.vertices, dtype=np.float64) * spacing + (origin - spacing), np.asarray(mesh.faces)


# ------------------------------------------------------------------------------------------------------------ texture
@torch.no_grad()
def surface_colours(field: Field, occupancy: Occupancy, points: np.ndarray, normals: np.ndarray, outside: float, inside: float) -> np.ndarray:
    """Colours (P, 3) that short rays see that come in along the normals, from ``outside`` before to ``inside`` behind the points."""
    device = field.bounds.device
    colours = []
    for rows in torch.arange(len(points)).split(1 << 15):
        normal = torch.from_numpy(normals[rows.numpy()]).float().to(device)
        start = torch.from_numpy(points[rows.numpy()]).float().to(device) + normal * outside
        seen = render(field, occupancy, start, -normal, reach=outside + inside)
        colour = (seen.colour - (1 - seen.opacity)[:, None]) / seen.opacity.clamp_min(1e-4)[:, None]
        nothing = seen.opacity < 0.01
        if nothing.any():
            low, high = field.bounds
            colour[nothing] = field((start - normal * outside)[nothing].clamp(low, high))[1]
        colours.append(colour.clamp(0, 1).cpu().numpy())
    return np.concatenate(colours) if colours else np.zeros((0, 3), np.float32)


def bake(field: Field, occupancy: Occupancy, vertices: np.ndarray, faces: np.ndarray, size: int, texture: str = "uv", sources: Sequence[tuple[Mapping, Mapping]] = ()) -> TexturedMesh:
    """Colour a mesh: an atlas of charts (xatlas) with a texture of ``size``, or colours of the vertices.

    Colours are the field's; where photos see the surface, theirs, which are sharper, blended into the field's towards grazing angles.
    sources: pairs of photos (RGBA (S, S, 4) by name) and cameras; what the first ones see is not asked of the next ones.
    """
    import trimesh

    voxel = field.voxel_size()
    normals = np.array(trimesh.Trimesh(vertices, faces, process=False).vertex_normals)
    photos = PhotoColours(sources, mesh_hits(vertices, faces))

    def colours_of(points, directions):
        colours, belief = (found.numpy() for found in photos(torch.from_numpy(points).float(), torch.from_numpy(directions).float()))
        open_ = belief < 1
        own = surface_colours(field, occupancy, points[open_], directions[open_], 2 * voxel, 0.08)
        colours[open_] = own + belief[open_, None] * (colours[open_] - own)
        return colours.clip(0, 1)

    if texture == "vertex":
        return TexturedMesh(vertices, faces, colours=colours_of(vertices, normals))
    source, faces, uv = _atlas(vertices, faces, size)
    vertices, normals = vertices[source], normals[source]
    triangle, weights, covered = _rasterise(uv, faces, size)
    corners = faces[triangle]
    points = np.einsum("nk,nkd->nd", weights, vertices[corners])
    normal = np.einsum("nk,nkd->nd", weights, normals[corners])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-9)
    image = np.zeros((size, size, 3), np.float32)
    image[covered] = colours_of(points, normal)
    return TexturedMesh(vertices, faces, uv, _bleed(image, covered))


def _atlas(vertices, faces, size):
    """xatlas charts: (index of the original vertex (V',), faces (F, 3), uv (V', 2))."""
    import xatlas

    atlas = xatlas.Atlas()
    atlas.add_mesh(np.ascontiguousarray(vertices, np.float32), np.ascontiguousarray(faces, np.uint32))
    pack = xatlas.PackOptions()
    pack.resolution, pack.padding, pack.bilinear = size, 3, True
    atlas.generate(xatlas.ChartOptions(), pack)
    source, faces, uv = atlas[0]
    return source.astype(np.int64), faces.astype(np.int64), uv.astype(np.float64)


def _rasterise(uv, faces, size):
    """(triangle (n,), barycentric weights (n, 3), covered (size, size)) of the texels whose centres lie in a chart."""
    from embreex.mesh_construction import TriangleMesh
    from embreex.rtcore_scene import EmbreeScene

    flat = np.concatenate([uv, np.zeros((len(uv), 1))], 1).astype(np.float32)
    scene = EmbreeScene()
    TriangleMesh(scene, np.ascontiguousarray(flat[faces]))
    centre = (np.arange(size) + 0.5) / size
    v, u = np.meshgrid(1 - centre, centre, indexing="ij")  # row 0 is the top: v = 1
    start = np.stack([u, v, np.ones_like(u)], -1).reshape(-1, 3).astype(np.float32)
    hit = scene.run(start, np.tile(np.array([[0, 0, -1]], np.float32), (len(start), 1)))
    covered = hit >= 0
    triangle = hit[covered]
    a, b, c = (uv[faces[triangle, k]] for k in range(3))
    point = start[covered, :2]
    area = _cross(b - a, c - a)
    area = np.where(np.abs(area) < 1e-20, 1e-20, area)
    first, second = _cross(b - point, c - point) / area, _cross(c - point, a - point) / area
    weights = np.clip(np.stack([first, second, 1 - first - second], -1), 0, 1)
    return triangle, weights / weights.sum(1, keepdims=True), covered.reshape(size, size)


def _cross(first, second):
    return first[:, 0] * second[:, 1] - first[:, 1] * second[:, 0]


def _bleed(image, covered):
    """Give texels outside the charts the colour of the nearest one inside, so that filtering shows no seams."""
    from scipy.ndimage import distance_transform_edt

    if not covered.any():
        return image
    row, column = distance_transform_edt(~covered, return_distances=False, return_indices=True)
    return image[row, column]


# -------------------------------------------------------------------------------------------------------------- files
def write_obj(folder: Path, mesh: TexturedMesh, name: str = "model") -> None:
    """``name``.obj with ``name``.mtl and ``name``.png; z is up, one unit is the object's longest side."""
    from sap3d.images import save_image

    lines = ["# z up, object centred at the origin, 1 unit = its longest side"]
    vertices = np.round(mesh.vertices, 6)
    if mesh.uv is None:
        lines += [f"v {x:g} {y:g} {z:g} {r:.4f} {g:.4f} {b:.4f}" for (x, y, z), (r, g, b) in zip(vertices, mesh.colours)]
        lines += [f"f {a} {b} {c}" for a, b, c in mesh.faces + 1]
    else:
        lines += [f"mtllib {name}.mtl", "usemtl surface"]
        lines += [f"v {x:g} {y:g} {z:g}" for x, y, z in vertices]
        lines += [f"vt {u:.6f} {v:.6f}" for u, v in mesh.uv]
        lines += [f"f {a}/{a} {b}/{b} {c}/{c}" for a, b, c in mesh.faces + 1]
        save_image(folder / f"{name}.png", mesh.texture)
        write_text(folder / f"{name}.mtl", f"newmtl surface\nKa 0 0 0\nKd 1 1 1\nKs 0 0 0\nillum 1\nmap_Kd {name}.png\n")
    write_text(folder / f"{name}.obj", "\n".join(lines) + "\n")


def write_glb(path: Path, mesh: TexturedMesh) -> None:
    """Binary glTF with the texture inside; y is up, as glTF demands, one unit is the object's longest side."""
    import trimesh

    from sap3d.images import to_uint8
    from sap3d.scene import atomic_path

    if mesh.uv is None:
        visual = trimesh.visual.ColorVisuals(vertex_colors=to_uint8(mesh.colours))
    else:
        texture = Image.fromarray(to_uint8(mesh.texture))
        material = trimesh.visual.material.PBRMaterial(baseColorTexture=texture, baseColorFactor=[255] * 4, metallicFactor=0.0, roughnessFactor=1.0)
        visual = trimesh.visual.TextureVisuals(uv=mesh.uv, material=material)
    shape = trimesh.Trimesh(mesh.vertices @ Y_UP_FROM_Z_UP.T, mesh.faces, visual=visual, process=False)
    with atomic_path(path) as temporary:
        temporary.write_bytes(trimesh.Scene(shape).export(file_type="glb"))
