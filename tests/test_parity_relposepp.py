"""RelPose++ against the reference implementation (see test_parity_zero123.py): features, rotation scores, translations."""

import pytest
import torch
from safetensors.torch import load_file

from benchmarks.parity import relposepp_errors, relposepp_state
from relposepp.network import load_network, save_network
from relposepp.published import load_published
from sap3d.errors import InputError
from tests.published_files import PARITY


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("relposepp") / "ckpt_000400000.pth"
    torch.save({"state_dict": {f"module.{name}": value for name, value in relposepp_state(PARITY).items()}, "iteration": 400000}, path)
    return path


def test_outputs_are_those_of_the_reference(checkpoint, tmp_path):
    save_network(tmp_path / "weights", load_published(checkpoint), half=False)
    errors = relposepp_errors(load_network(tmp_path / "weights"), load_file(PARITY / "relposepp.safetensors"))
    assert set(errors) == {"features", "scores", "translations"} and max(errors.values()) < 1e-4, errors


def test_other_files_are_refused(checkpoint, tmp_path):
    state = torch.load(checkpoint, weights_only=True)["state_dict"]
    name = "module.embed_feature.weight"
    cases = {
        "no RelPose\\+\\+ checkpoint": {"conv1.weight": torch.zeros(2)},
        "unexpected tensor head.weight": state | {"module.head.weight": torch.zeros(2)},
        "score.embed_feature.weight is missing": {k: v for k, v in state.items() if k != name},
        "has shape": state | {name: state[name][:, :-1]},
        "not finite": state | {name: state[name] * float("nan")},
        "not the blur": state | {"module.feature_extractor.feature_extractor.3.1.filt": torch.full((64, 1, 4, 4), 1 / 16)},
    }
    with pytest.raises(InputError, match="sap3d.weights convert"):
        load_network(checkpoint)
    for message, content in cases.items():
        torch.save({"state_dict": content}, tmp_path / "other.pth")
        with pytest.raises(InputError, match=message) as caught:
            load_published(tmp_path / "other.pth")
        assert "other.pth" in str(caught.value) and "\n" not in str(caught.value)
