"""Servers shared by the tests of one file: `fake` is choird with the fake engine, `server` is that one and, where
CHOIR_TEST_MODEL names a model and choird is built, also the real one."""
import os

import pytest

from choird import CHOIRD, FAKE, MODEL, Choird

KINDS = ["fake"] + (["real"] if MODEL and os.path.exists(CHOIRD) else [])


@pytest.fixture(scope="module")
def fake():
    server = Choird(FAKE, "fake-model.gguf")
    yield server
    server.stop()


@pytest.fixture(scope="module", params=KINDS)
def server(request):
    if request.param == "fake":
        yield request.getfixturevalue("fake")
        return
    server = Choird(CHOIRD, MODEL, "--max-model-len", "1024")
    yield server
    server.stop()


@pytest.fixture
def start():
    """start(*args, env=...) runs a fake server of the test's own."""
    servers = []

    def run(*args, **kwargs):
        servers.append(Choird(FAKE, "fake-model.gguf", *args, **kwargs))
        return servers[-1]

    yield run
    for one in servers:
        if one.process.poll() is None:
            one.process.kill()
            one.process.wait()
