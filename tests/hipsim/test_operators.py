"""The provider's kernels and BLAS calls that small transformers need: on the simulated device as on the CPU."""

import json
import sys

import pytest
from simulated_device import FINDINGS, MODES, PROGRAMS, run

TOLERANCES = {"float32": 2e-6, "float16": 2e-3, "": 0}


@pytest.fixture(scope="module", params=MODES)
def results(request):
    done = run([sys.executable, PROGRAMS / "operators.py"], request.param)
    assert done.status in (0, FINDINGS), done.errors
    return done, json.loads(done.output)


def test_every_operator_gives_what_the_cpu_gives(results):
    wrong = [(name, worst) for name, dtype, worst in results[1] if isinstance(worst, str) or worst > TOLERANCES[dtype]]
    assert wrong == []


def test_nothing_is_found(results):
    assert results[0].findings == []


def test_many_operators_were_tried(results):
    operators = {name.split()[0] for name, _, _ in results[1]}
    assert {"MatMul", "Gemm", "Gather", "LayerNormalization", "Softmax", "Where"} <= operators
    assert len(results[1]) > 400
