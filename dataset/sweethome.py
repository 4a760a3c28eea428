"""The libraries of the Debian package ``sweethome3d-furniture``: where an object's mesh, author and licence are found.

A library (``*.sh3f``) is a zip of OBJ folders and a catalogue, ``PluginFurnitureCatalog.properties``, with a numbered block
of ``key#number=value`` lines an object.
"""

from __future__ import annotations

import io
import lzma
import re
import tarfile
import tempfile
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np

from sap3d.errors import InputError

PACKAGE = "sweethome3d-furniture"
HOW_TO_GET = f"get it with `apt-get download {PACKAGE}`, or its libraries (*.sh3f) from the site of Sweet Home 3D"
# As the package's copyright file and the libraries' own licence files say.
LICENCES = {
    "BlendSwap-CC-0": "CC0-1.0",
    "BlendSwap-CC-BY": "CC-BY-3.0",
    "KatorLegaz": "CC-BY-3.0-US",
    "Reallusion": "CC-BY-3.0-US",
    "Scopia": "CC-BY-3.0",
}
SOURCE = "Sweet Home 3D furniture libraries (https://www.sweethome3d.com), Debian package sweethome3d-furniture"


@dataclass(frozen=True)
class CorpusObject:
    """One object of a library; ``rotation`` is the catalogue's correction (row-major 3 x 3) or None. Meshes are y up."""

    id: str
    library_path: Path
    member: str
    name: str
    category: str
    author: str
    licence: str
    rotation: tuple[float, ...] | None

    def record(self) -> dict:
        return {
            "id": self.id,
            "name": self.name,
            "category": self.category,
            "author": self.author,
            "licence": self.licence,
            "library": self.library_path.stem,
            "member": self.member,
        }

    def load(self):
        """The object's ``RenderMesh``."""
        return load_object(self)


def find_libraries(source: Path, unpack_dir: Path) -> list[Path]:
    """The ``*.sh3f`` files under a folder, or of a ``.deb`` (which is unpacked, libraries only, into ``unpack_dir``)."""
    source = Path(source)
    if source.is_dir():
        libraries = sorted(source.rglob("*.sh3f"))
    elif source.is_file() and source.suffix == ".sh3f":
        libraries = [source]
    elif source.is_file() and source.suffix == ".deb":
        libraries = _unpack_deb(source, unpack_dir)
    else:
        raise InputError(f"{source}: no such folder, .deb or .sh3f file; {HOW_TO_GET}")
    if not libraries:
        raise InputError(f"{source}: no furniture library (*.sh3f) in it; {HOW_TO_GET}")
    return libraries


def _unpack_deb(deb: Path, unpack_dir: Path) -> list[Path]:
    data = deb.read_bytes()
    if not data.startswith(b"!<arch>\n"):
        raise InputError(f"{deb}: not a Debian package; {HOW_TO_GET}")
    position, libraries = 8, []
    while position + 60 <= len(data):  # an `ar` archive: 60 bytes of header, then the member, padded to even length
        name, size = data[position : position + 16].decode().strip().rstrip("/"), int(data[position + 48 : position + 58])
        position += 60
        if name.startswith("data.tar"):
            try:
                libraries += _unpack_libraries(data[position : position + size], unpack_dir)
            except (tarfile.TarError, lzma.LZMAError, zlib.error, EOFError):
                remedy = "unpack it with `dpkg -x FILE FOLDER` and give the folder, or download it again"
                raise InputError(f"{deb}: its {name} is damaged, or of a compression that this Python does not read; {remedy}") from None
        position += size + size % 2
    return sorted(libraries)


def _unpack_libraries(data: bytes, unpack_dir: Path) -> list[Path]:
    """The libraries of a package's data archive, written into ``unpack_dir``."""
    libraries = []
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        for member in archive:
            if member.isfile() and member.name.endswith(".sh3f"):
                target = Path(unpack_dir) / PurePosixPath(member.name).name
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.extractfile(member).read())
                libraries.append(target)
    return libraries


def list_objects(libraries: list[Path]) -> list[CorpusObject]:
    """All objects of the libraries, sorted by id."""
    objects: dict[str, CorpusObject] = {}
    for library in libraries:
        try:
            with zipfile.ZipFile(library) as archive:
                text = archive.read("PluginFurnitureCatalog.properties").decode("latin-1")
        except (zipfile.BadZipFile, zlib.error, KeyError) as error:
            raise InputError(f"{library}: not a furniture library ({error}); {HOW_TO_GET}") from None
        for block in parse_catalogue(text):
            member = block.get("model", "").lstrip("/")
            if not member.endswith(".obj"):
                continue
            path = PurePosixPath(member)
            parts = [library.stem.lower(), path.parent.name] + ([path.stem] if path.stem != path.parent.name else [])
            identifier = re.sub(r"[^A-Za-z0-9._-]+", "_", "__".join(parts))
            rotation = tuple(float(x) for x in block["modelRotation"].split()) if block.get("modelRotation") else None
            objects[identifier] = CorpusObject(
                identifier, library, member, block.get("name", path.stem), block.get("category", ""),
                block.get("creator", "unknown"), LICENCES.get(library.stem, "see library"), rotation,
            )  # fmt: skip
    return [objects[key] for key in sorted(objects)]


def parse_catalogue(text: str) -> list[dict[str, str]]:
    """The numbered blocks of a catalogue, in order of their numbers."""
    blocks: dict[int, dict[str, str]] = {}
    for line in text.splitlines():
        match = re.match(r"(\w+)#(\d+)\s*=\s*(.*)", line)
        if match:
            value = re.sub(r"\\u([0-9a-fA-F]{4})", lambda m: chr(int(m[1], 16)), match[3]).replace("\\", "").strip()
            blocks.setdefault(int(match[2]), {})[match[1]] = value
    return [blocks[number] for number in sorted(blocks)]


def extract_object(item: CorpusObject, target: Path) -> Path:
    """Unpack the folder of one object into ``target``; returns the path of its OBJ file."""
    folder = str(PurePosixPath(item.member).parent) + "/"
    with zipfile.ZipFile(item.library_path) as archive:
        for info in archive.infolist():
            if info.filename.startswith(folder) and not info.is_dir():
                archive.extract(info, target)  # zipfile drops absolute and climbing parts of names
    return Path(target) / item.member


def load_object(item: CorpusObject):
    """The normalised ``RenderMesh`` of one object."""
    from sap3d.mesh_render import load_mesh_normalised

    with tempfile.TemporaryDirectory(prefix="corpus_") as folder:
        path = extract_object(item, Path(folder))
        return load_mesh_normalised(path, up="y", rotation=None if item.rotation is None else np.reshape(item.rotation, (3, 3)))
