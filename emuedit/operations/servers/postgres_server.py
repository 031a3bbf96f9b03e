"""PostgreSQL for MLflow and Prefect, from the machine's binaries, in its own data folder.

SQLite is enough for one person; with several writers, Prefect fails with "database is locked" (prefect#16299, #16304, #19771).
"""

import importlib.util
import os
import pwd
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from emuedit.operations.servers.local_ports import HOST
from emuedit.operations.servers.password_file import read_password

DATABASES = ("mlflow", "prefect")
_USER = "emuedit"
_SYSTEM_USER = "postgres"
_PASSWORD_FILE = "postgres.password"  # noqa: S105  the name of a file
_DEBIAN_FOLDER = Path("/usr/lib/postgresql")
"""Folder of Debian's binaries: `<major version>/bin`."""
_TOOLS = ("initdb", "postgres", "pg_isready", "psql")
_TOOL_S = 120.0
_DUMP_S = 3600.0


class PostgresError(RuntimeError):
    """Raised if a tool of PostgreSQL fails."""


@dataclass(frozen=True)
class Postgres:
    """A database cluster: folders of binaries and data, port, and the system user that runs it (None: this one)."""

    binaries: Path
    data: Path
    port: int
    password: str
    user: str | None

    @property
    def command(self) -> list[str]:
        """The command line of the server. It uses no Unix socket, which could conflict with another server."""
        settings = {"listen_addresses": HOST, "port": self.port, "unix_socket_directories": "", "max_connections": 60}
        options = [word for name, value in settings.items() for word in ("-c", f"{name}={value}")]
        return [str(self.binaries / "postgres"), "-D", str(self.data), *options]

    def uri(self, database: str, driver: str = "") -> str:
        """URI of a database for SQLAlchemy, with the password: only for a server's environment, never for logs."""
        scheme = f"postgresql+{driver}" if driver else "postgresql"
        return f"{scheme}://{_USER}:{self.password}@{HOST}:{self.port}/{database}"

    def answers(self) -> bool:
        """Whether the server accepts connections; False without the binaries to check it."""
        if not (self.binaries / "pg_isready").exists():
            return False
        tool = [str(self.binaries / "pg_isready"), "-q", "-h", HOST, "-p", str(self.port), "-t", "3"]
        return subprocess.run(tool, capture_output=True, check=False).returncode == 0  # noqa: S603

    def initialise(self) -> None:
        """Create the cluster unless it exists. Raises PostgresError, also if the cluster's version is no longer installed."""
        if version := _version_of_cluster(self.data):
            if not self.binaries.is_dir():
                raise PostgresError(
                    f"want PostgreSQL {version}, which created {self.data}, got {_list_versions()}; install that version again "
                    f"(Debian: apt-get install postgresql-{version}), and for a newer version, upgrade the data: "
                    "pg_upgradecluster for a cluster of Debian's, else pg_upgrade, or dump (pg_dumpall) and restore (psql)"
                )
            return
        shutil.rmtree(self.data, ignore_errors=True)  # leftovers of a stopped initdb
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
        """Create missing databases on a running server. Raises PostgresError."""
        present = self.ask("postgres", "SELECT datname FROM pg_database").split()
        for name in DATABASES:
            if name not in present:
                self.ask("postgres", f"CREATE DATABASE {name}")

    def ask(self, database: str, statement: str) -> str:
        """The answer of a running server to an SQL statement, without headings. Raises PostgresError."""
        return _run([*self._client("psql", database), "-qtA", "-c", statement], None, self.password).strip()

    def dump(self, database: str, path: Path) -> None:
        """Write a database of a running server to a file, as SQL. Raises PostgresError."""
        _run([*self._client("pg_dump", database), "--file", str(path)], None, self.password, _DUMP_S)

    def _client(self, tool: str, database: str) -> list[str]:
        return [str(self.binaries / tool), "-h", HOST, "-p", str(self.port), "-U", _USER, "-d", database]


def find_postgres(folder: Path, port: int) -> tuple[Postgres | None, str]:
    """PostgreSQL for a data folder, or None, and a text with the reason.

    Raises PostgresError if the folder has a cluster, and PostgreSQL cannot run: SQLite would be an empty registry.
    """
    if os.environ.get("EMUEDIT_DATABASE") == "sqlite":
        return None, "SQLite, as EMUEDIT_DATABASE says"
    version = _version_of_cluster(folder / "postgres")
    binaries = _find_binaries(version) or (_DEBIAN_FOLDER / version / "bin" if version else None)
    if binaries is None:
        return None, "SQLite: PostgreSQL is not installed (Debian: apt-get install postgresql)"
    user = _SYSTEM_USER if os.geteuid() == 0 else None
    if problem := _why_not(folder, user):
        if version:
            raise PostgresError(
                f"want PostgreSQL, which has the data of {folder}, got a problem: {problem}; correct it, or set "
                "EMUEDIT_DATABASE=sqlite to start with an empty registry"
            )
        return None, f"SQLite: {problem}"
    postgres = Postgres(binaries, folder / "postgres", port, read_password(folder / _PASSWORD_FILE), user)
    return postgres, f"PostgreSQL from {binaries}" + (f", as the user {user}" if user else "")


def _why_not(folder: Path, user: str | None) -> str:
    """Why PostgreSQL cannot run in a data folder as this user (None: that of this process); empty if it can."""
    if importlib.util.find_spec("psycopg2") is None:
        return "the driver of PostgreSQL is missing (uv sync --extra servers)"
    if user and not _has_user(user):
        return f"PostgreSQL does not run as root, and there is no user {user}"
    if user and not _can_enter(folder, user):
        return f"PostgreSQL does not run as root, and the user {user} cannot enter {folder}"
    return ""


def _find_binaries(version: str = "") -> Path | None:
    """The folder with binaries of this major version, by default the newest: Debian's, or the folder of `initdb` in PATH."""
    return next((folder for folder in _installed() if not version or _version_of_binaries(folder) == version), None)


def _installed() -> list[Path]:
    """Folders with all tools: Debian's, the newest first, then the folder of `initdb` in PATH."""
    folders = sorted(
        _DEBIAN_FOLDER.glob("*/bin"), key=lambda path: [int(part) for part in path.parent.name.split(".")], reverse=True
    )
    if path := shutil.which("initdb"):
        folders.append(Path(path).resolve().parent)
    return [folder for folder in dict.fromkeys(folders) if all((folder / tool).exists() for tool in _TOOLS)]


def _list_versions() -> str:
    return ", ".join(f"{_version_of_binaries(folder)} in {folder}" for folder in _installed()) or "none"


def _version_of_cluster(data: Path) -> str:
    """The major version of a cluster, such as 15 or 9.6; empty if there is none, or if it is not readable."""
    try:
        return (data / "PG_VERSION").read_text().strip()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return ""


def _version_of_binaries(folder: Path) -> str:
    """The major version of binaries: the first number, before version 10 the first two; empty if unknown."""
    match = re.search(r"\b(9\.\d+|\d+)", _run([str(folder / "postgres"), "--version"], None))
    return match[1] if match else ""


def _has_user(name: str) -> bool:
    try:
        pwd.getpwnam(name)
    except KeyError:
        return False
    return True


def _can_enter(folder: Path, user: str) -> bool:
    command = ["/usr/bin/env", "test", "-x", str(folder)]
    return subprocess.run(command, user=user, group=user, extra_groups=[], check=False, cwd="/").returncode == 0  # noqa: S603


def _run(command: list[str], user: str | None, password: str = "", timeout_s: float = _TOOL_S) -> str:
    environment = {"PATH": os.environ.get("PATH", os.defpath), **({"PGPASSWORD": password} if password else {})}
    process = subprocess.run(  # noqa: S603  a tool of PostgreSQL
        command, user=user, group=user, extra_groups=[] if user else None, env=environment, cwd="/",
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    if process.returncode != 0:
        tool, output = Path(command[0]).name, (process.stderr or process.stdout).strip()
        raise PostgresError(f"{tool} failed with exit status {process.returncode}: {output[-600:]}")
    return process.stdout
