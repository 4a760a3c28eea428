"""Published weight files: what they are, strict reading, hostile and damaged ones, conversion of every form that circulates."""

import json
import os
import pickle
import subprocess
import sys
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file

from sap3d import weights
from sap3d.errors import InputError, cli
from sap3d.published.convert import check, convert
from sap3d.published.reading import open_weights
from sap3d.published.sources import read_published
from sap3d.zero123 import load_zero123
from tests.published_files import Hostile, hostile_bytes, save_with_training_objects, shapes


def state(**changes) -> dict[str, torch.Tensor]:
    """Names and shapes of the small Zero-1-to-3 checkpoint; a tensor is one number, repeated without being stored."""
    full = {name: torch.full((), 0.01 * (k % 7)).expand(shape) for k, (name, shape) in enumerate(shapes("zero123").items())}
    full |= {"betas": torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, "logvar": torch.zeros(1).expand(1000)}
    full |= changes
    return {name: value for name, value in full.items() if value is not None}


def checkpoint(path, content, wrapped=True):
    torch.save({"state_dict": content} if wrapped else content, path)
    return path


def one_line(call) -> str:
    with pytest.raises(InputError) as caught:
        call()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 400
    return str(caught.value)


UNET, CLIP = "model.diffusion_model.", "cond_stage_model.model.visual."


# --- reading ----------------------------------------------------------------------------------------------------------
def test_training_objects_are_read_around(tmp_path):
    """Callbacks and configurations of packages that are not installed: present in the file, never loaded."""
    path = tmp_path / "105000.ckpt"
    save_with_training_objects(path, state())
    assert b"pytorch_lightning_gone" in zipfile.ZipFile(path).read("105000/data.pkl")
    assert not any("_gone" in name for name in sys.modules)
    published = read_published(path)
    assert check(published)["cc_projection"] == 772 * 768 + 768
    assert weights.identify(path) == "zero123" and not any("_gone" in name for name in sys.modules)


def test_tensors_are_read_exactly(tmp_path):
    draw = torch.randn(6, 4)
    content = {"a": draw, "row": draw[2], "transposed": draw.T, "half": draw.half(), "bf16": draw.bfloat16(), "count": torch.tensor(7), "none": torch.zeros(0, 3),
               "parameter": torch.nn.Parameter(draw)}  # fmt: skip
    for path in (checkpoint(tmp_path / "a.ckpt", content), checkpoint(tmp_path / "b.pth", content, wrapped=False)):
        file = open_weights(path)
        for name, value in content.items():
            assert file[name].shape == tuple(value.shape) and torch.equal(file.tensor(name), value.detach())
    torch.save(content, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    assert torch.equal(open_weights(tmp_path / "old.pth").tensor("transposed"), draw.T)
    save_file({"x": draw}, tmp_path / "x.safetensors")
    assert torch.equal(open_weights(tmp_path / "x.safetensors").tensor("x"), draw)


class Call:
    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("thing", (Hostile(), Call(os.system, "touch stolen.txt"), Call(eval, "open('stolen.txt', 'w')"), Call(subprocess.Popen, ["touch", "stolen.txt"]),
                                   Call(exec, "open('stolen.txt', 'w')"), Call(getattr, "os", "system"), Call(__import__, "antigravity")), ids=lambda t: type(t).__name__)  # fmt: skip
def test_files_that_run_code_are_refused(tmp_path, monkeypatch, thing):
    monkeypatch.chdir(tmp_path)
    content = {"state_dict": state(), "callbacks": thing}
    torch.save(content, tmp_path / "x.ckpt")
    line = one_line(lambda: read_published(tmp_path / "x.ckpt"))
    assert "would run code" in line and "x.ckpt" in line
    (tmp_path / "bare.ckpt").write_bytes(pickle.dumps(content["callbacks"]))
    (tmp_path / "x.safetensors").write_bytes(pickle.dumps(content["callbacks"]))
    for name in ("bare.ckpt", "x.safetensors"):
        assert name in one_line(lambda: open_weights(tmp_path / name))
    assert not (tmp_path / "stolen.txt").exists()


def test_damaged_files(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", {"a": torch.randn(200, 50), "b": torch.ones(3)})
    whole = path.read_bytes()
    for name, content in {"empty": b"", "cut": whole[: len(whole) // 2], "tail": whole[-2000:], "page": b"<html>quota exceeded</html>" * 20, "zip head": whole[:40]}.items():
        (tmp_path / "bad.ckpt").write_bytes(content)
        assert "bad.ckpt" in one_line(lambda: open_weights(tmp_path / "bad.ckpt")), name
    flipped = bytearray(whole)
    flipped[whole.index(b"data/0") + 400] ^= 255
    (tmp_path / "flipped.ckpt").write_bytes(flipped)
    file = open_weights(tmp_path / "flipped.ckpt")  # names and shapes are whole
    assert "tensor a cannot be read" in one_line(lambda: file.tensor("a"))
    assert "no such file" in one_line(lambda: open_weights(tmp_path / "none.ckpt"))
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as archive:
        archive.writestr("photo.png", b"x")
    assert "no PyTorch checkpoint" in one_line(lambda: open_weights(tmp_path / "other.zip"))
    save_file({"x": torch.ones(100)}, tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").write_bytes((tmp_path / "x.safetensors").read_bytes()[:-10])
    assert "damaged" in one_line(lambda: open_weights(tmp_path / "x.safetensors"))


def test_a_description_that_reaches_outside_its_numbers_is_refused(tmp_path):
    """The same archive with the pickle of another: sizes that its storages do not have."""
    small, large = (checkpoint(tmp_path / f"{n}.ckpt", {"a": torch.ones(n)}) for n in (4, 4000))
    with zipfile.ZipFile(small) as source, zipfile.ZipFile(large) as other, zipfile.ZipFile(tmp_path / "forged.ckpt", "w") as forged:
        for name in source.namelist():
            forged.writestr(name.replace("4/", "forged/", 1), other.read("4000/data.pkl") if name.endswith("data.pkl") else source.read(name))
    assert "do not fit" in one_line(lambda: open_weights(tmp_path / "forged.ckpt"))


# --- strictness -------------------------------------------------------------------------------------------------------
WRONG = {
    "missing in the U-Net": ({f"{UNET}middle_block.1.proj_in.weight": None}, "mid_block.attentions.0.proj_in.weight is missing"),
    "missing in the autoencoder": ({"first_stage_model.decoder.conv_out.bias": None}, "decoder.conv_out.bias is missing"),
    "missing in CLIP": ({f"{CLIP}transformer.resblocks.1.ln_2.bias": None}, "layers.1.layer_norm2.bias is missing"),
    "missing projection": ({"cc_projection.weight": None, "cc_projection.bias": None}, "no cc_projection"),
    "unexpected name": ({"control_model.weight": torch.zeros(1)}, "unexpected tensor control_model.weight"),
    "unexpected in the U-Net": ({f"{UNET}input_blocks.1.2.weight": torch.zeros(1)}, "unexpected tensor model.diffusion_model.input_blocks.1.2.weight"),
    "wrong shape": ({f"{UNET}out.2.bias": torch.zeros(5)}, "conv_out.bias has shape [5], expected [4]"),
    "wrong width of CLIP": ({f"{CLIP}proj": torch.zeros(1).expand(64, 512)}, "does not fit the other parts"),
    "four channels": ({f"{UNET}input_blocks.0.0.weight": torch.zeros(1).expand(32, 4, 3, 3)}, "takes 4 channels"),
    "another projection": ({"cc_projection.weight": torch.zeros(1).expand(768, 774)}, "does not fit the other parts"),
    "another schedule": ({"alphas_cumprod": torch.linspace(1, 0, 1000)}, "noise schedule"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_named(tmp_path, case):
    changes, message = WRONG[case]
    path = checkpoint(tmp_path / "105000.ckpt", state(**changes))
    line = one_line(lambda: check(read_published(path)))
    assert message in line and "105000.ckpt" in line


def test_numbers_that_are_not_finite(tmp_path):
    path = checkpoint(tmp_path / "a.ckpt", state(**{"cc_projection.bias": torch.full((768,), float("nan"))}))
    assert "cc_projection: tensor bias" in one_line(lambda: convert(read_published(path), tmp_path / "out"))
    assert list(tmp_path.iterdir()) == [path]  # nothing half done is left


def test_other_models_are_said_to_be_others(tmp_path):
    sd = {name: value for name, value in state().items() if not name.startswith(("cc_projection", "cond_stage"))}
    for content, message in ((sd, "Stable Diffusion"), ({"fc.weight": torch.zeros(2)}, "unknown model"), ({"epoch": 3}, "without named tensors")):
        path = checkpoint(tmp_path / "other.ckpt", content)
        assert message in one_line(lambda: (weights.identify(path), read_published(path)))


def test_the_moving_average_is_taken_where_there_is_one(tmp_path):
    averages = {f"model_ema.diffusion_model{name.removeprefix(UNET).replace('.', '')}": value + 1 for name, value in state().items() if name.startswith(UNET)}
    path = checkpoint(tmp_path / "a.ckpt", state(**averages, **{"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(3)}))
    last, averaged = (read_published(path, choice).parts["unet"]["conv_out.bias"].read() for choice in (False, True))
    assert torch.allclose(averaged, last + 1)
    del averages["model_ema.diffusion_modelout2bias"]
    path = checkpoint(tmp_path / "b.ckpt", state(**averages))
    assert "out2bias is missing" in one_line(lambda: read_published(path))


# --- the forms that circulate -----------------------------------------------------------------------------------------
@pytest.fixture(scope="module")
def converted(tmp_path_factory):
    folder = tmp_path_factory.mktemp("converted")
    convert(read_published(checkpoint(folder / "a.ckpt", state())), folder / "own", image_size=64)
    return folder / "own"


def tensors(folder):
    return {f"{path.parent.name}/{name}": value for path in sorted(folder.glob("*/*.safetensors")) for name, value in load_file(path).items()}


def foreign_folder(own, folder, projection: str, prefix: str, pickled: bool, old_names: bool):
    """A folder as other programs write it, with the tensors of ``own``."""
    for part in ("unet", "vae", "image_encoder"):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps({"_class_name": "X", "_diffusers_version": "0.17.0"} | json.loads((own / part / "config.json").read_text())))
        content = load_file(next((own / part).glob("*.safetensors")))
        if old_names and part == "vae":
            swap = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
            for name in [name for name in content if ".attentions.0.to_" in name]:
                value = content.pop(name)
                new = next(old for now, old in swap.items() if f".{now}." in name), next(now for now in swap if f".{now}." in name)
                content[name.replace(new[1], new[0])] = value
        if old_names and part == "image_encoder":
            content["vision_model.embeddings.position_ids"] = torch.arange(257)[None]
        stem = "model" if part == "image_encoder" else "diffusion_pytorch_model"
        if pickled:
            torch.save(content, folder / part / f"{'pytorch_model' if part == 'image_encoder' else stem}.bin")
        else:
            save_file(content, folder / part / f"{stem}.safetensors")
    (folder / projection).mkdir()
    linear = load_file(own / "cc_projection/diffusion_pytorch_model.safetensors")
    save_file({f"{prefix}{name}": value for name, value in linear.items()}, folder / projection / "diffusion_pytorch_model.safetensors")
    (folder / "scheduler").mkdir()
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 1000}))
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "Zero1to3StableDiffusionPipeline", projection: ["x", "y"]}))
    return folder


@pytest.mark.parametrize("projection, prefix, pickled, old", (("cc_projection", "projection.", True, True), ("clip_camera_projection", "proj.", False, False)))
def test_folders_in_diffusers_format(converted, tmp_path, projection, prefix, pickled, old):
    folder = foreign_folder(converted, tmp_path / "foreign", projection, prefix, pickled, old)
    assert weights.identify(folder) == "zero123"
    assert "convert it first" in one_line(lambda: load_zero123(folder))
    convert(read_published(folder), tmp_path / "own", image_size=64)
    ours, theirs = tensors(tmp_path / "own"), tensors(converted)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in theirs)
    assert load_zero123(tmp_path / "own").image_size == 64
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps({"beta_start": 0.1}))
    assert "beta_start" in one_line(lambda: read_published(folder))


def test_folders_of_other_models(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}')
    assert "StableDiffusionPipeline" in one_line(lambda: read_published(tmp_path))
    (tmp_path / "model_index.json").unlink()
    assert "model_index.json" in one_line(lambda: weights.identify(tmp_path))


# --- the command ------------------------------------------------------------------------------------------------------
def command(capsys, monkeypatch, *arguments):
    monkeypatch.setattr(sys, "argv", ["weights", *map(str, arguments)])
    capsys.readouterr()
    try:
        cli(weights.main)
    except SystemExit as ending:
        return ending.code, capsys.readouterr().err
    return 0, capsys.readouterr().out


def test_command(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path / "root"))
    status, text = command(capsys, monkeypatch)
    assert status == 0 and "105000.ckpt" in text and str(tmp_path / "root/weights/zero123") in text
    path = checkpoint(tmp_path / "a.ckpt", state())
    status, text = command(capsys, monkeypatch, "show", path)
    assert status == 0 and "sha256: " in text and "unet" in text
    status, text = command(capsys, monkeypatch, "check", path)
    assert status == 0 and "every name and shape fits" in text and "(published: 859,532,484)" in text
    assert command(capsys, monkeypatch, "convert", path, "--dtype", "fp16")[0] == 0
    loaded = load_zero123(tmp_path / "root/weights/zero123", dtype=torch.float16)
    assert loaded.unet.dtype == torch.float16 and loaded.alphas_cumprod.dtype == torch.float32  # the schedule is never rounded
    (tmp_path / "bad.ckpt").write_bytes(hostile_bytes())
    for arguments in (("show", tmp_path / "bad.ckpt"), ("show", tmp_path / "none"), ("check",), ("convert", tmp_path / "root/weights/zero123")):
        status, text = command(capsys, monkeypatch, *arguments)
        assert status == 2 and text.startswith("error: ") and text.count("\n") == 1
