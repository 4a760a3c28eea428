"""Forms of the prior's condition: patch tokens or the pooled one, a frozen trunk or one from scratch, and their comparison."""

import argparse
import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from benchmarks import conditions
from camerabooth.prior.config import PriorConfig
from camerabooth.prior.data import PairSource
from camerabooth.prior.train import PriorModule, build, condition_sets, train
from dataset.corpus_reader import CorpusReader
from sap3d.alexnet import _shared_trunk
from sap3d.config import load_config
from sap3d.errors import InputError
from sap3d.zero123 import load_zero123
from tests.test_prior_train import MODEL, SIZE, cache  # noqa: F401

CONFIG = load_config(PriorConfig, None, [*MODEL, "planes=0", "sets=[1.0]"])


@pytest.fixture(scope="module")
def source(cache):  # noqa: F811
    return PairSource([CorpusReader(cache, "train", SIZE)], 2, 2, 0)


def module_of(source, **settings):
    return PriorModule(build(replace(CONFIG, **settings), source), replace(CONFIG, **settings))


def learn(module, source, steps=2):
    """Train for some steps; the parts' weights before."""
    before = {name: tensor.clone() for name, tensor in module.model.state_dict().items()}
    optimiser = module.configure_optimizers()
    for step in range(steps):
        module.loss(module.model, source.batch(step), torch.Generator().manual_seed(step), 0.0, 0.0).backward()
        optimiser.step()
        module.average.update_parameters(module.trained)
    return before


def tokens_of(model, source):
    with torch.no_grad():
        return model.encode_condition(source.batch(9)["condition"].flatten(0, 1)[:, :3]).tokens


def test_the_pooled_model_attends_to_one_token(source):
    patches, pooled = (module_of(source, tokens=tokens).model for tokens in ("patches", "pooled"))
    many, one = tokens_of(patches, source), tokens_of(pooled, source)
    assert many.shape[1:] == (50, 64) and one.shape[1:] == (1, 64) and torch.equal(many[:, :1], one)
    batch = source.batch(9)
    features = pooled.encode_condition(batch["condition"].flatten(0, 1)[:, :3])
    tokens, concat = pooled.conditions(features, batch["pose"][:, 0, 0])
    turned, same = pooled.conditions(features, batch["pose"][:, 1, 0])
    assert tokens.shape == (2, 1, 64) and float((tokens - turned).detach().abs().max()) > 1e-3 and torch.equal(concat, same)  # the pose is in the token alone


def test_models_that_are_compared_differ_in_nothing_else(source):
    states = [module_of(source, tokens=tokens, trunk=trunk).model.state_dict() for tokens, trunk in conditions.ARMS]
    for state in states[1:]:
        assert set(states[0]) == {name for name in state if "own_trunk" not in name}
        assert all(torch.equal(tensor, state[name]) for name, tensor in states[0].items())


def test_a_trunk_from_scratch_is_trained_and_stored(source, tmp_path):
    module = module_of(source, trunk="scratch")
    own = {name for name in module.model.state_dict() if "own_trunk" in name}
    before = learn(module, source)
    state = module.averaged_model().eval().state_dict()
    assert len(own) == 10 and all(not torch.equal(before[name], state[name]) for name in own)
    scale = float(module.model.image_encoder.trunk_features(source.batch(0)["condition"][:, 0, :3]).detach().square().mean().sqrt())
    assert 0.3 < scale < 30  # about that of ImageNet features, which the transformer divides by 3
    expected = tokens_of(module.model, source)
    module.model.save(tmp_path / "exact", torch.float32)
    assert torch.equal(tokens_of(load_zero123(tmp_path / "exact"), source), expected)
    module.model.save(tmp_path / "small", int8=True)
    torch.testing.assert_close(tokens_of(load_zero123(tmp_path / "small"), source), expected, atol=0.02, rtol=0.02)
    half = load_zero123(tmp_path / "small", dtype=torch.bfloat16)
    assert tokens_of(half, source).dtype == torch.bfloat16


def test_the_frozen_trunk_stays_frozen(source, tmp_path):
    module, trunk = module_of(source), _shared_trunk(torch.device("cpu"))
    frozen = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    before = learn(module, source)
    assert all(torch.equal(tensor, frozen[name]) and tensor.grad is None for name, tensor in trunk.state_dict(keep_vars=True).items())
    assert set(module.trained) == {"unet", "cc_projection", "image_encoder"} and not any("trunk" in name for name in before)
    encoder = "image_encoder.clip.visual_projection.weight"
    assert not torch.equal(before[encoder], module.model.state_dict()[encoder])  # what reads it is trained
    images = source.batch(0)["condition"][:, 0, :3].requires_grad_(True)
    assert not module.model.image_encoder.trunk_features(images).requires_grad
    module.model.save(tmp_path / "model")
    config = tmp_path / "model" / "image_encoder" / "config.json"
    config.write_text(json.dumps({key: value for key, value in json.loads(config.read_text()).items() if key != "trunk"}))  # as older folders are
    torch.testing.assert_close(tokens_of(load_zero123(tmp_path / "model"), source), tokens_of(module.model, source), atol=0.02, rtol=0.02)


def test_what_cannot_be_used_is_refused_in_a_line(source):
    with pytest.raises(InputError, match="needs a model with a plane sweep") as raised:
        build(replace(CONFIG, multiplane=8), source)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("options, message", (
    (("--every", "0"), "--every 0 must be at least 1"), (("--targets", "0"), "--targets 0"), (("--type", "NOTHING"), "NOTHING: no objects with true poses"),
    (("--corpus", "a", "b", "learning_rate=-1"), "learning_rate=-1.0 must lie"),
))  # fmt: skip
def test_what_cannot_be_measured_is_refused_before_the_trainings(options, message, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["conditions", "--train", "--out", str(tmp_path), *options])
    for name in ("start", "CorpusReader"):
        monkeypatch.setattr(conditions, name, lambda *_: pytest.fail("something was begun"))
    with pytest.raises(InputError, match=message):
        conditions.main()


def test_the_published_concatenation_takes_one_photo_whatever_sets_says(source, tmp_path):
    assert condition_sets(replace(CONFIG, sets=[0.5, 0.5])) == [1.0] and condition_sets(replace(CONFIG, sets=[0.5, 0.5], planes=4)) == [0.5, 0.5]
    module_of(source).model.save(tmp_path / "model")
    assert condition_sets(PriorConfig(init=str(tmp_path / "model"))) == [1.0]


def test_the_comparison_trains_and_measures_all_four(cache, tmp_path):  # noqa: F811
    arguments = argparse.Namespace(out=tmp_path, corpus=[cache], steps=4, minutes=5.0, ddim_steps=2, loss_batches=1,
                                   settings=[*(s for s in MODEL if s.split("=")[0] not in ("planes", "multiplane", "threads")), "sets=[0.5,0.5]"])  # fmt: skip
    for arm in conditions.ARMS:  # in this process: four that start anew take longer than all the rest
        train(load_config(PriorConfig, None, conditions.settings(arm, arguments) + ["validate_every=4"] * (arm == conditions.ARMS[0])))
    corpora = [CorpusReader(cache, "validation", SIZE)]
    views = conditions.corpus_views(corpora, 3)
    assert views.photos.shape == (1, 4, SIZE, SIZE) and views.which.tolist() == [0, 0, 0] and len(views.truth) == 3
    rows = conditions.measure(arguments, corpora, [views], "cpu")
    assert [(row["tokens"], row["trunk"], row["guidance"]) for row in rows] == [(*arm, guidance) for arm in conditions.ARMS for guidance in conditions.GUIDANCE]
    assert all(row["steps"] == 4 and row["samples"] == 32 and np.isfinite([row["validation_loss"], row["psnr"], row["ssim"], row["lpips"]]).all() for row in rows)
    assert len({row["validation_loss"] for row in rows}) == 4 and len({row["psnr"] for row in rows}) == 8
    with open(tmp_path / "patches_alexnet" / "validation.csv", newline="") as stream:
        logged = next(csv.DictReader(stream))  # its sheets are of one and of four photos
    assert logged["step"] == "4" and len(list((tmp_path / "patches_alexnet" / "samples").iterdir())) == 2
    (tmp_path / "conditions.json").write_text(json.dumps(rows))
    lines = conditions.table(tmp_path / "conditions.json").splitlines()
    assert len(lines) == 10 and "patches | alexnet | 4 | 32" in lines[2] and "±" not in lines[2] and "±" in lines[3]
    conditions.write_curves(tmp_path)
    assert (tmp_path / "curves.csv").read_text().count("\n") == 9  # two of each model: every second step


def test_a_training_that_fails_is_named(cache, tmp_path):  # noqa: F811
    arguments = argparse.Namespace(out=tmp_path, corpus=[cache], steps=4, minutes=5.0, settings=[*MODEL, "planes=0", "multiplane=0", "trunk=none"])
    with pytest.raises(InputError, match="pooled_scratch/log.txt: the training ended with status 2 .*trunk='none' is unknown"):
        with conditions.trained([("pooled", "scratch")], arguments, 1):
            pass
