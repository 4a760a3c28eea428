"""The published RelPose++ checkpoints (the original and SAP3D's retrained one, of one architecture) as weights of this network.

    python -m relposepp.published check FILE
    python -m relposepp.published convert FILE FOLDER        then relpose.weights=FOLDER

The file is read without executing what is in it. Every tensor must have its place, name and shape.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from relposepp.config import NetworkConfig
from sap3d.errors import ArgumentParser, InputError, cli

_PLACES = (  # published name -> ours; first match counts
    (r"feature_extractor\.feature_extractor\.(.+)", r"encoder.backbone.\1"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.0\.norm\.(.+)", r"encoder.layers.\1.attention_norm.\2"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.0\.fn\.to_qkv\.weight", r"encoder.layers.\1.to_qkv.weight"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.0\.fn\.to_out\.0\.(.+)", r"encoder.layers.\1.to_out.\2"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.1\.norm\.(.+)", r"encoder.layers.\1.mlp_norm.\2"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.1\.fn\.net\.0\.(.+)", r"encoder.layers.\1.mlp.0.\2"),
    (r"feature_extractor\.transformer\.0\.layers\.(\d+)\.1\.fn\.net\.3\.(.+)", r"encoder.layers.\1.mlp.2.\2"),
    (r"feature_extractor\.transformer\.1\.(.+)", r"encoder.norm.\1"),
    (r"translation_regressor\.(.+)", r"translation_head.\1"),
    (r"(embed_feature|embed_query|layers)\.(.+)", r"score.\1.\2"),
)
_COMPUTED = ("embedding", "feature_extractor.feature_positional_encoding.pos_table_1")  # octaves and positions: made by our network itself


def read_published(path: Path):
    """(our names -> entries, configuration) of a checkpoint file; names and depth from the file, everything else as published."""
    from sap3d.published.reading import open_weights

    file = open_weights(path)
    plain = {name.removeprefix("module."): name for name in file}  # as saved from several GPUs
    if not any(name.startswith("feature_extractor.transformer.0.layers.") for name in plain):
        raise InputError(f"{path}: has no feature_extractor.transformer.* tensors, so it is no RelPose++ checkpoint (its first tensor is {min(file)})")
    places: dict[str, str] = {}
    for name, stored in plain.items():
        if name in _COMPUTED:
            continue
        ours = next((re.sub(pattern, place, name) for pattern, place in _PLACES if re.fullmatch(pattern, name)), None)
        if ours is None:
            raise InputError(f"{path}: unexpected tensor {name}; this is another model")
        places[ours] = stored
    depth = 1 + max(int(found[1]) for name in places if (found := re.match(r"encoder\.layers\.(\d+)\.", name)))
    return file, places, dataclasses.replace(NetworkConfig.published(), depth=depth)


def load_published(path: Path):
    """The network with the checkpoint's weights, in eval mode; raises InputError naming the first tensor that does not fit."""
    import torch

    from relposepp.network import RelPose

    file, places, config = read_published(path)
    with torch.device("meta"):
        wanted = {name: tuple(value.shape) for name, value in RelPose(config).state_dict().items()}
    for what, names in (("missing", set(wanted) - set(places)), ("unexpected", set(places) - set(wanted))):
        if names:
            raise InputError(f"{path}: tensor {min(names)} is {what} ({len(names)} in all); the file is incomplete or another model")
    for name, shape in wanted.items():
        if file[places[name]].shape != shape:
            raise InputError(f"{path}: tensor {places[name]} has shape {list(file[places[name]].shape)}, expected {list(shape)}; this is another model")
    network = RelPose(config)
    filters = {name: value.clone() for name, value in network.state_dict().items() if name.endswith(".filt")}
    state = {name: file.tensor(places[name]).float() for name in wanted}
    bad = next((name for name, value in state.items() if not torch.isfinite(value).all()), None)
    if bad:
        raise InputError(f"{path}: tensor {places[bad]} has numbers that are not finite; the file is damaged")
    for name, value in filters.items():
        if not torch.allclose(state[name], value, atol=1e-6):
            raise InputError(f"{path}: tensor {places[name]} is not the blur (1, 3, 3, 1) / 8 of the published network; this is another model")
    network.load_state_dict(state)
    return network.eval()


def main() -> None:
    parser = ArgumentParser(prog="python -m relposepp.published", description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("check", "convert"))
    parser.add_argument("file", type=Path)
    parser.add_argument("folder", type=Path, nargs="?", help="convert: where to write model.safetensors and config.json")
    arguments = parser.parse_args()
    if arguments.action == "convert" and arguments.folder is None:
        raise InputError("convert needs the folder to write")
    network = load_published(arguments.file)
    print(f"{arguments.file}: RelPose++, {network.config.depth} layers, {sum(p.numel() for p in network.parameters()):,} parameters; every name and shape fits")
    if arguments.action == "convert":
        from relposepp.network import save_network

        save_network(arguments.folder, network, half=False)
        print(f"written: {arguments.folder}; use it with relpose.weights={arguments.folder}")


if __name__ == "__main__":
    cli(main)
