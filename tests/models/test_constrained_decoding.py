"""A chat model with random weights, constrained to the JSON Schemas of the prompts' answers."""

import json
from typing import Any

import jsonschema
import pytest
import torch

from emuedit.models.constrained_decoding import SchemaConstraint, build_constraint_tokenizer
from emuedit.models.local_llm import LocalLLM
from emuedit.prompts.answer_schema import ANSWER_KEYS, AnswerError, Question, answer_schema, parse_answer

MESSAGES = [{"role": "user", "content": "a dog on a sofa"}]
TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}"
FILTERS = ("blur", "darken")


@pytest.fixture(scope="module")
def chat() -> LocalLLM:
    """Byte-level tokens as in GPT-2 and Llama 3, and an output layer with more rows than tokens, as in real models."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    byte_pairs = Tokenizer(models.BPE())
    byte_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    byte_pairs.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet, show_progress=False)
    byte_pairs.train_from_iterator([json.dumps(dict.fromkeys(ANSWER_KEYS, "remove the dog")), *FILTERS], trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=byte_pairs, bos_token="<s>", eos_token="</s>", chat_template=TEMPLATE)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 20, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=1,
    )  # fmt: skip
    return LocalLLM(LlamaForCausalLM(config).eval(), tokenizer, max_new_tokens=1400)


def short_schema(task: str, choices: tuple[str, ...] = ()) -> dict[str, Any]:
    """The schema with texts of at most 9 characters, because a random model does not end a sentence by itself."""
    return json.loads(json.dumps(answer_schema(task, choices)).replace("{0,299}", "{0,8}"))


@pytest.mark.slow
@pytest.mark.parametrize(("task", "choices"), [("remove", ()), ("color", FILTERS), ("background", ())])
def test_a_random_model_gives_valid_answers_only_under_the_constraint(
    chat: LocalLLM, task: str, choices: tuple[str, ...]
) -> None:
    question = Question(task, "a dog on a sofa")
    for seed in range(2):
        text = chat.write(MESSAGES, seed=seed, temperature=1.0, top_p=1.0, schema=short_schema(task, choices))
        jsonschema.validate(json.loads(text), answer_schema(task, choices))
        assert list(json.loads(text)) == list(ANSWER_KEYS)
        parse_answer(text, question, max_words=30, choices=choices)
        assert chat.write(MESSAGES, seed=seed, temperature=1.0, top_p=1.0, schema=short_schema(task, choices)) == text
    unconstrained = LocalLLM(chat.model, chat.tokenizer, max_new_tokens=60)
    with pytest.raises(AnswerError):
        parse_answer(unconstrained.write(MESSAGES, seed=0, temperature=1.0, top_p=1.0), question, max_words=30, choices=choices)


@pytest.mark.slow
def test_the_global_random_state_is_restored_and_greedy_ignores_the_seed(chat: LocalLLM) -> None:
    state = torch.get_rng_state()
    answers = {chat.write(MESSAGES, seed=seed, temperature=0, schema=short_schema("color", FILTERS)) for seed in range(2)}
    assert len(answers) == 1
    assert json.loads(answers.pop())["edited_object"] in FILTERS
    assert torch.equal(torch.get_rng_state(), state)


def test_only_tokens_that_the_schema_allows_keep_their_scores(chat: LocalLLM) -> None:
    constraint_tokenizer = build_constraint_tokenizer(chat.tokenizer, chat.model.config.vocab_size, 1)
    constraint = SchemaConstraint(answer_schema("remove"), constraint_tokenizer, prompt_tokens=1)
    prompt = torch.tensor([[7]])
    scores = constraint(prompt, torch.zeros(1, chat.model.config.vocab_size))
    allowed = [chat.tokenizer.decode([i]) for i in scores[0].isfinite().nonzero().ravel().tolist()]
    assert allowed
    assert all('{"instruction": "'.startswith(text) for text in allowed)
    with pytest.raises(ValueError, match="want tokens that the schema allows"):
        constraint(torch.tensor([[7, chat.tokenizer.convert_tokens_to_ids("z")]]), scores)
    with pytest.raises(ValueError, match="want a JSON Schema that llguidance supports"):
        SchemaConstraint({"type": "strange"}, constraint_tokenizer, prompt_tokens=0)
