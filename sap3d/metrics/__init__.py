"""Metrics of images, shapes and cameras; sap3d.evaluate puts them together."""
