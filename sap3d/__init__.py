"""The contract that the three stages share: cameras, scene files, images, configuration, Zero-1-to-3, metrics."""

import os

__version__ = "0.1.0"

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # threads that spin while they wait are ten times slower on a busy machine
