"""Stage 1 from photos to the camera file, and the consistency of configurations with photos."""

import shutil

import numpy as np
import pytest
import torch
import yaml

from relposepp import evaluate
from relposepp import rotations as rot
from relposepp.config import RelPoseConfig
from relposepp.consistency import MEASURES, Consistency
from relposepp.estimate import network_inputs
from relposepp.inference import Grid, Hypothesis, Tables
from relposepp.limb import Limb, outline_points
from relposepp.multistart import Effort
from relposepp.rerank import Reranker, spacing
from relposepp.run import WEIGHTS, command_line, main
from sap3d.cameras import Camera, rotation_angle_deg
from sap3d.errors import InputError
from sap3d.images import save_image
from sap3d.scene import Scene, read_cameras, write_cameras
from tests.relposepp_spheres import TrueScores, render, write_scene

ELEVATION, AZIMUTH = np.deg2rad([0.0, 30.0, 0.0, 30.0]), np.deg2rad([0.0, 90.0, 270.0, 180.0])
CAMERAS = [Camera(np.pi / 2 - e, a) for e, a in zip(ELEVATION, AZIMUTH)]
FAST = RelPoseConfig(azimuth_step_deg=10.0, elevation_step_deg=10.0, starts=1500, beam=30, candidates=20)


@pytest.fixture(scope="module")
def photos():
    return [render(camera) for camera in CAMERAS]


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    write_scene(tmp_path, CAMERAS)
    return lambda views: Scene("Balls", "balls", views, tmp_path)


@pytest.mark.parametrize("views", [1, 2, 4])
def test_cameras_hypotheses_and_record(scene, views):
    output = main(scene(views), FAST)
    cameras = read_cameras(output)
    assert list(cameras) == [f"{k:03d}" for k in range(views)]
    assert cameras["000"].azimuth_deg == 0 and all(0.9 <= c.radius <= 3 for c in cameras.values())
    extra = yaml.safe_load(output.read_text())
    assert set(extra["confidence"]) == set(cameras) and all(0 <= c <= 1 for c in extra["confidence"].values())
    scores = [h["score"] for h in extra["hypotheses"]]
    assert scores == sorted(scores, reverse=True) and 1 <= len(scores) <= FAST.hypotheses
    best = extra["hypotheses"][0]["elevation_deg"]
    assert all(abs(best[name] - cameras[name].elevation_deg) < 1e-2 for name in cameras)
    record = output.with_suffix(".record.json")
    before = record.stat().st_mtime_ns, output.stat().st_mtime_ns
    assert main(scene(views), FAST) == output
    assert before == (record.stat().st_mtime_ns, output.stat().st_mtime_ns)  # nothing to do


def test_the_same_photos_give_the_same_cameras(scene):
    first = main(scene(3), FAST).read_text()
    main(scene(3), RelPoseConfig(rerank=False))  # another configuration: the record no longer matches
    assert main(scene(3), FAST).read_text() == first


def test_so3_search_runs(scene):
    cameras = read_cameras(main(scene(3), RelPoseConfig(search="so3", queries=1500, iterations=4, rerank=False)))
    assert len(cameras) == 3 and cameras["000"].azimuth_deg == 0


@pytest.mark.parametrize(
    "change, named",
    [({"search": "x"}, "search"), ({"precision": "int4"}, "precision"), ({"hypotheses": 0}, "hypotheses"), ({"elevation_range_deg": (50.0, 10.0)}, "elevation_range_deg"),
     ({"weights": "/nowhere"}, "/nowhere"), ({"device": "tpu"}, "device")],
)  # fmt: skip
def test_bad_settings_are_one_line(scene, change, named):
    with pytest.raises(InputError, match=named) as error:
        main(scene(2), RelPoseConfig(**change))
    assert "\n" not in str(error.value)


def test_bad_scenes_are_one_line(scene, tmp_path):
    with pytest.raises(InputError, match="9 views"):
        main(scene(9), FAST)
    with pytest.raises(InputError, match="no such folder"):
        main(Scene("Balls", "nothing", 2, tmp_path), FAST)
    (tmp_path / "dataset/data/train/Balls/balls/images/001.png").write_bytes(b"no image")
    with pytest.raises(InputError, match="001.png"):
        main(scene(2), FAST)
    assert not scene(2).initial_cameras.exists()


def test_command_line(scene, capsys):
    command_line(["--type", "Balls", "--object", "balls", "--views", "1", "--quick", "hypotheses=2"])
    assert capsys.readouterr().out.strip().endswith("config_balls_view_1.yaml")


def test_crop_parameters_of_the_published_network():
    image = np.zeros((100, 100, 4), np.float32)
    image[20:60, 50:90] = 1.0
    inputs, crop = network_inputs([image], 64, cropped=True)
    assert inputs.shape == (1, 4, 64, 64)
    np.testing.assert_allclose(crop[0], [-(2 * 0.70 - 1), -(2 * 0.40 - 1), 2 * 0.46], atol=0.02)
    columns = np.flatnonzero(inputs[0, 3].max(0) > 0.5)
    assert abs(np.ptp(columns) / 63 - 1 / 1.15) < 0.05 and abs(columns.mean() - 31.5) < 1.5
    whole, crop = network_inputs([image], 64, cropped=False)
    np.testing.assert_allclose(crop[0], [0, 0, 2])


def test_true_cameras_explain_the_silhouettes_and_wrong_ones_do_not(photos):
    consistency = Consistency(photos)
    offsets = np.deg2rad(np.array([0.0, 40, 90, 140, 180, -60]))
    azimuth = np.tile(AZIMUTH, (len(offsets), 1))
    azimuth[:, 1] += offsets
    measured = consistency.measures(np.tile(ELEVATION, (len(offsets), 1)), azimuth, np.full_like(azimuth, 1.5))
    silhouette, colour = measured[:, MEASURES.index("silhouette")], measured[:, MEASURES.index("colour_sum")]
    assert silhouette[0] > -0.005 and (silhouette[1:] < silhouette[0] - 0.005).all()
    assert colour[0] > 0 and colour[0] > np.median(colour)


def test_an_object_of_one_colour_says_nothing_by_its_colours():
    grey = [np.concatenate([np.full_like(photo[..., :3], 0.5), photo[..., 3:]], -1) for photo in (render(camera) for camera in CAMERAS[:2])]
    measured = Consistency(grey).measures(ELEVATION[None, :2], AZIMUTH[None, :2], np.full((1, 2), 1.5))
    assert abs(measured[0, MEASURES.index("colour_mean")]) < 0.1


def test_measures_do_not_depend_on_the_frame_or_on_the_chunks(photos):
    consistency = Consistency(photos[:3])
    elevation, azimuth = np.tile(ELEVATION[:3], (5, 1)), np.tile(AZIMUTH[:3], (5, 1)) + np.linspace(0, 6, 5)[:, None]
    measured = consistency.measures(elevation, azimuth, np.full_like(azimuth, 1.5))
    np.testing.assert_allclose(measured, np.tile(measured[:1], (5, 1)), atol=0.03)
    consistency.CHUNK = 1
    np.testing.assert_allclose(consistency.measures(elevation, azimuth, np.full_like(azimuth, 1.5)), measured, atol=1e-6)


@pytest.mark.parametrize("views", [3, 4])
def test_reranking_finds_the_true_cameras_with_a_network_that_is_nearly_blind(views):
    photos = [render(camera, 256) for camera in CAMERAS[:views]]
    expected = rot.look_at_rotation(ELEVATION[:views], AZIMUTH[:views])
    grid = Grid.from_degrees((-40.0, 70.0), 10.0, 10.0)
    weak = TrueScores(expected, width_deg=80.0)
    effort = Effort(starts=6000, keep_first=120, keep=80, stirred=10, copies=8)
    best = Reranker.of(Tables.of(weak, grid), grid, photos, effort, candidates=60).run([])[0]
    assert rotation_angle_deg(best.rotations(), expected).max() < 4


def test_a_network_that_counts_decides_where_outlines_do_not():
    """A grey ball looks alike from everywhere: without a weight the network has no say, with one it has."""
    ball = [(np.zeros(3), 0.4, np.full(3, 0.5))]
    images = [render(camera, 128, ball) for camera in CAMERAS[:2]]
    expected = rot.look_at_rotation(ELEVATION[:2], AZIMUTH[:2])
    grid = Grid.from_degrees((-40.0, 70.0), 10.0, 10.0)
    tables, effort = Tables.of(TrueScores(expected, width_deg=25.0, elevations=False), grid), Effort(starts=3000, keep_first=120, keep=80, stirred=10, copies=8)

    def error(weight):
        best = Reranker.of(tables, grid, images, effort, candidates=200, judged=False, network_weight=weight).run([])[0]
        relative = [r[1] @ r[0].T for r in (best.rotations(), expected)]
        return float(rotation_angle_deg(*relative))

    assert error(20.0) < 25 < error(0.0)


# --- colours at the outline -------------------------------------------------------------------------------------------
def test_outline_points_of_a_disc_lie_inside_it_with_radial_normals():
    line = torch.arange(128) + 0.5 - 64
    alpha = ((line[:, None] ** 2 + line[None] ** 2) < 40**2).float()
    row, column, normal = outline_points(alpha, 3.5, 60)
    place = torch.stack([line[column], -line[row]], -1)
    distance = place.norm(dim=1)
    assert len(row) == 60 and bool(((distance > 35) & (distance < 38)).all())
    assert float((normal - place / distance[:, None]).abs().max()) < 0.15
    assert len(outline_points(torch.zeros(128, 128), 3.5, 60)[0]) == 0


def colours_at_outlines(photos, azimuths):
    """Ratios of two-photo configurations whose second azimuth is one of ``azimuths``, among many others."""
    others = np.linspace(-np.pi, np.pi, 24, endpoint=False)
    azimuth = np.stack([np.full(24 + len(azimuths), AZIMUTH[0]), np.concatenate([azimuths, others])], 1)
    elevation = np.tile(ELEVATION[:2], (len(azimuth), 1))
    return Limb(Consistency(photos[:2])).ratio(elevation, azimuth, np.full_like(azimuth, 1.5))[: len(azimuths)]


def test_colours_at_the_outlines_tell_a_side_from_its_mirror_image(photos):
    difference = AZIMUTH[1] - AZIMUTH[0]
    right, mirrored = colours_at_outlines(photos, [AZIMUTH[0] + difference, AZIMUTH[0] - difference])
    assert right > mirrored + 0.005


def test_colours_at_the_outlines_of_a_grey_object_say_nothing():
    grey = [np.concatenate([np.full_like(photo[..., :3], 0.5), photo[..., 3:]], -1) for photo in (render(camera) for camera in CAMERAS[:2])]
    assert np.ptp(colours_at_outlines(grey, [1.0, -1.0, 2.0])) < 0.005


def test_spacing_prefers_neighbours_at_a_walker_s_distance():
    level = np.zeros((4, 3))
    azimuth = np.deg2rad([[0.0, 90, 180], [0, 90, 270], [0, 10, 90], [0, 180, 190]])
    measured = spacing(level, azimuth)
    assert measured[0] == measured[1] == 0 and measured[2] < -1 and measured[3] < -1
    assert spacing(np.zeros((1, 2)), np.deg2rad([[0.0, 180]]))[0] == pytest.approx(-25.0)


def test_the_card_of_the_weights_does_not_make_cameras_out_of_date(scene, tmp_path):
    folder = tmp_path / "weights"
    shutil.copytree(WEIGHTS / "tiny", folder)
    config = RelPoseConfig(**vars(FAST) | {"weights": str(folder)})
    record = main(scene(2), config).with_suffix(".record.json")
    before = record.stat().st_mtime_ns
    (folder / "README.md").write_text("another card")
    main(scene(2), config)
    assert record.stat().st_mtime_ns == before
    (folder / "config.json").write_text((folder / "config.json").read_text() + "\n")
    main(scene(2), config)
    assert record.stat().st_mtime_ns > before


def test_other_photos_masks_and_given_cameras_make_cameras_out_of_date(scene, tmp_path):
    folder, given = scene(1).train_dir, tmp_path / "given.yaml"
    write_cameras(given, {"000": CAMERAS[0]})
    config = RelPoseConfig(**vars(FAST) | {"cameras": str(given)})
    record = main(scene(1), config).with_suffix(".record.json")

    def runs_again() -> bool:
        before = record.stat().st_mtime_ns
        main(scene(1), config)
        return record.stat().st_mtime_ns > before

    assert not runs_again()
    for change in (
        lambda: save_image(folder / "images" / "000.png", render(CAMERAS[0])[:, ::-1]),
        lambda: save_image(folder / "masks" / "000.png", np.repeat(render(CAMERAS[0])[..., 3:], 3, 2)),
        lambda: write_cameras(given, {"000": Camera.from_degrees(0, 0, 1.6)}),
    ):
        change()
        assert runs_again() and not runs_again()


@pytest.mark.parametrize("change, reason", [({"rerank": False}, "rerank=false"), ({}, "")])
def test_it_is_said_that_taken_changes_nothing(scene, capsys, change, reason):
    main(scene(2), RelPoseConfig(**vars(FAST) | {"taken": "anywhere"} | change))
    told = capsys.readouterr().err
    assert (f"taken=anywhere changes nothing here: {reason}" in told) if reason else ("changes nothing" not in told)


@pytest.mark.parametrize("arguments, message", [
    (["--type", "NOPE"], "NOPE: no object with 2 photos"), (["--type", "NOPE", "--views", "1"], "at least 2"), (["--sets", "3"], "--sets is for the photos of a --type"),
    (["--alone", "taken=anywhere"], "leave taken= and aim= out")])  # fmt: skip
def test_what_cannot_be_measured_is_one_line(arguments, message):
    with pytest.raises(InputError, match=message) as error:
        evaluate.main([*arguments, *([] if "--views" in arguments else ["--views", "2"])])
    assert "\n" not in str(error.value)
