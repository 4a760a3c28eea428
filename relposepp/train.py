"""Train the tiny network on the corpus: ``python -m relposepp.train [--minutes M] [key=value ...]``.

Everything random in a step is drawn from (seed, step), and a checkpoint holds weights, optimiser, averages and curves: a
run that was killed and started again ends with the same weights as one that was not.
"""

from __future__ import annotations

import csv
import json
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F

from relposepp.config import NetworkConfig, TrainConfig
from relposepp.data import Batch, TokenCache
from relposepp.network import TINY_WEIGHTS, RelPose, save_network
from relposepp.rotations import random_look_at_relative, relative_rotation
from sap3d.config import load_config, resolve_device
from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.interrupt import finish_step_first
from sap3d.progress import Progress
from sap3d.scene import atomic_path

VALIDATION_VIEWS = (2, 3, 5)


def all_pairs(views: int) -> list[tuple[int, int]]:
    return [(i, j) for i in range(views) for j in range(i + 1, views)]


def true_relative(batch: Batch) -> np.ndarray:
    """Relative rotations (B, pairs, 3, 3) of all pairs i < j."""
    pairs = np.array(all_pairs(batch.rotations.shape[1]))
    return relative_rotation(batch.rotations[:, pairs[:, 0]], batch.rotations[:, pairs[:, 1]])


def soft_targets(truth: torch.Tensor, queries: torch.Tensor, kernel_deg: float) -> torch.Tensor:
    """Target distribution (M, Q) over queries (Q, 3, 3) for true rotations (M, 3, 3): Gaussian in the rotation angle."""
    cosine = ((truth.flatten(1) @ queries.flatten(1).T) - 1) / 2
    angle = torch.rad2deg(torch.arccos(cosine.clamp(-1, 1)))
    return torch.softmax(-0.5 * (angle / kernel_deg) ** 2, -1)


def losses(network: RelPose, batch: Batch, queries: np.ndarray, config: TrainConfig) -> dict[str, torch.Tensor]:
    """The parts of the loss: rotation (cross entropy over queries and all true rotations), translation (L1), elevation."""
    device = next(network.parameters()).device
    features = network.encoder(batch.tokens.to(device))
    truth = torch.from_numpy(true_relative(batch)).float().to(device)
    candidates = torch.cat([torch.from_numpy(queries).float().to(device), truth.flatten(0, 1)])
    logits = network.scores(features, all_pairs(features.shape[1]), candidates).float().flatten(0, 1)
    target = soft_targets(truth.flatten(0, 1), candidates, config.kernel_deg)
    found = {"rotation": -(target * F.log_softmax(logits, -1)).sum(-1).mean()}

    radius = torch.from_numpy(batch.radius).float().to(device)
    wanted = torch.stack([torch.zeros_like(radius), torch.zeros_like(radius), radius / network.TRANSLATION_UNIT], -1)
    found["translation"] = (network.translations(features).float() - wanted).abs().mean()
    if network.config.elevation_bins:
        centres = torch.from_numpy(network.elevation_centres_deg()).float().to(device)
        elevation = torch.from_numpy(np.rad2deg(batch.elevation_rad)).float().to(device)
        bins = torch.softmax(-0.5 * ((elevation[..., None] - centres) / 6.0) ** 2, -1)
        found["elevation"] = -(bins * F.log_softmax(network.elevation_logits(features).float(), -1)).sum(-1).mean()
    if network.config.azimuth_bins:
        azimuth = torch.from_numpy(batch.azimuth_rad).float().to(device)
        centres = torch.arange(network.config.azimuth_bins, device=device) * (2 * np.pi / network.config.azimuth_bins)
        bins = torch.softmax(torch.cos(azimuth[..., None] - centres) / np.deg2rad(12.0) ** 2, -1)  # von Mises
        found["azimuth"] = -(bins * F.log_softmax(network.azimuth_head(features).float(), -1)).sum(-1).mean()
    return found


class Trainer:
    """One training run in ``config.out``; ``run`` goes on from its checkpoint when there is one."""

    def __init__(self, config: TrainConfig, network_config: NetworkConfig, train, validation):
        """train: a corpus (relposepp/data.py) or a list of them; validation: a corpus or None."""
        if config.steps < 1 or config.max_views < 2 or config.batch_views < config.max_views:
            raise InputError("training needs steps >= 1, max_views >= 2 and batch_views >= max_views")
        if network_config.backbone != "alexnet":
            raise InputError("training keeps the tokens of a frozen image encoder: backbone must be alexnet")
        self.config, self.out = config, Path(config.out)
        self.device = resolve_device(config.device)
        torch.manual_seed(config.seed)
        self.network = RelPose(network_config).to(self.device)
        encoder, cache = self.network.encoder, self.out / "tokens"
        self.train = TokenCache(train, encoder, cache, config.variants, self.device, "train")
        self.validation = None if validation is None else TokenCache(validation, encoder, cache, 1, self.device, "validation")
        mean, std = self.train.statistics()
        encoder.token_mean.copy_(mean)
        encoder.token_std.copy_(std)
        self.average = {k: v.detach().clone() for k, v in self.network.state_dict().items()}
        decay = [p for p in self.network.parameters() if p.ndim >= 2]
        rest = [p for p in self.network.parameters() if p.ndim < 2]
        groups = [{"params": decay, "weight_decay": config.weight_decay}, {"params": rest, "weight_decay": 0.0}]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds, self.history = 0, 0.0, []
        self._resume()

    # --- checkpoints --------------------------------------------------------------------------------------------------
    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _identity(self) -> dict:
        # steps may change between calls: the learning rate then follows the new schedule.
        ignored = ("minutes", "device", "out", "checkpoint_seconds", "corpus", "steps")
        return {"network": asdict(self.network.config)} | {k: v for k, v in asdict(self.config).items() if k not in ignored}

    def _resume(self) -> None:
        if not self.checkpoint.is_file():
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if json.loads(state["identity"]) != json.loads(json.dumps(self._identity())):
            raise InputError(f"{self.checkpoint}: belongs to a run with other settings; choose another out=FOLDER or delete it")
        self.network.load_state_dict(state["network"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.average, self.step, self.seconds = state["average"], state["step"], state["seconds"]
        self.history = json.loads(state["history"])

    def save(self) -> None:
        state = {
            "identity": json.dumps(self._identity()), "network": self.network.state_dict(), "optimiser": self.optimiser.state_dict(),
            "average": self.average, "step": self.step, "seconds": self.seconds, "history": json.dumps(self.history),
        }  # fmt: skip
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)

    # --- optimisation -------------------------------------------------------------------------------------------------
    def learning_rate(self, step: int) -> float:
        """Linear warm-up, then half a cosine down to 2 % at the last step."""
        config = self.config
        if step < config.warmup_steps:
            return config.learning_rate * (step + 1) / config.warmup_steps
        part = (step - config.warmup_steps) / max(1, config.steps - config.warmup_steps)
        return config.learning_rate * (0.02 + 0.98 * 0.5 * (1 + np.cos(np.pi * min(part, 1.0))))

    def one_step(self) -> dict[str, float]:
        config, step = self.config, self.step
        generator = np.random.default_rng([config.seed, step])
        torch.manual_seed(config.seed * 1_000_003 + step)  # dropout
        views = int(generator.integers(2, config.max_views + 1))
        batch = self.train.batch(config.batch_views // views, views, generator)
        queries = random_look_at_relative(config.queries, generator)
        self.network.train()
        with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=config.bf16):
            parts = losses(self.network, batch, queries, config)
        weights = {"rotation": 1.0, "translation": config.translation_weight, "elevation": config.elevation_weight, "azimuth": config.azimuth_weight}
        total = sum(weights[name] * value for name, value in parts.items())
        for group in self.optimiser.param_groups:
            group["lr"] = float(self.learning_rate(step))
        self.optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), config.clip_norm)
        self.optimiser.step()
        decay = min(config.ema_decay, (step + 1) / (step + 10))
        with torch.no_grad():
            for name, value in self.network.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        self.step += 1
        return {name: float(value.detach()) for name, value in parts.items()}

    def averaged(self) -> RelPose:
        """A copy of the network with the averaged weights, in eval mode."""
        network = RelPose(self.network.config).to(self.device)
        network.load_state_dict(self.average)
        return network.eval()

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Losses and pairwise rotation errors on fixed scenes of the validation split, with the averaged weights."""
        network, found = self.averaged(), {}
        generator = np.random.default_rng(12345)
        queries = random_look_at_relative(8192, generator)
        embedded = torch.from_numpy(queries).float().to(self.device)
        for views in VALIDATION_VIEWS:
            errors, rotation = [], []  # of this number of views
            for _ in range(4):
                batch = self.validation.batch(160 // views, views, generator)
                rotation.append(float(losses(network, batch, queries[:2048], self.config)["rotation"]))
                scores = network.scores(network.encoder(batch.tokens.to(self.device)), all_pairs(views), embedded)
                best = queries[scores.flatten(0, 1).argmax(-1).cpu().numpy()]
                trace = np.einsum("mij,mij->m", best, true_relative(batch).reshape(-1, 3, 3))
                errors.append(np.rad2deg(np.arccos(np.clip((trace - 1) / 2, -1, 1))))
            errors = np.concatenate(errors)
            found[f"val_loss_{views}"] = float(np.mean(rotation))
            found[f"val_median_deg_{views}"] = float(np.median(errors))
            found[f"val_under_30_{views}"] = float(np.mean(errors < 30))
        return found

    def run(self) -> RelPose:
        """Train to ``config.steps``, or for ``config.minutes``; returns the averaged network."""
        config, begin, saved = self.config, time.time(), time.time()
        sums: dict[str, list[float]] = {}
        before = self.seconds
        with finish_step_first() as stop, Progress("relposepp train", config.steps, 30.0, self.step) as progress:
            while self.step < config.steps and not stop.requested:
                for name, value in self.one_step().items():
                    sums.setdefault(name, []).append(value)
                progress.update(self.step, f"rotation {np.mean(sums['rotation'][-100:]):.3f}")
                self.seconds = before + time.time() - begin
                if self.step % config.validate_every == 0 or self.step == config.steps:
                    row = {"step": self.step, "seconds": round(self.seconds)} | {k: float(np.mean(v)) for k, v in sums.items()}
                    sums = {}
                    if self.validation is not None:
                        row |= self.validate()
                    self.history.append(row)
                    print(" ".join(f"{k} {v:.4g}" for k, v in row.items()), flush=True)
                    self.write_curves()
                out_of_time = config.minutes and time.time() - begin > 60 * config.minutes
                if time.time() - saved > config.checkpoint_seconds or out_of_time:
                    self.save()
                    saved = time.time()
                if out_of_time:
                    print(f"stopped after {config.minutes} minutes at step {self.step} of {config.steps}; run again to go on")
                    break
            self.save()
        if stop.requested:
            stop.leave()
        return self.averaged()

    def write_curves(self) -> None:
        with atomic_path(self.out / "curves.csv") as temporary, open(temporary, "w", newline="") as stream:
            writer = csv.DictWriter(stream, list(self.history[-1]))
            writer.writeheader()
            writer.writerows(self.history)
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot

        names = [k for k in self.history[-1] if k not in ("step", "seconds")]
        figure, axes = pyplot.subplots(1, 3, figsize=(13, 3.5))
        for axis, keys in zip(axes, (("rotation", "val_loss"), ("val_median",), ("val_under",))):
            for name in (n for n in names if n.startswith(keys)):
                axis.plot([r["step"] for r in self.history], [r[name] for r in self.history], label=name)
            axis.set_xlabel("step")
            axis.legend() if axis.lines else None
        figure.tight_layout()
        with atomic_path(self.out / "curves.png") as temporary:
            figure.savefig(temporary, dpi=90, format="png")
        pyplot.close(figure)


def main(argv: list[str] | None = None) -> None:
    parser = ArgumentParser(prog="python -m relposepp.train", description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, help="stop after so many minutes; the next call goes on")
    parser.add_argument("--export", type=Path, nargs="?", const=TINY_WEIGHTS, help="write the averaged weights there (default: the bundled folder)")
    parser.add_argument("--network", type=Path, help="YAML file with settings of the network")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of training")
    arguments = parser.parse_args(argv)
    config = load_config(TrainConfig, None, arguments.settings)
    if arguments.minutes is not None:
        config.minutes = arguments.minutes
    network_config = load_config(NetworkConfig, arguments.network)
    from dataset.corpus_reader import CorpusReader

    train, validation = (CorpusReader(config.corpus, part, network_config.image_size) for part in ("train", "validation"))
    if config.stretched:
        from relposepp.stretch import StretchedCorpus

        train = [train, StretchedCorpus(config.stretched)]
    trainer = Trainer(config, network_config, train, validation)
    network = trainer.run()
    if arguments.export:
        save_network(arguments.export, network)
        print(f"weights in {arguments.export}")


if __name__ == "__main__":
    cli(main)
