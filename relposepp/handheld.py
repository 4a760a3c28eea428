"""Cameras of photos taken by hand: their aim, roll and distance are unknown too, so outlines alone no longer decide.

Photos cut around the object (dataset/photos.py) do not look exactly at one point: the middle of an outline's box is up to 0.03
radians from where the object's centre is seen. With an unknown aim, roll and distance for each photo (``Slack``) the outlines'
equations have many solutions, most of them nonsense. So the search goes the other way round here: configurations are drawn from what is known
about how people take photos (from a little above, some way apart, mostly walking around the object), each is brought
to agree with the outlines, and hull, colours and outlines together (relposepp/rerank.py) judge them; the best are moved a little, made to agree
and judged again, in ever smaller steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from relposepp.multistart import distinct
from relposepp.polish import polish
from relposepp.tangency import Slack, Solution, Tangency, likely_radius
from sap3d.cameras import wrap_to_pi

SIGMA_RAD = 0.004  # error of an outline: masks by a network, 2 to 3 pixels of 512
SLACK = Slack(radius=0.08, aim=0.02, roll=0.015)  # snapshots: aim off by 0.01 to 0.03 about the box's middle, roll by a degree
ELEVATION_DEG = (18.0, 12.0)  # mean and width of the belief in elevations
STEP_DEG = (72.0, 22.0)  # mean and width of the turn from a photo to its neighbour when five go around; as many as fit a turn
WALKS = 0.75  # share of the starts that walk around the object
WALK_BONUS = 2.0  # on the score of such a configuration: about 7 times as likely
STARTS_TO_SOLVE = 5  # one start of so many is refined
APART_DEG = 5.0  # two configurations are one when no view differs by more
COARSE_RAD = 0.03  # width of the residuals by which starts are chosen
ROUNDS = ((8.0, 20, 6), (4.0, 12, 8), (2.0, 8, 10))  # of polishing: width of the moves in degrees, configurations moved, copies of each


def walks(azimuth_rad: np.ndarray) -> np.ndarray:
    """(K,) whether photos in this order (K, N) go around the object in one sense, by less than a turn."""
    step = wrap_to_pi(np.diff(azimuth_rad, axis=1))
    return ((step > 0).all(1) | (step < 0).all(1)) & (np.abs(step.sum(1)) < 2 * np.pi)


@dataclass
class Handheld:
    """tangency: of the photos, with their fields of view; judge: terms (K, T) of a Solution; weights (T,) of them."""

    tangency: Tangency
    judge: Callable[[Solution], np.ndarray]
    weights: np.ndarray
    fov_rad: list[float]

    def __post_init__(self):
        self.tangency.sigma = SIGMA_RAD
        self.views = list(range(self.tangency.views))

    def search(self, count: int, candidates: int, generator: np.random.Generator) -> tuple[Solution, np.ndarray]:
        """Judged configurations and their scores (K,), of ``count`` starts; ``candidates`` of them are judged in the first round."""
        starts = self.starts(count, generator)
        best = torch.argsort(self.tangency.cost(*starts, self.views, COARSE_RAD), stable=True)[: max(candidates, count // STARTS_TO_SOLVE)]
        solution = distinct(self._agree(*(x[best] for x in starts), 8), candidates, APART_DEG)
        score = self._score(solution)
        agree = lambda elevation, azimuth, radius, turn: self._agree(elevation, azimuth, radius, 4, self.tangency.sigma, turn)  # noqa: E731
        return polish(solution, score, agree, self._score, ROUNDS, generator)

    def _score(self, solution: Solution) -> np.ndarray:
        return self.judge(solution) @ self.weights + WALK_BONUS * walks(solution.azimuth.double().numpy())

    def starts(self, count: int, generator: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Elevation, azimuth (0 at the first view), radius (count, N): most walk around the object, the others go in any order."""
        n = len(self.views)
        elevation = np.deg2rad(np.clip(generator.normal(*ELEVATION_DEG, (count, n)), -20, 65))
        fewer = max(n, 5) / 5
        step = np.clip(generator.normal(STEP_DEG[0], STEP_DEG[1], (count, n - 1)), 25, 130) / fewer
        azimuth = np.deg2rad(np.cumsum(step * generator.choice([-1, 1], (count, 1)), 1))
        rest = round(count * WALKS)
        azimuth[rest:] = generator.permuted(azimuth[rest:], axis=1)
        azimuth = np.concatenate([np.zeros((count, 1)), azimuth], 1)
        radius = likely_radius(self.fov_rad)
        return torch.from_numpy(elevation).float(), torch.from_numpy(azimuth).float(), torch.from_numpy(radius).float().expand(count, n).clone()

    def _agree(self, elevation, azimuth, radius, steps: int, start_sigma: float = 0.02, turn=None) -> Solution:
        return self.tangency.solve(elevation, azimuth, radius, self.views, steps, prior_deg=ELEVATION_DEG, slack=SLACK, start_sigma=start_sigma, turn=turn)
