"""Average the trained weights with those of the start: what the start knew is kept (WiSE-FT, arXiv 2109.01903)."""

import torch

from emuedit.data.name_list import first_names
from emuedit.training.trainable_editor import TrainableEditor


@torch.no_grad()
def average_with_start(trained: TrainableEditor, first: TrainableEditor, share: float, n_rows: int) -> None:
    """Replace the weights of `trained` by theta = (1 - share) theta_trained + share theta_start, in place.

    Wortsman et al. (arXiv 2109.01903), section 3, whose alpha is 1 - share. first: the untrained editor, whose first `n_rows`
    rows of the task embedding are those of the start; rows of new tasks stay as trained. Adapters must be merged. Raises
    ValueError if the editors differ in a weight.
    """
    after, before = dict(trained.named_parameters()), dict(first.named_parameters())
    differing = sorted(name for name in after.keys() | before.keys() if _shape(after, name) != _shape(before, name))
    if differing:
        raise ValueError(
            f"want two editors with equal weights, got different ones at {first_names(differing)}; load both from one start"
        )
    for name, weight in after.items():
        part = slice(n_rows) if weight is trained.net.table.v else ...
        weight[part].lerp_(before[name][part].to(weight.device, weight.dtype), share)


def _shape(weights: dict[str, torch.nn.Parameter], name: str) -> torch.Size | None:
    return weights[name].shape if name in weights else None
