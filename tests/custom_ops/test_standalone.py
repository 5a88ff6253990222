"""The library without ONNX Runtime: every op, dtype and case in a host of a few callbacks, on the CPU."""

import ctypes
from functools import cache

import numpy as np
import op_cases
import op_harness as harness
import pytest
import standalone

from rocline import custom_ops

SPECS = custom_ops.specs()
CASES, REFUSALS = op_cases.cases(), op_cases.refusals()
KINDS = {float: "a float", int: "an int", str: "a string"}
ATTRIBUTES = [
    pytest.param(spec, name, type(value), other, id=f"{spec.name}-{name}-{other}")
    for spec in SPECS.values()
    for name, value in spec.attributes.items()
    for other in (2, 2.0, "2")
    if not isinstance(other, type(value))
]


@cache
def host():
    return standalone.Host(custom_ops.library_path())


@pytest.mark.parametrize(("spec", "case", "dtype"), CASES)
def test_case(spec, case, dtype):
    arrays = harness.make_inputs(spec, case, dtype)
    session = standalone.Session(host(), spec, case, dtype)
    got = harness.run_guarded(session, spec, case, dtype, arrays, at_end=True)
    harness.compare(spec, dtype, got, harness.expected(spec, case, arrays))


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_outputs_may_be_allocated_when_asked_for(spec):
    case = spec.cases[0]
    arrays = harness.make_inputs(spec, case, "float32")
    names = [argument.name for argument in harness.output_arguments(spec, case)]
    got = standalone.Session(host(), spec, case, "float32").run(None, arrays)
    harness.compare(spec, "float32", dict(zip(names, got, strict=True)), harness.expected(spec, case, arrays))


@pytest.mark.parametrize(("spec", "refusal"), REFUSALS)
def test_bad_input_is_refused(spec, refusal):
    arrays = harness.make_inputs(spec, refusal.case, "float32")
    with pytest.raises(standalone.OpError, match=refusal.message) as caught:
        standalone.Session(host(), spec, refusal.case, "float32").run(None, arrays)
    assert str(caught.value).startswith(f"rocline.{spec.name}: ")


@pytest.mark.parametrize(("spec", "name", "wanted", "given"), ATTRIBUTES)
def test_attribute_of_another_type_is_refused(spec, name, wanted, given):
    case = spec.cases[0]
    case = harness.replace_attributes(case, {**case.attributes, name: given})
    message = f"{KINDS[type(given)]}, expected {KINDS[wanted]}"
    with pytest.raises(standalone.OpError, match=rf"^rocline\.{spec.name}: attribute '{name}': {message}"):
        standalone.Session(host(), spec, case, "float32")


def test_domain_and_kernels():
    assert host().domain == custom_ops.DOMAIN
    # A kernel for each provider of an op's dtypes.
    assert len(host().ops) == 3 * sum(len(spec.dtypes) for spec in SPECS.values())
    assert {op.version for op in host().ops} == {standalone.API_VERSION}
    with pytest.raises(LookupError, match="no kernel of AddScale"):
        host().find("AddScale", "CPUExecutionProvider", [harness.ELEMENTS["int32"]])


def test_an_error_of_the_runtime_is_passed_on():
    spec = SPECS["AddScale"]
    a = np.ones((2, 3), np.float32)
    binding = standalone.Binding()
    for name in ("a", "b"):
        binding.bind_input(name, "cpu", 0, harness.ELEMENTS["float32"], a.shape, a.ctypes.data)
    binding.bind_output("y", "cpu", 0, harness.ELEMENTS["float32"], (3, 2), a.ctypes.data)
    session = standalone.Session(host(), spec, spec.cases[0], "float32")
    with pytest.raises(standalone.OpError, match=r"rocline\.AddScale: output 0: the kernel asks for \(2, 3\)"):
        session.run_with_iobinding(binding)
    assert (a == 1).all()


def test_a_runtime_without_the_version_registers_nothing():
    library = ctypes.CDLL(str(custom_ops.library_path()))
    base = standalone.ApiBase(standalone.GetApi(lambda _version: None))
    assert library.RegisterCustomOps(None, ctypes.byref(base)) == 0
