"""Render a mesh into the GSO layout under the SAP3D protocol.

    python -m dataset.render chair.glb --type MINE --name chair [--views 8] [--up y] [--inputs random]

Writes (docs/DATASET.md has every field)
    dataset/data/train/<TYPE>/<NAME>/{images,poses}/000..   input views, RGBA 512 x 512
    dataset/data/test/<NAME>/{images,poses}/000..083        ground truth for evaluation, RGBA 256 x 256; source.json: whose
    dataset/3d_models/<TYPE>/<NAME>/meshes/model.obj        the mesh, normalised: z up, centred, longest side 1
"""

from __future__ import annotations

import argparse
import hashlib
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dataset.corpus import seed_of
from dataset.mesh_io import save_obj
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.images import to_uint8
from sap3d.mesh_render import MeshRenderer, RenderMesh, load_mesh_normalised
from sap3d.scene import REPOSITORY, atomic_dir, check_name, read_json, root_dir, write_json

MAX_VIEWS = 8
RANDOM_ELEVATIONS_DEG, RANDOM_RADII = (-20.0, 60.0), (1.3, 1.8)  # of random input views; any azimuth


@dataclass(frozen=True)
class RenderSettings:
    views: int = 8  # input views, 1 .. 8
    inputs: str = "protocol"  # protocol, or random: any azimuth, elevation and radius from a range
    input_size: int = 512  # pixels
    test_size: int = 256  # pixels
    supersample: int = 2  # samples a pixel, squared
    texture_size: int | None = None  # largest side of the kept mesh's textures; None keeps them as they are


def protocol_input_cameras(name: str, views: int) -> dict[str, Camera]:
    """The input cameras of an object: azimuths 0, 90, 270, then 135 or 180, then 225, then 45, 315 and the one left out.

    Elevations are 0 or 30 degrees. Both choices are drawn by a seed from the object's name, so that they are the same
    everywhere; view 000 defines azimuth 0.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise InputError(f"the protocol has 1 to {MAX_VIEWS} input views, got {views}")
    generator = np.random.default_rng(seed_of(name))
    fourth, last = (135.0, 180.0) if generator.integers(2) else (180.0, 135.0)
    azimuths = (0.0, 90.0, 270.0, fourth, 225.0, 45.0, 315.0, last)
    elevations = 30.0 * generator.integers(0, 2, MAX_VIEWS)
    return {f"{k:03d}": Camera.from_degrees(float(elevations[k]), azimuths[k]) for k in range(views)}


def random_input_cameras(name: str, views: int) -> dict[str, Camera]:
    """Input cameras from all around an object, independent of each other: elevations, azimuths and radii uniform in their ranges. View 000 is at azimuth 0, where the test views begin.

    Drawn by a seed from the object's name, one camera after the other, so that they are the same everywhere. The true views stay the protocol's.
    """
    if not 1 <= views <= MAX_VIEWS:
        raise InputError(f"there are 1 to {MAX_VIEWS} input views, got {views}")
    low, high = zip(RANDOM_ELEVATIONS_DEG, (0.0, 360.0), RANDOM_RADII)
    drawn = np.random.default_rng([seed_of(name), 1]).uniform(low, high, (MAX_VIEWS, 3))
    drawn[0, 1] = 0
    return {f"{k:03d}": Camera.from_degrees(*map(float, drawn[k])) for k in range(views)}


INPUT_CAMERAS = {"protocol": protocol_input_cameras, "random": random_input_cameras}


def render_views(renderer: MeshRenderer, folder: Path, views: dict[str, Camera], size: int, supersample: int) -> None:
    """Write ``folder/images/<name>.png`` and ``folder/poses/<name>.npy`` of every camera."""
    from PIL import Image

    for part in ("images", "poses"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for name, camera in views.items():
        image = to_uint8(renderer.render(camera.camera_from_world(), camera.fov_rad, size, supersample))
        Image.fromarray(image).save(folder / "images" / f"{name}.png", optimize=True)
        np.save(folder / "poses" / f"{name}.npy", camera.camera_from_world())


def render_object(mesh: RenderMesh, type_: str, name: str, root: Path | None = None, settings=RenderSettings()) -> bool:
    """Write one object in the GSO layout under ``root``; False when it was there already: same mesh, same settings.

    Raises InputError when another type has a different object of that name (data/test has no level for the type), and for a folder that was not made here;
    both below ``root`` and in the repository.
    """
    check_name(type_, "dataset type")
    check_name(name, "object name")
    root = root_dir() if root is None else Path(root)
    train, test, model = object_folders(root, type_, name)
    record = {"format": 1, "mesh": mesh_hash(mesh), "settings": settings_record(settings)}
    source = {"type": type_, "mesh": record["mesh"]}
    for base in (root, REPOSITORY):  # what is missing below the root is read in the repository, so that names must differ from those there too
        train_there, test_there, _ = object_folders(base, type_, name)
        owner = read_json(test_there / "source.json")
        if isinstance(owner, dict) and owner.get("type") != type_ and owner.get("mesh") != source["mesh"]:
            raise InputError(f"{test_there}: holds the true views of another object, {owner.get('type')} {name}, and has no level for the type; choose another name")
        for folder, made in ((train_there, "render.json"), (test_there, "source.json")):
            if folder.exists() and not (folder / made).is_file():
                remedy = "choose another --name (for a scan: rename its zip or folder), or move that folder away"
                raise InputError(f"{folder}: was not rendered by this program (it has no {made}) and is not replaced; {remedy}")
    record_path = train / "render.json"
    before = read_json(record_path)
    if before == record and test.is_dir() and (model / "meshes" / "model.obj").is_file():
        return False
    if isinstance(before, dict) and before.get("mesh") != record["mesh"]:
        print(f"replaces the earlier {name} (another mesh)", flush=True)
    if train.exists():  # replaced last: until then its record matches no settings, so that a killed run is done again
        write_json(record_path, (before if isinstance(before, dict) else {}) | {"settings": None})
    renderer = MeshRenderer(mesh)
    inputs = INPUT_CAMERAS[settings.inputs](name, settings.views)
    with atomic_dir(model) as folder:
        save_obj(mesh, folder / "meshes", texture_size=settings.texture_size)
    with atomic_dir(test) as folder:
        render_views(renderer, folder, protocol_test_cameras(), settings.test_size, settings.supersample)
        write_json(folder / "source.json", source)
    with atomic_dir(train) as folder:
        render_views(renderer, folder, inputs, settings.input_size, settings.supersample)
        write_json(folder / "render.json", record)
    return True


def settings_record(settings: RenderSettings) -> dict:
    """What a render's record says of its settings; records of the protocol's views are older than the choice of views and do not name it, and
    random views of before did not begin at azimuth 0."""
    names = {"protocol": {}, "random": {"inputs": "random from azimuth 0"}}
    return {key: value for key, value in asdict(settings).items() if key != "inputs"} | names[settings.inputs]


def mesh_hash(mesh: RenderMesh) -> str:
    """SHA-256 over geometry and materials as loaded."""
    digest = hashlib.sha256()
    for array in (mesh.vertices, mesh.faces, mesh.corner_uv, mesh.face_material, mesh.corner_colour, *mesh.textures):
        if array is not None:
            digest.update(f"{array.shape}{array.dtype}".encode() + np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


def object_folders(root: Path, type_: str, name: str) -> tuple[Path, Path, Path]:
    """Where an object is written: (data/train/TYPE/NAME, data/test/NAME, 3d_models/TYPE/NAME) below ``root/dataset``."""
    base = Path(root) / "dataset"
    return base / "data" / "train" / type_ / name, base / "data" / "test" / name, base / "3d_models" / type_ / name


def add_settings(parser: argparse.ArgumentParser) -> None:
    """The options that this command and ``dataset.gso`` share."""
    parser.add_argument("--views", type=int, default=8, help="input views, 1 to 8 (default 8)")
    text = "input views: the protocol's, or random ones (elevation -20 to 60, any azimuth but 0 for view 000, radius 1.3 to 1.8)"
    parser.add_argument("--inputs", choices=tuple(INPUT_CAMERAS), default="protocol", help=text)
    parser.add_argument("--input-size", type=int, default=512, help="side of the input images in pixels")
    parser.add_argument("--test-size", type=int, default=256, help="side of the test images in pixels")
    parser.add_argument("--root", type=Path, help="write below this folder (default: ROOT_DIR or the repository)")


def settings_from(args: argparse.Namespace) -> RenderSettings:
    if not 1 <= args.views <= MAX_VIEWS:
        raise InputError(f"--views must be 1 to {MAX_VIEWS}, got {args.views}")
    for option in ("input_size", "test_size"):
        if not 16 <= getattr(args, option) <= 2048:
            raise InputError(f"--{option.replace('_', '-')} must be 16 to 2048, got {getattr(args, option)}")
    return RenderSettings(views=args.views, inputs=args.inputs, input_size=args.input_size, test_size=args.test_size)


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.render", description=__doc__.split("\n")[0])
    parser.add_argument("mesh", type=Path, help="OBJ, GLB, glTF, PLY, OFF or STL")
    parser.add_argument("--type", required=True, help="dataset type: the folder below dataset/data/train")
    parser.add_argument("--name", help="object name (default: the file's name)")
    parser.add_argument("--up", choices=("y", "z"), help="the file's up axis (default: y for glTF and GLB, else z)")
    add_settings(parser)
    args = parser.parse_args()
    name = check_name(args.name or args.mesh.stem, "object name")
    settings = settings_from(args)
    up = args.up or ("y" if args.mesh.suffix.lower() in (".glb", ".gltf") else "z")
    mesh = load_mesh_normalised(args.mesh, up=up)
    for note in mesh.notes:
        print(f"note: {note}")
    written = render_object(mesh, args.type, name, args.root, settings)
    train, test, model = object_folders(args.root or root_dir(), args.type, name)
    print(f"{'rendered' if written else 'already there'}: {train}, {test}, {model / 'meshes' / 'model.obj'}")


if __name__ == "__main__":
    cli(main)
