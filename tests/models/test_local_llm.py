from collections.abc import Callable
from typing import Any

import pytest
import torch

from emuedit.models import constrained_decoding, local_llm
from emuedit.models.language_model import LLM, LLMError
from emuedit.models.llm_loading import load_llm

MESSAGES = [{"role": "system", "content": "a small"}, {"role": "user", "content": "red circle"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }} {{ m['content'] }} {% endfor %}{% if add_generation_prompt %}a {% endif %}"


@pytest.fixture(scope="module")
def chat_folder(clip_tokenizer: Callable[..., Any], tmp_path_factory: Any) -> str:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    tokenizer = clip_tokenizer(64)
    tokenizer.chat_template = TEMPLATE
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=64, bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    folder = str(tmp_path_factory.mktemp("llama"))
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.slow
def test_the_answer_depends_on_the_seed(chat_folder: str) -> None:
    chat = load_llm(chat_folder)
    assert isinstance(chat, LLM)
    assert isinstance(chat, local_llm.LocalLLM)
    chat.max_new_tokens = 8
    state = torch.get_rng_state()
    first = chat.write(MESSAGES, seed=1)
    assert first
    assert torch.equal(torch.get_rng_state(), state)
    assert chat.write(MESSAGES, seed=1) == first
    assert len({chat.write(MESSAGES, seed=seed) for seed in range(4)}) > 1
    greedy = chat.write(MESSAGES, seed=1, temperature=0)
    assert chat.write(MESSAGES, seed=2, temperature=0) == greedy


def test_sampling_is_left_to_the_model_where_nothing_is_said(chat_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = local_llm.load(chat_folder)
    sampling: dict[str, Any] = {}

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        sampling.update(kwargs)
        return input_ids

    monkeypatch.setattr(chat.model, "generate", generate)
    chat.write(MESSAGES, seed=0, temperature=None, top_p=0.5)
    assert sampling["do_sample"]
    assert sampling["top_p"] == 0.5
    assert "temperature" not in sampling


def test_the_prompt_is_the_chat_template(chat_folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    chat = local_llm.load(chat_folder)
    prompts: list[str] = []

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        prompts.append(chat.tokenizer.decode(input_ids[0], skip_special_tokens=True))
        return torch.cat([input_ids, torch.tensor([chat.tokenizer("blue stars").input_ids])], dim=1)

    monkeypatch.setattr(chat.model, "generate", generate)
    assert chat.write(MESSAGES, seed=0) == "blue stars"
    assert prompts == ["system a small user red circle a"]


NO_SYSTEM_ROLE = (
    "{% if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m['role'] == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}{% endfor %}" + TEMPLATE
)


def test_the_system_text_begins_the_users_message_where_the_template_has_no_system_role(
    chat_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    chat = local_llm.load(chat_folder)
    chat.tokenizer.chat_template = NO_SYSTEM_ROLE
    prompts: list[str] = []

    def generate(input_ids: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        prompts.append(chat.tokenizer.decode(input_ids[0], skip_special_tokens=True))
        return input_ids

    monkeypatch.setattr(chat.model, "generate", generate)
    for seed in range(2):
        chat.write(MESSAGES, seed=seed)
    assert prompts == ["user a small red circle a"] * 2
    with pytest.raises(LLMError, match=r"want a chat template .*roles must alternate; use another chat model"):
        chat.write([*MESSAGES, MESSAGES[1]], seed=0)


def test_a_model_that_also_reads_images_has_its_vocabulary_in_the_text_config(
    chat_folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from transformers import Gemma3Config

    chat = local_llm.load(chat_folder)
    text_config = {"vocab_size": chat.model.config.vocab_size, "hidden_size": 16}
    monkeypatch.setattr(chat.model, "config", Gemma3Config(text_config=text_config))
    sizes: list[int] = []
    monkeypatch.setattr(
        constrained_decoding, "build_constraint_tokenizer", lambda tokenizer, n_vocab, end_tokens: sizes.append(n_vocab)
    )
    _ = chat._constraint_tokenizer
    assert sizes == [text_config["vocab_size"]]


def test_a_model_without_a_chat_template_is_an_error(chat_folder: str) -> None:
    chat = local_llm.load(chat_folder)
    chat.tokenizer.chat_template = None
    with pytest.raises(ValueError, match="chat_template"):
        local_llm.LocalLLM(chat.model, chat.tokenizer)
