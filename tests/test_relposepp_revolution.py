"""Bodies of revolution in stage 1: azimuths by what is printed on them."""

import numpy as np
import pytest
import torch

from relposepp.config import RelPoseConfig
from relposepp.estimate import reranker_of
from relposepp.revolution import Revolution, azimuths_of
from relposepp.rotations import look_at_rotation
from relposepp.tangency import Solution
from sap3d.cameras import FOV_RAD, RADIUS, Camera
from sap3d.mesh_render import DEFAULT_LIGHTING, Lighting, MeshRenderer, RenderMesh
from tests.relposepp_spheres import TrueScores

ELEVATIONS, AZIMUTHS = np.deg2rad([10.0, 30.0, 0.0]), np.deg2rad([0.0, 70.0, 290.0])
RADII = np.full(3, RADIUS)


def vase(texture: np.ndarray, corners: int = 64, depth: float = 1.0) -> MeshRenderer:
    """A closed vase with a picture (H, W, 3) of uint8 wrapped around it; ``corners`` around it, y stretched by ``depth``."""
    height = np.linspace(-0.5, 0.5, 33)
    radius = 0.24 + 0.1 * np.sin(5 * height + 0.6)
    radius[[0, -1]] = 0.0
    angle = np.linspace(0, 2 * np.pi, corners + 1) + np.pi / corners
    vertices = np.stack(np.broadcast_arrays(radius[:, None] * np.cos(angle), depth * radius[:, None] * np.sin(angle), height[:, None]), -1).reshape(-1, 3)
    uv = np.stack(np.meshgrid(np.linspace(0, 1, corners + 1), np.linspace(0, 1, 33)), -1).reshape(-1, 2)
    first = (np.arange(32)[:, None] * (corners + 1) + np.arange(corners)).reshape(-1)
    faces = np.concatenate([np.stack([first, first + 1, first + corners + 2], -1), np.stack([first, first + corners + 2, first + corners + 1], -1)])
    image = np.concatenate([texture, np.full((*texture.shape[:2], 1), 255, np.uint8)], -1)
    return MeshRenderer(RenderMesh(vertices.astype(np.float32), faces.astype(np.int32), uv[faces].astype(np.float32), np.zeros(len(faces), np.int32), [image]))


def printed(seed: int = 0) -> np.ndarray:
    """Blots, different all around."""
    return np.kron(np.random.default_rng(seed).integers(40, 255, (12, 24, 3)), np.ones((8, 8, 1))).astype(np.uint8)


def photos(renderer: MeshRenderer, elevation=ELEVATIONS, azimuth=AZIMUTHS, lighting=DEFAULT_LIGHTING) -> list[np.ndarray]:
    cameras = [Camera(np.pi / 2 - e, a, RADIUS) for e, a in zip(elevation, azimuth)]
    return [np.asarray(renderer.render(c.camera_from_world(), FOV_RAD, 128, 2, lighting), np.float32) for c in cameras]


def wrong_deg(azimuth: np.ndarray, truth=AZIMUTHS) -> float:
    return float(np.abs(np.rad2deg((azimuth - truth + np.pi) % (2 * np.pi) - np.pi)).max())


@pytest.fixture(scope="module")
def body() -> Revolution:
    return Revolution(photos(vase(printed())))


def nothing(azimuth: np.ndarray) -> np.ndarray:
    return np.zeros(len(azimuth))


def test_azimuths_of_a_printed_body_are_found(body):
    found = azimuths_of(body.unwrapped(ELEVATIONS, RADII).agreement, nothing)
    assert wrong_deg(found[0]) < 3
    assert (found[:, 0] == 0).all()


def test_pictures_agree_at_the_true_azimuths_and_not_beside_them(body):
    pictures = body.unwrapped(ELEVATIONS, RADII)
    moved = AZIMUTHS + np.deg2rad([[0, 0, 0], [0, 12, 0], [0, 0, -12], [0, 25, 40], [0, 180, 90]])
    value = pictures.of(moved)
    assert value[0] > 0.1 and (value[1:] < 0.6 * value[0]).all()


def test_gauge_and_wrap_around(body):
    pictures = body.unwrapped(ELEVATIONS, RADII)
    assert pictures.of(AZIMUTHS[None]) == pytest.approx(pictures.of(AZIMUTHS[None] + 1.234), abs=1e-4)
    assert pictures.of(AZIMUTHS[None]) == pytest.approx(pictures.of(AZIMUTHS[None] + 2 * np.pi * np.array([0, 1, -2])), abs=1e-4)


def test_a_turned_scene_gives_the_same_azimuths():
    turned = Revolution(photos(vase(printed()), azimuth=AZIMUTHS + 2.0))
    assert wrong_deg(azimuths_of(turned.unwrapped(ELEVATIONS, RADII).agreement, nothing)[0]) < 3


@pytest.mark.parametrize("bands", [False, True], ids=["plain", "bands"])
def test_a_body_without_a_picture_says_nothing(bands):
    texture = np.full((96, 192, 3), 180, np.uint8)
    if bands:
        texture[24:48] = (200, 40, 40)
    pictures = Revolution(photos(vase(texture), lighting=Lighting(1.0, (), ()))).unwrapped(ELEVATIONS, RADII)
    assert pictures.of(np.deg2rad([[0, 70, 290], [0, 90, 200], [0, 10, 350], [0, 180, 60]])).max() < 0.03


def test_only_bodies_of_revolution_are_taken_for_one(body):
    assert body.missed(ELEVATIONS, RADII) < 0.01
    assert body.missed(ELEVATIONS + np.deg2rad([20, -20, 0]), RADII) > 0.03
    for renderer in (vase(printed(), corners=4), vase(printed(), depth=0.6)):
        assert Revolution(photos(renderer)).missed(ELEVATIONS, RADII) > 0.03


def test_the_profile_is_the_bodys(body):
    profile = body.profile(torch.from_numpy(ELEVATIONS).float(), torch.from_numpy(RADII).float()).numpy()
    height = body.height.numpy()
    inner = np.abs(height) < 0.4
    assert profile[inner] == pytest.approx(0.24 + 0.1 * np.sin(5 * height[inner] + 0.6), abs=0.012)
    assert (profile[np.abs(height) > 0.51] < 0.02).all()


def chosen(renderer: MeshRenderer, start_deg, lighting=DEFAULT_LIGHTING) -> tuple[float, int]:
    """What the re-ranking makes of one configuration of the vase (true elevations, azimuths in degrees): error of its choice, degrees, and its place."""
    config = RelPoseConfig(starts=400, beam=8, judge=False)
    images = photos(renderer, lighting=lighting)
    reranker = reranker_of(TrueScores(look_at_rotation(ELEVATIONS, AZIMUTHS)), images, config)
    solution = Solution(*(torch.tensor(np.stack([x])).float() for x in (ELEVATIONS, np.deg2rad(start_deg), RADII)), torch.zeros(1))
    solution.cost = reranker.tangency.cost(solution.elevation, solution.azimuth, solution.radius, [0, 1, 2])
    tables: dict = {}
    found, score = reranker.turned(solution, reranker.terms(solution, tables) @ reranker.weights, tables)
    assert len(found.cost) == len(score)
    place = int(np.argmax(score))
    return wrong_deg(found.azimuth[place].double().numpy()), place


@pytest.mark.parametrize("start_deg", [(0, 70, 290), (0, 95, 260), (0, 250, 110)], ids=["right", "perturbed", "mirrored"])
def test_cameras_of_a_printed_body_are_put_right_and_stay_so(start_deg):
    assert chosen(vase(printed()), start_deg)[0] < 3


def test_what_is_no_body_is_left_alone():
    assert chosen(vase(printed(), depth=0.6), (0, 95, 260))[1] == 0
