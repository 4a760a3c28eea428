"""Global search for cameras by the outlines alone: thousands of starts at once, views added one by one.

The equations of relposepp/tangency.py are exact but have many solutions: with three views a few dozen to hundreds (a curve of
them with two views, or where two views are opposite), with five a handful. So three views are solved from random starts, all
distinct solutions are kept, every further view is tried in all places beside every one of them, and all views are refined
together. Which solution is right is for relposepp/rerank.py to say.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.tangency import EXACT, Slack, Solution, Tangency, axes_of

COARSE_RAD, MIDDLE_RAD = 0.03, 0.004  # width of the residuals at the start of the first and of the second refinement
HOPELESS = 60.0  # partial configurations of a larger cost are not carried on (100 is the largest there is)
PLACES = (16, 36)  # elevations and azimuths of the grid on which a further view is tried
CHUNK = 200_000  # configurations worked on at once


@dataclass
class Effort:
    """How much is tried."""

    starts: int = 40_000  # random configurations of the first three views
    keep_first: int = 600  # distinct solutions kept of two or three views
    keep: int = 400  # distinct solutions kept of more views
    stirred: int = 40  # solutions that are shaken
    copies: int = 16  # shaken copies of each
    best: int = 8  # solutions of all views that are shaken once more
    best_copies: int = 96  # shaken copies of each
    apart_deg: float = 3.0  # two solutions are one when no view differs by more


def random_starts(count: int, views: int, elevation_range_deg: tuple[float, float], radius: float, generator: np.random.Generator):
    """Elevation, azimuth (0 at the first view) and radius (count, views): uniform on the sphere between two elevations."""
    low, high = np.sin(np.deg2rad(elevation_range_deg))
    elevation = np.arcsin(generator.uniform(low, high, (count, views)))
    azimuth = generator.uniform(-np.pi, np.pi, (count, views))
    azimuth[:, 0] = 0
    return torch.from_numpy(elevation).float(), torch.from_numpy(azimuth).float(), torch.full((count, views), float(radius))


def rotations_of(solution: Solution) -> torch.Tensor:
    """``camera_from_world`` (K, N, 3, 3)."""
    return torch.stack(axes_of(solution.elevation, solution.azimuth), -2)


def distinct(solution: Solution, count: int, apart_deg: float) -> Solution:
    """The best ``count`` solutions of which no two have all views within ``apart_deg`` of each other, best first."""
    return solution[spread_out(solution, torch.argsort(solution.cost, stable=True), count, apart_deg)]


def spread_out(solution: Solution, order: torch.Tensor, count: int, apart_deg: float) -> torch.Tensor:
    """The first ``count`` places of ``order`` (M,) whose solutions are not within ``apart_deg``, in all views, of an earlier one's."""
    rotations = rotations_of(solution[order]).flatten(2)
    limit = 1 + 2 * float(np.cos(np.deg2rad(apart_deg)))  # trace of a rotation by that angle
    kept, alive = [], torch.ones(len(rotations), dtype=torch.bool)
    for k in range(len(rotations)):
        if alive[k]:
            kept.append(k)
            if len(kept) == count:
                break
            alive[k + 1 :] &= (rotations[k + 1 :] * rotations[k]).sum(-1).amin(1) <= limit
    return order[torch.tensor(kept, dtype=torch.long)]


def refine(tangency: Tangency, elevation, azimuth, radius, views: list[int], keep: int, apart_deg: float, slack: Slack = EXACT) -> Solution:
    """Levenberg-Marquardt in two rounds, the second for the better part only; distinct solutions, best first."""
    solution = tangency.solve(elevation, azimuth, radius, views, 5, MIDDLE_RAD, start_sigma=COARSE_RAD, slack=slack)
    solution = solution[torch.argsort(solution.cost, stable=True)[: max(3 * keep, len(elevation) // 4)]]
    # The belief in the radii is about those that a round begins with, and the cost holds nothing against them: over rounds they may drift further.
    solution = tangency.solve(solution.elevation, solution.azimuth, solution.radius, views, 6, start_sigma=MIDDLE_RAD, slack=slack, turn=solution.turn)
    return distinct(solution, keep, apart_deg)


def solve_first(tangency: Tangency, views: list[int], effort: Effort, elevation_range_deg, radius: float, generator, slack: Slack = EXACT) -> Solution:
    """Solutions for two or three views from random starts."""
    starts = random_starts(effort.starts, len(views), elevation_range_deg, radius, generator)
    cost = tangency.cost(*starts, views, COARSE_RAD)
    best = torch.argsort(cost, stable=True)[: max(1, effort.starts // 4)]
    return refine(tangency, *(x[best] for x in starts), views, effort.keep_first, effort.apart_deg, slack)


def add_view(tangency: Tangency, solution: Solution, views: list[int], new: int, elevation_range_deg, radius: float, places: int = 4):
    """Starts (K * places, n + 1) with the view ``new`` at its best places, local minima of a grid, beside every solution."""
    rows, columns = PLACES
    grid = torch.meshgrid(torch.deg2rad(torch.linspace(*elevation_range_deg, rows)), torch.arange(columns) * 2 * np.pi / columns, indexing="ij")
    grid_elevation, grid_azimuth = (g.reshape(-1) for g in grid)
    size, n, found = rows * columns, len(views), []
    for k in range(0, len(solution.cost), max(1, CHUNK // size)):
        part = solution[slice(k, k + max(1, CHUNK // size))]
        count = len(part.cost)

        def joined(known, added):
            return torch.cat([known[:, None].expand(-1, size, -1), added[None, :, None].expand(count, -1, 1)], 2).reshape(count * size, n + 1)

        starts = joined(part.elevation, grid_elevation), joined(part.azimuth, grid_azimuth), joined(part.radius, torch.full((size,), float(radius)))
        cost = tangency.cost(*starts, [*views, new], COARSE_RAD, [(v, n) for v in range(n)]).reshape(count, rows, columns)
        around = F.pad(F.pad(cost[:, None], (1, 1, 0, 0), mode="circular"), (0, 0, 1, 1), value=torch.inf)
        minimum = -F.max_pool2d(-around, 3, 1)[:, 0]
        cost = torch.where(cost <= minimum, cost, cost + 1e3).reshape(count, size)
        chosen = (torch.topk(cost, places, 1, largest=False).indices + torch.arange(count)[:, None] * size).reshape(-1)
        found.append([x[chosen] for x in starts])
    return [torch.cat(x) for x in zip(*found)]


def stir(tangency: Tangency, solution: Solution, effort: Effort, generator, slack: Slack = EXACT) -> Solution:
    """The best solutions shaken and refined again: near a solution there is often a better one behind a low ridge."""
    views, best = list(range(solution.elevation.shape[1])), solution[: effort.stirred]
    n, copies = len(best.cost), effort.copies
    width = np.deg2rad(generator.choice([3.0, 6.0, 12.0], (n * copies, 1)))
    moves = [torch.from_numpy(generator.normal(0, width, (n * copies, len(views)))).float() for _ in range(2)]
    moves[1][:, 0] = 0
    elevation, azimuth, radius = (x.repeat_interleave(copies, 0) for x in (best.elevation, best.azimuth, best.radius))
    found = refine(tangency, elevation + moves[0], azimuth + moves[1], radius, views, effort.keep, effort.apart_deg, slack)
    return distinct(solution.joined(found), effort.keep, effort.apart_deg)


def search_outlines(tangency: Tangency, effort: Effort, elevation_range_deg, radius: float, generator: np.random.Generator, slack: Slack = EXACT) -> Solution:
    """Distinct configurations of all the views (N >= 2) whose outlines agree, best first.

    radius: of all cameras, in object lengths; slack: how far it may be wrong (aims are exact here; relposepp/handheld.py frees them).
    """
    views = list(range(min(3, tangency.views)))
    return extend(tangency, solve_first(tangency, views, effort, elevation_range_deg, radius, generator, slack), effort, elevation_range_deg, radius, generator, slack)


def extend(tangency: Tangency, solution: Solution, effort: Effort, elevation_range_deg, radius: float, generator, slack: Slack = EXACT) -> Solution:
    """Distinct configurations of all the views that begin like solutions of the first ones, best first; the solutions themselves where there are no more views."""
    views = list(range(solution.elevation.shape[1]))
    for new in range(len(views), tangency.views):
        hopeful = int((solution.cost < HOPELESS).sum())
        starts = add_view(tangency, solution[: max(hopeful, 20)], views, new, elevation_range_deg, radius)
        views = [*views, new]
        solution = refine(tangency, *starts, views, effort.keep, effort.apart_deg, slack)
        solution = stir(tangency, solution, effort, generator, slack)
    if len(views) > 3:  # from here on the right solution stands out, if it is met: more tries near few solutions
        solution = stir(tangency, solution, replace(effort, stirred=effort.best, copies=effort.best_copies), generator, slack)
    return solution
