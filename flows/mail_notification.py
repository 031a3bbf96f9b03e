"""Mail about a run that failed or crashed, sent by its own process or its worker, so that it needs no Prefect server.

    EMUEDIT_SMTP_URL     smtp://user:password@smtp.example.org:587 (STARTTLS), or smtps://... (TLS from the start, port 465)
    EMUEDIT_MAIL_TO      recipients, separated by commas
    EMUEDIT_MAIL_FROM    sender; default: emuedit@<host name>

A run that a person stops sends none. Nobody can send mail for a run whose machine died, or that never started: the webhook of the
server can (`server_setup`).
"""

import os
import smtplib
import socket
import ssl
from collections.abc import Mapping
from email.message import EmailMessage
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote, urlsplit

from emuedit.tracking.service_errors import hide_password
from flows.stopping import Stopped

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun, State

SMTP_ENV, TO_ENV, FROM_ENV = "EMUEDIT_SMTP_URL", "EMUEDIT_MAIL_TO", "EMUEDIT_MAIL_FROM"
_PORTS = {"smtp": 587, "smtps": 465}
_TIMEOUT_S = 10.0
_MAX_TEXT_CHARS = 4000


class MailError(RuntimeError):
    """Raised if the settings for mail are wrong or the message cannot be delivered."""


def send(subject: str, text: str, environment: Mapping[str, str] = os.environ) -> bool:
    """Send a message to the recipients in the environment; False if no server is set. Raises MailError."""
    url = environment.get(SMTP_ENV, "")
    if not url:
        return False
    recipients = [name.strip() for name in environment.get(TO_ENV, "").split(",") if name.strip()]
    if not recipients:
        raise MailError(f"want recipients in {TO_ENV}, as {SMTP_ENV} is set, got none; set both or neither")
    message = EmailMessage()
    message["Subject"] = " ".join(subject.split())
    try:
        message["From"] = environment.get(FROM_ENV) or f"emuedit@{socket.gethostname()}"
        message["To"] = ", ".join(recipients)
    except ValueError as error:
        raise MailError(f"want mail addresses in {TO_ENV} and {FROM_ENV}, got {error}; correct them") from error
    message.set_content(text)
    try:
        with _connect(url) as server:
            server.send_message(message)
    except (OSError, smtplib.SMTPException, UnicodeError) as error:  # the latter for a host that is no name of DNS
        raise MailError(f"no mail was sent through {hide_password(url)}: {error}; correct {SMTP_ENV}") from error
    return True


def mail_on_failure(flow: Any, flow_run: "FlowRun", state: "State[Any]") -> None:
    """A hook of Prefect for failed and crashed runs. A mail that cannot be sent is printed, and changes nothing else."""
    message = hide_password(state.message or "")
    if state.is_crashed() and Stopped.__name__ in message:
        return
    reason = (flow_run.parameters or {}).get("reason") or "none was set"
    text = f"{message[:_MAX_TEXT_CHARS]}\n\nreason of the run: {reason}\nrun: {flow_run.id}\nhost: {socket.gethostname()}\n"
    try:
        send(f"{flow.name} {flow_run.name}: {state.name}", text)
    except MailError as error:
        print(f"== {error}", flush=True)


def _connect(url: str) -> smtplib.SMTP:
    """A connection that is logged in, encrypted if there are credentials. Raises MailError for another kind of URL."""
    try:
        parts = urlsplit(url)
    except ValueError:  # its text may have the password
        raise MailError(f"want {SMTP_ENV} such as smtp://user:password@smtp.example.org:587, got a malformed host") from None
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if not (user + password).isascii():  # smtplib cannot send others
        raise MailError(f"want an ASCII user and password in {SMTP_ENV}, got other characters; set an ASCII password")
    if parts.scheme not in _PORTS or not parts.hostname:
        raise MailError(f"want {SMTP_ENV} such as smtp://user:password@smtp.example.org:587, got {hide_password(url)}")
    try:
        port = parts.port or _PORTS[parts.scheme]
    except ValueError:  # its text has a part of a password with an unescaped slash
        raise MailError(f"want a port number in {SMTP_ENV}; write / in a password as %2F, # as %23 and ? as %3F") from None
    if parts.scheme == "smtps":
        server: smtplib.SMTP = smtplib.SMTP_SSL(parts.hostname, port, timeout=_TIMEOUT_S, context=ssl.create_default_context())
    else:
        server = smtplib.SMTP(parts.hostname, port, timeout=_TIMEOUT_S)
    try:
        if parts.scheme == "smtp" and (server.ehlo() and server.has_extn("starttls")):
            server.starttls(context=ssl.create_default_context())
        elif parts.scheme == "smtp" and user:
            raise MailError(f"want STARTTLS for the password, got a server without it at {hide_password(url)}; use smtps://")
        if user:
            server.login(user, password)
    except BaseException:
        server.close()
        raise
    return server
