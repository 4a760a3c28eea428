"""Photos of one scene to scored camera configurations: network, search, absolute elevation, re-ranking, confidence."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np

from relposepp import rotations as rot
from relposepp.adjust import LEAST_VIEWS, adjust
from relposepp.config import RelPoseConfig
from relposepp.consistency import Consistency
from relposepp.inference import Grid, Hypothesis, NetworkScores, PairScores, Tables, search_look_at, search_so3, usual_elevation
from relposepp.symmetry import Symmetry
from sap3d.cameras import FOV_RAD, RADIUS, Camera, radius_at_fov, rotation_angle_deg
from sap3d.errors import InputError
from sap3d.images import resize

CROP_PADDING = 1.15  # side of the square crop over the longer side of the object's box, as published
RADIUS_RANGE = (0.9, 3.0)  # what the translation head may say, in object lengths
WELL_CONDITIONED = 0.2  # common_up_axis below this: azimuths are nearly equal or opposite
PROPOSALS = 24  # configurations by the network alone
AGREEMENT_DEG = 20.0  # hypotheses agree about a view within this angle
SYMMETRY_WORTH = 2.0  # log-likelihood ratio of a configuration whose outlines allow a mirror plane
SYMMETRY_MISSED = 0.005  # share of rays that miss the mirrored hull at which nothing of that is left
SYMMETRY_CANDIDATES = 24  # configurations whose planes are looked for
ELEVATIONS_DEG, ELEVATION_SIGMA_DEG = (0.0, 40.0), 6.0  # where photos are taken from, and the belief in that outside of the range
CONTRADICTING_VIEWS = 3  # photos that can contradict what is believed about their distances and directions; two are explained by wrong cameras too
AROUND_WORTH = 2.0  # log-likelihood ratio of those beliefs, where they are not certain
# By number of photos: how far the longest side of the hull is believed, and its median over that of the object (forty validation objects of the corpus, true cameras).
HULL_SIDE = {4: (0.5, 1.05), 5: (1.0, 1.025)}
ACCEPTED_MISSED = 0.012  # the same share up to which stages 2 and 3 take mirrored photos
EXPLAINED_MISSED = 0.05  # share of rays that miss the hull without any mirror: cameras that explain less of the photos say nothing about a plane
ACCEPTED_COLOURS = 0.015  # with two photos, whose hull has nearly any mirror plane: what their colours must say for it (``MirrorPlane.colours``)


@dataclass
class Estimate:
    """Cameras (in the order of the photos), all kept hypotheses (best first) and how sure they are.

    confidence: a view, in [0, 1]: the share of the hypotheses' probability that puts the view within 20 degrees of the
    chosen place, relative to the first view. checks: facts for the report. turn_rad (N, 3): how the photos have to be turned for the
    cameras to look at the origin without roll (sap3d.images.turn_photo), None where they do. mirror_plane_rad: azimuth of the object's mirror plane, where it has one.
    """

    cameras: list[Camera]
    hypotheses: list[Hypothesis]
    probabilities: np.ndarray
    confidence: np.ndarray
    radius: np.ndarray
    checks: dict = field(default_factory=dict)
    turn_rad: np.ndarray | None = None
    mirror_plane_rad: float | None = None


def network_inputs(images: list[np.ndarray], size: int, cropped: bool) -> tuple[np.ndarray, np.ndarray]:
    """Straight RGBA photos (S, S, 4) to premultiplied network images (N, 4, size, size) and crop parameters (N, 3).

    cropped: cut the square around the object, padded, as the published network wants it; its crop parameters are minus the
    centre and the width of the crop in coordinates of [-1, 1] across the photo. Otherwise the whole photo (0, 0, 2).
    """
    out, parameters = [], []
    for image in images:
        crop = (0.0, 0.0, 2.0)
        if cropped:
            image, crop = _crop_to_object(image)
        small = resize(image, size)
        out.append(np.concatenate([small[..., :3] * small[..., 3:], small[..., 3:]], -1).transpose(2, 0, 1))
        parameters.append(crop)
    return np.stack(out).astype(np.float32), np.array(parameters, np.float32)


def _crop_to_object(image: np.ndarray) -> tuple[np.ndarray, tuple[float, float, float]]:
    side = image.shape[0]
    rows, columns = (np.flatnonzero((image[..., 3] > 0.4).any(axis)) for axis in (1, 0))
    if not len(rows):
        return image, (0.0, 0.0, 2.0)
    half = int(np.ceil(CROP_PADDING * max(np.ptp(rows) + 1, np.ptp(columns) + 1) / 2))
    row, column = int(round((rows[0] + rows[-1] + 1) / 2)), int(round((columns[0] + columns[-1] + 1) / 2))
    padded = np.pad(image, ((half, half), (half, half), (0, 0)))
    cut = padded[row : row + 2 * half, column : column + 2 * half]
    return cut, (1 - 2 * column / side, 1 - 2 * row / side, 4 * half / side)


def estimate(images: list[np.ndarray], network, config: RelPoseConfig, device: str = "cpu", handheld_fov_rad: list[float] | None = None) -> Estimate:
    """Cameras of N >= 1 photos (straight RGBA, square) of one object; azimuth is counted from the first photo.

    handheld_fov_rad: across each photo, where they were taken by hand (relposepp/handheld.py); None: the protocol's, aims exact.
    """
    features = features_of(images, network, device)
    return choose(NetworkScores(network, features), radius_of(network, features), images, config, handheld_fov_rad)


def features_of(images: list[np.ndarray], network, device: str = "cpu"):
    """The network's features (N, D), a tensor, of the photos of one scene."""
    import torch

    config = network.config
    inputs, crop = network_inputs(images, config.image_size, config.crop_bases > 0)
    with torch.no_grad():
        crop_tensor = torch.from_numpy(crop)[None].to(device) if config.crop_bases else None
        return network.features(torch.from_numpy(inputs)[None].to(device), crop_tensor)[0]


def radius_of(network, features) -> np.ndarray:
    """Radius (N,) by the translation head, within what can be; the protocol's where the head says nothing finite."""
    import torch

    with torch.no_grad():
        translations = network.translations(features[None])[0].float().cpu().numpy()
    radius = np.linalg.norm(translations, axis=1) * network.TRANSLATION_UNIT
    return np.clip(np.where(np.isfinite(radius), radius, RADIUS), *RADIUS_RANGE)


def choose(scores: PairScores, radius: np.ndarray, images: list[np.ndarray], config: RelPoseConfig, handheld_fov_rad: list[float] | None = None) -> Estimate:
    """Search by the scores of the pairs alone, or with ``rerank`` by the outlines, judged by all that the photos say; adjust what was taken by hand; report."""
    proposals, reranker, anywhere, facts = propose(scores, config), None, False, {}
    if config.rerank and scores.views > 1:
        proposals, reranker, anywhere = searched(proposals, scores, images, config, handheld_fov_rad)
    symmetry = Symmetry(images, handheld_fov_rad, reranker and reranker.consistency) if config.symmetry and scores.views > 1 else None
    if symmetry and reranker:
        proposals = symmetric_first(proposals, symmetry)
    if reranker and not handheld_fov_rad and not anywhere:  # those by hand are drawn from a belief in elevations already
        proposals = from_above_first(proposals)
    if reranker and handheld_fov_rad and scores.views >= LEAST_VIEWS:
        before, proposals[0] = proposals[0], adjust(images, handheld_fov_rad, proposals[0], seed=config.seed)
        facts["adjusted_deg"] = np.round(rotation_angle_deg(before.rotations(), proposals[0].rotations()), 1).tolist()
    if anywhere:
        proposals[0] = rescaled(proposals[0], reranker.consistency)
        facts["taken"] = "anywhere"
    if reranker and not handheld_fov_rad and scores.views >= CONTRADICTING_VIEWS and reranker.contradicted(proposals[0]):
        facts["outlines_missed"] = round(reranker.missed(proposals[0]), 4)
    found = finish(proposals, radius, scores, config, handheld_fov_rad)
    found.checks |= facts
    if symmetry:
        found.mirror_plane_rad, facts = accepted_plane(symmetry, found.cameras, found.turn_rad)
        found.checks |= facts
    return found


def searched(proposals: list[Hypothesis], scores: PairScores, images: list[np.ndarray], config: RelPoseConfig, handheld_fov_rad: list[float] | None = None):
    """Configurations by the search by outlines and all that judges them, best first; the ``Reranker`` that did it; whether they are those of photos from anywhere."""
    anywhere = config.taken == "anywhere" and not handheld_fov_rad
    reranker = reranker_of(scores, images, config, handheld_fov_rad, anywhere)
    found = reranker.run(proposals)
    if config.taken == "auto" and not handheld_fov_rad and scores.views >= CONTRADICTING_VIEWS and reranker.contradicted(found[0]):
        other = replace(reranker, anywhere=True)
        others = other.run(proposals)
        if others[0].score > found[0].score + AROUND_WORTH:
            return others, other, True
    return found, reranker, anywhere


def rescaled(hypothesis: Hypothesis, consistency: Consistency) -> Hypothesis:
    """The hypothesis with its distances, known up to one factor, in units of the object's longest side, as far as its hull shows that (``HULL_SIDE``); for the rest, the
    protocol's distance on average."""
    trust, excess = HULL_SIDE.get(min(len(hypothesis.radius), max(HULL_SIDE)), (0.0, 1.0))
    factor = RADIUS / hypothesis.radius.mean()
    side = consistency.longest_side(hypothesis.elevation_rad, hypothesis.azimuth_rad, hypothesis.radius) if trust else 0.0
    if side > 0:
        factor = (excess / side) ** trust * factor ** (1 - trust)
    return replace(hypothesis, radius=hypothesis.radius * factor)


def symmetric_first(hypotheses: list[Hypothesis], symmetry: Symmetry) -> list[Hypothesis]:
    """The hypotheses, best first, with what a mirror plane is worth added to their scores.

    Most things have one. The right cameras then have a plane for which hull and mirrored hull fill the outlines; wrong ones seldom do. Where
    the object has none, no configuration does, and all lose the same.
    """
    kept = [h for h in hypotheses if h.score > hypotheses[0].score - SYMMETRY_WORTH][:SYMMETRY_CANDIDATES]
    pose = [np.stack([getattr(h, name) for h in kept]) for name in ("elevation_rad", "azimuth_rad", "radius")]
    turn = None if kept[0].turn_rad is None else np.stack([h.turn_rad for h in kept])
    scored = [replace(h, score=h.score + gain) for h, gain in zip(kept, mirror_gain(symmetry, *pose, turn))] + hypotheses[len(kept) :]
    return sorted(scored, key=lambda h: -h.score)


def from_above_first(hypotheses: list[Hypothesis]) -> list[Hypothesis]:
    """The hypotheses, best first, with a belief in their elevations added to their scores: photos of a thing on a table look down by ``ELEVATIONS_DEG``, and
    from below it they would have been taken through the table. Last of all, so that judge and mirror plane are asked about what the photos show."""
    believed = [replace(h, score=h.score + float(elevation_belief(h.elevation_rad))) for h in hypotheses]
    return sorted(believed, key=lambda h: -h.score)


def elevation_belief(elevation_rad: np.ndarray) -> np.ndarray:
    """Log-probability, up to a constant, of the elevations (..., N) of N photos: 0 within ``ELEVATIONS_DEG``."""
    elevation, (low, high) = np.rad2deg(elevation_rad), ELEVATIONS_DEG
    outside = np.maximum(low - elevation, 0) + np.maximum(elevation - high, 0)
    return -0.5 * np.square(outside / ELEVATION_SIGMA_DEG).sum(-1)


def mirror_gain(symmetry: Symmetry, elevation_rad: np.ndarray, azimuth_rad: np.ndarray, radius: np.ndarray, turn_rad: np.ndarray | None = None) -> np.ndarray:
    """What the best mirror plane is worth (K,), 0 to ``SYMMETRY_WORTH``, to configurations (K, N)."""
    missed = symmetry.missed(elevation_rad, azimuth_rad, radius, np.deg2rad(np.arange(0, 180, symmetry.STEP_DEG)), turn_rad).min(1)
    return SYMMETRY_WORTH * (1 - np.minimum(missed / SYMMETRY_MISSED, 1))


def accepted_plane(symmetry: Symmetry, cameras: list[Camera], turn_rad: np.ndarray | None = None) -> tuple[float | None, dict]:
    """Azimuth, radians, of the best mirror plane if the photos bear it out well enough for stages 2 and 3, else None; and facts for the report."""
    pose = np.array([[np.pi / 2 - c.polar_rad, c.azimuth_rad, c.radius] for c in cameras]).T
    plane = symmetry.best(*pose, turn_rad)
    facts = {"azimuth_deg": round(float(np.rad2deg(plane.azimuth_rad)), 2), "missed": round(plane.missed, 4), "colours": round(plane.colours, 3)}
    explained = symmetry.photos.missed(*pose, turn_rad) <= EXPLAINED_MISSED
    accepted = explained and plane.missed <= ACCEPTED_MISSED and (len(cameras) > 2 or plane.colours >= ACCEPTED_COLOURS)
    return plane.azimuth_rad if accepted else None, {"mirror_plane": facts}


def reranker_of(scores: PairScores, images: list[np.ndarray], config: RelPoseConfig, handheld_fov_rad: list[float] | None = None, anywhere: bool = False):
    from relposepp.multistart import Effort
    from relposepp.rerank import Reranker

    grid = look_at_grid(config)
    effort = Effort(starts=config.starts, keep_first=3 * config.beam, keep=2 * config.beam, stirred=config.beam // 4)
    return Reranker.of(Tables.of(scores, grid), grid, images, effort, config.candidates, config.seed, handheld_fov_rad, config.judge, anywhere, config.network_weight)


def look_at_grid(config: RelPoseConfig) -> Grid:
    return Grid.from_degrees(config.elevation_range_deg, config.elevation_step_deg, config.azimuth_step_deg)


def propose(scores: PairScores, config: RelPoseConfig) -> list[Hypothesis]:
    """Scored configurations by the search that ``config.search`` names, best first."""
    if config.search == "look_at":
        grid = look_at_grid(config)
        return search_look_at(Tables.of(scores, grid), grid, max(PROPOSALS, config.hypotheses))
    if config.search == "so3":
        found = search_so3(scores, config.queries, config.iterations, max(config.hypotheses, 4), np.random.default_rng(config.seed))
        return [Hypothesis(*upright(rotations, scores), score) for rotations, score in found]
    raise InputError(f"search={config.search!r} is unknown: use look_at or so3")


def upright(rotations: np.ndarray, scores: PairScores) -> tuple[np.ndarray, np.ndarray]:
    """Elevation and azimuth (N,) of rotations known up to one turn of the world, in radians.

    N >= 2: by the cameras' common up axis. Where it is not determined (azimuths equal or opposite) the free angle is the one
    that the elevation head finds most likely; for one view all there is is that head.
    """
    if len(rotations) > 1:
        elevation, azimuth, conditioning = rot.elevations_from_rotations(rotations)
        if conditioning >= WELL_CONDITIONED:
            return elevation, azimuth
    _, _, vt = np.linalg.svd(np.asarray(rotations)[:, 0, :])
    angles = np.deg2rad(np.arange(0.0, 360.0, 2.0))
    ups = np.cos(angles)[:, None] * vt[1] + np.sin(angles)[:, None] * vt[2]  # across the cameras' common x axis
    elevations = np.arcsin(np.clip(np.einsum("nc,kc->kn", rotations[:, 2], ups), -1, 1))
    total = sum(_elevation_score(scores, v, elevations[:, v]) for v in range(len(rotations)))
    total = total + 10.0 * np.minimum(0, np.einsum("nc,kc->kn", rotations[:, 1], ups)).sum(1)  # not upside down
    up = ups[int(np.argmax(total))]
    world = rot.rotation_between(up, np.array([0.0, 0.0, 1.0]))
    backward = np.asarray(rotations)[:, 2] @ world.T
    azimuth = np.arctan2(backward[:, 1], backward[:, 0])
    return np.arcsin(np.clip(backward[:, 2], -1, 1)), rot.wrap_to_pi(azimuth - azimuth[0])


def _elevation_score(scores: PairScores, view: int, elevation_rad: np.ndarray) -> np.ndarray:
    """The head's log-probability, over the broad belief of ``usual_elevation``."""
    return scores.elevation(view, elevation_rad) + usual_elevation(elevation_rad)


def finish(hypotheses: list[Hypothesis], radius: np.ndarray, scores: PairScores, config: RelPoseConfig, fov_rad: list[float] | None = None) -> Estimate:
    """Keep the best hypotheses, measure their agreement and turn the first into cameras."""
    kept = hypotheses[: config.hypotheses]
    values = np.array([h.score for h in hypotheses])
    probabilities = np.exp(values - values.max())
    probabilities /= probabilities.sum()
    best = kept[0].rotations()
    angles = np.stack([rotation_angle_deg(h.rotations(), best) for h in hypotheses])
    confidence = (probabilities[:, None] * (angles < AGREEMENT_DEG)).sum(0)
    if len(radius) > 1:
        confidence[0] = confidence[1:].mean()  # the first view is the frame: it is as sure as the others are about it
    if kept[0].radius is not None:
        radius = np.clip(kept[0].radius, *RADIUS_RANGE)
    elif fov_rad:  # the translation head has seen the protocol's field of view alone
        radius = radius_at_fov(radius, fov_rad)
    cameras = rot.cameras_from_angles(kept[0].elevation_rad, kept[0].azimuth_rad, radius, fov_rad or [FOV_RAD] * len(radius))
    grid = np.deg2rad(np.arange(-50.0, 75.0, 2.5))
    heads = [scores.elevation(v, grid) for v in range(len(radius))]
    checks = {"elevation_head_deg": [round(float(np.rad2deg(grid[int(np.argmax(h))])), 1) for h in heads]} if np.ptp(heads) else {}
    if len(radius) > 1:
        checks["up_axis_conditioning"] = round(rot.elevations_from_rotations(best)[2], 3)
    return Estimate(cameras, kept, probabilities[: len(kept)], confidence, radius, checks, kept[0].turn_rad)
