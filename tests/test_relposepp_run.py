"""Stage 1 from photos to the camera file, and the consistency of configurations with photos."""

import numpy as np
import pytest
import torch
import yaml

from relposepp import rotations as rot
from relposepp.config import RelPoseConfig
from relposepp.consistency import MEASURES, Consistency
from relposepp.estimate import network_inputs
from relposepp.inference import Grid, Hypothesis, Tables
from relposepp.rerank import Reranker
from relposepp.run import command_line, main
from relposepp.silhouettes import Outlines
from sap3d.cameras import Camera, rotation_angle_deg
from sap3d.errors import InputError
from sap3d.scene import Scene, read_cameras
from tests.relposepp_spheres import TrueScores, render, write_scene

ELEVATION, AZIMUTH = np.deg2rad([0.0, 30.0, 0.0, 30.0]), np.deg2rad([0.0, 90.0, 270.0, 180.0])
CAMERAS = [Camera(np.pi / 2 - e, a) for e, a in zip(ELEVATION, AZIMUTH)]
FAST = RelPoseConfig(azimuth_step_deg=10.0, elevation_step_deg=10.0, candidates=12)


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


@pytest.mark.parametrize("change", [{"search": "x"}, {"hypotheses": 0}, {"elevation_range_deg": (50.0, 10.0)}, {"weights": "/nowhere"}, {"device": "tpu"}])
def test_bad_settings_are_one_line(scene, change):
    with pytest.raises(InputError):
        main(scene(2), RelPoseConfig(**change))


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
    measured = consistency.measures(np.tile(ELEVATION, (len(offsets), 1)), azimuth, np.full(4, 1.5))
    silhouette, colour = measured[:, MEASURES.index("silhouette")], measured[:, MEASURES.index("colour")]
    assert silhouette[0] > 0.995 and (silhouette[1:] < silhouette[0] - 0.005).all()
    assert colour[0] > 0


def test_measures_do_not_depend_on_the_frame_or_on_the_chunks(photos):
    consistency = Consistency(photos[:3])
    elevation, azimuth = np.tile(ELEVATION[:3], (5, 1)), np.tile(AZIMUTH[:3], (5, 1)) + np.linspace(0, 6, 5)[:, None]
    measured = consistency.measures(elevation, azimuth, np.full(3, 1.5))
    np.testing.assert_allclose(measured, np.tile(measured[:1], (5, 1)), atol=6e-3)
    consistency.ELEMENTS = 1
    np.testing.assert_allclose(consistency.measures(elevation, azimuth, np.full(3, 1.5)), measured, atol=1e-6)


def test_outlines_agree_for_true_cameras_and_say_nothing_through_the_object(photos):
    outlines = Outlines(photos)
    tensors = [torch.from_numpy(np.array([x, x])).float() for x in (ELEVATION, AZIMUTH, np.full(4, 1.5))]
    tensors[1][1, 1] += np.deg2rad(35)
    cost = outlines.cost(*tensors, 0.01)
    assert cost[0] < 1.0 and cost[1] > cost[0] + 1
    opposite = Outlines(photos[:1] * 2)
    value = opposite.cost(torch.zeros(1, 2), torch.tensor([[0.0, np.pi]]), torch.full((1, 2), 1.5), 0.01)
    assert float(value) == pytest.approx(2.0)


def test_refinement_removes_noise_from_true_cameras_and_distances(photos):
    generator = np.random.default_rng(0)
    elevation, azimuth = (x + np.deg2rad(generator.normal(0, 3.0, (6, 4))) for x in (ELEVATION, AZIMUTH))
    azimuth[:, 0] = 0
    radius = 1.5 * (1 + generator.normal(0, 0.02, (6, 4)))
    start = rotation_angle_deg(rot.look_at_rotation(elevation, azimuth), rot.look_at_rotation(ELEVATION, AZIMUTH)).mean()
    found = Outlines(photos).refine(elevation, azimuth, radius)
    end = rotation_angle_deg(rot.look_at_rotation(found[0], found[1]), rot.look_at_rotation(ELEVATION, AZIMUTH)).mean()
    assert end < 0.6 * start
    np.testing.assert_allclose(np.log(found[2]).mean(1), np.log(radius).mean(1), atol=1e-5)
    still = Outlines(photos).refine(elevation[:1], azimuth[:1], radius[:1], steps=0)
    np.testing.assert_allclose(still[0], elevation[:1], atol=1e-6)  # a move of zero is the identity


def test_reranking_finds_the_true_cameras_among_wrong_ones(photos):
    grid = Grid.from_degrees((-40.0, 70.0), 10.0, 10.0)
    weak = TrueScores(rot.look_at_rotation(ELEVATION, AZIMUTH), width_deg=80.0)  # a network that is nearly blind
    reranker = Reranker.of(Tables.of(weak, grid), grid, photos, np.full(4, 1.5))
    generator = np.random.default_rng(1)
    wrong = [Hypothesis(ELEVATION, np.concatenate([[0.0], generator.uniform(0, 6, 3)]), 0.0) for _ in range(6)]
    noisy = Hypothesis(ELEVATION + 0.05, AZIMUTH + np.deg2rad([0, 6.0, -5.0, 4.0]), 0.0)
    best = reranker.run([*wrong, noisy])[0]
    assert rotation_angle_deg(best.rotations(), rot.look_at_rotation(ELEVATION, AZIMUTH)).max() < 10
