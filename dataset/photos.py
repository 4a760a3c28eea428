"""Import your own photos: background removal, checks, square crops, a preview.

    python -m dataset.photos FOLDER --type MINE --name my_toy [--model u2net.onnx] [--size 512]

FOLDER holds JPEG, PNG, WebP or HEIC pictures of one object, of any size, used in the order of their names. Where a picture has
transparency, or masks/<name>.png lies in FOLDER or beside it, that is kept; otherwise the background is removed offline by the
bundled u2netp, or by a better network that you have. Writes, all or nothing,

    dataset/data/train/<TYPE>/<NAME>/images/000.png ..   RGBA, square, the object in the middle
                                    /photos.json         what each was made from, field of view, warnings
                                    /preview.png         a sheet to look at before the pipeline is run
"""

from __future__ import annotations

import shlex
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from dataset.background import Segmenter, network_file, object_box, problems
from sap3d.cameras import FOV_RAD
from sap3d.errors import ArgumentParser, InputError, cli, first_line
from sap3d.images import SUFFIXES, mask_of, name_order, open_image, transparency
from sap3d.scene import REPOSITORY, atomic_dir, check_name, file_hash, read_json, root_dir, write_json

HEIC = (".heic", ".heif")
NOT_READ = (".tif", ".tiff", ".bmp", ".gif", ".avif", ".jfif", ".dng")  # pictures too, so that leaving them out is said
FOLDER_BROWSERS = (".DS_Store", "Thumbs.db")  # leave these in every folder that they show
MAX_PHOTOS = 64
ENOUGH_PHOTOS = 5  # with four, one of six objects had photos on the wrong side (docs/PHOTOS.md)
FILL = 0.8  # longer side of the largest object's box over the side of the crops: what the protocol's cameras show
WORK_SIZE = 2048  # pictures are scaled down to this longer side first; crops are seldom finer
FILM_DIAGONAL_MM = 43.27  # of 36 x 24 mm film, to which EXIF's "focal length in 35 mm film" refers
ORIENTATION = 0x0112  # EXIF's tag
QUARTER_TURNS = {  # its values that exchange the sides: what makes the stored picture upright
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_90,
}  # fmt: skip
FORMAT = 1


@dataclass
class Photo:
    """One picture with its mask: ``rgb`` (H, W, 3) and ``alpha`` (H, W) in [0, 1], upright."""

    path: Path
    rgb: np.ndarray
    alpha: np.ndarray
    mask_from: str  # alpha, the mask's file name, or the network's file name
    focal_px: float | None  # from EXIF, at this resolution
    warnings: list[str]

    @property
    def box(self) -> tuple[int, int, int, int]:
        return object_box(self.alpha)

    @property
    def diagonal_px(self) -> float:
        return float(np.hypot(*self.alpha.shape))


# --- reading ------------------------------------------------------------------------------------------------------------
def find_photos(folder: Path) -> list[Path]:
    """The pictures in ``folder`` (or its ``images``) by name, numbers in names counted; raises InputError when there are none, or two of one name."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; give the folder that holds the photos")
    folder = folder / "images" if (folder / "images").is_dir() else folder
    paths = [p for p in folder.iterdir() if p.suffix.lower() in (*SUFFIXES, *HEIC) and p.is_file() and not p.name.startswith(".")]
    if not paths:
        raise InputError(f"{folder}: holds no photos; JPEG, PNG, WebP and HEIC are read")
    stems: dict[str, str] = {}
    for path in sorted(paths):  # a phone's HEIC and its JPEG are one photo, not two views
        if path.stem in stems:
            raise InputError(f"{folder}: {stems[path.stem]} and {path.name} have the same name with different endings; keep one of them")
        stems[path.stem] = path.name
    if len(paths) > MAX_PHOTOS:
        raise InputError(f"{folder}: holds {len(paths)} photos, at most {MAX_PHOTOS} are read; five to eight from all sides are enough")
    return sorted(paths, key=name_order)


def find_mask(photo: Path) -> Path | None:
    for folder in (photo.parent / "masks", photo.parent.parent / "masks"):
        if (folder / f"{photo.stem}.png").is_file():
            return folder / f"{photo.stem}.png"
    return None


def open_photo(path: Path) -> Image.Image:
    """A picture with its EXIF data, not turned yet; HEIC needs pillow-heif."""
    if path.suffix.lower() in HEIC:
        try:
            import pillow_heif
        except ImportError:
            raise InputError(f"{path}: HEIC needs pillow-heif: python -m pip install -r requirements-photos.txt, or save the photo as JPEG") from None
        pillow_heif.register_heif_opener()
    return open_image(path)


def focal_px(image: Image.Image) -> float | None:
    """Focal length in pixels from EXIF's 35 mm equivalent; None when there is none or it is absurd."""
    value = image.getexif().get_ifd(0x8769).get(41989)  # FocalLengthIn35mmFilm
    try:
        return float(value) / FILM_DIAGONAL_MM * float(np.hypot(*image.size)) if 5 <= float(value) <= 1500 else None
    except (TypeError, ValueError):
        return None


def read_photo(path: Path, segmenter) -> Photo:
    """Open, turn upright, scale down, separate from the background and check. ``segmenter()`` gives the network when it is needed."""
    image = open_photo(path)
    upright = _upright(path, image)  # first: it says when EXIF data is damaged
    focal = focal_px(image)
    if min(upright.size) < 32:
        raise InputError(f"{path}: {upright.width} x {upright.height} pixels are too few; give a photo of at least 256 x 256")
    (alpha, mask_from), agreement = _alpha_of(path, image, upright), 1.0
    scale = min(1.0, WORK_SIZE / max(upright.size))
    size = tuple(max(1, round(side * scale)) for side in upright.size)
    rgb = np.asarray(_rgb(upright).resize(size, Image.Resampling.LANCZOS, reducing_gap=2.0), np.float32) / 255
    if alpha is not None:
        alpha = np.asarray(alpha.resize(size, Image.Resampling.BOX if scale < 1 else Image.Resampling.NEAREST), np.float32) / 255
    else:
        network = segmenter()
        alpha, agreement = network.alpha(rgb)
        mask_from = network.path.name
    warnings = problems(alpha)
    if object_box(alpha) is None:
        mask_path = find_mask(path)
        if mask_path is not None:
            raise InputError(f"{mask_path}: no object was found in it; make the object white on black or cut it out, or remove the mask")
        raise InputError(f"{path}: no object was found in it; remove the photo, or give masks/{path.stem}.png")
    if agreement < 0.8:
        warnings.append(f"two looks at it agree by {agreement:.0%} only: a part may be missing, or background taken in")
    return Photo(path, rgb, alpha, mask_from, focal and focal * scale, warnings)


def _upright(path: Path, image: Image.Image) -> Image.Image:
    """A picture turned as its own EXIF data says."""
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # damaged EXIF: Pillow has no one error for it
        raise InputError(f"{path}: its EXIF data is damaged ({first_line(error)}); save it anew without metadata") from None


def _alpha_of(path: Path, image: Image.Image, upright: Image.Image) -> tuple[Image.Image | None, str]:
    """The mask that comes with a photo, of the size of ``upright``, and what it is from: its file's name, or alpha. (None, "") where none does.

    image: the photo as it is stored. A mask is taken to be drawn on the upright photo, after its own EXIF orientation if it has one. A mask whose size
    fits the stored photo alone was drawn on that and is turned with it. Where the turn keeps the size (by 180 degrees, or of a square) that cannot be told.
    """
    mask_path = find_mask(path)
    if mask_path is not None:
        stored = open_image(mask_path)
        mask = _upright(mask_path, stored)
        if mask.size == image.size != upright.size and stored.getexif().get(ORIENTATION, 1) == 1:
            mask = mask.transpose(QUARTER_TURNS[image.getexif()[ORIENTATION]])
        if mask.size != upright.size:
            raise InputError(f"{mask_path}: mask is {mask.size} but {path.name} is {upright.size}; make them the same size")
        return mask_of(mask), mask_path.name
    channel = transparency(upright)
    return (channel, "alpha") if channel is not None else (None, "")


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits a pixel: Pillow would clip instead of scaling
        image = Image.fromarray((np.asarray(image, np.float64) / 257).clip(0, 255).astype(np.uint8))
    return image.convert("RGB")


# --- cropping -----------------------------------------------------------------------------------------------------------
def focal_lengths(photos: list[Photo]) -> list[float | None]:
    """Every photo's focal length in pixels: EXIF's or, where a photo has none, that of the others' field of view (their median). None of them where no photo has one."""
    known = [p.focal_px / p.diagonal_px for p in photos if p.focal_px]
    return [p.focal_px or (p.diagonal_px * float(np.median(known)) if known else None) for p in photos]


def units_px(photos: list[Photo]) -> list[float]:
    """Lengths that sizes in the photos are compared by: their focal lengths, so that angles are compared; their diagonals where no focal length is known."""
    return [focal or p.diagonal_px for p, focal in zip(photos, focal_lengths(photos))]


def crop_sides(photos: list[Photo], each: bool) -> list[float]:
    """Side of every photo's crop in pixels. ``each``: every object fills its crop; otherwise all crops have one angle of view.

    One angle of view keeps what the sizes of the object tell: an elongated one is narrow from its end. It is right when the
    photos were taken from about the same distance.
    """
    longest = [max(b - t, r - l) for t, b, l, r in (p.box for p in photos)]
    if each:
        return [side / FILL for side in longest]
    units = units_px(photos)
    angle = max(side / unit for side, unit in zip(longest, units)) / FILL
    return [angle * unit for unit in units]


def crop(photo: Photo, side: float, size: int) -> np.ndarray:
    """RGBA uint8 (size, size, 4): the square of ``side`` pixels around the middle of the object's box, transparent outside the photo."""
    top, bottom, left, right = photo.box
    rows, columns = (_part((low + high - side) / 2, side / size, size, length) for low, high, length in zip((top, left), (bottom, right), photo.alpha.shape))
    alpha = photo.alpha[rows.source, columns.source][..., None]
    premultiplied = np.concatenate([photo.rgb[rows.source, columns.source] * alpha, alpha], -1)
    shape = (columns.target.stop - columns.target.start, rows.target.stop - rows.target.start)
    box = (columns.box[0], rows.box[0], columns.box[1], rows.box[1])
    out = np.zeros((size, size, 4), np.float32)
    for c in range(4):
        padded = Image.fromarray(np.pad(premultiplied[..., c], (rows.pad, columns.pad)))
        out[rows.target, columns.target, c] = np.asarray(padded.resize(shape, Image.Resampling.BICUBIC, box=box)).clip(0, 1)
    out[..., :3] = (out[..., :3] / np.maximum(out[..., 3:], 1e-4)).clip(0, 1)
    return (out * 255 + 0.5).astype(np.uint8)


class _Part(NamedTuple):
    """Along one axis of a crop: the part of it that the photo reaches, and what that is made of."""

    target: slice  # pixels of the crop
    source: slice  # pixels of the photo
    pad: tuple[int, int]  # empty ones before and after them
    box: tuple[float, float]  # where ``target`` lies among those and these


def _part(start: float, step: float, size: int, length: int) -> _Part:
    """start: where the crop begins in the photo, whose side is ``length``. step: photo pixels a pixel of the crop.

    Only what the photo reaches is computed: padded to the whole crop, a photo with ten times the zoom of the others would take gigabytes.
    """
    reach = 2 * max(step, 1.0)  # of the bicubic filter
    first, last = max(0, int(np.floor((-reach - start) / step))), min(size, int(np.ceil((length + reach - start) / step)))
    low, high = int(np.floor(start + first * step - reach)), int(np.ceil(start + last * step + reach))
    source = slice(max(0, low), min(length, high))
    return _Part(slice(first, last), source, (source.start - low, high - source.stop), (start + first * step - low, start + last * step - low))


def set_warnings(photos: list[Photo]) -> list[str]:
    """What looks wrong with the photos as a set, in words."""
    found = []
    heights = {p.path.name: (p.box[1] - p.box[0]) / unit for p, unit in zip(photos, units_px(photos))}
    small, large = min(heights, key=heights.get), max(heights, key=heights.get)
    if heights[large] > 1.7 * heights[small]:
        found.append(
            f"the object is {heights[large] / heights[small]:.1f} times as high in {large} as in {small}: were they taken from different "
            "distances or heights, or is a mask wrong? --crop each lets it fill every picture"
        )
    if any(p.focal_px for p in photos) and not all(p.focal_px for p in photos):
        found.append("only some photos tell their focal length: the others are taken to have the same field of view")
    if len(photos) < ENOUGH_PHOTOS:
        found.append("with fewer than five photos a camera is easily on the wrong side, and sides are guessed; five to eight from all around are better")
    return found


def preview(photos: list[Photo], crops: list[np.ndarray], tile: int = 220) -> Image.Image:
    """A sheet: every photo with the object's outline above its crop over white, and its warnings in orange."""
    pictures = []
    for photo in photos:
        picture = Image.fromarray((photo.rgb * 255).astype(np.uint8))
        mask = Image.fromarray(((photo.alpha > 0.5) * 255).astype(np.uint8))
        picture.thumbnail((tile, tile))
        edge = Image.eval(mask.resize(picture.size).filter(ImageFilter.FIND_EDGES).filter(ImageFilter.MaxFilter(3)), lambda v: 255 if v > 64 else 0)
        picture.paste((255, 60, 160), mask=edge)
        pictures.append(picture)
    row = max(picture.height for picture in pictures)  # no bands above and below photos that all lie on their side
    lines = max(len(photo.warnings[:2]) for photo in photos)
    sheet = Image.new("RGB", (len(photos) * (tile + 8) + 8, 26 + row + 8 + tile + 8 + 14 * lines), (250, 250, 248))
    draw = ImageDraw.Draw(sheet)
    for k, (photo, picture, cut) in enumerate(zip(photos, pictures, crops)):
        left = 8 + k * (tile + 8)
        sheet.paste(picture, (left + (tile - picture.width) // 2, 26 + (row - picture.height) // 2))
        rgba = Image.fromarray(cut).resize((tile, tile), Image.Resampling.BOX if cut.shape[0] > tile else Image.Resampling.BICUBIC)
        sheet.paste(Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB"), (left, 34 + row))
        draw.text((left, 8), f"{k:03d}  {photo.path.name[:28]}", fill=(60, 60, 60))
        for line, warning in enumerate(photo.warnings[:2]):
            draw.text((left, 38 + row + tile + 14 * line), f"! {warning[:36]}", fill=(200, 80, 0))
    return sheet


# --- the import ---------------------------------------------------------------------------------------------------------
def import_photos(folder: Path, type_: str, name: str, root: Path, model: Path | None = None, size: int = 512, crops: str = "common", report=print) -> Path:
    """Import one object; the folder that was written. ``report`` takes lines of progress.

    Raises InputError for a folder without usable photos, and for an object of that name that was not made here or that files were added to.
    """
    check_name(type_, "dataset type")
    check_name(name, "object name")
    target, bundled = (base / "dataset" / "data" / "train" / type_ / name for base in (root, REPOSITORY))
    for there in (target, bundled):  # what is missing below the root is read in the repository: true views and mesh of the object there, say
        if there.exists() and not (there / "photos.json").is_file():
            raise InputError(f"{there}: was not made from photos by this program and is not replaced; choose another --type or --name")
    if model:
        network_file(model)
    paths = find_photos(Path(folder))
    source = paths[0].parent.resolve()
    if target.resolve() in (source, *source.parents):
        raise InputError(f"{folder}: is the folder that the import writes; give the folder of the photos it was made from, or choose another --name")
    left_out = sorted(p.name for p in source.iterdir() if p.suffix.lower() in NOT_READ and not p.name.startswith("."))
    if left_out:
        report(f"left out: {', '.join(left_out)} (JPEG, PNG, WebP and HEIC are read)")
    masks = {str(path): find_mask(path) for path in paths}
    settings = {"size": size, "crop": crops, "model": file_hash(model) if model else "u2netp"}
    inputs = [{"file": p.name, "sha256": file_hash(p), "mask": masks[str(p)] and file_hash(masks[str(p)])} for p in paths]
    if _is_imported(target, settings, inputs):
        report(f"{target}: these photos were imported already")
        return target
    added = _added_files(target)
    if added:
        raise InputError(f"{target}: holds files of yours ({', '.join(added)}): move them away or choose another --name")
    seen: dict[str, str] = {}
    for entry in inputs:
        if entry["sha256"] in seen:
            raise InputError(f"{folder}: {seen[entry['sha256']]} and {entry['file']} are the same picture; remove one of them")
        seen[entry["sha256"]] = entry["file"]
    network: list[Segmenter] = []

    def segmenter() -> Segmenter:
        if not network:
            network.append(Segmenter(model))
        return network[0]

    photos = []
    for k, path in enumerate(paths):
        photos.append(read_photo(path, segmenter))
        report(f"[photos] {k + 1}/{len(paths)}  {path.name}: object from {photos[-1].mask_from}")
        for warning in photos[-1].warnings:
            report(f"warning: {path.name}: {warning}")
    sides = crop_sides(photos, crops == "each")
    cuts = [crop(photo, side, size) for photo, side in zip(photos, sides)]
    notes = set_warnings(photos)
    views = {
        f"{k:03d}": {
            "file": p.path.name,
            "mask": p.mask_from,
            "crop_px": round(side, 1),
            "fov_deg": focal and round(float(np.rad2deg(2 * np.arctan(side / 2 / focal))), 2),  # of the crop, as if looked at straight
            "warnings": p.warnings,
        }
        for k, (p, side, focal) in enumerate(zip(photos, sides, focal_lengths(photos)))
    }
    narrow = [v["fov_deg"] for v in views.values() if v["fov_deg"]]
    if narrow and abs(np.log(np.median(narrow) / np.rad2deg(FOV_RAD))) > np.log(1.4):
        notes.append(
            f"the object is seen under {np.median(narrow):.0f} degrees, far from the {np.rad2deg(FOV_RAD):.0f} that the models have mostly seen; "
            "photos from nearer by (without zoom), or from further away, fit better"
        )
    for note in notes:
        report(f"warning: {note}")
    with atomic_dir(target) as new:
        (new / "images").mkdir()
        for view, cut in zip(views, cuts):
            Image.fromarray(cut).save(new / "images" / f"{view}.png")
        preview(photos, cuts).save(new / "preview.png")
        write_json(new / "photos.json", {"format": FORMAT, "settings": settings, "inputs": inputs, "views": views, "warnings": notes})
    return target


def _is_imported(target: Path, settings: dict, inputs: list[dict]) -> bool:
    """Whether ``target`` was made from these very photos with these settings, and is whole."""
    try:
        record = read_json(target / "photos.json")
        views = record["views"]
        same = record["settings"] == settings and record["inputs"] == inputs
        mixed = len({view["fov_deg"] is None for view in views.values()}) > 1  # imported before photos without a field of view took the others'
    except (AttributeError, KeyError, TypeError):
        return False
    return same and not mixed and all(path.is_file() for path in (target / "preview.png", *(target / "images" / f"{view}.png" for view in views)))


def _added_files(target: Path) -> list[str]:
    """What lies in an imported object's folder besides what the import wrote, in short: masks, true cameras, notes. Replacing the folder would delete it."""
    try:
        views = list(read_json(target / "photos.json")["views"])
    except (KeyError, TypeError):  # damaged
        views = [f"{k:03d}" for k in range(MAX_PHOTOS)]
    ours = {"photos.json", "preview.png", *(f"images/{view}.png" for view in views)}
    files = [p.relative_to(target) for p in target.rglob("*") if p.is_symlink() or not p.is_dir()]
    added = [p for p in files if p.as_posix() not in ours and p.name not in FOLDER_BROWSERS]
    return sorted({p.as_posix() if p.parts[0] == "images" else p.parts[0] for p in added})


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.photos", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="the photos: JPEG, PNG, WebP or HEIC; masks/<name>.png in it or beside it are used")
    parser.add_argument("--type", required=True, help="dataset type: the folder below dataset/data/train")
    parser.add_argument("--name", required=True, help="object name")
    parser.add_argument("--model", type=Path, help="ONNX file of another network (u2net, isnet-general-use, birefnet); default: the bundled u2netp")
    parser.add_argument("--size", type=int, default=512, help="side of the crops in pixels (default 512)")
    parser.add_argument("--crop", choices=("common", "each"), default="common", help="one angle of view for all (default), or every object fills its crop")
    parser.add_argument("--root", type=Path, help="write below this folder (default: ROOT_DIR or the repository)")
    args = parser.parse_args()
    if not 64 <= args.size <= 2048:
        raise InputError(f"--size must be 64 to 2048, got {args.size}")
    root = (args.root or root_dir()).resolve()
    target = import_photos(args.folder, args.type, args.name, root, args.model, args.size, args.crop)
    count = len(list((target / "images").iterdir()))
    where = "" if root == root_dir() else f"ROOT_DIR={shlex.quote(str(root))} "  # the pipeline looks for photos below its root and in the repository
    print(f"{count} photos in {target / 'images'}\nlook at   {target / 'preview.png'}\nthen run  {where}sh run_pipeline.sh {args.type} {args.name} {min(count, 5)} 0")
    sys.stdout.flush()


if __name__ == "__main__":
    cli(main)
