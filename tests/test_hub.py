"""Whether the hub answers, and what follows where it does not."""

import http.server
import socket
import threading
import time

import pytest

from bgetrain import hub


@pytest.fixture(autouse=True)
def forget():
    hub.answers.cache_clear()
    yield
    hub.answers.cache_clear()


@pytest.mark.parametrize("status", [200, 404, 503])
def test_any_answer_is_an_answer_and_is_asked_for_once(status):
    asked = []

    class Server(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            asked.append(self.path)
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        address = f"http://127.0.0.1:{server.server_port}"
        assert hub.answers(address)
        assert hub.answers(address)
    finally:
        server.shutdown()
        server.server_close()
    assert len(asked) == 1


def test_a_closed_port_and_an_unknown_host_do_not_answer():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"http://127.0.0.1:{probe.getsockname()[1]}"
    assert not hub.answers(address)
    assert not hub.answers("http://hub.invalid")


def test_a_hub_that_accepts_and_says_nothing_is_given_up_in_time(monkeypatch):
    monkeypatch.setattr(hub, "SECONDS", 0.3)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        began = time.monotonic()
        assert not hub.answers(f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert time.monotonic() - began < 20  # without a limit it would wait for ever


def test_settle_goes_offline_for_every_library_that_would_try_again(monkeypatch):
    import datasets
    import huggingface_hub
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "answers", lambda endpoint: True)
    assert hub.settle()
    assert not huggingface_hub.is_offline_mode()
    monkeypatch.setattr(hub, "answers", lambda endpoint: False)
    assert not hub.settle()
    assert huggingface_hub.is_offline_mode()
    assert datasets.config.HF_HUB_OFFLINE


def test_who_went_offline_by_choice_is_not_asked_about(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(hub, "answers", lambda endpoint: pytest.fail("the hub was asked"))
    assert not hub.settle()
