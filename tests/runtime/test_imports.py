"""Imports point one way, heavy modules stay where they belong, and public names are what `__all__` says."""

import ast
import importlib
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

import rocline

ROOT = Path(rocline.__file__).parent
FOLDERS = ("custom_ops", "runtime", "export")
# What each folder may import of the others; everything may import rocline.errors.
ARROWS = {"custom_ops": set(), "runtime": {"custom_ops"}, "export": {"custom_ops", "runtime"}}
HEAVY = {"torch", "transformers", "optimum"}
COMMANDS = metadata.distribution("rocline").entry_points.select(group="rocline.commands")


def folder_of(name):
    return Path(importlib.import_module(f"rocline.{name}").__file__).parent


def sources(folder):
    return sorted(path for path in folder_of(folder).rglob("*.py"))


def imported(path):
    """Yields every module that a file imports, anywhere in it; names from a package count as modules of it."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            yield node.module
            for alias in node.names:
                yield f"{node.module}.{alias.name}"


@pytest.mark.parametrize("folder", FOLDERS)
def test_arrows(folder):
    files = sources(folder)
    assert files
    for path in files:
        for module in imported(path):
            parts = module.split(".")
            if parts[0] == "rocline" and len(parts) > 1 and parts[1] in FOLDERS:
                assert parts[1] == folder or parts[1] in ARROWS[folder], f"{path} imports {module}"


@pytest.mark.parametrize("folder", ["custom_ops", "runtime"])
def test_only_export_imports_what_is_heavy(folder):
    for path in sources(folder):
        # What a graph is rewritten with: `rocline.custom_ops.rewriting` and the rules that import it.
        forbidden = (
            HEAVY if path.name.startswith("rule") or path.name == "rewriting.py" else HEAVY | {"onnxscript", "onnx_ir"}
        )
        for module in imported(path):
            assert module.split(".")[0] not in forbidden, f"{path} imports {module}"


def loaded_after(statement):
    """Returns the top-level modules that a fresh interpreter holds after ``statement``."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(ran.stdout.split())


@pytest.mark.parametrize(
    "statement",
    [
        "import rocline",
        "import rocline.cli, click; rocline.cli.root.get_help(click.Context(rocline.cli.root))",
        "import rocline.runtime.inspection, rocline.runtime.model, rocline.runtime.onnx_file, rocline.runtime.options",
        *(f"import {entry.module}" for entry in COMMANDS),
    ],
)
def test_light_imports(statement):
    loaded = loaded_after(statement)
    assert "rocline" in loaded
    assert not loaded & (HEAVY | {"numpy", "onnx", "onnxruntime", "tokenizers", "jinja2"})


def test_a_session_needs_neither_onnx_nor_torch():
    loaded = loaded_after("from rocline import Session; Session")
    assert "numpy" in loaded
    assert not loaded & (HEAVY | {"onnx", "onnxscript", "onnxruntime"})


def test_public_names():
    for name in rocline.__all__:
        assert getattr(rocline, name) is not None
    assert set(rocline.__all__) <= set(dir(rocline))
    public = {name for name in vars(rocline.errors) if name.endswith("Error")}
    assert public == {name for name in rocline.__all__ if name.endswith("Error")}
    for name in public:
        assert issubclass(getattr(rocline, name), rocline.RoclineError)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = rocline.nonsense


def test_the_stub_has_the_public_names():
    stub = ast.parse((ROOT / "__init__.pyi").read_text())
    names = {alias.asname for node in stub.body if isinstance(node, ast.ImportFrom) for alias in node.names}
    names |= {node.target.id for node in stub.body if isinstance(node, ast.AnnAssign)}
    assert names - {"__all__"} == {*rocline.__all__, *FOLDERS}


@pytest.mark.parametrize("folder", FOLDERS)
def test_every_all_is_true(folder):
    for path in sources(folder):
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
                parts = path.relative_to(folder_of(folder)).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                module = importlib.import_module(".".join(("rocline", folder, *parts)))
                for name in module.__all__:
                    assert hasattr(module, name), f"{path}: {name}"
