"""Configuration: one dataclass a stage holds every default; YAML overrides it and the command line overrides that."""

from __future__ import annotations

import argparse
import dataclasses
import math
import os
import re
from pathlib import Path
from typing import Mapping, Sequence, TypeVar

from omegaconf import OmegaConf
from omegaconf.errors import ConfigKeyError, OmegaConfBaseException

from sap3d.errors import ArgumentParser, InputError, first_line

Config = TypeVar("Config")


def load_config(cls: type[Config], yaml_path: Path | None = None, overrides: Sequence[str] = (), preset: str = "") -> Config:
    """``cls()`` < the preset < the YAML file < ``key=value`` overrides. An unknown key or a wrong type raises InputError.

    preset: a name of sap3d/presets, whose section ``cls.SECTION`` counts. A class with a method ``check`` has it called.
    """
    merged = OmegaConf.structured(cls)
    if preset:
        from sap3d.presets import preset_settings

        merged = _merge(merged, preset_settings(preset, getattr(cls, "SECTION", "")), f"preset {preset}", cls)
    if yaml_path is not None:
        if not Path(yaml_path).is_file():
            raise InputError(f"{yaml_path}: no such configuration file")
        try:
            loaded = OmegaConf.load(yaml_path)
        except Exception as error:
            raise InputError(f"{yaml_path}: not valid YAML ({first_line(error)})") from None
        merged = _merge(merged, loaded, str(yaml_path), cls)
    for item in overrides:
        key, separator, value = item.partition("=")
        if not separator or not key:
            raise InputError(f"{item!r} is not of the form key=value")
        try:
            one = OmegaConf.from_dotlist([item if value else f"{key}=''"])  # nothing is the empty text
        except Exception as error:
            raise InputError(f"{item!r} cannot be read as key=value ({first_line(error)})") from None
        merged = _merge(merged, one, item, cls)
    try:
        config = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, ValueError, TypeError, RecursionError) as error:  # "???" and ${references}
        raise InputError(f"{yaml_path or 'settings'}: {first_line(error)}; write plain values") from None
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if any(isinstance(part, float) and not math.isfinite(part) for part in (value if isinstance(value, (list, tuple)) else [value])):
            raise InputError(f"{field.name}={value} must be a finite number")
        if field.name == "device" and value.split(":")[0] not in ("auto", "cpu", "cuda", "mps"):
            raise InputError(f"device {value!r} is unknown: use auto, cpu or cuda")
        if field.name == "seed" and not 0 <= value < 10**10:
            raise InputError(f"seed={value} must lie in 0 .. 9999999999")
    if hasattr(config, "check"):
        config.check()
    return config


def check_limits(config, limits: Mapping[str, tuple[float, float]]) -> None:
    """Raises InputError for a number, or a number of a list, of ``config`` that is not between its two limits."""
    for name, (low, high) in limits.items():
        value = getattr(config, name)
        if not all(low <= number <= high for number in (value if isinstance(value, (list, tuple)) else [value])):
            raise InputError(f"{name}={value} must lie in {low:g} .. {high:g}")


def check_choices(config, choices: Mapping[str, Sequence[str]]) -> None:
    """Raises InputError for a word of ``config`` that is not among its choices."""
    for name, known in choices.items():
        if getattr(config, name) not in known:
            raise InputError(f"{name}={getattr(config, name)!r} is unknown: use one of {', '.join(known)}")


def _merge(base, update, source: str, cls):
    try:
        return OmegaConf.merge(base, update)
    except (OmegaConfBaseException, ValueError, TypeError, AssertionError, RecursionError) as error:
        raise InputError(f"{source}: {first_line(error)}; {_remedy(error, source, cls)}") from None


def _remedy(error: Exception, source: str, cls) -> str:
    """What to write in the place of a setting that OmegaConf refuses: another key where that one is unknown, else a value like the default."""
    fields, key = [f.name for f in dataclasses.fields(cls)], re.split(r"[.\[=]", getattr(error, "full_key", None) or source)[0]
    if isinstance(error, ConfigKeyError):
        return f"known keys: {', '.join(fields)}"
    return f"give {key} a value like its default, {getattr(cls(), key)!r}" if key in fields else "write key: value, with a value like the key's default"


def stage_arguments(description: str, cls: type[Config], argv: Sequence[str] | None = None) -> tuple[argparse.Namespace, Config]:
    """The command line every stage shares: --type --object --views [--preset NAME] [--config FILE] [--quick] [key=value ...].

    ``--quick`` applies ``quick_overrides`` (fewer steps, for tests and first looks) under the others.
    """
    defaults = "\n".join(f"  {f.name} = {getattr(cls(), f.name)!r}" for f in dataclasses.fields(cls))
    parser = ArgumentParser(description=description, epilog=f"settings (key=value):\n{defaults}", formatter_class=argparse.RawDescriptionHelpFormatter)
    add_scene_arguments(parser)
    parser.add_argument("--config", type=Path, help="YAML file with settings of this stage")
    parser.add_argument("--preset", default="", help="settings under all others: tiny (the defaults), full or full-11gb (published weights, docs/FULL_PRESET.md)")
    parser.add_argument("--quick", action="store_true", help="fewer steps: a first look in a fraction of the time")
    parser.add_argument("--dry-run", action="store_true", help="only say whether the stage would run, and why")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings that override the YAML file")
    arguments = parser.parse_args(argv)
    if arguments.dry_run:
        os.environ["SAP3D_DRY_RUN"] = "1"
    quick = quick_overrides(cls, arguments.preset) if arguments.quick else []
    return arguments, load_config(cls, arguments.config, quick + list(arguments.settings), arguments.preset)


def quick_overrides(cls: type[Config], preset: str = "") -> list[str]:
    """The key=value settings of ``--quick``: the preset's own, where it has some for the stage, or the dataclass's ``QUICK``."""
    if preset:
        from sap3d.presets import quick_settings

        own = quick_settings(preset, getattr(cls, "SECTION", ""))
        if own:
            return own
    return list(getattr(cls, "QUICK", ()))


def add_scene_arguments(parser: argparse.ArgumentParser) -> None:
    """The options that name an object and a number of photos: what ``sap3d.scene.Scene`` takes."""
    parser.add_argument("--type", required=True, help="dataset type: a folder of dataset/data/train")
    parser.add_argument("--object", required=True, help="object: a folder of that type")
    parser.add_argument("--views", type=_whole_number, required=True, help="number of photos to use")


def _whole_number(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number") from None


def as_dict(config) -> dict:
    return dataclasses.asdict(config)


def resolve_device(name: str) -> str:
    """``auto`` becomes ``cuda`` where a GPU can be used and ``cpu`` elsewhere; an unavailable device raises InputError."""
    import torch

    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise InputError(f"device {name}: no CUDA GPU can be used here; set device=cpu or install a CUDA build of PyTorch")
    if name.startswith("cuda:") and not (name[5:].isdigit() and int(name[5:]) < torch.cuda.device_count()):
        raise InputError(f"device {name}: there are {torch.cuda.device_count()} GPUs here, counted from 0; set another one, or cpu")
    if name.split(":")[0] not in ("cpu", "cuda", "mps"):
        raise InputError(f"device {name!r} is unknown: use auto, cpu or cuda")
    return name
