"""The demo, on models exported already: what it prints, and what it leaves behind."""

import re
import shutil
from pathlib import Path

import pytest
from click.testing import CliRunner

from rocline.export import pipeline
from rocline.export.demo import demo
from rocline.runtime.manifest import Manifest


@pytest.fixture
def run(minilm, smollm2, monkeypatch, tmp_path):
    """Runs the demo with a temporary folder of its own; `run.asked` are the recipes it exported."""
    asked = []
    exported = {"minilm": minilm, "smollm2": smollm2}

    def export_model(source, out, *, force, progress):
        asked.append(source)
        progress("copying")
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(exported[source], out, copy_function=lambda file, copy: Path(copy).hardlink_to(file))
        return Manifest.read(out)

    monkeypatch.setattr(pipeline, "export_model", export_model)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    def invoke(*arguments):
        return CliRunner().invoke(demo, ["--max-new-tokens", "8", *arguments], catch_exceptions=False)

    invoke.asked = asked
    return invoke


def test_prints_similarities_an_answer_and_where_it_ran(run, tmp_path):
    result = run()
    assert result.exit_code == 0
    assert run.asked == ["minilm", "smollm2"]
    rows = re.findall(r"^   \d  [^\d]+((?: +-?\d\.\d\d){4})$", result.output, re.MULTILINE)
    table = [[float(value) for value in row.split()] for row in rows]
    assert [table[index][index] for index in range(4)] == [1.0] * 4
    # The first two sentences say the same, and so do the last two.
    assert table[0][1] == max(table[0][1:])
    assert table[3][2] == max(table[3][:3])
    assert re.search(r"^   > .*\?\n   \S", result.output, re.MULTILINE)
    assert "[8 tokens, cut at --max-new-tokens" in result.output
    assert "asked for:  ROCMExecutionProvider, CPUExecutionProvider" in result.output
    assert "worst difference" in result.output
    assert re.search(r"^\d+\.\d s in all: export MiniLM \d", result.output, re.MULTILINE)
    assert list(tmp_path.glob("rocline-demo-*")) == []


def test_keep_leaves_the_models_and_says_where(run, tmp_path):
    result = run("--keep")
    (folder,) = tmp_path.glob("rocline-demo-*")
    assert f"The models are in {folder}" in result.output
    assert sorted(path.name for path in folder.iterdir()) == ["minilm", "smollm2"]


def test_out_is_used_again(run, tmp_path):
    out = tmp_path / "here"
    for _ in range(2):
        assert run("--out", str(out)).exit_code == 0
    assert sorted(path.name for path in out.iterdir()) == ["minilm", "smollm2"]
