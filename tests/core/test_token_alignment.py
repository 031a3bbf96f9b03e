import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.testing import assert_close

from emuedit.core import token_alignment
from emuedit.core.token_alignment import TokenMapping

WORDS = st.lists(st.sampled_from("abcd"), max_size=7)
LENGTHS = st.lists(st.tuples(st.integers(1, 3), st.integers(1, 3)), max_size=5)


def combine(mapping: TokenMapping, P_s: torch.Tensor, P_t: torch.Tensor) -> torch.Tensor:
    """The new maps of the target, from the maps [..., L] of both captions."""
    return P_s @ mapping.A + P_t * mapping.target_weight


@pytest.mark.slow
@given(WORDS, WORDS)
def test_alignment_is_a_longest_common_subsequence(source: list[str], target: list[str]) -> None:
    partner = token_alignment.align_tokens(source, target)
    aligned = [(i, j) for j, i in enumerate(partner) if i is not None]
    assert all(source[i] == target[j] for i, j in aligned)
    assert [i for i, _ in aligned] == sorted({i for i, _ in aligned})
    longest = [[0] * (len(target) + 1) for _ in range(len(source) + 1)]
    for i, a in enumerate(source):
        for j, b in enumerate(target):
            longest[i + 1][j + 1] = longest[i][j] + 1 if a == b else max(longest[i][j + 1], longest[i + 1][j])
    assert len(aligned) == longest[-1][-1]


def test_the_example_of_an_added_word_of_the_papers_code() -> None:
    source, target = ["<s>", "a", "cat", "sits", "</s>"], ["<s>", "a", "fat", "cat", "sits", "</s>"]
    mapping = token_alignment.refine(source, target, 8)
    P_s, P_t = torch.arange(8.0)[None], 10 + torch.arange(8.0)[None]
    assert combine(mapping, P_s, P_t).tolist() == [[0, 1, 12, 2, 3, 4, 6, 7]]


def test_padding_of_a_shorter_caption_gets_no_maps_of_the_words_that_the_source_has_there() -> None:
    source, target = ["<s>", "a", "big", "fat", "cat", "sits", "</s>"], ["<s>", "a", "cat", "sits", "</s>"]
    mapping = token_alignment.refine(source, target, 9)
    P_s, P_t = torch.arange(9.0)[None], 10 + torch.arange(9.0)[None]
    assert combine(mapping, P_s, P_t).tolist() == [[0, 1, 4, 5, 6, 15, 16, 7, 8]]


@pytest.mark.slow
@given(WORDS, WORDS)
def test_every_token_has_its_own_map_or_that_of_one_equal_token_which_is_used_once(source: list[str], target: list[str]) -> None:
    source, target = ["<s>", *source, "</s>"], ["<s>", *target, "</s>"]
    mapping = token_alignment.refine(source, target, 12)
    assert_close(mapping.A.sum(0) + mapping.target_weight, torch.ones(12))
    assert mapping.A.sum(1).max() <= 1
    padded = [[*caption, *["pad"] * (12 - len(caption))] for caption in (source, target)]
    for i, j in mapping.A.nonzero().tolist():
        assert padded[0][i] == padded[1][j]
        assert i == j or padded[0][i] != "pad"
    end = mapping.A[:, len(target) - 1].argmax()
    assert padded[0][end] == "</s>"


def test_a_word_swap_of_equal_length_is_the_identity() -> None:
    mapping = token_alignment.replace([1, 2, 1], [1, 2, 1], 9)
    assert torch.equal(mapping.A, torch.eye(9))
    assert not mapping.target_weight.any()


def test_a_swap_of_one_token_for_two_spreads_its_map_and_shifts_the_rest() -> None:
    P_s = torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.06, 0.03, 0.01]])  # <s> a cat sits </s> pad pad
    new_map = combine(token_alignment.replace([1, 1, 1], [1, 2, 1], 7), P_s, torch.full((1, 7), 9.0))
    assert_close(new_map, torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.2, 0.06, 0.04]]))
    shorter = token_alignment.replace([1, 2, 1], [1, 1, 1], 7)
    reverse = combine(shorter, torch.tensor([[0.1, 0.2, 0.2, 0.2, 0.2, 0.06, 0.04]]), P_s)
    assert_close(reverse, torch.tensor([[0.1, 0.2, 0.4, 0.2, 0.06, 0.04, 0.0]]))


@pytest.mark.slow
@given(LENGTHS)
def test_a_swap_passes_on_all_of_every_map(words: list[tuple[int, int]]) -> None:
    mapping = token_alignment.replace([a for a, _ in words], [b for _, b in words], 18)
    assert_close(mapping.A.sum(1), torch.ones(18))


@pytest.mark.slow
@given(WORDS)
def test_equal_captions_keep_the_sources_maps_bit_for_bit(words: list[str]) -> None:
    P_s, P_t = torch.rand(2, 3, 9, generator=torch.Generator().manual_seed(len(words)))
    mappings = token_alignment.refine(words, words, 9), token_alignment.replace([1] * len(words), [1] * len(words), 9)
    assert all(torch.equal(combine(mapping, P_s, P_t), P_s) for mapping in mappings)


def test_changed_words_and_spans() -> None:
    source = ["A", "red", "star,", "a", "blue", "ring", "on", "grass"]
    assert token_alignment.changed_words(source, ["a", "red", "star", "and", "a", "blue", "ring", "on", "sand"]) == ([7], [3, 8])
    assert token_alignment.changed_words(source, source) == ([], [])
    assert token_alignment.spans([1, 2, 1]) == [range(1, 2), range(2, 4), range(4, 5)]


@pytest.mark.parametrize(
    ("source", "target", "removed", "added"),
    [
        ("a star in the sky in the rain", "a star on a beach in the rain", [2, 3, 4], [2, 3, 4]),  # repeated words after a swap
        ("a dog and a cat", "a cat and a dog", [1, 4], [1, 4]),
        ("a brown dog on grass", "a dog on green grass", [1], [3]),
        ("the old man", "man", [0, 1], []),
    ],
)
def test_words_swapped_in_place_have_equal_positions(source: str, target: str, removed: list[int], added: list[int]) -> None:
    assert token_alignment.changed_words(source.split(), target.split()) == (removed, added)


def test_captions_that_cannot_be_mapped_are_an_error() -> None:
    with pytest.raises(ValueError, match="got 1 and 2; use refine"):
        token_alignment.replace([1], [1, 1], 9)
    with pytest.raises(ValueError, match="at most 4 tokens, including start and end, got 5"):
        token_alignment.replace([1, 2], [1, 1], 4)
    with pytest.raises(ValueError, match="at most 2 tokens"):
        token_alignment.refine("abc", "a", 2)
