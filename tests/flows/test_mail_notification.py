"""Mail about failed runs, through a small SMTP server in this process."""

import socketserver
import threading
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest

from flows import mail_notification
from flows.mail_notification import FROM_ENV, SMTP_ENV, TO_ENV, MailError


class SmtpHandler(socketserver.StreamRequestHandler):
    """The commands of one connection; neither TLS nor login."""

    server: "SmtpServer"

    def handle(self) -> None:
        self.reply("220 test")
        while line := self.rfile.readline().decode().strip():
            command = line.split()[0].upper()
            if command == "DATA":
                self.reply("354 go on")
                lines = list(iter(lambda: self.rfile.readline().decode().rstrip("\r\n"), "."))
                self.server.messages.append("\n".join(lines))
            elif command == "RCPT":
                self.server.recipients.append(line.partition("<")[2].rstrip(">"))
            self.reply("221 bye" if command == "QUIT" else "250 fine")

    def reply(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())


class SmtpServer(socketserver.ThreadingTCPServer):
    """Keeps what it receives."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), SmtpHandler)
        self.messages: list[str] = []
        self.recipients: list[str] = []
        self.url = f"smtp://127.0.0.1:{self.server_address[1]}"


@pytest.fixture
def smtp(monkeypatch: pytest.MonkeyPatch) -> Iterator[SmtpServer]:
    """A server to which the environment refers."""
    with SmtpServer() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name, value in {
            SMTP_ENV: server.url,
            TO_ENV: "a@example.org, b@example.org",
            FROM_ENV: "emuedit@example.org",
        }.items():
            monkeypatch.setenv(name, value)
        yield server
        server.shutdown()


def make_state(name: str, message: str) -> Any:
    return SimpleNamespace(name=name, message=message, is_crashed=lambda: name == "Crashed")


RUN: Any = SimpleNamespace(id="run-1", name="brave-bee", parameters={"reason": "schedule: weekly"})
FLOW = SimpleNamespace(name="retrain")


@pytest.mark.slow
def test_a_failed_run_is_mailed_with_its_error_and_its_reason(smtp: SmtpServer) -> None:
    mail_notification.mail_on_failure(FLOW, RUN, make_state("Failed", "stage pairs failed at postgresql://me:5ecret@host/x"))
    assert smtp.recipients == ["a@example.org", "b@example.org"]
    (message,) = smtp.messages
    assert "Subject: retrain brave-bee: Failed" in message
    assert "From: emuedit@example.org" in message
    assert "stage pairs failed" in message
    assert "reason of the run: schedule: weekly" in message
    assert "5ecret" not in message


@pytest.mark.slow
def test_a_run_that_a_person_stops_is_not_mailed_but_one_that_crashes_is(smtp: SmtpServer) -> None:
    stopped = "Execution was interrupted by an unexpected exception: Stopped: ctrl-c"
    mail_notification.mail_on_failure(FLOW, RUN, make_state("Crashed", stopped))
    assert smtp.messages == []
    mail_notification.mail_on_failure(FLOW, RUN, make_state("Crashed", "Flow run process exited with non-zero status code -9."))
    assert "status code -9" in smtp.messages[0]


@pytest.mark.slow
def test_without_a_server_no_mail_is_sent_and_wrong_settings_are_explained(smtp: SmtpServer) -> None:
    assert not mail_notification.send("a", "b", {TO_ENV: "a@example.org"})
    with pytest.raises(MailError, match=f"want recipients in {TO_ENV}, as {SMTP_ENV} is set, got none; set both or neither"):
        mail_notification.send("a", "b", {SMTP_ENV: smtp.url})
    with pytest.raises(MailError, match=r"want EMUEDIT_SMTP_URL such as smtp://.*, got http://example.org"):
        mail_notification.send("a", "b", {SMTP_ENV: "http://example.org", TO_ENV: "a@example.org"})
    login = smtp.url.replace("//", "//me:5ecret@")
    with pytest.raises(MailError, match="want STARTTLS for the password, got a server without it") as caught:
        mail_notification.send("a", "b", {SMTP_ENV: login, TO_ENV: "a@example.org"})
    assert "5ecret" not in str(caught.value)


def test_a_mail_that_cannot_be_sent_is_printed(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv(SMTP_ENV, "smtp://127.0.0.1:1")
    monkeypatch.setenv(TO_ENV, "a@example.org")
    mail_notification.mail_on_failure(FLOW, RUN, make_state("Failed", "x"))
    assert "== no mail was sent through smtp://127.0.0.1:1: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (SMTP_ENV, "smtp://me:sécret@127.0.0.1:1", "want an ASCII user and password in EMUEDIT_SMTP_URL"),
        (SMTP_ENV, "smtp://me:s%C3%A9cret@127.0.0.1:1", "want an ASCII user and password in EMUEDIT_SMTP_URL"),
        (SMTP_ENV, "smtp://me:secret@[127.0.0.1", "want EMUEDIT_SMTP_URL such as .*, got a malformed host"),
        (SMTP_ENV, f"smtp://{'a' * 64}.example.org", "no mail was sent through smtp://"),
        (FROM_ENV, "me\nyou@example.org", "want mail addresses in EMUEDIT_MAIL_TO and EMUEDIT_MAIL_FROM"),
    ],
)
def test_settings_that_python_cannot_send_are_explained(name: str, value: str, message: str) -> None:
    settings = {SMTP_ENV: "smtp://127.0.0.1:1", TO_ENV: "a@example.org", name: value}
    with pytest.raises(MailError, match=message) as caught:
        mail_notification.send("a", "b", settings)
    assert "cret" not in str(caught.value)


@pytest.mark.usefixtures("prefect")
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_prefect_calls_the_hook_of_a_failed_flow(smtp: SmtpServer) -> None:
    from flows import data_flows

    with pytest.raises(Exception, match="want a reason that begins with"):
        data_flows.refresh_data("dataset", "because")
    assert len(smtp.messages) == 1
    assert "Subject: refresh-data " in smtp.messages[0]
    assert "want a reason that begins with" in smtp.messages[0].replace("=\n", "")


@pytest.mark.slow
def test_a_password_that_breaks_the_url_is_not_shown(smtp: SmtpServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(SMTP_ENV, "smtp://user:se/cret@smtp.example.org:587")
    with pytest.raises(MailError, match="write / in a password as %2F") as caught:
        mail_notification.send("subject", "text")
    assert "cret" not in str(caught.value)
    assert caught.value.__suppress_context__
