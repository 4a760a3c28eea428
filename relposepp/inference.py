"""From pairwise scores to camera configurations: spanning tree, beam search, coordinate ascent; several scored hypotheses.

Two searches share one interface, ``PairScores``:

* ``search_so3``: all rotations, as published (RelPose++, section 3.3): best of many random relative rotations for every
  pair, maximum spanning tree, coordinate ascent by random proposals.
* ``search_look_at``: cameras that look at the object without roll have an elevation and an azimuth; the pairwise scores are
  tabulated over both elevations and the difference of azimuths, and whole configurations are searched on the tables.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Iterable, Protocol

import numpy as np
from scipy.ndimage import maximum_filter

from relposepp.rotations import chain_rotation, look_at_rotation, maximum_spanning_tree, random_rotations, relative_rotation
from sap3d.cameras import rotation_angle_deg


class PairScores(Protocol):
    """What a search needs to know. Scores are log-probabilities up to a constant a pair."""

    views: int

    def pair(self, i: int, j: int, relative: np.ndarray) -> np.ndarray:
        """Scores (Q,) of relative rotations (Q, 3, 3) of views i < j (relposepp.rotations)."""

    def elevation(self, view: int, elevation_rad: np.ndarray) -> np.ndarray:
        """Log-probability (K,) of elevations (K,) of one view; zeros when nothing is known."""


@dataclass
class Hypothesis:
    """One camera configuration: elevations and azimuths (N,) in radians, its score (higher is better), radii where refined, turns
    (N, 3; ``sap3d.cameras.turn_matrix``) where aims are unknown."""

    elevation_rad: np.ndarray
    azimuth_rad: np.ndarray
    score: float
    radius: np.ndarray | None = None
    turn_rad: np.ndarray | None = None

    def rotations(self) -> np.ndarray:
        return look_at_rotation(self.elevation_rad, self.azimuth_rad)


class NetworkScores:
    """PairScores of the network for the features (N, D) of one scene."""

    CHUNK = 8192

    def __init__(self, network, features):
        self.network, self.features, self.views = network, features, len(features)

    def _query(self, relative: np.ndarray):
        import torch

        return torch.from_numpy(np.ascontiguousarray(relative)).float().to(self.features.device)

    def pair(self, i: int, j: int, relative: np.ndarray) -> np.ndarray:
        import torch

        with torch.no_grad():
            parts = [
                self.network.scores(self.features[None], [(i, j)], self._query(relative[k : k + self.CHUNK]))[0, 0]
                for k in range(0, len(relative), self.CHUNK)
            ]
        return torch.cat(parts).double().cpu().numpy()

    def all_pairs(self, relative: np.ndarray) -> np.ndarray:
        """Scores (pairs, Q) of the same queries for all pairs i < j, in the order of ``np.triu_indices``."""
        import torch

        pairs = list(zip(*np.triu_indices(self.views, 1)))
        with torch.no_grad():
            parts = [
                self.network.scores(self.features[None], pairs, self._query(relative[k : k + self.CHUNK]))[0]
                for k in range(0, len(relative), self.CHUNK)
            ]
        return torch.cat(parts, -1).double().cpu().numpy()

    def elevation(self, view: int, elevation_rad: np.ndarray) -> np.ndarray:
        import torch

        if not self.network.config.elevation_bins:
            return np.zeros(len(elevation_rad))
        with torch.no_grad():
            logp = torch.log_softmax(self.network.elevation_logits(self.features[None])[0, view].float(), -1).cpu().numpy()
        return np.interp(np.rad2deg(elevation_rad), self.network.elevation_centres_deg(), logp)


# --- cameras without roll ---------------------------------------------------------------------------------------------
@dataclass
class Grid:
    """Elevations (E,) and azimuth differences (A,), evenly spaced over the circle, in radians."""

    elevation_rad: np.ndarray
    azimuth_rad: np.ndarray

    @classmethod
    def from_degrees(cls, elevation_range: tuple[float, float], elevation_step: float, azimuth_step: float) -> Grid:
        low, high = elevation_range
        count = int(round((high - low) / elevation_step)) + 1
        azimuths = max(4, int(round(360 / azimuth_step)))
        return cls(np.deg2rad(np.linspace(low, high, count)), np.arange(azimuths) * 2 * np.pi / azimuths)

    def relative_rotations(self) -> np.ndarray:
        """(E, E, A, 3, 3): first view at elevation [a] and azimuth difference [c], second at elevation [b] and azimuth 0."""
        e, a = self.elevation_rad, self.azimuth_rad
        first = look_at_rotation(e[:, None, None], a[None, None, :])
        second = look_at_rotation(e[None, :, None], 0.0)
        return relative_rotation(first, second)


@dataclass
class Tables:
    """pair (N, N, E, E, A): log-probability of (elevation i, elevation j, azimuth i - azimuth j); unary (N, E)."""

    pair: np.ndarray
    unary: np.ndarray

    @classmethod
    def of(cls, scores: PairScores, grid: Grid) -> Tables:
        n, e, a = scores.views, len(grid.elevation_rad), len(grid.azimuth_rad)
        queries = grid.relative_rotations().reshape(-1, 3, 3)
        measure = np.log(np.cos(grid.elevation_rad))  # area of a grid cell, so that the tables are densities on the sphere
        if hasattr(scores, "all_pairs"):
            rows = scores.all_pairs(queries)
        else:
            rows = np.stack([scores.pair(i, j, queries) for i, j in zip(*np.triu_indices(n, 1))]) if n > 1 else np.zeros((0, len(queries)))
        pair = np.zeros((n, n, e, e, a))
        for (i, j), row in zip(zip(*np.triu_indices(n, 1)), rows):
            table = row.reshape(e, e, a)
            weighted = table + measure[:, None, None] + measure[None, :, None]
            peak = weighted.max()
            table = table - (peak + np.log(np.exp(weighted - peak).sum()))
            pair[i, j] = table
            pair[j, i] = table.transpose(1, 0, 2)[:, :, (-np.arange(a)) % a]
        unary = np.stack([scores.elevation(v, grid.elevation_rad) for v in range(n)])
        return cls(pair, unary)

    def of_first(self, views: int) -> Tables:
        """Those of the first views alone."""
        return Tables(self.pair[:views, :views], self.unary[:views])

    def score(self, elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        """Scores (K,) of configurations given as grid indices (K, N)."""
        n, a = elevation.shape[1], self.pair.shape[-1]
        total = sum(self.unary[v][elevation[:, v]] for v in range(n))
        for i in range(n):
            for j in range(i + 1, n):
                total = total + self.pair[i, j][elevation[:, i], elevation[:, j], (azimuth[:, i] - azimuth[:, j]) % a]
        return total

    def placements(self, view: int, others: list[int], elevation: np.ndarray, azimuth: np.ndarray) -> np.ndarray:
        """Score (K, E, A) of every place of ``view``, the views ``others`` staying where they are."""
        a = self.pair.shape[-1]
        total = np.broadcast_to(self.unary[view][None, :, None], (len(elevation), self.pair.shape[2], a)).copy()
        for other in others:
            slab = self.pair[other, view][elevation[:, other]]  # (K, E, A): last axis is azimuth other - azimuth view
            shift = (azimuth[:, other, None] - np.arange(a)) % a
            total += np.take_along_axis(slab, np.broadcast_to(shift[:, None, :], slab.shape), axis=2)
        return total


def usual_elevation(elevation_rad: np.ndarray) -> np.ndarray:
    """Log-probability, up to a constant, of elevations of any photos: a broad belief that they are taken from the side or a little above."""
    return -0.5 * ((np.rad2deg(elevation_rad) - 15) / 30) ** 2


def search_look_at(tables: Tables, grid: Grid, count: int, beam: int = 160, apart_deg: float = 20.0) -> list[Hypothesis]:
    """The best configurations on the tables, at most ``count``, best first, no two within ``apart_deg`` of each other.

    Views are added along the maximum spanning tree of the pairs' best log-probabilities (its first hypothesis is the
    published initialisation), a beam of partial configurations is kept, then every view in turn is moved to a better
    place until nothing changes (coordinate ascent).
    """
    n, a = len(tables.unary), len(grid.azimuth_rad)
    if n == 1:
        unary = tables.unary[0] if np.ptp(tables.unary[0]) else usual_elevation(grid.elevation_rad)  # alike: the network has no head for them
        order = np.argsort(-unary)[:count]
        return [Hypothesis(grid.elevation_rad[[k]], np.zeros(1), float(unary[k])) for k in order]
    edges = maximum_spanning_tree(tables.pair.max(axis=(2, 3, 4)) + np.where(np.eye(n), -np.inf, 0))
    strongest = max(edges, key=lambda edge: tables.pair[edge].max())
    order = _tree_order(edges, strongest, n)

    first, second = order[:2]
    start = tables.pair[first, second] + tables.unary[first][:, None, None] + tables.unary[second][None, :, None]
    best = _peaks(start[None], beam)
    elevation, azimuth = np.zeros((len(best), n), int), np.zeros((len(best), n), int)
    elevation[:, first], elevation[:, second], azimuth[:, first] = best[:, 1], best[:, 2], best[:, 3]
    totals = start[best[:, 1], best[:, 2], best[:, 3]]
    for position in range(2, n):
        view = order[position]
        places = tables.placements(view, order[:position], elevation, azimuth)
        places += totals[:, None, None]
        best = _peaks(places, beam)
        elevation, azimuth = elevation[best[:, 0]], azimuth[best[:, 0]]
        elevation[:, view], azimuth[:, view] = best[:, 1], best[:, 2]
        totals = places[best[:, 0], best[:, 1], best[:, 2]]
    # Everywhere for the best few, as published; near by for all, so that every mode stays a hypothesis of its own.
    everywhere = coordinate_ascent(tables, elevation[:8], azimuth[:8])
    nearby = coordinate_ascent(tables, elevation, azimuth, reach=3)
    elevation, azimuth = (np.concatenate(pair) for pair in zip(everywhere, nearby))
    totals = tables.score(elevation, azimuth)

    turned = (azimuth - azimuth[:, :1]) % a
    return distinct((Hypothesis(grid.elevation_rad[elevation[k]], grid.azimuth_rad[turned[k]], float(totals[k])) for k in np.argsort(-totals)), apart_deg, count)


def _tree_order(edges: list[tuple[int, int]], start: tuple[int, int], n: int) -> list[int]:
    """Nodes of a tree in an order in which each is joined to an earlier one, beginning with the edge ``start``."""
    order = list(start)
    while len(order) < n:
        for a, b in edges:
            if (a in order) != (b in order):
                order.append(b if a in order else a)
                break
    return order


def _peaks(values: np.ndarray, count: int) -> np.ndarray:
    """Indices (M, ndim), best first, of local maxima of ``values`` (K, ..., A): the last axis is a circle, the first a list."""
    modes = ["nearest"] * (values.ndim - 1) + ["wrap"]
    size = [1] + [3] * (values.ndim - 2) + [5]
    peaks = np.flatnonzero((values >= maximum_filter(values, size=size, mode=modes)).ravel())
    flat = values.ravel()[peaks]
    best = peaks[np.argsort(-flat, kind="stable")[:count]]
    return np.stack(np.unravel_index(best, values.shape), -1)


def coordinate_ascent(
    tables: Tables, elevation: np.ndarray, azimuth: np.ndarray, reach: int | None = None, rounds: int = 10
) -> tuple[np.ndarray, np.ndarray]:
    """Move every view of every configuration (K, N) to its best place in turn until nothing changes.

    reach: how many grid steps from its present place a view may move at a time; None for everywhere.
    """
    elevation, azimuth = elevation.copy(), azimuth.copy()
    n, a = elevation.shape[1], tables.pair.shape[-1]
    for _ in range(rounds):
        before = elevation.copy(), azimuth.copy()
        for view in range(n):
            places = tables.placements(view, [u for u in range(n) if u != view], elevation, azimuth)
            if reach is not None:
                turn = np.abs(np.arange(a) - azimuth[:, view, None])
                near = np.minimum(turn, a - turn)[:, None, :] <= reach
                near = near & (np.abs(np.arange(places.shape[1]) - elevation[:, view, None]) <= reach)[:, :, None]
                places = np.where(near, places, -np.inf)
            elevation[:, view], azimuth[:, view] = np.divmod(places.reshape(len(places), -1).argmax(1), a)
        if np.array_equal(before[0], elevation) and np.array_equal(before[1], azimuth):
            break
    return elevation, azimuth


def distinct(hypotheses: Iterable[Hypothesis], apart_deg: float, count: int | None = None) -> list[Hypothesis]:
    """The first ``count`` (None: all) that differ from every one before them, in some view, by ``apart_deg``; all share azimuth 0 at the first view."""
    kept: list[Hypothesis] = []
    rotations: list[np.ndarray] = []
    for found in hypotheses:
        own = found.rotations()
        if not kept or rotation_angle_deg(own, np.stack(rotations)).max(1).min() >= apart_deg:
            kept.append(found)
            rotations.append(own)
        if len(kept) == count:
            break
    return kept


# --- all rotations, as published --------------------------------------------------------------------------------------
def search_so3(scores: PairScores, queries: int, iterations: int, count: int, generator: np.random.Generator) -> list[tuple[np.ndarray, float]]:
    """(rotations (N, 3, 3) with the first the identity, score), best first; ``count`` starts of the published search.

    The first start takes the best rotation on every edge of the spanning tree; the others draw one of the edge's modes.
    """
    n = scores.views
    if n == 1:
        return [(np.eye(3)[None], 0.0)]
    proposals = random_rotations(queries, generator)
    modes, best = {}, np.full((n, n), -np.inf)
    for i in range(n):
        for j in range(i + 1, n):
            values = scores.pair(i, j, proposals)
            values = values - values.max() - np.log(np.exp(values - values.max()).sum())
            modes[i, j] = _rotation_modes(proposals, values, 6)
            best[i, j] = values.max()
    edges = maximum_spanning_tree(best)
    found = []
    for start in range(count):
        rotations = np.tile(np.eye(3), (n, 1, 1))
        for known, new in edges:
            i, j = min(known, new), max(known, new)
            options, logp = modes[i, j]
            probability = np.exp(logp - logp.max())
            k = 0 if start == 0 else generator.choice(len(logp), p=probability / probability.sum())
            relative = options[k] if known == j else options[k].T  # rotation of the new view from the known one
            rotations[new] = chain_rotation(relative, rotations[known])
        rotations, score = _ascend_so3(scores, rotations, queries, iterations, generator)
        found.append((rotations @ rotations[0].T, score))
    found.sort(key=lambda item: -item[1])
    return found


def _rotation_modes(rotations: np.ndarray, values: np.ndarray, count: int, apart_deg: float = 25.0) -> tuple[np.ndarray, np.ndarray]:
    """The best rotations no two of which are within ``apart_deg``, and their values."""
    chosen: list[int] = []
    for k in np.argsort(-values)[:2000]:
        if not chosen or rotation_angle_deg(rotations[chosen], rotations[k]).min() > apart_deg:
            chosen.append(int(k))
        if len(chosen) == count:
            break
    return rotations[chosen], values[chosen]


def _ascend_so3(scores: PairScores, rotations: np.ndarray, queries: int, iterations: int, generator: np.random.Generator) -> tuple[np.ndarray, float]:
    """Re-place one view after the other by the best of random proposals; half of them near its present place."""
    n, rotations = len(rotations), rotations.copy()

    def joint(view: int, proposals: np.ndarray) -> np.ndarray:
        total = np.zeros(len(proposals))
        for other in range(n):
            if other < view:
                total += scores.pair(other, view, relative_rotation(rotations[other], proposals))
            elif other > view:
                total += scores.pair(view, other, relative_rotation(proposals, rotations[other]))
        return total

    for iteration in range(iterations):
        view = iteration % n
        proposals = random_rotations(max(2, queries // 8), generator)
        half = len(proposals) // 2
        axis = generator.standard_normal((half, 3)) * np.deg2rad(20.0) * 0.93 ** (iteration // n)
        proposals[:half] = _exponential(axis) @ rotations[view]
        proposals[0] = rotations[view]
        rotations[view] = proposals[int(np.argmax(joint(view, proposals)))]
    return rotations, float(sum(joint(v, rotations[v][None])[0] for v in range(n)) / 2)


def _exponential(axis: np.ndarray) -> np.ndarray:
    """Rotations (M, 3, 3) of rotation vectors (M, 3) in radians."""
    from scipy.spatial.transform import Rotation

    return Rotation.from_rotvec(axis).as_matrix()
