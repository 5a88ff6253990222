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
