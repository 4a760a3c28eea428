"""Stage 3: a NeRF and a textured mesh from the photos, the refined cameras and the personal diffusion model."""
