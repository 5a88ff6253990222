"""What every test shares. Tools this machine lacks may skip a test, but not where ROCLINE_FORBID_SKIPS is set (CI)."""

import fcntl
import os
import signal

import pytest

# Models of these sizes lose more to PyTorch's threads, which spin while they wait for one another, than they gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure():
    # A job in the background ignores Ctrl-C, and so would every command that a test starts and interrupts.
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


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

    folder = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent  # the workers' own folders are in it
    out = folder / "exported" / recipe
    out.parent.mkdir(exist_ok=True)
    with out.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not out.exists():
            export_model(recipe, out)
    return out
