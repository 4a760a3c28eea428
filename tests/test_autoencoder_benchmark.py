"""The comparison of autoencoders, at a tiny size: what is trained, what is measured, what is stored."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import autoencoders
from benchmarks.autoencoders import Options, build, compare, images_of, load_source, true_views
from camerabooth.prior.data import PairSource
from camerabooth.prior.evaluate import through_autoencoder
from sap3d.errors import InputError
from sap3d.images import save_image
from sap3d.suite_parts import autoencoder_tables, parts_sections
from sap3d.zero123 import tiny_random_model

SIZE = 32
OPTIONS = Options(size=SIZE, minutes=0.005, batch=8, widths=(16, 16, 16, 16))


def pictures(count, size, seed=0):
    """Smooth random blobs (count, size, size, 4), colours not above alpha."""
    coarse = torch.rand(count, 4, 5, 5, generator=torch.Generator().manual_seed(seed))
    images = torch.nn.functional.interpolate(coarse, (size, size), mode="bicubic").clamp(0, 1).permute(0, 2, 3, 1).numpy()
    return np.concatenate([images[..., :3] * images[..., 3:], images[..., 3:]], -1)


@pytest.fixture(scope="module")
def source():
    images = (pictures(3 * 6, SIZE).reshape(3, 6, SIZE, SIZE, 4) * 255).astype(np.uint8)
    angles = np.random.default_rng(0).uniform(1, 2, (3, 3, 6)).astype(np.float32)
    corpus = SimpleNamespace(images=images, polar_rad=angles[0], azimuth_rad=angles[1], radius=angles[2])
    return PairSource([corpus], groups=2, targets=3, seed=0)


def test_networks_begin_as_the_closed_form_and_have_equal_latents(source):
    images = torch.cat([images_of(source, step) for step in range(4)])
    assert images.shape == (32, 3, SIZE, SIZE) and 0 <= images.min() and images.max() <= 1
    models = {way: build(way, images, OPTIONS).eval() for way in autoencoders.WAYS}
    with torch.no_grad():
        latents = {way: model.encode_target(images) for way, model in models.items()}
        closed = models["pca_8"].decode_target(latents["pca_8"])
        for way in ("pca_8_decoder", "pca_8_both"):
            assert torch.equal(models[way].decode_target(latents[way]), closed)
        assert torch.equal(models["none"].decode_target(latents["none"]), ((images * 2 - 1) / 2 + 0.5).clamp(0, 1))
    numbers = {way: found[0].numel() for way, found in latents.items()}
    assert numbers.pop("none") == 3 * SIZE**2 and set(numbers.values()) == {3 * SIZE**2 // 4}
    assert {tuple(latents[way].shape[1:]) for way in latents if way not in ("none", "pca_4")} == {(48, SIZE // 8, SIZE // 8)}


def test_measured_as_the_bundled_model_is(source):
    """What stands in Zero123's place goes through the same steps as Zero123 with the same autoencoder."""
    images = images_of(source, 0)
    model = build("pca_4", images, OPTIONS)
    zero123 = tiny_random_model()
    zero123.vae.load_state_dict(model.pca.state_dict())
    truth = {f"{k}": image[..., :3] + 1 - image[..., 3:] for k, image in enumerate(pictures(3, 64, 1))}
    _, found = autoencoders.measure(model, {"a": truth}, "cpu")
    expected = through_autoencoder(zero123, truth)
    for name, image in found["a"].items():
        assert image.shape == (64, 64, 3)
        np.testing.assert_allclose(image, expected[name], atol=1e-6)


def test_rows_curves_and_table(source, tmp_path):
    truth = {name: {"000": image[..., :3] + 1 - image[..., 3:]} for name, image in zip("ab", pictures(2, 64, 2))}
    ways = ("none", "pca_8", "pca_8_decoder", "vae")
    rows, curves, decoded = zip(*compare(source, truth, ways, OPTIONS, "cpu", times=True, report=lambda line: None))
    assert [row["autoencoder"] for row in rows] == list(ways)
    none, closed, corrected, vae = rows
    assert none["psnr"] > closed["psnr"] and none["samples"] == closed["samples"] == 0 and closed["parameters"] == 48 * 192 + 192 + 48 + 48
    assert corrected["samples"] >= 8 and corrected["samples"] % 8 == 0 and corrected["images_per_second"] > 0 and vae["parameters"] > corrected["parameters"]
    assert closed["latent"] == corrected["latent"] == vae["latent"] == "4 x 4 x 48"
    assert all(set(row["objects"]) == {"a", "b"} and row["cpu_decode_ms"] >= 0 and np.isfinite(row["lpips"]) for row in rows)
    assert not curves[0] and all(set(views) == {"a", "b"} for views in decoded)
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    table = autoencoder_tables(tmp_path / "rows.json")
    assert "| none | 32 x 32 x 3 | 0 | - | - |" in table and f"| a | {none['objects']['a']['psnr']:.2f} / {none['objects']['a']['lpips']:.3f} |" in table
    (tmp_path / "rows.json").rename(tmp_path / "autoencoders.json")
    assert [table in section for section in parts_sections(tmp_path)] == [True]
    with pytest.raises(InputError, match="no rows"):
        autoencoder_tables(tmp_path / "none.json")


def test_training_lowers_the_loss(source):
    model, images = build("vae", torch.empty(0), OPTIONS), images_of(source, 0)
    with torch.no_grad():
        before = float(autoencoders.loss_of(model, images, OPTIONS))
    told, _ = autoencoders.train(model, source, Options(size=SIZE, minutes=0.03, batch=8, widths=OPTIONS.widths), lambda line: None)
    assert told["samples"] > 0 and not model.training
    with torch.no_grad():
        assert float(autoencoders.loss_of(model, images, OPTIONS)) < before


def test_true_views_and_bad_input(tmp_path, monkeypatch):
    monkeypatch.setenv("ROOT_DIR", str(tmp_path))
    for k, image in enumerate(pictures(5, 32)):
        save_image(tmp_path / "dataset" / "data" / "test" / "thing" / "images" / f"{k:03d}.png", image)
    assert list(true_views("ANY", ["thing"], 2)["thing"]) == ["000", "002", "004"]
    with pytest.raises(InputError, match="no true views"):
        true_views("ANY", ["other"], 2)
    with pytest.raises(InputError, match="no rendered corpus"):
        load_source([tmp_path], OPTIONS, "cpu")
    with pytest.raises(InputError, match="four multiples"):
        build("vae", torch.rand(1, 3, SIZE, SIZE), Options(widths=(16, 16)))
