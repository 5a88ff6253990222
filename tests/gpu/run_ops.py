"""Runs every op of every spec.py on an NVIDIA GPU, from the same kernel sources, and times it.

    python tests/gpu/run_ops.py [--op NAME ...] [--json FILE] [--skip-benchmarks | --standalone-only]

Cubins are built with nvcc. Cases run inside ONNX Runtime's CUDA provider through the operator library, and without ONNX
Runtime (tests/standalone.py), on a user stream with buffers bound by pointer, aligned and one element off; benchmarks
run the first way, with the L2 cache flushed before each run, and are given as a fraction of this card's own copy
bandwidth. These are results of an NVIDIA card, whatever the kernels are written for.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import op_harness as harness
import standalone
import torch

from rocline import custom_ops
from rocline.custom_ops import build

TORCH = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int32": torch.int32,
    "int64": torch.int64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "bool": torch.bool,
}


def build_cubins(out, architecture):
    """nvcc on every kernel.hip; raises with its messages."""
    processes = []
    (out / architecture).mkdir(parents=True)
    for folder in build.op_folders():
        target = out / architecture / f"{folder.name}.cubin"
        command = ["nvcc", f"-arch={architecture}", "-O3", "-std=c++17", "-cubin", "-x", "cu", f"-I{build.FOLDER}"]
        processes.append((folder, subprocess.Popen([*command, folder / "kernel.hip", "-o", target])))
    for folder, process in processes:
        if process.wait():
            raise SystemExit(f"nvcc cannot compile {folder}")


def to_device(array):
    """A tensor with the array's bytes; bfloat16 goes as int16."""
    if array.dtype == harness.numpy_dtype("bfloat16"):
        return torch.from_numpy(array.view(np.int16).copy()).cuda().view(torch.bfloat16)
    return torch.from_numpy(array.copy()).cuda()


def to_host(tensor):
    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.int16).cpu().numpy().view(harness.numpy_dtype("bfloat16"))
    return tensor.cpu().numpy()


def ort_session(spec, case, dtype, arrays, stream):
    """A session of ONNX Runtime's CUDA provider, and how to run it."""
    import onnxruntime

    provider = ("CUDAExecutionProvider", {"device_id": "0", "user_compute_stream": str(stream.cuda_stream)})
    session = harness.make_session(harness.make_model(spec, case, dtype, arrays), [provider])
    if session.get_providers()[0] != "CUDAExecutionProvider":
        raise SystemExit("ONNX Runtime did not take the CUDA provider")
    options = onnxruntime.RunOptions()
    options.add_run_config_entry("disable_synchronize_execution_providers", "1")
    return session, options


@cache
def standalone_host():
    return standalone.Host(custom_ops.library_path())


def standalone_session(spec, case, dtype, _arrays, stream):
    """The same without ONNX Runtime."""
    session = standalone.Session(standalone_host(), spec, case, dtype, "CUDAExecutionProvider", stream.cuda_stream)
    return session, None


class Bound:
    """A case's session and buffers on the device; `run` queues it on `stream` and does not wait."""

    def __init__(self, spec, case, dtype, arrays, stream, offset=0, make_session=ort_session):
        self.stream = stream
        self._room = torch.empty(256, dtype=torch.uint8, device="cuda")
        self.session, self.options = make_session(spec, case, dtype, arrays, stream)
        self.binding = self.session.io_binding()
        self.buffers = {name: self._shifted(to_device(array), offset) for name, array in arrays.items()}
        attributes = {**spec.attributes, **case.attributes}
        shapes = spec.infer({name: array.shape for name, array in arrays.items()}, attributes)
        self.outputs = {}
        for argument in spec.inputs:
            if argument.name in arrays:
                self._bind(self.binding.bind_input, argument, dtype, self.buffers[argument.name])
        for argument in harness.output_arguments(spec, case):
            if argument.name in case.alias:
                buffer = self.buffers[case.alias[argument.name]]
            else:
                element = TORCH[harness.dtype_of(argument, dtype)]
                buffer = self._shifted(torch.empty(shapes[argument.name], dtype=element, device="cuda"), offset)
                if buffer.numel():
                    buffer.view(-1).view(torch.uint8).fill_(0xCD)
            self.outputs[argument.name] = buffer
            self._bind(self.binding.bind_output, argument, dtype, buffer)
        torch.cuda.synchronize()

    @staticmethod
    def _shifted(tensor, offset):
        """The same tensor at an address that is `offset` elements past an aligned one."""
        if not offset:
            return tensor
        room = torch.empty(tensor.numel() + offset, dtype=tensor.dtype, device="cuda")[offset:]
        return room.copy_(tensor.reshape(-1)).view(tensor.shape)

    def _bind(self, bind, argument, dtype, buffer):
        # An empty tensor has no address; ONNX Runtime wants one all the same.
        pointer = buffer.data_ptr() or self._room.data_ptr()
        element = harness.ELEMENTS[harness.dtype_of(argument, dtype)]
        bind(argument.name, "cuda", 0, element, tuple(buffer.shape), pointer)

    def run(self):
        self.session.run_with_iobinding(self.binding, self.options)


def check_case(spec, case, dtype, stream, offset, make_session):
    """None, or what is wrong; `offset` elements lie between an aligned address and every buffer."""
    arrays = harness.make_inputs(spec, case, dtype)
    try:
        bound = Bound(spec, case, dtype, arrays, stream, offset, make_session)
        bound.run()
        stream.synchronize()
        outputs = {name: to_host(tensor) for name, tensor in bound.outputs.items()}
        harness.compare(spec, dtype, outputs, harness.expected(spec, case, arrays))
    except Exception as error:
        return str(error)
    for name, array in arrays.items():
        if name not in case.alias.values() and to_host(bound.buffers[name]).tobytes() != array.tobytes():
            return f"the op wrote its input {name}"
    return None


def check_cases(specs, stream, where, make_session):
    """An entry for each case, dtype and offset, what is wrong or None in it; prints the wrong ones and the count."""
    entries = []
    for spec in specs:
        for case, dtype, offset in itertools.product(spec.cases, spec.dtypes, (0, 1)):
            if dtype not in (case.dtypes or spec.dtypes):
                continue
            wrong = check_case(spec, case, dtype, stream, offset, make_session)
            entry = {"op": spec.name, "case": case.name, "dtype": dtype, "offset": offset, "wrong": wrong}
            entries.append({**entry, "where": where})
            if wrong:
                print(f"WRONG {where}: {spec.name} {dtype} {case.name}, offset {offset}: {wrong}", flush=True)
    right = sum(entry["wrong"] is None for entry in entries)
    print(f"{torch.cuda.get_device_name()}: {right} of {len(entries)} cases right {where}", flush=True)
    return entries


def time_us(queue, stream, runs=30):
    """Median time of one run in microseconds, the L2 cache full of something else before each."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    times = []
    with torch.cuda.stream(stream):
        for index in range(runs + 3):
            flush.fill_(index)
            # The launch is queued while the device still waits, so that the host's part is not timed.
            torch.cuda._sleep(500_000)
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record(stream)
            queue()
            end.record(stream)
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e3)
    return float(np.median(times[3:]))


def copy_bandwidth(stream):
    """Bytes a second, read and written, of a large device-to-device copy."""
    source = torch.empty(512 << 20, dtype=torch.uint8, device="cuda").fill_(1)
    target = torch.empty_like(source)
    return 2 * source.numel() / (time_us(lambda: target.copy_(source), stream) * 1e-6)


def benchmark(spec, entry, stream, copy):
    arrays = harness.make_inputs(spec, entry.case, entry.dtype)
    bound = Bound(spec, entry.case, entry.dtype, arrays, stream)
    moved = entry.bytes or sum(
        t.numel() * t.element_size()
        for t in [*bound.buffers.values(), *(t for name, t in bound.outputs.items() if name not in entry.case.alias)]
    )
    latency = time_us(bound.run, stream)
    rate = moved / (latency * 1e-6)
    return {
        "op": spec.name,
        "case": entry.case.name,
        "dtype": entry.dtype,
        "us": latency,
        "GB/s": rate / 1e9,
        "of copy": rate / copy,
    }


def torch_attention_us(stream):
    """Time of PyTorch's fused attention on the shapes of CachedAttention's benchmark "prefill 4096"."""
    q = torch.randn(1, 32, 4096, 128, dtype=torch.float16, device="cuda")
    k, v = torch.randn(2, 1, 8, 4096, 128, dtype=torch.float16, device="cuda")
    attention = torch.nn.functional.scaled_dot_product_attention
    return time_us(lambda: attention(q, k, v, is_causal=True, enable_gqa=True), stream)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--op", action="append", help="an ONNX op name; default: all")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--skip-benchmarks", action="store_true")
    parser.add_argument("--standalone-only", action="store_true", help="without ONNX Runtime, and without benchmarks")
    options = parser.parse_args()
    major, minor = torch.cuda.get_device_capability()
    chosen = {name: spec for name, spec in custom_ops.specs().items() if not options.op or name in options.op}
    results = {"device": torch.cuda.get_device_name(), "cases": [], "benchmarks": []}
    with tempfile.TemporaryDirectory() as folder:
        build_cubins(Path(folder), f"sm_{major}{minor}")
        os.environ["ROCLINE_CODE_OBJECTS"] = folder
        stream = torch.cuda.Stream()
        if not options.standalone_only:
            results["cases"] += check_cases(chosen.values(), stream, "inside ONNX Runtime", ort_session)
        results["cases"] += check_cases(chosen.values(), stream, "standalone", standalone_session)
        failed = any(entry["wrong"] is not None for entry in results["cases"])
        if not (options.skip_benchmarks or options.standalone_only):
            copy = copy_bandwidth(stream)
            results["copy GB/s"] = copy / 1e9
            print(f"copy bandwidth {copy / 1e9:.0f} GB/s (read + written, cold cache)")
            for spec in chosen.values():
                for entry in spec.benchmarks:
                    row = benchmark(spec, entry, stream, copy)
                    results["benchmarks"].append(row)
                    name = f"{row['op']} {row['case']} {row['dtype']}"
                    print(f"{name:50} {row['us']:9.1f} us {row['GB/s']:7.0f} GB/s  {row['of copy']:.2f} of copy")
            if "CachedAttention" in chosen:
                results["torch prefill us"] = torch_attention_us(stream)
                print(f"PyTorch's attention on prefill 4096: {results['torch prefill us']:.1f} us")
    text = json.dumps(results, indent=1)
    if options.json:
        options.json.write_text(text)
    else:
        print(text)
    sys.exit(failed)


if __name__ == "__main__":
    main()
