"""Small Zero-1-to-3 models from scratch: the architecture of the ``tiny`` preset, and a random one for tests."""

from __future__ import annotations

import torch

import sap3d.compat  # noqa: F401
from diffusers import DDIMScheduler, UNet2DConditionModel

from sap3d.zero123.autoencoder import PatchPCAAutoencoder
from sap3d.zero123.image_encoder import AlexNetCLIPEncoder
from sap3d.zero123.model import CameraProjection, Zero123
from sap3d.zero123.multiplane import MultiplaneRenderer
from sap3d.zero123.sweep import PlaneSweep


def build_tiny(
    image_size: int = 128,
    patch_size: int = 8,
    latent_channels: int = 48,
    channels: tuple[int, ...] = (96, 192, 256),
    attention: tuple[bool, ...] = (False, True, True),
    layers_per_block: int = 1,
    token_dim: int = 256,
    encoder_layers: int = 2,
    planes: int = 8,
    plane_components: int = 24,
    seed: int = 0,
    tokens: str = "patches",
    trunk: str = "alexnet",
) -> Zero123:
    """A small Zero-1-to-3 with random weights: patch PCA, plane sweep (``planes`` 0: the published concatenation),
    AlexNet-CLIP patch tokens, v-prediction beside a linear guess, zero terminal SNR. tokens: ``pooled`` for one token an image
    as published; trunk: ``scratch`` for an image encoder without ImageNet features. All other weights are the same."""
    sweep = PlaneSweep(planes, plane_components) if planes else None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        down = tuple("CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attention)
        up = tuple("CrossAttnUpBlock2D" if a else "UpBlock2D" for a in reversed(attention))
        unet = UNet2DConditionModel(
            sample_size=image_size // patch_size,
            in_channels=latent_channels + (sweep.channels if sweep else latent_channels),
            out_channels=latent_channels,
            block_out_channels=channels,
            layers_per_block=layers_per_block,
            down_block_types=down,
            up_block_types=up,
            cross_attention_dim=token_dim,
            attention_head_dim=8 if channels[0] < 64 else tuple(max(c // 32, 1) for c in channels),  # number of heads: diffusers' historical name
            norm_num_groups=min(32, channels[0]),
        )
        vae = PatchPCAAutoencoder(patch_size=patch_size, latent_channels=latent_channels)
        encoder = AlexNetCLIPEncoder(width=token_dim, layers=encoder_layers, heads=4, projection_dim=token_dim, trunk=trunk)
        projection = CameraProjection(token_dim, token_dim, tokens=tokens, pose_dim=8 if sweep else 4)
    scheduler = DDIMScheduler(
        num_train_timesteps=1000, beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False,
        set_alpha_to_one=False, prediction_type="v_prediction", timestep_spacing="trailing", rescale_betas_zero_snr=True,
    )  # fmt: skip
    return Zero123(unet, vae, encoder, projection, scheduler, sweep, linear_skip=True)


@torch.no_grad()
def add_multiplane(model: Zero123, planes: int = 32, cells: int = 32, widths: tuple[int, ...] = (16, 32, 64, 96), seed: int = 0) -> None:
    """Give a model with a plane sweep an untrained renderer of first guesses. The U-Net takes the guess in through new input
    channels of weight 0, and its last layer starts again from 0: at first it adds nothing to the guess."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model.multiplane = MultiplaneRenderer(planes, cells, widths=widths, condition_size=model.image_size, latent_channels=model.latent_channels).eval().requires_grad_(False)
    old = model.unet.conv_in
    new = torch.nn.Conv2d(old.in_channels + 1 + model.latent_channels, old.out_channels, old.kernel_size, padding=old.padding)
    new.weight.zero_()
    new.weight[:, : old.in_channels] = old.weight
    new.bias.copy_(old.bias)
    model.unet.conv_in = new
    model.unet.register_to_config(in_channels=new.in_channels)
    model.unet.conv_out.weight.zero_()
    model.unet.conv_out.bias.zero_()


def tiny_random_model(seed: int = 0, planes: int = 4, multiplane: int = 0) -> Zero123:
    """A very small untrained model with a working autoencoder, for tests: 32 x 32 images, 8 x 8 latents. multiplane: planes of
    its renderer of first guesses (0: none)."""
    model = build_tiny(32, 4, 12, (32, 64), (False, True), token_dim=64, encoder_layers=1, planes=planes, plane_components=6, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    smooth = torch.nn.functional.interpolate(torch.rand(64, 3, 6, 6, generator=generator), (32, 32), mode="bicubic") * 2 - 1
    model.vae.fit(smooth.clamp(-1, 1))
    if multiplane:
        add_multiplane(model, multiplane, cells=16, widths=(8, 12), seed=seed)
    return model.eval()
