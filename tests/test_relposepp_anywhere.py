"""Stage 1 on photos from anywhere: polishing, distances that are searched with the directions, and when they are."""

import numpy as np
import pytest
import torch
import yaml

from relposepp import rerank
from relposepp.anywhere import SLACK, Anywhere
from relposepp.config import RelPoseConfig
from relposepp.consistency import MEASURES, Consistency
from relposepp.estimate import HULL_SIDE, rescaled
from relposepp.evaluate import pair_errors_deg
from relposepp.inference import Hypothesis
from relposepp.multistart import Effort
from relposepp.polish import best, polish
from relposepp.rotations import look_at_rotation
from relposepp.run import main
from relposepp.tangency import Solution, Tangency
from sap3d.cameras import RADIUS, Camera
from sap3d.scene import Scene, read_cameras
from tests.relposepp_spheres import render, write_scene

ELEVATION_DEG, AZIMUTH_DEG, DISTANCE = [45, -12, 20, 3], [0, 52, 78, -110], [1.3, 1.75, 1.45, 1.7]
PLACES = [Camera.from_degrees(e, a, r) for e, a, r in zip(ELEVATION_DEG, AZIMUTH_DEG, DISTANCE)]
TRUTH = look_at_rotation(np.deg2rad(ELEVATION_DEG), np.deg2rad(AZIMUTH_DEG))
SMALL = dict(starts=8000, beam=60, candidates=80, judge=False, symmetry=False)  # balls are no things that the judge knows


def solution_at(elevation, azimuth, radius=None):
    elevation, azimuth = (torch.as_tensor(x).float() for x in (elevation, azimuth))
    return Solution(elevation, azimuth, torch.full_like(elevation, RADIUS) if radius is None else torch.as_tensor(radius).float(), torch.zeros(len(elevation)))


@pytest.mark.parametrize("distances", [False, True])
def test_polishing_goes_where_the_judge_points(distances):
    goal = torch.tensor([[0.3, -0.1, 0.5], [0.0, 3.1, -2.0], [1.5, 1.5, 1.5]])
    start = solution_at(goal[0] + torch.tensor([[0.1, -0.1, 0.05]]), goal[1] + torch.tensor([[0.0, 0.1, -0.1]]))

    def judge(found):
        return -((found.elevation - goal[0]).square() + (found.azimuth - goal[1]).square()).sum(1).double().numpy()

    before = start.elevation.clone()
    rounds = ((6.0, 4, 40), (3.0, 4, 40), (2.0, 4, 40), (1.0, 4, 40))
    found, score = polish(start, judge(start), lambda e, a, r, t: solution_at(e, a, r), judge, rounds, np.random.default_rng(0), 0.0, distances)
    top = int(score.argmax())
    assert len(found.cost) == len(score) == 1 + 40 + 3 * 160  # the first round had one configuration to move
    assert score[top] > 0.05 * score[0] and judge(found) == pytest.approx(score)
    assert torch.equal(start.elevation, before) and (found.azimuth[:, 0] == 0).all()
    assert bool((found.radius != RADIUS).any()) == distances
    few, _ = polish(start, judge(start), lambda e, a, r, t: solution_at(e, a, r), judge, rounds, np.random.default_rng(0), most=80)
    assert len(few.cost) == 1 + 40 + 3 * 80


def test_what_is_moved_is_spread_out_if_asked_for():
    solution, score = solution_at([[0.0, 0.0], [0.0, 0.01], [0.0, 0.5]], [[0.0, 1.0]] * 3), np.array([1.0, 3.0, 2.0])
    assert best(solution, score, 2, 0.0).tolist() == [1, 2]
    assert best(solution, score, 2, 3.0).tolist() == [1, 2]  # the first is the second once more
    assert best(solution, score, 3, 3.0).tolist() == [1, 2] and best(solution, score, 3, 0.0).tolist() == [1, 2, 0]


def test_distances_that_differ_are_found_up_to_scale():
    """Two more photos beside three whose directions are known to 3 degrees and whose distances are not."""
    places = [*PLACES, Camera.from_degrees(60, 165, 1.6)]
    photos = [render(c, 384) for c in places]
    consistency = Consistency(photos)
    weights = np.array(rerank.WEIGHTS[5])[[rerank.TERMS.index(name) for name in MEASURES]]

    def judge(found):
        return consistency.measures(found.elevation, found.azimuth, found.radius) @ weights - 3 * found.cost.double().numpy()

    search = Anywhere(Tangency(photos), judge)
    near = np.deg2rad(np.array([ELEVATION_DEG, AZIMUTH_DEG])[:, None, :3] + [[[3.0, -3.0, 2.0]], [[0.0, 3.0, -2.0]]])
    solution, score = search.search_from(solution_at(*near), np.zeros(1), Effort(8000, 180, 120, 15), (-40.0, 70.0), 40, np.random.default_rng(0))
    k = int(score.argmax())
    elevation, azimuth, radius = (getattr(solution, f)[k].double().numpy() for f in ("elevation", "azimuth", "radius"))
    truth = np.array([[np.deg2rad(c.elevation_deg), np.deg2rad(c.azimuth_deg), c.radius] for c in places]).T
    assert pair_errors_deg(look_at_rotation(elevation, azimuth), look_at_rotation(*truth[:2])).max() < 4
    assert radius / radius.mean() == pytest.approx(truth[2] / truth[2].mean(), rel=0.03)
    assert radius.mean() == pytest.approx(RADIUS, abs=2 * SLACK.radius)  # the scale does not wander off


def test_scale_comes_from_the_hull_where_there_are_photos_enough():
    places = [Camera.from_degrees(e, a, r) for e, a, r in zip([*ELEVATION_DEG, 60], [*AZIMUTH_DEG, 180], [*DISTANCE, 1.6])]
    # balls are 0.83 long: a box of that length at these distances is one of length 1 further away
    consistency = Consistency([render(c, 128) for c in places])
    angles = np.deg2rad([[c.elevation_deg, c.azimuth_deg] for c in places]).T
    side = consistency.longest_side(*angles, np.array([c.radius for c in places]))
    assert 0.75 < side < 0.95
    turned = consistency.longest_side(angles[0], angles[1] + 0.5, np.array([c.radius for c in places]))
    assert turned == pytest.approx(side, rel=0.05)  # however the world is turned
    for factor in (0.8, 1.0, 1.2):
        found = rescaled(Hypothesis(*angles, 0.0, factor * np.array([c.radius for c in places])), consistency)
        assert found.radius[0] == pytest.approx(places[0].radius * HULL_SIDE[5][1] / side, rel=0.05)
    two = rescaled(Hypothesis(*angles[:, :2], 0.0, np.array([1.0, 2.0])), Consistency([render(c, 64) for c in places[:2]]))
    assert two.radius == pytest.approx([1.0, 2.0])  # on average the protocol's distance


@pytest.mark.parametrize("case", ["no common height", "faint", "thin"])
def test_photos_that_say_little_have_finite_measures(case):
    photos = np.zeros((2, 128, 128, 4), np.float32)
    photos[..., :3] = 0.4
    if case == "no common height":
        photos[0, 10:40, 40:80, 3], photos[1, 90:120, 40:80, 3] = 1, 1
    elif case == "faint":
        photos[:, 40:90, 40:90, 3] = 0.2
    else:
        photos[:, 20:110, 63, 3] = 0.25
    consistency = Consistency(list(photos))
    measures = consistency.measures(np.zeros((1, 2)), np.array([[0.0, 1.0]]), np.full((1, 2), RADIUS))
    assert np.isfinite(measures).all()
    if case == "faint":
        assert consistency.missed(np.zeros(2), np.array([0.0, 1.0]), np.full(2, RADIUS)) < 0.2  # the object is seen at all


@pytest.fixture
def scene(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    write_scene(tmp_path, PLACES, size=384)
    return Scene("Balls", "balls", 4, tmp_path)


def errors(path):
    rotations = np.stack([c.camera_from_world()[:, :3] for c in read_cameras(path).values()])
    return pair_errors_deg(rotations, TRUTH)


def test_the_stage_notices_that_photos_are_from_anywhere(scene):
    around = main(scene, RelPoseConfig(taken="around", **SMALL))
    assert errors(around).mean() > 30 and "taken" not in yaml.safe_load(around.read_text())["checks"]
    found = main(scene, RelPoseConfig(**SMALL))
    assert errors(found).mean() < 8 and yaml.safe_load(found.read_text())["checks"]["taken"] == "anywhere"


def test_what_hulls_contradict_is_searched_again_from_three_photos(scene, monkeypatch):
    begun = []
    search_from = Anywhere.search_from
    monkeypatch.setattr(Anywhere, "search_from", lambda self, three, *rest: begun.append(three) or search_from(self, three, *rest))
    monkeypatch.setattr(rerank, "CONTRADICTED", 1.0)  # anything is good enough
    main(scene, RelPoseConfig(taken="anywhere", **SMALL))
    assert not begun
    monkeypatch.setattr(rerank, "CONTRADICTED", -1.0)  # nothing is
    path = main(scene, RelPoseConfig(taken="anywhere", seed=1, **SMALL))
    assert len(begun) == 1 and begun[0].elevation.shape[1] == 3 and errors(path).max() < 8
