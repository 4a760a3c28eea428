"""Where every file of an object lives, and how it is written so that a kill at any moment does no harm.

``Scene`` owns the paths of the on-disk contract (docs/conventions.md). Files are written in a temporary folder and
renamed; a stage writes a completion record last, and is skipped only when its record matches.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import hashlib
import json
import os
import platform
import re
import resource
import shutil
import sys
import tempfile
import time
import zipfile
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Iterable, Iterator, Mapping

import numpy as np
import yaml

from sap3d import __version__
from sap3d.cameras import Camera
from sap3d.energy import EnergyMeter
from sap3d.errors import InputError, first_line

REPOSITORY = Path(__file__).resolve().parent.parent
BUNDLED_ZERO123 = REPOSITORY / "sap3d" / "weights" / "tiny" / "zero123"  # the small model; here so that its hash needs no PyTorch
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")


def root_dir() -> Path:
    """Where data is read and results are written: ``ROOT_DIR``, else the repository."""
    return Path(os.environ.get("ROOT_DIR") or REPOSITORY).resolve()


def check_name(name: str, what: str) -> str:
    """``name`` if it is a plain folder name (letters, digits, ``. _ -``); raises InputError otherwise."""
    if not isinstance(name, str) or not _NAME.fullmatch(name) or ".." in name:
        raise InputError(f"{what} {name!r} is not a plain name: use letters, digits, '.', '_' and '-', and no path")
    return name


@dataclass(frozen=True)
class Scene:
    """One object of one type, reconstructed from its first ``views`` photos.

    All outputs lie under ``root``. Data is read from ``root`` too, or from the repository's own ``dataset/data`` when
    ``root`` has no such object (so that bundled objects can be run with results elsewhere).
    """

    type: str
    object: str
    views: int
    root: Path = field(default_factory=root_dir)

    def __post_init__(self):
        check_name(self.type, "dataset type")
        check_name(self.object, "object name")
        if isinstance(self.views, bool) or not isinstance(self.views, int) or self.views < 1:
            raise InputError(f"number of views must be a whole number of at least 1, got {self.views!r}")

    # --- data -----------------------------------------------------------------------------------------------------
    def _data(self, *parts: str) -> Path:
        return _data_path(self.root, *parts)

    @property
    def train_dir(self) -> Path:
        return self._data("data", "train", self.type, self.object)

    @property
    def regulariser_dir(self) -> Path:
        return self._data("data", "objaverse")

    @property
    def regulariser_list(self) -> Path:
        """Ids of the regulariser objects to use, where the user has chosen them (``python -m camerabooth.regulariser``)."""
        return self.train_dir / "query_class" / "query_match_paths.npy"

    # Ground truth: for evaluation only. No stage may open these (tests/test_no_ground_truth.py).
    @property
    def truth_poses_dir(self) -> Path:
        return self.train_dir / "poses"

    @property
    def truth_test_dir(self) -> Path:
        return self._data("data", "test", self.object)

    @property
    def truth_mesh(self) -> Path:
        return self._data("3d_models", self.type, self.object, "meshes", "model.obj")

    # --- outputs --------------------------------------------------------------------------------------------------
    @property
    def initial_cameras(self) -> Path:
        return self.root / "camerabooth" / "configs" / self.type / f"config_{self.object}_view_{self.views}.yaml"

    @property
    def personal_dir(self) -> Path:
        return self.root / "camerabooth" / f"experiments_{self.type}_view_{self.views}" / self.object

    @property
    def refined_cameras(self) -> Path:
        return self.personal_dir / "cameras.yaml"

    @property
    def nvs_dir(self) -> Path:
        return self.root / "camerabooth" / "experiments_nvs" / self.type / f"{self.object}_view_{self.views}"

    @property
    def nerf_dir(self) -> Path:
        return self.root / "3D_Recon" / "threestudio" / f"experiments_{self.type}_view_{self.views}_nerf" / self.object

    @property
    def mesh_dir(self) -> Path:
        return self.root / "3D_Recon" / "threestudio" / f"experiments_{self.type}_mesh_view_{self.views}" / self.object

    @property
    def results_dir(self) -> Path:
        return self.root / "results" / self.type / self.object / str(self.views)


def _data_path(root: Path, *parts: str) -> Path:
    own, bundled = (base.joinpath("dataset", *parts) for base in (root, REPOSITORY))
    return own if own.exists() or not bundled.exists() else bundled


def objects_by_type(root: Path) -> dict[str, list[str]]:
    """Names of the objects with photos that a ``Scene`` finds, below ``root`` or in the repository, by dataset type; both sorted."""
    folders = [folder for base in (root, REPOSITORY) for folder in base.glob("dataset/data/train/[!.]*/[!.]*")]
    found: dict[str, list[str]] = {}
    for type_, name in sorted({(folder.parent.name, folder.name) for folder in folders}):
        if (_data_path(root, "data", "train", type_, name) / "images").is_dir():
            found.setdefault(type_, []).append(name)
    return found


# --- cameras on disk --------------------------------------------------------------------------------------------------
def write_cameras(path: Path, cameras: Mapping[str, Camera], turns: Mapping[str, np.ndarray] | None = None, mirror_plane_azimuth_rad: float | None = None,
                  **extra) -> None:  # fmt: skip
    """Write cameras keyed by view name as YAML (degrees, object lengths); ``extra`` are further top-level entries.

    turns: a view's (3,) radians by which its photo's camera is turned against the camera (``read_turns``). mirror_plane_azimuth_rad: of the
    object (``read_mirror_plane``).
    """
    views = {
        name: {
            "elevation_deg": round(c.elevation_deg, 6),
            "azimuth_deg": round(c.azimuth_deg, 6),
            "radius": round(float(c.radius), 6),
            "fov_deg": round(float(np.rad2deg(c.fov_rad)), 6),
        }
        for name, c in cameras.items()
    }
    for name, turn in (turns or {}).items():
        views[name]["turn_deg"] = [round(float(angle), 6) for angle in np.rad2deg(turn)]
    plane = {} if mirror_plane_azimuth_rad is None else {"mirror_plane": {"azimuth_deg": round(float(np.rad2deg(mirror_plane_azimuth_rad)), 4)}}
    write_text(path, yaml.safe_dump({"views": views, **plane, **extra}, sort_keys=False))


def read_cameras(path: Path, remedy: str = "run the stage that writes it first") -> dict[str, Camera]:
    """Cameras keyed by view name, in file order; raises InputError when the file is missing, which ends in ``remedy``, or malformed."""
    if not path.is_file():
        raise InputError(f"{path}: no such camera file; {remedy}")
    try:
        views = yaml.safe_load(path.read_text())["views"]
        return {str(name): _camera(*(float(v[key]) for key in ("elevation_deg", "azimuth_deg", "radius", "fov_deg"))) for name, v in views.items()}
    except (yaml.YAMLError, KeyError, TypeError, ValueError, OverflowError, AttributeError, RecursionError) as error:
        raise InputError(f"{path}: not a camera file ({type(error).__name__}: {str(error)[:300]}); delete it and run the stage again") from None


def load_array(path: Path, what: str) -> np.ndarray:
    """The array of a .npy file, read without executing code; raises InputError: ``path`` is not ``what``."""
    try:
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):  # an archive of arrays
            raise ValueError("several arrays")
        return array
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: not {what} ({first_line(error)}); write it again with numpy.save") from None


def read_pose(path: Path) -> np.ndarray:
    """camera_from_world [R|t], (3, 4), of a .npy file of true cameras; raises InputError when it is missing or something else."""
    pose = load_array(path, "a 3 x 4 pose")
    if pose.shape != (3, 4) or pose.dtype.kind not in "fiu" or not np.isfinite(pose).all():
        raise InputError(f"{path}: not a finite 3 x 4 pose but {pose.dtype} of shape {pose.shape}; write camera_from_world [R|t]")
    return pose


def cameras_of(path: Path, names: Iterable[str], remedy: str) -> dict[str, Camera]:
    """The cameras of the views ``names``, in that order; raises InputError, which ends in ``remedy``, when the file lacks one or is missing."""
    cameras, names = read_cameras(path, remedy), list(names)
    missing = [name for name in names if name not in cameras]
    if missing:
        raise InputError(f"{path}: has no camera for view {', '.join(missing)}; {remedy}")
    return {name: cameras[name] for name in names}


def read_turns(path: Path) -> dict[str, np.ndarray]:
    """Radians (3,) by which the camera of a view's photo is turned against the camera of the file, of views that have an entry ``turn_deg``."""
    read_cameras(path)
    views = yaml.safe_load(path.read_text())["views"]
    try:
        found = {str(name): np.deg2rad(np.array(view["turn_deg"], dtype=np.float64)) for name, view in views.items() if "turn_deg" in view}
    except (TypeError, ValueError):
        found = {"": np.array([np.nan])}
    if not all(turn.shape == (3,) and (np.abs(turn) < 0.6).all() for turn in found.values()):
        raise InputError(f"{path}: turn_deg must be three angles of less than 34 degrees; delete the file and run the stage again")
    return found


def read_mirror_plane(path: Path) -> float | None:
    """Azimuth, radians, of the vertical mirror plane through the origin that a camera file gives the object; None where it gives none."""
    read_cameras(path)
    plane = yaml.safe_load(path.read_text()).get("mirror_plane")
    try:
        azimuth = None if plane is None else float(np.deg2rad(float(plane["azimuth_deg"])))
    except (TypeError, ValueError, KeyError):
        azimuth = np.inf
    if azimuth is not None and not np.isfinite(azimuth):
        raise InputError(f"{path}: mirror_plane needs a number azimuth_deg; delete the entry, or the file and run the stage again")
    return azimuth


def read_confidence(path: Path) -> dict[str, float]:
    """How sure the writer of a camera file is of each view, in [0, 1]; 0 for a view that the file says nothing about."""
    cameras = read_cameras(path)
    try:
        given = yaml.safe_load(path.read_text()).get("confidence") or {}
        return {name: min(max(float(given.get(name, 0.0)), 0.0), 1.0) for name in cameras}
    except (TypeError, ValueError, AttributeError) as error:
        raise InputError(f"{path}: confidence is not a number a view ({error}); delete it and run the stage again") from None


def _camera(elevation_deg: float, azimuth_deg: float, radius: float, fov_deg: float) -> Camera:
    if not (abs(elevation_deg) <= 90 and np.isfinite(azimuth_deg) and 0 < radius < np.inf and 0 < fov_deg < 180):
        raise ValueError(f"no such camera: elevation {elevation_deg}, azimuth {azimuth_deg}, radius {radius}, field of view {fov_deg}")
    return Camera.from_degrees(elevation_deg, azimuth_deg, radius, fov_deg)


# --- atomic writes ----------------------------------------------------------------------------------------------------
@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A file of the same name in a temporary folder beside ``path`` that is renamed to it when the block ends without an error."""
    path = Path(path)
    with _temporary_folder(path) as folder:
        yield folder / path.name
        os.chmod(folder / path.name, 0o644)
        os.replace(folder / path.name, path)


@contextlib.contextmanager
def atomic_dir(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path`` that takes its place (an old one is removed) when the block ends well."""
    path = Path(path)
    with _temporary_folder(path) as folder:
        yield folder
        os.chmod(folder, 0o755)
        if path.exists():
            with _temporary_folder(path) as old:  # moved away before it is removed, so that no kill leaves a part of it
                os.replace(path, old / path.name)
                os.replace(folder, path)
        else:
            os.replace(folder, path)


_TEMPORARY = re.compile(r"\..+\.tmp-[a-z0-9_]{8}")
_swept: set[Path] = set()  # folders where this process has looked for leftovers


@contextlib.contextmanager
def _temporary_folder(path: Path) -> Iterator[Path]:
    """A folder ``.<name>.tmp-<random>`` beside ``path``, locked while the block runs and removed after it.

    A process that is killed leaves it behind, but not the lock: the next process that writes beside it removes it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.parent.resolve()
    if beside not in _swept:
        remove_leftovers(beside)
        _swept.add(beside)
    folder = lock = None
    while folder is None:
        folder = Path(tempfile.mkdtemp(prefix=f".{path.name}.tmp-", dir=path.parent))
        try:
            lock = _lock(folder)
        except (BlockingIOError, FileNotFoundError):  # between the two lines another process took it for a leftover
            folder = None
        except OSError:  # a file system without locks, where leftovers stay
            pass
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _lock(folder: Path) -> int:
    """A descriptor that locks ``folder`` until it is closed or the process ends; an OSError when it is locked or gone."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.stat(folder)  # it may have been removed just before
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary folders in ``folder`` that killed processes left; those of running ones are locked and stay."""
    for entry in [entry for entry in os.scandir(folder) if _TEMPORARY.fullmatch(entry.name)]:
        with contextlib.suppress(OSError):
            lock = _lock(Path(entry.path))
            shutil.rmtree(entry.path, ignore_errors=True)
            os.close(lock)


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text)


def write_json(path: Path, value) -> None:
    write_text(path, json.dumps(value, indent=2) + "\n")


def read_json(path: Path):
    """The content of a JSON file, or None when it is missing or not valid JSON."""
    try:
        return json.loads(Path(path).read_text())
    except (OSError, ValueError):
        return None


# --- completion records -----------------------------------------------------------------------------------------------
def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of the names and contents of all files below a folder."""
    path, digest = Path(path), hashlib.sha256()
    if path.is_dir():
        for child in sorted(p for p in path.rglob("*") if p.is_file()):
            digest.update(f"{child.relative_to(path)}:{file_hash(child)}\n".encode())
    elif path.is_file():
        state = path.stat()
        return _content_hash(path, state.st_size, state.st_mtime_ns)
    else:
        return "missing"
    return digest.hexdigest()


@functools.lru_cache(maxsize=1024)
def _content_hash(path: Path, size: int, mtime_ns: int) -> str:
    """SHA-256 of a file as it is at that size and time: published weights have 5 GB, and a stage asks several times."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def stage_complete(record: Path, config: Mapping, inputs: Mapping[str, Path], outputs: list[Path]) -> bool:
    """True when ``record`` was written for this very configuration and these inputs, and all outputs are there."""
    if record.parent.is_dir() and not dry_run():
        remove_leftovers(record.parent)  # here too: a stage that is skipped writes nothing
    reason = _why_again(read_json(record), json.loads(json.dumps(config)), {name: file_hash(path) for name, path in inputs.items()}, outputs)
    if reason and dry_run():
        raise WouldRun(reason)
    return not reason


def _why_again(found, config: Mapping, inputs: Mapping[str, str], outputs: list[Path]) -> str:
    """Why a stage with the record ``found`` has to run; empty when it has not."""
    if not isinstance(found, dict):
        return "it has not run to its end yet"
    for what, before, now in (("setting", found.get("config"), config), ("input", found.get("inputs"), inputs)):
        if before != now:
            before = before if isinstance(before, dict) else {}
            return f"changed since it ran: {what} {', '.join(key for key in {**before, **now} if before.get(key, ...) != now.get(key, ...))}"
    missing = [path for path in outputs if not path.exists()]
    return f"missing: {missing[0]}" if missing else ""


class WouldRun(Exception):
    """In a dry run a stage that has something to do ends with this; the message is the reason."""


def dry_run() -> bool:
    """Whether stages shall only say what they would do (``--dry-run``)."""
    return bool(os.environ.get("SAP3D_DRY_RUN"))


def fingerprint(config: Mapping, inputs: Mapping[str, Path]) -> str:
    """A hash of what a run is made from: a checkpoint with another one belongs to another run."""
    text = json.dumps([config, {name: file_hash(path) for name, path in inputs.items()}], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _peak_gpu_mb() -> int | None:
    """The most that PyTorch has held of any GPU since the process began, MB; None where no GPU was used."""
    torch = sys.modules.get("torch")
    if torch is None or not torch.cuda.is_initialized():
        return None
    return round(max(torch.cuda.max_memory_reserved(device) for device in range(torch.cuda.device_count())) / 2**20)


@contextlib.contextmanager
def completion_record(record: Path, stage: str, config: Mapping, inputs: Mapping[str, Path]) -> Iterator[dict]:
    """Removes a stale record, runs the block, then writes the new record last. The yielded dict takes further entries.

    ``seconds`` is the wall time of the block plus what the block put into ``"resumed_seconds"``; ``peak_memory_mb``
    the process's maximum resident size, ``peak_gpu_memory_mb`` PyTorch's own figure where a GPU was used, and
    ``energy_joules`` what the processors took meanwhile, where the machine tells (``sap3d.energy``).
    """
    if dry_run():
        raise WouldRun("it was asked to")
    record.unlink(missing_ok=True)
    hashes = {name: file_hash(path) for name, path in inputs.items()}
    extra: dict = {}
    start, meter = time.time(), EnergyMeter()
    yield extra
    joules, gpu = meter.joules(), _peak_gpu_mb()
    entries = {
        "stage": stage,
        "config": json.loads(json.dumps(config)),
        "inputs": hashes,
        "seconds": round(time.time() - start + extra.pop("resumed_seconds", 0.0), 2),
        "peak_memory_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        **({} if gpu is None else {"peak_gpu_memory_mb": gpu}),
        **({} if joules is None else {"energy_joules": round(joules, 1)}),
        "versions": {"sap3d": __version__, "python": platform.python_version(), **_package_versions("torch", "diffusers", "numpy")},
        "finished": time.strftime("%Y-%m-%dT%H:%M:%S"),
        **extra,
    }
    write_json(record, entries)


def _package_versions(*names: str) -> dict[str, str]:
    found = {}
    for name in names:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
