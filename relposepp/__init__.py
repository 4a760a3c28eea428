"""Stage 1: coarse cameras of a few unposed photos of one object (RelPose++, arXiv 2305.04926)."""
