"""Re-ranking: configurations whose outlines agree, judged by all that the photos say.

score = weights . terms; the terms (``TERMS``) are the network's opinion, the outlines (relposepp/tangency.py) and the visual
hull with colours (relposepp/consistency.py). Only the first was trained. The weights come from the validation part of the
corpus (a coarse grid and ``python -m relposepp.evaluate --fit``: the good configurations of a scene should win), but for two
decisions: the network counts a third of what the corpus gives it, because it was trained on the like of the corpus and is
near chance on scanned objects by itself; and from four views on the outlines count by their number of equations.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from relposepp.consistency import MEASURES, Consistency
from relposepp.inference import Grid, Hypothesis, Tables, configuration_distance_deg
from relposepp.multistart import Effort, refine, search_outlines
from relposepp.tangency import Solution, Tangency
from sap3d.cameras import RADIUS

TERMS = ("pairs", "elevations", "outlines", "upright", *MEASURES)

# By number of views (for others, the nearest one), in the order of TERMS.
WEIGHTS: dict[int, tuple[float, ...]] = {
    2: (0.3, 0.3, 0.15, 0.25, 50.0, 37.0, 5.0, 1.2, -1.0, 0.0),
    3: (0.3, 0.2, 0.15, 0.25, 80.0, 56.0, 7.5, 1.0, -1.0, 0.05),
    5: (0.3, 0.2, 3.0, 0.25, 80.0, 56.0, 7.5, 1.0, -1.0, 0.05),
}

NOISE = 1.0  # cost of the best solution above which masks are taken to be imperfect, and all costs for less
POOR = 2.0  # cost of the best solution above which the cameras' distances are searched too
RADIUS_SIGMA = 0.12  # belief in the protocol's distance then, object lengths


def weights_for(views: int) -> np.ndarray:
    """The fitted weights (len(TERMS),) of the nearest number of views, of the larger one between two."""
    return np.array(WEIGHTS[min(WEIGHTS, key=lambda n: (abs(n - views), -n))])


@dataclass
class Reranker:
    """Finds, refines and scores configurations of one scene.

    tables, grid: the network's opinion on the grid of its search; effort: of the search by outlines.
    """

    tables: Tables
    grid: Grid
    tangency: Tangency
    consistency: Consistency
    effort: Effort
    candidates: int
    seed: int = 0

    @classmethod
    def of(cls, tables: Tables, grid: Grid, images: list[np.ndarray], effort: Effort, candidates: int, seed: int = 0) -> Reranker:
        return cls(tables, grid, Tangency(images), Consistency(images), effort, candidates, seed)

    @property
    def weights(self) -> np.ndarray:
        return weights_for(self.tangency.views)

    def search(self, proposals: list[Hypothesis]) -> Solution:
        """The ``candidates`` configurations whose outlines agree best: of the search by outlines, and the refined proposals."""
        elevation_range = tuple(np.rad2deg(self.grid.elevation_rad[[0, -1]]))
        views = list(range(self.tangency.views))
        found = search_outlines(self.tangency, self.effort, elevation_range, RADIUS, np.random.default_rng(self.seed))[: self.candidates]
        if len(views) > 3 and found.cost[0] > POOR:  # fewer views can be explained at any distance
            moved = search_outlines(self.tangency, self.effort, elevation_range, RADIUS, np.random.default_rng(self.seed), RADIUS_SIGMA)
            found = found.joined(moved[: self.candidates])
        if not proposals:
            return found
        start = [torch.from_numpy(np.stack([getattr(h, name) for h in proposals])).float() for name in ("elevation_rad", "azimuth_rad")]
        return found.joined(refine(self.tangency, *start, torch.full_like(start[0], RADIUS), views, len(proposals), self.effort.apart_deg))

    def terms(self, solution: Solution) -> np.ndarray:
        """(K, len(TERMS)); means over pairs, views or rays, larger is better."""
        elevation, azimuth = solution.elevation.double().numpy(), solution.azimuth.double().numpy()
        n = elevation.shape[1]
        unary = np.stack([np.interp(elevation[:, v], self.grid.elevation_rad, self.tables.unary[v]) for v in range(n)], 1)
        # Photos are rarely taken from far below or from far above.
        upright = -np.square((np.rad2deg(elevation) - 15.0) / 30.0).mean(1)
        measured = self.consistency.measures(solution.elevation, solution.azimuth, solution.radius)
        cost = solution.cost.double().numpy()
        own = [self._pair_score(elevation, azimuth), unary.mean(1), -cost / max(NOISE, cost.min()), upright]
        return np.concatenate([np.stack(own, 1), measured], 1)

    def _pair_score(self, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        """The tables' log-probability, mean over pairs, at the nearest elevations, interpolated in azimuth."""
        n, a = elevation.shape[1], len(self.grid.azimuth_rad)
        step = np.diff(self.grid.elevation_rad).mean()
        e = np.clip(np.round((elevation - self.grid.elevation_rad[0]) / step), 0, len(self.grid.elevation_rad) - 1).astype(int)
        total = np.zeros(len(elevation))
        for i in range(n):
            for j in range(i + 1, n):
                place = (azimuth[:, i] - azimuth[:, j]) * a / (2 * np.pi)
                low = np.floor(place).astype(int)
                table = self.tables.pair[i, j][e[:, i], e[:, j]]
                rows, part = np.arange(len(e)), place - low
                total += (1 - part) * table[rows, low % a] + part * table[rows, (low + 1) % a]
        return total / max(1, n * (n - 1) // 2)

    def run(self, proposals: list[Hypothesis], apart_deg: float = 5.0) -> list[Hypothesis]:
        """All candidates by score, best first, none within ``apart_deg`` of a better one."""
        solution = self.search(proposals)
        score = self.terms(solution) @ self.weights
        kept: list[Hypothesis] = []
        for k in np.argsort(-score, kind="stable"):
            found = Hypothesis(*(getattr(solution, f)[k].double().numpy() for f in ("elevation", "azimuth")), float(score[k]), solution.radius[k].double().numpy())
            if all(configuration_distance_deg(found, other) >= apart_deg for other in kept):
                kept.append(found)
        return kept
