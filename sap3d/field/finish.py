"""What is done to a fitted field's views before they are shown: the photos' detail is added and outlines are sharpened."""

from __future__ import annotations

from typing import Callable

from sap3d.cameras import Camera
from sap3d.field.fit import PhotoFit
from sap3d.field.outlines import sharpen_outline
from sap3d.field.photo_colours import PhotoDetail
from sap3d.field.views import View

Finish = Callable[[View, Camera], View]


def finishing(fit: PhotoFit, size: int, photo_detail: float, outline_sharpness: float) -> Finish:
    """A function of a view and its camera; size: side in pixels at which photos and renders are compared; the amounts: see ``PhotoDetail`` and ``sharpen_outline``."""
    voxel = fit.field.voxel_size()
    detail: Finish = lambda view, camera: view  # noqa: E731
    if photo_detail > 0:
        detail = PhotoDetail(fit.field, fit.occupancy, fit.photo_sources(), size, photo_detail).add
    return lambda view, camera: sharpen_outline(detail(view, camera), camera, voxel, outline_sharpness)
