"""Images: straight alpha on disk, right compositing and resizing, and an error for whatever is no photo of an object."""

import numpy as np
import pytest
from PIL import Image

from sap3d import images
from sap3d.errors import InputError
from sap3d.scene import Scene


def disc(size=32, colour=(200, 60, 20)):
    y, x = np.mgrid[:size, :size]
    alpha = ((x - size / 2) ** 2 + (y - size / 2) ** 2 < (size / 3) ** 2) * 255
    return np.concatenate([np.broadcast_to(colour, (size, size, 3)), alpha[..., None]], -1).astype(np.uint8)


def write(path, array, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **options)
    return path


@pytest.fixture
def scene(tmp_path):
    """Three good photos."""
    for k in range(3):
        write(tmp_path / f"dataset/data/train/T/o/images/{k:03d}.png", disc(colour=(60 * k, 10, 90)))
    return Scene("T", "o", 3, tmp_path)


def photo(scene, name="001.png"):
    return scene.train_dir / "images" / name


# --- arithmetic -------------------------------------------------------------------------------------------------------
def test_composite_white():
    pixels = np.array([[[1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0.25]]], np.float32)
    assert images.composite_white(pixels) == pytest.approx(np.array([[[1, 0, 0], [1, 1, 1], [0.75, 0.75, 0.75]]]))
    with pytest.raises(ValueError):
        images.composite_white(np.zeros((4, 4, 3)))


def test_resize_keeps_light_and_ignores_hidden_colours():
    generator = np.random.default_rng(0)
    image = generator.random((32, 32, 4)).astype(np.float32)
    image[..., 3] = image[..., 3] > 0.5
    small = images.resize(image, 8)
    assert small.shape == (8, 8, 4)
    white = images.composite_white(image).reshape(8, 4, 8, 4, 3).mean((1, 3))
    assert images.composite_white(small) == pytest.approx(white, abs=2e-3)  # the order of the two does not matter
    hidden = image.copy()
    hidden[image[..., 3] == 0, :3] = 1 - hidden[image[..., 3] == 0, :3]
    assert images.resize(hidden, 8)[small[..., 3] > 0] == pytest.approx(small[small[..., 3] > 0], abs=1e-5)
    assert images.resize(image[..., :3], 64).shape == (64, 64, 3) and images.resize(image, 32) == pytest.approx(image)


def test_round_trip(tmp_path):
    image = disc().astype(np.float32) / 255
    images.save_image(tmp_path / "a.png", image)
    assert images.load_rgba(tmp_path / "a.png") == pytest.approx(image)
    assert images.load_rgb(tmp_path / "a.png") == pytest.approx(images.composite_white(image))
    images.save_image(tmp_path / "b.png", image[..., :3])
    assert images.load_rgb(tmp_path / "b.png") == pytest.approx(image[..., :3])
    assert images.to_uint8(np.array([-1, 0, 0.5, 1, 2])).tolist() == [0, 0, 128, 255, 255]


def test_forms_of_transparency(tmp_path):
    palette = Image.fromarray(disc()).quantize(16)
    palette.save(tmp_path / "palette.png")
    write(tmp_path / "grey.png", np.ascontiguousarray(disc()[..., [0, 3]]))
    write(tmp_path / "deep.webp", disc(), lossless=True)
    for name in ("palette.png", "grey.png", "deep.webp"):
        alpha = images.load_rgba(tmp_path / name)[..., 3]
        assert alpha[16, 16] == 1 and alpha[0, 0] == 0


def test_masks(scene):
    write(photo(scene), disc()[..., :3])
    with pytest.raises(InputError, match="no alpha.*masks/001.png"):
        images.load_input_views(scene)
    mask = scene.train_dir / "masks" / "001.png"
    write(mask, disc()[..., 3])
    assert images.load_input_views(scene)["001"][..., 3] == pytest.approx(disc()[..., 3] / 255)
    write(mask, np.zeros((32, 32), np.uint8))
    with pytest.raises(InputError, match="masks/001.png: .*transparent"):
        images.load_input_views(scene)
    write(mask, np.full((16, 16), 255, np.uint8))
    with pytest.raises(InputError, match="same size"):
        images.load_input_views(scene)


def masks_of(alpha):
    """The same mask as programs save it, by what it is."""
    inside = alpha > 0
    label = Image.fromarray(inside.astype(np.uint8)).convert("P")
    label.putpalette([0, 0, 0, 128, 0, 0] + [0] * 762)
    colours = np.full((*alpha.shape, 3), 255, np.uint8)
    colours[inside] = (30, 20, 10)  # the object is darker than what is hidden
    return {
        "bright": Image.fromarray(alpha),
        "bilevel": Image.fromarray(alpha).convert("1"),
        "cut-out": Image.fromarray(np.dstack([colours, alpha])),
        "grey cut-out": Image.fromarray(np.dstack([colours, alpha])).convert("LA"),
        "opaque with alpha": Image.fromarray(alpha).convert("RGBA"),
        "0 and 1": Image.fromarray(inside.astype(np.uint8)),
        "16 bits, 0 and 1": Image.fromarray(inside.astype(np.uint16)),
        "labels": label,
    }


@pytest.mark.parametrize("kind", masks_of(disc()[..., 3]))
def test_forms_of_masks(scene, kind):
    write(photo(scene), disc()[..., :3])
    (scene.train_dir / "masks").mkdir()
    masks_of(disc()[..., 3])[kind].save(scene.train_dir / "masks" / "001.png")
    assert np.array_equal(images.load_input_views(scene)["001"][..., 3], disc()[..., 3] / np.float32(255))


def test_soft_and_dark_masks_stay_as_they_are():
    soft = Image.fromarray(np.uint8([[0, 40, 90], [0, 255, 120]]))
    assert np.array_equal(images.mask_of(soft), soft)
    assert np.array_equal(images.mask_of(soft.crop((0, 0, 3, 1))), soft.crop((0, 0, 3, 1)))  # three values: which of them are the object is not known
    assert not np.asarray(images.mask_of(Image.new("L", (4, 4)))).any()


def test_contact_sheet_and_video(tmp_path):
    import imageio.v2 as imageio

    sheet = images.contact_sheet([[disc() / 255.0] * 3, [disc()[..., :3] / 255.0]], ["a", "b"], size=20, label_width=30)
    assert sheet.shape == (44, 30 + 66, 3) and sheet.min() < 0.5
    frames = [np.full((33, 33, 3), value) for value in (0.0, 0.5, 1.0)]
    images.write_video(tmp_path / "v.mp4", frames, fps=6)
    back = imageio.mimread(tmp_path / "v.mp4")
    assert len(back) == 3 and back[0].shape[:2] == (34, 34) and [round(f[5, 5].mean() / 255, 1) for f in back] == [0, 0.5, 1]


# --- photos of a scene ------------------------------------------------------------------------------------------------
def test_first_views_by_name(scene):
    assert list(images.load_input_views(scene)) == ["000", "001", "002"]
    assert list(images.load_input_views(Scene("T", "o", 2, scene.root))) == ["000", "001"]
    (photo(scene).parent / "notes.txt").write_text("not a photo")
    assert len(images.load_input_views(scene)) == 3


def remove_folder(scene):
    for path in photo(scene).parent.iterdir():
        path.unlink()
    photo(scene).parent.rmdir()


BAD = {
    "no folder": (remove_folder, "no such folder; available objects of type T"),
    "too few": (lambda s: photo(s).unlink(), "3 views were asked for but it holds 2"),
    "not an image": (lambda s: photo(s).write_text("hello"), "001.png: is not an image"),
    "empty file": (lambda s: photo(s).write_bytes(b""), "is not an image"),
    "cut off": (lambda s: photo(s).write_bytes(photo(s).read_bytes()[:90]), "cannot be decoded"),
    "a folder": (lambda s: (photo(s).unlink(), photo(s).mkdir()), "no such image file"),
    "dangling link": (lambda s: (photo(s).unlink(), photo(s).symlink_to("nowhere.png")), "no such image file"),
    "no alpha": (lambda s: write(photo(s), disc()[..., :3]), "no alpha channel.* python -m dataset.photos FOLDER --type T --name O"),
    "transparent": (lambda s: write(photo(s), disc() * np.uint8([1, 1, 1, 0])), "every pixel is transparent"),
    "other size": (lambda s: write(photo(s), disc(40)), "make all photos the same size"),
    "not square": (lambda s: write(photo(s), disc()[:, :20]), "images/001.png: is 20 x 32 but photos must be square"),
    "same picture": (lambda s: write(photo(s, "002.png"), np.asarray(Image.open(photo(s)))), "001 and 002 are the same picture"),
    "same name": (lambda s: write(photo(s, "001.webp"), disc()), "same name with different endings"),
    "huge": (lambda s: write(photo(s), np.zeros((1, 70_000_000), np.uint8)), "too large"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_photos(scene, case):
    damage, message = BAD[case]
    damage(scene)
    with pytest.raises(InputError, match=message):
        images.load_input_views(scene)


def test_available_objects(scene):
    assert images.available_objects(scene) == ["o"] and images.available_objects(Scene("none", "o", 1, scene.root)) == []
    write(scene.root / "dataset/data/train/GSO_demo/mine/images/000.png", disc())
    assert {"mine", "cactus", "teddy_bear"} <= set(images.available_objects(Scene("GSO_demo", "mine", 1, scene.root)))  # the bundled ones too
