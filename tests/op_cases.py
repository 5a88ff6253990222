"""What the specs ask for, as parameters of tests."""

import pytest

from rocline import custom_ops


def cases():
    """(spec, case, dtype) of every op."""
    return [
        pytest.param(spec, case, dtype, id=f"{spec.name}-{dtype}-{case.name.replace(' ', '_')}")
        for spec in custom_ops.specs().values()
        for case in spec.cases
        for dtype in case.dtypes or spec.dtypes
    ]


def refusals():
    """(spec, refusal) of every op."""
    return [
        pytest.param(spec, refusal, id=f"{spec.name}-{refusal.case.name.replace(' ', '_')}")
        for spec in custom_ops.specs().values()
        for refusal in spec.refusals
    ]
