"""A chat model with random weights, held to the answers of the agents."""

import json
from typing import Any

import jsonschema
import pytest
import torch

from emuedit.models.constrained_decoding import Constraint, tokens_of
from emuedit.models.language_model import LocalLLM
from emuedit.prompts.answer_schema import KEYS, AnswerError, Question, read, schema

MESSAGES = [{"role": "user", "content": "a dog on a sofa"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FILTERS = ("blur", "darken")


@pytest.fixture(scope="module")
def chat() -> LocalLLM:
    """Byte-level pieces as in GPT-2 and Llama 3, a head with more rows than there are tokens, as real ones have."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    pieces = Tokenizer(models.BPE())
    pieces.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    pieces.train_from_iterator([json.dumps(dict.fromkeys(KEYS, "remove the dog")), *FILTERS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=pieces, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LocalLLM(LlamaForCausalLM(config).eval(), tokenizer, max_new_tokens=1400)


def short(task: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema with texts of nine letters at most: a random model ends no sentence by itself."""
    return json.loads(json.dumps(schema(task, choices)).replace("{0,299}", "{0,8}"))


@pytest.mark.parametrize(("task", "choices"), [("remove", ()), ("color", FILTERS), ("background", ())])
def test_a_random_model_gives_good_answers_only_when_held(chat: LocalLLM, task: str, choices: tuple[str, ...]) -> None:
    asked = Question(task, "a dog on a sofa")
    for seed in range(2):
        text = chat.write(MESSAGES, seed=seed, temperature=1.0, top_p=1.0, schema=short(task, choices))
        jsonschema.validate(json.loads(text), schema(task, choices))
        assert list(json.loads(text)) == list(KEYS)
        read(text, asked, max_words=30, choices=choices)
        assert chat.write(MESSAGES, seed=seed, temperature=1.0, top_p=1.0, schema=short(task, choices)) == text
    chat_free = LocalLLM(chat.model, chat.tokenizer, max_new_tokens=60)
    with pytest.raises(AnswerError):
        read(chat_free.write(MESSAGES, seed=0, temperature=1.0, top_p=1.0), asked, max_words=30, choices=choices)


def test_the_global_state_stays_and_greedy_is_greedy(chat: LocalLLM) -> None:
    state = torch.get_rng_state()
    greedy = {chat.write(MESSAGES, seed=seed, temperature=0, schema=short("color", FILTERS)) for seed in range(2)}
    assert len(greedy) == 1
    assert json.loads(greedy.pop())["edited_object"] in FILTERS
    assert torch.equal(torch.get_rng_state(), state)


def test_what_is_left_of_the_vocabulary(chat: LocalLLM) -> None:
    tokens = tokens_of(chat.tokenizer, chat.model.config.vocab_size, 1)
    held = Constraint(schema("remove"), tokens, prompt_tokens=1)
    prompt = torch.tensor([[7]])
    scores = held(prompt, torch.zeros(1, chat.model.config.vocab_size))
    left = [chat.tokenizer.decode([i]) for i in scores[0].isfinite().nonzero().ravel().tolist()]
    assert left
    assert all('{"instruction": "'.startswith(text) for text in left)
    with pytest.raises(ValueError, match="want tokens that the schema allows"):
        held(torch.tensor([[7, chat.tokenizer.convert_tokens_to_ids("z")]]), scores)
    with pytest.raises(ValueError, match="want a JSON Schema that llguidance knows"):
        Constraint({"type": "strange"}, tokens, prompt_tokens=0)
