"""PostgreSQL for MLflow and Prefect, from the binaries of the machine, in a folder of its own.

SQLite serves one person; under several writers Prefect's server answers "database is locked" (prefect#16299, #16304, #19771).
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from emuedit.operations.local_ports import HOST

DATABASES = ("mlflow", "prefect")
_USER = "emuedit"
_SYSTEM_USER = "postgres"
_PASSWORD_FILE = "postgres.password"  # noqa: S105  the name of a file
_TOOL_S = 120.0


class PostgresError(RuntimeError):
    """Raised when a tool of PostgreSQL fails."""


@dataclass(frozen=True)
class Postgres:
    """A database cluster: where its binaries and its data are, its port, and the system user that runs it (None: this one)."""

    binaries: Path
    data: Path
    port: int
    password: str
    user: str | None

    @property
    def command(self) -> list[str]:
        """The command line of the server. Its socket lies beside the data, so nobody else's is in the way."""
        settings = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": "", "max_connections": 60}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def uri(self, database: str, driver: str = "") -> str:
        """URI of a database for SQLAlchemy, with the password: only for the environment of a server, never for a log."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{_USER}:{self.password}@{HOST}:{self.port}/{database}"

    def answers(self) -> bool:
        """Whether the server accepts connections."""
        tool = [str(self.binaries / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-t", "3"]
        return subprocess.run(tool, capture_output=True, check=False).returncode == 0  # noqa: S603

    def initialise(self) -> None:
        """Create the cluster unless it is there. Raises PostgresError."""
        if (self.data / "PG_VERSION").exists():
            return
        shutil.rmtree(self.data, ignore_errors=True)  # what a stopped initdb left
        self.data.mkdir(mode=0o700)
        if self.user:
            shutil.chown(self.data, self.user, self.user)
        with tempfile.NamedTemporaryFile("w", suffix=".password") as file:
            file.write(self.password + "\n")
            file.flush()
            if self.user:
                shutil.chown(file.name, self.user, self.user)
            options = ["--auth=scram-sha-256", f"--username={_USER}", f"--pwfile={file.name}", "--encoding=UTF8", "--locale=C"]
            _run([str(self.binaries / "initdb"), "-D", str(self.data), *options, "--no-instructions"], self.user)

    def create_databases(self) -> None:
        """Create the databases that are not there, on a running server. Raises PostgresError."""
        psql = [str(self.binaries / "psql"), "-h", HOST, "-p", str(self.port), "-U", _USER, "-d", "postgres", "-qtA", "-c"]
        present = _run([*psql, "SELECT datname FROM pg_database"], None, self.password).split()
        for name in DATABASES:
            if name not in present:
                _run([*psql, f"CREATE DATABASE {name}"], None, self.password)


def find_postgres(folder: Path, port: int) -> tuple[Postgres | None, str]:
    """PostgreSQL for a data folder, or None, and in words why this choice."""
    if os.environ.get("EMUEDIT_DATABASE") == "sqlite":
        return None, "SQLite, as EMUEDIT_DATABASE says"
    binaries = _find_binaries()
    if binaries is None:
        return None, "SQLite: PostgreSQL is not installed (Debian: apt-get install postgresql)"
    if importlib.util.find_spec("psycopg2") is None:
        return None, "SQLite: the driver of PostgreSQL is missing (uv sync --extra servers)"
    user = None
    if os.geteuid() == 0:
        if not _has_user(_SYSTEM_USER):
            return None, f"SQLite: PostgreSQL does not run as root, and there is no user {_SYSTEM_USER}"
        if not _can_enter(folder, _SYSTEM_USER):
            return None, f"SQLite: PostgreSQL does not run as root, and the user {_SYSTEM_USER} cannot enter {folder}"
        user = _SYSTEM_USER
    postgres = Postgres(binaries, folder / "postgres", port, _read_password(folder / _PASSWORD_FILE), user)
    return postgres, f"PostgreSQL from {binaries}" + (f", as the user {user}" if user else "")


def _find_binaries() -> Path | None:
    """The folder with the server's binaries: the newest that Debian installed, or that of `initdb` in PATH."""
    folders = sorted(
        Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: int(path.parent.name.split(".")[0]), reverse=True
    )
    if path := shutil.which("initdb"):
        folders.append(Path(path).resolve().parent)
    tools = ("initdb", "postgres", "pg_isready", "psql")
    return next((folder for folder in folders if all((folder / tool).exists() for tool in tools)), None)


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _can_enter(folder: Path, user: str) -> bool:
    command = ["/usr/bin/env", "test", "-x", str(folder)]
    return subprocess.run(command, user=user, group=user, extra_groups=[], check=False, cwd="/").returncode == 0  # noqa: S603


def _read_password(path: Path) -> str:
    """The password in a file that only its owner can read; a new one if there is none."""
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_urlsafe(24) + "\n")
    return path.read_text().strip()


def _run(command: list[str], user: str | None, password: str = "") -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), **({"PGPASSWORD": password} if password else {})}
    process = subprocess.run(  # noqa: S603  a tool of PostgreSQL
        command, user=user, group=user, extra_groups=[] if user else None, env=environment, cwd="/",
        capture_output=True, text=True, timeout=_TOOL_S, check=False,
    )  # fmt: skip
    if process.returncode != 0:
        tool, output = Path(command[0]).name, (process.stderr or process.stdout).strip()
        raise PostgresError(f"{tool} failed with exit status {process.returncode}: {output[-600:]}")
    return process.stdout
