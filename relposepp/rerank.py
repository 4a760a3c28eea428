"""Re-ranking: configurations of the search refined by the photos' outlines and judged by all that the photos say.

score = weights . terms; the terms (``TERMS``) are the network's opinion, the outlines (relposepp/silhouettes.py) and the visual
hull with colours and features (relposepp/consistency.py). Only the first was trained; the weights were fitted on the
validation part of the corpus by ``python -m relposepp.evaluate --fit`` so that the good configurations of a scene win.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from relposepp.consistency import MEASURES, Consistency
from relposepp.inference import Grid, Hypothesis, Tables, configuration_distance_deg
from relposepp.silhouettes import FINE_SIGMA_RAD, Outlines

TERMS = ("pairs", "elevations", "outlines", "upright", *MEASURES)

# By number of views (for others, the nearest one), in the order of TERMS.
WEIGHTS: dict[int, tuple[float, ...]] = {
    2: (0.72, 0.54, 0.44, 0.03, 11.6, 9.7, 66.0, -7.7, 1.2),
    3: (1.06, 0.61, 0.81, 0.84, 21.0, 20.8, 197.0, -0.2, -30.5),
    5: (3.44, 1.99, 1.82, -0.63, 30.7, 31.2, 366.0, -48.9, -40.9),
}
OUTLINES_IN_SEARCH = 0.5  # weight of the outlines' log-likelihood beside the network's in the tables of the search


def weights_for(views: int) -> np.ndarray:
    """The fitted weights (len(TERMS),) of the nearest number of views."""
    return np.array(WEIGHTS[min(WEIGHTS, key=lambda n: (abs(n - views), n))])


@dataclass
class Reranker:
    """Refines and scores configurations of one scene.

    tables, grid: the network's opinion on the search's grid; radius (N,): the start of the refinement.
    """

    tables: Tables
    grid: Grid
    outlines: Outlines
    consistency: Consistency
    radius: np.ndarray

    @classmethod
    def of(cls, tables: Tables, grid: Grid, images: list[np.ndarray], radius: np.ndarray) -> Reranker:
        return cls(tables, grid, Outlines(images), Consistency(images), radius)

    @property
    def weights(self) -> np.ndarray:
        return weights_for(self.outlines.views)

    def search_tables(self) -> Tables:
        """The tables with the outlines' opinion added."""
        return Tables(self.tables.pair + OUTLINES_IN_SEARCH * self.outlines.tables(self.grid, self.radius), self.tables.unary)

    def terms(self, elevation: np.ndarray, azimuth: np.ndarray, radius: np.ndarray) -> np.ndarray:
        """(K, len(TERMS)) of configurations (K, N); means over pairs, views or rays, larger is better."""
        n = elevation.shape[1]
        unary = np.stack([np.interp(elevation[:, v], self.grid.elevation_rad, self.tables.unary[v]) for v in range(n)], 1)
        pairs = self._pair_score(elevation, azimuth)
        with torch.no_grad():
            cost = self.outlines.cost(*(torch.from_numpy(np.ascontiguousarray(x)).float() for x in (elevation, azimuth, radius)), FINE_SIGMA_RAD)
        # Photos are rarely taken from far below or from far above.
        upright = -np.square((np.rad2deg(elevation) - 15.0) / 30.0).mean(1)
        measured = self.consistency.measures(elevation, azimuth, radius)
        return np.concatenate([np.stack([pairs, unary.mean(1), -cost.double().numpy(), upright], 1), measured], 1)

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

    def refine(self, hypotheses: list[Hypothesis]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Elevation, azimuth and radius (K, N) of the hypotheses after refinement by the outlines."""
        elevation, azimuth = (np.stack([getattr(h, name) for h in hypotheses]) for name in ("elevation_rad", "azimuth_rad"))
        return self.outlines.refine(elevation, azimuth, np.broadcast_to(self.radius, elevation.shape))

    def run(self, hypotheses: list[Hypothesis], apart_deg: float = 15.0) -> list[Hypothesis]:
        """The refined hypotheses by their new score, best first, none within ``apart_deg`` of a better one."""
        elevation, azimuth, radius = self.refine(hypotheses)
        score = self.terms(elevation, azimuth, radius) @ self.weights
        kept: list[Hypothesis] = []
        for k in np.argsort(-score, kind="stable"):
            found = Hypothesis(elevation[k], azimuth[k], float(score[k]), radius[k])
            if all(configuration_distance_deg(found, other) >= apart_deg for other in kept):
                kept.append(found)
        return kept
