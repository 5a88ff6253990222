"""Decode speed of SmolLM2 on this CPU: rocline, a raw ONNX Runtime loop on the same graph, and transformers.

    python benchmarks/decode.py out/smollm2              tokens a second, greedy, interleaved in one process
    python benchmarks/decode.py out/smollm2 --prefill    seconds for a long prompt by prefill chunk

Every way decodes the same tokens (checked) from the same prompt; medians over the rounds, after one unmeasured round.
"""

import argparse
import copy
import platform
import statistics
import sys
import time
from pathlib import Path

import numpy as np
import onnxruntime
import torch

import rocline

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
import real_models

PROMPT = "The history of the printing press began in"


def rocline_loop(generator, ids, new):
    result = generator.generate(PROMPT, max_new_tokens=new)
    return list(result.tokens), result.decode_rate


def raw_loop(session, ids, new):
    past = [spec.name for spec in session.get_inputs() if spec.name.startswith("past_key_values.")]
    names = ["logits", *(name.replace("past_key_values", "present") for name in past)]
    heads, size = session.get_inputs()[-1].shape[1::2]
    cache = {name: np.zeros((1, heads, 0, size), np.float32) for name in past}
    fed, length, tokens, times = np.array([ids]), 0, [], []
    for _ in range(new):
        end = length + fed.shape[1]
        mask, positions = np.ones((1, end), np.int64), np.arange(length, end)[None]
        inputs = {"input_ids": fed, "attention_mask": mask, "position_ids": positions}
        logits, *present = session.run(names, inputs | cache)
        cache, length = dict(zip(past, present, strict=True)), end
        tokens.append(int(logits[0, -1].argmax()))
        fed = np.array([tokens[-1:]])
        times.append(time.perf_counter())
    return tokens, (new - 1) / (times[-1] - times[0])


def transformers_loop(model, ids, new):
    fed, cache, tokens, times = torch.tensor([ids]), None, [], []
    with torch.inference_mode():
        for _ in range(new):
            out = model(fed, past_key_values=cache, use_cache=True, logits_to_keep=1)
            cache = out.past_key_values
            tokens.append(int(out.logits[0, -1].argmax()))
            fed = torch.tensor([tokens[-1:]])
            times.append(time.perf_counter())
    return tokens, (new - 1) / (times[-1] - times[0])


def decode(folder, threads, new, rounds):
    generator = rocline.Generator(folder, ["cpu"], options={"threads": threads})
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    raw = onnxruntime.InferenceSession(folder / "model.onnx", options, providers=["CPUExecutionProvider"])
    torch.set_num_threads(threads)
    sdpa = real_models.load_smollm2()
    eager = copy.deepcopy(sdpa)
    eager.set_attn_implementation("eager")
    ways = {
        "rocline": (rocline_loop, generator),
        "raw ONNX Runtime": (raw_loop, raw),
        "transformers sdpa": (transformers_loop, sdpa),
        "transformers eager": (transformers_loop, eager),
    }
    ids = generator.tokenizer.encode(PROMPT)
    rates = {name: [] for name in ways}
    for turn in range(rounds + 1):
        answers = {}
        for name, (loop, model) in ways.items():
            answers[name], rate = loop(model, ids, new)
            if turn:
                rates[name].append(rate)
        for name, tokens in answers.items():
            assert tokens == answers["rocline"], f"{name} decoded other tokens"
    print(f"{'tokens/s, batch 1':24}{'median':>8}{'min':>8}{'max':>8}")
    for name, values in rates.items():
        print(f"{name:24}{statistics.median(values):8.1f}{min(values):8.1f}{max(values):8.1f}")


def prefill(folder, threads, rounds):
    prompt = f"{PROMPT} " * 115
    generators = {
        chunk: rocline.Generator(folder, ["cpu"], options={"threads": threads}, prefill_chunk=chunk)
        for chunk in (32, 128, 512, 4096)
    }
    seconds = {chunk: [] for chunk in generators}
    for turn in range(rounds + 1):
        for chunk, generator in generators.items():
            result = generator.generate(prompt, max_new_tokens=1)
            if turn:
                seconds[chunk].append(result.prefill_s)
    print(f"prefill of {result.prompt_tokens} tokens, seconds\n{'chunk':>8}{'median':>8}{'min':>8}{'max':>8}")
    for chunk, values in seconds.items():
        print(f"{chunk:8}{statistics.median(values):8.2f}{min(values):8.2f}{max(values):8.2f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="SmolLM2 as `rocline export smollm2` wrote it")
    parser.add_argument("--prefill", action="store_true")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--new", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    cpu = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "unknown CPU")
    print(f"{cpu}, {arguments.threads} threads; Python {platform.python_version()}, onnxruntime "
          f"{onnxruntime.__version__}, torch {torch.__version__}")  # fmt: skip
    if arguments.prefill:
        prefill(arguments.folder, arguments.threads, arguments.rounds)
    else:
        decode(arguments.folder, arguments.threads, arguments.new, arguments.rounds)


if __name__ == "__main__":
    main()
