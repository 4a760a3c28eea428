"""Stage 2, CameraBooth: test-time training of Zero-1-to-3 on the photos, refined cameras, 2D novel views."""
