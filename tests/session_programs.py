"""Programs on sessions' public interface, for the simulated HIP device or a real GPU.

    session_programs.py PROVIDER [--without EDGE] [PROGRAM ...]

Each compares its values with the CPU's. Where an edge is missing, a race detector tells, since values are wrong in some
runs only: `--without` takes one of the runtime's edges out, to show that it is needed.
"""

import argparse
import contextlib
import ctypes
import tempfile
from pathlib import Path

import session_captures
import session_ends
import session_models as models
import session_runs
import session_streams
from session_bench import PROGRAMS, Bench, random

from rocline.runtime.devices.gpu import GpuDriver
from rocline.runtime.io_binding import Binding
from rocline.runtime.ort_binding import Arena
from rocline.runtime.providers import Provider


def traced(bench):
    """Queued runs between two marks of the simulator's call log."""
    session = bench.session(models.chain())
    mark = ctypes.CDLL("libamdhip64.so.7").hipsim_mark
    with session.bind({"x": random(4, 32)}) as bound:
        for _ in range(2):
            bound.run()
            bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        mark(b"one run")
        bound.run()
        mark(b"queued runs")
        for _ in range(5):
            bound.run()
            bound.inputs["x"].copy_from(bound.outputs["y"], stream=session.stream)
        mark(b"done")
        bound.run()
        mark(b"closing")
        session.close()


FOUND_IN = (session_runs, session_streams, session_captures, session_ends)
"""Where `PROGRAMS` come from, in their order."""
EXTRA = {function.__name__: function for function in (session_streams.the_copy_on_another_stream, traced)}


def _collect_without_waiting(self):
    self._dropped.clear()


EDGES = {
    # ONNX Runtime queues on a stream of its own.
    "stream": (Provider, "stream_options", lambda self, stream, capture: {}, "bound_run"),
    # A run does not wait for what other streams did with its buffers.
    "announce": (Binding, "_announce", lambda self: None, "every_ordering_the_interface_has"),
    # It does so at the first run only.
    "handovers": (
        GpuDriver,
        "handovers",
        property(lambda self: 0, lambda self, value: None),
        "every_ordering_the_interface_has",
    ),
    # `ready` is forgotten.
    "ready": (Binding, "_wait", lambda self, ready: None, "a_foreign_producer"),
    # What a run gave stays in memory that a captured graph writes to.
    "borrowed": (Binding, "_copy_outputs", lambda self: None, "a_captured_graph_leaves_outputs_alone"),
    # An output's memory goes back to the arena while another stream reads it.
    "arena": (Arena, "collect", _collect_without_waiting, "outputs_dropped_while_another_stream_reads"),
}
"""Every edge that sessions and bindings add to the devices': where it is, what is there instead, and what notices."""


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("provider")
    parser.add_argument("--without", choices=EDGES)
    parser.add_argument("programs", nargs="*")
    arguments = parser.parse_args()
    if arguments.without:
        owner, name, replacement, _ = EDGES[arguments.without]
        setattr(owner, name, replacement)
    with tempfile.TemporaryDirectory() as folder:
        for name in arguments.programs or PROGRAMS:
            with contextlib.closing(Bench(arguments.provider, Path(folder))) as bench:
                {**PROGRAMS, **EXTRA}[name](bench)
            print(name, flush=True)


if __name__ == "__main__":
    main()
