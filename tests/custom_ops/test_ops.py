"""Every op, dtype and case of every ``spec.py``, through ONNX Runtime on the CPU, against ``reference.py``."""

import os
import re
import subprocess
import sys

import numpy as np
import op_cases
import op_harness as harness
import pytest

from rocline import custom_ops

SPECS = custom_ops.specs()
CASES, REFUSALS = op_cases.cases(), op_cases.refusals()
WRONG_TYPES = [
    pytest.param(spec, argument.name, id=f"{spec.name}-{argument.name}")
    for spec in SPECS.values()
    for argument in spec.inputs
    if argument.name in spec.cases[0].inputs
]


@pytest.mark.parametrize(("spec", "case", "dtype"), CASES)
def test_case(spec, case, dtype):
    arrays = harness.make_inputs(spec, case, dtype)
    wanted = harness.expected(spec, case, arrays)
    session = harness.make_session(harness.make_model(spec, case, dtype, arrays))
    # Flush with the end the buffers of odd sizes are unaligned; flush with the start all are aligned.
    for at_end in (True, False):
        harness.compare(spec, dtype, harness.run_guarded(session, spec, case, dtype, arrays, at_end), wanted)


@pytest.mark.parametrize(("spec", "case", "dtype"), [case for case in CASES if case.values[2] == "float32"])
def test_unbound_outputs_have_the_inferred_shapes(spec, case, dtype):
    arrays = harness.make_inputs(spec, case, dtype)
    session = harness.make_session(harness.make_model(spec, case, dtype, arrays))
    before = {name: array.copy() for name, array in arrays.items()}
    names = [argument.name for argument in harness.output_arguments(spec, case)]
    got = dict(zip(names, session.run(names, arrays), strict=True))
    shapes = spec.infer({name: array.shape for name, array in arrays.items()}, {**spec.attributes, **case.attributes})
    assert {name: array.shape for name, array in got.items()} == {name: tuple(shapes[name]) for name in names}
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array, err_msg=f"the op wrote its input {name}")
    optional = {argument.name for argument in spec.outputs if argument.optional}
    for info in session.get_outputs():
        if info.name in optional:
            continue  # ONNX Runtime does not let an op infer these
        assert len(info.shape) == got[info.name].ndim, f"inferred {info.shape} for {info.name}"
    harness.compare(spec, dtype, got, harness.expected(spec, case, arrays))


@pytest.mark.parametrize(("spec", "refusal"), REFUSALS)
def test_bad_input_is_refused(spec, refusal):
    arrays = harness.make_inputs(spec, refusal.case, "float32")
    with pytest.raises(Exception, match=refusal.message):
        session = harness.make_session(harness.make_model(spec, refusal.case, "float32", arrays))
        session.run(None, arrays)


@pytest.mark.parametrize(("spec", "name"), WRONG_TYPES)
def test_wrong_dtype_is_refused(spec, name):
    arrays = harness.make_inputs(spec, spec.cases[0], "float32")
    model = harness.make_model(spec, spec.cases[0], "float32", arrays, types={name: "uint8"})
    with pytest.raises(Exception, match=re.escape(f"input parameter ({name}) of operator ({spec.name})")):
        harness.make_session(model)


@pytest.mark.parametrize("level", ["baseline", "avx2"])
def test_other_instruction_sets_agree(level):
    if os.environ.get("ROCLINE_CPU"):
        assert os.environ["ROCLINE_CPU"] in {"baseline", "avx2"}
        return
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-k", "test_case", __file__]
    done = subprocess.run(
        command, env={**os.environ, "ROCLINE_CPU": level}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout[-4000:]


def test_specs_hold_the_rules():
    for spec in SPECS.values():
        optional = [argument.optional for argument in spec.inputs]
        assert optional == sorted(optional), f"{spec.name}: optional inputs come last"
        assert len({case.name for case in spec.cases}) == len(spec.cases), f"{spec.name}: two cases share a name"
        shapes = [shape for case in spec.cases for shape in case.inputs.values() if isinstance(shape, tuple)]
        assert any(0 in shape for shape in shapes), f"{spec.name}: no case has size 0"
