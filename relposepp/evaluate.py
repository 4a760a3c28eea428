"""Measure stage 1 against true poses, and fit the weights of the re-ranking.

    python -m relposepp.evaluate [key=value ...] --type GSO_dev --views 2 3 5 8 [--out results/relposepp_GSO_dev.json]
    python -m relposepp.evaluate --alone --type GSO_dev --views 2 3 5   # every term of the re-ranking by itself
    python -m relposepp.evaluate --fit --scenes 82 --views 2 3 5        # on the validation part of the corpus
    python -m relposepp.evaluate --judge FOLDER --type GSO_dev --views 2 3  # what the judge of pairs changes, for several weights

This is evaluation: it reads the ground truth (poses/), which the stage itself never does.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, fields
from itertools import combinations
from pathlib import Path

import numpy as np

from relposepp.config import RelPoseConfig
from relposepp.rotations import look_at_rotation
from sap3d.cameras import FOV_RAD, RADIUS, rotation_angle_deg
from sap3d.config import as_dict, load_config, resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.scene import Scene, atomic_path, fingerprint, read_pose, root_dir, write_json


def pair_errors_deg(rotations: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Angles (pairs,) between estimated and true relative rotations, for all pairs of ``camera_from_world`` (N, 3, 3)."""
    i, j = np.triu_indices(len(truth), 1)
    relative = np.einsum("kab,kcb->kac", rotations[i], rotations[j])
    return rotation_angle_deg(relative, np.einsum("kab,kcb->kac", truth[i], truth[j]))


def centre_errors(estimated: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Distances (N,), object lengths, of estimated and true camera centres (N, 3), the estimated ones turned about the up axis to fit best."""
    planar = np.array([1, 1j])
    turn = np.angle(np.vdot(estimated[:, :2] @ planar, truth[:, :2] @ planar))
    turned = (estimated[:, :2] @ planar) * np.exp(1j * turn)
    return np.linalg.norm(np.stack([turned.real, turned.imag, estimated[:, 2]], -1) - truth, axis=1)


def summary(errors_by_scene: list[np.ndarray]) -> dict[str, float]:
    """Mean and median over pairs, shares under 5, 10, 15 and 30 degrees, and the mean of the scenes' medians."""
    errors = np.concatenate(errors_by_scene)
    return {
        "mean_deg": float(errors.mean()),
        "median_deg": float(np.median(errors)),
        **{f"under_{limit}": float((errors < limit).mean()) for limit in (5, 10, 15, 30)},
        "scene_median_deg": float(np.mean([np.median(e) for e in errors_by_scene])),
    }


def typed_scenes(kind: str, views: int, limit: int | None):
    """(name, photos, true rotations (N, 3, 3), true radius (N,), fields of view) of the objects of a dataset type that have enough photos.

    The fields of view are None but for photos of dataset.photos, whose true aim counts for nothing: their crops have another one.
    """
    from sap3d.cameras import camera_centers, look_at_origin
    from sap3d.images import available_objects, fields_of_view, load_input_views

    for name in available_objects(Scene(kind, "any", views))[:limit]:
        scene = Scene(kind, name, views)
        try:
            photos = load_input_views(scene, turned=False)
        except InputError as error:
            print(f"left out: {error}")
            continue
        poses = np.stack([read_pose(scene.truth_poses_dir / f"{view}.npy") for view in photos])
        fov = fields_of_view(scene, list(photos))
        rotations = (poses if fov is None else look_at_origin(camera_centers(poses)))[:, :, :3]
        yield name, list(photos.values()), rotations, np.linalg.norm(camera_centers(poses), axis=1), fov


def typed_sets(kind: str, views: int, count: int, limit: int | None, photos: int = 8, apart_deg: tuple[float, float] = (40.0, 105.0), seed: int = 0):
    """Scenes of ``views`` photos in the form of ``typed_scenes``: at most ``count`` random sets of the first ``photos`` photos of each object, the
    direction of every photo ``apart_deg`` from that of its nearest neighbour."""
    for name, images, rotations, radius, fov in typed_scenes(kind, photos, limit):
        sets = np.array(list(combinations(range(len(images)), views)))
        angle = np.rad2deg(np.arccos(np.clip(rotations[:, 2] @ rotations[:, 2].T, -1, 1))) + np.diag(np.full(len(images), 360.0))
        nearest = angle[sets[:, :, None], sets[:, None, :]].min(2)
        allowed = np.flatnonzero(((nearest > apart_deg[0]) & (nearest < apart_deg[1])).all(1))
        for k in np.sort(np.random.default_rng([seed, len(allowed)]).permutation(allowed)[:count]):
            chosen = sets[k]
            label = " ".join([name, *map(str, chosen)])
            yield label, [images[v] for v in chosen], rotations[chosen], radius[chosen], None if fov is None else [fov[v] for v in chosen]


def corpus_scenes(folder: str, part: str, views: int, count: int, seed: int):
    """Scenes of random views of the objects of one part of the corpus, in the form of ``typed_scenes``."""
    from dataset.corpus_reader import CorpusReader

    corpus = CorpusReader(folder, part, 128)
    generator = np.random.default_rng([seed, views])
    for k in range(count):
        row = k % len(corpus)
        columns = generator.permutation(corpus.views)
        if k % 2:  # every second scene at the protocol's distance, as far as there are such views
            columns = columns[np.argsort(np.abs(corpus.radius[row, columns] - RADIUS) > 1e-3, kind="stable")]
        columns = columns[:views]
        premultiplied = np.asarray(corpus.images[row][columns], np.float32) / 255
        alpha = premultiplied[..., 3:]
        photos = np.concatenate([premultiplied[..., :3] / np.maximum(alpha, 1e-3), alpha], -1)
        rotations = look_at_rotation(np.pi / 2 - corpus.polar_rad[row, columns], corpus.azimuth_rad[row, columns])
        yield corpus.names[row], list(photos), rotations, corpus.radius[row, columns].astype(float), None


def some(scenes, otherwise: str):
    """The scenes, one after the other; raises InputError with a sentence where there are none."""
    empty = True
    for scene in scenes:
        empty = False
        yield scene
    if empty:
        raise InputError(f"{otherwise}; look at --type, --views and ROOT_DIR")


def measure(scenes, network, config: RelPoseConfig, device: str) -> tuple[dict, dict]:
    """Summary and every scene's figures of the whole stage with one configuration."""
    from relposepp.estimate import estimate

    errors, seconds, table, radius_errors, elevation_errors, centres = [], [], {}, [], [], []
    for name, photos, truth, true_radius, fov in scenes:
        begin = time.monotonic()
        if config.aim == "free" and fov is None:
            fov = [FOV_RAD] * len(photos)
        found = estimate(photos, network, config, device, fov if config.aim != "exact" else None)
        seconds.append(time.monotonic() - begin)
        error = pair_errors_deg(found.hypotheses[0].rotations(), truth)
        best = min(float(np.median(pair_errors_deg(h.rotations(), truth))) for h in found.hypotheses)
        elevation = np.rad2deg(found.hypotheses[0].elevation_rad - np.arcsin(truth[:, 2, 2]))
        table[name] = {"median_deg": float(np.median(error)), "mean_deg": float(error.mean()), "best_hypothesis_deg": best}
        errors.append(error)
        radius_errors.append(np.abs(found.radius - true_radius).mean())
        elevation_errors.append(np.abs(elevation).mean())
        centres.append(centre_errors(np.stack([c.center() for c in found.cameras]), truth[:, 2] * true_radius[:, None]).mean())
    extra = {"seconds": float(np.mean(seconds)), "radius_error": float(np.mean(radius_errors)), "elevation_error_deg": float(np.mean(elevation_errors)),
             "centre_error": float(np.mean(centres)),
             "best_of_hypotheses_deg": float(np.mean([t["best_hypothesis_deg"] for t in table.values()]))}  # fmt: skip
    return summary(errors) | extra, table


# --- re-ranking: each term alone, and the fit of the weights ----------------------------------------------------------
def candidates_of(photos, network, config: RelPoseConfig, device: str):
    """The re-ranker of a scene, and the configurations that it chooses from."""
    from relposepp.estimate import features_of, propose, reranker_of
    from relposepp.inference import NetworkScores

    scores = NetworkScores(network, features_of(photos, network, device))
    reranker = reranker_of(scores, photos, config)
    return reranker, reranker.search(propose(scores, config))


def refuse_handheld(name: str, fov_rad: list[float] | None) -> None:
    """Raises InputError for a scene of photos taken by hand: configurations are compared for cameras that look at the object's centre."""
    if fov_rad is not None:
        raise InputError(f"{name}: --fit, --alone and --judge are for photos that look at the object's centre, not for those of dataset.photos; leave the option out")


def candidate_terms(scenes, network, config: RelPoseConfig, device: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """A scene: terms (K, T) of the configurations that the re-ranking chooses from, and their mean pair errors (K,)."""
    found = []
    for name, photos, truth, _, fov in scenes:
        refuse_handheld(name, fov)
        reranker, solution = candidates_of(photos, network, config, device)
        rotations = look_at_rotation(solution.elevation.double().numpy(), solution.azimuth.double().numpy())
        found.append((reranker.terms(solution), np.array([np.mean(pair_errors_deg(r, truth)) for r in rotations])))
    return found


# --- what the judge of pairs would change ------------------------------------------------------------------------------
@dataclass
class Candidates:
    """What the choice is made from, of one scene: configurations (K, N), radians, their scores without the judge (K,), what a mirror plane
    adds to them (K,) and their mean pair errors (K,), degrees; and the photos as the judge sees them."""

    name: str
    elevation: np.ndarray
    azimuth: np.ndarray
    radius: np.ndarray
    score: np.ndarray
    mirror_gain: np.ndarray
    error: np.ndarray
    photos: np.ndarray

    @staticmethod
    def write(found: list[Candidates], path: Path) -> None:
        with atomic_path(path) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, **{f"{k} {field}": value for k, one in enumerate(found) for field, value in vars(one).items()})

    @classmethod
    def read(cls, path: Path) -> list[Candidates]:
        with np.load(path) as data:
            scenes = 1 + max(int(key.split()[0]) for key in data)
            values = [{f.name: data[f"{k} {f.name}"] for f in fields(cls)} for k in range(scenes)]
        return [cls(**one | {"name": str(one["name"])}) for one in values]

    def chosen(self, bonus: np.ndarray | None = None) -> int:
        """Which one ``estimate.choose`` would take if ``bonus`` (K,) came on top of the scores; photos from anywhere and bodies of revolution are not looked for here."""
        from relposepp.estimate import SYMMETRY_CANDIDATES, SYMMETRY_WORTH, elevation_belief

        score = self.score if bonus is None else self.score + bonus
        order = np.argsort(-score, kind="stable")
        mirrored = order[score[order] > score[order[0]] - SYMMETRY_WORTH][: 2 * SYMMETRY_CANDIDATES]  # twice: near copies are not counted there
        whole = score + elevation_belief(self.elevation)
        whole[mirrored] += self.mirror_gain[mirrored]
        return int(np.argmax(whole))


def collect_candidates(scenes, network, config: RelPoseConfig, device: str, cache: Path | None = None, mirrored: int = 120) -> list[Candidates]:
    """Of all scenes; from ``cache`` where that is a file, written there otherwise. Mirror planes are looked for in the ``mirrored`` best ones."""
    from relposepp.estimate import mirror_gain
    from relposepp.symmetry import Symmetry
    from sap3d.images import resize

    if cache and cache.is_file():
        return Candidates.read(cache)
    found = []
    for name, photos, truth, _, fov in scenes:
        refuse_handheld(name, fov)
        reranker, solution = candidates_of(photos, network, config, device)
        reranker.judge = None
        score = reranker.terms(solution) @ reranker.weights
        pose = [getattr(solution, f).double().numpy() for f in ("elevation", "azimuth", "radius")]
        best, gain = np.argsort(-score)[:mirrored], np.zeros(len(score))
        gain[best] = mirror_gain(Symmetry(photos, None, reranker.consistency), *(x[best] for x in pose))
        error = np.array([np.mean(pair_errors_deg(r, truth)) for r in look_at_rotation(pose[0], pose[1])])
        found.append(Candidates(name, *pose, score, gain, error, np.stack([resize(photo, 128) for photo in photos])))
        print(f"  {name}: {len(score)} candidates, chosen {error[found[-1].chosen()]:.1f}, best {error.min():.1f} degrees", flush=True)
    if cache:
        Candidates.write(found, cache)
    return found


def compare_judge(candidates: list[Candidates], judge, weights=(0.0, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 4.0, 1000.0)) -> None:
    """Print every scene's error and the summary for some weights of the judge (the last one: the judge alone)."""
    from relposepp.judge import SceneJudge

    begin = time.monotonic()
    opinions = [SceneJudge(judge, c.photos).scores(c.elevation, c.azimuth, c.radius) for c in candidates]
    seconds = (time.monotonic() - begin) / len(candidates)
    print(f"  {'error of the choice, degrees; weight':46s}" + "".join(f"{w:7g}" for w in weights) + f"   {'best':>6s}  rank of the best by the judge ({seconds:.1f} s a scene)")
    table = np.array([[c.error[c.chosen(w * o)] for w in weights] for c, o in zip(candidates, opinions)])
    for row, c, o in zip(table, candidates, opinions):
        right = c.error < max(15.0, c.error.min() + 1)
        rank = int((o > o[right].max()).sum())
        print(f"  {c.name:46s}" + "".join(f"{e:7.1f}" for e in row) + f"   {c.error.min():6.1f}  {rank} of {len(o)}, {right.sum()} right")
    for name, figure in (("mean", np.mean), ("median", np.median), ("under 15", lambda x, axis: (x < 15).mean(axis)), ("under 30", lambda x, axis: (x < 30).mean(axis))):
        print(f"  {name:46s}" + "".join(f"{v:7.2f}" for v in figure(table, axis=0)))


def fit_weights(candidates: list[tuple[np.ndarray, np.ndarray]], steps: int = 600, ridge: float = 1e-3) -> np.ndarray:
    """Weights (T,) under which a scene's good configurations are likely: expected error of a softmax over its candidates."""
    import torch

    scale = np.concatenate([t - t.mean(0) for t, _ in candidates]).std(0).clip(1e-6)
    data = [(torch.from_numpy((t - t.mean(0)) / scale), torch.from_numpy(e)) for t, e in candidates]
    weights = torch.full((len(scale),), 0.1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.Adam([weights], lr=0.05)
    for _ in range(steps):
        loss = sum((torch.softmax(t @ weights, 0) * e.clamp(max=90)).sum() for t, e in data) / len(data) / 90 + ridge * weights.square().sum()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    return weights.detach().numpy() / scale


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m relposepp.evaluate", description=__doc__.split("\n")[0])
    parser.add_argument("--type", help="dataset type with poses/, e.g. GSO_dev")
    parser.add_argument("--part", default="validation", help="part of the corpus, where no --type is given")
    parser.add_argument("--corpus", default="dataset/corpus_cache")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 3, 5])
    parser.add_argument("--scenes", type=int, default=40, help="most scenes a number of views")
    parser.add_argument("--fit", action="store_true", help="fit the weights of the re-ranking (on the corpus only)")
    parser.add_argument("--alone", action="store_true", help="choose among the same configurations by every term alone, and by all")
    parser.add_argument("--judge", type=Path, help="folder with weights of the judge of pairs: compare the choices for some weights of its opinion")
    parser.add_argument("--sets", type=int, help="with --type: so many sets of --views photos of every object, in place of its first photos")
    parser.add_argument("--cache", type=Path, default=Path(".work"), help="with --judge: where the configurations to choose from are kept")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of the stage")
    arguments = parser.parse_args(argv)
    if any(views < 2 for views in arguments.views):
        raise InputError("--views must be at least 2: errors are those of pairs")
    if arguments.sets and not arguments.type:
        raise InputError("--sets is for the photos of a --type; the corpus has random views anyway")
    if arguments.fit and (arguments.type or arguments.part == "test"):
        raise InputError("--fit works on the corpus alone, and not on its test part: leave --type out")
    config = load_config(RelPoseConfig, None, arguments.settings)
    if (arguments.fit or arguments.alone or arguments.judge) and (config.taken == "anywhere" or config.aim == "free"):
        raise InputError("--fit, --alone and --judge compare configurations of photos from around that look at the object's centre: leave taken= and aim= out")

    from relposepp.network import TINY_WEIGHTS, load_network
    from relposepp.rerank import TERMS, WEIGHTS, weights_for

    device = resolve_device(config.device)
    network, results = load_network(config.weights, device, config.precision), {}
    for views in arguments.views:
        if arguments.sets and arguments.type:
            scenes = typed_sets(arguments.type, views, arguments.sets, arguments.scenes)
        elif arguments.type:
            scenes = typed_scenes(arguments.type, views, arguments.scenes)
        else:
            scenes = corpus_scenes(arguments.corpus, arguments.part, views, arguments.scenes, 1)
        scenes = some(scenes, f"{arguments.type or arguments.corpus}: no object with {views} photos")
        if arguments.judge:
            from relposepp.judge import load_judge

            print(f"{views} views")
            chosen_from = {"settings": as_dict(config), "scenes": arguments.scenes, "sets": arguments.sets, "corpus": arguments.corpus, "weights": [list(w) for w in WEIGHTS.values()]}
            made_of = fingerprint(chosen_from, {"network": Path(config.weights or TINY_WEIGHTS)})[:8]
            cache = arguments.cache / f"judge_candidates_{arguments.type or arguments.part}_{views}_{made_of}.npz"
            compare_judge(collect_candidates(scenes, network, config, device, cache), load_judge(arguments.judge))
            continue
        if arguments.fit or arguments.alone:
            candidates = candidate_terms(scenes, network, config, device)
            weights = fit_weights(candidates) if arguments.fit else weights_for(views)
            print(f"{views} views: weights {', '.join(f'{name} {w:.3g}' for name, w in zip(TERMS, weights))}")
            chosen = {"all": weights} | {name: np.eye(len(TERMS))[k] for k, name in enumerate(TERMS)}
            for name, w in chosen.items():
                errors = np.array([e[np.argmax(t @ w)] for t, e in candidates])
                print(f"  {name:18s} mean {errors.mean():5.1f}  median {np.median(errors):5.1f}  under 30: {np.mean(errors < 30):.2f}")
            print(f"  best candidate     mean {np.mean([e.min() for _, e in candidates]):5.1f}", flush=True)
            continue
        figures, table = measure(scenes, network, config, device)
        results[str(views)] = {"summary": figures, "scenes": table}
        print(f"{views} views: " + "  ".join(f"{name} {value:.3g}" for name, value in figures.items()), flush=True)
    if arguments.out and results:
        write_json(root_dir() / arguments.out, results)


if __name__ == "__main__":
    cli(main)
