"""Separates an object from its background: a salient-object network in ONNX, twice, then edges along the picture's own.

``Segmenter`` runs u2netp, which is bundled (weights/u2netp/README.md), or any network of the same kind that the user has:
U2-Net, IS-Net, BiRefNet and other ONNX files with one picture in and one map out. ``clean`` and ``problems`` need no network.
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage

from sap3d.errors import InputError, first_line

U2NETP = Path(__file__).resolve().parent / "weights" / "u2netp" / "u2netp.onnx"
U2NETP_SHA256 = "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8"
IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ISNET = (0.5, 0.5, 0.5), (1.0, 1.0, 1.0)  # mean and deviation that IS-Net was trained with
SECOND_LOOK_MARGIN = 1.3  # side of the second look's crop over the longer side of the object's box
EDGE_RADIUS = 1 / 150  # radius of the guided filter over the picture's longer side
EDGE_EPSILON = 1e-3  # its regularisation: squared contrast that counts as an edge


def network_file(model: Path | None = None) -> Path:
    """The ONNX file to use: ``model``, or the bundled one; raises InputError when it is no file."""
    path = Path(model) if model else U2NETP
    if not path.is_file():
        raise InputError(f"{path}: no such network; give --model an ONNX file, or leave it out for the bundled one")
    return path


class Segmenter:
    """``alpha(rgb)`` of any picture by an ONNX network. Input size and names are read from the file."""

    def __init__(self, model: Path | None = None):
        try:
            import onnxruntime
        except ImportError:
            raise InputError(
                "background removal needs onnxruntime: python -m pip install -r requirements-photos.txt with the Python that runs this, "
                "or give photos with a transparent background or masks"
            ) from None
        self.path = network_file(model)
        if not model and hashlib.sha256(self.path.read_bytes()).hexdigest() != U2NETP_SHA256:
            raise InputError(f"{self.path}: is damaged; restore it with git checkout {self.path.name} in its folder")
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = int(os.environ.get("OMP_NUM_THREADS") or 0)  # 0: a thread a core
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # threads that wait give up their core
        options.log_severity_level = 3
        try:
            self.session = onnxruntime.InferenceSession(str(self.path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a class of its own for every kind of bad file
            raise InputError(f"{self.path}: onnxruntime cannot load it ({first_line(error)}); give an ONNX file of U2-Net, IS-Net or BiRefNet") from None
        shape = self.session.get_inputs()[0].shape
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"{self.path}: its input is {shape} and not one RGB picture; give an ONNX file of U2-Net, IS-Net or BiRefNet")
        self.size = shape[2] if isinstance(shape[2], int) else 1024
        self.mean, self.deviation = (np.array(v, np.float32) for v in (ISNET if "isnet" in self.path.name.lower() else IMAGENET))

    def saliency(self, rgb: np.ndarray) -> np.ndarray:
        """One evaluation: RGB (H, W, 3) in [0, 1] to a map (H, W) in [0, 1]."""
        picture = Image.fromarray((rgb * 255 + 0.5).astype(np.uint8)).resize((self.size, self.size), Image.Resampling.LANCZOS)
        x = np.asarray(picture, np.float32)
        x = (x / max(float(x.max()), 1e-6) - self.mean) / self.deviation
        out = self.session.run(None, {self.session.get_inputs()[0].name: x.transpose(2, 0, 1)[None]})
        # U2-Net and IS-Net give their best map first, BiRefNet last and as logits
        found = np.asarray(out[-1] if "birefnet" in self.path.name.lower() else out[0], np.float32).reshape(-1, self.size, self.size)[0]
        if found.min() < -0.01 or found.max() > 1.01:
            found = 1 / (1 + np.exp(-found))
        found = (found - found.min()) / max(float(np.ptp(found)), 1e-6)
        return np.asarray(Image.fromarray(found).resize((rgb.shape[1], rgb.shape[0]), Image.Resampling.BICUBIC)).clip(0, 1)

    def alpha(self, rgb: np.ndarray) -> tuple[np.ndarray, float]:
        """Opacity (H, W) in [0, 1], and how well two looks agree (intersection over union; below 0.8 is a warning).

        The first look is at the whole picture, the second at the object; edges come from a guided filter.
        """
        found, agreement = self.saliency(rgb), 0.0
        box = object_box(found)
        if box is not None:
            top, bottom, left, right = square_around(box, SECOND_LOOK_MARGIN, rgb.shape[:2])
            second = np.zeros_like(found)
            second[top:bottom, left:right] = self.saliency(rgb[top:bottom, left:right])
            both, either = ((found > 0.5) & (second > 0.5)).sum(), ((found > 0.5) | (second > 0.5)).sum()
            agreement = float(both / max(either, 1))
            if (second > 0.5).sum() > 0.5 * (found > 0.5).sum():  # nearer, it may take a part for the object
                found = second
        return clean(refine_edges(found, rgb)), agreement


def refine_edges(alpha: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """A guided filter (He, Sun, Tang, 2013, with a grey guide): ``alpha`` as a locally linear function of brightness."""
    guide = rgb.mean(-1)
    size = 2 * max(1, round(EDGE_RADIUS * max(guide.shape))) + 1
    mean_guide, mean_alpha = ndimage.uniform_filter(guide, size), ndimage.uniform_filter(alpha, size)
    covariance = ndimage.uniform_filter(guide * alpha, size) - mean_guide * mean_alpha
    slope = covariance / (ndimage.uniform_filter(guide * guide, size) - mean_guide**2 + EDGE_EPSILON)
    offset = mean_alpha - slope * mean_guide
    refined = ndimage.uniform_filter(slope, size) * guide + ndimage.uniform_filter(offset, size)
    return ((refined - 0.5) * 1.6 + 0.5).clip(0, 1)  # the networks' edges are soft; a photo's are a pixel wide


def clean(alpha: np.ndarray) -> np.ndarray:
    """``alpha`` without what is apart from the object: parts smaller than a tenth of the largest one, and a faint haze."""
    labels, count = ndimage.label(alpha > 0.5)
    if count == 0:
        return np.zeros_like(alpha)
    sizes = ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1))
    kept = np.isin(labels, 1 + np.flatnonzero(sizes >= sizes.max() / 10))
    near = ndimage.binary_dilation(kept, iterations=max(2, round(EDGE_RADIUS * max(alpha.shape))))
    return np.where(near, np.where(alpha < 0.05, 0, alpha), 0)


def object_box(alpha: np.ndarray) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right) of what is more than half opaque, ends exclusive; None where nothing is."""
    rows, columns = (np.flatnonzero((alpha > 0.5).any(axis)) for axis in (1, 0))
    return (int(rows[0]), int(rows[-1]) + 1, int(columns[0]), int(columns[-1]) + 1) if len(rows) else None


def square_around(box: tuple[int, int, int, int], margin: float, shape: tuple[int, int]) -> tuple[int, int, int, int]:
    """The square around a box, ``margin`` times its longer side, as far as it lies inside the picture."""
    top, bottom, left, right = box
    half = margin * max(bottom - top, right - left) / 2
    row, column = (top + bottom) / 2, (left + right) / 2
    return max(0, int(row - half)), min(shape[0], int(np.ceil(row + half))), max(0, int(column - half)), min(shape[1], int(np.ceil(column + half)))


def problems(alpha: np.ndarray) -> list[str]:
    """What looks wrong with an object's mask (H, W), in words; empty when nothing does."""
    box = object_box(alpha)
    if box is None:
        return ["no object was found"]
    found = []
    height, width = alpha.shape
    top, bottom, left, right = box
    share = float((alpha > 0.5).mean())
    if share > 0.9:
        found.append(f"the object takes {share:.0%} of the picture: is the background part of it?")
    elif share < 0.01:
        found.append(f"the object takes only {share:.1%} of the picture: go nearer, or something else was taken for it")
    else:
        rim = max(2, min(height, width) // 200)
        sides = {"top": alpha[:rim], "bottom": alpha[-rim:], "left": alpha[:, :rim], "right": alpha[:, -rim:]}
        cut = [name for name, strip in sides.items() if (strip > 0.5).any(0 if name in ("top", "bottom") else 1).mean() > 0.02]
        if cut:
            found.append(f"the object is cut off at the {' and '.join(cut)}")
    if max(bottom - top, right - left) < 128:
        found.append(f"the object is {max(bottom - top, right - left)} pixels large: more than 128 are needed for detail")
    unsure = float(((alpha > 0.2) & (alpha < 0.8)).sum() / max((alpha > 0.5).sum(), 1))
    if unsure > 0.25:
        found.append("its outline is uncertain")
    labels, count = ndimage.label(alpha > 0.5)
    if count > 1:
        sizes = np.sort(ndimage.sum_labels(np.ones_like(labels), labels, np.arange(1, count + 1)))[::-1]
        apart = int((sizes > 0.1 * sizes[0]).sum())
        if apart > 1:
            found.append(f"it is in {apart} parts: are there several objects?")
    return found
