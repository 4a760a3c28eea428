"""Cameras of photos from anywhere: they look at the object's centre without roll, at distances and from directions of which nothing is known.

The distances are searched with the directions then. From four photos on the outlines' equations still have few solutions. With two and three
they have families of them: two equations for five unknowns, six for eight. So what the search keeps of these is judged by all that the
photos say (relposepp/rerank.py), and the best are polished. Where four photos or more are still contradicted by their hull, what the outlines of
three of them left was too little: the search begins again with the judged and polished configurations of fewer photos.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from relposepp.multistart import MIDDLE_RAD, Effort, extend, search_outlines
from relposepp.polish import best, polish
from relposepp.tangency import Slack, Solution, Tangency
from sap3d.cameras import RADIUS

SLACK = Slack(radius=0.15)  # belief in the protocol's distance, object lengths
ROUNDS = ((8.0, 24, 8), (4.0, 16, 10), (2.0, 10, 12), (1.0, 8, 12))  # of polishing (relposepp/polish.py)
BEGINNINGS = 60  # configurations of fewer photos that a second search begins with
APART_DEG = 3.0  # no two configurations that are moved are nearer to each other


@dataclass
class Anywhere:
    """tangency: of the photos; judge: scores (K,) of a Solution, larger is better."""

    tangency: Tangency
    judge: Callable[[Solution], np.ndarray]

    def search(self, effort: Effort, elevation_range_deg: tuple[float, float], candidates: int, generator: np.random.Generator) -> tuple[Solution, np.ndarray]:
        """Judged configurations and their scores (K,); ``candidates`` of them, at most, are judged before the best are polished, and in every round of that."""
        return self._judged(search_outlines(self.tangency, effort, elevation_range_deg, RADIUS, generator, SLACK)[:candidates], candidates, generator)

    def search_from(
        self, fewer: Solution, score: np.ndarray, effort: Effort, elevation_range_deg: tuple[float, float], candidates: int, generator: np.random.Generator
    ) -> tuple[Solution, np.ndarray]:
        """The same, beginning with the best of the first few photos' configurations by their scores."""
        beginnings = fewer[best(fewer, score, BEGINNINGS, APART_DEG)]
        return self._judged(extend(self.tangency, beginnings, effort, elevation_range_deg, RADIUS, generator, SLACK)[:candidates], candidates, generator)

    def _judged(self, solution: Solution, candidates: int, generator: np.random.Generator) -> tuple[Solution, np.ndarray]:
        return polish(solution, self.judge(solution), self._agree, self.judge, ROUNDS, generator, APART_DEG, distances=True, most=candidates)

    def _agree(self, elevation, azimuth, radius, _turn) -> Solution:
        """Scale is free: the outlines of a larger object from further away are the same. So distances do not wander off together."""
        radius = radius * (RADIUS / radius.mean(1, keepdim=True))
        return self.tangency.solve(elevation, azimuth, radius, list(range(self.tangency.views)), 6, start_sigma=MIDDLE_RAD, slack=SLACK)
