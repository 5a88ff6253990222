"""How the library finds, compiles, caches and launches GPU code, on a HIP runtime of our own that computes nothing."""

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rocline.custom_ops import build

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def program(tmp_path_factory):
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("no C++ compiler on this machine")
    folder = tmp_path_factory.mktemp("stub")
    (folder / "generated.cc").write_text(build.generated_source())
    flags = ["-std=gnu++17", "-Wall", "-Wextra", "-fPIC", f"-I{build.FOLDER}"]
    stub = [compiler, *flags, "-shared", str(HERE / "stub" / "hip.cc"), "-o"]
    subprocess.run([*stub, str(folder / "libamdhip64.so.7")], check=True)
    shutil.copy(folder / "libamdhip64.so.7", folder / "libhiprtc.so.7")
    sources = [*map(str, build.FOLDER.glob("gpu/*.cc")), str(folder / "generated.cc"), str(HERE / "stub" / "main.cc")]
    subprocess.run([compiler, *flags, "-fno-exceptions", *sources, "-ldl", "-o", str(folder / "main")], check=True)
    return folder / "main"


@pytest.fixture
def run(program, tmp_path):
    def start(gfx, op="add_scale", entry="add_scale_f32", **variables):
        log = tmp_path / "log"
        log.unlink(missing_ok=True)
        environment = {
            **os.environ,
            "LD_LIBRARY_PATH": str(program.parent),
            "ROCLINE_CODE_OBJECTS": str(tmp_path / "objects"),
            "ROCLINE_CACHE": str(tmp_path / "cache"),
            "STUB_GFX": gfx,
            "STUB_LOG": str(log),
            **variables,
        }
        done = subprocess.run([program, op, entry], env=environment, capture_output=True, text=True, check=False)
        return done.stdout.strip(), log.read_text().splitlines() if log.exists() else []

    def add(architecture, text):
        path = tmp_path / "objects" / architecture / "add_scale.co"
        path.parent.mkdir(parents=True)
        path.write_bytes(b"\x7fELF" + text.encode() + b"\0")

    start.add = add
    start.cache = tmp_path / "cache"
    return start


def test_the_exact_architecture_comes_first(run):
    run.add("gfx1103", "exact")
    run.add("gfx11-generic", "generic")
    message, log = run("gfx1103")
    assert message == ""
    launch = "launch 7 2 1 x 256, 64 bytes, stream 0x1234, 42 0.5"
    # Found twice and loaded once.
    assert log == ["load exact", "function add_scale_f32", launch, "function add_scale_f32"]


def test_features_of_the_device_do_not_count(run):
    run.add("gfx90a", "exact")
    assert run("gfx90a:sramecc+:xnack-")[1][0] == "load exact"


@pytest.mark.parametrize(("gfx", "generic"), [(gfx, name) for name, family in build.GENERIC.items() for gfx in family])
def test_the_family_comes_second(run, gfx, generic):
    run.add(generic, generic)
    assert run(gfx)[1][0] == f"load {generic}"


def test_an_architecture_without_code_is_compiled_once(run):
    message, log = run("gfx90f")
    assert message == ""
    assert log[:3] == ["create add_scale", "compile --offload-arch=gfx90f", "load compiled"]
    (cached,) = run.cache.iterdir()
    assert cached.name.startswith("add_scale-gfx90f-")
    assert run("gfx90f")[1][0] == "load compiled"
    # Another architecture has another key.
    assert run("gfx90d")[1][0] == "create add_scale"


def test_a_damaged_cache_is_compiled_again(run):
    run("gfx90f")
    (cached,) = run.cache.iterdir()
    cached.write_bytes(b"")
    assert run("gfx90f")[1][0] == "create add_scale"
    assert cached.read_bytes() == b"\x7fELFcompiled\0"


def test_the_cache_drops_the_least_recently_used(run):
    run.cache.mkdir()
    for index, name in enumerate(("oldest", "newer")):
        with (run.cache / name).open("wb") as file:
            file.truncate(40 << 20)
        os.utime(run.cache / name, (1000 + index, 1000 + index))
    run("gfx90f")
    assert {path.name.split("-")[0] for path in run.cache.iterdir()} == {"newer", "add_scale"}


def test_a_cache_that_cannot_be_written_is_no_error(run):
    run.cache.write_text("a file where the folder should be")
    assert run("gfx90f")[0] == ""


def test_several_processes_share_the_cache(run):
    with ThreadPoolExecutor(8) as pool:
        messages = list(pool.map(lambda _: run("gfx90f", STUB_LOG="/dev/null")[0], range(16)))
    assert messages == [""] * 16
    assert [path.read_bytes() for path in run.cache.iterdir()] == [b"\x7fELFcompiled\0"]


def test_the_compilers_words_are_passed_on(run):
    message, _ = run("gfx666")
    assert message == "hiprtc cannot compile add_scale for gfx666: no such GPU"


def test_a_missing_kernel_is_named(run):
    run.add("gfx942", "exact")
    message, _ = run("gfx942", entry="missing_f32")
    assert message == "finding kernel missing_f32: hipErrorNotFound (500)"


def test_no_runtime_is_named(run, tmp_path):
    (tmp_path / "empty").mkdir()
    message, _ = run("gfx942", LD_LIBRARY_PATH=str(tmp_path / "empty"))
    assert message == "no libamdhip64.so.7 on this machine: install ROCm"
