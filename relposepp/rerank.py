"""Re-ranking: the network's configurations judged again by what the photos themselves say, and moved view by view.

score = network score a pair + weights . measures (relposepp/consistency.py). The weights were fitted on the validation part
of the corpus by ``python -m relposepp.evaluate --fit`` so that good configurations win over bad ones of the same scene.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np

from relposepp.consistency import MEASURES, Consistency
from relposepp.inference import Grid, Hypothesis, Tables, configuration_distance_deg

# Weights by number of views; between them, the nearest. In the order ("network",) + MEASURES.
WEIGHTS: dict[int, tuple[float, ...]] = {
    2: (1.0, 3.0, 1.0, 0.0, 0.0, 0.0),
    3: (1.0, 6.0, 2.0, 0.0, 0.0, 0.0),
    5: (1.0, 10.0, 4.0, 0.0, 0.0, 0.0),
}


@dataclass
class Reranker:
    """Scores and improves configurations of one scene on the grid of the look_at search.

    tables, grid: the network's opinion; consistency: the photos'; radius (N,).
    """

    tables: Tables
    grid: Grid
    consistency: Consistency
    radius: np.ndarray
    weights: np.ndarray

    @classmethod
    def of(cls, tables: Tables, grid: Grid, consistency: Consistency, radius: np.ndarray) -> Reranker:
        nearest = min(WEIGHTS, key=lambda n: (abs(n - consistency.views), n))
        return cls(tables, grid, consistency, radius, np.array(WEIGHTS[nearest]))

    def terms(self, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        """(K, 1 + measures) of configurations given as grid indices (K, N): network score a pair, then the measures."""
        n = elevation.shape[1]
        network = self.tables.score(elevation, azimuth) / max(1, n * (n - 1) // 2)
        measured = self.consistency.measures(self.grid.elevation_rad[elevation], self.grid.azimuth_rad[azimuth], self.radius)
        return np.concatenate([network[:, None], measured], 1)

    def score(self, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        return self.terms(elevation, azimuth) @ self.weights

    def indices(self, hypotheses: list[Hypothesis]) -> tuple[np.ndarray, np.ndarray]:
        """Nearest grid indices (K, N) of hypotheses."""
        step = np.diff(self.grid.elevation_rad).mean()
        elevation = np.stack([np.round((h.elevation_rad - self.grid.elevation_rad[0]) / step) for h in hypotheses])
        elevation = np.clip(elevation, 0, len(self.grid.elevation_rad) - 1).astype(int)
        count = len(self.grid.azimuth_rad)
        azimuth = np.stack([np.round(h.azimuth_rad * count / (2 * np.pi)) for h in hypotheses]).astype(int) % count
        return elevation, azimuth

    def run(self, hypotheses: list[Hypothesis], seconds: float, keep: int = 6, moves: int = 24) -> list[Hypothesis]:
        """Hypotheses in their new order, best first; the first ``keep`` are improved for at most ``seconds``.

        Improvement: coordinate ascent under the joint score. For one view after the other the ``moves`` best places by the
        network, and the neighbours of the present place, are judged, the other views staying where they are.
        """
        begin = time.monotonic()
        elevation, azimuth = self.indices(hypotheses)
        score = self.score(elevation, azimuth)
        order = np.argsort(-score, kind="stable")
        elevation, azimuth, score = elevation[order], azimuth[order], score[order]
        n = elevation.shape[1]
        settled = np.zeros(min(keep, len(score)), int)
        for turn in range(4 * n):
            view = turn % n
            for k in np.flatnonzero(settled < n):
                if time.monotonic() - begin > seconds:
                    break
                places = self._moves(elevation[k], azimuth[k], view, moves)
                joint = self.score(*places)
                best = int(np.argmax(joint))
                if joint[best] > score[k] + 1e-6:
                    elevation[k], azimuth[k], score[k], settled[k] = places[0][best], places[1][best], joint[best], 0
                else:
                    settled[k] += 1
        return self._distinct(elevation, azimuth, score)

    def _moves(self, elevation: np.ndarray, azimuth: np.ndarray, view: int, count: int) -> tuple[np.ndarray, np.ndarray]:
        """Configurations (M, N) that differ from one (N,) in one view."""
        a, e = len(self.grid.azimuth_rad), len(self.grid.elevation_rad)
        others = [u for u in range(len(elevation)) if u != view]
        places = self.tables.placements(view, others, elevation[None], azimuth[None])[0]
        best = np.argpartition(-places.ravel(), min(20 * count, places.size - 1))[: 20 * count]
        best = best[np.argsort(-places.ravel()[best])]
        chosen: list[tuple[int, int]] = []
        for place_e, place_a in zip(*np.divmod(best, a)):  # spread out: no two best places side by side
            if all(abs(place_e - x) > 1 or min((place_a - y) % a, (y - place_a) % a) > 2 for x, y in chosen):
                chosen.append((int(place_e), int(place_a)))
            if len(chosen) == count:
                break
        here = int(elevation[view]), int(azimuth[view])
        steps = [(0, 1), (0, -1), (0, 2), (0, -2), (1, 0), (-1, 0), (2, 0), (-2, 0), (1, 1), (-1, -1), (1, -1), (-1, 1)]
        chosen += [(int(np.clip(here[0] + x, 0, e - 1)), (here[1] + y) % a) for x, y in steps]
        es, as_ = np.tile(elevation, (len(chosen), 1)), np.tile(azimuth, (len(chosen), 1))
        es[:, view], as_[:, view] = np.array(chosen).T
        return es, as_

    def _distinct(self, elevation: np.ndarray, azimuth: np.ndarray, score: np.ndarray, apart_deg: float = 20.0) -> list[Hypothesis]:
        kept: list[Hypothesis] = []
        for k in np.argsort(-score, kind="stable"):
            angle = self.grid.azimuth_rad[(azimuth[k] - azimuth[k, 0]) % len(self.grid.azimuth_rad)]
            found = Hypothesis(self.grid.elevation_rad[elevation[k]], angle, float(score[k]))
            if all(configuration_distance_deg(found, other) >= apart_deg for other in kept):
                kept.append(found)
        return kept


TERMS = ("network", *MEASURES)
