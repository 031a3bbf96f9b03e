"""Fixtures of all tests: one torch thread, tiny base models with a fake text encoder, and a fake chat endpoint.

The process that shares out the tests imports this, too, before it starts the others; so it imports torch only where it is needed.
"""

import gc
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any

import pytest
from xdist.scheduler import LoadFileScheduling

from emuedit.processes import KEEP_FREED_MEMORY, keep_compiled_modules, set_env_defaults
from tests.databases import DatabaseOf, cached_database

if TYPE_CHECKING:
    from emuedit.models.text_to_image import TextToImageModel

FOLDER = Path(__file__).parent
KINDS = ("toy", "sd15", "sdxl")
"""The kinds of `tiny_base_models`."""
LONGEST_FILES = (
    "stages/test_train.py", "flows/test_stopping.py", "operations/storage/test_remote_commands.py",
    "operations/test_server_commands.py", "synthesis/test_worker_pool.py",
    "stages/test_chain.py", "training/memory/test_memory_estimator.py",
    "doors/test_places.py", "flows/test_pyfunc_model.py", "training/test_architectures.py", "editor/test_edit_pipeline.py",
    "toyworld/test_reading.py", "stages/test_validation.py", "synthesis/test_sampler.py", "test_architecture.py",
    "flows/test_release.py", "doors/test_services.py", "promotion/test_failed_moves.py", "doors/test_fuzz_edits.py",
    "synthesis/methods/test_prompt_to_prompt.py", "promotion/test_alias_moves.py", "editor/test_task_adapter.py",
    "editor/test_sampling.py", "training/test_task_inversion.py", "synthesis/test_shard_maker.py",
    "toyworld/test_exact_edits.py", "data/test_dependencies.py", "synthesis/test_shard_maker_architectures.py",
    "toyworld/test_task_judge.py", "toyworld/test_base_model_training.py", "doors/test_params.py",
    "promotion/test_lineage.py", "test_tasks.py", "stages/test_train_checks.py", "stages/test_validation_of_imports.py",
    "promotion/test_postgres_moves.py", "editing/test_learn_task.py", "flows/test_process_guard.py",
    "toyworld/test_pair_judge.py", "bench/test_session_processes.py", "metrics/test_photo_benchmark.py",
    "editor/test_checkpoint.py", "promotion/test_killed_moves.py", "models/test_text_to_image.py", "editing/test_session.py",
    "training/batches/test_latent_cache_reuse.py", "synthesis/test_attention_features.py",
)  # fmt: skip
"""Those that take nine seconds or more, the longest first (`uv run pytest --durations=0`). The first three stand for all files
that share their server."""
SHARED_SERVERS = {
    "a Prefect server": (
        "flows/test_stopping", "flows/test_pipeline", "flows/test_deployment", "flows/test_outages", "flows/test_data_flows",
        "flows/test_mail_notification", "flows/test_stage_retries",
    ),
    "a fork server that has imported torch": (
        "stages/test_train", "stages/test_pairs", "stages/test_inversion", "stages/test_captions", "stages/test_router",
        "stages/test_failed_questions", "stages/test_train_processes", "training/test_loop", "training/test_distributed",
        "training/test_sharded", "training/test_process_counts", "training/test_accelerate_launch",
        "training/batches/test_encoding_processes",
    ),
    "moto": (
        "operations/storage/test_remote_commands", "operations/storage/test_remote_check",
        "operations/storage/test_remote_faults", "operations/storage/test_dvc_faults",
        "operations/storage/test_bucket_setup", "operations/storage/test_data_manifest",
        "operations/health/test_doctor_remote", "flows/test_push_access",
    ),
}  # fmt: skip
"""Groups of files that run in the same process, because their server takes ten seconds of a core or more to start."""
NO_PAUSES = {"MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR": "0", "MLFLOW_HTTP_REQUEST_BACKOFF_JITTER": "0"}
"""Requests to MLflow servers that fail are repeated at once."""
ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def pytest_configure(config: pytest.Config) -> None:
    """Set up what all processes share: compiled modules, one thread each, no account of the shell's Prefect server, and no
    garbage collection until tests run.

    Two hundred processes would compile what they import; and where every core has a process, more threads cost time.
    Examples of Hypothesis have no deadline, since on a busy machine any of them may take long.
    """
    keep_compiled_modules()
    set_env_defaults(KEEP_FREED_MEMORY | ONE_THREAD | NO_PAUSES)
    for name in ("PREFECT_API_AUTH_STRING", "PREFECT_API_KEY"):
        os.environ.pop(name, None)
    if hasattr(config, "workerinput") or not config.getoption("numprocesses", None):
        gc.disable()
        from hypothesis import settings

        settings.register_profile("no deadline", deadline=None)
        settings.load_profile("no deadline")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every later garbage collection, which would go through a million objects."""
    gc.freeze()
    gc.enable()


def pytest_unconfigure() -> None:
    """Have the end of the process collect everything: nanobind reports what is left."""
    gc.unfreeze()


class _Scheduler(LoadFileScheduling):  # type: ignore[misc]  # xdist has no types
    """A process takes one file after the other; the files that share a server go to the same process."""

    def _split_scope(self, nodeid: str) -> str:
        file: str = super()._split_scope(nodeid)
        name = file.removeprefix("tests/").removesuffix(".py")
        return next((server for server, names in SHARED_SERVERS.items() if name in names), file)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> _Scheduler:
    """The scheduler of `--dist=loadfile`, with that change."""
    return _Scheduler(config, log)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files come first, so that processes that take one file after the other end together."""
    rank = {path: number for number, path in enumerate(LONGEST_FILES)}
    items.sort(key=lambda item: rank.get(item.path.relative_to(FOLDER).as_posix(), len(rank)))


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread: for networks this small, more threads only cost time, a lot of it on a busy machine."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", params=KINDS)
def base_model(request: pytest.FixtureRequest) -> "TextToImageModel":
    """A base model of each kind. It predicts v at zero terminal SNR (toy) or eps (sd15, sdxl)."""
    from tests.tiny_base_models import build_base_model

    return build_base_model(request.param)


@pytest.fixture(scope="session")
def make_base_model() -> Callable[..., "TextToImageModel"]:
    """Builds a base model from a kind (toy, sd15, sdxl) and, optionally, another scheduler."""
    from tests.tiny_base_models import build_base_model

    return build_base_model


@pytest.fixture(scope="session")
def database_of(pytestconfig: pytest.Config, tmp_path_factory: pytest.TempPathFactory) -> DatabaseOf:
    """Gives an empty database of a package after its migrations, which take up to twenty seconds.

    Pytest's cache keeps it until the package has another version.
    """
    has_cache = pytestconfig.pluginmanager.hasplugin("cacheprovider") and pytestconfig.cache
    folder = pytestconfig.cache.mkdir("databases") if has_cache else tmp_path_factory.mktemp("databases")
    return partial(cached_database, folder)


@pytest.fixture(scope="session")
def empty_store(database_of: DatabaseOf) -> Path:
    """An MLflow database without runs."""

    def create(path: Path) -> None:
        from mlflow.tracking import MlflowClient

        MlflowClient(tracking_uri=f"sqlite:///{path}").search_experiments()

    return database_of("mlflow", create)


class ChatEndpoint:
    """An HTTP server with the OpenAI protocol. It gives prepared answers in order and records the requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []  # (status, JSON); the status 0 closes the connection without an answer
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []  # (path, headers, body)
        self.retry_after = "0"  # of status 429
        self.location = ""  # of status 3xx
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                endpoint.requests.append((self.path, dict(self.headers), body))
                code, answer = endpoint.answer(body)
                if code == 0:
                    self.close_connection = True
                    return
                payload = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(payload)))
                if code == 429:
                    self.send_header("Retry-After", endpoint.retry_after)
                if 300 <= code < 400:
                    self.send_header("Location", endpoint.location)
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
                pass

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        self.thread = Thread(target=self.http.serve_forever, args=(0.01,))
        self.thread.start()

    def answer(self, body: dict[str, Any]) -> tuple[int, Any]:
        """The (status, JSON) for a request; a test may replace this method."""
        return self.answers.pop(0)

    @staticmethod
    def chat_response(text: str | None) -> tuple[int, Any]:
        """A chat completion with this text, as (status, JSON)."""
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def endpoint() -> Iterator[ChatEndpoint]:
    server = ChatEndpoint()
    yield server
    server.close()
