"""A closed-form autoencoder with the interface of diffusers' ``AutoencoderKL``: principal components of image patches.

An image is cut into p x p patches; each becomes the first C principal components of the patches of the training corpus.
Encoding and decoding are one matrix product each, colours are exact, and fitting takes seconds. It stands where a
trained VAE would stand in the small preset (docs/log.md compares them).
"""

from __future__ import annotations

from types import SimpleNamespace

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor
from torch.nn import functional as F


class PointPosterior:
    """The posterior of an encoder without noise; ``mode`` and ``sample`` are the same tensor."""

    def __init__(self, mean: Tensor):
        self.mean = mean

    def mode(self) -> Tensor:
        return self.mean

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        return self.mean


class PatchPCAAutoencoder(ModelMixin, ConfigMixin):
    """Images in [-1, 1], (B, 3, S, S), to latents (B, latent_channels, S / patch_size, S / patch_size) and back.

    ``basis`` has orthonormal rows (latent_channels, 3 p p); ``gain`` scales each component. With ``gain`` the inverse
    standard deviation to the power ``whitening`` (0: natural variances, 1: all equal), small components stay smaller
    than large ones but are not drowned by the noise of the diffusion. ``latent_variance`` of each
    component over the images it was fitted to is kept for the diffusion model.
    """

    @register_to_config
    def __init__(self, patch_size: int = 4, latent_channels: int = 12, scaling_factor: float = 1.0):
        super().__init__()
        size = 3 * patch_size**2
        if latent_channels > size:
            raise ValueError(f"at most {size} components for patches of {patch_size} pixels, got {latent_channels}")
        self.register_buffer("mean", torch.zeros(size))
        self.register_buffer("basis", torch.eye(latent_channels, size))
        self.register_buffer("gain", torch.ones(latent_channels))
        self.register_buffer("latent_variance", torch.ones(latent_channels))

    @torch.no_grad()
    def fit(self, images: Tensor, whitening: float = 0.5) -> PatchPCAAutoencoder:
        """Fit to images (B, 3, S, S) in [-1, 1]. The latents have mean 0 and overall mean square 1/4.

        Less than 1, because the first component is several times larger than the mean and alike over wide regions: noise
        hides the object's outline only where it is stronger than that (arXiv 2301.10972 scales its inputs for this reason).
        """
        patches = self._patches(images).flatten(2).transpose(1, 2).reshape(-1, self.mean.numel()).double()
        # White patches are most of a corpus on white background: the object's own patches shape the basis, all of them the scale.
        covariance = torch.cov(patches[(patches < 0.99).any(dim=1)].T)
        basis = torch.linalg.eigh(covariance)[1].flip(1).T[: self.config.latent_channels]
        basis = basis * torch.sign(basis.sum(1, keepdim=True) + 1e-9)  # a fixed sign, so that a refit gives the same latents
        mean = patches.mean(0)
        variance = ((patches - mean) @ basis.T).var(0).clamp_min(1e-8)
        gain = variance.sqrt() ** -whitening
        gain = 0.5 * gain / ((gain**2 * variance).mean().sqrt())
        self.latent_variance.copy_(gain**2 * variance)
        self.mean.copy_(mean)
        self.basis.copy_(basis)
        self.gain.copy_(gain)
        return self

    def _patches(self, images: Tensor) -> Tensor:
        return F.pixel_unshuffle(images, self.config.patch_size)

    def encode(self, images: Tensor) -> SimpleNamespace:
        latents = torch.einsum("bphw,cp->bchw", self._patches(images) - self.mean[:, None, None], self.basis * self.gain[:, None])
        return SimpleNamespace(latent_dist=PointPosterior(latents))

    def leading(self, components: int) -> tuple[Tensor, Tensor]:
        """``encode`` as a convolution whose stride is the patch, for the first channels: weight (components, 3, p, p), bias."""
        basis = self.basis[:components] * self.gain[:components, None]
        return basis.view(components, 3, self.config.patch_size, -1), -basis @ self.mean

    def decode(self, latents: Tensor) -> SimpleNamespace:
        patches = torch.einsum("bchw,cp->bphw", latents, self.basis / self.gain[:, None]) + self.mean[:, None, None]
        return SimpleNamespace(sample=F.pixel_shuffle(patches, self.config.patch_size))
