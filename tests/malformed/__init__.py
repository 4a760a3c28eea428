"""Malformed inputs, generated and hand-made, and what must come of each: one clear line, a failing status, no damage.

    python -m tests.malformed [GROUP ...]      runs each as a real process and prints the counts

``files`` makes broken files, ``cases`` lists every input, ``runner`` runs and judges them; tests/test_malformed.py runs all of
them in its own process, which is fast.
"""
