"""One cluster for all tests of this folder, which run in one process: `make test-slurm`."""

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))  # last: other tests mean their own conftest
from cluster import reason_to_skip, running


def pytest_collection_modifyitems(items):
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.slurm)


@pytest.fixture(scope="session")
def started():
    reason = reason_to_skip()
    if reason:
        pytest.skip(reason)
    with running() as cluster:
        yield cluster


@pytest.fixture
def cluster(started):
    """The cluster, with nothing in its queue; see `cluster.Cluster`."""
    yield started
    started.clear()
