"""The reconstruction itself: fields, volume rendering, losses, score distillation, mesh extraction."""
