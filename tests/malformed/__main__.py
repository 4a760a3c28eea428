"""Every malformed input as a real process, and the counts: python -m tests.malformed [--in-process] [GROUP ...]"""

import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.malformed.cases import all_cases
from tests.malformed.runner import Place, as_process, in_process, run_case


def main() -> int:
    quick = "--in-process" in sys.argv
    groups = [word for word in sys.argv[1:] if word != "--in-process"]
    cases = [case for case in all_cases() if not groups or case.group in groups]
    if not cases:
        print(f"error: no such group; there are {', '.join(sorted({case.group for case in all_cases()}))}", file=sys.stderr)
        return 2
    good, bad, began = Counter(), Counter(), time.time()
    with tempfile.TemporaryDirectory(prefix="sap3d_malformed_") as folder:
        place = Place(Path(folder) / "place")
        for number, case in enumerate(cases, 1):
            faults = run_case(case, place, in_process if quick else as_process)
            (bad if faults else good)[case.group] += 1
            if faults:
                print(f"FAULT {case.id}: {'; '.join(faults)}", flush=True)
            elif sys.stderr.isatty():
                print(f"\r\033[K{number}/{len(cases)} {case.id[:80]!r}", end="", file=sys.stderr, flush=True)
    print(f"\n{'input':<16}{'tried':>7}{'well':>7}{'badly':>7}")
    for group in dict.fromkeys(case.group for case in cases):
        print(f"{group:<16}{good[group] + bad[group]:>7}{good[group]:>7}{bad[group]:>7}")
    print(f"{'all':<16}{len(cases):>7}{sum(good.values()):>7}{sum(bad.values()):>7}   {'one process' if quick else 'a process each'}, {time.time() - began:.0f} s")
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
