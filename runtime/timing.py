"""How long a call takes."""

import time
from collections.abc import Callable


def time_runs(call: Callable[[], object], *, runs: int, warmup: int) -> dict[str, float]:
    """Calls ``call`` ``warmup`` times, then ``runs`` times with a clock.

    Returns:
        ``median_ms`` and ``p99_ms`` (the nearest rank), and ``runs``.
    """
    for _ in range(warmup):
        call()
    times = []
    for _ in range(runs):
        start = time.perf_counter_ns()
        call()
        times.append((time.perf_counter_ns() - start) / 1e6)
    times.sort()
    middle = (times[(runs - 1) // 2] + times[runs // 2]) / 2
    return {"runs": runs, "median_ms": middle, "p99_ms": times[-(-99 * runs // 100) - 1]}
