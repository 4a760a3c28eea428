"""Our Zero-1-to-3 and RelPose++ against the reference implementations: the same seeded weights and inputs, relative errors of the outputs.

    python -m benchmarks.parity --zero123 CHECKOUT --clip CHECKOUT --relposepp CHECKOUT --work FOLDER --size full
    python -m benchmarks.parity --work FOLDER                    compare with what the references gave before

CHECKOUT: see benchmarks.reference, which makes the expected outputs in FOLDER/expected in a process of its own. Ours then go the way of a
published file: a checkpoint of seeded weights in FOLDER, read, checked, converted and loaded as python -m sap3d.weights and the stages do it.
Status 1 where an error is above 1e-4. Size full takes 16 GB of memory and 12 GB of disk, small (as the committed tests) 2 GB.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import torch

import sap3d.compat  # noqa: F401
from benchmarks.reference import check_pairs
from benchmarks.seeded import seeded, seeded_state
from safetensors.torch import load_file
from sap3d.cameras import FOV_RAD, RADIUS
from sap3d.errors import ArgumentParser, InputError, cli

LIMIT = 1e-4  # of relative errors of the norm, fp32
SIZES = ("small", "medium", "full")


def relative_error(found: torch.Tensor, expected: torch.Tensor) -> float:
    if found.shape != expected.shape:
        raise ValueError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    return float((found - expected).norm() / expected.norm())


# --- seeded files -----------------------------------------------------------------------------------------------------
def expected_shapes(folder: Path, name: str) -> dict[str, list[int]]:
    path = Path(folder) / f"{name}.json"
    if not path.is_file():
        raise InputError(f"{path}: no expected outputs there; give the checkouts of the references too (python -m benchmarks.parity --help)")
    return json.loads(path.read_text())


def zero123_state(folder: Path) -> dict[str, torch.Tensor]:
    """The state of the reference's checkpoint by the recipe of benchmarks.seeded, of the names and shapes in ``folder``."""
    return seeded_state(expected_shapes(folder, "zero123"))


def relposepp_state(folder: Path) -> dict[str, torch.Tensor]:
    """Parameters by the recipe; blurs, octaves and positions as the published file holds them."""
    from relposepp.network import sinusoid_table

    wanted = expected_shapes(folder, "relposepp")
    line = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
    state = {name: (line[:, None] * line)[None, None].repeat(shape[0], 1, 1, 1) for name, shape in wanted.items() if name.endswith(".filt")}
    state["embedding"] = 2 ** torch.arange(8).view(1, 1, 8)
    state["feature_extractor.feature_positional_encoding.pos_table_1"] = sinusoid_table(8, 2096)[None]
    return state | seeded_state({name: shape for name, shape in wanted.items() if name not in state})


# --- comparisons ------------------------------------------------------------------------------------------------------
def zero123_inputs(expected: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The inputs of benchmarks.reference in our form: images in [0, 1], poses of eight numbers."""
    side = expected["unet"].shape[-1]
    images = (seeded("images", (2, 3, 8 * side, 8 * side)).tanh() + 1) / 2
    tangent = math.tan(FOV_RAD / 2)  # of the field of view that the reference knows, so that its four numbers are all there is
    pose = torch.cat([0.5 * seeded("pose", (2, 4)), torch.tensor([[0.0, RADIUS, tangent, tangent]] * 2)], 1)
    return {"images": images, "pose": pose, "latents": seeded("latents", (2, 4, side, side)), "noise": seeded("noise", (2, 4, side, side))}


@torch.no_grad()
def zero123_errors(model, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative errors by the names of the expected outputs; ``view``: of the decoded picture in [0, 1] beside them."""
    from sap3d.zero123.sampler import ddim_step, sampling_timesteps

    given = zero123_inputs(expected)
    found = {"alphas_cumprod": model.alphas_cumprod, "vae_mode": model.encode_target(given["images"]) / 0.18215, "vae_decoded": model.vae.decode(given["latents"]).sample}
    features = model.encode_condition(given["images"])
    conditions = model.conditions(features, given["pose"])
    found |= {"clip": features.tokens, "projected": conditions[0]}
    t = torch.tensor([100, 800])
    found["unet"] = model.predict(given["latents"], t, features, given["pose"])
    # One training loss with all conditions, and one with the token of the first and the concatenation of the second dropped.
    noisy = model.add_noise(given["latents"], given["noise"], t)
    for name, kept in (("loss_all", ()), ("loss", (torch.tensor([0.0, 1.0]), torch.tensor([1.0, 0.0])))):
        out = model.predict(noisy, t, features, given["pose"], *kept)
        found[name] = (out - model.training_target(given["latents"], given["noise"], t)).square().mean()[None]
    timesteps = sampling_timesteps(model, 50)
    found["ddim_step"] = ddim_step(model, given["noise"], timesteps, timesteps.tolist().index(261), *conditions, 3.0)
    timesteps, latents = sampling_timesteps(model, 4), given["noise"]
    for step in range(4):  # from noise to the end, the last step included
        latents = ddim_step(model, latents, timesteps, step, *conditions, 3.0)
    found["ddim_sample"] = latents
    errors = {name: relative_error(value, expected[name]) for name, value in found.items()}
    errors["concatenated"] = relative_error(conditions[1], expected["vae_mode"])  # the mode, not scaled
    errors["view"] = relative_error(model.decode(0.18215 * given["latents"]), (expected["vae_decoded"] / 2 + 0.5).clamp(0, 1))
    return errors


@torch.no_grad()
def relposepp_errors(network, expected: dict[str, torch.Tensor]) -> dict[str, float]:
    """Relative errors of features (every 16th number), rotation scores and translations."""
    images = seeded("images", (1, 3, 3, 224, 224)).tanh() * 0.5 + 0.5
    features = network.features(torch.cat([images, torch.ones(1, 3, 1, 224, 224)], 2), 0.3 * seeded("crop", (1, 3, 3)))
    found = {
        "features": features[..., ::16],
        "scores": network.scores(features, [(0, 1), (0, 2), (1, 2)], expected["rotations"]),
        "translations": network.translations(features)[0],
    }
    return {name: relative_error(value, expected[name]) for name, value in found.items()}


# --- the whole check --------------------------------------------------------------------------------------------------
def compare_zero123(folder: Path, work: Path) -> dict[str, float]:
    from sap3d.published.convert import convert
    from sap3d.published.sources import read_published
    from sap3d.zero123 import load_zero123

    expected = load_file(folder / "zero123.safetensors")
    torch.save({"global_step": 105000, "state_dict": zero123_state(folder)}, work / "105000.ckpt")
    convert(read_published(work / "105000.ckpt"), work / "zero123", image_size=8 * expected["unet"].shape[-1])
    (work / "105000.ckpt").unlink()
    return zero123_errors(load_zero123(work / "zero123"), expected)


def compare_relposepp(folder: Path, work: Path) -> dict[str, float]:
    from relposepp.network import load_network, save_network
    from relposepp.published import load_published

    torch.save({"state_dict": relposepp_state(folder)}, work / "ckpt_000400000.pth")
    save_network(work / "relposepp", load_published(work / "ckpt_000400000.pth"), half=False)
    (work / "ckpt_000400000.pth").unlink()
    return relposepp_errors(load_network(work / "relposepp"), load_file(folder / "relposepp.safetensors"))


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.parity", description=__doc__.splitlines()[0])
    for name in ("zero123", "clip", "relposepp"):
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT", help="reference implementation, outside of this repository")
    parser.add_argument("--work", type=Path, required=True, metavar="FOLDER", help="expected outputs and converted weights")
    parser.add_argument("--size", choices=SIZES, default="small", help="of the networks that the references make")
    arguments = parser.parse_args()
    check_pairs(arguments)
    expected = arguments.work / "expected"
    for wanted in ({"zero123": arguments.zero123, "clip": arguments.clip}, {"relposepp": arguments.relposepp}):
        given = [part for name, path in wanted.items() if path is not None for part in (f"--{name}", str(path))]
        if given:
            done = subprocess.run([sys.executable, "-m", "benchmarks.reference", *given, "--size", arguments.size, "--out", str(expected)])
            if done.returncode:
                raise SystemExit(done.returncode)
    names = [name for name in ("zero123", "relposepp") if (expected / f"{name}.json").is_file()]
    if not names:
        expected_shapes(expected, "zero123")
    worst = 0.0
    for name in names:
        errors = {"zero123": compare_zero123, "relposepp": compare_relposepp}[name](expected, arguments.work)
        print(f"{name}: {sum(torch.Size(s).numel() for s in expected_shapes(expected, name).values()):,} numbers")
        for key, value in errors.items():
            print(f"  {key:16s} relative error {value:.1e}" + ("" if value < LIMIT else f"  ABOVE {LIMIT:.0e}"), flush=True)
        worst = float(np.max([worst, *errors.values()]))  # NaN where one is
    print(f"largest relative error {worst:.1e}, limit {LIMIT:.0e}")
    if not worst < LIMIT:
        raise SystemExit(1)


if __name__ == "__main__":
    cli(main)
