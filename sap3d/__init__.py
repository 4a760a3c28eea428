"""The contract that the three stages share: cameras, scene files, images, configuration, Zero-1-to-3, metrics."""

__version__ = "0.1.0"
