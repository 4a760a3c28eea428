"""A radiance field of the photos, which guides the novel views.

The small model's own first guess (``Zero123.first_guess``) looks at all photos anew for every view, in 32 planes, and knows nothing of the views
beside it. A field fitted to the same photos in some seconds is one shape for all views: where photos see the surface its views are nearer to the truth, and
from four photos on it leaves little that no photo sees. Two photos alone make a worse shape than the model guesses; with the model's guesses as further
pictures where no photo sees, two and three make a better one. One photo has no depth, and there is no field. What the diffusion model adds, it adds to the
mixture. (ReconFusion, arXiv 2312.02981, conditions its diffusion model on a rendered feature field of the photos for the same reason.)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sap3d.cameras import Camera
from sap3d.field.finish import Finish, finishing
from sap3d.field.fit import PhotoFit
from sap3d.field.settings import FitSettings
from sap3d.field.views import render_view
from sap3d.progress import Progress
from sap3d.zero123.sampler import OwnGuess

LEAST_VIEWS = 2  # photos from which on there is a field
GUESSED_VIEWS = 3  # and up to which it is fitted to the model's own guesses too
ALONE_VIEWS = 4  # and from which on the model's own guess is not asked, where the outlines agree
AGREED = 0.02  # object lengths that outlines may have to be let out for that (``PhotoFit.margin``): cameras with errors need more
SHARE, GUESSED_SHARE = 0.5, 0.7  # of the field in a mixture, where no photo sees the surface (where one does, all); of one that knows the guesses
BLUR = 7 / 256  # of a view's side: over what the change between the two is spread
PHOTO_DETAIL, OUTLINE_SHARPNESS = 0.75, 1.0  # as in stage 3 (sap3d/field/finish.py)
SIZE = 256  # pixels, at most, of its views


@dataclass
class PhotoField:
    """A fitted field; ``finish`` gives its views the photos' detail. alone: its views are taken as they are; else share: of them in a mixture where no photo sees."""

    fit: PhotoFit
    finish: Finish
    size: int
    alone: bool
    share: float = SHARE

    @classmethod
    def of(cls, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], mirror_plane: float | None, steps: int, seed: int = 0, device: str = "cpu",
           guesses: Mapping[str, np.ndarray] | None = None) -> PhotoField:  # fmt: skip
        """Fit to photos (straight RGBA, square) with known cameras, and mirrored ones where there is a plane (azimuth, radians).

        guesses: RGB (S, S, 3) over white of some of the protocol's test cameras, by their names; they count where no photo sees the surface.
        """
        settings = FitSettings(seed=seed, steps=steps, rays=1536, warm_start_rays=512, free_rays=384 if guesses else 0)
        fit = PhotoFit(photos, cameras, settings, device, mirror_plane, guesses)
        with Progress("camerabooth photo field", steps) as progress:
            for step in range(steps):
                fit.one_step()
                progress.update(step + 1)
        fit.occupancy.update(fit.field)
        size = min(SIZE, *(len(photo) for photo in photos.values()))
        return cls(fit, finishing(fit, size, PHOTO_DETAIL, OUTLINE_SHARPNESS), size, len(photos) >= ALONE_VIEWS and fit.margin <= AGREED, GUESSED_SHARE if guesses else SHARE)

    @torch.no_grad()
    def view(self, camera: Camera) -> tuple[Tensor, Tensor]:
        """Image (3, size, size) over white in [0, 1], and the share (1, size, size) of it in a mixture."""
        with torch.autocast(self.fit.field.bounds.device.type, enabled=False):  # bfloat16 would move rays by half a pixel
            found = self.finish(render_view(self.fit.field, self.fit.occupancy, camera, self.size), camera)
        window = 2 * round(BLUR * self.size / 2) + 1
        seen = F.avg_pool2d(found.seen[None], window, 1, window // 2, count_include_pad=False)
        return found.colour.permute(2, 0, 1), self.share + (1 - self.share) * seen

    def guess(self, targets: Sequence[Camera], own: OwnGuess, size: int) -> Tensor:
        """First guesses (B, 3, size, size) of target cameras: the field's views, or these mixed with the model's own."""
        views, share = (torch.stack(x) for x in zip(*(self.view(camera) for camera in targets)))
        if size != self.size:
            views, share = (F.interpolate(x, (size, size), mode="bilinear", align_corners=False, antialias=size < self.size) for x in (views, share))
        return views if self.alone else torch.lerp(guessed := own(), views.to(guessed), share.to(guessed))
