"""Re-ranking: configurations whose outlines agree, judged by all that the photos say.

score = weights . terms; the terms (``TERMS``) are the network's opinion, the outlines (relposepp/tangency.py), the visual
hull with colours (relposepp/consistency.py), the colours at the outlines (relposepp/limb.py), how people take photos, and the
judge of pairs (relposepp/judge.py). Only the first and the last were trained. The weights come
from the validation part of the corpus (a coarse grid and ``python -m relposepp.evaluate --fit``: the good configurations of a scene
should win), but for these decisions: the network's scores of pairs count nothing beside the colours at the outlines, because it was
trained on the like of the corpus and is near chance on scanned objects (its elevations count, and it proposes configurations); the weight of
those colours was chosen on the bundled demo objects, that of the judge at the low end of what is good on them, the corpus and, looked at too, scans
(docs/log.md); from four views on the outlines count by their number of equations, and
suffice without the judge.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch

from relposepp.anywhere import Anywhere
from relposepp.consistency import MEASURES, Consistency
from relposepp.handheld import Handheld
from relposepp.inference import Grid, Hypothesis, Tables, distinct
from relposepp.judge import SceneJudge, load_judge
from relposepp.limb import Limb
from relposepp.multistart import MIDDLE_RAD, Effort, refine, search_outlines
from relposepp.revolution import Revolution, Unwrapped, azimuths_of
from relposepp.tangency import Slack, Solution, Tangency
from sap3d.cameras import RADIUS

TERMS = ("pairs", "elevations", "outlines", "upright", "spacing", "limb", *MEASURES, "judge")
JUDGED_PAIRS = 300  # relative poses that the judge of pairs is asked about: of the configurations that are best by the other terms

# By number of views (for others, the nearest one), in the order of TERMS.
WEIGHTS: dict[int, tuple[float, ...]] = {
    2: (0.0, 0.3, 0.15, 0.25, 1.0, 20.0, 50.0, 37.0, 5.0, 1.2, -1.0, 0.0, 0.4),
    3: (0.0, 0.2, 0.15, 0.25, 1.0, 20.0, 80.0, 56.0, 7.5, 1.0, -1.0, 0.05, 0.2),
    5: (0.0, 0.2, 3.0, 0.25, 1.0, 20.0, 80.0, 56.0, 7.5, 1.0, -1.0, 0.05, 0.0),
}

# The judge knows cameras that look at the origin only. Aims of photos taken by hand are a few pixels of its images off, and outlines tell less then.
HANDHELD_JUDGE, HANDHELD_JUDGED_VIEWS = 0.5, 4

NOISE = 1.0  # cost of the best solution above which masks are taken to be imperfect, and all costs for less
POOR = 2.0  # cost of the best solution above which the cameras' distances are searched too
RADIUS_SIGMA = 0.12  # belief in the protocol's distance then, object lengths


CONTRADICTED = 0.003  # share of rays that miss the hull above which outlines contradict a configuration; right ones of protocol and random views have none
FEWER_VIEWS = 4  # most photos whose configurations a contradicted search begins again with, in its turn with those of three
REVOLVED_VIEWS = 3  # photos from which on it is done: with two the scan that it concerns lost 2.7 degrees (docs/log.md)
REVOLVED = 24  # configurations that are looked at as those of a body of revolution (relposepp/revolution.py), and how many are added
REVOLVED_TILTS_DEG = (0.0, -6.0, 6.0, -12.0, 12.0)  # what is added to all elevations, which outlines of a body without corners hardly tell
REVOLVED_SETS, REVOLVED_APART_DEG = 5, 4.0  # sets of elevations that the photos are unwrapped with; two are one when no view differs by more
REVOLVED_MISSED = 0.02  # share of rays that miss the body at which the object is none: corpus bodies .006 at most, other objects .03 at least
REVOLVED_SHAPE = 2.0  # log-likelihood ratio of a configuration whose outlines are exactly those of one body
REVOLVED_WORTH = 30.0  # of the pictures' agreement (``Unwrapped.of``)

SPACING_DEG = (40.0, 105.0)  # how far a photo is from its nearest neighbour, when somebody walks around an object with a few photos to take
SPACING_SIGMA_DEG = 15.0  # belief in that outside of the range


def weights_for(views: int, handheld: bool = False, anywhere: bool = False) -> np.ndarray:
    """The fitted weights (len(TERMS),) of the nearest number of views, of the larger one between two; anywhere: without a belief in how far apart photos are."""
    weights = np.array(WEIGHTS[min(WEIGHTS, key=lambda n: (abs(n - views), -n))])
    if handheld:
        weights[TERMS.index("judge")] = HANDHELD_JUDGE if views <= HANDHELD_JUDGED_VIEWS else 0
    if anywhere:
        weights[TERMS.index("spacing")] = 0
    return weights


def spacing(elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
    """(K,) 0 where every photo's nearest neighbour is ``SPACING_DEG`` away, negative elsewhere; of angles (K, N), N >= 2."""
    direction = np.stack([np.cos(elevation) * np.cos(azimuth), np.cos(elevation) * np.sin(azimuth), np.sin(elevation)], -1)
    cosine = direction @ direction.transpose(0, 2, 1)
    cosine[:, np.arange(cosine.shape[1]), np.arange(cosine.shape[1])] = -2
    nearest = np.rad2deg(np.arccos(np.clip(cosine.max(2), -1, 1)))
    low, high = SPACING_DEG
    outside = np.maximum(low - nearest, 0) + np.maximum(nearest - high, 0)
    return -np.square(outside / SPACING_SIGMA_DEG).mean(1)


def _apart_deg(angles: np.ndarray, other: np.ndarray) -> float:
    """Largest difference of elevations (N,), radians."""
    return float(np.rad2deg(np.abs(angles - other).max()))


@dataclass
class Reranker:
    """Finds, refines and scores configurations of one scene.

    tables, grid: the network's opinion on the grid of its search; effort: of the search by outlines.
    """

    tables: Tables
    grid: Grid
    tangency: Tangency
    consistency: Consistency
    limb: Limb
    effort: Effort
    candidates: int
    seed: int = 0
    handheld_fov_rad: list[float] | None = None
    judge: SceneJudge | None = None
    body: Revolution | None = None
    anywhere: bool = False
    images: list[np.ndarray] = field(default_factory=list)
    judged: bool = True
    network_weight: float = 0.0

    @classmethod
    def of(
        cls, tables: Tables, grid: Grid, images: list[np.ndarray], effort: Effort, candidates: int, seed: int = 0, handheld_fov_rad: list[float] | None = None,
        judged: bool = True, anywhere: bool = False, network_weight: float = 0.0,
    ) -> Reranker:  # fmt: skip
        """handheld_fov_rad: across each photo, where they were taken by hand (relposepp/handheld.py); judged: ask the judge of pairs, where it has a weight.
        anywhere: nothing is known about distances and directions (relposepp/anywhere.py). network_weight: of the term "pairs", the network's opinion."""
        consistency = Consistency(images, handheld_fov_rad)
        tangency = Tangency(images, handheld_fov_rad)
        judge = None
        if judged and len(images) > 1 and weights_for(len(images), bool(handheld_fov_rad))[TERMS.index("judge")]:
            judge = SceneJudge(load_judge(), images, handheld_fov_rad)
        body = Revolution(images) if len(images) >= REVOLVED_VIEWS and not handheld_fov_rad and not anywhere else None
        return cls(tables, grid, tangency, consistency, Limb(consistency), effort, candidates, seed, handheld_fov_rad, judge, body, anywhere, images, judged, network_weight)

    @property
    def weights(self) -> np.ndarray:
        weights = weights_for(self.tangency.views, bool(self.handheld_fov_rad), self.anywhere)
        weights[TERMS.index("pairs")] = self.network_weight
        return weights

    @property
    def _elevation_range_deg(self) -> tuple[float, float]:
        return tuple(np.rad2deg(self.grid.elevation_rad[[0, -1]]))

    def search(self, proposals: list[Hypothesis]) -> Solution:
        """The ``candidates`` configurations whose outlines agree best: of the search by outlines, and the refined proposals."""
        elevation_range = self._elevation_range_deg
        views = list(range(self.tangency.views))
        found = search_outlines(self.tangency, self.effort, elevation_range, RADIUS, np.random.default_rng(self.seed))[: self.candidates]
        if len(views) > 3 and found.cost[0] > POOR:  # fewer views can be explained at any distance
            moved = search_outlines(self.tangency, self.effort, elevation_range, RADIUS, np.random.default_rng(self.seed), Slack(RADIUS_SIGMA))
            found = found.joined(moved[: self.candidates])
        if not proposals:
            return found
        start = [torch.from_numpy(np.stack([getattr(h, name) for h in proposals])).float() for name in ("elevation_rad", "azimuth_rad")]
        return found.joined(refine(self.tangency, *start, torch.full_like(start[0], RADIUS), views, len(proposals), self.effort.apart_deg))

    def terms(self, solution: Solution, limb_tables: dict | None = None, least_cost: float | None = None) -> np.ndarray:
        """(K, len(TERMS)); means over pairs, views or rays, larger is better. limb_tables: see ``Limb.ratio``; least_cost: of all the
        scene's configurations, where these are only some of them."""
        elevation, azimuth = solution.elevation.double().numpy(), solution.azimuth.double().numpy()
        n = elevation.shape[1]
        unary = np.stack([np.interp(elevation[:, v], self.grid.elevation_rad, self.tables.unary[v]) for v in range(n)], 1)
        # Photos are rarely taken from far below or from far above.
        upright = -np.square((np.rad2deg(elevation) - 15.0) / 30.0).mean(1)
        pose = solution.elevation, solution.azimuth, solution.radius, solution.turn if self.handheld_fov_rad else None
        measured = self.consistency.measures(*pose)
        cost = solution.cost.double().numpy()
        least = cost.min() if least_cost is None else least_cost
        own = [self._pair_score(elevation, azimuth), unary.mean(1), -cost / max(NOISE, least), upright, spacing(elevation, azimuth),
               self.limb.ratio(*pose, limb_tables)]  # fmt: skip
        found = np.concatenate([np.stack(own, 1), measured, np.zeros((len(cost), 1))], 1)
        if self.judge is not None:
            found[:, -1] = self._judged(solution, found @ self.weights)
        return found

    def _judged(self, solution: Solution, score: np.ndarray) -> np.ndarray:
        """The judge's scores (K,) of the configurations of the largest ``score`` (K,), ``JUDGED_PAIRS`` in all; the least of them for the others."""
        views = solution.elevation.shape[1]
        best = np.argsort(-score, kind="stable")[: max(1, JUDGED_PAIRS // (views * (views - 1) // 2))]
        asked = self.judge.scores(*(x[torch.from_numpy(best)] for x in (solution.elevation, solution.azimuth, solution.radius)))
        found = np.full(len(score), asked.min())
        found[best] = asked
        return found

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

    def turned(self, solution: Solution, score: np.ndarray, limb_tables: dict) -> tuple[Solution, np.ndarray]:
        """The same with configurations added whose azimuths are those of a body of revolution's pictures, and what body and pictures are worth
        added to the scores (K,) of the best ones; all as it was where the outlines are not those of such a body."""
        best = np.argsort(-score, kind="stable")[:REVOLVED]
        sets = self._elevation_sets(solution[torch.from_numpy(best)])
        if not sets:
            return solution, score
        added = []
        for elevation, radius, pictures in sets:
            penalty = lambda a, e=elevation: spacing(np.broadcast_to(e[: a.shape[1]], a.shape), a) / REVOLVED_WORTH  # noqa: E731
            azimuth = azimuths_of(pictures.agreement, penalty, max(6, REVOLVED // len(sets)))
            added.append([np.broadcast_to(elevation, azimuth.shape), azimuth, np.broadcast_to(radius, azimuth.shape)])
        start = [torch.from_numpy(np.concatenate(x)).float() for x in zip(*added)]
        new = self.tangency.solve(*start, list(range(self.tangency.views)), 6, start_sigma=MIDDLE_RAD)
        score = np.concatenate([score, self.terms(new, limb_tables, float(solution.cost.min())) @ self.weights])
        solution = solution.joined(new)
        for k in [*best, *range(len(score) - len(new.cost), len(score))]:
            elevation, azimuth, radius = (getattr(solution, f)[k].double().numpy() for f in ("elevation", "azimuth", "radius"))
            score[k] += REVOLVED_SHAPE * max(0.0, 1 - self.body.missed(elevation, radius) / REVOLVED_MISSED)
            nearest = min(sets, key=lambda x: _apart_deg(x[0], elevation))
            if _apart_deg(nearest[0], elevation) < 1.5 * REVOLVED_APART_DEG:
                score[k] += REVOLVED_WORTH * max(0.0, float(nearest[2].of(azimuth[None])[0]))
        return solution, score

    def _elevation_sets(self, best: Solution) -> list[tuple[np.ndarray, np.ndarray, Unwrapped]]:
        """Elevations (N,) like those of the best configurations, or tilted, with distances (N,), whose outlines are those of a body of revolution; and its pictures."""
        bases: list[tuple[np.ndarray, np.ndarray]] = []
        for elevation, radius in zip(best.elevation.double().numpy(), best.radius.double().numpy()):
            if len(bases) < REVOLVED_SETS and all(_apart_deg(known, elevation) >= REVOLVED_APART_DEG for known, _ in bases):
                bases.append((elevation, radius))
        tried = [(self.body.missed(e + tilt, r), e + tilt, r) for e, r in bases for tilt in np.deg2rad(REVOLVED_TILTS_DEG)]
        sets: list[tuple[np.ndarray, np.ndarray, Unwrapped]] = []
        for missed, elevation, radius in sorted(tried, key=lambda x: x[0]):
            if missed < REVOLVED_MISSED and len(sets) < REVOLVED_SETS and all(_apart_deg(known, elevation) >= REVOLVED_APART_DEG for known, _, _ in sets):
                sets.append((elevation, radius, self.body.unwrapped(elevation, radius)))
        return sets

    def run(self, proposals: list[Hypothesis], apart_deg: float = 5.0) -> list[Hypothesis]:
        """All candidates by score, best first, none within ``apart_deg`` of a better one."""
        if self.handheld_fov_rad:
            tables: dict = {}
            handheld = Handheld(self.tangency, lambda found: self.terms(found, tables), self.weights, self.handheld_fov_rad)
            solution, score = handheld.search(self.effort.starts // 2, self.candidates, np.random.default_rng(self.seed))
        elif self.anywhere:
            solution, score = self._from_anywhere()
        else:
            solution, tables = self.search(proposals), {}
            score = self.terms(solution, tables) @ self.weights
            if self.body is not None:
                solution, score = self.turned(solution, score, tables)
        ordered = (self._hypothesis(solution, k, float(score[k])) for k in np.argsort(-score, kind="stable"))
        return distinct(ordered, apart_deg)

    def _from_anywhere(self) -> tuple[Solution, np.ndarray]:
        tables: dict = {}
        least: list[float] = []  # cost of the first round's best solution: the measure of all rounds

        def judge(found: Solution) -> np.ndarray:
            least.append(float(found.cost.min()))
            return self.terms(found, tables, least[0]) @ self.weights

        search, settings = Anywhere(self.tangency, judge), (self.effort, self._elevation_range_deg, self.candidates)
        solution, score = search.search(*settings, np.random.default_rng(self.seed))
        if self.tangency.views > 3 and self.contradicted(self._hypothesis(solution, int(score.argmax()), float(score.max()))):
            few = min(self.tangency.views - 1, FEWER_VIEWS)
            fewer = Reranker.of(self.tables.of_first(few), self.grid, self.images[:few], self.effort, self.candidates, self.seed, judged=self.judged, anywhere=True, network_weight=self.network_weight)
            again, found = search.search_from(*fewer._from_anywhere(), *settings, np.random.default_rng(self.seed))
            solution, score = solution.joined(again), np.concatenate([score, found])
        return solution, score

    def missed(self, hypothesis: Hypothesis) -> float:
        """Share of the object's rays that miss the hull under a hypothesis of ``run``: what the outlines say against it."""
        return self.consistency.missed(hypothesis.elevation_rad, hypothesis.azimuth_rad, hypothesis.radius)

    def contradicted(self, hypothesis: Hypothesis) -> bool:
        return self.missed(hypothesis) > CONTRADICTED

    def _hypothesis(self, solution: Solution, k: int, score: float) -> Hypothesis:
        elevation, azimuth, radius, turn = (getattr(solution, f)[k].double().numpy() for f in ("elevation", "azimuth", "radius", "turn"))
        return Hypothesis(elevation, azimuth, score, radius, turn if self.handheld_fov_rad else None)
