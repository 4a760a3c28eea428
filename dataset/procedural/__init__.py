"""Procedural objects of the training corpus: toys and compositions of painted shapes, each made from its id alone.

    mesh = load_object("procedural__00042")       # a RenderMesh: z up, centred, longest side 1, the same on every machine
    items = list_objects(2400)                    # what python -m dataset.corpus --procedural 2400 renders

Modules: shapes; paint (colours, patterns, printed pictures); model (parts into a mesh, compositions); animals, living,
vehicles, vessels and things (the other families, listed in ``FAMILIES``).
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

import numpy as np

from dataset.procedural import animals, living, things, vehicles, vessels
from dataset.procedural.model import Model, composite
from dataset.procedural.paint import Dice
from dataset.procedural.shapes import rotation
from sap3d.errors import InputError
from sap3d.mesh_load import RenderMesh

VERSION = 1  # raised when ids give other objects than before: they are then rendered again
PREFIX = "procedural__"
LIBRARY = "procedural"
SOURCE = "procedural objects made by this project (dataset/procedural)"
FAMILIES = {  # name -> how to make one, weight
    "composite": (composite, 24),
    "creature": (animals.creature, 17),
    "figure": (living.figure, 9),
    "plant": (living.plant, 5),
    "vehicle": (vehicles.vehicle, 12),
    "craft": (vehicles.craft, 5),
    "vessel": (vessels.vessel, 9),
    "package": (things.package, 9),
    "shoe": (things.shoe, 6),
    "gadget": (things.gadget, 8),
}


@dataclass(frozen=True)
class ProceduralObject:
    id: str

    def record(self) -> dict:
        name = family_of(self.id)
        return {
            "id": self.id,
            "name": f"{name} {number_of(self.id)}",
            "category": name,
            "author": "made by this project",
            "licence": "CC0-1.0",
            "library": LIBRARY,
            "member": f"version {VERSION}",
        }

    def load(self) -> RenderMesh:
        return load_object(self.id)


def list_objects(count: int) -> list[ProceduralObject]:
    return [ProceduralObject(f"{PREFIX}{number:05d}") for number in range(count)]


def number_of(identifier: str) -> int:
    match = re.fullmatch(rf"{PREFIX}(\d{{5,}})", identifier)
    if not match:
        raise InputError(f"{identifier}: no id of a procedural object, they are {PREFIX}00000, {PREFIX}00001, ..")
    return int(match[1])


def is_procedural(identifier: str) -> bool:
    return identifier.startswith(PREFIX)


def part_of(identifier: str) -> str:
    """The part of the corpus, by the number alone: 4 of 120 are for testing, 3 for validation, the others for training."""
    rest = number_of(identifier) % 120
    return "test" if rest % 30 == 11 else "validation" if rest % 40 == 5 else "train"


def _dice(identifier: str, purpose: str) -> Dice:
    number_of(identifier)
    return Dice(int.from_bytes(hashlib.sha256(f"{purpose} {identifier}".encode()).digest()[:8], "little"))


def family_of(identifier: str) -> str:
    return _dice(identifier, "family").weighted({name: weight for name, (_, weight) in FAMILIES.items()})


def load_object(identifier: str, family: str | None = None) -> RenderMesh:
    """The object of an id; ``family`` overrides the one that belongs to it (for tests and pictures)."""
    name = family or family_of(identifier)
    dice = _dice(identifier, "shape")
    model = Model(dice)
    FAMILIES[name][0](model)
    # The azimuth is any; some things lie on their side, compositions more often.
    turn = rotation(z_deg=dice.pick(0, 90, 180, 270) if dice.chance(0.4) else dice(0, 360))
    if dice.chance({"composite": 0.35, "gadget": 0.3, "vessel": 0.07, "package": 0.15}.get(name, 0.0)):
        turn = turn @ rotation(*dice.pick((90, 0, 0), (0, 90, 0), tuple(dice.vector(-180, 180))))
    return model.finish(np.asarray(turn), shade=dice(0, 0.22))
