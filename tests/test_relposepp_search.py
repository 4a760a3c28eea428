"""Stage 1: searches recover the cameras that the pairwise scores know."""

from types import SimpleNamespace

import numpy as np
import pytest

from relposepp import estimate
from relposepp import rotations as rot
from relposepp.config import RelPoseConfig
from relposepp.estimate import finish, from_above_first, propose
from relposepp.evaluate import Candidates, measure
from relposepp.inference import Grid, Hypothesis, Tables, coordinate_ascent, search_look_at, search_so3
from sap3d.cameras import FOV_RAD, rotation_angle_deg
from sap3d.errors import InputError
from tests.relposepp_spheres import TrueScores

GRID = Grid.from_degrees((-40.0, 70.0), 10.0, 10.0)


def truth(views, seed=0):
    generator = np.random.default_rng(seed)
    return rot.look_at_rotation(generator.uniform(-0.5, 1.0, views), generator.uniform(-np.pi, np.pi, views))


def relative_error(found, expected):
    """Largest angle over the views after the first views are made to coincide."""
    return rotation_angle_deg(found @ found[0].T, expected @ expected[0].T).max()


@pytest.mark.parametrize("views", [2, 3, 5])
def test_look_at_search_recovers_true_cameras(views):
    expected = truth(views, views)
    best = search_look_at(Tables.of(TrueScores(expected), GRID), GRID, 5)[0]
    assert relative_error(best.rotations(), expected) < 12


def test_azimuth_at_the_seam_and_at_180_degrees():
    for azimuth in (-3.1, 3.1, np.pi, -0.02, 0.02, np.pi / 2):
        expected = rot.look_at_rotation([0.2, 0.4], [0.0, azimuth])
        best = search_look_at(Tables.of(TrueScores(expected), GRID), GRID, 1)[0]
        assert relative_error(best.rotations(), expected) < 12, azimuth


def test_a_wrong_pair_is_outvoted_by_the_others_and_kept_as_a_hypothesis_of_two():
    expected = truth(4, 7)
    other = truth(4, 8)
    ghosts = {(0, 1): rot.relative_rotation(other[0], other[1])}
    tables = Tables.of(TrueScores(expected, ghosts=ghosts), GRID)
    assert relative_error(search_look_at(tables, GRID, 5)[0].rotations(), expected) < 15

    pair = rot.look_at_rotation([0.1, 0.2], [0.0, 0.5])
    ghosts = {(0, 1): rot.relative_rotation(*rot.look_at_rotation([0.1, 0.2], [0.0, 0.5 + np.pi]))}  # a symmetric object
    found = search_look_at(Tables.of(TrueScores(pair, ghosts=ghosts), GRID), GRID, 5)
    assert min(relative_error(h.rotations(), pair) for h in found[:3]) < 12
    estimate = finish(found, np.full(2, 1.5), TrueScores(pair), RelPoseConfig())
    assert estimate.confidence[1] < 0.9  # says that it is not sure


def test_coordinate_ascent_repairs_a_view_and_keeps_good_ones():
    expected = truth(4, 3)
    tables = Tables.of(TrueScores(expected), GRID)
    best = search_look_at(tables, GRID, 1)[0]
    elevation = np.array([np.argmin(np.abs(GRID.elevation_rad - e)) for e in best.elevation_rad])[None]
    azimuth = np.array([np.argmin(np.abs(rot.wrap_to_pi(GRID.azimuth_rad - a))) for a in best.azimuth_rad])[None]
    broken = azimuth.copy()
    broken[0, 2] = (broken[0, 2] + 15) % len(GRID.azimuth_rad)
    _, repaired = coordinate_ascent(tables, elevation, broken)
    shift = (repaired - azimuth) % len(GRID.azimuth_rad)
    assert (shift == shift[0, 0]).all()


def test_tables_are_densities_and_symmetric():
    tables = Tables.of(TrueScores(truth(3)), GRID)
    area = np.cos(GRID.elevation_rad)
    total = (np.exp(tables.pair[0, 1]) * area[:, None, None] * area[None, :, None]).sum()
    assert total == pytest.approx(1)
    a = len(GRID.azimuth_rad)
    assert tables.pair[0, 1][2, 5, 3] == tables.pair[1, 0][5, 2, (a - 3) % a]


@pytest.mark.parametrize("views", [2, 4])
def test_so3_search_recovers_true_cameras_in_their_own_gauge(views):
    expected = truth(views, 10 + views)
    world = rot.random_rotations(1, np.random.default_rng(0))[0]
    scores = TrueScores(expected @ world, width_deg=20.0)
    found = search_so3(scores, 6000, 5 * views, 2, np.random.default_rng(0))
    assert relative_error(found[0][0], expected) < 12
    assert found[0][1] >= found[1][1]


@pytest.mark.parametrize("search", ["look_at", "so3"])
def test_one_photo_without_an_elevation_head_is_taken_from_a_little_above(search):
    """As with the published network: nothing is known but how people take photos."""
    scores = TrueScores(truth(1))
    scores.elevation = lambda view, elevation_rad: np.zeros(len(elevation_rad))
    found = propose(scores, RelPoseConfig(search=search))
    assert np.rad2deg(found[0].elevation_rad) == pytest.approx(15, abs=1)
    assert "elevation_head_deg" not in finish(found, np.array([1.5]), scores, RelPoseConfig()).checks


def test_propose_names_an_unknown_search_and_so3_gives_absolute_elevation():
    expected = rot.look_at_rotation(np.deg2rad([0.0, 30.0, 10.0]), np.deg2rad([0.0, 90.0, 200.0]))
    scores = TrueScores(expected, width_deg=20.0)
    found = propose(scores, RelPoseConfig(search="so3", queries=6000, iterations=12, hypotheses=2))
    np.testing.assert_allclose(np.rad2deg(found[0].elevation_rad), [0, 30, 10], atol=10)
    with pytest.raises(InputError, match="search"):
        propose(scores, RelPoseConfig(search="nowhere"))


def test_confidence_is_the_share_of_the_hypotheses_that_agree_with_the_first():
    elevation, azimuth = np.zeros(3), np.array([0.0, 1.5, 3.0])
    known = [Hypothesis(elevation, azimuth, 0.0), Hypothesis(elevation, azimuth + [0, 0.01, 0], -0.1), Hypothesis(elevation, azimuth + [0, 0, 1.5], -0.2)]
    confidence = finish(known, np.full(3, 1.5), TrueScores(known[0].rotations()), RelPoseConfig()).confidence
    probability = np.exp([0, -0.1, -0.2]) / np.exp([0, -0.1, -0.2]).sum()
    assert confidence[1:] == pytest.approx([1.0, probability[0] + probability[1]]) and confidence[0] == pytest.approx(confidence[1:].mean())


def test_photos_from_under_the_table_are_less_likely_and_no_others():
    def scored(score, *elevation_deg):
        return Hypothesis(np.deg2rad(elevation_deg), np.zeros(len(elevation_deg)), score)

    below, level, high = scored(6.1, -13, -4), scored(5.7, 1, 0), scored(5.0, 40, 20)
    found = from_above_first([below, level, high, scored(4.9, 46, 46)])
    assert [round(h.score, 2) for h in found] == [5.7, 5.0, 3.9, round(6.1 - 0.5 * ((13 / 6) ** 2 + (4 / 6) ** 2), 2)]
    assert found[0].score == level.score and below.score == 6.1  # within the range nothing changes, and what was given stays


def test_the_measurement_of_the_judge_chooses_as_the_stage_does():
    """Score and judge, then a mirror plane's worth among the best, then where photos are taken from."""
    elevation = np.deg2rad([[-13.0, -4.0], [1.0, 0.0], [20.0, 30.0]])
    found = Candidates("", elevation, np.zeros((3, 2)), np.ones((3, 2)), np.array([6.1, 5.7, 3.0]), np.array([0.0, 0.0, 3.0]), np.zeros(3), np.zeros((2, 8, 8, 4)))
    assert found.chosen() == 1  # the third would have a plane, and is too far behind for that to be asked
    assert found.chosen(np.array([0.0, 0.0, 1.5])) == 2 and found.chosen(np.array([3.0, 0.0, 0.0])) == 0


def test_the_choice_of_the_stage_asks_where_photos_were_taken_from(monkeypatch):
    known = [Hypothesis(np.deg2rad([-13.0, -4]), np.array([0.0, 1.5]), 6.1), Hypothesis(np.deg2rad([1.0, 0]), np.array([0.0, 1.6]), 5.7)]
    monkeypatch.setattr(estimate, "reranker_of", lambda *_: SimpleNamespace(run=lambda _: list(known), consistency=None))
    scores = TrueScores(known[1].rotations())
    found = estimate.choose(scores, np.full(2, 1.5), [], RelPoseConfig(symmetry=False))
    assert found.cameras[0].elevation_deg == pytest.approx(1) and found.hypotheses[1].score < known[0].score


@pytest.mark.parametrize(("aim", "given", "expected"), [("auto", None, None), ("free", None, [FOV_RAD] * 2), ("free", [0.5, 0.6], [0.5, 0.6]), ("exact", [0.5, 0.6], None)])
def test_measuring_the_stage_takes_aims_as_the_stage_does(monkeypatch, aim, given, expected):
    pose, seen = Hypothesis(np.zeros(2), np.array([0.0, 1.5]), 0.0, np.full(2, 1.5)), []

    def estimated(photos, network, config, device, fov):
        seen.append(fov)
        cameras = rot.cameras_from_angles(pose.elevation_rad, pose.azimuth_rad, pose.radius, [FOV_RAD] * 2)
        return SimpleNamespace(hypotheses=[pose], radius=pose.radius, cameras=cameras)

    monkeypatch.setattr(estimate, "estimate", estimated)
    figures, _ = measure([("thing", [None, None], pose.rotations(), pose.radius, given)], None, RelPoseConfig(aim=aim), "cpu")
    assert seen == [expected] and figures["mean_deg"] < 1e-6
