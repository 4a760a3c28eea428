"""What the diffusion model adds: its novel views as a warm start, and score distillation in bounded memory."""

from __future__ import annotations

from typing import Callable, Mapping, Sequence

import numpy as np
import torch
from torch.nn import functional as F

from sap3d.cameras import FOV_RAD, RADIUS, Camera, pose_condition
from sap3d.field.photos import pixel_grid
from sap3d.field.rendering import Rendering
from sap3d.metrics.image import LpipsAlex
from sap3d.zero123.photos import photos_over_white
from sap3d.zero123.sampler import condition_probabilities, resolve_strategy


class Guidance:
    """Score distillation (DreamFusion, arXiv 2209.14988) from a Zero-1-to-3 model conditioned on the photos.

    For a render x of a camera, noise of level t is added to its latent and the model predicts the clean view x0. The
    gradient at the image is sigma_t alpha_t (x - x0), which is DreamFusion's w(t) (eps_predicted - eps) with w = sigma_t^2,
    taken in latents and carried back through the encoder ("latent"), or between images ("image", as in HiFA, arXiv 2305.18766).
    """

    def __init__(self, model, photos: Mapping[str, np.ndarray], cameras: Mapping[str, Camera], config):
        self.model, self.config = model, config
        self.size = min(config.sds_size or model.image_size, model.image_size)
        self.strategy = config.sds_condition if config.sds_condition == "mean" else resolve_strategy(config.sds_condition, model)
        self.cameras = [cameras[name] for name in photos]
        # A plane sweep uses what photos have beyond the model's size; a learned encoder is asked about the pictures that stage 2 has trained it on.
        size = model.image_size if model.sweep is None else max(min(image.shape[0] for image in photos.values()), model.image_size)
        views = photos_over_white(photos, size).to(model.device)
        with torch.no_grad():
            self.features = model.encode_condition(views[:, :3], views[:, 3:])
        # First guesses take longer than predictions: a model that makes them is asked about a fixed set of cameras.
        generator = torch.Generator().manual_seed(config.seed)
        self.pool = [self._draw_camera(generator) for _ in range(config.sds_cameras)] if model.multiplane is not None else []
        self.guesses: dict[tuple, torch.Tensor] = {}

    def random_camera(self, generator: torch.Generator) -> Camera:
        """A camera of the protocol's radius, uniform over the part of the sphere between ``sds_elevations``; of ``sds_cameras``
        such cameras, where the model makes first guesses."""
        if self.pool:
            return self.pool[int(torch.randint(len(self.pool), (1,), generator=generator))]
        return self._draw_camera(generator)

    def _draw_camera(self, generator: torch.Generator) -> Camera:
        draw = torch.rand(2, generator=generator).tolist()
        low, high = np.sin(np.deg2rad(self.config.sds_elevations))
        return Camera(float(np.arccos(low + (high - low) * draw[0])), 2 * np.pi * draw[1], RADIUS, FOV_RAD)

    def conditions(self, camera: Camera, generator: torch.Generator) -> torch.Tensor:
        """Indices (B, M) of the photos that condition a camera's view: B predictions, to be averaged, of M photos each."""
        every = torch.arange(len(self.cameras))
        if self.strategy == "all":
            return every[None]
        if self.strategy == "mean":
            return every[:, None]
        chances = condition_probabilities([camera], self.cameras, self.strategy)[0]
        return torch.multinomial(torch.from_numpy(chances), 1, generator=generator)[None]

    def gradient(self, image: torch.Tensor, camera: Camera, progress: float, generator: torch.Generator) -> torch.Tensor:
        """d(loss)/d(image), same shape as ``image`` (1, 3, S, S), S at most the model's; ``progress`` in [0, 1] moves the range of noise levels."""
        model, config = self.model, self.config
        low, high = (a + (b - a) * progress for a, b in zip(config.sds_t_start, config.sds_t_end))
        level = low + (high - low) * float(torch.rand(1, generator=generator))
        t = torch.full((1,), min(max(round(level * model.num_timesteps), 0), model.num_timesteps - 1), dtype=torch.long, device=model.device)
        chosen = self.conditions(camera, generator)
        pose = torch.from_numpy(np.stack([pose_condition(camera, c) for c in self.cameras])).float()[chosen].to(model.device)
        through_encoder = config.sds_residual == "latent"
        image = image.detach().to(model.device).requires_grad_(through_encoder)
        with torch.set_grad_enabled(through_encoder):
            latent = model.encode_target(image)
        noise = torch.randn(latent.shape, generator=generator).to(latent)
        with torch.no_grad():
            noisy = model.add_noise(latent.detach(), noise, t)
            count = len(chosen)
            guess = self._guess(camera, chosen, pose)
            prepared = model.conditions(self.features.small[chosen], pose, guess)
            out = model.guided(noisy.expand(count, -1, -1, -1), t.expand(count), *prepared, config.guidance_scale)
            clean = model.predicted_original(out.mean(0, keepdim=True), noisy, t)
            alpha = model.alphas_cumprod[t]
            level_weight = (alpha * (1 - alpha)).sqrt().view(-1, 1, 1, 1)
            if not through_encoder:
                decoded = F.interpolate(model.decode_beside(clean, guess if guess is None else guess.mean(0, keepdim=True)), image.shape[-2:], mode="area")
                return level_weight * (image - decoded)
        return torch.autograd.grad(latent, image, (level_weight * (latent.detach() - clean)).to(latent.dtype))[0]

    def _guess(self, camera: Camera, chosen: torch.Tensor, pose: torch.Tensor) -> torch.Tensor | None:
        """The model's first guess (B, 3, S, S) of a view, made once a camera and choice of photos; None where it makes none."""
        if self.model.multiplane is None:
            return None
        key = (camera, *chosen.flatten().tolist())
        if key not in self.guesses:
            self.guesses[key] = self.model.first_guess(self.features[chosen], pose)
        return self.guesses[key]


class Likeness:
    """Perceptual distance between renders and the novel views of stage 2, on patches at the views' own size.

    Pixels of several views of an imperfect prior agree only in the mean, which is soft; their patches agree in what they look
    like (LPIPS of renders and of samples of a diffusion model: ReconFusion, arXiv 2312.02981, section 3.3).

    Only brightness follows it. The distance hardly minds hues, so that its gradient, left to itself, covers what no photo shows with
    stains of all colours.
    """

    SMALLEST = 32  # pixels: what the network of the distance needs

    def __init__(self, novel_views: Mapping[str, np.ndarray], size: int, device="cpu"):
        """novel_views: (S, S, 3) each, in the order of their cameras; size: side of a patch, pixels, at most S."""
        self.views = torch.from_numpy(np.stack(list(novel_views.values()))).float().permute(0, 3, 1, 2)
        self.full, self.size, self.device = self.views.shape[-1], min(size, self.views.shape[-1]), device
        self.lpips, self.grid = LpipsAlex(device), pixel_grid(self.full).view(self.full, self.full, 2)
        ink = (1 - self.views).amax(1) > 0.05
        self.boxes = [(rows[0], rows[-1] + 1, columns[0], columns[-1] + 1) if len(rows) else (0, self.full, 0, self.full) for rows, columns in
                      ((torch.nonzero(i.any(1))[:, 0].tolist(), torch.nonzero(i.any(0))[:, 0].tolist()) for i in ink)]  # fmt: skip

    def draw(self, generator: torch.Generator) -> tuple[int, torch.Tensor, torch.Tensor]:
        """(view, patch (1, 3, s, s), places (s * s, 2) of its pixels as ``pixel_grid`` gives them) at random, on the object."""
        u = torch.rand(3, generator=generator).tolist()
        view = int(u[0] * len(self.views))
        top, bottom, left, right = self.boxes[view]
        start = [round(min(max(low - self.size / 2 + share * (high - low), 0), self.full - self.size)) for share, low, high in ((u[1], top, bottom), (u[2], left, right))]
        rows, columns = (slice(k, k + self.size) for k in start)
        return view, self.views[view : view + 1, :, rows, columns].to(self.device), self.grid[rows, columns].reshape(-1, 2).to(self.device)

    def gradient(self, colour: torch.Tensor, target: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """LPIPS (scalar) of rays' colours (s * s, 3) and a patch, and the grey part of its gradient at the colours (s * s, 3)."""
        image = colour.detach().T.reshape(target.shape).requires_grad_(True)
        with torch.no_grad():
            wanted = self.lpips.features(target * 2 - 1)
        distance = self.lpips.distance(self.lpips.features(image * 2 - 1), wanted).sum()
        (gradient,) = torch.autograd.grad(distance, image)
        return distance.detach(), gradient.view(3, -1).mean(0)[:, None].expand(-1, 3)


def backward_in_tiles(
    render_rays: Callable[[torch.Tensor, torch.Tensor], Rendering], origins: torch.Tensor, directions: torch.Tensor, gradient: torch.Tensor, tile: int
) -> None:
    """Carry d(loss)/d(colour) (R, 3) of rays to the field's parameters, ``tile`` rays at a time.

    The loss is a function of the image alone, so its gradient at the image is all that a tile needs: the graph of one
    tile is the largest that is ever held, and the sum over tiles is the gradient of the whole.
    """
    useful = (gradient != 0).any(1).nonzero()[:, 0]
    for rows in useful.split(tile):
        colour = render_rays(origins[rows], directions[rows]).colour
        if colour.requires_grad:
            colour.backward(gradient[rows])


def load_novel_views(folder, names: Sequence[str]) -> dict[str, np.ndarray]:
    """The pictures of stage 2 by name, each (S, S, 3); raises InputError naming a missing one."""
    from sap3d.images import load_rgb

    return {name: load_rgb(folder / f"{name}.png") for name in names}
