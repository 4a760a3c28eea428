"""More shapes for training: every object of the corpus's training part stretched along its axes, seen from new cameras.

    python -m relposepp.stretch --source sweethome3d-furniture_1.8-1_all.deb [--out .work/relposepp/stretched]

A chair twice as wide is another chair, with the same front. One file an object, so that a second run goes on where the first
stopped. The folder is then given to training: ``python -m relposepp.train stretched=FOLDER``.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sap3d.cameras import Camera
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.progress import Progress
from sap3d.scene import atomic_path

VIEWS, SIZE = 16, 128


class StretchedCorpus:
    """The files of a folder as one corpus (relposepp/data.py): images, polar_rad, azimuth_rad, radius, names."""

    def __init__(self, folder: Path | str):
        paths = sorted(Path(folder).glob("*.npz"))
        if not paths:
            raise InputError(f"{folder}: no stretched objects; run python -m relposepp.stretch --out {folder}")
        self.names = [f"stretched {path.stem}" for path in paths]
        self.images = np.empty((len(paths), VIEWS, SIZE, SIZE, 4), np.uint8)
        poses = np.empty((len(paths), VIEWS, 3), np.float64)
        for row, path in enumerate(paths):
            try:
                with np.load(path) as data:
                    self.images[row], poses[row] = data["images"], data["poses"]
            except (OSError, ValueError, KeyError) as error:
                raise InputError(f"{path}: cannot be used ({str(error).splitlines()[0]}); delete it and run relposepp.stretch again") from None
        self.polar_rad, self.azimuth_rad, self.radius = poses.transpose(2, 0, 1)


def stretched_views(mesh, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """One object (sap3d.mesh_render.RenderMesh), stretched: images (VIEWS, SIZE, SIZE, 4) uint8 premultiplied, poses (VIEWS, 3)."""
    from dataset.corpus import sample_cameras
    from dataset.corpus_reader import premultiplied
    from sap3d.mesh_render import MeshRenderer, normalise_vertices, random_lighting

    scale = np.exp(np.clip(generator.normal(0, 0.35, 3), -0.6, 0.6))
    mesh.vertices = normalise_vertices(mesh.vertices * scale, mesh.faces)[0].astype(np.float32)
    renderer, lighting, poses = MeshRenderer(mesh), random_lighting(generator), sample_cameras(generator, VIEWS)
    images = [renderer.render(Camera(*pose).camera_from_world(), size=SIZE, lighting=lighting) for pose in poses]
    return np.stack([premultiplied(np.round(image * 255).astype(np.uint8)) for image in images]), poses


def main(argv: list[str] | None = None) -> None:
    from dataset import sweethome
    from dataset.corpus import seed_of
    from dataset.corpus_reader import split_ids

    parser = ArgumentParser(prog="python -m relposepp.stretch", description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help=f"folder, .deb or .sh3f; {sweethome.HOW_TO_GET}")
    parser.add_argument("--out", type=Path, default=Path(".work/relposepp/stretched"))
    parser.add_argument("--shard", default="0/1", help="k/n: only every n-th object from the k-th, to share the work")
    arguments = parser.parse_args(argv)
    part, parts = (int(x) for x in arguments.shard.split("/"))
    wanted = set(split_ids("train"))
    items = [i for i in sweethome.list_objects(sweethome.find_libraries(arguments.source, arguments.out / "libraries")) if i.id in wanted]
    items = items[part::parts]
    with Progress("stretch", len(items)) as progress:
        for count, item in enumerate(items, 1):
            path = arguments.out / f"{item.id}.npz"
            if not path.exists():
                images, poses = stretched_views(sweethome.load_object(item), np.random.default_rng([seed_of(item.id), 1]))
                with atomic_path(path) as temporary:
                    np.savez_compressed(temporary, images=images, poses=poses)
            progress.update(count)


if __name__ == "__main__":
    cli(main)
