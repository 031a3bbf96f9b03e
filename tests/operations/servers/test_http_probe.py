from typing import Any

from emuedit.operations.servers.http_probe import ask


def test_requests_name_the_project_as_their_agent(endpoint: Any) -> None:
    """Cloudflare answers 403 to the agent of urllib: a server behind it would count as one that refuses its account."""
    endpoint.answers = [(200, {"status": "OK"})]
    assert ask(endpoint.url, 5.0, {"question": 1}).json() == {"status": "OK"}
    assert endpoint.requests[0][1]["User-Agent"] == "emuedit"
