"""One thread for everybody, a chat endpoint, and small random U-Nets of the real shapes under a base_model whose text is noise."""

import json
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from emuedit.models.text_to_image import TextCondition, TextToImageModel

SD = {"layers_per_block": 1, "block_out_channels": (8, 16), "norm_num_groups": 4, "sample_size": 8}
CROSS, PLAIN = "CrossAttnDownBlock2D", "DownBlock2D"
KINDS: dict[str, dict[str, Any]] = {
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
TOY = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}
LENGTH = 12


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small only wait for a second thread, and for long on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class WordTokenizer:
    """A token a letter for words of capitals, else a token a word; 0 starts and 1 ends."""

    model_max_length = LENGTH

    def __call__(self, text: str, add_special_tokens: bool = True) -> dict[str, list[int]]:
        ids = [2 + hash_of(part) for word in text.split() for part in (word if word.isupper() else [word])]
        return {"input_ids": [0, *ids, 1] if add_special_tokens else ids}


def hash_of(text: str) -> int:
    return sum(7**i * ord(c) for i, c in enumerate(text)) % 2**20


class NoiseText(TextToImageModel):
    """Every token has an embedding of its own, and leans on those before it."""

    def encode_text(self, captions: Sequence[str]) -> TextCondition:
        width, pooled = self.unet.config.cross_attention_dim, self.unet.config.addition_embed_type
        rows = [(self.tokenizer(one)["input_ids"] + [1] * LENGTH)[:LENGTH] for one in captions]
        noise = [[torch.randn(width, generator=torch.Generator().manual_seed(token)) for token in row] for row in rows]
        hidden = torch.stack([torch.stack(row) for row in noise])
        hidden = hidden + 0.3 * hidden.cumsum(1) / torch.arange(1, LENGTH + 1)[:, None]
        seeded = [torch.Generator().manual_seed(hash_of(one)) for one in captions]
        return TextCondition(hidden, torch.stack([torch.randn(20, generator=g) for g in seeded]) if pooled else None)


def make_painter(kind: str, scheduler: Any = None) -> TextToImageModel:
    from diffusers import AutoencoderKL, AutoencoderTiny, DDIMScheduler, UNet2DConditionModel

    torch.manual_seed(1)
    deep = kind == "sdxl"
    unet = UNet2DConditionModel(
        **SD, **KINDS[kind],
        down_block_types=(PLAIN, CROSS) if deep else (CROSS, PLAIN),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D") if deep else ("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()  # fmt: skip
    channels = KINDS[kind]["in_channels"]
    vae: Any = AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), latent_channels=channels,
        num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1),
    ) if kind == "toy" else AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2, up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16), norm_num_groups=4, latent_channels=channels, sample_size=16,
    )  # fmt: skip
    text = SimpleNamespace(config=SimpleNamespace(max_position_embeddings=LENGTH))
    own = DDIMScheduler(**SCHEDULE, **DDIM, **(TOY if kind == "toy" else {}))
    parts = {"unet": unet, "vae": vae.eval(), "scheduler": scheduler or own}
    parts |= {"text_encoder": text, "tokenizer": WordTokenizer(), "config": SimpleNamespace()}
    return NoiseText(SimpleNamespace(**parts, vae_scale_factor=2))


@pytest.fixture(scope="session", params=list(KINDS))
def base_model(request: pytest.FixtureRequest) -> TextToImageModel:
    """A base_model of each kind: predicts v with zero terminal SNR (toy), or eps (sd15, sdxl)."""
    return make_painter(request.param)


@pytest.fixture(scope="session")
def painted_by() -> Any:
    """Builds a base_model of a kind (toy, sd15, sdxl) with another scheduler."""
    return make_painter


class Endpoint:
    """A real HTTP server that speaks the OpenAI protocol: gives the prepared answers in order and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers: list[tuple[int, Any]] = []
        self.asked: list[tuple[str, dict[str, str], dict[str, Any]]] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, dict(self.headers), body))
                code, answer = outer.answer(body)
                if code == 0:  # hang up without a word
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
        """(status, JSON); a test may put another in its place."""
        return self.answers.pop(0)

    @staticmethod
    def said(text: str | None) -> tuple[int, Any]:
        """What a chat model says, as the protocol has it."""
        return 200, {"choices": [{"message": {"role": "assistant", "content": text}}]}

    def close(self) -> None:
        self.http.shutdown()
        self.thread.join()
        self.http.server_close()


@pytest.fixture
def endpoint() -> Iterator[Endpoint]:
    running = Endpoint()
    yield running
    running.close()
