"""Seconds and memory of a step of score distillation in stage 3: in tiles against the whole image at once, hashed against dense grids.

    python -m benchmarks.recon [--sizes 64 128 256 512] [--fields dense hash] [--out docs/results_rows/recon_step.json]

The step is the pipeline's own (``backward_in_tiles`` of 3D_Recon/threestudio/prior.py) with a given gradient at the image in the place of a
diffusion model's, on a ball in a grid of 96^3 voxels: one render without a graph, then the rays that matter again with one, a tile at a time or
all at once. Each case runs in a process of its own; memory is what the process grows by beyond the field itself (resident size, peak).
"""

from __future__ import annotations

import argparse
import importlib
import json
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

from sap3d.cameras import Camera
from sap3d.errors import ArgumentParser, cli
from sap3d.field import fields, rendering
from sap3d.field.photos import camera_rays
from sap3d.results import markdown_table
from sap3d.scene import write_json

VOXELS = 96**3
RADIUS = 0.4  # of the ball, in a box of half side 0.5
STEPS = 3


def ball(kind: str):
    """(field, occupancy): cells of a ball in a dense grid, and the field to be measured. What it holds decides nothing about the cost:
    the samples are those that the ball's occupancy keeps."""
    bounds = torch.tensor([[-0.5] * 3, [0.5] * 3])
    field = fields.DenseGrid(bounds, VOXELS, 1.0, torch.full((3,), 0.5))
    z, y, x = field.values.shape[2:]
    points = torch.stack(torch.meshgrid(*(torch.linspace(-0.5, 0.5, n) for n in (z, y, x)), indexing="ij"), -1)
    values = field.values.detach().clone()
    values[0, 0] = (RADIUS - points.norm(dim=-1)) * 60 - 1
    field.set_values(values)
    occupancy = rendering.Occupancy(bounds, torch.ones(64, 64, 64, dtype=torch.bool))
    occupancy.update(field)
    return field if kind == "dense" else fields.FIELDS[kind](bounds, VOXELS), occupancy


def one(kind: str, size: int, tile: int) -> dict:
    """Measured in this process; ``tile`` rays hold a graph at a time, 0: all of them."""
    prior = importlib.import_module("3D_Recon.threestudio.prior")
    field, occupancy = ball(kind)
    origins, directions = camera_rays(Camera.from_degrees(20, 30), size)
    gradient = torch.from_numpy(np.random.default_rng(0).normal(size=(size * size, 3)).astype(np.float32)) / (size * size)
    draw = lambda o, d: rendering.render(field, occupancy, o, d)  # noqa: E731
    for parameter in field.parameters():
        parameter.grad = torch.zeros_like(parameter)

    def step() -> None:
        with torch.no_grad():
            for rows in torch.arange(len(origins)).split(tile or len(origins)):
                draw(origins[rows], directions[rows])
        prior.backward_in_tiles(draw, origins, directions, gradient, tile or len(origins))

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    step()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.perf_counter()
    for _ in range(STEPS):
        step()
    return {"field": kind, "pixels": size, "tile": tile, "seconds_a_step": (time.perf_counter() - began) / STEPS, "memory_mb": (peak - before) / 1024}


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.recon", description=__doc__.splitlines()[0])
    parser.add_argument("--sizes", type=int, nargs="+", default=[64, 128, 256, 512])
    parser.add_argument("--fields", nargs="+", choices=("dense", "hash"), default=["dense", "hash"])
    parser.add_argument("--tile", type=int, default=8192, help="rays that hold a graph at a time (recon.tile_rays)")
    parser.add_argument("--out", type=Path, help="JSON file for the figures")
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        print(json.dumps(one(arguments.one[0], int(arguments.one[1]), int(arguments.one[2]))))
        return
    rows, lines = [], []
    for kind in arguments.fields:
        for size in arguments.sizes:
            pair = []
            for tile in (arguments.tile, 0):
                done = subprocess.run([sys.executable, "-m", "benchmarks.recon", "--one", kind, str(size), str(tile)], stdout=subprocess.PIPE, text=True)
                if done.returncode:
                    raise SystemExit(done.returncode)
                pair.append(json.loads(done.stdout.strip().splitlines()[-1]))
            rows += pair
            tiled, plain = pair
            ratios = [f"{tiled[key] / max(plain[key], 1e-9):.2f}" for key in ("memory_mb", "seconds_a_step")]
            lines.append([kind, str(size), *(f"{row[key]:{form}}" for row in pair for key, form in (("seconds_a_step", ".2f"), ("memory_mb", ".0f"))), *ratios])
            print(json.dumps(pair), flush=True)
    print(markdown_table(["field", "pixels", "tiled: s", "MB", "whole: s", "MB", "memory, tiled / whole", "time, tiled / whole"], lines))
    if arguments.out:
        write_json(arguments.out, rows)


if __name__ == "__main__":
    cli(main)
