"""Run the reference implementations on seeded weights and write what they give: the expected outputs of the parity tests.

    python -m benchmarks.reference --zero123 CHECKOUT --clip CHECKOUT --out tests/parity
    python -m benchmarks.reference --relposepp CHECKOUT --out tests/parity
    python -m benchmarks.reference --zero123 CHECKOUT --clip CHECKOUT --size full --out FOLDER     (16 GB; python -m benchmarks.parity compares)

CHECKOUT: copies of cvlab-columbia/zero123, openai/CLIP and amyxlase/relpose-plus-plus, outside of this repository; their Python
packages einops, kornia and antialiased_cnns must be importable. docs/FULL_PRESET.md has the recipe in words.
"""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import torch

import sap3d.compat  # noqa: F401  (before torchvision)
from benchmarks.seeded import seeded, seeded_weight
from safetensors.torch import save_file
from sap3d.errors import ArgumentParser, InputError, cli, first_line

SIZES = {  # channels of the U-Net and of the autoencoder, width and layers of CLIP and of its unused text part, pixels, layers of RelPose++
    "small": {"unet": 32, "vae": 32, "clip": (64, 2), "text": (64, 1, 1, 100), "image": 64, "depth": 1},
    "medium": {"unet": 96, "vae": 64, "clip": (256, 4), "text": (64, 1, 1, 100), "image": 128, "depth": 3},
    "full": {"unet": 320, "vae": 128, "clip": (1024, 24), "text": (768, 12, 12, 49408), "image": 256, "depth": 8},
}


def stub(name: str, **content) -> None:
    """A module for an import of the reference code that nothing here uses."""
    parts = name.split(".")
    for k in range(1, len(parts) + 1):
        sys.modules.setdefault(".".join(parts[:k]), types.ModuleType(".".join(parts[:k])))
    for key, value in content.items():
        setattr(sys.modules[name], key, value)


def fill(module: torch.nn.Module) -> dict[str, list[int]]:
    """Seeded weights in place; names and shapes of the state they make up. Schedules and other counts are left as they are."""
    shapes = {}
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(seeded_weight(name, tuple(parameter.shape)))
            shapes[name] = list(parameter.shape)
    return shapes


def zero123(checkout: Path, clip_checkout: Path, size: dict, out: Path) -> None:
    sys.path[:0] = [str(checkout / "zero123") if (checkout / "zero123").is_dir() else str(checkout), str(clip_checkout)]
    import pytorch_lightning.utilities  # noqa: F401  (before a part of it is stood in for)

    stub("pytorch_lightning.utilities.distributed", rank_zero_only=lambda f: f)
    stub("taming.modules.vqvae.quantize", VectorQuantizer2=None)
    for name in ("clip", "cv2", "taming.modules.losses"):
        stub(name)
    stub("carvekit.api.high", HiInterface=None)
    import importlib.util

    spec = importlib.util.spec_from_file_location("clip_model", clip_checkout / "clip" / "model.py")
    clip_model = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(clip_model)
    width, layers = size["clip"]
    text = size["text"]
    sys.modules["clip"].load = lambda name, device, jit: (clip_model.CLIP(768, 224, layers, width, 14, 77, text[3], text[0], text[1], text[2]), None)
    sys.modules["clip"].tokenize = None

    from ldm.models.diffusion.ddim import DDIMSampler
    from ldm.models.diffusion.ddpm import LatentDiffusion

    model = LatentDiffusion(
        linear_start=0.00085, linear_end=0.012, timesteps=1000, image_size=size["image"] // 8, channels=4, conditioning_key="hybrid", scale_factor=0.18215,
        first_stage_key="image_target", cond_stage_key="image_cond", use_ema=False, cond_stage_trainable=False,
        unet_config={"target": "ldm.modules.diffusionmodules.openaimodel.UNetModel", "params": dict(
            image_size=32, in_channels=8, out_channels=4, model_channels=size["unet"], attention_resolutions=[4, 2, 1], num_res_blocks=2, channel_mult=[1, 2, 4, 4],
            num_heads=8, use_spatial_transformer=True, transformer_depth=1, context_dim=768, use_checkpoint=False, legacy=False)},
        first_stage_config={"target": "ldm.models.autoencoder.AutoencoderKL", "params": dict(
            embed_dim=4, monitor="val", lossconfig={"target": "torch.nn.Identity"}, ddconfig=dict(
                double_z=True, z_channels=4, resolution=256, in_channels=3, out_ch=3, ch=size["vae"], ch_mult=[1, 2, 4, 4], num_res_blocks=2, attn_resolutions=[], dropout=0.0))},
        cond_stage_config={"target": "ldm.modules.encoders.modules.FrozenCLIPImageEmbedder"},
    ).eval()  # fmt: skip
    shapes = fill(model)
    with torch.no_grad():
        images = seeded("images", (2, 3, size["image"], size["image"])).tanh()
        latents, pose = seeded("latents", (2, 4, size["image"] // 8, size["image"] // 8)), 0.5 * seeded("pose", (2, 4))
        t, noise, timestep = torch.tensor([100, 800]), seeded("noise", latents.shape), torch.tensor([261, 261])
        found: dict[str, torch.Tensor] = {"alphas_cumprod": model.alphas_cumprod}
        moments = model.first_stage_model.encode(images)
        found["vae_mode"], found["vae_decoded"] = moments.mode(), model.decode_first_stage(0.18215 * latents)
        token = model.get_learned_conditioning(images)
        found["clip"] = token
        found["projected"] = model.cc_projection(torch.cat([token, pose[:, None]], -1))
        condition = {"c_crossattn": [found["projected"]], "c_concat": [found["vae_mode"]]}
        found["unet"] = model.apply_model(latents, t, condition)
        # One training loss with the conditions dropped as in training: the token of the first, the concatenation of the second.
        dropped = model.cc_projection(torch.cat([torch.stack([torch.zeros_like(token[0]), token[1]]), pose[:, None]], -1))
        kept = torch.tensor([1.0, 0.0])[:, None, None, None]
        found["loss"] = model.p_losses(latents, {"c_crossattn": [dropped], "c_concat": [kept * found["vae_mode"]]}, t, noise)[0][None]
        found["loss_all"] = model.p_losses(latents, condition, t, noise)[0][None]
        sampler = DDIMSampler(model)
        sampler.register_buffer = lambda name, value: setattr(sampler, name, value)
        nothing = {"c_crossattn": [torch.zeros_like(found["projected"])], "c_concat": [torch.zeros_like(found["vae_mode"])]}
        sampler.make_schedule(50, ddim_eta=0.0, verbose=False)
        index = int((torch.from_numpy(sampler.ddim_timesteps) == int(timestep[0])).nonzero())
        found["ddim_step"] = sampler.p_sample_ddim(noise, condition, timestep, index, unconditional_guidance_scale=3.0, unconditional_conditioning=nothing)[0]
        # All steps by hand: the reference's own loop leaves out the noisiest one.
        sampler.make_schedule(4, ddim_eta=0.0, verbose=False)
        found["ddim_sample"] = noise
        for index in reversed(range(4)):
            now = torch.full((2,), int(sampler.ddim_timesteps[index]))
            found["ddim_sample"] = sampler.p_sample_ddim(found["ddim_sample"], condition, now, index, unconditional_guidance_scale=3.0, unconditional_conditioning=nothing)[0]
    write(out, "zero123", shapes, found)


def relposepp(checkout: Path, depth: int, out: Path) -> None:
    stub("utils", generate_random_rotations=None, get_permutations=lambda n, eval_time=False: [(i, j) for i in range(n) for j in range(n) if (i < j if eval_time else i != j)])
    import antialiased_cnns

    build = antialiased_cnns.resnet50
    antialiased_cnns.resnet50 = lambda pretrained: build(pretrained=False)
    sys.path.insert(0, str(checkout / "relpose"))
    from models.models import RelPose

    queries = 16
    model = RelPose(num_pe_bases=8, num_layers=4, hidden_size=256, num_queries=queries, num_images=3, depth=depth).eval()
    shapes = fill(model) | {name: list(buffer.shape) for name, buffer in model.named_buffers()}
    with torch.no_grad():
        images, crop = seeded("images", (1, 3, 3, 224, 224)).tanh() * 0.5 + 0.5, 0.3 * seeded("crop", (1, 3, 3))
        mean, std = torch.tensor([0.485, 0.456, 0.406])[:, None, None], torch.tensor([0.229, 0.224, 0.225])[:, None, None]
        rotations = torch.linalg.qr(seeded("rotations", (queries, 3, 3)).double())[0].float()
        given = rotations[None, :, None].expand(1, queries, 3, 3, 3)
        features = model.feature_extractor((images - mean) / std, crop_pe=model.positional_encoding(crop))
        _, scores, translations = model(queries=given, images=(images - mean) / std, crop_params=crop, take_softmax=False, eval_time=True)
    write(out, "relposepp", shapes, {"features": features[..., ::16].contiguous(), "scores": scores, "translations": translations, "rotations": rotations})


def write(out: Path, name: str, shapes: dict, found: dict[str, torch.Tensor]) -> None:
    out.mkdir(parents=True, exist_ok=True)
    (out / f"{name}.json").write_text(json.dumps(shapes, separators=(",", ":")) + "\n")
    save_file({key: value.detach().float().contiguous() for key, value in found.items()}, out / f"{name}.safetensors")
    print(f"{name}: {sum(torch.Size(s).numel() for s in shapes.values()):,} numbers; " + ", ".join(f"{k} {tuple(v.shape)}" for k, v in found.items()))


def check_pairs(arguments) -> None:
    """Raises InputError where a checkout is given without the one that belongs to it."""
    if (arguments.zero123 is None) != (arguments.clip is None):
        raise InputError("--zero123 and --clip go together: the reference's image encoder is OpenAI's")


def main() -> None:
    parser = ArgumentParser(prog="python -m benchmarks.reference", description=__doc__.splitlines()[0])
    for name in ("zero123", "clip", "relposepp"):
        parser.add_argument(f"--{name}", type=Path, metavar="CHECKOUT", help="reference implementation, outside of this repository")
    parser.add_argument("--size", choices=SIZES, default="small", help="full: the published one")
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    check_pairs(arguments)
    if arguments.zero123 is None and arguments.relposepp is None:
        raise InputError("give --zero123 and --clip, --relposepp, or all three")
    try:
        if arguments.zero123:
            zero123(arguments.zero123, arguments.clip, SIZES[arguments.size], arguments.out)
        if arguments.relposepp:
            relposepp(arguments.relposepp, SIZES[arguments.size]["depth"], arguments.out)
    except (ImportError, FileNotFoundError) as error:  # a checkout of something else, or packages that only the references need
        raise InputError(f"the reference cannot be loaded ({first_line(error)}); give a whole checkout, and install the packages that it needs (einops, kornia, antialiased_cnns)") from None


if __name__ == "__main__":
    cli(main)
