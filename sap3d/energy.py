"""Energy that the processors have used, where Linux tells: the package counters of its power capping interface (RAPL).

Whatever else runs on the machine is counted too. Many systems let only root read the counters, and virtual machines have none: then nothing is said.
"""

from __future__ import annotations

from pathlib import Path

COUNTERS = Path("/sys/class/powercap")


class EnergyMeter:
    """Counts from its making on. A counter begins anew after some 2e5 joules, which is noticed once: that is an hour at 60 watts."""

    def __init__(self, folder: Path | None = None):
        self.start = _read(folder or COUNTERS)

    def joules(self) -> float | None:
        """Energy since the start of all processor packages, or None where no counter can be read."""
        if not self.start:
            return None
        total = 0
        for zone, (before, turn) in self.start.items():
            now = _number(zone / "energy_uj")
            if now is None:
                return None
            total += (now - before) % (turn + 1)
        return total / 1e6


def _read(folder: Path) -> dict[Path, tuple[int, int]]:
    """Counter and its largest value, microjoules, of every processor package."""
    found = {}
    for zone in sorted(folder.glob("intel-rapl:*")):  # AMD's too have that name
        energy, turn = _number(zone / "energy_uj"), _number(zone / "max_energy_range_uj")
        if zone.name.count(":") == 1 and energy is not None and turn is not None:  # parts of packages have another colon
            found[zone] = (energy, turn)
    return found


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text())
    except (OSError, ValueError):
        return None
