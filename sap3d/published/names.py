"""Names of tensors: how Zero-1-to-3's original checkpoints call them, and how diffusers and transformers do.

Every function maps the names of one part; what a name becomes is a list of ``Target``, since CLIP keeps queries, keys and values in
one matrix. The layouts are those of latent-diffusion's U-Net and autoencoder and of OpenAI's CLIP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import Tensor

_RESNET = {"in_layers.0": "norm1", "in_layers.2": "conv1", "emb_layers.1": "time_emb_proj", "out_layers.0": "norm2", "out_layers.3": "conv2", "skip_connection": "conv_shortcut"}
_UNET_FIXED = {"time_embed.0": "time_embedding.linear_1", "time_embed.2": "time_embedding.linear_2", "input_blocks.0.0": "conv_in", "out.0": "conv_norm_out", "out.2": "conv_out"}
_VAE_ATTENTION = {"norm": "group_norm", "q": "to_q", "k": "to_k", "v": "to_v", "proj_out": "to_out.0"}
_CLIP_FIXED = {
    "conv1.weight": "vision_model.embeddings.patch_embedding.weight", "class_embedding": "vision_model.embeddings.class_embedding",
    "positional_embedding": "vision_model.embeddings.position_embedding.weight", "ln_pre.weight": "vision_model.pre_layrnorm.weight",
    "ln_pre.bias": "vision_model.pre_layrnorm.bias", "ln_post.weight": "vision_model.post_layernorm.weight", "ln_post.bias": "vision_model.post_layernorm.bias",
}  # fmt: skip
_CLIP_LAYER = {"ln_1": "layer_norm1", "ln_2": "layer_norm2", "attn.out_proj": "self_attn.out_proj", "mlp.c_fc": "mlp.fc1", "mlp.c_proj": "mlp.fc2"}


@dataclass(frozen=True)
class Target:
    """A name of ours and what makes its tensor of the file's one.

    how: as_is; transpose; squeeze (a 1 x 1 convolution to a matrix); third0, third1, third2 (of the first axis).
    """

    name: str
    how: str = "as_is"

    def shape(self, shape: tuple[int, ...]) -> tuple[int, ...]:
        """The shape of our tensor, of the file's."""
        if self.how == "transpose":
            return shape[::-1]
        if self.how == "squeeze":
            return shape[:2]
        return (shape[0] // 3, *shape[1:]) if self.how.startswith("third") else shape

    def apply(self, tensor: Tensor) -> Tensor:
        if self.how == "transpose":
            return tensor.T.contiguous()
        if self.how == "squeeze":
            return tensor.flatten(1).contiguous() if tensor[0].numel() == tensor.shape[1] else tensor
        return tensor.chunk(3)[int(self.how[-1])].contiguous() if self.how.startswith("third") else tensor


def unet_target(name: str, blocks: int) -> list[Target] | None:
    """Of a name of latent-diffusion's U-Net (``input_blocks.4.1.proj_in.weight``); blocks: residual blocks a level. None: unknown."""
    stem, _, kind = name.rpartition(".")
    if stem in _UNET_FIXED:
        return [Target(f"{_UNET_FIXED[stem]}.{kind}")]
    found = re.fullmatch(r"(input_blocks|output_blocks)\.(\d+)\.(\d)\.(.+)|(middle_block)\.(\d)\.(.+)", name)
    if not found:
        return None
    if found[5]:
        attention = found[6] == "1"
        inside = (found[7] if _is_attention(found[7]) else None) if attention else _resnet(found[7])
        place = {"0": "resnets.0", "1": "attentions.0", "2": "resnets.1"}.get(found[6])
        return [Target(f"mid_block.{place}.{inside}")] if place and inside else None
    index, slot, rest = int(found[2]), int(found[3]), found[4]
    if found[1] == "input_blocks":
        level, block = divmod(index - 1, blocks + 1)
        if block == blocks:
            return [Target(f"down_blocks.{level}.downsamplers.0.conv.{rest[3:]}")] if slot == 0 and rest in ("op.weight", "op.bias") else None
        where = f"down_blocks.{level}"
    else:
        level, block = divmod(index, blocks + 1)
        where = f"up_blocks.{level}"
        if rest in ("conv.weight", "conv.bias"):
            return [Target(f"{where}.upsamplers.0.{rest}")] if slot in (1, 2) and block == blocks else None
    if slot == 0:
        inside = _resnet(rest)
        return [Target(f"{where}.resnets.{block}.{inside}")] if inside else None
    return [Target(f"{where}.attentions.{block}.{rest}")] if slot == 1 and _is_attention(rest) else None


def _resnet(rest: str) -> str | None:
    stem, _, kind = rest.rpartition(".")
    return f"{_RESNET[stem]}.{kind}" if stem in _RESNET else None


def _is_attention(rest: str) -> bool:
    return rest.split(".")[0] in ("norm", "proj_in", "transformer_blocks", "proj_out")


def vae_target(name: str, levels: int) -> list[Target] | None:
    """Of a name of latent-diffusion's autoencoder (``encoder.down.0.block.1.conv1.weight``). None: unknown."""
    if re.fullmatch(r"(quant_conv|post_quant_conv|encoder\.conv_in|encoder\.conv_out|decoder\.conv_in|decoder\.conv_out)\.(weight|bias)", name):
        return [Target(name)]
    name = name.replace("nin_shortcut", "conv_shortcut")
    if found := re.fullmatch(r"(encoder|decoder)\.norm_out\.(weight|bias)", name):
        return [Target(f"{found[1]}.conv_norm_out.{found[2]}")]
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.block_([12])\.(.+)", name):
        return [Target(f"{found[1]}.mid_block.resnets.{int(found[2]) - 1}.{found[3]}")]
    if found := re.fullmatch(r"(encoder|decoder)\.mid\.attn_1\.(\w+)\.(weight|bias)", name):
        ours = _VAE_ATTENTION.get(found[2])
        matrix = found[3] == "weight" and found[2] != "norm"
        return [Target(f"{found[1]}.mid_block.attentions.0.{ours}.{found[3]}", "squeeze" if matrix else "as_is")] if ours else None
    if found := re.fullmatch(r"(encoder\.down|decoder\.up)\.(\d+)\.(.+)", name):
        down = found[1] == "encoder.down"
        where = f"encoder.down_blocks.{found[2]}" if down else f"decoder.up_blocks.{levels - 1 - int(found[2])}"
        if block := re.fullmatch(r"block\.(\d+)\.(.+)", found[3]):
            return [Target(f"{where}.resnets.{block[1]}.{block[2]}")]
        if sample := re.fullmatch(r"(downsample|upsample)\.conv\.(weight|bias)", found[3]):
            return [Target(f"{where}.{sample[1]}rs.0.conv.{sample[2]}")]
    return None


def clip_target(name: str) -> list[Target] | None:
    """Of a name of OpenAI CLIP's vision transformer (``transformer.resblocks.0.attn.in_proj_weight``). None: unknown."""
    if name in _CLIP_FIXED:
        return [Target(_CLIP_FIXED[name])]
    if name == "proj":
        return [Target("visual_projection.weight", "transpose")]
    if found := re.fullmatch(r"transformer\.resblocks\.(\d+)\.(.+)", name):
        layer, rest = f"vision_model.encoder.layers.{found[1]}", found[2]
        if rest in ("attn.in_proj_weight", "attn.in_proj_bias"):
            return [Target(f"{layer}.self_attn.{which}_proj.{rest[13:]}", f"third{k}") for k, which in enumerate("qkv")]
        stem, _, kind = rest.rpartition(".")
        return [Target(f"{layer}.{_CLIP_LAYER[stem]}.{kind}")] if stem in _CLIP_LAYER else None
    return None


def modern_vae_name(name: str) -> str:
    """The attention layers of an autoencoder saved by diffusers before 0.18 are called otherwise."""
    for old, new in ((".query.", ".to_q."), (".key.", ".to_k."), (".value.", ".to_v."), (".proj_attn.", ".to_out.0.")):
        name = name.replace(old, new) if ".attentions." in name else name
    return name
