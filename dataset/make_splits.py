"""Split the corpus by object into train, validation and test; near-duplicates go to the same part.

    python -m dataset.make_splits --cache dataset/corpus_cache --out dataset/splits

The lists are committed (procedural objects have a rule of their own, ``procedural.part_of``), with ``attribution.csv`` (author
and licence of every object): run this only when the corpus itself changes. Two objects count as near-duplicates when their
names in one library agree up to digits, colours, materials and words such as "open" or "left", or when their meshes have the
same number of triangles and the same extents (one mesh in several colours).
"""

from __future__ import annotations

import csv
import io
import re
from collections import defaultdict
from pathlib import Path

from dataset.corpus import seed_of
from dataset.procedural import is_procedural
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.scene import read_json, write_text

SIZES = {"validation": 40, "test": 80}
_VARIANT_WORDS = set(
    "black white red green blue yellow orange brown grey gray pink purple beige wood wooden teak pear alder oak pine glass "
    "metal plastic open opened closed close left right small large big mini short long tall low high single double triple "
    "round rounded square rect rectangular corner half full old new modern classic contemp office kids children with and "
    "the a of for to snow whites typea typeb typec typed typee typef sit sitting standing lying down holding".split()
)


def family(identifier: str) -> str:
    """The library and name of an object without digits and words of variants."""
    library, stem = identifier.split("__")[:2]
    words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])", stem)
    words = [word.lower() for word in words]
    kept = [word for word in words if word not in _VARIANT_WORDS and len(word) > 1]
    return "-".join([library, *(kept or words)])


def groups(records: list[dict]) -> list[list[str]]:
    """Ids of near-duplicates, as lists; every object is in exactly one."""
    parent: dict[str, str] = {}

    def find(key: str) -> str:
        while parent.setdefault(key, key) != key:
            key = parent[key]
        return key

    for record in records:
        mesh = f"mesh {record['faces']} {sorted(round(x, 2) for x in record['extent'])}"
        for label in (f"name {family(record['id'])}", mesh):
            parent[find(label)] = find(record["id"])
    members = defaultdict(list)
    for record in records:
        members[find(record["id"])].append(record["id"])
    return sorted(sorted(ids) for ids in members.values())


def split(records: list[dict], test_first: tuple[str, ...] = ()) -> dict[str, list[str]]:
    """{"train", "validation", "test"} -> sorted ids. Groups with a member of ``test_first`` go to the test part first."""
    every = groups(records)
    wanted = [ids for ids in every if set(ids) & set(test_first)]
    rest = sorted((ids for ids in every if ids not in wanted), key=lambda ids: seed_of(ids[0]))
    parts: dict[str, list[str]] = {"train": [], "validation": [], "test": [i for ids in wanted for i in ids]}
    for ids in rest:
        # Large groups would fill a small part with variants of one thing.
        part = next((p for p in ("test", "validation") if len(parts[p]) < SIZES[p] and len(ids) <= 3), "train")
        parts[part] += ids
    return {part: sorted(ids) for part, ids in parts.items()}


def main() -> None:
    parser = ArgumentParser(prog="python -m dataset.make_splits", description=__doc__.split("\n")[0])
    parser.add_argument("--cache", type=Path, default=Path("dataset/corpus_cache"))
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "splits")
    parser.add_argument("--test-first", nargs="*", default=[], help="ids that must be in the test part")
    args = parser.parse_args()
    index = read_json(args.cache / "index.json")
    if not index:
        raise InputError(f"{args.cache / 'index.json'}: no corpus index; run python -m dataset.corpus first")
    records = [record for record in index["objects"] if not is_procedural(record["id"])]
    known = {record["id"] for record in records}
    for identifier in args.test_first:
        if identifier not in known:
            raise InputError(f"{identifier}: no such object in {args.cache}")
    for part, ids in split(records, tuple(args.test_first)).items():
        write_text(args.out / f"{part}.txt", "".join(f"{identifier}\n" for identifier in ids))
        print(f"{part}: {len(ids)} objects")
    buffer = io.StringIO()
    table = csv.writer(buffer, lineterminator="\n")
    table.writerow(["id", "name", "author", "licence"])
    table.writerows([record["id"], record["name"], record["author"], record["licence"]] for record in records)
    write_text(args.out / "attribution.csv", buffer.getvalue())


if __name__ == "__main__":
    cli(main)
