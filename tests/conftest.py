"""What every test shares. Tools this machine lacks may skip a test, but not where ROCLINE_FORBID_SKIPS is set (CI)."""

import os

import pytest


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    report = yield
    if report.skipped and not hasattr(report, "wasxfail") and os.environ.get("ROCLINE_FORBID_SKIPS"):
        report.outcome = "failed"
        report.longrepr = f"skips are forbidden here: {report.longrepr}"
    return report


@pytest.fixture(scope="session")
def minilm(tmp_path_factory):
    """MiniLM-L6, exported once for the whole run: a model folder."""
    return _exported("minilm", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct, exported once for the whole run: a model folder."""
    return _exported("smollm2", tmp_path_factory)


def _exported(recipe, tmp_path_factory):
    from rocline.export import export_model

    out = tmp_path_factory.mktemp(recipe) / recipe
    export_model(recipe, out)
    return out
