"""Weights of a diffusers module stored in shards, matrices and convolution kernels in 8 bits (sap3d/quantise.py), vectors in float16; loading gives float32."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from sap3d.quantise import quantise, restored

PATTERN = "int8-*.safetensors"
_SCALE = ".int8_scale"
_SHARD_BYTES = 15_000_000


def save_int8(module: nn.Module, folder: Path) -> None:
    """Write the module's configuration and its weights, in shards of at most 15 MB, into ``folder``."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    module.save_config(folder)
    shards: list[dict[str, Tensor]] = [{}]
    size = 0
    for name, tensor in module.state_dict().items():
        tensor = tensor.detach().cpu()
        entry = {name: tensor.to(torch.float16)} if tensor.ndim < 2 else dict(zip((name, name + _SCALE), quantise(tensor)))
        entry = {key: value.contiguous() for key, value in entry.items()}
        bytes_ = sum(value.numel() * value.element_size() for value in entry.values())
        if size + bytes_ > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1].update(entry)
        size += bytes_
    for k, shard in enumerate(shards):
        save_file(shard, folder / f"int8-{k + 1:05d}-of-{len(shards):05d}.safetensors")


def load_int8(cls, folder: Path) -> nn.Module:
    """The module of class ``cls`` in float32; raises ValueError naming a missing, unexpected or misshapen tensor or shard."""
    files = sorted(Path(folder).glob(PATTERN))
    if files and len(files) != int(files[0].stem.rsplit("-", 1)[1]):
        raise ValueError(f"{len(files)} of {int(files[0].stem.rsplit('-', 1)[1])} shards of weights found")
    stored: dict[str, Tensor] = {}
    for file in files:
        stored.update(load_file(file))
    weights = restored(stored, _SCALE)
    module = cls.from_config(cls.load_config(folder))
    expected = module.state_dict()
    for name in sorted(expected.keys() ^ weights.keys()):
        raise ValueError(f"{'missing' if name in expected else 'unexpected'} tensor {name}; these are weights of another model")
    for name, tensor in weights.items():
        if tensor.shape != expected[name].shape:
            raise ValueError(f"tensor {name} has shape {tuple(tensor.shape)}, not {tuple(expected[name].shape)}; these are weights of another model")
    module.load_state_dict(weights)
    return module
