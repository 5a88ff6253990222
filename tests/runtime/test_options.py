"""Options are checked by name, owner and type, and reach ONNX Runtime as the strings it takes."""

import pytest

from rocline.errors import InputError
from rocline.runtime import options
from rocline.runtime.providers import PROVIDERS, SESSION_SETS, SHARED_OPTIONS

ROCM, MIGRAPHX, CUDA, CPU = (PROVIDERS[name] for name in ("rocm", "migraphx", "cuda", "cpu"))


def test_sorted_by_owner():
    checked = options.check(
        {"threads": 2, "memory_arena": False, "tunable_op_enable": True, "gpu_mem_limit": 1 << 33, "use_tf32": False},
        [ROCM, CUDA, CPU],
        device_id=1,
    )
    assert checked.session == {"threads": 2, "memory_arena": False}
    assert checked.providers["rocm"] == {"device_id": "1", "tunable_op_enable": "1", "gpu_mem_limit": "8589934592"}
    assert checked.providers["cuda"] == {**checked.providers["rocm"], "use_tf32": "0"}
    assert checked.providers["cpu"] == {}


def test_a_shared_option_has_each_providers_own_name():
    checked = options.check({"memory_limit": 1 << 30, "tuning": True}, [ROCM, MIGRAPHX, CPU], 0)
    assert checked.providers == {
        "rocm": {
            "device_id": "0",
            "gpu_mem_limit": "1073741824",
            "tunable_op_enable": "1",
            "tunable_op_tuning_enable": "1",
        },
        "migraphx": {"device_id": "0", "migraphx_mem_limit": "1073741824", "migraphx_exhaustive_tune": "1"},
        "cpu": {},
    }


@pytest.mark.parametrize("given", [["memory_limit", "gpu_mem_limit"], ["gpu_mem_limit", "memory_limit"]])
def test_the_same_thing_is_said_once(given):
    with pytest.raises(InputError, match="sets rocm's 'gpu_mem_limit', which is given as well"):
        options.check(dict.fromkeys(given, 1 << 30), [ROCM, CPU], 0)


@pytest.mark.parametrize("name", SESSION_SETS)
def test_what_the_session_sets_is_not_the_callers(name):
    for providers in ([ROCM, CPU], [CUDA, CPU], [CPU]):
        with pytest.raises(InputError) as caught:
            options.check({name: 1}, providers, 0)
        assert str(caught.value) == f"option '{name}': the session sets it: {SESSION_SETS[name]}"
    with pytest.raises(InputError, match="the session sets it"):
        options.parse(name, "1")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"thread": 2}, "option 'thread': unknown, did you mean 'threads'?"),
        ({"qqq": 2}, "option 'qqq': unknown, expected one of threads, "),
        ({"use_tf32": True}, "option 'use_tf32': belongs to cuda, but the session asks for rocm, cpu"),
        ({"device_id": 1}, "option 'device_id': give it as the session's own argument"),
        ({"threads": "2"}, "option 'threads': '2', expected a whole number from 0"),
        ({"threads": -1}, "option 'threads': -1, expected a whole number from 0"),
        ({"threads": True}, "option 'threads': True, expected a whole number from 0"),
        ({"threads": 1 << 31}, "option 'threads': 2147483648, expected a whole number from 0 to 2147483647"),
        ({"memory_limit": 1 << 64}, "expected a whole number from 0 to 18446744073709551615"),
        ({"tunable_op_max_tuning_duration_ms": 1 << 31}, "expected a whole number from 0 to 2147483647"),
        ({1: 2}, "option '1': unknown, expected one of threads, "),
        ("threads", "options: 'threads', expected a mapping from names to values"),
        ({"memory_arena": 1}, "option 'memory_arena': 1, expected true or false"),
        (
            {"graph_optimization": "most"},
            "option 'graph_optimization': 'most', expected one of disable, basic, extended",
        ),
        ({"arena_extend_strategy": 1}, "option 'arena_extend_strategy': 1, expected one of kNextPowerOfTwo, kSameAs"),
        ({"memory_limit": "1 GB"}, "option 'memory_limit': '1 GB', expected a whole number"),
        ({"graph_capture": 1}, "option 'graph_capture': 1, expected true or false"),
    ],
)
def test_what_is_refused(given, message):
    with pytest.raises(InputError) as caught:
        options.check(given, [ROCM, CPU], 0)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("device_id", [-1, "0", True, 1.0, 1 << 31])
def test_device_id(device_id):
    with pytest.raises(InputError, match="device_id"):
        options.check({}, [ROCM], device_id)


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("threads", "4", 4),
        ("memory_arena", "off", False),
        ("tunable_op_enable", "True", True),
        ("graph_optimization", "basic", "basic"),
        ("migraphx_model_cache_dir", "/x y", "/x y"),
    ],
)
def test_parse(name, text, value):
    parsed = options.parse(name, text)
    assert parsed == value
    assert type(parsed) is type(value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("threads", "four", "'four', expected a whole number from 0"),
        ("threads", "\u0664", "expected a whole number from 0"),
        ("memory_arena", "maybe", "'maybe', expected true or false"),
        ("tunable_op_enabel", "1", "did you mean 'tunable_op_enable'"),
        ("device_id", "1", "--device-id"),
    ],
)
def test_parse_refuses(name, text, message):
    with pytest.raises(InputError) as caught:
        options.parse(name, text)
    assert message in str(caught.value)


def test_an_option_takes_the_same_kind_of_value_from_every_provider():
    kinds = {}
    for provider in PROVIDERS.values():
        for name, kind in provider.options.items():
            assert kinds.setdefault(name, kind) == kind
            assert name not in options.SESSION_OPTIONS
            assert name not in SHARED_OPTIONS
            assert name not in SESSION_SETS
        for name, keys in provider.shared.items():
            assert {provider.options[key] for key in keys} == {SHARED_OPTIONS[name]}
