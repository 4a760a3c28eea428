"""Measuring programs: parity with the reference implementations, and the full-size model's memory and time."""
