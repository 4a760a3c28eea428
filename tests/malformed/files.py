"""Broken and hostile files as bytes: images, archives, meshes, pickles."""

import io
import json
import os
import pickle
import struct
import zipfile
import zlib

import numpy as np
from PIL import Image

SIGNATURE = b"\x89PNG\r\n\x1a\n"


# --- images -----------------------------------------------------------------------------------------------------------
def disc(k=0, size=32):
    """A coloured disc over nothing, RGBA uint8 (size, size, 4)."""
    y, x = np.mgrid[:size, :size]
    image = np.full((size, size, 4), (200 - 60 * k, 60, 20 + 80 * k, 255), np.uint8)
    image[(x - size / 2) ** 2 + (y - size / 2) ** 2 >= (size / 3) ** 2] = 0
    return image


def encoded(array, format_="PNG", mode=None, **options) -> bytes:
    stream = io.BytesIO()
    image = Image.fromarray(np.ascontiguousarray(array))
    (image.convert(mode) if mode else image).save(stream, format=format_, **options)
    return stream.getvalue()


def chunk(kind: bytes, data: bytes, crc=None) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)


def png(width=32, height=32, depth=8, colour=6, rows: bytes | None = None, before=b"", end=True) -> bytes:
    """A PNG with any header over any pixel data."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    rows = zlib.compress(b"\x00" * 64) if rows is None else rows
    return SIGNATURE + chunk(b"IHDR", header) + before + chunk(b"IDAT", rows) + (chunk(b"IEND", b"") if end else b"")


def broken_images() -> dict[str, bytes]:
    """Name -> bytes of files called 001.png that no photo can be read from."""
    good = encoded(disc(1))
    jpeg = encoded(disc(1)[..., :3], "JPEG")
    found = {f"PNG cut after {length} bytes": good[:length] for length in (0, 1, 8, 16, 25, 33, 41, 60, 90)}
    found |= {f"JPEG cut after {length} bytes": jpeg[:length] for length in (2, 20, 100, 200)}
    generator = np.random.default_rng(0)
    for k in range(12):  # generated: a good file with a tenth of its bytes replaced
        noisy = np.frombuffer(good, np.uint8).copy()
        places = generator.choice(len(noisy), len(noisy) // 10, replace=False)
        noisy[places] = generator.integers(0, 256, len(places))
        found[f"PNG with noise {k}"] = noisy.tobytes()
    for k in range(4):
        found[f"random bytes {k}"] = generator.bytes(500)
        found[f"random bytes after a PNG signature {k}"] = SIGNATURE + generator.bytes(500)
    found |= {
        "PNG of no size": png(0, 0), "PNG of no width": png(0, 32), "PNG of bit depth 3": png(depth=3), "PNG of colour type 5": png(colour=5),
        "PNG with a wrong check sum": SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 6, 0, 0, 0), crc=1) + chunk(b"IEND", b""),
        "PNG without pixels": SIGNATURE + chunk(b"IHDR", struct.pack(">IIBBBBB", 32, 32, 8, 6, 0, 0, 0)) + chunk(b"IEND", b""),
        "PNG whose pixels are no zlib stream": png(rows=b"not compressed at all"),
        "text": b"hello\n", "HTML": b"<!doctype html><p>404 not found", "SVG": b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>",
        "PDF": b"%PDF-1.4\n%%EOF", "zip": archive({"a": b"b"}), "program": b"\x7fELF" + bytes(60), "pickle": hostile_pickle("/dev/null"),
        "RGB PNG": encoded(disc(1)[..., :3]), "grey PNG": encoded(disc(1)[..., 0]), "one-bit PNG": encoded(disc(1)[..., 0], mode="1"),
        "16-bit grey PNG": encoded(disc(1)[..., 0].astype(np.uint16) * 257), "JPEG called PNG": jpeg, "CMYK JPEG": encoded(disc(1)[..., :3], "JPEG", "CMYK"),
        "BMP": encoded(disc(1)[..., :3], "BMP"), "float TIFF": encoded(disc(1)[..., 0].astype(np.float32), "TIFF"),
        "transparent PNG": encoded(disc(1) * np.uint8([1, 1, 1, 0])), "PNG of another size": encoded(disc(1, 40)), "PNG that is not square": encoded(disc(1)[:, :20]),
        "PNG of one pixel": encoded(disc(1)[16:17, 16:17]), "the picture of another view": encoded(disc(0)),
    }  # fmt: skip
    return found


def bombs() -> dict[str, bytes]:
    """Small files that unpack to far more than a photo needs."""
    def rows(n):
        return zlib.compress(bytes(n), 1)

    text = chunk(b"zTXt", b"a\x00\x00" + rows(80_000_000))
    return {
        "PNG of 30000 x 30000 pixels": png(30000, 30000, 1, 0, rows(3_000_000)),
        "PNG of 9000 x 9000 pixels": png(9000, 9000, 8, 6, rows(3_000_000)),
        "PNG of 12000 x 12000 pixels": png(12000, 12000, 8, 6, rows(3_000_000)),
        "PNG of 2147483647 x 1 pixels": png(2**31 - 1, 1, 8, 6),
        "PNG of 65535 x 65535 pixels": png(65535, 65535, 16, 6),
        "PNG with 80 MB of text": png(before=text),
        "GIF of 65535 x 65535 pixels": b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0x80, 0, 0) + bytes(6) + b"," + struct.pack("<HHHHB", 0, 0, 65535, 65535, 0) + b"\x02\x02\x44\x01\x00;",
        "BMP of 40000 x 40000 pixels": b"BM" + struct.pack("<IHHI", 1 << 31, 0, 0, 54) + struct.pack("<IiiHHIIiiII", 40, 40000, 40000, 1, 24, 0, 0, 0, 0, 0, 0),
    }  # fmt: skip


# --- archives ---------------------------------------------------------------------------------------------------------
OBJ = "v 0 0 0\nv 1 0 0\nv 0 1 0\nv 0 0 1\nf 1 2 3\nf 1 2 4\nf 1 3 4\nf 2 3 4\n"
OBJECT = {"meshes/model.obj": "mtllib model.mtl\nusemtl m\n" + OBJ, "meshes/model.mtl": "newmtl m\nmap_Kd texture.png\n", "materials/textures/texture.png": encoded(disc(0)[..., :3])}


def archive(members: dict, links: dict | None = None) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        for name, content in members.items():
            made.writestr(name, content)
        for name, target in (links or {}).items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o120777 << 16
            made.writestr(info, target)
    return stream.getvalue()


def broken_archives() -> dict[str, bytes]:
    good = archive(OBJECT)
    climbing = ("../climbed", "../../climbed", "meshes/../../climbed", "/tmp/sap3d_climbed", "..\\climbed", "C:\\climbed", "meshes/../../../../climbed", "./../climbed")
    found = {f"member {name}": archive(OBJECT | {name: b"x"}) for name in climbing}
    patched = bytearray(good)
    at = patched.rfind(b"PK\x01\x02")
    patched[at + 24 : at + 28] = struct.pack("<I", 0xFFFFFFF0)  # unpacked size of the last member
    method = bytearray(good)
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        at = method.find(signature)
        method[at + offset : at + offset + 2] = struct.pack("<H", 99)
    locked = bytearray(good)
    for signature, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        at = -1
        while (at := locked.find(signature, at + 1)) >= 0:
            locked[at + offset] |= 1
    wrong = bytearray(good)
    at = wrong.find(b"v 0 0 0")
    wrong[at : at + 7] = b"v 9 9 9"  # the check sum no longer fits
    found |= {
        "symbolic link to /etc": archive(OBJECT, {"meshes/link": "/etc"}), "symbolic link as texture": archive({k: v for k, v in OBJECT.items() if "png" not in k}, {"materials/textures/texture.png": "/etc/hostname"}),
        "bomb by declared size": bytes(patched), "unknown compression": bytes(method), "encrypted": bytes(locked), "wrong check sum": bytes(wrong),
        "cut in half": good[: len(good) // 2], "without its directory": good[: good.find(b"PK\x01\x02")], "empty file": b"", "text": b"not a zip", "empty archive": archive({}),
        "no mesh": archive({"readme.txt": b"hello"}), "no texture": archive({k: v for k, v in OBJECT.items() if "png" not in k}),
        "texture is text": archive(OBJECT | {"materials/textures/texture.png": b"hello"}), "mesh is empty": archive(OBJECT | {"meshes/model.obj": b""}),
        "mesh is binary": archive(OBJECT | {"meshes/model.obj": bytes(range(256))}), "texture is a bomb": archive(OBJECT | {"materials/textures/texture.png": bombs()["PNG of 30000 x 30000 pixels"]}),
    }  # fmt: skip
    return found


# --- meshes -----------------------------------------------------------------------------------------------------------
def glb(document, binary=b"", version=2, magic=b"glTF", length=None) -> bytes:
    text = document if isinstance(document, bytes) else json.dumps(document).encode()
    text += b" " * (-len(text) % 4)
    body = struct.pack("<I4s", len(text), b"JSON") + text + (struct.pack("<I4s", len(binary), b"BIN\x00") + binary if binary else b"")
    return magic + struct.pack("<II", version, len(body) + 12 if length is None else length) + body


def broken_meshes() -> dict[str, bytes]:
    """File name -> bytes; the ending says the format."""
    asset = {"asset": {"version": "2.0"}}
    points = np.float32([[0, 0, 0], [1, 0, 0], [0, 1, 0]]).tobytes()
    triangle = asset | {
        "scene": 0, "scenes": [{"nodes": [0]}], "nodes": [{"mesh": 0}], "meshes": [{"primitives": [{"attributes": {"POSITION": 0}}]}],
        "accessors": [{"bufferView": 0, "componentType": 5126, "count": 3, "type": "VEC3"}], "bufferViews": [{"buffer": 0, "byteLength": 36}], "buffers": [{"byteLength": 36}],
    }  # fmt: skip
    huge = triangle | {"accessors": [triangle["accessors"][0] | {"count": 2_000_000_000}]}
    outside = triangle | {"buffers": [{"byteLength": 36, "uri": "../../../../../../etc/hostname"}]}
    ply = "ply\nformat ascii 1.0\nelement vertex {}\nproperty float x\nproperty float y\nproperty float z\nelement face {}\nproperty list uchar int vertex_indices\nend_header\n{}"
    return {
        "empty.obj": b"", "text.obj": b"hello world\n", "binary.obj": bytes(range(256)) * 4, "points.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\n", "words.obj": b"v a b c\nv 1 0 0\nv 0 1 0\nf 1 2 3\n",
        "nan.obj": b"v nan nan nan\nv nan 0 0\nv 0 nan 0\nf 1 2 3\n", "infinite.obj": b"v inf 0 0\nv 0 inf 0\nv 0 0 inf\nf 1 2 3\n", "index.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 9\n",
        "negative.obj": b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -1 -2 -9\n", "onepoint.obj": b"v 0 0 0\nv 0 0 0\nv 0 0 0\nf 1 2 3\n", "lines.obj": b"v 0 0 0\nv 1 0 0\nl 1 2\n", "faces.obj": b"f 1 2 3\n",
        "short.obj": b"v 0\nv 1\nv 2\nf 1 2 3\n",
        "empty.glb": b"", "text.glb": b"hello", "magic.glb": glb(triangle, points, magic=b"gltf"), "version.glb": glb(triangle, points, version=9), "json.glb": glb(b"{broken"), "none.glb": glb(asset),
        "cut.glb": glb(triangle, points)[:60], "length.glb": glb(triangle, points, length=4_000_000_000)[:40], "huge.glb": glb(huge, points), "nobuffer.glb": glb(triangle),
        "empty.gltf": b"", "broken.gltf": b"{", "list.gltf": b"[]", "outside.gltf": json.dumps(outside).encode(),
        "empty.ply": b"", "header.ply": b"ply\nformat ascii 1.0\n", "count.ply": ply.format(900, 1, "0 0 0\n").encode(), "huge.ply": ply.format(4_000_000_000, 1, "").encode(),
        "words.ply": ply.format(3, 1, "a b c\nd e f\ng h i\n3 0 1 2\n").encode(), "index.ply": ply.format(3, 1, "0 0 0\n1 0 0\n0 1 0\n3 0 1 77\n").encode(),
        "empty.off": b"", "count.off": b"OFF\n9 9 9\n0 0 0\n", "words.off": b"OFF\na b c\n",
        "empty.stl": b"", "count.stl": bytes(80) + struct.pack("<I", 4_000_000_000), "none.stl": bytes(84), "cut.stl": bytes(80) + struct.pack("<I", 3) + bytes(60),
        "unknown.fbx": b"Kaydara", "noending": OBJ.encode(), "page.html": b"<html>",
    }  # fmt: skip


# --- pickles ----------------------------------------------------------------------------------------------------------
class _Hostile:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


def hostile_pickle(path) -> bytes:
    """A pickle that makes the file ``path`` when it is loaded by a loader that trusts it."""
    return pickle.dumps(_Hostile(str(path)))


def hostile_torch(path) -> bytes:
    """The same in the form that torch.save writes."""
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as made:
        made.writestr("archive/data.pkl", hostile_pickle(path))
        made.writestr("archive/version", "3\n")
        made.writestr("archive/byteorder", "little")
    return stream.getvalue()


def hostile_npy(path) -> bytes:
    """The same in the form of an object array of NumPy."""
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (1,), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + hostile_pickle(path)


def hostile_npz(path) -> bytes:
    names = ("format", "uids", "licences", "authors", "polar_rad", "azimuth_rad", "radius", "webp", "offsets")
    return archive({f"{name}.npy": hostile_npy(path) for name in names})
