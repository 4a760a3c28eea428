"""Import real Google Scanned Objects, as distributed or as plain folders, into the GSO layout.

    python -m dataset.gso Sonny_School_Bus.zip ~/gso/*.zip --type GSO
    python -m dataset.gso folder_of_objects --type GSO
    python -m dataset.gso folder_of_objects --type GSO_random --inputs random     # views from anywhere, a type of their own

An object is a zip or a folder with ``meshes/model.obj`` and ``materials/textures/texture.png`` (as distributed), or with
``model.obj``, its MTL and ``texture.png`` side by side. Google Scanned Objects are z up. They are Google Research's, under
CC-BY 4.0; this project never puts one into its repository and never trains on one.
"""

from __future__ import annotations

import lzma
import shutil
import sys
import tempfile
import zipfile
import zlib
from pathlib import Path, PurePosixPath

from dataset.render import add_settings, object_folders, render_object, settings_from
from sap3d.errors import ArgumentParser, InputError, cli, one_line
from sap3d.images import load_rgb
from sap3d.mesh_render import load_mesh_normalised
from sap3d.scene import check_name, root_dir

LARGEST_OBJECT = 2 << 30  # unpacked bytes
_LAYOUT = "expected meshes/model.obj with materials/textures/texture.png, or model.obj with texture.png beside it"


def unpack_zip(path: Path, target: Path) -> None:
    """Unpack a zip into ``target``; a member that would land outside of it, or a link, refuses the whole file."""
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            for info in members:
                name = PurePosixPath(info.filename.replace("\\", "/"))
                is_link = (info.external_attr >> 16) & 0o170000 == 0o120000
                if name.is_absolute() or ".." in name.parts or any(":" in part for part in name.parts[:1]) or is_link:
                    raise InputError(f"{path}: member {info.filename!r} points outside of the archive; it is not used")
            if sum(info.file_size for info in members) > LARGEST_OBJECT:
                raise InputError(f"{path}: unpacks to more than {LARGEST_OBJECT >> 30} GB, which is no scanned object")
            target.mkdir(parents=True, exist_ok=True)  # an empty archive makes nothing
            archive.extractall(target)
    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, NotImplementedError, EOFError, RuntimeError, ValueError) as error:
        raise InputError(f"{path}: cannot be unpacked ({error}); download it again") from None


def find_model(folder: Path) -> Path | None:
    """The ``model.obj`` of an object's folder, also one level deeper (a zip with a single top folder)."""
    for base in (folder, *sorted(p for p in folder.iterdir() if p.is_dir())):
        for place in ("meshes/model.obj", "model.obj"):
            if (base / place).is_file():
                return base / place
    return None


def gather(model: Path, target: Path) -> Path:
    """Copy mesh, material and textures side by side into ``target``; returns the copied OBJ."""
    base = model.parent.parent if model.parent.name == "meshes" else model.parent
    textures = [p for p in (base / "materials" / "textures", model.parent, base) if p.is_dir()]
    target.mkdir(parents=True, exist_ok=True)
    text = model.read_text(errors="replace")
    libraries = [line.split(None, 1)[1].strip() for line in text.splitlines() if line.startswith("mtllib ")]
    found = [p for name in libraries for p in (model.parent / Path(name).name, base / Path(name).name) if p.is_file()]
    found = found[:1] or sorted(model.parent.glob("*.mtl"))[:1]
    wanted = ["texture.png"]
    if found:
        lines = found[0].read_text(errors="replace").splitlines()
        wanted = [line.split()[-1] for line in lines if line.split()[:1] and line.split()[0].lower() == "map_kd" and len(line.split()) > 1]
    for name in dict.fromkeys(wanted):
        name = PurePosixPath(name.replace("\\", "/")).name
        source = next((folder / name for folder in textures if (folder / name).is_file()), None)
        if source is None:
            raise InputError(f"{model}: its texture {name} is missing; {_LAYOUT}")
        load_rgb(source)  # one that cannot be decoded would be left out without a word
        shutil.copyfile(source, target / name)
    if found:
        lines = [f"map_Kd {PurePosixPath(line.split()[-1]).name}" if line.lower().split()[:1] == ["map_kd"] else line for line in lines]
    else:
        lines = ["newmtl material_0", "Kd 1 1 1", "map_Kd texture.png"]
    (target / "model.mtl").write_text("\n".join(lines) + "\n")
    body = [line for line in text.splitlines() if not line.startswith("mtllib")]
    if not found:
        body = ["usemtl material_0"] + [line for line in body if not line.startswith("usemtl")]
    (target / "model.obj").write_text("\n".join(["mtllib model.mtl", *body]) + "\n")
    return target / "model.obj"


def object_sources(path: Path) -> list[Path]:
    """The zips and folders that a command-line argument stands for."""
    if path.is_file() and path.suffix.lower() == ".zip":
        return [path]
    if not path.is_dir():
        raise InputError(f"{path}: no such zip or folder; {_LAYOUT}")
    if any((path / place).is_file() for place in ("meshes/model.obj", "model.obj")):
        return [path]
    inside = sorted(p for p in path.iterdir() if p.suffix.lower() == ".zip" or (p.is_dir() and find_model(p)))
    if not inside:
        raise InputError(f"{path}: no scanned object in it; {_LAYOUT}")
    return inside


def object_name(source: Path) -> str:
    """The name that a zip or folder gives its object; raises InputError where it is none."""
    stem = source.stem if source.is_file() else source.name
    return check_name(stem.replace(" ", "_"), "object name")


def import_object(source: Path, type_: str, root: Path | None, settings) -> tuple[str, bool]:
    """Import one zip or folder; (object name, whether it was rendered now)."""
    name = object_name(source)
    with tempfile.TemporaryDirectory(prefix="gso_") as temporary:
        folder = source
        if source.is_file():
            folder = Path(temporary) / "unpacked"
            unpack_zip(source, folder)
        model = find_model(folder)
        if model is None:
            raise InputError(f"{source}: no model.obj in it; {_LAYOUT}")
        try:
            mesh = load_mesh_normalised(gather(model, Path(temporary) / "flat"), up="z")
        except InputError as error:  # name the user's file, not the copy
            raise InputError(str(error).replace(temporary, str(source))) from None
        return name, render_object(mesh, type_, name, root, settings)


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.gso", description=__doc__.split("\n")[0])
    parser.add_argument("paths", type=Path, nargs="+", help="zips, object folders, or folders of them")
    parser.add_argument("--type", default="GSO", help="dataset type: the folder below dataset/data/train (default GSO)")
    add_settings(parser)
    args = parser.parse_args()
    check_name(args.type, "dataset type")
    settings = settings_from(args)
    sources = [source for path in args.paths for source in object_sources(path)]
    failed, first = 0, {}  # first: by name, what was imported under it in this call
    for source in sources:
        try:
            other = first.setdefault(object_name(source), source)
            if other.resolve() != source.resolve():
                raise InputError(f"{source}: would take the place of {other}, whose name is {object_name(source)} too; rename one of them and import it again")
            name, written = import_object(source, args.type, args.root, settings)
            print(f"{name}: {'rendered' if written else 'already there'}", flush=True)
        except (InputError, OSError) as error:
            failed += 1
            print(f"error: {one_line(error) or error}", file=sys.stderr, flush=True)
    folder = object_folders(args.root or root_dir(), args.type, "x")[0].parent
    print(f"{len(sources) - failed} of {len(sources)} objects in {folder}")
    if failed:
        raise SystemExit(2)


if __name__ == "__main__":
    cli(main)
