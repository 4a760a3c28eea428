"""Personal weights: the tensors that test-time training changed, bound to the base model they belong to."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file

from sap3d.errors import InputError, explaining, first_line
from sap3d.scene import atomic_path
from sap3d.zero123.lora import DOWN, add_lora
from sap3d.zero123.model import Zero123

FILE = "personal.safetensors"


def weights_hash(model: Zero123) -> str:
    """SHA-256 over the names, shapes and values of a model's U-Net and camera projection."""
    digest = hashlib.sha256()
    for part in (model.unet, model.cc_projection):
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.hexdigest()


def save_personal(path: Path, model: Zero123, trained: list[str], base_hash: str) -> None:
    """Store the tensors named in ``trained`` (names of ``model.named_parameters()``) with the base model's hash."""
    parameters = dict(model.named_parameters())
    tensors = {name: parameters[name].detach().cpu().contiguous().to(torch.float16) for name in trained}
    with atomic_path(Path(path)) as temporary:
        save_file(tensors, temporary, metadata={"base": base_hash})  # one entry: the order of several is random in the file


def load_personal(folder: Path, base: Zero123) -> Zero123:
    """``base`` with the personal tensors of ``folder`` put in; as it was when stage 2 trained nothing.

    Raises InputError when the file is damaged or belongs to another base model.
    """
    model, path = base, Path(folder) / FILE
    if not path.is_file():
        return model
    with explaining(lambda error: f"{path}: damaged personal weights ({first_line(error)}); delete the folder and run stage 2 again"), safe_open(path, "pt") as stored:
        metadata = stored.metadata() or {}
        tensors = {name: stored.get_tensor(name) for name in stored.keys()}
    if metadata.get("base") != weights_hash(model):
        raise InputError(f"{path}: was trained from another base model, or one loaded with another weights_dtype; use the same in all stages or run stage 2 again")
    ranks = {tensor.shape[0] for name, tensor in tensors.items() if name.endswith(f".{DOWN}")}
    if len(ranks) == 1:
        add_lora(model, ranks.pop())
    parameters = dict(model.named_parameters())
    for name, tensor in tensors.items():
        if name not in parameters or parameters[name].shape != tensor.shape:
            raise InputError(f"{path}: tensor {name} does not fit the base model; run stage 2 again")
        with torch.no_grad():
            parameters[name].copy_(tensor)
    return model
