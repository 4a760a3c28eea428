"""Weight files that cannot be read: damage is one line that names the file, too little memory is not taken for damage."""

import pytest
import torch

from relposepp.judge import load_judge
from relposepp.network import load_network
from sap3d.alexnet import load_alexnet_features
from sap3d.errors import InputError
from sap3d.zero123 import personal
from sap3d.zero123.model import BUNDLED_ZERO123, load_multiplane, load_zero123


def load_personal_weights(tmp_path):
    (tmp_path / personal.FILE).write_bytes(b"never read")
    return personal.load_personal(tmp_path, base=None)


LOADERS = {  # what loads, the reader it relies on, what its line names
    "stage 1's network": (lambda _: load_network(), "safetensors.torch.load_file", "relposepp/weights/tiny/model.safetensors"),
    "judge": (lambda _: load_judge(), "safetensors.torch.load_file", "model.safetensors"),
    "AlexNet": (lambda _: load_alexnet_features(), "safetensors.torch.load_file", "not the AlexNet trunk"),
    "Zero-1-to-3": (lambda _: load_zero123(), "sap3d.zero123.model.load_file", "zero123: cannot be loaded"),
    "first guesses": (lambda _: load_multiplane(BUNDLED_ZERO123), "sap3d.zero123.model._load", "damaged renderer"),
    "personal weights": (load_personal_weights, "sap3d.zero123.personal.safe_open", f"{personal.FILE}: damaged personal weights"),
}


@pytest.mark.parametrize("name", LOADERS)
def test_damage_is_one_line_and_too_little_memory_is_not_damage(name, tmp_path, monkeypatch):
    load, reader, named = LOADERS[name]
    for error in (MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory"), PermissionError(13, "Permission denied", "x"), RuntimeError("broken\nby hand")):

        def fail(*_, error=error, **__):
            raise error

        monkeypatch.setattr(reader, fail)
        damaged = str(error).startswith("broken")
        with pytest.raises(InputError if damaged else type(error)) as raised:
            load(tmp_path)
        if damaged:
            assert named in str(raised.value) and "broken" in str(raised.value) and "\n" not in str(raised.value)


def test_what_is_small_and_exact_is_not_rounded():
    """A model in bfloat16 keeps its projection, renderer of first guesses, patch autoencoder and noise schedule as they are stored."""
    half, whole = load_zero123(dtype=torch.bfloat16), load_zero123()
    assert half.unet.dtype == torch.bfloat16 and next(half.image_encoder.parameters()).dtype == torch.bfloat16
    exact = half.state_dict() | dict(half.named_buffers())
    parts = ("cc_projection.", "multiplane.", "vae.", "alphas_cumprod", "correction_gain")
    for part in parts:
        assert any(name.startswith(part) for name in exact), part
    for name, expected in (whole.state_dict() | dict(whole.named_buffers())).items():
        if name.startswith(parts):
            assert exact[name].dtype == torch.float32 and torch.equal(exact[name], expected), name
