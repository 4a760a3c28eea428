"""Zero-1-to-3: model, loading, sampling, personal weights."""

from sap3d.zero123.build import add_multiplane, build_tiny, tiny_random_model
from sap3d.zero123.model import ConditionFeatures, Zero123, load_zero123
from sap3d.zero123.personal import load_personal, save_personal

__all__ = ["ConditionFeatures", "Zero123", "add_multiplane", "build_tiny", "load_personal", "load_zero123", "save_personal", "tiny_random_model"]
