"""Photo import: EXIF, masks, crops, warnings, refusals; and the bundled network on a picture, where onnxruntime is installed."""

import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from dataset import photos
from dataset.background import clean, problems, square_around
from dataset.snapshots import snapshots
from sap3d.errors import InputError
from sap3d.images import load_input_views
from sap3d.scene import REPOSITORY, Scene, file_hash


def picture(k=0, width=240, height=160, centre=(120, 80), radii=(40, 25)):
    """RGBA uint8: an ellipse with a dark left half on a noisy background."""
    y, x = np.mgrid[:height, :width]
    inside = ((x - centre[0]) / radii[0]) ** 2 + ((y - centre[1]) / radii[1]) ** 2 < 1
    rgb = np.random.default_rng(k).integers(90, 130, (height, width, 3)).astype(np.uint8)
    rgb[inside] = (220, 60 + 20 * k, 40)
    rgb[inside & (x < centre[0])] = (30, 20, 90)
    return np.dstack([rgb, inside * np.uint8(255)])


def save(folder, k=0, mask=True, exif=None, suffix=".jpg", name=None, **where):
    rgba = picture(k, **where)
    name = name or f"IMG_{k}"
    (folder / "masks").mkdir(parents=True, exist_ok=True)
    Image.fromarray(rgba[..., :3]).save(folder / f"{name}{suffix}", quality=95, **({"exif": exif} if exif is not None else {}))
    if mask:
        Image.fromarray(rgba[..., 3]).save(folder / "masks" / f"{name}.png")
    return folder


def import_(folder, root, **options):
    lines = []
    target = photos.import_photos(folder, "MINE", "toy", root, report=lines.append, **options)
    return target, json.loads((target / "photos.json").read_text()), lines


def box_of(path):
    alpha = np.asarray(Image.open(path))[..., 3] > 127
    rows, columns = np.flatnonzero(alpha.any(1)), np.flatnonzero(alpha.any(0))
    return rows[0], rows[-1] + 1, columns[0], columns[-1] + 1


def test_photos_with_masks_become_views_that_the_stages_load(tmp_path):
    for k in range(3):
        save(tmp_path / "in", k, centre=(60 + 50 * k, 50 + 20 * k))
    target, record, _ = import_(tmp_path / "in", tmp_path / "root", size=128)
    views = load_input_views(Scene("MINE", "toy", 3, tmp_path / "root"))
    assert list(views) == ["000", "001", "002"] and all(v.shape == (128, 128, 4) for v in views.values())
    for name in views:
        top, bottom, left, right = box_of(target / "images" / f"{name}.png")
        assert abs(top + bottom - 128) <= 3 and abs(left + right - 128) <= 3  # in the middle
        assert abs((right - left) / 128 - photos.FILL) < 0.03 and abs((bottom - top) / (right - left) - 25 / 40) < 0.05  # not stretched
    assert views["001"][64, 40, 2] > views["001"][64, 40, 0] and views["001"][64, 90, 0] > views["001"][64, 90, 2]  # left is left
    assert [v["file"] for v in record["views"].values()] == ["IMG_0.jpg", "IMG_1.jpg", "IMG_2.jpg"]
    assert Image.open(target / "preview.png").width > 3 * 200


@pytest.mark.parametrize("orientation, stored", [(1, None), (3, Image.Transpose.ROTATE_180), (6, Image.Transpose.ROTATE_90), (8, Image.Transpose.ROTATE_270)])
def test_exif_orientation_is_undone_for_photo_and_mask(tmp_path, orientation, stored):
    rgba = Image.fromarray(picture())
    as_stored = rgba.transpose(stored) if stored is not None else rgba
    (tmp_path / "in" / "masks").mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = orientation
    as_stored.convert("RGB").save(tmp_path / "in" / "a.jpg", exif=exif, quality=95)
    as_stored.getchannel("A").save(tmp_path / "in" / "masks" / "a.png")  # a mask made by a program that ignores EXIF
    photo = photos.read_photo(tmp_path / "in" / "a.jpg", None)
    assert photo.rgb.shape == (160, 240, 3)
    if orientation in (6, 8):
        assert np.abs(photo.alpha - picture()[..., 3] / 255).max() < 0.01
    assert np.abs(photo.rgb - picture()[..., :3] / 255).mean() < 0.05


def test_half_a_turn_cannot_be_told_from_a_mask(tmp_path):
    """A mask of a photo that is stored upside down is taken to be drawn on the upright photo; only its own EXIF data says otherwise."""
    exif = Image.Exif()
    exif[0x0112] = 3
    rgba = Image.fromarray(picture(centre=(80, 60)))
    (tmp_path / "masks").mkdir()
    rgba.convert("RGB").transpose(Image.Transpose.ROTATE_180).save(tmp_path / "a.jpg", exif=exif, quality=95)
    for mask, own in ((rgba, None), (rgba.transpose(Image.Transpose.ROTATE_180), exif)):
        mask.getchannel("A").save(tmp_path / "masks" / "a.png", **({"exif": own} if own else {}))
        assert np.array_equal(photos.read_photo(tmp_path / "a.jpg", None).alpha > 0.5, picture(centre=(80, 60))[..., 3] > 0)


@pytest.mark.parametrize("photo, mask", [(5, 1), (7, 1), (6, 6), (1, 8), (8, 6)])
def test_a_mask_is_turned_by_its_own_orientation_or_else_by_that_of_the_photo(tmp_path, photo, mask):
    stored = {1: None, 5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_90, 7: Image.Transpose.TRANSVERSE, 8: Image.Transpose.ROTATE_270}
    (tmp_path / "masks").mkdir()
    for path, mode, orientation, pixels in (("a.jpg", "RGB", photo, photo), ("masks/a.png", "L", mask, photo if mask == 1 else mask)):
        exif, image = Image.Exif(), Image.fromarray(picture(centre=(80, 60)))
        image = image.getchannel("A") if mode == "L" else image.convert("RGB")
        if orientation != 1:
            exif[0x0112] = orientation
        image = image.transpose(stored[pixels]) if pixels != 1 else image
        image.save(tmp_path / path, exif=exif, quality=95)
    found = photos.read_photo(tmp_path / "a.jpg", None)
    assert np.array_equal(found.alpha > 0.5, picture(centre=(80, 60))[..., 3] > 0)
    assert np.abs(found.rgb - picture(centre=(80, 60))[..., :3] / 255).mean() < 0.05


def test_damaged_exif_is_named(tmp_path):
    folder = save(tmp_path, exif=b"Exif\x00\x00nonsense")
    with pytest.raises(InputError, match="IMG_0.jpg: its EXIF data is damaged"):
        photos.read_photo(folder / "IMG_0.jpg", None)


def focal_35mm(value):
    exif = Image.Exif()
    exif.get_ifd(0x8769)[41989] = value
    return exif


def test_photos_without_a_focal_length_take_the_field_of_view_of_the_others(tmp_path):
    for k in range(3):  # one and the same object from one distance with one camera; the third photo has lost its EXIF data and half of its pixels
        scale = 0.5 if k == 2 else 1
        where = dict(width=int(480 * scale), height=int(320 * scale), centre=(240 * scale, 160 * scale), radii=(100 * scale, 60 * scale))
        save(tmp_path / "in", k, exif=focal_35mm(26) if k < 2 else None, **where)
    target, record, _ = import_(tmp_path / "in", tmp_path / "root", size=128)
    known, _, taken = (view["fov_deg"] for view in record["views"].values())
    assert taken == pytest.approx(known, abs=0.2)
    boxes = [np.subtract(*box_of(target / "images" / f"00{k}.png")[1::-1]) for k in range(3)]
    assert max(boxes) - min(boxes) <= 2
    named = [line.split(":")[0] for line in record["warnings"] if not line.startswith("with fewer than five photos")]
    assert named == ["only some photos tell their focal length"]  # and none of sizes
    record["views"]["002"]["fov_deg"] = None  # as an import of before has it
    (target / "photos.json").write_text(json.dumps(record))
    assert import_(tmp_path / "in", tmp_path / "root", size=128)[1]["views"]["002"]["fov_deg"] == taken


def test_field_of_view_from_exif(tmp_path):
    exif = focal_35mm(27)
    _, record, lines = import_(save(tmp_path / "in", exif=exif), tmp_path / "root", size=64)
    focal = 27 / 43.27 * np.hypot(240, 160)
    assert record["views"]["000"]["fov_deg"] == pytest.approx(np.rad2deg(2 * np.arctan(80 / photos.FILL / 2 / focal)), abs=0.5)
    assert any("degrees, far from the" in line for line in lines), lines


def test_a_photo_that_is_made_smaller_keeps_its_field_of_view(tmp_path, monkeypatch):
    monkeypatch.setattr(photos, "WORK_SIZE", 96)
    photo = photos.read_photo(save(tmp_path, exif=focal_35mm(27)) / "IMG_0.jpg", None)
    assert photo.alpha.shape == (64, 96) and photo.focal_px == pytest.approx(27 / photos.FILM_DIAGONAL_MM * np.hypot(96, 64))


def test_no_focal_length_is_no_error(tmp_path):
    for value in (None, 0, 65535):
        exif = Image.Exif()
        if value is not None:
            exif.get_ifd(0x8769)[41989] = value
        image = Image.new("RGB", (8, 6))
        image.info["exif"] = exif.tobytes()
        assert photos.focal_px(image) is None


def test_common_crop_keeps_proportions_and_each_fills(tmp_path):
    save(tmp_path / "in", 0, radii=(60, 30))
    save(tmp_path / "in", 1, radii=(30, 30))  # the same object from its end
    target, *_ = import_(tmp_path / "in", tmp_path / "root", size=128)
    heights = [np.subtract(*box_of(target / "images" / f"00{k}.png")[1::-1]) for k in (0, 1)]
    assert abs(heights[0] - heights[1]) <= 2
    target, *_ = import_(tmp_path / "in", tmp_path / "root", size=128, crops="each")
    assert abs(np.subtract(*box_of(target / "images" / "001.png")[1::-1]) / 128 - photos.FILL) < 0.03


def test_transparency_is_kept_and_an_opaque_alpha_is_none(tmp_path):
    (tmp_path / "in").mkdir()
    Image.fromarray(picture()).save(tmp_path / "in" / "a.png")
    assert photos.read_photo(tmp_path / "in" / "a.png", None).mask_from == "alpha"
    Image.fromarray(picture()).convert("RGB").convert("RGBA").save(tmp_path / "in" / "a.png")

    class Asked(Exception):
        pass

    def segmenter():
        raise Asked

    with pytest.raises(Asked):
        photos.read_photo(tmp_path / "in" / "a.png", segmenter)


def test_names_are_sorted_by_their_numbers(tmp_path):
    for name in ("IMG_10.jpg", "IMG_9.JPG", "IMG_2.png", "b.webp"):
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("")
    assert [p.name for p in photos.find_photos(tmp_path)] == ["IMG_2.png", "IMG_9.JPG", "IMG_10.jpg", "b.webp"]


def test_sixteen_bit_pictures_are_scaled_not_clipped(tmp_path):
    Image.fromarray(np.full((4, 4), 32768, np.uint16)).save(tmp_path / "a.png")
    assert np.asarray(photos._rgb(Image.open(tmp_path / "a.png")))[0, 0, 0] == 127


def test_warnings():
    disc = picture(width=480, height=320, centre=(240, 160), radii=(80, 50))[..., 3] / 255.0
    assert problems(disc) == []
    assert "cut off at the left" in problems(picture(centre=(10, 80))[..., 3] / 255.0)[0]
    assert "takes only" in problems(picture(radii=(8, 8))[..., 3] / 255.0)[0]
    assert "background part" in problems(np.ones((50, 50)))[0]
    assert problems(np.zeros((50, 50))) == ["no object was found"]
    two = np.maximum(picture(centre=(60, 80))[..., 3], picture(centre=(180, 80))[..., 3]) / 255.0
    assert any("2 parts" in line for line in problems(two))
    assert any("uncertain" in line for line in problems(np.where(disc > 0, 0.6, 0)))


def test_clean_removes_specks_and_keeps_large_parts():
    alpha = picture(centre=(60, 80))[..., 3] / 255.0
    alpha[5:8, 200:203] = 1
    second = alpha.copy()
    second[60:90, 150:200] = 1
    assert clean(alpha)[6, 201] == 0 and clean(alpha)[80, 60] == 1
    assert clean(second)[75, 175] == 1 and clean(second)[6, 201] == 0


def test_square_stays_inside():
    assert square_around((10, 20, 0, 4), 2.0, (24, 100)) == (5, 24, 0, 12)


def test_sizes_that_differ_are_named(tmp_path):
    save(tmp_path / "in", 0, radii=(30, 50), width=400, height=160)
    save(tmp_path / "in", 1, radii=(30, 20), width=400, height=160)
    _, record, lines = import_(tmp_path / "in", tmp_path / "root", size=64)
    assert any("times as high in IMG_0.jpg as in IMG_1.jpg" in line for line in record["warnings"])
    assert any("fewer than five" in line for line in lines)


def test_fewer_than_five_photos_are_warned_of(tmp_path):
    for k in range(5):
        save(tmp_path / "in", k)
    assert import_(tmp_path / "in", tmp_path / "root", size=64)[1]["warnings"] == []
    (tmp_path / "in" / "IMG_4.jpg").unlink()
    (line,) = import_(tmp_path / "in", tmp_path / "root", size=64)[1]["warnings"]
    assert line.startswith("with fewer than five photos") and "five to eight" in line


def test_the_same_photos_again_are_skipped_and_others_replace_them(tmp_path):
    target, *_ = import_(save(tmp_path / "in"), tmp_path / "root", size=64)
    before = (target / "photos.json").stat().st_mtime_ns
    _, _, lines = import_(tmp_path / "in", tmp_path / "root", size=64)
    assert (target / "photos.json").stat().st_mtime_ns == before and "already" in lines[0]
    import_(save(tmp_path / "in", 1), tmp_path / "root", size=64)
    assert len(list((target / "images").iterdir())) == 2


@pytest.mark.parametrize("lost", ["images/000.png", "preview.png", "photos.json"])
def test_an_import_that_lacks_a_file_is_made_again(tmp_path, lost):
    target, *_ = import_(save(tmp_path / "in"), tmp_path / "root", size=64)
    content = (target / lost).read_bytes()
    if lost == "photos.json":
        (target / lost).write_text("[1]")  # damaged
    else:
        (target / lost).unlink()
    _, _, lines = import_(tmp_path / "in", tmp_path / "root", size=64)
    assert (target / lost).read_bytes() == content and "already" not in lines[0]


def test_refusals(tmp_path):
    root, folder = tmp_path / "root", tmp_path / "in"
    with pytest.raises(InputError, match="no such folder"):
        import_(folder, root)
    folder.mkdir()
    with pytest.raises(InputError, match="holds no photos"):
        import_(folder, root)
    save(folder)
    with pytest.raises(InputError, match="plain name"):
        photos.import_photos(folder, "..", "toy", root)
    (folder / "IMG_1.jpg").write_bytes((folder / "IMG_0.jpg").read_bytes())
    with pytest.raises(InputError, match="IMG_0.jpg and IMG_1.jpg are the same picture"):
        import_(folder, root)
    (folder / "IMG_1.jpg").write_bytes(b"\xff\xd8\xff nonsense")
    with pytest.raises(InputError, match="IMG_1.jpg"):
        import_(folder, root)
    (folder / "IMG_1.jpg").unlink()
    Image.new("L", (7, 7)).save(folder / "masks" / "IMG_0.png")
    with pytest.raises(InputError, match="IMG_0.png: mask is"):
        import_(folder, root)
    Image.new("L", (240, 160)).save(folder / "masks" / "IMG_0.png")
    with pytest.raises(InputError, match="no object was found"):
        import_(folder, root)
    assert not (root / "dataset").exists() or not list((root / "dataset").rglob("*.png"))  # nothing half done


@pytest.mark.parametrize("path, named", [
    ("masks/000.png", "masks"), ("query_class/query_match_paths.npy", "query_class"), ("poses/000.npy", "poses"), ("notes.txt", "notes.txt"), ("images/001.png", "images/001.png"),
])  # fmt: skip
def test_files_that_were_added_to_an_import_are_not_deleted(tmp_path, path, named):
    target, *_ = import_(save(tmp_path / "in"), tmp_path / "root", size=64)
    (target / path).parent.mkdir(exist_ok=True)
    (target / path).write_bytes(b"precious")
    (target / ".DS_Store").write_bytes(b"of a folder browser")
    assert "already" in import_(tmp_path / "in", tmp_path / "root", size=64)[2][0]  # the same command does nothing, as ever
    with pytest.raises(InputError, match=f"toy: holds files of yours \\({named}\\): move them away or choose another --name"):
        import_(save(tmp_path / "in", 1), tmp_path / "root", size=64)
    assert (target / path).read_bytes() == b"precious" and len(json.loads((target / "photos.json").read_text())["views"]) == 1
    (target / path).unlink()
    assert len(import_(tmp_path / "in", tmp_path / "root", size=64)[1]["views"]) == 2


@pytest.mark.parametrize("part", ["", "images"])
def test_an_import_is_not_made_from_itself(tmp_path, part):
    target, *_ = import_(save(tmp_path / "in"), tmp_path / "root", size=64)
    before = (target / "images" / "000.png").read_bytes()
    (tmp_path / "link").symlink_to(target / part)
    for folder in (target / part, tmp_path / "link"):
        with pytest.raises(InputError, match=f"{folder}: is the folder that the import writes"):
            import_(folder, tmp_path / "root", size=64)
    assert (target / "images" / "000.png").read_bytes() == before and (target / "preview.png").is_file()


def test_an_object_of_the_repository_is_not_hidden_by_photos(tmp_path):
    """What is missing below another root is read in the repository, so that the bundled bear's true views would be taken for those of the photos."""
    with pytest.raises(InputError, match="GSO_demo/teddy_bear: was not made from photos by this program and is not replaced"):
        photos.import_photos(save(tmp_path / "in"), "GSO_demo", "teddy_bear", tmp_path / "root", size=64)
    assert not (tmp_path / "root").exists()


def test_forms_of_masks(tmp_path):
    """What a mask is, is told as for the photos of a scene (tests/test_images.py)."""
    rgba = picture()
    save(tmp_path)
    label = Image.fromarray(rgba[..., 3] // 255).convert("P")
    label.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    for mask in (Image.fromarray(rgba), Image.fromarray(rgba[..., 3] // 255), label):
        mask.save(tmp_path / "masks" / "IMG_0.png")
        assert np.array_equal(photos.read_photo(tmp_path / "IMG_0.jpg", None).alpha > 0.5, rgba[..., 3] > 0)
    Image.fromarray(rgba[..., 3] // 3 + np.arange(2, dtype=np.uint8).repeat(120)).save(tmp_path / "masks" / "IMG_0.png")  # dark, of several values
    with pytest.raises(InputError, match="masks/IMG_0.png: no object was found in it"):
        photos.read_photo(tmp_path / "IMG_0.jpg", None)


def padded_crop(photo, side, size):
    """What ``photos.crop`` gives, in the plainest way: the whole square in the photo's pixels, then scaled."""
    top, bottom, left, right = photo.box
    pad = int(side) + 1
    box = tuple(value + pad for value in ((left + right - side) / 2, (top + bottom - side) / 2, (left + right + side) / 2, (top + bottom + side) / 2))
    premultiplied = np.pad(np.dstack([photo.rgb * photo.alpha[..., None], photo.alpha]), ((pad, pad), (pad, pad), (0, 0)))
    planes = [np.asarray(Image.fromarray(np.ascontiguousarray(premultiplied[..., c])).resize((size, size), Image.Resampling.BICUBIC, box=box)).clip(0, 1) for c in range(4)]
    return np.dstack([*((plane / np.maximum(planes[3], 1e-4)).clip(0, 1) for plane in planes[:3]), planes[3]]) * 255


@pytest.mark.parametrize("centre, side, size", [((120, 80), 100, 64), ((120, 80), 100.3, 256), ((30, 20), 130.7, 64), ((230, 150), 300.9, 512), ((120, 80), 2000.1, 128), ((3, 158), 640, 64)])
def test_a_crop_is_that_of_the_padded_photo(centre, side, size):
    """Small and enlarged, at a corner, and larger than the photo many times."""
    rgba = picture(centre=centre) / np.float32(255)
    photo = photos.Photo(None, rgba[..., :3], rgba[..., 3], "alpha", None, [])
    cut, padded = photos.crop(photo, side, size), padded_crop(photo, side, size)
    off = np.abs(cut - padded)  # 0.5 by rounding; boxes are single precision in Pillow, which shows in colours divided by a small alpha
    assert off[..., 3].max() < 0.52 and off[padded[..., 3] > 25].max() < 0.55 and (padded[..., 3] > 200).any()


def test_a_crop_much_larger_than_its_photo_takes_little_memory():
    """As of a photo with ten times the zoom of another one: the square is 20,000 pixels wide."""
    import tracemalloc

    rgba = picture(width=2048, height=1536, centre=(1000, 800), radii=(600, 500)) / np.float32(255)
    photo = photos.Photo(None, rgba[..., :3], rgba[..., 3], "alpha", None, [])
    tracemalloc.start()
    try:
        cut = photos.crop(photo, 20_000.0, 512)
        assert tracemalloc.get_traced_memory()[1] < 300e6
    finally:
        tracemalloc.stop()
    assert cut[256, 256, 3] == 255 and cut[0, 0, 3] == 0


def test_a_model_that_is_no_file_is_named_first(tmp_path):
    """Also where masks leave nothing to the network; a folder is not read through."""
    for model in (tmp_path, tmp_path / "none.onnx"):
        with pytest.raises(InputError, match=f"{model}: no such network; give --model an ONNX file"):
            import_(save(tmp_path / "in"), tmp_path / "root", size=64, model=model)
    assert not (tmp_path / "root").exists()


def test_pictures_of_other_kinds_are_said_to_be_left_out(tmp_path):
    save(tmp_path / "in")
    for name in ("c.bmp", "b.TIF", "d.txt", ".e.gif"):
        (tmp_path / "in" / name).write_bytes(b"")
    assert import_(tmp_path / "in", tmp_path / "root", size=64)[2][0].startswith("left out: b.TIF, c.bmp (")


@pytest.mark.parametrize("other", ["IMG_0.webp", "IMG_0.HEIC"])
def test_one_photo_in_two_files_is_refused(tmp_path, other):
    """A phone's HEIC and the JPEG that was made from it, say, which would become two views."""
    save(tmp_path / "in")
    Image.new("RGB", (240, 160)).save(tmp_path / "in" / other, format="WEBP")
    with pytest.raises(InputError, match="IMG_0.* and IMG_0.* have the same name with different endings; keep one of them"):
        import_(tmp_path / "in", tmp_path / "root", size=64)


def test_an_object_made_otherwise_is_not_replaced(tmp_path):
    mine = tmp_path / "root" / "dataset" / "data" / "train" / "MINE" / "toy" / "images"
    mine.mkdir(parents=True)
    (mine / "000.png").write_bytes(b"precious")
    with pytest.raises(InputError, match="is not replaced"):
        import_(save(tmp_path / "in"), tmp_path / "root")
    assert (mine / "000.png").read_bytes() == b"precious"


def test_command_line_says_what_to_do_next(tmp_path, monkeypatch, capsys):
    done = subprocess.run(
        [sys.executable, "-m", "dataset.photos", str(save(tmp_path / "in")), "--type", "MINE", "--name", "toy", "--size", "64", "--root", str(tmp_path / "root")],
        cwd=REPOSITORY, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0 and f"then run  ROOT_DIR={tmp_path / 'root'} sh run_pipeline.sh MINE toy 1 0" in done.stdout, done.stderr
    monkeypatch.setattr(sys, "argv", ["photos", str(tmp_path / "in"), "--type", "MINE", "--name", "toy", "--size", "64"])
    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "root"))  # the pipeline has it too
    photos.main()
    assert "then run  sh run_pipeline.sh MINE toy 1 0" in capsys.readouterr().out
    done = subprocess.run([sys.executable, "-m", "dataset.photos", "nowhere", "--type", "MINE", "--name", "toy"], cwd=REPOSITORY, capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "nowhere" in done.stderr


@pytest.mark.parametrize("count", (0, 9))
def test_more_snapshots_than_places_are_refused(tmp_path, count):
    with pytest.raises(InputError, match=f"1 to 8 snapshots of a mesh can be made, not {count}"):
        snapshots(REPOSITORY / "dataset/3d_models/GSO_demo/cactus/meshes/model.obj", tmp_path / "out", count)
    assert not (tmp_path / "out").exists()


def test_the_bundled_network_finds_the_object(tmp_path):
    pytest.importorskip("onnxruntime", reason="onnxruntime is not installed: requirements-photos.txt")
    from dataset.background import U2NETP, U2NETP_SHA256, Segmenter

    assert file_hash(U2NETP) == U2NETP_SHA256
    rgba = picture(width=320, height=240, centre=(200, 110), radii=(60, 45))
    alpha, agreement = Segmenter().alpha(rgba[..., :3] / np.float32(255))
    true = rgba[..., 3] > 0
    assert ((alpha > 0.5) & true).sum() / ((alpha > 0.5) | true).sum() > 0.9 and agreement > 0.8
    (tmp_path / "bad.onnx").write_bytes(b"not a network")
    with pytest.raises(InputError, match="bad.onnx: onnxruntime cannot load it"):
        Segmenter(tmp_path / "bad.onnx")


def test_heic(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="pillow-heif is not installed: requirements-photos.txt")
    heif.register_heif_opener()
    image = Image.fromarray(picture()[..., :3])
    try:
        image.save(tmp_path / "a.heic", quality=95)
    except Exception as error:
        pytest.skip(f"this build of libheif cannot write HEIC: {error}")
    (tmp_path / "masks").mkdir()
    Image.fromarray(picture()[..., 3]).save(tmp_path / "masks" / "a.png")
    photo = photos.read_photo(photos.find_photos(tmp_path)[0], None)
    assert np.abs(photo.rgb - picture()[..., :3] / 255).mean() < 0.05
