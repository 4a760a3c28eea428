"""Photos as the condition of a model: the one form in which every caller hands them to ``Zero123.encode_condition``."""

from __future__ import annotations

from typing import Mapping

import numpy as np
import torch
from torch import Tensor

from sap3d.images import composite_white, resize

CONDITION_SIZE = 256  # the largest picture any of the encoders uses


def photos_over_white(images: Mapping[str, np.ndarray], size: int = CONDITION_SIZE) -> Tensor:
    """Photos keyed by view name as a tensor (N, 4, size, size), colour over white and coverage, in the mapping's order."""
    resized = [resize(image, size) for image in images.values()]
    views = [np.concatenate([composite_white(image), image[..., 3:]], -1) for image in resized]
    return torch.from_numpy(np.stack(views)).permute(0, 3, 1, 2).float()
