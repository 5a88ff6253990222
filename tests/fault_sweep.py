"""Lets every call of a library fail, one at a time, and says what came of each: see hipsim/programs/faults.py."""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from simulated_device import FINDINGS, FOLDER, PROGRAMS, run

ORT = ("libonnxruntime_providers_rocm.so", "onnxruntime_pybind11_state.so")
KNOWN = FOLDER / "ort_failures.txt"

# The steps of the program, by what the list of known failures calls them; all others are runs.
_PHASES = {"": "create", "create": "create", "bind": "bind", "unbind": "close", "close": "close"}
_OUT_OF_MEMORY, _UNKNOWN, _BLAS, _MIOPEN = 2, 999, 6, 5


@dataclass(frozen=True)
class Failing:
    """One call that fails.

    Attributes:
        function: its name.
        number: which call of that function, from 1.
        phase: create, bind, run or close.
        caller: the library that makes it.
    """

    function: str
    number: int
    phase: str
    caller: str

    @property
    def by_ort(self) -> bool:
        return self.caller in ORT

    @property
    def setting(self) -> str:
        """For HIPSIM_FAIL, with a code of the function's library."""
        if "Malloc" in self.function:
            code = _OUT_OF_MEMORY
        elif self.function.startswith("miopen"):
            code = _MIOPEN
        else:
            code = _BLAS if self.function.startswith(("hipblas", "rocblas")) else _UNKNOWN
        return f"{self.function}:{self.number}:{code}"


@dataclass(frozen=True)
class Known:
    """A line of the list: what ONNX Runtime does with a failure instead of reporting it."""

    phase: str
    function: str
    outcome: str


def known_failures() -> list[Known]:
    """The list, in order."""
    rows = [line for line in KNOWN.read_text().splitlines() if line and not line.startswith("#")]
    return [Known(*(word.strip() for word in row.split("|")[:3])) for row in rows]


def _run(lines: Sequence[str], model: Path, scenario: str, mode: str, *, log: bool = False):
    done = run(
        [sys.executable, PROGRAMS / "faults.py", model, scenario],
        mode,
        log=log,
        timeout=3600,
        text="\n".join([*lines, ""]),
    )
    assert done.status in (0, FINDINGS), done.errors
    return done, [json.loads(line) for line in done.output.splitlines()]


def discover(model: Path, scenario: str, mode: str) -> tuple[dict, list[Failing]]:
    """What a run without a failure reports, and every call that it makes."""
    done, (clean,) = _run([""], model, scenario, mode, log=True)
    seen: Counter[str] = Counter()
    calls, step = [], ""
    for line in done.log:
        step = line.get("mark", step)
        if "call" in line:
            seen[line["call"]] += 1
            calls.append(_failing(line["call"], seen[line["call"]], step, line["by"]))
    return clean, calls


def _failing(function: str, number: int, step: str, made_at: str) -> Failing:
    return Failing(function, number, _PHASES.get(step, "run"), made_at.partition("+")[0])


def sweep(model: Path, scenario: str, mode: str, calls: Sequence[Failing]) -> list[tuple[Failing, dict]]:
    """What the program reports for each call that fails; two processes share the work.

    In threaded mode the n-th call of a function may be another one than before, or not be made at all: what a program
    calls depends on what is done by the time that it asks. So each is named as what it was.
    """
    halves = [calls[::2], calls[1::2]]
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(_run, [call.setting for call in half], model, scenario, mode) for half in halves]
        reports = [job.result()[1] for job in jobs]
    failed = []
    for half, made in zip(halves, reports, strict=True):
        for call, report in zip(half, made, strict=True):
            if report["failed_at"]:
                failed.append((_failing(call.function, call.number, *report["failed_at"]), report))
            else:
                assert mode == "threaded", f"{call} was not made"
    return failed


def outcome(call: Failing, report: dict) -> str:
    """In a word: reported, recovered, or what is wrong."""
    if report["status"] is None:
        return "hangs"
    if report["status"] != 0:
        return "aborts"
    if report["wrong"]:
        return "gives wrong numbers"
    kinds = [finding.split(":")[0] for finding in report["findings"]]
    told = bool(report["errors"] or report["fallbacks"] or report.get("uncaptured"))
    if report["errors"] and not report["errors"][0][0].startswith("rocline"):
        return f"raises {report['errors'][0][1]}"
    if told and not _named(call, report):
        return "is not named"
    # What a failed call was to free is still there; nothing else may be.
    frees = call.phase == "close" or any(word in call.function for word in ("Destroy", "Free"))
    if kinds and not (frees and kinds == ["leak"]):
        return "leaks" if set(kinds) == {"leak"} else f"finds {', '.join(kinds)}"
    if told:
        return "reported"
    # An arena or a pool that gets no memory asks for less, or gives back what it holds, and asks again.
    return "recovered" if "Malloc" in call.function else "swallows"


def _named(call: Failing, report: dict) -> bool:
    text = " ".join([*(error[2] for error in report["errors"]), *report["fallbacks"], report.get("uncaptured", "")])
    codes = (
        *("hipErrorOutOfMemory", "hipErrorUnknown", "rocblas_status_internal_error"),
        *("HIPBLAS_STATUS_INTERNAL_ERROR", "miopenStatusInternalError"),
    )
    return any(word in text for word in (call.function.removesuffix("R0600"), *codes))
