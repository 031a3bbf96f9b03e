"""A model server checks its port before it downloads a model."""

import socket

import pytest

from emuedit.tracking import registry, serve_model


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused_before_a_download(host: str, monkeypatch: pytest.MonkeyPatch) -> None:
    downloads: list[str] = []
    monkeypatch.setattr(registry, "download_model", downloads.append)
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        with pytest.raises(SystemExit) as refusal:
            serve_model.main(["--host", host, "--port", str(port)])
    assert f"serve_model: want a port at which this program can listen, got {port} of {host}" in str(refusal.value)
    assert "choose another --port" in str(refusal.value)
    assert downloads == []


def test_a_free_port_is_accepted_without_an_address_that_the_machine_lacks() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    serve_model._check_port("localhost", port)
    serve_model._check_port("0.0.0.0", port)
    serve_model._check_port("192.0.2.1", port)  # TEST-NET-1, which no machine has; the server reports it
