"""Fixtures of all tests: one torch thread, tiny base models with a fake text encoder, and a fake chat endpoint."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models.text_to_image import TextCondition, TextToImageModel
from emuedit.processes import keep_compiled_modules

UNET: dict[str, Any] = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
UNET_BY_KIND: dict[str, dict[str, Any]] = {
    "toy": {"cross_attention_dim": 16, "attention_head_dim": 2, "in_channels": 6, "out_channels": 6},
    "sd15": {"cross_attention_dim": 16, "attention_head_dim": 2, "in_channels": 4, "out_channels": 4},
    "sdxl": {
        "cross_attention_dim": 32, "attention_head_dim": (2, 4), "in_channels": 4, "out_channels": 4,
        "use_linear_projection": True, "addition_embed_type": "text_time", "addition_time_embed_dim": 8,
        "projection_class_embeddings_input_dim": 6 * 8 + 20, "transformer_layers_per_block": (1, 2),
    },
}  # fmt: skip
SCHEDULE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
DDIM = {"clip_sample": False, "timestep_spacing": "trailing"}
ZERO_SNR = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
LENGTH = 12


def pytest_configure() -> None:
    """Keep compiled modules: two hundred processes would compile what they import."""
    keep_compiled_modules()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files with the most slow tests come first, so that processes that take one file after the other end together."""
    n_slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
    items.sort(key=lambda item: -n_slow[item.path])


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Run torch on one thread: for networks this small, more threads only cost time, a lot of it on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WordTokenizer:
    """One token per letter for words in capitals, else one per word. Token 0 is the start, token 1 the end."""

    model_max_length = LENGTH

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [2 + hash_text(part) for word in text.split() for part in (word if word.isupper() else [word])]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def hash_text(text: str) -> int:
    return sum(7**i * ord(c) for i, c in enumerate(text)) % 2**20


class NoiseTextModel(TextToImageModel):
    """A base model whose embedding of a token is seeded noise, plus a part of the mean over the tokens so far."""

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        width, pooled = self.unet.config.cross_attention_dim, self.unet.config.addition_embed_type
        token_rows = [(self.tokenizer(caption)["input_ids"] + [1] * LENGTH)[:LENGTH] for caption in captions]
        noise = [[torch.randn(width, generator=torch.Generator().manual_seed(token)) for token in row] for row in token_rows]
        hidden = torch.stack([torch.stack(row) for row in noise])  # [B, L, D]
        hidden = hidden + 0.3 * hidden.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
        generators = [torch.Generator().manual_seed(hash_text(caption)) for caption in captions]
        return TextCondition(hidden, torch.stack([torch.randn(20, generator=g) for g in generators]) if pooled else None)


def build_base_model(kind: str, scheduler: Any = None) -> TextToImageModel:
    """A random base model of a kind of UNET_BY_KIND; `scheduler` None is DDIM, for 'toy' with zero terminal SNR."""
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    attention_in_deep_blocks = kind == "sdxl"
    unet = UNet2DConditionModel(
        **UNET, **UNET_BY_KIND[kind],
        down_block_types=(PLAIN, CROSS) if attention_in_deep_blocks else (CROSS, PLAIN),
        up_block_types=(
            ("CrossAttnUpBlock2D", "UpBlock2D") if attention_in_deep_blocks else ("UpBlock2D", "CrossAttnUpBlock2D")
        ),
    ).eval()  # fmt: skip
    channels = UNET_BY_KIND[kind]["in_channels"]
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=channels,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ) if kind == "toy" else AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels, sample_size=16,
    )  # fmt: skip
    text_encoder = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LENGTH))
    ddim = DDIMScheduler(**SCHEDULE, **DDIM, **(ZERO_SNR if kind == "toy" else {}))
    parts = {"unet": unet, "vae": vae.eval(), "scheduler": scheduler or ddim}
    parts |= {"text_encoder": text_encoder, "tokenizer": WordTokenizer(), "config": SimpleNamespace()}
    return NoiseTextModel(SimpleNamespace(**parts, vae_scale_factor=2))


@pytest.fixture(scope="session", params=list(UNET_BY_KIND))
def base_model(request: pytest.FixtureRequest) -> TextToImageModel:
    """A base model of each kind. It predicts v at zero terminal SNR (toy) or eps (sd15, sdxl)."""
    return build_base_model(request.param)


@pytest.fixture(scope="session")
def make_base_model() -> Callable[..., TextToImageModel]:
    """Builds a base model from a kind (toy, sd15, sdxl) and, optionally, another scheduler."""
    return build_base_model


class ChatEndpoint:
    """An HTTP server with the OpenAI protocol. It gives prepared answers in order and records the requests."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []  # (status, JSON); the status 0 closes the connection without an answer
        self.requests: list[tuple[str, dict[str, str], dict[str, Any]]] = []  # (path, headers, body)
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
                    self.send_header("Retry-After", "0")
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
