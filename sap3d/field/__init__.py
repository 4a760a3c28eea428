"""Radiance fields: grids, volume rendering, the fit to photos with known cameras, and what is done to finished views."""
