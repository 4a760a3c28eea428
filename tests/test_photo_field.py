"""The radiance field of the photos that guides stage 2's novel views."""

import numpy as np
import pytest
import torch
from recon_scenes import sphere_image

from camerabooth.config import BoothConfig
from camerabooth.nvs import first_guesses, novel_views, photo_field
from camerabooth.photo_field import GUESSED_SHARE, SHARE, PhotoField
from sap3d.cameras import Camera, protocol_test_cameras
from sap3d.field.views import render_view
from sap3d.images import composite_white
from sap3d.scene import write_cameras
from sap3d.zero123 import tiny_random_model
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import sample_views

CAMERAS = {f"{k:03d}": Camera.from_degrees(e, a) for k, (e, a) in enumerate([(0, 0), (30, 75), (0, 150), (20, 225), (10, 300)])}
PHOTOS = {name: sphere_image(camera, 48) for name, camera in CAMERAS.items()}
BETWEEN = Camera.from_degrees(15, 110)  # a view that four photos or more see all of


def first(count: int):
    names = list(CAMERAS)[:count]
    return {n: PHOTOS[n] for n in names}, {n: CAMERAS[n] for n in names}


@pytest.fixture(scope="module")
def five():
    return PhotoField.of(*first(5), None, 120)


def no_guess():
    raise AssertionError("the model's own guess was asked for")


def test_a_field_of_five_photos_guesses_alone_and_well(five):
    truth = torch.from_numpy(composite_white(sphere_image(BETWEEN, 48))).permute(2, 0, 1)
    guess = five.guess([BETWEEN, CAMERAS["000"]], no_guess, 48)
    assert guess.shape == (2, 3, 48, 48) and guess.min() >= 0 and guess.max() <= 1
    error = (guess[0] - truth).square().mean()
    assert five.alone and error < 0.004 < (1 - truth).square().mean() / 10


def test_what_a_field_of_three_photos_shows_is_mixed_in():
    field = PhotoField.of(*first(3), None, 60)
    own, behind = torch.zeros(2, 3, 48, 48), Camera.from_degrees(-10, 262)
    views, shares = (torch.stack(x) for x in zip(*(field.view(camera) for camera in (CAMERAS["000"], behind))))
    assert not field.alone and torch.allclose(field.guess([CAMERAS["000"], behind], lambda: own, 48), shares * views)
    middle = shares[..., 20:28, 20:28].mean((1, 2, 3))
    assert middle[0] > 0.95 and middle[1] < SHARE + 0.2 and shares.min() >= SHARE
    assert shares[..., :4, :4].unique().tolist() == [SHARE]  # background


def test_wrong_cameras_leave_the_model_its_say():
    photos, cameras = first(4)
    turned = cameras | {"001": Camera.from_degrees(30, 75, 1.15), "002": Camera.from_degrees(0, 150, 2.0)}  # outlines that no one shape has
    assert PhotoField.of(photos, cameras, None, 1).alone and not PhotoField.of(photos, turned, None, 1).alone


def test_other_sizes_and_reproducibility(five):
    assert five.guess([BETWEEN], no_guess, 32).shape == (1, 3, 32, 32)
    guesses = [PhotoField.of(*first(5), None, 10, seed).guess([BETWEEN], no_guess, 48) for seed in (0, 0, 1)]
    assert torch.equal(guesses[0], guesses[1]) and not torch.equal(guesses[0], guesses[2])


@pytest.mark.parametrize("count, changes, planes, expected", ((3, {}, 4, True), (2, {}, 4, True), (1, {}, 4, False), (3, {"field_steps": 0}, 4, False), (3, {"condition_strategy": "near"}, 4, False), (3, {}, 0, False)))
def test_when_there_is_a_field(tmp_path, count, changes, planes, expected):
    photos, cameras = first(count)
    write_cameras(tmp_path / "cameras.yaml", cameras)
    config = BoothConfig(**{"field_steps": 2} | changes)
    assert (photo_field(tiny_random_model(0, multiplane=planes), photos, tmp_path / "cameras.yaml", config) is not None) is expected


@pytest.mark.parametrize("count, expected", ((2, 42), (3, 42), (4, 0)))
def test_few_photos_need_the_models_guesses(tmp_path, count, expected):
    photos, cameras = first(count)
    write_cameras(tmp_path / "cameras.yaml", cameras)
    model, config = tiny_random_model(0, multiplane=4), BoothConfig(field_steps=1)
    fit = photo_field(model, photos, tmp_path / "cameras.yaml", config).fit
    assert (len(fit.novel_cameras.names) if expected else fit.novel_cameras or 0) == expected


def test_guesses_are_those_that_novel_views_begin_with(tmp_path):
    model, (photos, cameras) = tiny_random_model(0, multiplane=4), first(2)
    model.correction_gain.zero_()
    config = BoothConfig(precision="fp32", output_size=model.image_size, nvs_batch_size=5)
    guesses = first_guesses(model, photos, cameras)
    targets = {name: protocol_test_cameras()[name] for name in list(guesses)[3:9]}
    views = novel_views(model, photos_over_white(photos), cameras, targets, config)
    assert list(guesses) == list(protocol_test_cameras())[::2] and max(np.abs(views[n] - guesses[n]).max() for n in targets) < 0.02


def test_guesses_fill_in_what_two_photos_do_not_show():
    """Where no photo sees, the field looks as the guesses do; where one does, as the photo."""
    photos, cameras = first(2)
    green = {name: np.broadcast_to(np.float32([0.1, 0.9, 0.1]), (16, 16, 3)) for name in list(protocol_test_cameras())[::2]}
    behind = Camera.from_degrees(0, 220)
    fields = [PhotoField.of(photos, cameras, None, 80, guesses=guesses) for guesses in (None, green)]
    assert [field.share for field in fields] == [SHARE, GUESSED_SHARE] and fields[1].view(behind)[1].min() >= GUESSED_SHARE
    without, with_guesses = (field.fit for field in fields)
    middle = lambda fit, camera: render_view(fit.field, fit.occupancy, camera, 32).colour[12:20, 12:20].mean((0, 1))  # noqa: E731
    greener = middle(with_guesses, behind) - middle(without, behind)
    assert greener[1] - greener[0] > 0.2
    assert (middle(with_guesses, cameras["000"]) - middle(without, cameras["000"])).abs().max() < 0.08


def test_mirrored_photos_count_where_there_is_a_plane(tmp_path):
    photos, cameras = first(3)
    write_cameras(tmp_path / "cameras.yaml", cameras, mirror_plane_azimuth_rad=np.deg2rad(20))
    model, config = tiny_random_model(0, multiplane=4), BoothConfig(field_steps=1)
    assert photo_field(model, photos, tmp_path / "cameras.yaml", config).fit.mirrored is not None
    assert photo_field(model, photos, tmp_path / "cameras.yaml", BoothConfig(field_steps=1, symmetry=False)).fit.mirrored is None


def test_novel_views_begin_with_the_guide():
    """The guide is given the target cameras of a batch in order; what it returns is the guess that the diffusion model starts from and adds to."""
    model, (photos, cameras) = tiny_random_model(0, multiplane=4), first(4)
    given = photos_over_white(photos)
    features = model.encode_condition(given[:, :3], given[:, 3:]).small
    targets, asked = list(CAMERAS.values()), []
    model.correction_gain.zero_()  # the diffusion model adds nothing

    def guide(batch, own, size):
        asked.append((batch, size))
        return torch.full((len(batch), 3, size, size), 0.25) if len(asked) == 1 else own()

    plain = sample_views(model, features, list(cameras.values()), targets, 1, 1.0, batch_size=3)
    found = sample_views(model, features, list(cameras.values()), targets, 1, 1.0, batch_size=3, guide=guide)
    assert [batch for batch, _ in asked] == [targets[:3], targets[3:]] and {size for _, size in asked} == {model.image_size}
    assert (found[:3] - 0.25).abs().max() < 0.02 and torch.equal(found[3:], plain[3:])


def test_novel_views_with_a_field_follow_it(five):
    model, config = tiny_random_model(0, multiplane=4), BoothConfig(precision="fp32", output_size=48)
    model.correction_gain.zero_()
    views = [novel_views(model, photos_over_white(PHOTOS), CAMERAS, {"a": BETWEEN}, config, field)["a"] for field in (five, None)]
    away = [np.abs(view - five.view(BETWEEN)[0].permute(1, 2, 0).numpy()).mean() for view in views]
    assert away[0] < 0.01 < away[1] / 4
