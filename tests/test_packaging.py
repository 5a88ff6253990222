"""The wheel: what is in it, and that it works in an environment without an ONNX Runtime."""

import re
import subprocess
import sys
import zipfile
from importlib import metadata
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
FOLDERS = ("custom_ops", "export", "models", "runtime")
# What a session imports before it looks for an ONNX Runtime.
NEEDED = ("click", "ml_dtypes", "numpy", "onnx")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """Built with the compilers and the build folder that the environment was built with, so little is left to do."""
    out = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "-w", out, ROOT]
    subprocess.run(command, check=True, cwd=ROOT)
    (path,) = out.iterdir()
    return path


@pytest.fixture(scope="module")
def python(wheel, tmp_path_factory):
    """The interpreter of an environment with rocline and what it needs, but no ONNX Runtime."""
    environment = tmp_path_factory.mktemp("environment")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", environment], check=True)
    interpreter = environment / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", interpreter]
    subprocess.run([*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], check=True)
    (packages,) = environment.glob("lib/python*/site-packages")
    for name in NEEDED:
        for file in metadata.files(name) or ():
            top = file.parts[0]
            target = Path(str(metadata.distribution(name).locate_file(top)))
            if top != ".." and not (packages / top).exists():
                (packages / top).symlink_to(target)
    return interpreter


def contents(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return set(archive.namelist())


def run(python, *arguments):
    return subprocess.run([python, *arguments], capture_output=True, text=True, timeout=300)


def test_holds_every_module_and_recipe(wheel):
    tracked = {
        path.relative_to(ROOT).as_posix()
        for folder in FOLDERS
        for pattern in ("*.py", "recipe.toml", "example.*")
        for path in (ROOT / folder).rglob(pattern)
    }
    expected = {f"rocline/{name}" for name in tracked}
    expected |= {
        f"rocline/{path.relative_to(ROOT / 'src' / 'rocline').as_posix()}"
        for path in (ROOT / "src" / "rocline").iterdir()
        if path.is_file()
    }
    assert {"rocline/py.typed", "rocline/__init__.pyi", "rocline/models/minilm/recipe.toml"} <= expected
    assert expected - contents(wheel) == set()


def test_holds_the_operator_library_and_the_licence(wheel):
    names = contents(wheel)
    assert "rocline/custom_ops/librocline_ops.so" in names
    assert [name for name in names if re.fullmatch(r"rocline-[^/]+\.dist-info/licenses/LICENSE", name)]


def test_holds_nothing_else(wheel):
    names = contents(wheel)
    assert {name.split("/")[0] for name in names} == {"rocline", f"rocline-{PROJECT['version']}.dist-info"}
    unwanted = re.compile(r"(\.cc|CMakeLists\.txt|\.o|\.pyc|/tests?/.*|/build/.*)$")
    assert [name for name in names if unwanted.search(name)] == []


def test_library_runs_where_glibc_2_28_does(wheel):
    """Which `make wheel` says in the wheel's tag, manylinux_2_28."""
    with zipfile.ZipFile(wheel) as archive:
        library = archive.read("rocline/custom_ops/librocline_ops.so")
    versions = {tuple(map(int, found.split(b"."))) for found in re.findall(rb"GLIBC_(\d+\.\d+)", library)}
    assert versions
    assert max(versions) <= (2, 28)


def test_metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(".dist-info/METADATA"))
        text = archive.read(name).decode()
    fields = dict(re.findall(r"^([\w-]+): (.*)$", text.partition("\n\n")[0], re.MULTILINE))
    assert set(re.split(", ?", fields["Requires-Python"])) == {">=3.10", "<3.14"}
    assert fields["License-Expression"] == "MIT"


def test_extras_name_one_onnxruntime_each():
    """Two distributions of the module `onnxruntime` overwrite each other."""
    extras = PROJECT["optional-dependencies"]
    found = {name: [item for item in items if item.startswith("onnxruntime")] for name, items in extras.items()}
    assert {name: len(items) for name, items in found.items() if items} == {
        "rocm": 1,
        "migraphx": 1,
        "cuda": 1,
        "cpu": 1,
    }
    assert not [item for item in PROJECT["dependencies"] if item.startswith("onnxruntime")]


def test_version_without_onnxruntime(python):
    result = run(python.parent / "rocline", "--version")
    assert (result.returncode, result.stdout) == (0, f"rocline, version {PROJECT['version']}\n")


def test_import_without_onnxruntime(python):
    result = run(python, "-c", "import rocline; print(rocline.Session.__name__, rocline.__version__)")
    assert (result.returncode, result.stdout) == (0, f"Session {PROJECT['version']}\n"), result.stderr


def test_first_use_says_which_extra(python):
    code = "import rocline\ntry: rocline.Session('x.onnx')\nexcept rocline.ProviderError as error: print(error)"
    result = run(python, "-c", code)
    assert result.stdout.startswith("onnxruntime is not installed: "), result.stderr
    for extra in ("rocm", "cpu"):
        assert f"pip install 'rocline[{extra}]'" in result.stdout
