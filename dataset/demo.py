"""Make what the repository bundles: the objects of ``GSO_demo`` and the pack of regulariser objects.

    python -m dataset.demo --source sweethome3d-furniture_1.8-1_all.deb [--cache dataset/corpus_cache]
    python -m dataset.demo --source sweethome3d-furniture_1.8-1_all.deb --test-objects 40    # others of the test part, to measure on

The demo objects are stand-ins for Google Scanned Objects, in their layout and under their protocol, from the TEST part of
the training corpus; the regulariser objects are from its TRAIN part. All are CC0 or CC-BY; ATTRIBUTION.md beside them
names author, licence and source of each.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np

from dataset import procedural, sweethome
from dataset.corpus_reader import CorpusReader, split_ids
from dataset.render import RenderSettings, render_object
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.regularisers import write_pack
from sap3d.scene import root_dir, write_text

TYPE = "GSO_demo"
DEMO = {  # object name -> corpus id
    "teddy_bear": "blendswap-cc-0__teddyBear",
    "ankle_boots": "blendswap-cc-0__bootie",
    "beetle_car": "katorlegaz__VW-new-beetle",
    "cactus": "blendswap-cc-0__cactus",
    "armchair": "scopia__armchair2",
    "cordless_drill": "scopia__perceuse-electrique",
    "chicken": "blendswap-cc-0__chicken",
}
SETTINGS = RenderSettings(views=8, texture_size=512)
TEST_TYPE = "CORPUS_test"  # of further test objects, which are not bundled
REGULARISERS = 48
_LEGAL = {
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
}


def choose_regularisers(corpus: CorpusReader, count: int) -> list[int]:
    """Rows of ``count`` objects that differ most: farthest-point sampling over 8 x 8 thumbnails, averaged over the views.

    Thin and tiny objects are left out (mean alpha below 0.08), and so are objects without any colour and procedural ones.
    """
    thumbnails, usable = [], []
    for name, views in zip(corpus.names, corpus.images):
        small = views.reshape(len(views), 8, corpus.size // 8, 8, corpus.size // 8, 4).mean((2, 4)) / 255
        white = small[..., :3] + 1 - small[..., 3:]
        thumbnails.append(white.mean(0).ravel())
        total = small.sum((0, 1, 2))
        colour = total[:3] / max(total[3], 1e-6)
        usable.append(not procedural.is_procedural(name) and small[..., 3].mean() > 0.08 and (np.ptp(colour) > 0.05 or small[..., :3].std() > 0.2))
    thumbnails, usable = np.stack(thumbnails), np.flatnonzero(usable)
    if len(usable) < count:
        raise InputError(f"only {len(usable)} objects of the corpus can serve as regularisers, {count} are wanted; render all of it first")
    chosen = [int(usable[0])]
    distance = np.linalg.norm(thumbnails - thumbnails[chosen[0]], axis=1)
    while len(chosen) < count:
        chosen.append(int(usable[np.argmax(distance[usable])]))
        distance = np.minimum(distance, np.linalg.norm(thumbnails - thumbnails[chosen[-1]], axis=1))
    return sorted(chosen)


def attribution(title: str, changes: str, rows: list[tuple[str, dict]]) -> str:
    """A Markdown table of name, original, author, licence."""
    lines = [f"# {title}", "", f"Source: {sweethome.SOURCE}. {changes}", "", "| object | original | author | licence |", "|---|---|---|---|"]
    for name, record in rows:
        licence = f"[{record['licence']}]({_LEGAL[record['licence']]})" if record["licence"] in _LEGAL else record["licence"]
        lines.append(f"| {name} | {record['name']} ({record['library']}: `{record['member']}`) | {record['author']} | {licence} |")
    return "\n".join(lines) + "\n"


def make_demo(items: dict[str, sweethome.CorpusObject], root: Path) -> None:
    test = set(split_ids("test"))
    rows = []
    for name, identifier in DEMO.items():
        if identifier not in test:
            raise InputError(f"{identifier}: is not in the test part of the corpus and cannot be bundled")
        written = render_object(sweethome.load_object(items[identifier]), TYPE, name, root, SETTINGS)
        print(f"{name}: {'rendered' if written else 'already there'}", flush=True)
        rows.append((name, items[identifier].record()))
    changes = (
        "Changes: turned to z up, centred, scaled to a longest side of 1, triangulated; textures reduced to 512 pixels; "
        "the images are renders of the meshes. These objects stand in for Google Scanned Objects and are none."
    )
    write_text(root / "dataset" / "data" / "train" / TYPE / "ATTRIBUTION.md", attribution("Bundled demo objects", changes, rows))


def test_objects(count: int) -> list[str]:
    """``count`` corpus ids of the test part without the demo objects, evenly spread over its list: the same ones every time."""
    ids = [identifier for identifier in split_ids("test") if identifier not in DEMO.values()]
    if not 1 <= count <= len(ids):
        raise InputError(f"--test-objects {count}: the test part has {len(ids)} objects beside those of the demo")
    return [ids[k] for k in np.linspace(0, len(ids) - 1, count).round().astype(int)]


def make_test_objects(items: dict[str, sweethome.CorpusObject], root: Path, count: int) -> None:
    """Render ``test_objects`` as ``TEST_TYPE`` under the demo objects' settings; what is there already stays."""
    for identifier in test_objects(count):
        written = render_object(sweethome.load_object(items[identifier]), TEST_TYPE, identifier, root, SETTINGS)
        print(f"{identifier}: {'rendered' if written else 'already there'}", flush=True)


def make_regularisers(cache: Path, root: Path, count: int = REGULARISERS) -> None:
    corpus = CorpusReader(cache, "train", size=64)
    rows = choose_regularisers(corpus, count)
    objects = {}
    for row in rows:
        with np.load(cache / "objects" / f"{corpus.names[row]}.npz") as data:
            blob, offsets = data["webp"].tobytes(), data["offsets"]
            poses = np.stack([data["polar_rad"], data["azimuth_rad"], data["radius"]], -1)
        objects[corpus.names[row]] = ([blob[a:b] for a, b in zip(offsets, offsets[1:])], poses)
    folder = root / "dataset" / "data" / "objaverse"
    records = {corpus.names[row]: corpus.records[row] for row in rows}
    licences = {uid: record["licence"] for uid, record in records.items()}
    authors = {uid: record["author"] for uid, record in records.items()}
    write_pack(folder / "regularisers.npz", objects, licences, authors)
    changes = "Changes: the files are renders of the meshes, 24 views each at 128 pixels, packed in regularisers.npz."
    write_text(folder / "ATTRIBUTION.md", attribution("Bundled regulariser objects", changes, sorted(records.items())))
    print(f"{len(rows)} regulariser objects in {folder / 'regularisers.npz'}")


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.demo", description=__doc__.split("\n")[0])
    parser.add_argument("--source", type=Path, required=True, help=f"folder, .deb or .sh3f; {sweethome.HOW_TO_GET}")
    parser.add_argument("--cache", type=Path, help="rendered corpus: build the pack of regulariser objects too")
    parser.add_argument("--test-objects", type=int, metavar="COUNT", help=f"make so many other test objects as {TEST_TYPE}, and nothing else")
    parser.add_argument("--root", type=Path, help="write below this folder (default: ROOT_DIR or the repository)")
    args = parser.parse_args()
    root = args.root or root_dir()
    with tempfile.TemporaryDirectory(prefix="demo_") as unpacked:
        items = {item.id: item for item in sweethome.list_objects(sweethome.find_libraries(args.source, Path(unpacked)))}
        wanted = DEMO.values() if args.test_objects is None else test_objects(args.test_objects)
        missing = [identifier for identifier in wanted if identifier not in items]
        if missing:
            raise InputError(f"{args.source}: has no object {missing[0]}; give all five libraries")
        if args.test_objects is not None:
            return make_test_objects(items, root, args.test_objects)
        make_demo(items, root)
    if args.cache is not None:
        make_regularisers(args.cache, root)


if __name__ == "__main__":
    cli(main)
