import torch
from torch.testing import assert_close

from emuedit.core.similarity import cosine, direction


def test_direction_in_closed_form() -> None:
    e = torch.eye(3)
    got = direction(e[:1], e[1:2], e[:1], e[1:2])
    assert_close(got, torch.ones(1))
    assert_close(direction(e[:1], e[1:2], e[1:2], e[:1]), -torch.ones(1))
    assert_close(direction(e[:1], e[1:2], e[:1], e[2:]), torch.full((1,), 0.5))  # 60 degrees


def test_lengths_do_not_count() -> None:
    g = torch.Generator().manual_seed(0)
    a, b, c, d = (torch.randn(5, 8, generator=g) for _ in range(4))
    assert_close(direction(a, b, c, d), direction(3 * a, 0.1 * b, c, 7 * d))
    assert_close(cosine(a, 5 * a), torch.ones(5))


def test_doing_nothing_is_undefined_and_not_zero() -> None:
    g = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 8, generator=g), torch.randn(2, 8, generator=g)
    assert direction(a, a, a, b).isnan().all()  # the identity editor
    assert direction(a, b, a, a).isnan().all()  # equal captions
    assert direction(a, b, a, b).isfinite().all()
