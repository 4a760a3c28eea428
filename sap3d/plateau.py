"""When a loss has stopped falling."""

from __future__ import annotations

from typing import Sequence

import numpy as np

GAIN = 0.01  # share of the loss by which it has to fall to go on


def settled(losses: Sequence[float], patience: int) -> bool:
    """Whether the mean of the last ``patience`` losses (one a step) is not by ``GAIN`` below that of as many before; never with patience 0.

    It depends on the losses alone, so that a run that was interrupted and resumed stops where an undisturbed one does.
    """
    if patience < 1 or len(losses) < 2 * patience:
        return False
    return bool(np.mean(losses[-patience:]) > (1 - GAIN) * np.mean(losses[-2 * patience : -patience]))
