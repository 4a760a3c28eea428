"""What a weight file is, whether it is whole, and the folder that the stages load made from it.

    python -m sap3d.weights                             where published weights are, and where to put them
    python -m sap3d.weights show FILE                   what it is, its SHA-256, its parts
    python -m sap3d.weights check FILE                  every tensor: name, shape, numbers
    python -m sap3d.weights convert FILE [FOLDER]       check, then write what --preset full loads

FILE: Zero-1-to-3's original checkpoint, the same as .safetensors, a folder in diffusers' format, or a RelPose++ checkpoint. Nothing in
a file is executed. The bundled weights are in the folder of the same name beside this module.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.presets import published_folder

GUIDE = """\
Published weights are not part of this project and are not fetched by it. Their licences are their authors'.

Zero-1-to-3 (one of them; 105000.ckpt is the one that SAP3D starts from):
  105000.ckpt, 165000.ckpt, 230000.ckpt, 300000.ckpt   https://huggingface.co/cvlab/zero123-weights
  zero123-xl.ckpt                                      https://zero123.cs.columbia.edu/assets/zero123-xl.ckpt
  or a folder in diffusers' format with cc_projection/ or clip_camera_projection/ in it
RelPose++ (relposepp_masked/checkpoints/*.pth of relposepp_weights.zip; a retrained one of the same form serves as well):
  the link in the README of                            https://github.com/amyxlase/relpose-plus-plus

Then, once:
  python -m sap3d.weights convert 105000.ckpt          writes {zero123}
  python -m sap3d.weights convert ckpt_000400000.pth   writes {relposepp}
and run with --preset full (docs/FULL_PRESET.md). Other folders: booth.model=FOLDER recon.model=FOLDER relpose.weights=FOLDER.
"""


def identify(path: Path) -> str:
    """zero123 (original or diffusers' format), relposepp, or own (a folder that the stages load); InputError for anything else."""
    path = Path(path)
    if path.is_dir():
        from sap3d.scene import read_json

        index = read_json(path / "model_index.json")
        if isinstance(index, dict) and index.get("_class_name") == "Zero123":
            return "own"
        if (path / "config.json").is_file() and (path / "model.safetensors").is_file():
            raise InputError(f"{path}: weights of this project's RelPose++ form, nothing to convert; use them with relpose.weights={path}")
        if index is None:
            raise InputError(f"{path}: a folder without model_index.json; give a folder in diffusers' format, or a weight file")
        return "zero123"
    from sap3d.published.reading import open_weights

    file = open_weights(path)
    plain = [name.removeprefix("module.") for name in file]
    if any(name.startswith("feature_extractor.transformer.") for name in plain):
        return "relposepp"
    if any(name.startswith(("cc_projection.", "model.diffusion_model.")) for name in plain):
        return "zero123"
    raise InputError(f"{path}: weights of an unknown model ({len(file)} tensors, the first is {min(file)}); Zero-1-to-3 has cc_projection.weight, RelPose++ feature_extractor.transformer.*")


def show(path: Path) -> None:
    from sap3d.scene import file_hash

    kind = identify(path)
    names = {"zero123": "Zero-1-to-3, published form", "relposepp": "RelPose++, published form", "own": "Zero-1-to-3, this project's folder: ready to use"}
    print(f"{path}: {names[kind]}")
    print(f"sha256: {file_hash(path)}")
    if kind == "zero123":
        from sap3d.published.sources import read_published

        _parts(read_published(path))


def _parts(published, counts: dict[str, int] | None = None) -> None:
    from sap3d.published.convert import PUBLISHED_PARAMETERS

    for part, entries in published.parts.items():
        dtypes = ", ".join(sorted({str(entry.dtype).removeprefix("torch.") for entry in entries.values()}))
        parameters = f", {counts[part]:,} parameters" + (" (the published size)" if counts[part] == PUBLISHED_PARAMETERS[part] else f" (published: {PUBLISHED_PARAMETERS[part]:,})") if counts else ""
        print(f"  {part}: {len(entries)} tensors, {dtypes}{parameters}")
    for note in published.notes:
        print(f"  {note}")


def check(path: Path, averaged: bool = True) -> None:
    """Read the whole file; prints its parts, or raises InputError naming the first thing that is wrong."""
    kind = identify(path)
    if kind == "relposepp":
        return _relposepp("check", path)
    if kind == "own":
        from sap3d.zero123 import load_zero123

        load_zero123(path)
        return print(f"{path}: loads; every name and shape fits")
    from sap3d.published.convert import check as check_names
    from sap3d.published.convert import verify_numbers
    from sap3d.published.sources import read_published

    published = read_published(path, averaged)
    counts = check_names(published)
    verify_numbers(published)
    print(f"{path}: Zero-1-to-3; every name and shape fits, all numbers are finite")
    _parts(published, counts)


def convert(path: Path, folder: Path | None, averaged: bool = True, dtype: str = "stored") -> Path:
    """Write the folder that the stages load; returns it. Default: where ``--preset full`` looks."""
    kind = identify(path)
    if kind == "own":
        raise InputError(f"{path}: is in this project's form already; use it with booth.model={path} recon.model={path}")
    folder = Path(folder) if folder else published_folder(kind)
    if folder.resolve() == path.resolve():
        raise InputError(f"{folder}: would replace the source itself; name another folder")
    if kind == "relposepp":
        _relposepp("convert", path, folder)
        return folder
    import torch

    from sap3d.published.convert import convert as write
    from sap3d.published.sources import read_published
    from sap3d.scene import file_hash

    published = read_published(path, averaged)
    counts = write(published, folder, {"stored": None, "fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype])
    _parts(published, counts)
    print(f"source sha256: {file_hash(path)}\nwritten: {folder}")
    return folder


def _relposepp(*arguments) -> None:
    """RelPose++ is stage 1's own; a stage is used as a program."""
    done = subprocess.run([sys.executable, "-m", "relposepp.published", *map(str, arguments)], cwd=Path(__file__).resolve().parent.parent)
    if done.returncode:
        raise SystemExit(done.returncode)


def main() -> None:
    parser = ArgumentParser(prog="python -m sap3d.weights", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("show", "check", "convert"), nargs="?")
    parser.add_argument("file", type=Path, nargs="?")
    parser.add_argument("folder", type=Path, nargs="?", help="convert: where to write (default: where --preset full looks)")
    parser.add_argument("--last", action="store_true", help="Zero-1-to-3: the weights of the last training step, not their moving average")
    parser.add_argument("--dtype", choices=("stored", "fp32", "fp16", "bf16"), default="stored", help="convert: type of the written numbers")
    arguments = parser.parse_args()
    if arguments.action is None:
        return print(GUIDE.format(zero123=published_folder("zero123"), relposepp=published_folder("relposepp")))
    if arguments.file is None:
        raise InputError(f"{arguments.action} needs a file or folder; python -m sap3d.weights says where published ones are")
    path = arguments.file.resolve()
    if not path.exists():
        raise InputError(f"{arguments.file}: no such file or folder; python -m sap3d.weights says where published weights are")
    if arguments.action == "show":
        show(path)
    elif arguments.action == "check":
        check(path, not arguments.last)
    else:
        convert(path, arguments.folder.resolve() if arguments.folder else None, not arguments.last, arguments.dtype)


if __name__ == "__main__":
    cli(main)
