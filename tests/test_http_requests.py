"""What the HTTP clients share."""

import urllib.request

import pytest

from emuedit.http_requests import no_proxy_variables


@pytest.mark.parametrize(
    ("upper", "lower", "expected"),
    [
        ("", "", "localhost,127.0.0.1,::1"),
        ("example.org", "127.0.0.1, example.com", "example.org,127.0.0.1,example.com,localhost,::1"),
        ("", "*", "*"),
    ],
)
def test_no_proxy_is_used_for_this_machine(upper: str, lower: str, expected: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("NO_PROXY", upper)
    monkeypatch.setenv("no_proxy", lower)
    variables = no_proxy_variables()
    assert variables == {"NO_PROXY": expected, "no_proxy": expected}
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert no_proxy_variables() == variables
    assert all(urllib.request.proxy_bypass(host) for host in ("localhost:9000", "127.0.0.1:9000"))


def test_nothing_is_set_without_a_proxy(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ftp_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    assert no_proxy_variables() == {}
