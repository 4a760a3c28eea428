"""Training of the prior: several processes and nodes, data in shards, exact resume."""

import importlib.util
import json
import os
import re
import signal
import socket
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from camerabooth.prior.calibrate import condition_ink, with_renderer
from camerabooth.prior.config import PriorConfig
from camerabooth.prior.data import PairSource
from camerabooth.prior.shards import ShardedSource
from camerabooth.prior.losses import guess_loss, joint_loss, perceptual_distance
from camerabooth.prior.train import build, check_same, compile_parts, export_model, read_checkpoint, start_step, train
from dataset import corpus
from dataset.corpus_reader import CorpusReader, PackedCorpus
from dataset.procedural import list_objects, part_of
from sap3d.cameras import Camera, pose_condition
from sap3d.config import as_dict, load_config
from sap3d.errors import InputError
from sap3d.scene import REPOSITORY
from sap3d.zero123 import load_zero123, tiny_random_model
from tests.event_files import read

SIZE, VIEWS, OBJECTS = 32, 16, 7
MODEL = ["image_size=32", "patch_size=4", "latent_channels=12", "channels=[32,64]", "attention=[false,true]", "token_dim=64", "encoder_layers=1", "planes=4",
         "plane_components=6", "multiplane=0", "groups_per_step=2", "targets_per_group=2", "sets=[0.5,0.5]", "precision=32-true", "log_every=2", "threads=1", "warmup_steps=2"]  # fmt: skip


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    """A corpus in the files of ``python -m dataset.corpus``: smooth blobs, seven objects to train on and one to validate with."""
    folder = tmp_path_factory.mktemp("corpus")
    (folder / "objects").mkdir()
    ids = [item.id for item in list_objects(60)]
    chosen = [i for i in ids if part_of(i) == "train"][:OBJECTS] + [i for i in ids if part_of(i) == "validation"][:1]
    for number, name in enumerate(chosen):
        rng = np.random.default_rng(number)
        coarse = torch.from_numpy(rng.random((VIEWS, 4, 5, 5))).float()
        images = torch.nn.functional.interpolate(coarse, (SIZE, SIZE), mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1).numpy()
        blobs = [corpus.encode_webp(image) for image in images]
        np.savez(
            folder / "objects" / f"{name}.npz", format=corpus.FORMAT, webp=np.frombuffer(b"".join(blobs), np.uint8), offsets=np.cumsum([0] + [len(b) for b in blobs]),
            polar_rad=rng.uniform(1, 2, VIEWS).astype(np.float32), azimuth_rad=rng.uniform(0, 6, VIEWS).astype(np.float32), radius=np.full(VIEWS, 1.5, np.float32), size=SIZE,
        )  # fmt: skip
    records = [{"id": name, "licence": "CC0-1.0", "author": "made by this project"} for name in chosen]
    (folder / "index.json").write_text(json.dumps({"format": corpus.FORMAT, "views": VIEWS, "size": SIZE, "objects": records}))
    return folder


def start(cache, out, *settings, **variables):
    command = [sys.executable, "-m", "camerabooth.prior.train", *MODEL, f"corpus=[{cache}]", f"out={out}", *settings]
    return subprocess.Popen(command, cwd=REPOSITORY, env=os.environ | variables, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def finish(*processes):
    """(outputs, errors) of processes that must end well; none is left behind."""
    try:
        ended = [process.communicate(timeout=600) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, ended):
        assert process.returncode == 0, errors
    return ended


def nodes(cache, out, *settings, count=2):
    """One process on each of ``count`` "nodes" of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    return [start(cache, out, f"nodes={count}", *settings, NODE_RANK=str(k), **where) for k in range(count)]


def weights(folder):
    state = torch.load(folder / "last.ckpt", weights_only=True)
    return state, state["state_dict"]


def assert_same(first, second):
    (one, a), (other, b) = weights(first), weights(second)
    assert one["global_step"] == other["global_step"] and a.keys() == b.keys()
    for name in a:
        torch.testing.assert_close(a[name], b[name], atol=0, rtol=0, msg=name)
    for k, moments in one["optimizer_states"][0]["state"].items():
        torch.testing.assert_close(moments["exp_avg"], other["optimizer_states"][0]["state"][k]["exp_avg"], atol=0, rtol=0)


@pytest.fixture(scope="module")
def two_processes(cache, tmp_path_factory):
    """A run of six steps in two processes with data in shards, undisturbed."""
    out = tmp_path_factory.mktemp("whole")
    (printed, errors), = finish(start(cache, out, "devices=2", "max_steps=6", "shard_objects=2", "shard_steps=2"))
    assert "2 processes, 7 objects, from step 0" in printed and printed.count("loss") == 3, printed
    assert not re.search("tip:|warn|deprecated|available|distributed", errors, re.I), errors  # the log is not cluttered
    return out


def test_two_processes_stop_and_resume_exactly(cache, two_processes, tmp_path):
    """Ends at a shard's border and in its middle; the second half is started as two nodes of one process each: the same ranks."""
    shards = ["shard_objects=2", "shard_steps=2"]
    finish(start(cache, tmp_path, "devices=2", "max_steps=3", *shards))
    state, _ = weights(tmp_path)
    assert state["global_step"] == 3 and state["world_size"] == 2
    finish(*nodes(cache, tmp_path, "max_steps=6", *shards))
    assert_same(tmp_path, two_processes)


def test_sigterm_leaves_a_checkpoint_of_the_step(cache, tmp_path):
    process = start(cache, tmp_path / "cut", "max_steps=100000", "log_every=1")
    line = ""
    while not line.startswith("step 2 "):
        line = process.stdout.readline()
        assert line, process.stderr.read()
    process.send_signal(signal.SIGTERM)
    errors = process.communicate(timeout=600)[1]
    assert process.returncode == 143 and "run the same command again" in errors, errors
    step = weights(tmp_path / "cut")[0]["global_step"]
    assert step >= 2
    finish(start(cache, tmp_path / "cut", f"max_steps={step + 2}", "log_every=1"))
    finish(start(cache, tmp_path / "whole", f"max_steps={step + 2}", f"validate_every={step + 1}"))  # a look at the validation part changes nothing
    assert_same(tmp_path / "cut", tmp_path / "whole")
    assert len(list((tmp_path / "whole" / "samples").iterdir())) == 2
    if importlib.util.find_spec("tensorboard"):
        scalars, _ = read(tmp_path / "cut" / "tensorboard")
        assert [at for at, _ in scalars["loss"]] == list(range(1, step + 3)) and set(scalars) == {"loss", "samples", "samples_per_second", "learning_rate"}
        scalars, pictures = read(tmp_path / "whole" / "tensorboard")
        assert [at for at, _ in scalars["validation/psnr"]] == pictures["samples/of_1"] == pictures["samples/of_4"] == [step + 1]


# --- settings and checkpoints -----------------------------------------------------------------------------------------
@pytest.mark.parametrize("setting, message", (
    ("log_every=0", "log_every=0 must lie in 1"), ("validate_every=-1", "validate_every=-1 must lie"), ("checkpoint_every=0", "checkpoint_every=0"), ("max_steps=0", "max_steps=0"),
    ("groups_per_step=0", "groups_per_step=0"), ("image_size=0", "image_size=0"), ("devices=0", "devices=0"), ("channels=[32,0]", "channels=\\[32, 0\\]"), ("sets=[0.0,0.0]", "above 0"),
    ("channels=[]", "one entry at least"), ("attention=[true]", "each level of the U-Net"), ("patch_size=5", "multiple of patch_size=5"),
    ("precision=16-mixed", "precision='16-mixed' is unknown: use one of bf16-mixed, 32-true"), ("part=all", "use one of multiplane, unet, both"),
    ("tokens=all", "tokens='all' is unknown: use one of patches, pooled"), ("trunk=vgg", "trunk='vgg' is unknown: use one of alexnet, scratch"),
    ("latent_channels=49", "have 48 components"), ("plane_components=13", "at most latent_channels=12"), ("channels=[48,64]", "must all be multiples of 32"),
    ("multiplane_widths=[8,18]", "multiples of 4"), ("compile=[vae]", "compile=vae is unknown"),
))  # fmt: skip
def test_settings_that_cannot_be_used_are_refused(setting, message):
    with pytest.raises(InputError, match=message):
        load_config(PriorConfig, None, [*MODEL, setting])


def test_a_checkpoint_goes_on_with_the_settings_it_was_made_with(cache, tmp_path):
    out = tmp_path / "run"

    def config(*settings):
        return load_config(PriorConfig, None, [*MODEL, f"corpus=[{cache}]", f"out={out}", "max_steps=2", *settings])

    train(config())
    before, settings = (out / "last.ckpt").read_bytes(), out / "config.json"
    assert json.loads(settings.read_text()) == as_dict(config())
    for setting, message in (("channels=[32,32]", r"config.json: channels=\[32, 32\], but last.ckpt was made with channels=\[32, 64\]"), ("seed=1", "config.json: seed=1, "),
                             ("groups_per_step=3", "groups_per_step=3, "), ("sets=[1.0]", "sets="), ("corpus=[elsewhere]", "corpus=")):  # fmt: skip
        with pytest.raises(InputError, match=message):
            train(config("max_steps=3", setting))
    with pytest.raises(InputError, match="config.json: channels="):
        export_model(config("channels=[32,32]"), tmp_path / "model")
    assert (out / "last.ckpt").read_bytes() == before and not (tmp_path / "model").exists()
    export_model(config("sets=[1.0]", "learning_rate=1e-3"), tmp_path / "model")  # which shape neither the weights nor what follows
    assert load_zero123(tmp_path / "model").image_size == SIZE
    train(config("max_steps=3", "learning_rate=1e-3"))
    assert weights(out)[0]["global_step"] == 3 and json.loads(settings.read_text())["learning_rate"] == 1e-3

    settings.write_text("{")
    with pytest.raises(InputError, match="config.json: damaged"):
        train(config())
    settings.unlink()  # as runs of before it was written are
    for work in (train, lambda other: export_model(other, tmp_path / "other")):
        with pytest.raises(InputError, match="last.ckpt: its weights are those of a model of other settings"):
            work(config("channels=[32,32]"))
    train(config("max_steps=4"))
    assert weights(out)[0]["global_step"] == 4 and settings.is_file()
    with pytest.raises(InputError, match="none.ckpt|no checkpoint to export"):
        export_model(config(f"out={tmp_path / 'none'}"), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_the_same_corpus_may_be_named_in_another_way(tmp_path, monkeypatch):
    (tmp_path / "last.ckpt").touch()
    (tmp_path / "config.json").write_text(json.dumps(as_dict(PriorConfig(corpus=[str(tmp_path / "cache")]))))
    monkeypatch.chdir(tmp_path)
    check_same(PriorConfig(corpus=["cache"]), tmp_path / "last.ckpt", ["corpus"])
    with pytest.raises(InputError, match="corpus="):
        check_same(PriorConfig(corpus=["other"]), tmp_path / "last.ckpt", ["corpus"])


@pytest.mark.parametrize("content", ("", "garbage", "cut", "other"))
@pytest.mark.parametrize("work", (train, lambda config: export_model(config, "unused")))
def test_a_damaged_checkpoint_is_named(tmp_path, content, work):
    path = tmp_path / "last.ckpt"
    torch.save({"global_step": 4} if content == "cut" else [1], path)
    if content != "other":
        path.write_bytes(path.read_bytes()[:200] if content == "cut" else content.encode())
    with pytest.raises(InputError, match="last.ckpt: damaged checkpoint .*; put a copy back, or delete it to begin anew") as raised:
        work(PriorConfig(out=str(tmp_path)))
    assert "\n" not in str(raised.value)


def test_too_little_memory_is_not_taken_for_a_damaged_checkpoint(tmp_path, monkeypatch):
    def load(*_, **__):
        raise MemoryError

    torch.save({"global_step": 4}, tmp_path / "last.ckpt")
    monkeypatch.setattr(torch, "load", load)
    with pytest.raises(MemoryError):
        read_checkpoint(tmp_path / "last.ckpt")


# --- data -------------------------------------------------------------------------------------------------------------
def sharded(cache, objects=2, steps=3, world_size=2):
    return ShardedSource([PackedCorpus(cache, "train", SIZE)], world_size, objects, steps, 2, 2, seed=5, sets=(0.5, 0.5))


def test_shards_deal_the_corpus_to_the_ranks(cache):
    source = sharded(cache, objects=1)
    dealt = [source.members(period, rank)[0] for period in range(7) for rank in range(2)]  # two passes over seven objects
    assert sorted(dealt[:7]) == sorted(dealt[7:]) == list(range(OBJECTS)) and dealt[:7] != dealt[7:]
    wide = sharded(cache, objects=3)  # passes end within shards
    dealt = sum((wide.members(period, rank) for period in range(7) for rank in range(2)), [])
    assert all(sorted(dealt[k : k + 7]) == list(range(OBJECTS)) for k in range(0, 42, 7))
    for bad in ({"objects": 8}, {"steps": 0}):
        with pytest.raises(InputError, match="a shard is 1 .. 7 objects"):
            sharded(cache, **bad)


def test_batches_of_shards_follow_from_step_and_rank(cache):
    """Read in order, with shards loaded ahead, or each by itself: the same; and what they show are objects of the shard."""
    running, whole = sharded(cache), CorpusReader(cache, "train", SIZE)
    stream = running.stream(2, rank=1)
    for step in range(2, 9):
        batch, alone = next(stream), sharded(cache).batch(step, rank=1)
        for name in batch:
            assert torch.equal(batch[name], alone[name])
    members = running.members(2, 1)
    shard = running.load(2, 1)
    for place, index in enumerate(members):
        np.testing.assert_array_equal(shard.images[0][place], whole.images[index])
        np.testing.assert_array_equal(shard.poses[place, :, 1], whole.azimuth_rad[index])


def test_one_shard_of_everything_draws_as_the_mapped_corpus_does(cache):
    """Up to the order of the objects, a batch is that of ``PairSource`` for the same step: sharding changes which objects are at hand, nothing else."""
    everything = sharded(cache, objects=OBJECTS, world_size=1)
    reader = CorpusReader(cache, "train", SIZE)
    mapped = PairSource([reader], 2, 2, 5, (0.5, 0.5))
    order = everything.members(0, 0)
    mapped.images, mapped.poses = [reader.images[order]], mapped.poses[order]
    for step in range(3):
        assert all(torch.equal(a, b) for a, b in zip(everything.batch(step).values(), mapped.batch(step).values()))


def test_damaged_objects_are_named(cache, tmp_path):
    import shutil

    shutil.copytree(cache, tmp_path / "copy")
    broken = PackedCorpus(tmp_path / "copy", "train", SIZE)
    path = broken.path(0)
    path.write_bytes(path.read_bytes()[:300])
    source = ShardedSource([broken], 1, 1, 1, 2, 2, seed=5)
    at = next(period for period in range(14) if source.members(period, 0) == [0])
    source.batch(max(at - 1, 0)) if at else None
    with pytest.raises(InputError, match=f"{path.name}: missing or damaged"):
        source.batch(at)


def test_checkpoints_that_do_not_say_their_processes_go_on(tmp_path):
    torch.save({"global_step": 41}, tmp_path / "last.ckpt")
    assert start_step(PriorConfig(devices=2), tmp_path / "last.ckpt") == 41 and start_step(PriorConfig(), tmp_path / "none.ckpt") == 0
    torch.save({"global_step": 41, "world_size": 4}, tmp_path / "last.ckpt")
    assert start_step(PriorConfig(devices=2, nodes=2), tmp_path / "last.ckpt") == 41
    assert start_step(PriorConfig(allow_other_processes=True), tmp_path / "last.ckpt") == 41
    with pytest.raises(InputError, match="made by 4 processes, this run has 2"):
        start_step(PriorConfig(devices=2), tmp_path / "last.ckpt")


def test_the_perceptual_term_is_lpips_of_the_guess_s_colours():
    model = tiny_random_model(0, multiplane=8)
    model.multiplane.train().requires_grad_(True)
    generator = torch.Generator().manual_seed(5)
    views = torch.nn.functional.interpolate(torch.rand(1, 12, 5, 5, generator=generator), (32, 32), mode="bicubic").clamp(0, 1).view(1, 3, 4, 32, 32)
    pose = torch.tensor(np.array([[[pose_condition(Camera(1.2, 0.0), Camera(1.3, 0.5)), pose_condition(Camera(1.2, 0.0), Camera(1.1, 5.0))]]]), dtype=torch.float32)
    batch = {"condition": views[:, :2], "target": views[:, 2:], "pose": pose}
    plain, whole = (guess_loss(model, batch, torch.Generator(), 32, [0.0], weight) for weight in (0.0, 0.5))
    guess = 1 - 2 * model.multiplane(condition_ink(batch), pose[0], 32)[:, :3]
    lpips = perceptual_distance(torch.device("cpu"))
    expected = lpips.distance(lpips.features(guess), lpips.features(batch["target"][0, :, :3] * 2 - 1))
    assert float(whole - plain) == pytest.approx(0.5 * float(expected), rel=1e-3)
    (whole - plain).backward()
    assert any(float(p.grad.abs().max()) > 0 for p in model.multiplane.parameters() if p.grad is not None)


def test_renderer_and_u_net_learn_from_one_look_at_the_photos(cache):
    """part=both: the renderer's gradients are those of its own loss, the U-Net's those of the diffusion loss and of what one step shows."""
    model = tiny_random_model(0, multiplane=8)
    model.multiplane.train().requires_grad_(True)
    batch = PairSource([CorpusReader(cache, "train", SIZE)], 2, 2, 5, (0.0, 1.0)).batch(0)
    config = PriorConfig(part="both", noises_per_target=3, guess_perceptual=0.1)

    def gradients(**settings):
        model.zero_grad()
        loss = joint_loss(model, batch, torch.Generator().manual_seed(1), 0.0, [0.0, 2.0], replace(config, **settings))
        loss.backward()
        return [p.grad.clone() for p in model.multiplane.parameters()], [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.unet.parameters()]

    renderer, whole = gradients()
    model.zero_grad()
    guess_loss(model, batch, torch.Generator().manual_seed(1), SIZE, [0.0, 2.0], 0.1).backward()
    for found, parameter in zip(renderer, model.multiplane.parameters()):
        torch.testing.assert_close(found, parameter.grad, atol=1e-7, rtol=1e-4)
    diffusion, seen, none = (gradients(**s)[1] for s in ({"view_perceptual": 0.0}, {"diffusion_weight": 0.0}, {"view_perceptual": 0.0, "diffusion_weight": 0.0}))
    assert max(float(g.abs().max()) for g in none) == 0 < min(max(float(g.abs().max()) for g in some) for some in (diffusion, seen))
    for both, one, other in zip(whole, diffusion, seen):
        torch.testing.assert_close(both, one + other, atol=1e-6, rtol=1e-3)


def test_compiled_parts_are_used_and_change_nothing(cache, monkeypatch):
    """What is compiled is the parts' own code (here by a compiler that only counts): same loss, same names of weights."""
    calls = []
    monkeypatch.setattr(torch, "compile", lambda function, **_: lambda *given: calls.append("composite") or function(*given))
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, **_: calls.append(type(self).__name__))
    batch = PairSource([CorpusReader(cache, "train", SIZE)], 2, 2, 5, (0.0, 1.0)).batch(0)
    model = tiny_random_model(0, multiplane=8)
    names = list(model.multiplane.state_dict())
    before = joint_loss(model, batch, torch.Generator().manual_seed(1), 0.0, [0.0], PriorConfig(part="both"))
    compile_parts(model, ["renderer", "unet"])
    assert calls == ["MultiplaneRenderer", "UNet2DConditionModel"]
    compile_parts(model, ["composite"])
    after = joint_loss(model, batch, torch.Generator().manual_seed(1), 0.0, [0.0], PriorConfig(part="both"))
    assert calls[2:] == ["composite"] and torch.equal(before, after) and list(model.multiplane.state_dict()) == names
    with pytest.raises(InputError, match="compile=all is unknown"):
        compile_parts(model, ["all"])
    with pytest.raises(InputError, match="no renderer of first guesses"):
        compile_parts(tiny_random_model(0), ["unet", "composite"])


def test_batches_made_on_a_device_are_those_of_the_mapped_corpus(cache):
    reader = CorpusReader(cache, "train", SIZE)
    mapped, resident = PairSource([reader, reader], 3, 2, 5, (0.5, 0.5)), PairSource([reader, reader], 3, 2, 5, (0.5, 0.5), device="cpu")
    assert resident.resident.shape == (2 * OBJECTS, VIEWS, SIZE, SIZE, 4) and mapped.resident is None
    for step in range(6):
        for name, tensor in mapped.batch(step).items():
            assert torch.equal(tensor, resident.batch(step)[name]), name


def test_the_u_net_is_trained_without_the_factors_of_the_weights_before(cache, tmp_path):
    model = tiny_random_model(0, multiplane=8)
    model.correction_gain.zero_()
    model.save(tmp_path / "model")
    assert float(load_zero123(tmp_path / "model").correction_gain.max()) == 0
    started = build(PriorConfig(init=str(tmp_path / "model"), image_size=SIZE), None)
    assert bool((started.correction_gain == 1).all())


def test_another_model_s_renderer_is_put_in_and_measured(cache, tmp_path):
    base, other = tiny_random_model(0, multiplane=8), tiny_random_model(1, multiplane=8)
    other.save(tmp_path / "other")
    sources = [PairSource([CorpusReader(cache, part, SIZE)], 2, 2, 5, (0.5, 0.5)) for part in ("train", "validation")]
    with_renderer(base, tmp_path / "other", *sources)
    for name, weight in other.multiplane.named_parameters():
        torch.testing.assert_close(base.multiplane.get_parameter(name), weight, atol=1e-3, rtol=1e-3, msg=name)
    assert not bool((base.multiplane.residual_variance == 1).any()), "the error of its guesses is measured"
    tiny_random_model(1).save(tmp_path / "none")
    with pytest.raises(InputError, match="no renderer of first guesses there"):
        with_renderer(base, tmp_path / "none", *sources)
    with pytest.raises(InputError, match="the base model has no renderer"):
        with_renderer(tiny_random_model(0), tmp_path / "other", *sources)
    weights = next((tmp_path / "other" / "multiplane").glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:100])
    with pytest.raises(InputError, match="damaged renderer"):
        with_renderer(base, tmp_path / "other", *sources)
