"""Speed of SmolLM2 on this CPU: the fused graph with a static cache against what else runs these weights.

    rocline export smollm2 out/static
    rocline export smollm2 out/growing --cache growing
    python benchmarks/decode.py out/static --growing out/growing --transformers    tokens a second, greedy
    python benchmarks/decode.py out/static --growing out/growing --prefill         a prompt of 512 tokens, by chunk

All ways take turns in one process, in an order that changes, and decode the same tokens (checked). Where weights lie in
memory depends on which model was loaded first, and decides a few percent: so all are loaded anew, each first once.
After an unmeasured round the table gives the median over the rounds with its range, and the median of what the first
way was faster by than this one in the same round.

``--genai FOLDER`` adds the graph that onnxruntime-genai's model builder makes, in this ONNX Runtime and with its cache
bound in place. The builder needs an environment of its own and a Hugging Face folder, which ``--save-hf`` writes:

    python benchmarks/decode.py --save-hf out/hf
    python -m venv out/genai-env
    out/genai-env/bin/pip install onnxruntime-genai==0.18.0 transformers==5.23.0 torch==2.13.0 onnx onnx-ir
    out/genai-env/bin/python -m onnxruntime_genai.models.builder -m out/hf -o out/genai -p fp32 -e cpu -c out/cache
"""

import argparse
import copy
import json
import platform
import random
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch

import rocline
from rocline.runtime.generator import PREFILL_CHUNK
from rocline.runtime.tokenizer import TextTokenizer

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

PROMPT = "The history of the printing press began in"


class Rocline:
    """`rocline.Generator` itself, detokenizer and all."""

    def __init__(self, folder, threads):
        self.generator = rocline.Generator(folder, ["cpu"], options={"threads": threads})

    def __call__(self, ids, new, chunk=None):
        self.generator.prefill_chunk = chunk or self.generator.prefill_chunk
        prompt = self.generator.tokenizer.decode(ids)
        result = self.generator.generate(prompt, max_new_tokens=new)
        assert result.prompt_tokens == len(ids)
        return list(result.tokens), result.prefill_s, result.decode_s


class Genai:
    """The graph of onnxruntime-genai's builder in a bare loop: one buffer a layer, bound as past and present."""

    def __init__(self, folder, threads):
        model = onnx.load(folder / "model.onnx", load_external_data=False)
        for node in model.graph.node:
            # The builder writes empty names for inputs that GroupQueryAttention of ONNX Runtime 1.22 does not have.
            while node.op_type == "GroupQueryAttention" and not node.input[-1]:
                node.input.pop()
        trimmed = folder / "model.trimmed.onnx"
        onnx.save(model, trimmed)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        self.session = onnxruntime.InferenceSession(trimmed, options, providers=["CPUExecutionProvider"])
        decoder = json.loads((folder / "genai_config.json").read_text())["model"]["decoder"]
        self.heads, self.size = decoder["num_key_value_heads"], decoder["head_size"]

    def __call__(self, ids, new, chunk=None):
        binding = self.session.io_binding()
        caches = []  # a binding keeps no array alive
        for name in (spec.name for spec in self.session.get_inputs() if spec.name.startswith("past_key_values.")):
            zeros = np.zeros((1, self.heads, len(ids) + new, self.size), np.float32)
            caches.append(onnxruntime.OrtValue.ortvalue_from_numpy(zeros))
            binding.bind_ortvalue_input(name, caches[-1])
            binding.bind_ortvalue_output(name.replace("past_key_values", "present"), caches[-1])

        def step(fed, length):
            inputs = {"input_ids": np.array([fed]), "attention_mask": np.ones((1, length), np.int64)}
            for name, array in inputs.items():
                binding.bind_cpu_input(name, array)
            # Bound anew: it has the prompt's length in the first run, and keeps its buffer otherwise.
            binding.bind_output("logits", "cpu")
            self.session.run_with_iobinding(binding)
            return binding.get_outputs()[-1].numpy()[0, -1]

        return timed_loop(step, ids, new)


class Transformers:
    def __init__(self, model):
        self.model = model

    def __call__(self, ids, new, chunk=None):
        cache = None

        def step(fed, length):
            nonlocal cache
            out = self.model(torch.tensor([fed]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            return out.logits[0, -1]

        with torch.inference_mode():
            return timed_loop(step, ids, new)


def timed_loop(step, ids, new):
    """Decodes ``new`` tokens with ``step(fed, length) -> logits``: tokens, seconds for the first, for the rest."""
    times, fed, length, tokens = [time.perf_counter()], ids, 0, []
    while len(tokens) < new:
        length += len(fed)
        tokens.append(int(step(fed, length).argmax()))
        fed = tokens[-1:]
        times.append(time.perf_counter())
    return tokens, times[1] - times[0], times[-1] - times[1]


def compare(loaders, ways, ids, new, rounds, rate):
    """Prints ``rate(prefill_s, decode_s)`` of all ways by turns; a way is a model's name and a prefill chunk."""
    values = {way: [] for way in ways}
    names = list(loaders)
    for first in range(len(names)):
        models = {name: loaders[name]() for name in names[first:] + names[:first]}
        for turn in range(rounds + 1):
            answers = {}
            for way in random.sample(list(ways), len(ways)):
                name, chunk = ways[way]
                answers[way], prefill_s, decode_s = models[name](ids, new, chunk)
                if turn:
                    values[way].append(rate(prefill_s, decode_s))
            for way, tokens in answers.items():
                assert tokens == answers[next(iter(ways))], f"{way} decoded other tokens"
        del models
    print(f"{'':28}{'median':>8}{'min':>8}{'max':>8}{'first way is faster by':>24}")
    first = next(iter(values.values()))
    for way, mine in values.items():
        faster = statistics.median(a / b for a, b in zip(first, mine, strict=True))
        print(f"{way:28}{statistics.median(mine):8.1f}{min(mine):8.1f}{max(mine):8.1f}{faster:24.2f}")


def model_loaders(arguments):
    threads = arguments.threads
    loaders = {"static": lambda: Rocline(arguments.folder, threads)}
    if arguments.growing:
        loaders["growing"] = lambda: Rocline(arguments.growing, threads)
    if arguments.genai:
        loaders["genai"] = lambda: Genai(arguments.genai, threads)
    if arguments.transformers and not arguments.prefill:
        torch.set_num_threads(threads)
        sdpa = real_models.load_smollm2()
        eager = copy.deepcopy(sdpa)
        eager.set_attn_implementation("eager")
        loaders |= {
            "transformers, sdpa": lambda: Transformers(sdpa),
            "transformers, eager": lambda: Transformers(eager),
        }
    return loaders


def prefill_ways(loaders):
    """The static cache by chunk, its default first, and the others at their best."""
    chunks = dict.fromkeys([PREFILL_CHUNK, 64, 128, 256, 512])
    ways = {f"static, chunks of {chunk}": ("static", chunk) for chunk in chunks}
    if "growing" in loaders:
        ways |= {f"growing, chunks of {chunk}": ("growing", chunk) for chunk in (128, 512)}
    if "genai" in loaders:
        ways["genai's graph, at once"] = ("genai", None)
    return ways


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", help="SmolLM2 with a static cache")
    parser.add_argument("--growing", type=Path, help="SmolLM2 with a growing cache")
    parser.add_argument("--genai", type=Path, help="what onnxruntime-genai's builder made of SmolLM2")
    parser.add_argument("--transformers", action="store_true", help="compare decoding with PyTorch too")
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--save-hf", type=Path, help="only write SmolLM2 as a Hugging Face folder")
    arguments = parser.parse_args()
    if arguments.save_hf:
        real_models.save_smollm2(arguments.save_hf)
        return
    if not arguments.folder:
        parser.error("the folder with the static cache is missing")
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    print(f"{cpu}, {arguments.threads} threads; Python {platform.python_version()}, onnxruntime "
          f"{onnxruntime.__version__}, torch {torch.__version__}")  # fmt: skip
    random.seed(0)
    loaders = model_loaders(arguments)
    tokenizer = TextTokenizer(arguments.folder)
    if arguments.prefill:
        ids = tokenizer.encode(f"{PROMPT} " * 80)[:512]
        print(f"prefill of {len(ids)} tokens, tokens a second")
        compare(loaders, prefill_ways(loaders), ids, 1, arguments.rounds, lambda prefill_s, _: len(ids) / prefill_s)
    else:
        ids = tokenizer.encode(PROMPT)
        print(f"decoding {arguments.new} tokens after {len(ids)}, batch 1, tokens a second")
        ways = {name: (name, None) for name in loaders}
        compare(loaders, ways, ids, arguments.new, arguments.rounds, lambda _, decode_s: (arguments.new - 1) / decode_s)


if __name__ == "__main__":
    main()
