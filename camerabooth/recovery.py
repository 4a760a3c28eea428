"""Recovery from a camera that is grossly wrong, by re-rendering: views that the others contradict are looked for anew.

    python -m camerabooth.recovery --type T --object O --views N [key=value ...]     writes a camera file beside stage 1's
    sh run_pipeline.sh T O N GPU relpose.cameras=FILE                                goes on from it

A field is fitted to all photos but one, and rendered from a dense sphere of cameras: where it looks most like the photo left out, that photo was
taken. The best places are refined by gradients through the renderer. A view contradicts the others if it looks much more like them from somewhere
else; it is moved there if a field of all photos then fits them better, and the search begins anew with a new field (as iNeRF, arXiv 2012.05877, and
SPARF, arXiv 2211.11738, correct poses, with a search over the sphere in the place of a good start). At least three photos are needed: one alone
has no shape. docs/log.md has what it gains and costs; the pipeline does without.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Mapping

import numpy as np
import torch

from sap3d.cameras import Camera, azimuths_from_first, rotation_angle_deg
from sap3d.config import add_scene_arguments, check_limits, load_config
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.field.fit import PhotoFit
from sap3d.field.photos import PixelBank, RayCameras, pixel_bank
from sap3d.field.rendering import render
from sap3d.field.settings import FitSettings
from sap3d.field.views import render_view
from sap3d.images import load_input_views, turn_photos
from sap3d.progress import Progress
from sap3d.scene import Scene, cameras_of, read_confidence, write_cameras

LEAST_VIEWS = 3  # two photos left to make a shape of
MASK_WEIGHT = 0.3  # of the opacity's squared error beside the colour's, as in stage 3
ELEVATIONS_DEG, AZIMUTH_STEP_DEG = np.arange(-30.0, 71.0, 12.5), 10.0  # the sphere of cameras
FIT = FitSettings(grid=[24, 40], photo_sizes=[48, 96], rays=1024, free_rays=256)


@dataclass
class RecoveryConfig:
    """Settings of the command."""

    steps: int = 120  # of every fit of a field
    size: int = 40  # side of the images that are compared, pixels
    refined: int = 8  # places on the sphere that are refined
    tried: int = 3  # of these, the ones from which all photos together are tried
    refine_steps: int = 30  # steps of the refinement
    apart_deg: float = 15.0  # a place nearer to the present one is no recovery
    contradiction: float = 1.25  # errors at the present place over those at the best one: above it the others contradict the view
    gain: float = 0.9  # a move stays if the error of a field of all photos falls to this share or less
    moves: int = 3  # at most
    seed: int = 0

    def check(self) -> None:
        """Raises InputError for a value that cannot be used."""
        check_limits(
            self,
            {
                "steps": (1, 100_000), "size": (8, 512), "refined": (1, 1000), "tried": (1, 1000), "refine_steps": (0, 10_000), "apart_deg": (0, 180), "contradiction": (0, 1e6), "gain": (0, 1),
                "moves": (0, 1000),
            },
        )  # fmt: skip


@dataclass
class Placement:
    """Where a view looks most like a field of the others: cameras apart from the present one, best first, their errors, and the present one's."""

    cameras: list[Camera]
    errors: list[float]
    present_error: float

    @property
    def contradiction(self) -> float:
        """How many times larger the error at the present place is than at the best other one."""
        return self.present_error / max(self.errors[0], 1e-9) if self.errors else 0.0


@dataclass
class Recovery:
    """Cameras after the moves, in the order of the photos; the moves that stayed and those that did not; seconds."""

    cameras: dict[str, Camera]
    moves: list[dict] = field(default_factory=list)
    seconds: float = 0.0


def recover(photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: RecoveryConfig = RecoveryConfig()) -> Recovery:
    """Re-place views of photos (straight RGBA, square, by name) that the others contradict, until none is or no move helps.

    The first view keeps its azimuth: where it is the one that moves, all others turn. Fewer than three photos come back as they are.
    """
    start, found = time.monotonic(), Recovery({name: cameras[name] for name in photos})
    if len(photos) < LEAST_VIEWS:
        return found
    error, tried = whole_error(photos, found.cameras, config), set()
    while sum(move["kept"] for move in found.moves) < config.moves:
        placements = {name: place(name, photos, found.cameras, config) for name in photos}
        contradicted = [n for n in placements if placements[n].contradiction > config.contradiction and n not in tried]
        for name in sorted(contradicted, key=lambda n: -placements[n].contradiction):
            choices = [azimuths_from_first({**found.cameras, name: camera}) for camera in placements[name].cameras[: config.tried]]
            errors = [whole_error(photos, choice, config) for choice in choices]
            best = int(np.argmin(errors))
            kept = errors[best] <= config.gain * error
            found.moves.append({"view": name, "kept": kept, "rotation_deg": round(_apart_deg(placements[name].cameras[best], found.cameras[name]), 2),
                                "contradiction": round(placements[name].contradiction, 3), "error": [round(error, 6), round(errors[best], 6)]})  # fmt: skip
            if kept:
                found.cameras, error, tried = choices[best], errors[best], set()
                break
            tried.add(name)
        else:
            break
    found.seconds = time.monotonic() - start
    return found


def fit_field(photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: RecoveryConfig) -> PhotoFit:
    """A small field of the photos, fitted and frozen."""
    fit = PhotoFit(photos, cameras, replace(FIT, seed=config.seed, steps=config.steps))
    for _ in range(config.steps):
        fit.one_step()
    fit.occupancy.update(fit.field)
    fit.field.requires_grad_(False)
    return fit


def whole_error(photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: RecoveryConfig) -> float:
    """Mean error of a field of all photos in the photos themselves."""
    fit = fit_field(photos, cameras, config)
    return float(np.mean([view_error(fit, cameras[name], pixel_bank([photo], config.size)) for name, photo in photos.items()]))


def view_error(fit: PhotoFit, camera: Camera, photo: PixelBank) -> float:
    """Squared error of colour and opacity, a pixel, of the field's view from a camera against all pixels of a photo."""
    size = round(len(photo) ** 0.5)
    view = render_view(fit.field, fit.occupancy, camera, size)
    return float(_error(view.colour.view(-1, 3), view.opacity.view(-1), photo))


def _error(colour: torch.Tensor, opacity: torch.Tensor, photo: PixelBank) -> torch.Tensor:
    return (colour - photo.colour).square().mean() + MASK_WEIGHT * (opacity - photo.alpha).square().mean()


def place(name: str, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config: RecoveryConfig) -> Placement:
    """Where a photo looks most like a field of all others: a dense sphere of cameras, then gradients from the best places and from the present one."""
    fit = fit_field({n: photo for n, photo in photos.items() if n != name}, {n: c for n, c in cameras.items() if n != name}, config)
    photo, present = pixel_bank([photos[name]], config.size), cameras[name]
    radius = float(np.mean([camera.radius for n, camera in cameras.items() if n != name]))
    sphere = [Camera.from_degrees(e, a, radius, float(np.rad2deg(present.fov_rad))) for e in ELEVATIONS_DEG for a in np.arange(0, 360, AZIMUTH_STEP_DEG)]
    with Progress(f"recovery: view {name}", len(sphere)) as progress:
        errors = []
        for k, camera in enumerate(sphere):
            errors.append(view_error(fit, camera, photo))
            progress.update(k + 1)
    best = refine(fit, spread(sphere, np.array(errors), config.refined, config.apart_deg), photo, config.refine_steps)
    error_here = refine(fit, [present], photo, config.refine_steps)[0][1]
    apart: list[tuple[Camera, float]] = []
    for camera, error in sorted(best, key=lambda found: found[1]):  # several starts may have come to one place
        if all(_apart_deg(camera, other) > config.apart_deg for other in (present, *(c for c, _ in apart))):
            apart.append((camera, error))
    return Placement([c for c, _ in apart], [e for _, e in apart], error_here)


def spread(cameras: list[Camera], errors: np.ndarray, count: int, apart_deg: float) -> list[Camera]:
    """The cameras of the least errors, each at least ``apart_deg`` from all better ones."""
    chosen: list[Camera] = []
    for k in np.argsort(errors, kind="stable"):
        if all(_apart_deg(cameras[k], other) >= apart_deg for other in chosen):
            chosen.append(cameras[k])
        if len(chosen) == count:
            break
    return chosen


def _apart_deg(first: Camera, second: Camera) -> float:
    return float(rotation_angle_deg(first.camera_from_world()[:, :3], second.camera_from_world()[:, :3]))


def refine(fit: PhotoFit, starts: list[Camera], photo: PixelBank, steps: int, rate: float = 0.02) -> list[tuple[Camera, float]]:
    """Cameras after gradient steps through the renderer, each with its error before or after, whichever is less."""
    found = []
    for start in starts:
        table = RayCameras({"view": start})
        table.free.fill_(1)  # the field is the frame here
        table.delta.requires_grad_(True)
        optimiser = torch.optim.Adam([table.delta], rate)
        for step in range(steps):
            for group in optimiser.param_groups:
                group["lr"] = rate * 0.1 ** (step / steps)
            origins, directions = table.rays(photo.local, photo.view)
            seen = render(fit.field, fit.occupancy, origins, directions)
            loss = _error(seen.colour, seen.opacity, photo)
            if not loss.requires_grad:  # the camera sees nothing of the field
                break
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
        found.append(min(((camera, view_error(fit, camera, photo)) for camera in (table.current()["view"], start)), key=lambda f: f[1]))
    return found


def main() -> None:
    parser = ArgumentParser(prog="python -m camerabooth.recovery", description="Look anew for the cameras of views that the others contradict.")
    add_scene_arguments(parser)
    parser.add_argument("--cameras", type=Path, help="camera file to begin with (default: stage 1's)")
    parser.add_argument("--out", type=Path, help="camera file to write (default: config_OBJECT_view_N_recovered.yaml beside stage 1's)")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of this command, e.g. moves=1")
    arguments = parser.parse_args()
    config = load_config(RecoveryConfig, None, arguments.settings)
    scene = Scene(arguments.type, arguments.object, arguments.views)
    photos = load_input_views(scene, turned=False)
    if len(photos) < LEAST_VIEWS:
        raise InputError(f"{scene.object}: recovery needs at least {LEAST_VIEWS} photos, got {len(photos)}; with two, neither can contradict the other")
    source = arguments.cameras or scene.initial_cameras
    cameras = cameras_of(source, photos, "give the camera file of these photos")
    photos, turns = turn_photos(photos, source)
    found = recover(photos, cameras, config)
    out = arguments.out or scene.initial_cameras.with_name(scene.initial_cameras.stem + "_recovered.yaml")
    moved = {move["view"] for move in found.moves if move["kept"]}
    confidence = {name: 0.0 if name in moved else value for name, value in read_confidence(source).items() if name in photos}
    write_cameras(out, found.cameras, turns, confidence=confidence, recovery=found.moves)
    kept = [move for move in found.moves if move["kept"]]
    for move in kept:
        print(f"view {move['view']} moved by {move['rotation_deg']:.1f} degrees: error {move['error'][0]:.5f} -> {move['error'][1]:.5f}")
    print(f"{len(kept)} of {len(photos)} views moved in {found.seconds:.0f} s: {out}")


if __name__ == "__main__":
    cli(main)
