"""Kills the pipeline with SIGKILL at many moments spread over all its parts, fills its disk, interrupts it, and resumes.

    python -m tests.crash_safety [--moments 6] [--random 6]

prints what was done to each part, and whether the files at the end are those of an undisturbed run; exit status 1 if not.
Every attempt is a real process, forked from this one after it has imported the stages: that is what makes dozens of them
affordable. The moments are drawn from the file operations of an undisturbed run: ``--moments`` in each part, every second
operation kind alike, so that some fall between writing a file and putting it in its place and some before a file is begun;
``--random`` more fall anywhere, by the clock.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib
import json
import os
import random
import re
import signal
import sys
import tempfile
import time
from pathlib import Path

from sap3d.config import load_config
from sap3d.errors import cli
from sap3d.scene import Scene, file_hash
from tests.tiny_scene import SETTINGS, make_tiny_object

STAGES = (("relposepp.run", "relposepp.config", "RelPoseConfig", "relpose"), ("camerabooth.run", "camerabooth.config", "BoothConfig", "booth"),
          ("3D_Recon.threestudio.launch", "3D_Recon.threestudio.config", "ReconConfig", "recon"), ("sap3d.evaluate", "sap3d.evaluate", "EvaluationConfig", "eval"))  # fmt: skip
LIBRARIES = ("torch", "sap3d.compat", "diffusers", "lpips", "trimesh", "xatlas", "imageio.v2", "camerabooth.training", "camerabooth.nvs", "relposepp.estimate", "relposepp.network", "3D_Recon.threestudio.export",
             "3D_Recon.threestudio.optimise", "3D_Recon.threestudio.prior", "sap3d.zero123", "sap3d.metrics.image", "sap3d.metrics.shape")  # fmt: skip
PARTS = {  # by where an operation writes
    "stage 1": "camerabooth/configs/", "training": "camerabooth/experiments_TINY", "novel views": "camerabooth/experiments_nvs",
    "NeRF": "3D_Recon/threestudio/experiments_TINY_view_3_nerf", "mesh": "3D_Recon/threestudio/experiments_TINY_mesh", "evaluation": "results/",
}  # fmt: skip
_TEMPORARY = re.compile(r"\.tmp-[a-z0-9_]{8}")
CHECKPOINTS = ("checkpoint.pt", "last.pt")  # written again and again: killed at the second in every attempt


def import_stages() -> None:
    """Everything the stages use, before the first fork; nothing is computed here, as PyTorch's threads do not survive a fork."""
    for name in (*LIBRARIES, *(stage[0] for stage in STAGES)):
        importlib.import_module(name)


def run_stages(scene: Scene, checkpoint_seconds: float = 0.0) -> None:
    importlib.import_module("camerabooth.training")._CHECKPOINT_SECONDS = checkpoint_seconds
    for module, config_module, config_class, prefix in STAGES:
        settings = [s for s in SETTINGS[prefix] if not s.startswith("checkpoint_seconds")] + ([f"checkpoint_seconds={checkpoint_seconds}"] if prefix == "recon" else [])
        config = load_config(getattr(importlib.import_module(config_module), config_class), None, settings)
        importlib.import_module(module).main(scene, config)


def operations(scene: Scene, act) -> None:
    """From now on ``act(key)`` is called before every file below the outputs is begun ("open") or put in its place ("rename")."""
    root = str(scene.root)

    def hook(event, arguments):
        if event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR) and isinstance(arguments[0], (str, os.PathLike)):
            path = os.fspath(arguments[0])
        elif event == "os.rename":
            path = os.fspath(arguments[1])
        else:
            return
        if isinstance(path, str) and path.startswith(root):
            act(f"{event.removeprefix('os.')} {_TEMPORARY.sub('.tmp', os.path.relpath(path, root))}")

    sys.addaudithook(hook)


def attempt(scene: Scene, log: Path, before=None, checkpoint_seconds: float = 0.0) -> int:
    """Fork a process that runs all stages; its id."""
    log.write_text("")
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        stream = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(stream, 1)
        os.dup2(stream, 2)
        if before is not None:
            before()
        cli(lambda: run_stages(scene, checkpoint_seconds))
        status = 0
    except SystemExit as ending:
        status = ending.code
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        os._exit(status)


def ended(child: int) -> int:
    """Exit status of a child, negative for a signal."""
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def outputs(root: Path) -> dict[str, str]:
    """Hash of every output, without what holds times: records, logs, results.json (whose figures are compared apart), checkpoints."""
    found = {}
    for path in sorted(p for top in ("camerabooth", "3D_Recon", "results") for p in (root / top).rglob("*") if p.is_file()):
        if not ("record" in path.name or path.suffix in (".pt", ".log") or path.name in ("results.json", "table.md", "table.csv")):
            found[str(path.relative_to(root))] = file_hash(path)
    return found


def figures(scene: Scene) -> dict:
    result = json.loads((scene.results_dir / "results.json").read_text())[0]
    return {key: value for key, value in result.items() if key not in ("seconds", "stages", "peak_memory_mb")}


def differences(scene: Scene, reference: Scene) -> list[str]:
    """What is not as in the undisturbed run; leftovers of kills too."""
    expected, found = outputs(reference.root), outputs(scene.root)
    wrong = [name for name in {**expected, **found} if expected.get(name) != found.get(name)]
    wrong += ["figures"] if figures(scene) != figures(reference) else []
    return wrong + [str(path) for path in scene.root.rglob(".*")]


def part_of(key: str) -> str | None:
    path = key.split(" ", 1)[1]
    return next((part for part, start in PARTS.items() if path.startswith(start)), None)


def choose(trace: list[str], count: int) -> list[str]:
    """``count`` operations a part, evenly spread over the different ones, in the order in which they come; checkpoints one more time."""
    chosen = []
    for part in PARTS:
        keys = list(dict.fromkeys(key for key in trace if part_of(key) == part))
        picked = {keys[round(k * (len(keys) - 1) / max(count - 1, 1))] for k in range(count)} if keys else set()
        for key in keys:
            if key.startswith("rename") and key.endswith(CHECKPOINTS):
                chosen += [key, key]
            elif key in picked:
                chosen.append(key)
    return chosen


def kill_at(key: str):
    """Prepares a process that is killed just before the operation ``key``; for a checkpoint at its second."""
    left = 2 if key.endswith(CHECKPOINTS) else 1

    def act(found):
        nonlocal left
        left -= found == key
        if not left:
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def killed_at_moments(folder: Path, reference: Scene, trace: list[str], count: int) -> tuple[dict[str, int], list[str]]:
    scene, kills, faults = make_tiny_object(folder / "moments"), dict.fromkeys(PARTS, 0), []
    for key in choose(trace, count):
        status = ended(attempt(scene, folder / "log", lambda: operations(scene, kill_at(key))))
        if status == -signal.SIGKILL:
            kills[part_of(key)] += 1
        else:
            faults.append(f"not killed at {key}: status {status}: {(folder / 'log').read_text()[-300:]}")
    status = ended(attempt(scene, folder / "log"))
    return kills, faults + ([f"status {status}: {(folder / 'log').read_text()[-300:]}"] if status else differences(scene, reference))


def killed_at_random(folder: Path, reference: Scene, count: int, seconds: float) -> tuple[int, list[str]]:
    scene, generator, kills = make_tiny_object(folder / "random"), random.Random(0), 0
    for _ in range(count):
        child = attempt(scene, folder / "log")
        time.sleep(generator.uniform(0.02, 0.6) * seconds)
        os.kill(child, signal.SIGKILL)
        kills += ended(child) == -signal.SIGKILL
    status = ended(attempt(scene, folder / "log"))
    return kills, [f"status {status}"] if status else differences(scene, reference)


def interrupt_at_third_step(number: int) -> None:
    """Prepares a process that gets the signal ``number`` while it computes the third step of its training."""
    training, steps = importlib.import_module("camerabooth.training"), 0
    step_loss = training._step_loss

    def counted(*arguments):
        nonlocal steps
        steps += 1
        if steps == 3:
            os.kill(os.getpid(), number)
        return step_loss(*arguments)

    signal.signal(signal.SIGINT, signal.default_int_handler)
    training._step_loss = counted


def interrupted(folder: Path, reference: Scene) -> list[str]:
    """SIGTERM, then Ctrl-C, in the middle of training: a checkpoint is written because of it, and the run ends with 143 and 130."""
    scene, faults = make_tiny_object(folder / "interrupted"), []
    checkpoint = scene.personal_dir / "checkpoint.pt"
    for number, expected in ((signal.SIGTERM, 143), (signal.SIGINT, 130)):
        before = checkpoint.stat().st_mtime_ns if checkpoint.is_file() else None
        status = ended(attempt(scene, folder / "log", lambda: interrupt_at_third_step(number), checkpoint_seconds=1e9))
        written = checkpoint.is_file() and checkpoint.stat().st_mtime_ns != before
        if status != expected or not written or "interrupted: run the same command again" not in (folder / "log").read_text():
            faults.append(f"{number.name}: status {status}, checkpoint {written}: {(folder / 'log').read_text()[-300:]}")
    status = ended(attempt(scene, folder / "log"))
    return faults + ([f"status {status}"] if status else differences(scene, reference))


def full_disk(folder: Path, reference: Scene) -> list[str] | None:
    """Every folder of outputs on a disk of 16 kB, one after another, then on one with room. None where mounting is not allowed."""
    libc = ctypes.CDLL(None, use_errno=True)
    scene, faults = make_tiny_object(folder / "full"), []
    if libc.unshare(0x00020000) or libc.mount(None, b"/", None, 0x44000, None):  # a mount namespace of our own, nothing passed on
        return None
    for top in ("camerabooth", "3D_Recon", "results"):
        place = scene.root / top
        place.mkdir(exist_ok=True)
        if libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 0, b"size=16k"):
            return None
        status, text = ended(attempt(scene, folder / "log")), (folder / "log").read_text()
        errors = [line for line in text.splitlines() if line.startswith("error: ")]
        if status != 2 or len(errors) != 1 or "no space left" not in errors[0] or "Traceback" in text:
            faults.append(f"{top}: status {status}: {text[-800:]}")
        libc.mount(b"tmpfs", str(place).encode(), b"tmpfs", 32, b"size=1g")  # 32: MS_REMOUNT
    status = ended(attempt(scene, folder / "log"))
    faults += [f"status {status}: {(folder / 'log').read_text()[-300:]}"] if status else differences(scene, reference)
    for top in ("camerabooth", "3D_Recon", "results"):
        libc.umount2(str(scene.root / top).encode(), 2)  # 2: MNT_DETACH
    return faults


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.crash_safety", description=__doc__.split("\n")[0])
    parser.add_argument("--moments", type=int, default=6, help="kills in each of the six parts (default 6), and two more at each kind of checkpoint")
    parser.add_argument("--random", type=int, default=6, help="kills by the clock (default 6)")
    arguments = parser.parse_args()
    import_stages()
    bad = 0

    def say(what: str, faults: list[str] | None) -> None:
        nonlocal bad
        bad += bool(faults)
        print(f"{what:<76} {'not possible here' if faults is None else 'as undisturbed' if not faults else 'FAULT ' + '; '.join(faults[:5])}", flush=True)

    with tempfile.TemporaryDirectory(prefix="sap3d_crash_") as name:
        folder = Path(name)
        reference, trace_file, began = make_tiny_object(folder / "undisturbed"), folder / "trace", time.time()
        status = ended(attempt(reference, folder / "log", lambda: operations(reference, lambda key: _note(trace_file, key))))
        if status:
            print((folder / "log").read_text(), file=sys.stderr)
            return 1
        seconds = time.time() - began
        trace = trace_file.read_text().splitlines()
        print(f"undisturbed run: {seconds:.0f} s, {len(trace)} files begun or put in their place", flush=True)
        kills, faults = killed_at_moments(folder, reference, trace, arguments.moments)
        say(f"{sum(kills.values())} kills ({', '.join(f'{part} {n}' for part, n in kills.items())})", faults)
        kills_by_clock, faults = killed_at_random(folder, reference, arguments.random, seconds)
        say(f"{kills_by_clock} kills by the clock", faults)
        say("SIGTERM and Ctrl-C while it trains", interrupted(folder, reference))
        say("full disk, three times", full_disk(folder, reference))
    return 1 if bad else 0


def _note(path: Path, key: str) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(descriptor, f"{key}\n".encode())
    os.close(descriptor)


if __name__ == "__main__":
    raise SystemExit(main())
