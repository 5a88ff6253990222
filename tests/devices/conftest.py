"""A device on the fake driver that a test module's own fixture `driver` makes."""

import pytest


@pytest.fixture
def device(driver):
    with driver.device() as device:
        yield device
    assert driver.leaks() == {}


@pytest.fixture
def streams(device):
    return [device.create_stream() for _ in range(3)]
