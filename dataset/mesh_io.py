"""Write a ``RenderMesh`` as OBJ with materials, so that what was rendered is what is kept as ground truth."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sap3d.mesh_render import RenderMesh


def save_obj(mesh: RenderMesh, folder: Path, stem: str = "model", texture_size: int | None = None) -> Path:
    """Write ``folder/stem.obj``, ``stem.mtl`` and ``texture_<k>.png``; textures are shrunk to ``texture_size`` if given.

    Colours of corners (a mesh with vertex colours) are written as the widespread ``v x y z r g b``.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    used, faces = np.unique(mesh.faces, return_inverse=True)
    faces = faces.reshape(-1, 3) + 1
    vertices = [tuple(v) for v in mesh.vertices[used]]
    if mesh.corner_colour is not None:
        total, count = np.zeros((len(used), 3)), np.zeros((len(used), 1))
        np.add.at(total, faces - 1, mesh.corner_colour)
        np.add.at(count, faces - 1, 1)
        vertices = [(*v, *c) for v, c in zip(vertices, total / count)]
    uvs, uv_faces = np.unique(np.round(mesh.corner_uv.reshape(-1, 2), 6), axis=0, return_inverse=True)
    uv_faces = uv_faces.reshape(-1, 3) + 1

    lines = [f"mtllib {stem}.mtl"]
    lines += ["v " + " ".join(f"{x:.6g}" for x in vertex) for vertex in vertices]
    lines += [f"vt {u:.6g} {v:.6g}" for u, v in uvs]
    materials, files = [], {}
    for index, texture in enumerate(mesh.textures):
        own = np.flatnonzero(mesh.face_material == index)
        if not len(own):
            continue
        name = f"material_{index}"
        lines.append(f"usemtl {name}")
        lines += [
            f"f {a[0]}/{b[0]} {a[1]}/{b[1]} {a[2]}/{b[2]}" for a, b in zip(faces[own].tolist(), uv_faces[own].tolist())
        ]  # fmt: skip
        materials.append(f"newmtl {name}")
        if texture.shape[0] * texture.shape[1] == 1:
            materials.append("Kd " + " ".join(f"{c / 255:.5f}" for c in texture[0, 0, :3]))
        else:
            key = (texture.shape, texture.tobytes())  # materials often share one texture
            if key not in files:
                files[key] = f"texture_{len(files)}.png"
                _save_texture(texture, folder / files[key], texture_size)
            materials += ["Kd 1 1 1", f"map_Kd {files[key]}"]
    (folder / f"{stem}.obj").write_text("\n".join(lines) + "\n")
    (folder / f"{stem}.mtl").write_text("\n".join(materials) + "\n")
    return folder / f"{stem}.obj"


def _save_texture(texture: np.ndarray, path: Path, size: int | None) -> None:
    opaque = texture[..., 3].min() == 255
    image = Image.fromarray(texture[..., :3] if opaque else texture)
    if size is not None and max(image.size) > size:
        scale = size / max(image.size)
        image = image.resize([max(1, round(side * scale)) for side in image.size], Image.Resampling.LANCZOS)
    image.save(path, optimize=True)
