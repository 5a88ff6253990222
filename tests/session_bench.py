"""What programs on sessions are made of: the register, sessions beside the CPU's, and comparison."""

import contextlib
from pathlib import Path

import numpy as np
import session_models as models
import small_models

import rocline
from rocline.runtime.providers import PROVIDERS

PROGRAMS = {}
# A CUDA provider rounds a product's factors to 10 bits unless told otherwise.
EXACT = {"cuda": {"use_tf32": False}}
TOLERANCE = {"float32": 2e-5, "bfloat16": 2e-2, "float16": 2e-3}


def program(function):
    PROGRAMS[function.__name__] = function
    return function


class Bench:
    """Makes sessions on one provider, and says what the CPU gives.

    Args:
        provider: short name.
        folder: where models are written.
    """

    def __init__(self, provider, folder):
        self.provider, self.folder, self._count = PROVIDERS[provider], folder, 0
        self._open = contextlib.ExitStack()

    def save(self, proto):
        self._count += 1
        return small_models.save(proto, self.folder, f"{self._count}.onnx")

    def session(self, proto, **arguments):
        path = proto if isinstance(proto, Path) else self.save(proto)
        options = {**EXACT.get(self.provider.name, {}), **arguments.pop("options", {})}
        session = rocline.Session(path, [self.provider.name], strict=True, options=options, **arguments)
        self._open.enter_context(session)
        assert session.report.active[0] == self.provider.ort_name, session.report
        assert session.device.kind == self.provider.backend
        return session

    def cpu(self, proto):
        return self._open.enter_context(
            rocline.Session(proto if isinstance(proto, Path) else self.save(proto), ["cpu"])
        )

    def close(self):
        self._open.close()


def random(*shape, seed=0):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def close_to(got, wanted):
    tolerance = TOLERANCE.get(wanted.dtype.name, 0)
    np.testing.assert_allclose(got.astype(np.float64), wanted.astype(np.float64), rtol=tolerance, atol=tolerance)


def both(bench, proto):
    path = bench.save(proto)
    return bench.session(path), bench.cpu(path)


def decode(session, steps=6):
    """Prefills four tokens and decodes; returns the logits of each run."""
    past, present = {}, {}
    for spec in session.inputs:
        if spec.name.startswith("past_key_values."):
            shape = [models.POSITIONS if size == "capacity" else size for size in spec.shape]
            past[spec.name] = session.device.allocate(shape, np.float32, stream=session.stream, zero=True)
            present[spec.name.replace("past_key_values", "present")] = past[spec.name]
    ids, logits = [3, 1, 4, 1], []
    outputs = {"logits": (1, 1, models.VOCABULARY), **present}
    prompt = {"input_ids": np.array([ids]), "position_ids": np.arange(len(ids))[None]}
    with session.bind({**prompt, **past}, outputs) as bound:
        bound.run()
        logits.append(bound.outputs["logits"].numpy())
    with session.bind({"input_ids": (1, 1), "position_ids": (1, 1), **past}, outputs) as bound:
        for position in range(len(ids), len(ids) + steps):
            bound.inputs["input_ids"].copy_from(np.array([[logits[-1].argmax()]]), stream=session.stream)
            bound.inputs["position_ids"].copy_from(np.array([[position]]), stream=session.stream)
            bound.run()
            logits.append(bound.outputs["logits"].numpy())
    for buffer in past.values():
        buffer.close()
    return np.stack(logits)
