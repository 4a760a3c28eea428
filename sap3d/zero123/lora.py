"""Low-rank changes of the U-Net's attention layers (LoRA, arXiv 2106.09685): what test-time training learns where memory is short."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sap3d.zero123.model import Zero123

DOWN, UP = "lora_down", "lora_up"


def is_lora(name: str) -> bool:
    return name.endswith((f".{DOWN}", f".{UP}"))


def add_lora(model: Zero123, rank: int, seed: int = 0) -> list[str]:
    """Give every linear layer of the attention a change up @ down of ``rank``, in fp32 and zero at first; names of its parameters.

    The layers keep their own weights, which may be in half precision: the change is added to their output, and never rounded into
    them. A model that has such changes already keeps them.
    """
    generator = torch.Generator().manual_seed(seed)
    for name, module in model.unet.named_modules():
        if isinstance(module, nn.Linear) and (".attn1." in f".{name}." or ".attn2." in f".{name}.") and not hasattr(module, DOWN):
            down = torch.randn(rank, module.in_features, generator=generator) / module.in_features**0.5
            setattr(module, DOWN, nn.Parameter(down.to(module.weight.device)))
            setattr(module, UP, nn.Parameter(torch.zeros(module.out_features, rank, device=module.weight.device)))
            module.register_forward_hook(_add_change)
    return [name for name, _ in model.named_parameters() if is_lora(name)]


def _add_change(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    x = inputs[0]
    change = F.linear(F.linear(x, getattr(module, DOWN).to(x.dtype)), getattr(module, UP).to(x.dtype))
    return output + change.to(output.dtype)
