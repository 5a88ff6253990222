"""CachedAttention, RotaryCache and SkipRmsNorm on the CPU against ONNX Runtime's own operators.

    python benchmarks/ops_cpu.py [--threads 2] [--repeats 60]

Both sides run in this one process, by turns, on buffers bound once; what is printed are medians. GroupQueryAttention
also appends one token to its cache, which it cannot be asked to leave. RotaryCache rotates q and k and stores k and v
in the cache; ONNX Runtime's side has two RotaryEmbeddings, and two Transposes that lay k and v out as a cache has them.
SkipRmsNorm stands against SkipSimplifiedLayerNormalization, the sum as a second output on both sides.
"""

import argparse
import statistics
import time

import numpy as np
import onnxruntime
from onnx import TensorProto, helper

from rocline import custom_ops

MODELS = {"SmolLM2 (9 of 3 heads of 64)": (9, 3, 64), "8B (32 of 8 heads of 128)": (32, 8, 128)}
TYPES = {
    np.dtype(np.float32): TensorProto.FLOAT,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int32): TensorProto.INT32,
}


class Graph:
    """A session of the given nodes; outputs named in ``in_place`` share their input's buffer."""

    def __init__(self, nodes, inputs, outputs, threads, in_place=None):
        values = [helper.make_tensor_value_info(n, TYPES[a.dtype], a.shape) for n, a in inputs.items()]
        results = [helper.make_tensor_value_info(n, TYPES[a.dtype], a.shape) for n, a in outputs.items()]
        domains = [("", 17), ("com.microsoft", 1), (custom_ops.DOMAIN, custom_ops.VERSION)]
        model = helper.make_model(
            helper.make_graph(nodes, "graph", values, results),
            opset_imports=[helper.make_opsetid(*domain) for domain in domains],
            ir_version=8,
        )
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        # Else the idle side's threads go on spinning while the other side runs.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        custom_ops.register(options)
        self.session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        self.binding = self.session.io_binding()
        # ONNX Runtime uses NumPy's memory, which lives as long as the OrtValue.
        self.held = held = {name: onnxruntime.OrtValue.ortvalue_from_numpy(array) for name, array in inputs.items()}
        for name, value in held.items():
            self.binding.bind_ortvalue_input(name, value)
        for name, array in outputs.items():
            source = (in_place or {}).get(name)
            held[name] = held[source] if source else onnxruntime.OrtValue.ortvalue_from_numpy(array)
            self.binding.bind_ortvalue_output(name, held[name])

    def seconds(self):
        start = time.perf_counter()
        self.session.run_with_iobinding(self.binding)
        return time.perf_counter() - start


def attention(heads, kv_heads, head, tokens, threads):
    """(ours, ONNX Runtime's): one new token after tokens - 1 others."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, 1, heads * head), dtype=np.float32)
    k = rng.standard_normal((1, 1, kv_heads * head), dtype=np.float32)
    cache = rng.standard_normal((1, kv_heads, tokens, head), dtype=np.float32)
    sizes = {"heads": heads, "kv_heads": kv_heads}
    node = helper.make_node("CachedAttention", ["q", "k", "v", "positions"], ["y"], domain=custom_ops.DOMAIN, **sizes)
    inputs = {"q": q, "k": cache, "v": cache.copy(), "positions": np.array([[tokens - 1]])}
    ours = Graph([node], inputs, {"y": q}, threads)

    names = ["q", "k", "v", "past_k", "past_v", "lengths", "total"]
    node = helper.make_node(
        "GroupQueryAttention",
        names,
        ["y", "present_k", "present_v"],
        domain="com.microsoft",
        num_heads=heads,
        kv_num_heads=kv_heads,
    )
    lengths, total = np.array([tokens - 1], np.int32), np.array([tokens], np.int32)
    values = [q, k, k, cache, cache.copy(), lengths, total]
    theirs = Graph(
        [node],
        dict(zip(names, values, strict=True)),
        {"y": q, "present_k": cache, "present_v": cache},
        threads,
        in_place={"present_k": "past_k", "present_v": "past_v"},
    )
    return ours, theirs


def rotary(heads, kv_heads, head, tokens, threads):
    """(ours, ONNX Runtime's): tokens rotated; ours also stores k and v in a cache."""
    rng = np.random.default_rng(0)
    q = rng.standard_normal((1, tokens, heads * head), dtype=np.float32)
    k = rng.standard_normal((1, tokens, kv_heads * head), dtype=np.float32)
    cache = np.zeros((1, kv_heads, tokens, head), np.float32)
    angle = np.arange(tokens)[:, None] / 1e4 ** (np.arange(0, head, 2) / head)
    tables = {"cos": np.cos(angle).astype(np.float32), "sin": np.sin(angle).astype(np.float32)}
    positions = np.arange(tokens)[None]
    names = ["q", "k", "v", "past_k", "past_v", "positions", "cos", "sin"]
    outputs = ["q_rotated", "present_k", "present_v"]
    node = helper.make_node("RotaryCache", names, outputs, domain=custom_ops.DOMAIN, heads=heads, kv_heads=kv_heads)
    inputs = {"q": q, "k": k, "v": k.copy(), "past_k": cache, "past_v": cache.copy(), "positions": positions, **tables}
    ours = Graph(
        [node],
        inputs,
        dict(zip(outputs, (q, cache, cache), strict=True)),
        threads,
        in_place={"present_k": "past_k", "present_v": "past_v"},
    )
    nodes = []
    for name, n in (("q", heads), ("k", kv_heads)):
        embed = [name, "positions", "cos", "sin"]
        out = f"{name}_rotated"
        nodes.append(helper.make_node("RotaryEmbedding", embed, [out], domain="com.microsoft", num_heads=n))
    for source, name in (("k_rotated", "present_k"), ("v", "present_v")):
        nodes.append(helper.make_node("Reshape", [source, "shape"], [f"{source}_heads"]))
        nodes.append(helper.make_node("Transpose", [f"{source}_heads"], [name], perm=[0, 2, 1, 3]))
    inputs = {"q": q, "k": k, "v": k.copy(), "positions": positions, **tables}
    inputs["shape"] = np.array([1, tokens, kv_heads, head])
    return ours, Graph(nodes, inputs, {"q_rotated": q, "present_k": cache, "present_v": cache.copy()}, threads)


def norm(heads, kv_heads, head, tokens, threads):
    """(ours, ONNX Runtime's): the residual sum of tokens and its RMS norm."""
    rng = np.random.default_rng(0)
    hidden = heads * head
    x = rng.standard_normal((1, tokens, hidden), dtype=np.float32)
    inputs = {"x": x, "weight": rng.standard_normal(hidden, dtype=np.float32), "skip": x[:, ::-1].copy()}
    outputs = {"y": np.empty_like(x), "sum": np.empty_like(x)}
    node = helper.make_node("SkipRmsNorm", ["x", "weight", "skip"], ["y", "sum"], domain=custom_ops.DOMAIN)
    contrib = helper.make_node(
        "SkipSimplifiedLayerNormalization", ["x", "skip", "weight"], ["y", "", "", "sum"], domain="com.microsoft"
    )
    return Graph([node], inputs, outputs, threads), Graph([contrib], inputs, outputs, threads)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=60)
    options = parser.parse_args()
    benchmarks = ((attention, "decode at", (1024, 8192)), (rotary, "rotate", (1, 512)), (norm, "norm of", (1, 512)))
    for make, title, sizes in benchmarks:
        for model, shape in MODELS.items():
            for tokens in sizes:
                sides = make(*shape, tokens, options.threads)
                times = ([], [])
                for _ in range(options.repeats):
                    for side, seconds in zip(sides, times, strict=True):
                        seconds.append(side.seconds())
                ours, theirs = (statistics.median(seconds) * 1e6 for seconds in times)
                print(
                    f"{model}, {title} {tokens}: {ours:.0f} us, ONNX Runtime {theirs:.0f} us, ratio {ours / theirs:.2f}"
                )


if __name__ == "__main__":
    main()
