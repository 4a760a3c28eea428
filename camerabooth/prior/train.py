"""Train the small Zero-1-to-3: ``python -m camerabooth.prior.train --max-minutes 60 [key=value ...]``.

The same command runs on a GPU, several (``devices=8``), several nodes (``nodes=2``, the command on each) and on a CPU, stops after ``max_minutes``
or at SIGTERM with a checkpoint, and goes on exactly where it stopped when run again with as many processes. ``--export FOLDER`` writes the averaged weights of the last checkpoint as a model folder.
The settings are kept beside it in ``config.json``: those that shape the model, or decide what the next steps read, must be the same again.
"""

from __future__ import annotations

import csv
import json
import logging
import os
import pickle
import signal
import time
import warnings
import zipfile
from contextlib import nullcontext
from pathlib import Path
from typing import Mapping, Sequence

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.optim.swa_utils import AveragedModel

import sap3d.compat  # noqa: F401
import pytorch_lightning as pl
from pytorch_lightning.plugins.environments import SLURMEnvironment

from camerabooth.prior.calibrate import measure_gain, measure_residual
from camerabooth.prior.config import PriorConfig, check_compiled
from camerabooth.prior.data import PairSource
from camerabooth.prior.losses import diffusion_loss, guess_loss, joint_loss
from camerabooth.prior.shards import ShardedSource
from camerabooth.prior.validate import sample_sheet, validation_loss
from sap3d.config import as_dict, load_config
from sap3d.errors import ArgumentParser, InputError, cli, explaining, first_line
from sap3d.images import save_image
from sap3d.interrupt import Stop, finish_step_first
from sap3d.scene import read_json, write_json
from sap3d.tensorboard import EventLog
from sap3d.zero123 import Zero123, add_multiplane, build_tiny, load_zero123
from sap3d.zero123.sampler import guess_views


class PriorModule(pl.LightningModule):
    """The diffusion loss of Zero-1-to-3 with an exponential moving average of the trained weights."""

    def __init__(self, model: Zero123, config: PriorConfig):
        super().__init__()
        self.config = config
        self.model = model
        self.trained = nn.ModuleDict({"multiplane": model.multiplane} if config.part != "unet" else {})
        if config.part != "multiplane":
            self.trained.update({"unet": model.unet, "cc_projection": model.cc_projection})
            if hasattr(model.image_encoder, "clip"):
                self.trained["image_encoder"] = model.image_encoder.clip.requires_grad_(True)
            if getattr(model.image_encoder, "own_trunk", None) is not None:  # beside it: checkpoints of a frozen trunk keep their names
                self.trained["image_trunk"] = model.image_encoder.own_trunk.requires_grad_(True)
        self.average = AveragedModel(self.trained, multi_avg_fn=self._average_update)
        self.average.requires_grad_(False)

    def _average_update(self, averaged, current, count):
        decay = min(self.config.ema_decay, (1 + float(count)) / (10 + float(count)))
        torch._foreach_lerp_(averaged, current, 1 - decay)

    def loss(self, model: Zero123, batch: dict, generator: torch.Generator, drop: float, snr_gamma: float) -> torch.Tensor:
        noise = self.config.pose_noise_deg if self.config.part != "unet" and model.multiplane.training else [0.0]
        if self.config.part == "both":
            return joint_loss(model, batch, generator, drop, noise, self.config)
        if self.config.part == "multiplane":
            return guess_loss(model, batch, generator, self.config.guess_size, noise, self.config.guess_perceptual)
        return diffusion_loss(model, batch, generator, drop, snr_gamma, self.config.noises_per_target)

    def training_step(self, batch, _):
        more, rank = divmod(self.global_rank, 64)  # ranks from 64 on must not meet the numbers of later steps
        generator = torch.Generator().manual_seed(self.config.seed * 1_000_003 + self.global_step * 64 + rank + (more << 44))
        # Precision is the trainer's business; on a CPU plain attention is faster than the fused kernel (compute_context).
        with sdpa_kernel(SDPBackend.MATH) if self.device.type == "cpu" else nullcontext():
            loss = self.loss(self.model, batch, generator, self.config.drop_condition, self.config.snr_gamma)
        self.log("loss", loss.detach(), prog_bar=False)
        return loss

    def on_before_optimizer_step(self, _):
        # Lightning's own clipping refuses fused optimisers, which unscale gradients themselves; bf16 needs no scaling.
        nn.utils.clip_grad_norm_(self.trained.parameters(), self.config.gradient_clip)

    def optimizer_step(self, *args, **kwargs):
        super().optimizer_step(*args, **kwargs)
        self.average.update_parameters(self.trained)  # here, and not in on_train_batch_end: that comes after the callback that writes the checkpoint

    def on_save_checkpoint(self, checkpoint):
        checkpoint["world_size"] = self.trainer.world_size  # the data of a step depend on it

    def configure_optimizers(self):
        trained = {name: [p for p in part.parameters() if p.requires_grad] for name, part in self.trained.items()}
        renderer, others = trained.pop("multiplane", []), sum(trained.values(), [])
        scale = self.config.multiplane_rate if others else 1.0
        groups = [{"params": group, "scale": factor} for group, factor in ((renderer, scale), (others, 1.0)) if group]
        return torch.optim.AdamW(groups, self.config.learning_rate, weight_decay=self.config.weight_decay, fused=True)

    def averaged_model(self) -> Zero123:
        """The same model object with the averaged weights put in; who goes on training keeps ``trained``'s state before and loads it again."""
        for name, part in self.trained.items():
            part.load_state_dict(self.average.module[name].state_dict())
        return self.model


class TimeBox(pl.Callback):
    """Learning-rate schedule, curves, checkpoints by time and step, validation, and the stop after ``max_minutes`` or at a signal.

    ``validation``: the validation part, of the first process only.
    """

    def __init__(self, config: PriorConfig, out: Path, stop: Stop):
        self.config, self.out, self.stop, self.validation = config, out, stop, None
        self.begin = self.last_time = time.time()
        self.loss_sum, self.loss_count, self.out_of_time = 0.0, 0, False
        self.at_sigterm = signal.getsignal(signal.SIGTERM)
        self.curves: EventLog | None = None  # of the first process

    def on_train_start(self, trainer, *_):
        # Lightning's handler has replaced ours: it talks to the other ranks from within the signal, and ends without a checkpoint.
        signal.signal(signal.SIGTERM, self.at_sigterm)
        if trainer.is_global_zero:
            self.curves = EventLog(self.out / "tensorboard", trainer.global_step and trainer.global_step + 1)

    def on_train_end(self, *_):
        if self.curves is not None:
            self.curves.close()

    def on_train_batch_start(self, trainer, module, *_):
        # All ranks follow the first one's clock, and a signal to any: the learning rate and the stop must agree between them.
        minutes_left = trainer.strategy.broadcast(self.config.max_minutes - (time.time() - self.begin) / 60)
        stopped = trainer.strategy.reduce_boolean_decision(self.stop.requested, all=False)
        self.out_of_time = stopped or minutes_left <= 0 or trainer.global_step + 1 >= self.config.max_steps
        rate = self.config.learning_rate * min(1.0, (trainer.global_step + 1) / max(self.config.warmup_steps, 1))
        if self.config.decay_minutes > 0:
            rate *= min(1.0, max(minutes_left, 0.0) / self.config.decay_minutes)
        if self.config.decay_steps > 0:
            rate *= min(1.0, max(self.config.max_steps - trainer.global_step, 0) / self.config.decay_steps)
        for group in trainer.optimizers[0].param_groups:
            group["lr"] = rate * group.get("scale", 1.0)  # checkpoints of before groups had it do not say

    def on_train_batch_end(self, trainer, module, outputs, *_):
        step, config = trainer.global_step, self.config
        self.loss_sum, self.loss_count = self.loss_sum + outputs["loss"].detach(), self.loss_count + 1  # no number yet: that would wait for the GPU
        batch = config.groups_per_step * config.targets_per_group * (1 if config.part == "multiplane" else config.noises_per_target) * trainer.world_size
        if step % config.log_every == 0 and trainer.is_global_zero:
            now = time.time()
            rate = self.loss_count * batch / (now - self.last_time)
            row = {"step": step, "samples": step * batch, "loss": round(float(self.loss_sum) / self.loss_count, 5), "samples_per_second": round(rate, 1)}
            append_row(self.out / "curve.csv", row)
            self.curves.scalars(step, {name: value for name, value in row.items() if name != "step"} | {"learning_rate": trainer.optimizers[0].param_groups[-1]["lr"]})
            print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)
            self.loss_sum, self.loss_count, self.last_time = 0.0, 0, now
        if step % config.validate_every == 0 and trainer.is_global_zero:
            self.validate(trainer, module, step, step * batch)
            self.last_time = time.time()
        if step % config.checkpoint_every == 0 or self.out_of_time:
            save_checkpoint(trainer, self.out / "last.ckpt")
        if self.out_of_time:
            trainer.should_stop = True

    def validate(self, trainer, module, step, samples):
        state = {k: v.clone() for k, v in module.trained.state_dict().items()}
        model = module.averaged_model().eval()
        loss = validation_loss(model, self.validation, module.loss)
        ways = {"views": guess_views} if self.config.part == "multiplane" else {}
        sheet, psnr, repeat = sample_sheet(model, self.validation, **ways)
        sheet_of_sets, psnr_of_sets, _ = sample_sheet(model, self.validation, conditions=4, **ways)
        module.trained.load_state_dict(state)
        module.train()
        save_image(self.out / "samples" / f"{step:07d}.png", sheet)
        save_image(self.out / "samples" / f"{step:07d}_of_4.png", sheet_of_sets)
        row = {
            "step": step, "samples": samples, "validation_loss": round(loss, 5), "psnr": round(psnr, 3),
            "psnr_of_4": round(psnr_of_sets, 3), "psnr_repeat_input": round(repeat, 3),
        }  # fmt: skip
        append_row(self.out / "validation.csv", row)
        self.curves.scalars(step, {f"validation/{name.removeprefix('validation_')}": value for name, value in row.items() if name not in ("step", "samples")})
        self.curves.picture(step, "samples/of_1", sheet)
        self.curves.picture(step, "samples/of_4", sheet_of_sets)
        print(" ".join(f"{k} {v}" for k, v in row.items()), flush=True)


def append_row(path: Path, row: dict) -> None:
    new = not path.exists()
    with open(path, "a", newline="") as stream:
        writer = csv.DictWriter(stream, list(row))
        if new:
            writer.writeheader()
        writer.writerow(row)


def save_checkpoint(trainer: pl.Trainer, path: Path) -> None:
    temporary = path.with_suffix(".tmp")
    trainer.save_checkpoint(temporary)  # a collective: every rank calls it, the first one writes
    if trainer.is_global_zero:
        os.replace(temporary, path)


def build(config: PriorConfig, source) -> Zero123:
    """The untrained model with its autoencoder fitted to the first batches of ``source``, or the model of ``init``."""
    if config.init:
        model = load_zero123(Path(config.init))
    else:
        model = build_tiny(config.image_size, config.patch_size, config.latent_channels, tuple(config.channels), tuple(config.attention), 1,
                           config.token_dim, config.encoder_layers, config.planes, config.plane_components, config.seed, config.tokens, config.trunk)  # fmt: skip
        images = torch.cat([source.batch(k)["target"].flatten(0, 1)[:, :3].cpu() for k in range(40)])
        model.vae.fit(images * 2 - 1, config.whitening)
    if config.multiplane and model.multiplane is None:
        if model.sweep is None:
            raise InputError(f"multiplane={config.multiplane}: a first guess needs a model with a plane sweep; set planes=8, or multiplane=0")
        add_multiplane(model, config.multiplane, widths=tuple(config.multiplane_widths), seed=config.seed)
    if config.part != "unet" and model.multiplane is None:
        raise InputError(f"part={config.part} trains the renderer of the first guess, and multiplane=0 asks for none; set multiplane=32")
    if config.part == "multiplane":
        model.requires_grad_(False)
    if config.part != "unet":
        model.multiplane.train().requires_grad_(True)
    if config.part != "multiplane":
        model.correction_gain.fill_(1.0)  # of the weights before: a factor of 0 would let nothing be learned (export measures it anew)
    return model


def compile_parts(model: Zero123, parts: list[str]) -> None:
    """Let torch.compile fuse the many small steps over large tensors, of ``composite`` (the compositing of first guesses alone), ``renderer`` (all
    of it) and ``unet``. Names, weights and checkpoints stay as they are. Raises InputError for an unknown part."""
    check_compiled(parts)
    if model.multiplane is None and set(parts) != {"unet"}:
        raise InputError(f"compile={parts}: this model has no renderer of first guesses; use compile=[unet]")
    torch._dynamo.config.cache_size_limit = 64
    if "composite" in parts:
        model.multiplane._composite = torch.compile(model.multiplane._composite, dynamic=False)
    if "renderer" in parts:
        model.multiplane.compile(dynamic=False)
    if "unet" in parts:
        model.unet.compile(dynamic=False)


def condition_sets(config: PriorConfig) -> list[float]:
    """Shares of steps with 1, 2, .. conditions: ``sets``, but one alone for a model that takes no more (``Zero123.takes_sets``)."""
    index = read_json(Path(config.init) / "model_index.json") or {} if config.init else {}
    several = index.get("sweep") if config.init else config.planes
    return config.sets if several else [1.0]


def load_data(config: PriorConfig, part: str, augment: bool, groups: int, targets: int, sets) -> PairSource | ShardedSource:
    """Batches of a part of the corpus; the training part in shards where ``shard_objects`` is set, in a GPU's memory where it is ``resident``."""
    from dataset.corpus_reader import CorpusReader, PackedCorpus

    if part == "train" and config.shard_objects:
        packed = [PackedCorpus(folder, part, size=config.image_size) for folder in config.corpus]
        return ShardedSource(packed, config.devices * config.nodes, config.shard_objects, config.shard_steps, groups, targets, config.seed, sets, augment)
    corpora = [CorpusReader(folder, part, size=config.image_size) for folder in config.corpus]
    device = f"cuda:{int(os.environ.get('LOCAL_RANK', 0))}" if config.resident and torch.cuda.is_available() else None
    return PairSource(corpora, groups, targets, config.seed, sets, augment, device)


def check_same(config: PriorConfig, checkpoint: Path, keys: Sequence[str]) -> None:
    """Raises InputError where ``config`` differs in one of ``keys`` from the settings beside a checkpoint (``config.json``; runs of before it was written have none)."""
    path = checkpoint.with_name("config.json")
    if not checkpoint.is_file() or not path.is_file():
        return
    stored = read_json(path)
    if not isinstance(stored, dict):
        raise InputError(f"{path}: damaged; delete it if you are sure of the settings, or choose another out=")
    now = as_dict(config)
    for key in keys:
        if key in stored and _comparable(key, stored[key]) != _comparable(key, now[key]):
            raise InputError(f"{path}: {key}={json.dumps(now[key])}, but {checkpoint.name} was made with {key}={json.dumps(stored[key])}; use that, or another out=")


def _comparable(key: str, value):
    """Of the names of folders, which may be relative, the places."""
    if key == "corpus" and isinstance(value, list):
        return [str(Path(folder).resolve()) for folder in value]
    return str(Path(value).resolve()) if key == "init" and isinstance(value, str) and value else value


def read_checkpoint(path: Path, mmap: bool = False) -> dict:
    """The content of a ``last.ckpt``. Raises InputError where it is damaged or something else."""

    def damage(error: Exception) -> str:
        strange = not zipfile.is_zipfile(path) or isinstance(error, (pickle.UnpicklingError, KeyError, TypeError))
        reason = "cut off, or not the state of a training" if strange else first_line(error)
        return f"{path}: damaged checkpoint ({reason}); put a copy back, or delete it to begin anew"

    with explaining(damage):
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
        return state | {"global_step": int(state["global_step"])}


def load_weights(module: PriorModule, weights: Mapping[str, torch.Tensor], checkpoint: Path) -> None:
    """Put a checkpoint's weights into the module. Raises InputError where they are those of another model."""
    with explaining(lambda error: f"{checkpoint}: its weights are those of a model of other settings ({' '.join(str(error).split())[:200]}); use the same, or another out="):
        module.load_state_dict(weights)


def start_step(config: PriorConfig, checkpoint: Path) -> int:
    """The step at which a run begins. Raises InputError where the checkpoint is of another number of processes: its data would not go on."""
    if not checkpoint.is_file():
        return 0
    state = read_checkpoint(checkpoint, mmap=True)
    now = config.devices * config.nodes
    before = state.get("world_size", now)  # checkpoints of before this was kept do not say
    if before != now and not config.allow_other_processes:
        raise InputError(
            f"{checkpoint}: made by {before} processes, this run has {now} (devices x nodes), so it cannot go on with the same data; use {before}, or allow_other_processes=true, or another out="
        )
    return state["global_step"]


def quiet_lightning() -> None:
    """Notes and warnings of pytorch-lightning that say nothing about this training."""
    for name in ("pytorch_lightning", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for message in (r".*in eval mode at the start of training", r".*treespec, LeafSpec", r".*does not have many workers", r".*has no `__len__`|.*`IterableDataset` has `__len__`"):
        warnings.filterwarnings("ignore", message=message)


def _prepare(config: PriorConfig) -> tuple[PriorModule, PairSource | ShardedSource]:
    """The untrained module and the training data, as training and export begin with them."""
    if config.threads:
        torch.set_num_threads(config.threads)
    if torch.cuda.is_available():
        torch.set_float32_matmul_precision("high")
    quiet_lightning()
    pl.seed_everything(config.seed, verbose=False)
    source = load_data(config, "train", True, config.groups_per_step, config.targets_per_group, condition_sets(config))
    return PriorModule(build(config, source), config), source


def export_model(config: PriorConfig, folder: Path) -> Path:
    """Write the averaged weights of the last checkpoint as a model folder, with its constants measured; returns the folder."""
    config.check()
    checkpoint = Path(config.out) / "last.ckpt"
    if not checkpoint.is_file():
        raise InputError(f"{checkpoint}: no checkpoint to export; train first")
    check_same(config, checkpoint, config.MODEL)
    state = read_checkpoint(checkpoint)
    module, source = _prepare(config)
    weights = state.get("state_dict", {})
    if config.init:  # what was not trained is the given model's, not that of the day on which training began
        weights = {name: tensor for name, tensor in module.state_dict().items() if not name.startswith("average.")} | {
            name: tensor for name, tensor in weights.items() if name.startswith("average.")
        }
    load_weights(module, weights, checkpoint)
    model = module.averaged_model().to("cuda" if torch.cuda.is_available() else "cpu")
    if config.part == "multiplane":
        measure_residual(model, source)
    if model.multiplane is not None:
        measure_gain(model, load_data(config, "validation", False, 8, 2, condition_sets(config)), report=print)
    model.save(folder, int8=config.export_int8)
    print(f"step {state['global_step']} exported to {folder}")
    return folder


def train(config: PriorConfig) -> Path:
    """Train until the time or the steps are used up; returns the checkpoint's path."""
    config.check()
    out = Path(config.out)
    checkpoint = out / "last.ckpt"
    check_same(config, checkpoint, config.MODEL + config.DATA)
    start = start_step(config, checkpoint)
    out.mkdir(parents=True, exist_ok=True)
    module, source = _prepare(config)
    if checkpoint.is_file():
        load_weights(module, read_checkpoint(checkpoint, mmap=True).get("state_dict", {}), checkpoint)  # Lightning does it once more, with the optimiser's state
    if config.compile:
        compile_parts(module.model, config.compile)
    world_size = config.devices * config.nodes
    with finish_step_first() as stop:
        box = TimeBox(config, out, stop)
        trainer = pl.Trainer(
            accelerator="auto", devices=config.devices, num_nodes=config.nodes, strategy="ddp" if world_size > 1 else "auto", precision=config.precision,
            max_steps=config.max_steps, max_epochs=-1, logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False, callbacks=[box], default_root_dir=out,
            # Under Slurm, Lightning would requeue the job itself, with a checkpoint of its own.
            plugins=[SLURMEnvironment(auto_requeue=False)] if SLURMEnvironment.detect() else [],
        )  # fmt: skip
        if trainer.is_global_zero:
            write_json(out / "config.json", as_dict(config))
            box.validation = load_data(config, "validation", False, 8, 4, (1.0, 0.0, 1.0) if module.model.takes_sets else (1.0,))
            print(f"{world_size} process{'es' if world_size > 1 else ''}, {len(source)} objects, from step {start}", flush=True)
        loader = torch.utils.data.DataLoader(StepStream(source, start, trainer.global_rank), batch_size=None, num_workers=0)
        trainer.fit(module, loader, ckpt_path=str(checkpoint) if checkpoint.is_file() else None, weights_only=True)
    if stop.requested:
        stop.leave()
    return checkpoint


class StepStream(torch.utils.data.IterableDataset):
    """Batches of the steps from ``start`` on; ``rank``: of the process among those of all nodes."""

    def __init__(self, source: PairSource | ShardedSource, start: int, rank: int):
        self.source, self.start, self.rank = source, start, rank

    def __iter__(self):
        return self.source.stream(self.start, self.rank)


def main() -> None:
    parser = ArgumentParser(prog="python -m camerabooth.prior.train", description="Train the small Zero-1-to-3 on the corpus")
    parser.add_argument("--config", type=Path, help="YAML file with settings")
    parser.add_argument("--max-minutes", type=float, help="stop after this many minutes, with a checkpoint")
    parser.add_argument("--export", type=Path, help="write the averaged weights of the last checkpoint to this folder and stop")
    parser.add_argument("settings", nargs="*", metavar="key=value")
    arguments = parser.parse_args()
    limit = [] if arguments.max_minutes is None else [f"max_minutes={arguments.max_minutes}"]
    config = load_config(PriorConfig, arguments.config, arguments.settings + limit)
    if arguments.export is None:
        train(config)
    else:
        export_model(config, arguments.export)


if __name__ == "__main__":
    cli(main)
