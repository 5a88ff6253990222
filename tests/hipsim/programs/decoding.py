"""Decodes in a static cache on the simulated device and on the CPU; prints the tokens of both as JSON.

Arguments: tests/ (for the model), ``head`` or ``plain``, and how many steps are counted: around these, greedy ones on
the device, the call log is marked ``begin`` and ``end``.
"""

import json
import sys
import tempfile
from pathlib import Path

from device import LIBRARY

from rocline import Session
from rocline.runtime.decoder import Interface
from rocline.runtime.sampling import Sampler, Sampling
from rocline.runtime.static_cache import StaticDecoder

sys.path.insert(0, sys.argv[1])
import small_decoder
import small_models

PROMPT = [7, 31, 2, 2, 19, 44, 5, 0, 12, 30, 8, 8, 21, 3, 49, 17]


def decode(decoder, sampling):
    """Prefills in two chunks, goes back, and decodes: what a stream and a kept cache do."""
    text = decoder.start(40)
    decoder.start(40).close()  # its memory is free for the next
    text.extend(PROMPT[:9])
    text.rewind(5)
    sampler = Sampler(sampling, PROMPT)
    answer = [text.choose(PROMPT[5:], sampler)]
    answer.append(text.choose(answer[-1:], sampler))
    if sampling.temperature == 0:
        LIBRARY.hipsim_mark(b"begin")
    for _ in range(int(sys.argv[3])):
        answer.append(text.choose(answer[-1:], sampler))
    if sampling.temperature == 0:
        LIBRARY.hipsim_mark(b"end")
    text.close()
    return answer


def main():
    answers = {}
    with tempfile.TemporaryDirectory() as folder:
        path = small_models.save(small_decoder.static(head=sys.argv[2] == "head"), Path(folder))
        for provider in ("rocm", "cpu"):
            with Session(path, [provider], strict=True) as session:
                decoder = StaticDecoder(session, Interface.read(session), None, small_decoder.CONTEXT)
                samplings = {"greedy": Sampling(), "sampled": Sampling(temperature=1.5, top_k=20, seed=3)}
                answers[provider] = {name: decode(decoder, sampling) for name, sampling in samplings.items()}
    print(json.dumps(answers))


main()
