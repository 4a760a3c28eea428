"""Small meshes written by hand, for the tests of the renderer and of the data tools."""

from pathlib import Path

import numpy as np
from PIL import Image

# The six faces of a cube of side 1: name, outward normal, colour.
CUBE_FACES = {
    "front": ((1, 0, 0), (1.0, 0.0, 0.0)),
    "right": ((0, 1, 0), (0.0, 1.0, 0.0)),
    "back": ((-1, 0, 0), (0.0, 0.0, 1.0)),
    "left": ((0, -1, 0), (1.0, 1.0, 0.0)),
    "top": ((0, 0, 1), (0.0, 1.0, 1.0)),
    "bottom": ((0, 0, -1), (1.0, 0.0, 1.0)),
}


def write_cube(folder: Path, scale=(1.0, 1.0, 1.0), offset=(0.0, 0.0, 0.0), flip: bool = False, stem: str = "cube") -> Path:
    """A box, z up, with a plain colour a face; ``flip`` winds its triangles inwards."""
    folder.mkdir(parents=True, exist_ok=True)
    lines, materials, count = [f"mtllib {stem}.mtl"], [], 0
    for name, (normal, colour) in CUBE_FACES.items():
        normal = np.array(normal, float)
        first = np.roll(normal, 1)
        second = np.cross(normal, first)
        corners = [normal / 2 + a * first / 2 + b * second / 2 for a, b in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
        lines += ["v " + " ".join(f"{x:.6f}" for x in corner * scale + offset) for corner in corners]
        lines.append(f"usemtl {name}")
        order = (1, 2, 3, 4) if not flip else (4, 3, 2, 1)
        lines.append("f " + " ".join(str(count + k) for k in order))
        count += 4
        materials += [f"newmtl {name}", "Kd " + " ".join(map(str, colour))]
    (folder / f"{stem}.obj").write_text("\n".join(lines) + "\n")
    (folder / f"{stem}.mtl").write_text("\n".join(materials) + "\n")
    return folder / f"{stem}.obj"


def quadrants(size: int = 64, alpha=(255, 255, 255, 255)) -> Image.Image:
    """Red top left, green top right, blue bottom left, white bottom right."""
    image = np.zeros((size, size, 4), np.uint8)
    half = size // 2
    image[:half, :half] = (255, 0, 0, alpha[0])
    image[:half, half:] = (0, 255, 0, alpha[1])
    image[half:, :half] = (0, 0, 255, alpha[2])
    image[half:, half:] = (255, 255, 255, alpha[3])
    return Image.fromarray(image)


# A square in the plane x = 0 that faces +x; seen from azimuth 0 the image's right is +y.
SQUARE = """{mtllib}
v 0 -0.5 -0.5
v 0 0.5 -0.5
v 0 0.5 0.5
v 0 -0.5 0.5
vt 0 0
vt 1 0
vt 1 1
vt 0 1
{usemtl}
f 1/1 2/2 3/3 4/4
"""


def write_textured_square(folder: Path, image: Image.Image | None = None, texture: str = "texture.png") -> Path:
    """The square with a texture beside it, as in plain folders of scanned objects."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model.obj").write_text(SQUARE.format(mtllib="mtllib model.mtl", usemtl="usemtl material_0"))
    (folder / "model.mtl").write_text(f"newmtl material_0\nKd 1 1 1\nmap_Kd {texture}\n")
    if image is not None:
        image.save(folder / texture)
    return folder / "model.obj"


def write_distributed_object(folder: Path, image: Image.Image | None) -> Path:
    """The square in the layout in which scanned objects are distributed."""
    write_textured_square(folder / "meshes")
    (folder / "materials" / "textures").mkdir(parents=True)
    if image is not None:
        image.save(folder / "materials" / "textures" / "texture.png")
    (folder / "model.config").write_text("<model/>")
    return folder
