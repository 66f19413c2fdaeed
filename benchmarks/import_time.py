"""Time of `import untaxed` against `import torch`, interleaved processes.

python benchmarks/import_time.py [PAIRS]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import time


def seconds(statement: str) -> float:
    """Wall time of a fresh interpreter that runs one statement."""
    start = time.perf_counter()
    subprocess.run([sys.executable, "-c", statement], check=True)
    return time.perf_counter() - start


def main(pairs: int = 7) -> None:
    seconds("import torch"), seconds("import untaxed")  # file caches warm
    ratios = [seconds("import untaxed") / seconds("import torch") for _ in range(pairs)]
    print(
        f"import untaxed / import torch: median {statistics.median(ratios):.2f}, {min(ratios):.2f} to {max(ratios):.2f}"
    )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
