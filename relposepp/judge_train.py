"""Train the judge of pairs (relposepp/judge.py): ``python -m relposepp.judge_train max_minutes=8 [--export FOLDER] [key=value ...]``.

A step takes pairs of views of the corpus with some hypotheses each, one near the truth, the others such that the outlines agree as well
(relposepp/judge_data.py), and lowers the cross-entropy of the right one. All images lie on the device and batches are made there. What is
random in a step follows from (seed, step); the learning rate follows the time of this call, or the steps where ``steps`` says how many.
"""

from __future__ import annotations

import csv
import json
import math
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from relposepp.judge import JudgeConfig, PairJudge, load_judge, save_judge
from relposepp.judge_data import DeviceCorpus, Pairs, augment, hard_hypotheses, read_corpora
from sap3d.config import load_config, resolve_device
from sap3d.errors import ArgumentParser, InputError, cli, explaining, first_line
from sap3d.interrupt import Stop, finish_step_first
from sap3d.scene import atomic_path


@dataclass
class JudgeTrainConfig:
    """Settings of training."""

    corpus: list[str] = field(default_factory=lambda: ["dataset/corpus_cache", "dataset/corpus_cache_procedural"])  # folders of python -m dataset.corpus
    out: str = ".work/judge"  # checkpoint, curve and exported weights
    device: str = "auto"  # auto, cpu or cuda
    seed: int = 0
    max_minutes: float = 8.0  # of this call, reading the corpus included; the learning rate falls to a hundredth at its end
    steps: int = 0  # end after so many steps instead, the learning rate following them (0: by time)
    stop_at: int = 0  # leave off at this step, to be continued (0: never)
    init: str = ""  # weights that this run starts from: checkpoint of another run, or a folder such as relposepp/weights/judge
    objects: int = 0  # at most so many objects of each corpus, for trials (0: all)
    workers: int = 0  # processes that decode the corpus (0: the array that dataset.corpus_reader keeps)
    pairs: int = 64  # pairs a step
    hypotheses: int = 16  # of each pair, the true one among them
    ahead: int = 4  # steps whose hypotheses are made at once
    random_poses: int = 768  # drawn for each pair; the best are moved onto the outlines' equations
    refined_poses: int = 128  # how many those are
    learning_rate: float = 1.5e-3  # peak, after the warm-up
    warmup_steps: int = 100
    weight_decay: float = 0.02  # AdamW, matrices only
    clip_norm: float = 1.0
    ema_decay: float = 0.997
    pose_noise_deg: float = 1.5  # largest spread of an error that all hypotheses of a pair share; half of the pairs have none
    bf16: bool = True  # bfloat16 autocast
    checkpoint_seconds: float = 55.0
    report_seconds: float = 20.0
    validate_seconds: float = 75.0  # between measurements on the validation part
    validation_pairs: int = 384
    validation_hypotheses: int = 24


@dataclass
class JudgeBatch:
    """photos (P, 2, 4, S, S); pose (P, H, 3): elevations of both, azimuth difference; radius (P, 2); valid (P, H)."""

    photos: Tensor
    pose: Tensor
    radius: Tensor
    valid: Tensor

    def split(self, parts: int) -> list[JudgeBatch]:
        """Batches of (nearly) equal numbers of pairs."""
        fields = ("photos", "pose", "radius", "valid")
        return [JudgeBatch(*tensors) for tensors in zip(*(getattr(self, f).chunk(parts) for f in fields))]

    def logits(self, judge: PairJudge) -> Tensor:
        """Scores (P, H), very low where there is no hypothesis."""
        radius = self.radius[:, None].expand(-1, self.pose.shape[1], -1)
        scores = judge(self.photos[:, 0], self.photos[:, 1], self.pose[..., :2], self.pose[..., 2], radius)
        return scores.masked_fill(~self.valid, -1e4)


class HypothesisSource:
    """Batches of a corpus: what is in batch k follows from (seed, k) alone. The hypotheses of ``ahead`` batches are made at once."""

    def __init__(self, corpus: DeviceCorpus, pairs: int, hypotheses: int, config: JudgeTrainConfig, augmented: bool = True):
        self.corpus, self.pairs, self.hypotheses, self.config, self.augmented = corpus, pairs, hypotheses, config, augmented
        self.ahead = config.ahead if augmented else 1
        self._made = (-1, None)

    def _group(self, group: int):
        if self._made[0] != group:
            config, count = self.config, self.pairs * self.ahead
            numbers = np.random.default_rng([config.seed, group, int(self.augmented)])
            generator = torch.Generator(self.corpus.device).manual_seed(int(numbers.integers(2**62)))
            pairs = self.corpus.draw(count, numbers)
            elevation, delta, radius = self.corpus.poses(pairs)
            rays = self.corpus.outlines(pairs)
            flip = (torch.rand(count, generator=generator, device=rays.device) < 0.5) & self.augmented
            rays = torch.where(flip[:, None, None, None], torch.cat([-rays[..., :1], rays[..., 1:]], -1), rays)
            truth = torch.cat([elevation, torch.where(flip, -delta, delta)[:, None]], 1)
            found = hard_hypotheses(rays, radius, truth, self.hypotheses, generator, config.random_poses, config.refined_poses)
            self._made = (group, (pairs, flip, radius, found))
        return self._made[1]

    @torch.no_grad()
    def batch(self, step: int) -> JudgeBatch:
        group, place = divmod(step, self.ahead)
        pairs, flip, radius, found = self._group(group)
        part = slice(place * self.pairs, (place + 1) * self.pairs)
        photos = self.corpus.photos(Pairs(pairs.rows[part], pairs.views[part]))
        photos = torch.where(flip[part, None, None, None, None], photos.flip(-1), photos)
        pose = found.pose[part]
        if self.augmented:
            seed = np.random.default_rng([self.config.seed, step, 2]).integers(2**62)
            generator = torch.Generator(self.corpus.device).manual_seed(int(seed))
            photos = augment(photos, generator)
            spread = np.deg2rad(self.config.pose_noise_deg) * (2 * torch.rand(self.pairs, 1, 1, generator=generator, device=pose.device) - 1).clamp_min(0)
            pose = pose + spread * torch.randn(pose.shape, generator=generator, device=pose.device)
        return JudgeBatch(photos, pose, radius[part], found.valid[part])


class JudgeTrainer:
    """One training run in ``config.out``; ``run`` goes on from its checkpoint where there is one."""

    def __init__(self, config: JudgeTrainConfig, judge_config: JudgeConfig, train: DeviceCorpus, validation: DeviceCorpus | None, begin: float | None = None):
        if config.pairs < 1 or config.hypotheses < 2 or config.ahead < 1:
            raise InputError("training needs pairs >= 1, hypotheses >= 2 and ahead >= 1")
        self.config, self.out, self.device = config, Path(config.out), train.device
        self.begin = time.monotonic() if begin is None else begin
        torch.manual_seed(config.seed)
        self.judge = PairJudge(judge_config).to(self.device)
        self.averaged = PairJudge(judge_config).to(self.device).eval().requires_grad_(False)
        self.averaged.load_state_dict(self.judge.state_dict())
        self.source = HypothesisSource(train, config.pairs, config.hypotheses, config)
        self.check = None if validation is None else HypothesisSource(validation, 32, config.validation_hypotheses, config, augmented=False)
        groups = [
            {"params": [p for p in self.judge.parameters() if (p.ndim >= 2) == matrices], "weight_decay": config.weight_decay * matrices} for matrices in (True, False)
        ]
        self.optimiser = torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.98))
        self.step, self.seconds, self.part, self.history = 0, 0.0, 0.0, []
        self.microbatches = 1  # parts of a step, one after the other, where memory is short
        self._resume()
        self.first_part, self.first_seconds = self.part, self.seconds

    # --- checkpoints --------------------------------------------------------------------------------------------------
    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.pt"

    def _identity(self) -> str:
        kept = ("seed", "pairs", "hypotheses", "ahead", "random_poses", "refined_poses", "pose_noise_deg")
        return json.dumps({"judge": asdict(self.judge.config)} | {name: getattr(self.config, name) for name in kept})

    def _resume(self) -> None:
        if not self.checkpoint.is_file():
            if self.config.init:
                init = Path(self.config.init)
                with explaining(lambda error: f"{init}: not weights of a judge with these settings ({first_line(error)}); give those of another run, or init= for none"):
                    weights = load_judge(init).state_dict() if init.is_dir() else torch.load(init, map_location=self.device, weights_only=True)["averaged"]
                    self.judge.load_state_dict(weights)
                self.averaged.load_state_dict(weights)
            return
        state = torch.load(self.checkpoint, map_location=self.device, weights_only=True)
        if state["identity"] != self._identity():
            raise InputError(f"{self.checkpoint}: belongs to a run with other settings; choose another out=FOLDER or delete it")
        self.judge.load_state_dict(state["judge"])
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds, self.part, self.history = state["step"], state["seconds"], state["part"], json.loads(state["history"])

    def save(self) -> None:
        """Checkpoint, and the averaged weights in ``out``/export."""
        self.out.mkdir(parents=True, exist_ok=True)
        state = {
            "identity": self._identity(), "judge": self.judge.state_dict(), "averaged": self.averaged.state_dict(), "optimiser": self.optimiser.state_dict(),
            "step": self.step, "seconds": self.seconds, "part": self.part, "history": json.dumps(self.history),
        }  # fmt: skip
        with atomic_path(self.checkpoint) as temporary:
            torch.save(state, temporary)
        save_judge(self.out / "export", self.averaged)

    # --- optimisation -------------------------------------------------------------------------------------------------
    def progress(self) -> float:
        """Part of the training that is done, in [0, 1]; a continued run spreads what is left over its own time."""
        config = self.config
        if config.steps:
            return min(1.0, self.step / config.steps)
        left = max(1.0, 60 * config.max_minutes - (self.trained - self.begin))
        return min(1.0, self.first_part + (1 - self.first_part) * (time.monotonic() - self.trained) / left)

    def one_step(self) -> tuple[Tensor, Tensor]:
        """Loss and share of pairs whose right hypothesis wins, on the device."""
        config = self.config
        rate = config.learning_rate * min(1.0, (self.step + 1) / config.warmup_steps) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * self.part)))
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        batch = self.source.batch(self.step)
        self.judge.train()
        figures = None
        while figures is None:
            try:
                figures = self._gradients(batch)
            except torch.cuda.OutOfMemoryError:
                if self.microbatches >= config.pairs:
                    raise
            if figures is None:  # out of the handler, which holds on to the tensors
                self.microbatches *= 2
                torch.cuda.empty_cache()
                print(f"step {self.step}: short of memory, going on with {self.microbatches} parts a step", flush=True)
        torch.nn.utils.clip_grad_norm_(self.judge.parameters(), config.clip_norm)
        for parameter in self.judge.parameters():
            parameter.grad.nan_to_num_(0.0, 0.0, 0.0)  # one overflow must not end a run
        self.optimiser.step()
        with torch.no_grad():
            torch._foreach_lerp_(list(self.averaged.parameters()), list(self.judge.parameters()), 1 - min(config.ema_decay, (self.step + 1) / (self.step + 10)))
        self.step += 1
        return figures

    def _gradients(self, batch: JudgeBatch) -> tuple[Tensor, Tensor]:
        self.optimiser.zero_grad(set_to_none=True)
        loss, right = 0.0, 0.0
        for part in batch.split(self.microbatches):
            with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.config.bf16):
                logits = part.logits(self.judge)
            share = len(logits) / len(batch.pose)
            own = share * F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device))
            own.backward()
            loss, right = loss + own.detach(), right + share * (logits.argmax(1) == 0).float().mean()
        return loss, right

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Of the averaged weights on the same pairs every time: loss, share of pairs whose chosen hypothesis is within 15 degrees of the
        truth, and its mean angle."""
        loss, good, angle = [], [], []
        for k in range(max(1, self.config.validation_pairs // self.check.pairs)):
            batch, found = self.check.batch(k), self.check._group(k)[3]
            with torch.autocast(self.device.split(":")[0], torch.bfloat16, enabled=self.config.bf16 and self.device != "cpu"):
                logits = batch.logits(self.averaged)
            chosen = found.angle_deg.gather(1, logits.argmax(1, keepdim=True))
            loss.append(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long, device=logits.device)))
            good.append((chosen < 15).float().mean())
            angle.append(chosen.mean())
        return {name: float(torch.stack(values).mean()) for name, values in (("val_loss", loss), ("val_under_15", good), ("val_mean_deg", angle))}

    def run(self) -> PairJudge:
        """Train to the end of the time or of the steps; returns the averaged judge. Everything is saved when it ends."""
        with finish_step_first() as stop:
            self._train(stop)
            self.save()
        if stop.requested:
            stop.leave()
        if self.check is not None:
            self._measure()
            self.save()
        return self.averaged

    def _train(self, stop: Stop) -> None:
        config = self.config
        self.trained = saved = reported = validated = time.monotonic()
        since, totals = self.step, None
        end = self.begin + 60 * config.max_minutes
        slowest = 0.0  # seconds of a measurement and of a checkpoint, for which time is left at the end
        while True:
            self.part = self.progress()
            now = time.monotonic()
            done = self.step >= config.steps if config.steps else now > end - 2 * slowest - 1
            if done or stop.requested or (config.stop_at and self.step >= config.stop_at):
                break
            figures = torch.stack(self.one_step())
            totals = figures if totals is None else totals + figures
            now = time.monotonic()
            self.seconds = self.first_seconds + now - self.trained
            if now - reported > config.report_seconds:
                loss, accuracy = (totals / (self.step - since)).tolist()
                rate = (self.step - since) / (time.monotonic() - reported)
                print(f"step {self.step}  pairs {self.step * config.pairs}  loss {loss:.3f}  accuracy {accuracy:.3f}  {rate * config.pairs:.0f} pairs/s  "
                      f"{rate:.2f} steps/s  part {self.part:.3f}{memory(self.device)}", flush=True)  # fmt: skip
                self._record({"train_loss": loss, "train_accuracy": accuracy})
                reported, since, totals = time.monotonic(), self.step, None
            if self.check is not None and now - validated > config.validate_seconds:
                self._measure()
                validated = time.monotonic()
                slowest = max(slowest, validated - now)
                reported += validated - now  # not the training's time
            if now - saved > config.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
                slowest = max(slowest, saved - now)

    def _measure(self) -> None:
        found = self.validate()
        print(f"step {self.step}  " + "  ".join(f"{name} {value:.3f}" for name, value in found.items()), flush=True)
        self._record(found)

    def _record(self, figures: dict[str, float]) -> None:
        self.history.append({"step": self.step, "seconds": round(self.seconds)} | {k: round(v, 4) for k, v in figures.items()})
        names = ["step", "seconds", "train_loss", "train_accuracy", "val_loss", "val_under_15", "val_mean_deg"]
        self.out.mkdir(parents=True, exist_ok=True)
        with atomic_path(self.out / "curve.csv") as temporary, open(temporary, "w", newline="") as stream:
            writer = csv.DictWriter(stream, names)
            writer.writeheader()
            writer.writerows(self.history)


def memory(device: str) -> str:
    return f"  {torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if device.startswith("cuda") else ""


def main(argv: list[str] | None = None) -> None:
    begin = time.monotonic()
    parser = ArgumentParser(prog="python -m relposepp.judge_train", description=__doc__.split("\n")[0])
    parser.add_argument("--export", type=Path, help="write the averaged weights there too (they are always in OUT/export)")
    parser.add_argument("--judge", type=Path, help="YAML file with settings of the judge itself")
    parser.add_argument("settings", nargs="*", metavar="key=value", help="settings of training")
    arguments = parser.parse_args(argv)
    config = load_config(JudgeTrainConfig, None, arguments.settings)
    judge_config = load_config(JudgeConfig, arguments.judge)
    # The packed corpus is decoded before the device is touched: processes are forked for it.
    parts = {part: read_corpora(config.corpus, part, judge_config.image_size, config.objects, config.workers) for part in ("train", "validation")}
    print(f"corpus: {len(parts['train'][0])} objects to train on, {len(parts['validation'][0])} to validate on, {time.monotonic() - begin:.0f} s", flush=True)
    device = resolve_device(config.device)
    torch.backends.cudnn.benchmark = True  # the shapes are always the same
    train, validation = (DeviceCorpus(images, poses, device) for images, poses in (parts.pop("train"), parts.pop("validation")))
    trainer = JudgeTrainer(config, judge_config, train, validation, begin)
    print(f"on {device}: {sum(p.numel() for p in trainer.judge.parameters())} parameters, training begins after {time.monotonic() - begin:.0f} s", flush=True)
    judge = trainer.run()
    print(f"weights in {trainer.out / 'export'}")
    if arguments.export:
        save_judge(arguments.export, judge)
        print(f"weights in {arguments.export}")


if __name__ == "__main__":
    cli(main)
