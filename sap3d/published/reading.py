"""Weight files as named tensors, without executing anything that is in them.

A PyTorch checkpoint is a zip archive: one pickle that describes the objects, and the raw numbers of every tensor beside it.
The pickle is a program. Here it is run by an unpickler that knows tensors, storages and plain containers; every other class of
a third party (training callbacks, configuration objects) becomes an inert placeholder, and anything of the standard library
or the builtins is refused by name. Tensors are read when they are asked for, so that a file of 15 GB needs little memory.
"""

from __future__ import annotations

import _compat_pickle
import collections
import io
import json
import pickle
import sys
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Callable, Iterator, Mapping

import torch
from torch import Tensor

from sap3d.errors import InputError, first_line

_LARGEST_PICKLE = 256 << 20  # bytes; the pickle of the largest published checkpoint has less than 2 MB
_DTYPES = {"Float": torch.float32, "Double": torch.float64, "Half": torch.float16, "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32,
           "Short": torch.int16, "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool}  # fmt: skip
_HARMLESS = {("builtins", name) for name in ("set", "frozenset", "dict", "list", "tuple", "int", "float", "complex", "bool", "str", "bytes", "bytearray", "slice", "range", "object")}
# Of the standard library, what checkpoints hold: never called either, but their presence says nothing bad.
_STANDARD = {"collections", "pathlib", "argparse", "datetime", "enum", "typing", "copyreg", "_codecs", "functools", "types", "abc", "decimal", "fractions", "uuid", "__future__"}


@dataclass(frozen=True)
class TensorEntry:
    """A tensor of a file that has not been read yet: its shape and type, and how to read it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]


class WeightFile(Mapping[str, TensorEntry]):
    """The named tensors of one file; ``tensor`` reads one of them. ``path`` is for messages."""

    def __init__(self, path: Path, entries: dict[str, TensorEntry]):
        self.path, self._entries = path, entries

    def __getitem__(self, name: str) -> TensorEntry:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def tensor(self, name: str) -> Tensor:
        try:
            return self._entries[name].read()
        except InputError:
            raise
        except Exception as error:  # a part of the file that is only read now
            raise InputError(f"{self.path}: tensor {name} cannot be read ({first_line(error)}); the file is damaged, fetch it again") from None


def open_weights(path: Path) -> WeightFile:
    """The tensors of a ``.safetensors`` file, of a PyTorch checkpoint, or of an index of shards (``*.index.json``).

    Of a checkpoint, those of its ``state_dict`` where it has one. Raises InputError for a file that is missing, damaged, no weight
    file, or that names things a weight file has no use for.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    if path.name.endswith(".index.json"):
        return _open_shards(path)
    with open(path, "rb") as stream:
        start = stream.read(16)
    if start[:4] == b"PK\x03\x04":
        return WeightFile(path, _checkpoint_entries(path))
    if len(start) > 9 and start[8:9] == b"{":
        return WeightFile(path, _safetensors_entries(path))
    if start[:1] == b"\x80":
        return WeightFile(path, _old_checkpoint_entries(path))
    raise InputError(f"{path}: neither a PyTorch checkpoint nor a safetensors file; fetch it again (a download page saved in its place looks like this too)")


# --- safetensors ------------------------------------------------------------------------------------------------------
def _safetensors_entries(path: Path) -> dict[str, TensorEntry]:
    from safetensors import safe_open

    try:
        stored = safe_open(path, "pt")
        entries = {}
        for name in stored.keys():
            part = stored.get_slice(name)
            dtype = _SAFE_DTYPES.get(part.get_dtype())
            if dtype is None:
                raise InputError(f"{path}: tensor {name} has the unusual type {part.get_dtype()}")
            entries[name] = TensorEntry(tuple(part.get_shape()), dtype, lambda name=name: stored.get_tensor(name))
        return entries
    except InputError:
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged safetensors file ({first_line(error)}); fetch it again") from None


_SAFE_DTYPES = {"F32": torch.float32, "F64": torch.float64, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16,
                "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool}  # fmt: skip


def _open_shards(path: Path) -> WeightFile:
    try:
        places = json.loads(path.read_text())["weight_map"]
        names = sorted(set(places.values()))
    except (ValueError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path}: not an index of weight files") from None
    entries: dict[str, TensorEntry] = {}
    for name in names:
        if Path(name).name != name:
            raise InputError(f"{path}: names the file {name!r} outside its own folder")
        entries |= dict(open_weights(path.parent / name))
    if set(entries) != set(places):
        odd = sorted(set(entries) ^ set(places))[0]
        raise InputError(f"{path}: tensor {odd} is in the index or in the files, but not in both; fetch the folder again")
    return WeightFile(path, entries)


# --- checkpoints ------------------------------------------------------------------------------------------------------
class Placeholder:
    """Stands for an object of a class that is not loaded. It takes any state and does nothing."""

    def __new__(cls, *args, **kwargs):
        return object.__new__(cls)

    def __init__(self, *args, **kwargs):
        pass

    def __setstate__(self, state) -> None:
        pass

    def __setitem__(self, key, value) -> None:
        pass

    def append(self, item) -> None:
        pass

    def extend(self, items) -> None:
        pass

    def add(self, item) -> None:
        pass


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: torch.dtype
    count: int


class _Unpickler(pickle.Unpickler):
    def __init__(self, path: Path, stream, archive: _Archive):
        super().__init__(stream, encoding="utf-8")
        self.path, self.archive = path, archive

    def find_class(self, module: str, name: str) -> Any:
        # Old protocols call the standard library by its names in Python 2: __builtin__, commands, copy_reg.
        module, name = _compat_pickle.NAME_MAPPING.get((module, name), (_compat_pickle.IMPORT_MAPPING.get(module, module), name))
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        if module == "torch._utils" and name in ("_rebuild_tensor_v2", "_rebuild_tensor"):
            return self.archive.entry
        if module == "torch._utils" and name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
            return lambda tensor, *rest: tensor
        if module == "torch" and name.endswith("Storage") and name.removesuffix("Storage") in _DTYPES:
            return _DTYPES[name.removesuffix("Storage")]
        top = module.split(".")[0]
        if (module, name) not in _HARMLESS and (top == "builtins" or top in sys.stdlib_module_names - _STANDARD):
            raise InputError(f"{self.path}: names {module}.{name}, which weights have no use for: a file that would run code. Nothing was run; do not use it")
        return type(name, (Placeholder,), {"__module__": module})

    def persistent_load(self, reference: Any) -> _Storage:
        kind, dtype, key, _, count = reference
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str) or not isinstance(count, int):
            raise ValueError(f"unknown reference {reference!r:.80}")
        return _Storage(key, dtype, count)


class _Archive:
    """The zip archive of a checkpoint."""

    def __init__(self, path: Path):
        self.path, self.zip = path, zipfile.ZipFile(path)
        pickles = [name for name in self.zip.namelist() if name.endswith("/data.pkl") or name == "data.pkl"]
        if len(pickles) != 1:
            raise InputError(f"{path}: a zip archive, but no PyTorch checkpoint (it has no data.pkl)")
        self.prefix = pickles[0].removesuffix("data.pkl")
        order = f"{self.prefix}byteorder"
        if order in self.zip.namelist() and self.zip.read(order) != b"little":
            raise InputError(f"{path}: written on a big-endian machine, which is not supported")

    def load(self) -> Any:
        info = self.zip.getinfo(f"{self.prefix}data.pkl")
        if info.file_size > _LARGEST_PICKLE:
            raise InputError(f"{self.path}: its pickle has {info.file_size >> 20} MB, no weights need that")
        return _Unpickler(self.path, io.BytesIO(self.zip.read(info)), self).load()

    def entry(self, storage: _Storage, offset: int, size: tuple, stride: tuple, *rest) -> TensorEntry:
        """What the pickle says instead of a tensor; checked against the archive, so that a cut or forged file is found at once."""
        info = self.zip.getinfo(f"{self.prefix}data/{storage.key}")
        width = torch.empty((), dtype=storage.dtype).element_size()
        shape, stride = tuple(int(n) for n in size), tuple(int(n) for n in stride)
        if min((offset, *shape, *stride), default=0) < 0 or len(shape) != len(stride):
            raise ValueError(f"a tensor of impossible shape {shape}")
        last = offset + sum((n - 1) * s for n, s in zip(shape, stride)) if 0 not in shape else -1
        if info.compress_type != zipfile.ZIP_STORED or info.file_size != storage.count * width or last >= storage.count:
            raise ValueError(f"the numbers of storage {storage.key} do not fit its description")

        def read() -> Tensor:
            raw = bytearray(self.zip.read(info))  # compares the archive's checksum
            flat = torch.frombuffer(raw, dtype=storage.dtype) if raw else torch.empty(0, dtype=storage.dtype)
            return torch.as_strided(flat, shape, stride, offset).contiguous()

        return TensorEntry(shape, storage.dtype, read)


def _checkpoint_entries(path: Path) -> dict[str, TensorEntry]:
    try:
        return _state_dict(path, _Archive(path).load())
    except (InputError, MemoryError):
        raise
    except Exception as error:
        raise InputError(f"{path}: damaged checkpoint ({type(error).__name__}: {first_line(error)}); fetch it again") from None


def _old_checkpoint_entries(path: Path) -> dict[str, TensorEntry]:
    """A checkpoint of PyTorch before 1.6, or a bare pickle: PyTorch's own restricted loader, tensors and containers alone."""
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise InputError(f"{path}: not a checkpoint that can be read without running code ({first_line(error)[:120]}); fetch it again, in today's format") from None
    as_entry = lambda value: TensorEntry(tuple(value.shape), value.dtype, lambda: value) if isinstance(value, Tensor) else value  # noqa: E731
    inner = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    return _state_dict(path, {name: as_entry(value) for name, value in inner.items()} if isinstance(inner, dict) else inner)


def _state_dict(path: Path, content: Any) -> dict[str, TensorEntry]:
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    entries = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, TensorEntry)} if isinstance(content, dict) else {}
    if not entries:
        raise InputError(f"{path}: a checkpoint without named tensors; it is not a model's weights")
    return entries
