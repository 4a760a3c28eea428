"""Presets and the options that save memory: the same results, or known differences, on a very small model."""

import dataclasses
import types
from pathlib import Path

import importlib
import pytest
import torch

from camerabooth.config import BoothConfig
from camerabooth.training import PhotoPairs, fit
from camerabooth.camera_table import CameraTable
from relposepp.config import RelPoseConfig
from sap3d import errors, presets
from sap3d.cameras import Camera
from sap3d.config import load_config, stage_arguments
from sap3d.errors import InputError
from sap3d.zero123 import load_personal, save_personal, tiny_random_model
from sap3d.zero123.lora import add_lora, is_lora
from sap3d.zero123.memory import check_card, prepare
from sap3d.zero123.personal import FILE, weights_hash

RECON = importlib.import_module("3D_Recon.threestudio.config")
CAMERAS = {"000": Camera.from_degrees(0, 0), "001": Camera.from_degrees(20, 90), "002": Camera.from_degrees(0, 200)}


def photos():
    return torch.nn.functional.interpolate(torch.rand(3, 4, 4, 4, generator=torch.Generator().manual_seed(0)), (32, 32), mode="bicubic").clamp(0, 1)


def trained(**settings):
    torch.manual_seed(0)
    model = tiny_random_model(0, planes=0)
    config = dataclasses.replace(BoothConfig(), precision="fp32", steps=2, steps_per_extra_view=0, batch_size=3, regulariser_batch=0, learning_rate=1e-3, **settings)
    prepare(model, "cpu", config.vae_slicing, config.offload, config.gradient_checkpointing)
    result = fit(model, CameraTable(CAMERAS), PhotoPairs(model, photos(), [], True), config, Path("none/checkpoint.pt"))
    return model, result


def predict(model):
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        features = model.encode_condition(photos()[:1, :3])
        return model.predict(torch.randn(1, 12, 8, 8, generator=generator), torch.tensor([300]), features, torch.zeros(1, 8))


# --- presets ----------------------------------------------------------------------------------------------------------
def test_presets_are_settings_of_the_stages(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    monkeypatch.setattr(presets, "REPOSITORY", tmp_path)
    assert presets.preset_names() == ["full", "full-11gb", "tiny"]
    for cls in (RelPoseConfig, BoothConfig, RECON.ReconConfig):
        assert load_config(cls, preset="tiny") == cls()
        with pytest.raises(InputError, match="sap3d.weights"):
            load_config(cls, preset="full")
    for model in ("zero123", "relposepp"):
        (tmp_path / "weights" / model).mkdir(parents=True)
    for name in ("full", "full-11gb"):
        booth, recon = load_config(BoothConfig, preset=name), load_config(RECON.ReconConfig, None, ["steps=7"], name)
        booth.check(), recon.check()
        assert booth.model == recon.model == str(tmp_path / "weights/zero123") and recon.steps == 7
        assert booth.weights_dtype == recon.weights_dtype != "fp32"  # personal weights are bound to it
        assert load_config(RelPoseConfig, preset=name).weights == str(tmp_path / "weights/relposepp")
    with pytest.raises(InputError, match="available: full"):
        load_config(BoothConfig, preset="huge")


def test_quick_keeps_test_time_training_of_a_large_model(tmp_path, monkeypatch):
    """The small model's six steps would leave low-rank changes of published weights at nothing."""
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    (tmp_path / "weights/zero123").mkdir(parents=True)

    def quick(cls, *options):
        return stage_arguments("", cls, ["--type", "T", "--object", "o", "--views", "2", "--quick", *options])[1]

    full, small = quick(BoothConfig, "--preset=full", "nvs_steps=9"), load_config(BoothConfig, None, BoothConfig.QUICK)
    assert (full.steps, full.steps_per_extra_view, full.nvs_steps, full.trained) == (120, 20, 9, "lora")
    assert quick(BoothConfig) == quick(BoothConfig, "--preset=tiny") == small
    assert quick(RECON.ReconConfig, "--preset=full").steps == load_config(RECON.ReconConfig, None, RECON.ReconConfig.QUICK).steps


def test_weights_in_half_precision_cannot_be_trained_whole():
    for settings in ({"weights_dtype": "bf16", "precision": "bf16"}, {"weights_dtype": "bf16", "precision": "fp32", "trained": "lora"}):
        with pytest.raises(InputError, match="weights_dtype"):
            dataclasses.replace(BoothConfig(), **settings).check()


# --- LoRA -------------------------------------------------------------------------------------------------------------
def test_lora_changes_nothing_at_first_and_learns():
    model = tiny_random_model(0, planes=0)
    before = predict(model)
    names = add_lora(model, 4)
    assert names and torch.equal(predict(model), before) and add_lora(model, 4) == names
    model, result = trained(trained="lora", lora_rank=4)
    assert {name for name in result["trained"] if is_lora(name)} == set(names) and all(is_lora(n) or n.startswith("cc_projection.") for n in result["trained"])
    assert not torch.allclose(predict(model), before, atol=1e-4)
    ups = [p for n, p in model.named_parameters() if n.endswith("lora_up")]
    assert all(float(p.detach().abs().max()) > 0 for p in ups[:2])


def test_lora_is_kept_as_personal_weights(tmp_path):
    base = tiny_random_model(0, planes=0)
    model, result = trained(trained="lora", lora_rank=4)
    save_personal(tmp_path / FILE, model, result["trained"], weights_hash(base))
    assert torch.allclose(predict(load_personal(tmp_path, base=base)), predict(model), atol=2e-3)  # stored as fp16
    assert (tmp_path / FILE).stat().st_size < 200_000


# --- the options ------------------------------------------------------------------------------------------------------
def test_gradient_checkpointing_gives_the_same_training(monkeypatch):
    calls = []
    checkpoint = torch.utils.checkpoint.checkpoint
    monkeypatch.setattr(torch.utils.checkpoint, "checkpoint", lambda *arguments, **options: calls.append(1) or checkpoint(*arguments, **options))
    plain, first = trained(trained="attention")
    assert not calls
    saving, second = trained(trained="attention", gradient_checkpointing=True)
    assert calls and first["losses"] == pytest.approx(second["losses"], rel=1e-5)
    assert torch.allclose(predict(plain), predict(saving), atol=1e-5)


@pytest.mark.parametrize("precision", ("bf16", "fp16"))
def test_training_with_weights_in_half_precision(precision):
    model = tiny_random_model(0, planes=0)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    model.unet.to(dtype)
    prepare(model, "cpu")
    assert model.cc_projection.linear.weight.dtype == torch.float32
    config = dataclasses.replace(BoothConfig(), precision=precision, weights_dtype=precision, trained="lora", lora_rank=2, steps=2, steps_per_extra_view=0, batch_size=2, regulariser_batch=0)
    result = fit(model, CameraTable(CAMERAS), PhotoPairs(model, photos(), [], True), config, Path("none/checkpoint.pt"))
    kept = dict(model.named_parameters())
    assert all(kept[name].dtype == torch.float32 and torch.isfinite(kept[name]).all() for name in result["trained"])
    assert model.unet.conv_in.weight.dtype == dtype


@pytest.mark.parametrize("multiplane", (0, 8))
def test_small_models_with_sweep_and_first_guesses_work_in_half_precision(multiplane):
    from sap3d.zero123.sampler import sample_views

    model = prepare(tiny_random_model(0, planes=4, multiplane=multiplane).to(torch.bfloat16), "cpu")
    image = torch.rand(2, 4, model.image_size, model.image_size)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        features = model.encode_condition(image[:, :3], image[:, 3:])
        views = sample_views(model, features, list(CAMERAS.values())[:2], [Camera.from_degrees(10, 40)], 1, 1.0, "all", 1, 0)
    assert torch.isfinite(views).all()


def test_offloaded_parts_are_moved_in_and_out(monkeypatch):
    model = tiny_random_model(0, planes=0)
    moves = []
    monkeypatch.setattr(model.vae, "to", lambda place: moves.append(str(place)))
    model.encode_target(photos()[:, :3])
    assert moves == []
    model.offloaded = (model.vae,)
    with torch.no_grad():
        model.decode(model.encode_target(photos()[:, :3]))
    assert moves == ["cpu", "cpu"] * 2
    moves.clear()
    model.encode_target(photos()[:, :3].requires_grad_(True))
    assert moves == ["cpu"]  # a backward pass needs it: it stays on the model's device


# --- too small a card -------------------------------------------------------------------------------------------------
def test_messages_name_the_card_and_the_measured_need(tmp_path, monkeypatch):
    card = types.SimpleNamespace(name="Small Card", total_memory=4e9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda: int(3.5e9))
    monkeypatch.setattr(presets, "measured_need", lambda preset, stage: {"full": 14.0, "full-11gb": 9.5}[preset])
    line = errors.one_line(torch.OutOfMemoryError("CUDA out of memory"))
    assert "Small Card, which has 4.0 GB (3.5 GB were in use)" in line and "full-11gb 9.5 GB" in line and "\n" not in line
    unet = tmp_path / "unet"
    unet.mkdir()
    (unet / "a.safetensors").touch()
    check_card(tmp_path, "cuda", "train")  # a small model
    with open(unet / "a.safetensors", "wb") as stream:
        stream.truncate(2 << 30)  # sparse
    check_card(tmp_path, "cpu", "train")
    with pytest.raises(InputError, match="Small Card has 4.0 GB; train .* needs 9.5 GB"):
        check_card(tmp_path, "cuda", "train")
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    with pytest.raises(InputError, match="Small Card has no bfloat16 .* booth.weights_dtype=fp16"):
        check_card(tmp_path, "cuda", "train", "bf16")
    with pytest.raises(InputError, match="needs 9.5 GB"):
        check_card(tmp_path, "cuda", "train", "fp16")
    check_card(tmp_path, "cpu", "train", "bf16")
