"""The condition image's encoder: CLIP's vision transformer, on pixels (published form) or on a convolutional trunk's features (small form)."""

from __future__ import annotations

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional as F
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class AlexNetCLIPEncoder(ModelMixin, ConfigMixin):
    """A CLIP vision transformer whose patches are positions of an AlexNet feature map.

    trunk: ``alexnet``, frozen, with its ImageNet weights: shared with LPIPS (sap3d/weights/alexnet), not stored with this
    model. ``scratch``: the same layers with random weights, trained and stored with the transformer (``own_trunk``). At
    ``image_size`` 128 the map is 7 x 7 x 256, so that the transformer sees 49 patch tokens and its class token.
    """

    @register_to_config
    def __init__(self, image_size: int = 128, grid: int = 7, width: int = 256, layers: int = 2, heads: int = 4, projection_dim: int = 256,
                 trunk: str = "alexnet"):  # fmt: skip
        super().__init__()
        if trunk not in ("alexnet", "scratch"):
            raise ValueError(f"trunk must be 'alexnet' or 'scratch', got {trunk!r}")
        self.clip = CLIPVisionModelWithProjection(
            CLIPVisionConfig(
                hidden_size=width, intermediate_size=2 * width, num_hidden_layers=layers, num_attention_heads=heads,
                num_channels=256, image_size=grid, patch_size=1, projection_dim=projection_dim,
            )
        )  # fmt: skip
        self.own_trunk = _random_trunk() if trunk == "scratch" else None

    def trunk_features(self, images: Tensor) -> Tensor:
        """Features (B, 256, grid, grid) of images (B, 3, S, S) in [0, 1]; without gradient where the trunk is the frozen one."""
        from sap3d.alexnet import alexnet_tokens

        resized = _resize(images.float(), self.config.image_size)
        if self.own_trunk is not None:
            return alexnet_tokens(resized.to(self.own_trunk[0].weight.dtype), self.own_trunk)
        with torch.no_grad():
            return alexnet_tokens(resized)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, 3, S, S) in [0, 1] to (pooled (B, D), patch tokens (B, grid^2, D))."""
        return self.encode_features(self.trunk_features(images))

    def encode_features(self, features: Tensor) -> tuple[Tensor, Tensor]:
        out = self.clip(pixel_values=(features / 3.0).to(self.clip.dtype))  # AlexNet's activations have a scale of about 3
        return out.image_embeds, out.last_hidden_state[:, 1:]


def _random_trunk() -> torch.nn.Sequential:
    """AlexNet's layers up to conv5's ReLU with He's random weights (arXiv 1502.01852): PyTorch's own let activations of layers
    without normalisation die away. Draws from a copy of the random state, so that weights drawn afterwards are those of a model
    with the frozen trunk."""
    from sap3d.alexnet import build_alexnet_features

    with torch.random.fork_rng(devices=[]):
        trunk = build_alexnet_features()[:12]
        for layer in trunk:
            if isinstance(layer, torch.nn.Conv2d):
                torch.nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                torch.nn.init.zeros_(layer.bias)
    return trunk


class PixelCLIPEncoder:
    """CLIP ViT-L/14 as Zero-1-to-3 uses it: 224 x 224 bicubic, CLIP's normalisation, projected class token."""

    def __init__(self, clip: CLIPVisionModelWithProjection):
        self.clip = clip

    def __call__(self, images: Tensor) -> tuple[Tensor, Tensor]:
        size = self.clip.config.image_size
        pixels = F.interpolate(images, (size, size), mode="bicubic", align_corners=True, antialias=False)
        mean = images.new_tensor(CLIP_MEAN)[:, None, None]
        std = images.new_tensor(CLIP_STD)[:, None, None]
        out = self.clip(pixel_values=((pixels - mean) / std).to(self.clip.dtype))
        return out.image_embeds, out.last_hidden_state[:, 1:]


def _resize(images: Tensor, size: int) -> Tensor:
    if images.shape[-1] == size:
        return images
    return F.interpolate(images, (size, size), mode="bilinear", align_corners=False, antialias=images.shape[-1] > size)
