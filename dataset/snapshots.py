"""Phone-like pictures of a mesh on a table, to try ``dataset.photos`` without a phone.

    python -m dataset.snapshots dataset/3d_models/GSO_demo/teddy_bear/meshes/model.obj --out my_photos [--count 5]

Rendered, not photographed: JPEG files of 1024 x 768 pixels with EXIF data (focal length, some of them stored turned), a wooden table
and a room around the object, a soft shadow, noise; the camera is held by hand, so distance, aim and roll vary a little. Object and
table stay where they are. docs/PHOTOS.md and the tests use them; figures on them are not figures on photos.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from dataset.corpus import seed_of
from dataset.photos import FILM_DIAGONAL_MM
from sap3d.cameras import Camera
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.mesh_load import RenderMesh, load_mesh_normalised
from sap3d.mesh_render import MeshRenderer
from sap3d.scene import atomic_dir

WIDTH, HEIGHT = 1024, 768
FOCAL_35MM = 26  # of a phone's main camera
TABLE = 1.6  # half its side, object lengths
ROOM = 5.0  # half the side of the room
AZIMUTHS_DEG = (0, 75, 150, 215, 290, 40, 110, 250)


def room(mesh: RenderMesh, generator: np.random.Generator) -> RenderMesh:
    """The mesh on a table in a room, as one mesh."""
    low = float(mesh.vertices[:, 2].min())
    corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]], np.float32)
    square = np.array([[0, 1, 2], [0, 2, 3]])
    flat = lambda half, z: np.column_stack([corners * half, np.full(4, z, np.float32)])  # noqa: E731
    quads, textures = [flat(TABLE, low - 0.004), flat(ROOM, low - 1.6)], [_table(mesh, generator), _carpet(generator)]
    for k in range(4):  # walls
        turn = np.array([[0, -1], [1, 0]]) if k % 2 else np.eye(2)
        wall = np.array([[ROOM, -ROOM, low - 1.6], [ROOM, ROOM, low - 1.6], [ROOM, ROOM, 5], [ROOM, -ROOM, 5]], np.float32) * (1 if k < 2 else [-1, -1, 1])
        wall[:, :2] = wall[:, :2] @ turn.T
        quads.append(wall)
        textures.append(np.full((1, 1, 4), (*[(222, 216, 203), (196, 205, 208), (229, 222, 210), (205, 196, 183)][k], 255), np.uint8))
    count = len(mesh.vertices)
    extra = np.concatenate([square + count + 4 * k for k in range(len(quads))])
    uv = np.tile(((corners + 1) / 2)[square], (len(quads), 1, 1)).astype(np.float32)
    colour = mesh.corner_colour
    if colour is not None:
        colour = np.concatenate([colour, np.ones((len(extra), 3, 3), np.float32)])
    return RenderMesh(
        np.concatenate([mesh.vertices, *quads]).astype(np.float32),
        np.concatenate([mesh.faces, extra]).astype(np.int32),
        np.concatenate([mesh.corner_uv, uv * 0.9998 + 0.0001]),
        np.concatenate([mesh.face_material, np.repeat(len(mesh.textures) + np.arange(len(quads)), 2)]).astype(np.int32),
        [*mesh.textures, *textures],
        colour,
    )


def _table(mesh: RenderMesh, generator: np.random.Generator, size: int = 1536) -> np.ndarray:
    """Planks of wood, darker under the object."""
    y, x = np.mgrid[:size, :size] / size
    grain = ndimage.gaussian_filter(generator.standard_normal((size, size)), (1.2, 60)) * 9
    waves = np.sin(40 * (y + 0.02 * np.sin(9 * x)) + 6 * grain)
    plank = np.floor(y * 7)
    shade = 0.94 + 0.06 * np.sin(plank * 12.9898) + 0.035 * waves + 0.05 * grain
    shade[np.abs(y * 7 - np.round(y * 7)) < 0.008] *= 0.72
    points = mesh.vertices[mesh.vertices[:, 2] < mesh.vertices[:, 2].min() + 0.5]
    ground, _, _ = np.histogram2d(points[:, 1], points[:, 0], bins=size // 8, range=[[-TABLE, TABLE]] * 2)
    dark = ndimage.gaussian_filter((ndimage.binary_closing(ground > 0, iterations=4)).astype(float), 3.5)[::-1]  # row 0 is the far end
    shade *= 1 - 0.55 * np.clip(ndimage.zoom(dark, 8, order=1), 0, 1)
    rgb = np.clip(shade[..., None] * np.array([176, 128, 84]), 0, 255).astype(np.uint8)
    return np.concatenate([rgb, np.full((size, size, 1), 255, np.uint8)], -1)


def _carpet(generator: np.random.Generator, size: int = 512) -> np.ndarray:
    shade = 1 + 0.12 * ndimage.gaussian_filter(generator.standard_normal((size, size)), 1.5)
    rgb = np.clip(shade[..., None] * np.array([96, 101, 112]), 0, 255).astype(np.uint8)
    return np.concatenate([rgb, np.full((size, size, 1), 255, np.uint8)], -1)


def hand_held(camera: Camera, generator: np.random.Generator) -> np.ndarray:
    """The camera's pose with an aim and a roll that are a little off."""
    yaw, pitch, roll = np.deg2rad(generator.normal(0, (2.0, 2.0, 1.0)))
    rx = np.array([[1, 0, 0], [0, np.cos(pitch), -np.sin(pitch)], [0, np.sin(pitch), np.cos(pitch)]])
    ry = np.array([[np.cos(yaw), 0, np.sin(yaw)], [0, 1, 0], [-np.sin(yaw), 0, np.cos(yaw)]])
    rz = np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
    return rz @ ry @ rx @ camera.camera_from_world()


def snapshots(mesh_path: Path, out: Path, count: int = 5) -> list[Camera]:
    """Write ``out``/IMG_0001.jpg and so on; the places they are taken from (their aim and roll are off). Raises InputError for a mesh that cannot be read and for another
    number of pictures than there are places for."""
    if not 1 <= count <= len(AZIMUTHS_DEG):
        raise InputError(f"{out}: 1 to {len(AZIMUTHS_DEG)} snapshots of a mesh can be made, not {count}; give another number")
    mesh = load_mesh_normalised(mesh_path)
    generator = np.random.default_rng(seed_of(str(mesh_path.parent.parent.name)))
    renderer = MeshRenderer(room(mesh, generator))
    fov = 2 * np.arctan(FILM_DIAGONAL_MM * WIDTH / np.hypot(WIDTH, HEIGHT) / 2 / FOCAL_35MM)  # across the longer side
    cameras = []
    with atomic_dir(out) as folder:
        for k in range(count):
            camera = Camera.from_degrees(float(generator.uniform(12, 35)), AZIMUTHS_DEG[k] + float(generator.normal(0, 6)), float(generator.normal(1.75, 0.04)))
            image = renderer.render(hand_held(camera, generator), float(fov), WIDTH, 1)[..., :3]
            image = image[(WIDTH - HEIGHT) // 2 : (WIDTH + HEIGHT) // 2]
            y, x = np.mgrid[-1 : 1 : HEIGHT * 1j, -1 : 1 : WIDTH * 1j]
            image = image * (1 - 0.12 * (x**2 + y**2))[..., None] + generator.normal(0, 0.008, image.shape)
            picture = Image.fromarray((ndimage.gaussian_filter(image, (0.6, 0.6, 0)).clip(0, 1) * 255).astype(np.uint8))
            exif = Image.Exif()
            exif[0x010F], exif[0x0110] = "SAP3D", "rendered snapshot"
            if k % 3 == 2:  # held upright: stored turned, with the tag that says so
                picture, exif[0x0112] = picture.transpose(Image.Transpose.ROTATE_90), 6
            exif.get_ifd(0x8769)[41989] = FOCAL_35MM
            picture.save(folder / f"IMG_{k + 1:04d}.jpg", quality=88, exif=exif)
            cameras.append(camera)
    return cameras


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.snapshots", description=__doc__.split("\n")[0])
    parser.add_argument("mesh", type=Path, help="a mesh, z up")
    parser.add_argument("--out", type=Path, required=True, help="folder for the pictures; an old one is replaced")
    parser.add_argument("--count", type=int, default=5, help="number of pictures, 1 to 8 (default 5)")
    args = parser.parse_args()
    if args.out.exists() and any(not p.name.startswith("IMG_") for p in args.out.iterdir()):
        raise InputError(f"{args.out}: holds other files than snapshots and is not replaced; choose another folder")
    snapshots(args.mesh, args.out, args.count)
    print(f"{args.count} pictures in {args.out}")


if __name__ == "__main__":
    cli(main)
