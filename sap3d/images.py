"""Images: RGBA in [0, 1] with straight alpha, white compositing, resizing, contact sheets and videos."""

from __future__ import annotations

import re
import warnings
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np
from PIL import Image, ImageDraw, UnidentifiedImageError

from sap3d.cameras import FOV_RAD, turn_matrix
from sap3d.errors import InputError
from sap3d.scene import Scene, atomic_path, objects_by_type, read_cameras, read_json, read_turns

MAX_PIXELS = 64_000_000
SUFFIXES = (".png", ".webp", ".jpg", ".jpeg")


def name_order(path: Path) -> list[tuple[int, int, str]]:
    """What photos are sorted by: their names, numbers in names counted (IMG_9 before IMG_10)."""
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in re.split(r"(\d+)", path.name)]


def load_rgba(path: Path, mask_path: Path | None = None) -> np.ndarray:
    """An image as float32 (H, W, 4) in [0, 1], straight alpha.

    The file ``mask_path``, where it exists, takes the place of the image's own alpha (``mask_of``).
    Raises InputError for a missing or unreadable file, an image without any alpha and mask, and an empty object.
    """
    path = Path(path)
    image, masked = open_image(path), mask_path is not None and mask_path.is_file()
    if masked:
        mask = mask_of(open_image(mask_path))
        if mask.size != image.size:
            raise InputError(f"{mask_path}: mask is {mask.size} but {path.name} is {image.size}; make them the same size")
        image = image.convert("RGB")
        image.putalpha(mask)
    if "A" not in image.getbands() and "transparency" not in image.info:
        raise InputError(
            f"{path}: has no alpha channel, so the object is not separated from the background; "
            f"save it as RGBA with a transparent background, add masks/{path.stem}.png, "
            "or import the photos under a new name: python -m dataset.photos FOLDER --type T --name O"
        )
    rgba = np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0
    if rgba[..., 3].max() < 0.05:
        if masked:
            raise InputError(f"{mask_path}: leaves every pixel transparent, so there is no object to see; make the object bright in it, or remove it")
        raise InputError(f"{path}: every pixel is transparent, so there is no object to see; check the mask or background removal")
    return rgba


def transparency(image: Image.Image) -> Image.Image | None:
    """The alpha channel of a picture (mode L); None where it has none, or one that hides nothing and so says nothing about the object."""
    if "A" not in image.getbands() and "transparency" not in image.info:
        return None
    channel = image.convert("RGBA").getchannel("A")
    return channel if channel.getextrema()[0] < 128 else None


def mask_of(image: Image.Image) -> Image.Image:
    """The mask (mode L, bright is object) that a picture is: its transparency where it is a cut-out, else its brightness.

    A label mask, whose object is 1 or a dark colour on black, is spread to black and white.
    """
    cut_out = transparency(image)
    if cut_out is not None:
        return cut_out
    mask = image.convert("L")
    low, high = mask.getextrema()
    if high == 1 or (low == 0 < high < 128 and mask.getcolors(2) is not None):  # two values: one of them has to be the object
        mask = mask.point(lambda value: 255 if value else 0)
    return mask


def open_image(path: Path) -> Image.Image:
    """A decoded picture with its metadata; raises InputError for what is missing, no image, damaged or too large."""
    if not path.is_file():
        raise InputError(f"{path}: no such image file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the next line refuses smaller ones
            image = Image.open(path)
        with image:
            if image.width * image.height > MAX_PIXELS:
                raise InputError(f"{path}: {image.width} x {image.height} pixels is too large; scale it to at most 8000 x 8000")
            image.load()
            return image.copy()
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        reason = "cannot be decoded" if not isinstance(error, UnidentifiedImageError) else "is not an image"
        raise InputError(f"{path}: {reason}; replace it with a PNG, WebP or JPEG file") from None


def load_input_views(scene: Scene, turned: bool = True) -> dict[str, np.ndarray]:
    """The first N photos of a scene, keyed by view name, each float32 (S, S, 4).

    turned: as seen by the cameras of the scene's initial camera file, where it says that photos are turned against them
    (``turn_photo``); otherwise, and without such a file, as they are stored.
    Raises InputError when the folder is missing, holds fewer photos than asked for, or a photo cannot be used.
    """
    folder = scene.train_dir / "images"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; available objects of type {scene.type}: {', '.join(available_objects(scene)) or 'none'}")
    paths = sorted(p for p in folder.iterdir() if p.suffix.lower() in SUFFIXES)
    if len({p.stem for p in paths}) != len(paths):
        raise InputError(f"{folder}: two photos have the same name with different endings; keep one of each")
    if len(paths) < scene.views:
        raise InputError(f"{folder}: {scene.views} views were asked for but it holds {len(paths)}; lower the number of views or add photos")
    files = {p.stem: p for p in paths[: scene.views]}
    images = {name: load_rgba(p, scene.train_dir / "masks" / f"{name}.png") for name, p in files.items()}
    first = next(iter(images))
    for name, image in images.items():
        if image.shape[0] != image.shape[1]:
            raise InputError(f"{files[name]}: is {image.shape[1]} x {image.shape[0]} but photos must be square; crop or pad it")
        if image.shape != images[first].shape:
            raise InputError(
                f"{folder}: {name} is {image.shape[1]} x {image.shape[0]} and {first} is {images[first].shape[1]} x "
                f"{images[first].shape[0]}; make all photos the same size"
            )
    names = list(images)
    for i, name in enumerate(names):
        for other in names[:i]:
            if np.array_equal(images[name], images[other]):
                raise InputError(f"{folder}: {other} and {name} are the same picture; remove one of them")
    if turned and scene.initial_cameras.is_file():
        images, _ = turn_photos(images, scene.initial_cameras)
    return images


def turn_photos(photos: Mapping[str, np.ndarray], camera_file: Path) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """Photos as the cameras of a file see them (``turn_photo``), and the turns (3,) of those that it says are turned against them."""
    cameras = read_cameras(camera_file)
    turns = {name: turn for name, turn in read_turns(camera_file).items() if name in photos}
    return {name: turn_photo(photo, turns[name], cameras[name].fov_rad) if name in turns else photo for name, photo in photos.items()}, turns


def fields_of_view(scene: Scene, names: list[str]) -> list[float] | None:
    """Angle across each photo, radians, where dataset.photos imported the object: as EXIF tells, else the protocol's. None where it did not.

    Raises InputError for a record that is not of this program or lacks a view.
    """
    path = scene.train_dir / "photos.json"
    if not path.is_file():
        return None
    record = read_json(path)
    try:
        found = [record["views"][name]["fov_deg"] for name in names]
        found = [FOV_RAD if degrees is None else float(np.deg2rad(degrees)) for degrees in found]
    except (KeyError, TypeError, ValueError):
        found = [0.0]
    if not all(0.01 < fov < 2.5 for fov in found):
        raise InputError(f"{path}: has no usable field of view for every photo; import the photos again (python -m dataset.photos), or delete it")
    return found


def turn_photo(image: np.ndarray, turn_rad: np.ndarray, fov_rad: float) -> np.ndarray:
    """What the camera sees against which a photo's (square, straight RGBA) is turned (``sap3d.cameras.turn_matrix``).

    The same place and field of view in another direction: exact for any scene, bilinear, transparent beyond the photo's edges.
    """
    from scipy.ndimage import map_coordinates

    if not np.any(turn_rad):
        return image
    size, tangent = image.shape[0], np.tan(fov_rad / 2)
    line = ((np.arange(size) + 0.5) / size * 2 - 1) * tangent
    x, y, z = np.moveaxis(np.stack(np.broadcast_arrays(line[None, :], -line[:, None], -1.0), -1) @ turn_matrix(turn_rad).T, -1, 0)
    column, row = ((side / -z / tangent + 1) / 2 * size - 0.5 for side in (x, -y))
    premultiplied = np.concatenate([image[..., :3] * image[..., 3:], image[..., 3:]], -1)
    out = np.stack([map_coordinates(premultiplied[..., c], [row, column], order=1) for c in range(4)], -1).clip(0, 1)
    out[..., :3] = np.clip(out[..., :3] / np.maximum(out[..., 3:], 1e-4), 0, 1)
    return out.astype(np.float32)


def input_files(scene: Scene, names: Sequence[str]) -> dict[str, Path]:
    """Photos and masks of the views ``names``, by a name for a completion record."""
    photos = {p.stem: p for p in sorted((scene.train_dir / "images").iterdir()) if p.suffix.lower() in SUFFIXES}
    masks = {name: scene.train_dir / "masks" / f"{name}.png" for name in names}
    return {f"photo {name}": photos[name] for name in names} | {f"mask {name}": path for name, path in masks.items() if path.is_file()}


def available_objects(scene: Scene) -> list[str]:
    """Objects of the scene's type that have photos."""
    return objects_by_type(scene.root).get(scene.type, [])


def composite_white(rgba: np.ndarray) -> np.ndarray:
    """Straight-alpha RGBA (..., 4) over white: rgb * a + (1 - a), shape (..., 3)."""
    if rgba.shape[-1] != 4:
        raise ValueError(f"composite_white needs RGBA, got shape {rgba.shape}")
    alpha = rgba[..., 3:]
    return rgba[..., :3] * alpha + (1 - alpha)


def resize(image: np.ndarray, size: int) -> np.ndarray:
    """Resize a float image (H, W, C) to (size, size, C), anti-aliased; RGBA is filtered premultiplied.

    The filter is a box when shrinking (each output pixel the mean of the pixels it covers) and bicubic when enlarging,
    clipped to [0, 1].
    """
    if image.shape[0] == size and image.shape[1] == size:
        return image.astype(np.float32)
    premultiplied = image.astype(np.float32)
    if image.shape[-1] == 4:
        premultiplied = np.concatenate([premultiplied[..., :3] * premultiplied[..., 3:], premultiplied[..., 3:]], -1)
    filter_ = Image.Resampling.BOX if size < image.shape[0] else Image.Resampling.BICUBIC
    channels = [np.asarray(Image.fromarray(np.ascontiguousarray(premultiplied[..., c])).resize((size, size), filter_)) for c in range(image.shape[-1])]
    out = np.clip(np.stack(channels, -1), 0, 1)
    if image.shape[-1] == 4:
        out[..., :3] = np.clip(out[..., :3] / np.maximum(out[..., 3:], 1e-4), 0, 1)
    return out


def to_uint8(image: np.ndarray) -> np.ndarray:
    return (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)


def save_image(path: Path, image: np.ndarray) -> None:
    """Write a float image (H, W, 3 or 4) in [0, 1] as PNG, atomically."""
    with atomic_path(Path(path)) as temporary:
        Image.fromarray(to_uint8(image)).save(temporary, format="PNG", compress_level=4)  # as small as 6, in half the time


def load_rgb(path: Path) -> np.ndarray:
    """An opaque image, or an RGBA image over white, as float32 (H, W, 3)."""
    image = open_image(Path(path))
    if "A" in image.getbands() or "transparency" in image.info:
        return composite_white(np.asarray(image.convert("RGBA"), dtype=np.float32) / 255.0)
    return np.asarray(image.convert("RGB"), dtype=np.float32) / 255.0


def contact_sheet(rows: Sequence[Sequence[np.ndarray]], labels: Sequence[str] = (), size: int = 96, label_width: int = 110) -> np.ndarray:
    """A picture of pictures: float images (H, W, 3 or 4) in rows, each ``size`` pixels, with a label left of every row."""
    left = label_width if labels else 0
    columns = max(len(row) for row in rows)
    sheet = Image.new("RGB", (left + columns * (size + 2), len(rows) * (size + 2)), "white")
    draw = ImageDraw.Draw(sheet)
    for r, row in enumerate(rows):
        if r < len(labels):
            draw.multiline_text((4, r * (size + 2) + size // 2 - 10), labels[r], fill="black")
        for c, image in enumerate(row):
            image = composite_white(image) if image.shape[-1] == 4 else image
            sheet.paste(Image.fromarray(to_uint8(resize(image, size))), (left + c * (size + 2), r * (size + 2)))
    return np.asarray(sheet, dtype=np.float32) / 255.0


def write_video(path: Path, frames: Sequence[np.ndarray], fps: int = 24) -> None:
    """Write float RGB frames (H, W, 3) as H.264 MP4, atomically; sides are padded to even numbers."""
    import imageio.v2 as imageio

    with atomic_path(Path(path)) as temporary:
        with imageio.get_writer(temporary, format="FFMPEG", fps=fps, codec="libx264", quality=8, macro_block_size=2, output_params=["-loglevel", "error"]) as writer:
            for frame in frames:
                writer.append_data(to_uint8(frame))
