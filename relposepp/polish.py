"""The best configurations moved a little, made to agree with the outlines and judged again, in ever smaller steps.

Where outlines leave whole families of solutions (cameras of unknown distance or aim, few photos), a search can keep only samples of them, and
what judges them knows more than outlines do: the best of the samples point to where better ones are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch

from relposepp.multistart import spread_out
from relposepp.tangency import Solution

Rounds = Sequence[tuple[float, int, int]]  # width of the moves in degrees, configurations moved, copies of each


def polish(
    solution: Solution, score: np.ndarray, agree: Callable[..., Solution], judge: Callable[[Solution], np.ndarray], rounds: Rounds, generator: np.random.Generator,
    apart_deg: float = 0.0, distances: bool = False, most: int | None = None,
) -> tuple[Solution, np.ndarray]:  # fmt: skip
    """The configurations with moved ones added, and all their scores (K,), larger is better.

    agree: makes elevation, azimuth, radius (K, N) and turn (K, N, 3) agree with the outlines; judge: scores (K,) of a Solution. apart_deg: of two
    configurations whose views are all nearer than this only the better one is moved; 0: both are. distances: move them too, by as many object lengths as radians.
    most: moved ones a round, where that is fewer.
    """
    for width_deg, top, copies in rounds:
        top = top if most is None else max(1, min(top, most // copies))
        kept = solution[best(solution, score, top, apart_deg)]
        moved = agree(*_moved(kept, np.deg2rad(width_deg), copies, generator, distances))
        solution, score = solution.joined(moved), np.concatenate([score, judge(moved)])
    return solution, score


def best(solution: Solution, score: np.ndarray, count: int, apart_deg: float) -> torch.Tensor:
    """Places (count,), at most, of the configurations of the largest scores, no two within ``apart_deg`` of each other."""
    order = torch.from_numpy(np.argsort(-score, kind="stable").copy())
    return spread_out(solution, order, count, apart_deg) if apart_deg else order[:count]


def _moved(kept: Solution, width: float, copies: int, generator: np.random.Generator, distances: bool) -> list[torch.Tensor]:
    """``copies`` of every configuration, moved by ``width`` radians at random; the first azimuth stays."""
    elevation, azimuth, radius, turn = (x.repeat_interleave(copies, 0) for x in (kept.elevation, kept.azimuth, kept.radius, kept.turn))
    moves = [torch.from_numpy(generator.normal(0, width, elevation.shape)).float() for _ in range(3 if distances else 2)]
    moves[1][:, 0] = 0
    return [elevation + moves[0], azimuth + moves[1], radius + moves[2] if distances else radius, turn]
