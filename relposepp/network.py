"""The network of RelPose++ (arXiv 2305.04926): image encoder, transformer over all views, pairwise rotation score, heads.

One set of classes for the published network and the tiny one; ``NetworkConfig`` says which. B scenes, N views, P tokens a
view, D channels, Q query rotations. Relative rotations: relposepp/rotations.py.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Callable

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from relposepp.config import NetworkConfig
from sap3d.alexnet import IMAGENET_MEAN, IMAGENET_STD, alexnet_tokens
from sap3d.cameras import RADIUS
from sap3d.errors import InputError, explaining, first_line
from sap3d.quantise import SCALE, quantise, restored

TINY_WEIGHTS = Path(__file__).resolve().parent / "weights" / "tiny"
ELEVATION_RANGE_DEG = (-60.0, 80.0)


def harmonic_embedding(values: torch.Tensor, bases: int) -> torch.Tensor:
    """(..., K) to (..., 2 * K * bases): sines, then cosines, of the values times 1, 2, 4 .. 2^(bases - 1) radians."""
    scaled = (values[..., None] * 2.0 ** torch.arange(bases, device=values.device, dtype=values.dtype)).flatten(-2)
    return torch.cat([scaled.sin(), scaled.cos()], dim=-1)


def compress(tokens: torch.Tensor) -> torch.Tensor:
    """Square root of the tokens: a few activations of the trunk are fifty times the usual ones."""
    return tokens.clamp_min(0).sqrt()


def sinusoid_table(positions: int, channels: int) -> torch.Tensor:
    """The position encoding of "Attention is all you need", (positions, channels)."""
    channel = np.arange(channels)
    angle = np.arange(positions)[:, None] / 10000.0 ** (2 * (channel // 2) / channels)[None, :]
    return torch.from_numpy(np.where(channel % 2 == 0, np.sin(angle), np.cos(angle))).float()


class TransformerLayer(nn.Module):
    """Pre-norm self-attention and feed-forward layer; queries, keys and values without bias."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        inner = config.heads * config.head_width
        self.heads, self.dropout = config.heads, config.dropout
        self.attention_norm = nn.LayerNorm(config.width)
        self.to_qkv = nn.Linear(config.width, 3 * inner, bias=False)
        self.to_out = nn.Linear(inner, config.width)
        self.mlp_norm = nn.LayerNorm(config.width)
        self.mlp = nn.Sequential(nn.Linear(config.width, config.mlp_width), nn.GELU(), nn.Linear(config.mlp_width, config.width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        b, t, _ = x.shape
        q, k, v = self.to_qkv(self.attention_norm(x)).view(b, t, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        # Written out: on a CPU the fused kernel's backward is four times as slow at these lengths.
        weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), -1)
        attended = (weights.to(v.dtype) @ v).transpose(1, 2).reshape(b, t, -1)
        x = x + F.dropout(self.to_out(attended), self.dropout, self.training)
        return x + F.dropout(self.mlp(self.mlp_norm(x)), self.dropout, self.training)


class ViewEncoder(nn.Module):
    """Images of one scene to one feature a view, each aware of all the others.

    ``image_tokens`` is the part that sees one image alone (with the frozen trunk it can be computed once and kept);
    ``forward`` is the joint part.
    """

    MAX_SINUSOID = 64  # views that the published marker can tell apart

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config = config
        self.spatial = config.backbone == "alexnet"
        self.tokens = 49 if self.spatial else 1
        channels = 256 + 4 * config.pixel_patch**2 if self.spatial else 2048
        self.token_channels = channels
        if self.spatial:
            self.register_buffer("token_mean", torch.zeros(channels))
            self.register_buffer("token_std", torch.ones(channels))
            self.backbone = None  # the frozen trunk is shared by the process (sap3d.alexnet)
        else:
            from relposepp.resnet import resnet50_global

            self.backbone = resnet50_global()
        channels += 2 * 3 * config.crop_bases
        self.project = nn.Identity() if channels == config.width or not (config.kept_tokens or not self.spatial) else nn.Linear(channels, config.width)
        if self.spatial and config.flatten:
            self.flatten = nn.Linear(self.tokens * channels, config.width)
        if self.spatial:
            self.place = nn.Parameter(0.02 * torch.randn(1 + self.tokens, config.width))  # of the summary token and every patch
        if config.view_marker == "first":
            self.first_view = nn.Parameter(0.02 * torch.randn(2, config.width))  # of view 0 and of all others
        else:
            self.register_buffer("view_table", sinusoid_table(self.MAX_SINUSOID, config.width), persistent=False)
        self.layers = nn.ModuleList(TransformerLayer(config) for _ in range(config.depth))
        self.norm = nn.LayerNorm(config.width)

    def image_tokens(self, images: torch.Tensor) -> torch.Tensor:
        """RGBA images (V, 4, S, S), premultiplied, in [0, 1], to tokens (V, P, channels) of every image alone."""
        size = self.config.image_size
        if images.ndim != 4 or images.shape[1:] != (4, size, size):
            raise ValueError(f"images must be (V, 4, {size}, {size}) RGBA, got {tuple(images.shape)}")
        white = images[:, :3] + (1 - images[:, 3:])
        if not self.spatial:
            mean, std = (white.new_tensor(v).view(1, 3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
            return self.backbone((white - mean) / std).flatten(2).transpose(1, 2)
        features = alexnet_tokens(white).flatten(2).transpose(1, 2)
        if features.shape[1] != self.tokens:
            raise ValueError(f"image_size {size} gives {features.shape[1]} spatial tokens, this network takes {self.tokens}")
        if self.config.pixel_patch:
            side, grid = self.config.pixel_patch, int(self.tokens**0.5)
            small = F.adaptive_avg_pool2d(torch.cat([white, images[:, 3:]], 1), grid * side)
            features = torch.cat([features, F.unfold(small, side, stride=side).transpose(1, 2)], -1)
        return features

    def tokens_identity(self) -> str:
        """What ``image_tokens`` depends on, for caches of tokens."""
        return f"{self.config.backbone} {self.config.image_size} {self.config.pixel_patch}"

    def forward(self, tokens: torch.Tensor, crop: torch.Tensor | None = None) -> torch.Tensor:
        """Tokens (B, N, P, channels), crop parameters (B, N, 3) if configured, to features (B, N, D)."""
        if tokens.ndim != 4 or tokens.shape[2:] != (self.tokens, self.token_channels):
            raise ValueError(f"tokens must be (B, N, {self.tokens}, {self.token_channels}), got {tuple(tokens.shape)}")
        b, n, p, _ = tokens.shape
        if self.spatial:
            alpha = tokens[..., -max(1, self.config.pixel_patch**2) :]
            tokens = (compress(tokens.float()) - self.token_mean) / self.token_std
        if self.config.crop_bases:
            if crop is None or crop.shape != (b, n, 3):
                raise ValueError(f"this network needs crop parameters ({b}, {n}, 3), got {None if crop is None else tuple(crop.shape)}")
            encoded = harmonic_embedding(crop, self.config.crop_bases)
            tokens = torch.cat([tokens, encoded[:, :, None].expand(b, n, p, -1)], -1)
        if self.spatial:
            x = self.place[0].expand(b, n, 1, -1)
            if self.config.flatten:
                x = x + self.flatten(F.dropout(tokens.flatten(2), self.config.flatten_dropout, self.training))[:, :, None]
            if self.config.kept_tokens:
                x = torch.cat([x, self._covered(self.project(tokens) + self.place[1:], alpha)], 2)
        else:
            x = self.project(tokens)
        if self.config.view_marker == "first":
            marks = torch.cat([self.first_view[:1], self.first_view[1:].expand(n - 1, -1)])
        else:
            if n > self.MAX_SINUSOID:
                raise ValueError(f"at most {self.MAX_SINUSOID} views, got {n}")
            marks = self.view_table[:n]
        x = x + marks[None, :, None]
        for k, layer in enumerate(self.layers):
            within = self.config.alternate and k % 2 == 0
            x = layer(x.flatten(0, 1)).view_as(x) if within else layer(x.flatten(1, 2)).view_as(x)
        return self.norm(x[:, :, 0])


    def _covered(self, x: torch.Tensor, alpha: torch.Tensor) -> torch.Tensor:
        """The ``kept_tokens`` tokens of every view with the most alpha in their patch: empty background costs no attention."""
        keep = self.config.kept_tokens
        if keep >= x.shape[2] or not self.config.pixel_patch:
            return x
        chosen = alpha.float().mean(-1).topk(keep, dim=2).indices.sort(dim=2).values
        return x.gather(2, chosen[..., None].expand(-1, -1, -1, x.shape[-1]))


class RotationScore(nn.Module):
    """Unnormalised log-probability of a relative rotation, given the features of two views (i before j).

    additive: layers(Linear(features) + Linear(embedded rotation)), as published. bilinear: the dot product of a network of
    the features and a network of the rotation, so that the queries are embedded once for all pairs.
    """

    def __init__(self, config: NetworkConfig):
        super().__init__()
        self.config, width = config, config.energy_width
        self.embed_feature = nn.Linear(2 * config.width, width)
        self.embed_query = nn.Linear(2 * 9 * config.rotation_bases, width)
        if config.energy == "additive":
            layers: list[nn.Module] = []
            for _ in range(config.energy_layers - 2):
                layers += [nn.LeakyReLU(), nn.Linear(width, width)]
            self.layers = nn.Sequential(*layers, nn.Linear(width, 1))
        else:
            self.feature_layers = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
            self.query_layers = nn.Sequential(nn.GELU(), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    def embed(self, rotations: torch.Tensor) -> torch.Tensor:
        """Rotations (..., Q, 3, 3) to embedded queries (..., Q, width)."""
        if rotations.shape[-2:] != (3, 3):
            raise ValueError(f"rotations must end in (3, 3), got {tuple(rotations.shape)}")
        out = self.embed_query(harmonic_embedding(rotations.flatten(-2), self.config.rotation_bases))
        return out if self.config.energy == "additive" else self.query_layers(out)

    def forward(self, first: torch.Tensor, second: torch.Tensor, embedded: torch.Tensor) -> torch.Tensor:
        """Features (M, D) of the two views of M pairs and embedded queries (Q, width) to scores (M, Q)."""
        pair = self.embed_feature(torch.cat([first, second], -1))
        if self.config.energy == "additive":
            hidden = self.layers[:-1](pair[:, None] + embedded)
            with torch.autocast(hidden.device.type, enabled=False):  # half precision would round scores to steps of a hundredth: ties
                return self.layers[-1](hidden.float())[..., 0]
        pair = self.feature_layers(pair) * pair.shape[-1] ** -0.5
        return pair @ embedded.T


class TranslationHead(nn.Module):
    """Translation of every view from its feature and the first view's, as published; the first view's is near (0, 0, 1)."""

    def __init__(self, config: NetworkConfig):
        super().__init__()
        wide, narrow = config.translation_widths
        self.embed_feature = nn.Linear(2 * config.width, wide)
        self.block1 = nn.Sequential(nn.LeakyReLU(), nn.Linear(wide, wide), nn.LeakyReLU(), nn.Linear(wide, narrow))
        self.block2 = nn.Sequential(nn.LeakyReLU(), nn.Linear(narrow, narrow), nn.LeakyReLU(), nn.Linear(narrow, narrow))
        self.decode = nn.Sequential(nn.LeakyReLU(), nn.Linear(narrow, 3))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        both = torch.cat([features, features[:, :1].expand_as(features)], -1)
        hidden = self.block1(self.embed_feature(both))
        translation = self.decode(hidden + self.block2(hidden))
        return translation + translation.new_tensor([0.0, 0.0, 1.0])


class RelPose(nn.Module):
    """The whole network. ``features`` first, then any of ``scores``, ``translations`` and ``elevation_logits``.

    ``precision``: in which those four compute (autocast): fp32, bf16 or fp16. Weights stay in fp32, and so do angles and what comes out.
    """

    TRANSLATION_UNIT = RADIUS  # length of a translation of 1: the first camera's usual distance, in object lengths

    def __init__(self, config: NetworkConfig):
        super().__init__()
        config.check()
        self.config = config
        self.precision = "fp32"
        self.encoder = ViewEncoder(config)
        self.score = RotationScore(config)
        self.translation_head = TranslationHead(config)
        if config.elevation_bins:
            self.elevation_head = nn.Sequential(nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, config.elevation_bins))
        if config.azimuth_bins:
            self.azimuth_head = nn.Sequential(nn.Linear(config.width, config.width), nn.GELU(), nn.Linear(config.width, config.azimuth_bins))

    def _computed(self, device: torch.device, compute: Callable[[], torch.Tensor]) -> torch.Tensor:
        if self.precision == "fp32":
            return compute()  # or as the caller's autocast wants it: training has its own
        with torch.autocast(device.type, {"bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]):
            return compute().float()

    def features(self, images: torch.Tensor, crop: torch.Tensor | None = None) -> torch.Tensor:
        """RGBA images (B, N, 4, S, S), premultiplied, in [0, 1], to features (B, N, D)."""
        if images.ndim != 5:
            raise ValueError(f"images must be (B, N, 4, S, S), got {tuple(images.shape)}")
        tokens = lambda: self.encoder.image_tokens(images.flatten(0, 1)).unflatten(0, images.shape[:2])
        return self._computed(images.device, lambda: self.encoder(tokens(), crop))

    def scores(self, features: torch.Tensor, pairs: list[tuple[int, int]], queries: torch.Tensor) -> torch.Tensor:
        """Scores (B, pairs, Q) of shared query rotations (Q, 3, 3) for pairs (i, j) with i < j."""
        if any(i >= j for i, j in pairs):
            raise ValueError("pairs must be (i, j) with i < j; transpose the rotation for the other direction")
        first, second = (features[:, [pair[k] for pair in pairs]].flatten(0, 1) for k in (0, 1))
        scores = self._computed(features.device, lambda: self.score(first, second, self.score.embed(queries)))
        return scores.unflatten(0, (len(features), len(pairs)))

    def translations(self, features: torch.Tensor) -> torch.Tensor:
        """Translations (B, N, 3) in PyTorch3D camera axes, in units of ``TRANSLATION_UNIT``."""
        return self._computed(features.device, lambda: self.translation_head(features))

    def elevation_logits(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (B, N, bins) over ``elevation_centres_deg``; raises ValueError for a network without that head."""
        if not self.config.elevation_bins:
            raise ValueError("this network has no elevation head")
        return self._computed(features.device, lambda: self.elevation_head(features))

    def elevation_centres_deg(self) -> np.ndarray:
        edges = np.linspace(*ELEVATION_RANGE_DEG, self.config.elevation_bins + 1)
        return (edges[1:] + edges[:-1]) / 2


LARGE = 1_000_000  # a matrix of more entries is stored in 8 bits (sap3d/quantise.py)


def save_network(folder: Path, network: RelPose, half: bool = True) -> None:
    """Write model.safetensors and config.json into ``folder``.

    half: fp16, and the one large matrix (``LARGE``) in 8 bits; otherwise everything as it is.
    """
    from safetensors.torch import save_file

    from sap3d.scene import atomic_path, write_json

    state: dict[str, torch.Tensor] = {}
    for name, value in network.state_dict().items():
        value = value.detach().cpu().contiguous()
        if half and value.is_floating_point() and value.ndim == 2 and value.numel() > LARGE:
            state[name], state[name + SCALE] = quantise(value)
        else:
            state[name] = value.half() if half and value.is_floating_point() else value
    with atomic_path(Path(folder) / "model.safetensors") as temporary:
        save_file(state, temporary)
    write_json(Path(folder) / "config.json", asdict(network.config))


def load_network(folder: Path | str | None = None, device: str = "cpu", precision: str = "fp32") -> RelPose:
    """The network of a folder written by ``save_network`` (None or empty: the bundled tiny weights), in eval mode.

    precision: of its computations (``RelPose``). Raises InputError when the folder is incomplete or its tensors do not fit its configuration.
    """
    from safetensors.torch import load_file

    folder = Path(folder) if folder else TINY_WEIGHTS
    if folder.is_file():
        raise InputError(f"{folder}: a file; published checkpoints become a folder by python -m sap3d.weights convert {folder}")
    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise InputError(f"{folder}: no {name}; give a folder with RelPose++ weights or restore the bundled ones from the repository")
    with explaining(lambda error: f"{folder}: not weights of this RelPose++ network ({first_line(error)})"):
        values = json.loads((folder / "config.json").read_text())
        values["translation_widths"] = tuple(values["translation_widths"])
        try:
            config = NetworkConfig(**values)
        except InputError as error:
            raise InputError(f"{folder}/config.json: {error}") from None
        network = RelPose(config)
        with explaining(lambda error: f"{folder}/model.safetensors: cannot be read ({first_line(error)}); restore the file"):
            state = load_file(folder / "model.safetensors")
        network.load_state_dict(restored(state))
    network.precision = precision
    return network.to(device).eval()
