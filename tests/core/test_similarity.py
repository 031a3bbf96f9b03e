import torch
from torch.testing import assert_close

from emuedit.core.similarity import cosine, directional_similarity


def test_directional_similarity_in_closed_form() -> None:
    e = torch.eye(3)
    assert_close(directional_similarity(e[:1], e[1:2], e[:1], e[1:2]), torch.ones(1))
    assert_close(directional_similarity(e[:1], e[1:2], e[1:2], e[:1]), -torch.ones(1))
    assert_close(directional_similarity(e[:1], e[1:2], e[:1], e[2:]), torch.full((1,), 0.5))  # 60 degrees


def test_the_lengths_of_vectors_do_not_matter() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(5, 8, generator=generator) for _ in range(4))
    assert_close(directional_similarity(a, b, c, d), directional_similarity(3 * a, 0.1 * b, c, 7 * d))
    assert_close(cosine(a, 5 * a), torch.ones(5))


def test_no_change_is_undefined_and_not_zero() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, generator=generator), torch.randn(2, 8, generator=generator)
    assert directional_similarity(a, a, a, b).isnan().all()  # an editor that does nothing
    assert directional_similarity(a, b, a, a).isnan().all()  # equal captions
    assert directional_similarity(a, b, a, b).isfinite().all()


def test_a_change_within_the_rounding_of_the_embedder_has_no_direction() -> None:
    a, b, noise = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    almost = a + 1e-6 * noise
    assert directional_similarity(a, almost, a, b).isnan().all()
    assert directional_similarity(a, b, a, almost).isnan().all()
