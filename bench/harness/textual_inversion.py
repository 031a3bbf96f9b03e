"""Textual inversion (Gal et al., arXiv 2208.01618) on an editor, by the recipe of diffusers' textual_inversion.py.

One new token of the text encoder is trained; everything else is frozen, including the task embedding.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from emuedit.editor.sampling import EditSampler
from emuedit.models.text_to_image import TextCondition
from emuedit.runtime import rng
from emuedit.training.batches.batch import Batch
from emuedit.training.inversion_examples import select_examples
from emuedit.training.loss import UNWEIGHTED, draw_noise, loss_parts
from emuedit.training.task_inversion import InversionSettings

WORD = "newtask"
RATE = 5e-4
"""diffusers' example: 5.0e-4, times the batch size with --scale_lr."""


def learn(sampler: EditSampler, examples: Batch, v: Tensor, settings: InversionSettings) -> str:
    """Train the token on the examples, with the task embedding v [D_v]; returns its word for use in texts."""
    tokenizer, encoder = sampler.parts.pipeline.tokenizer, sampler.parts.pipeline.text_encoder
    tokenizer.add_tokens([WORD])
    encoder.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    row = tokenizer.convert_tokens_to_ids(WORD)
    table: Any = encoder.get_input_embeddings().weight
    with torch.no_grad():
        table[row] = table[:row].mean(0)
    table.requires_grad_(True)
    frozen = table.detach().clone()
    optimizer = torch.optim.AdamW([table], lr=RATE * settings.batch_size, weight_decay=1e-2)
    n_timesteps = sampler.parts.scheduler.config.num_train_timesteps
    for step in range(settings.steps):
        chosen = torch.from_numpy(rng("textual inversion", settings.seed, step).integers(len(examples), size=settings.batch_size))
        batch = select_examples(examples, chosen)
        text = sampler.parts.encode_text_with_grad([f"{WORD} {instruction}" for instruction in batch.instructions])
        batch = Batch(**(vars(batch) | {"text": TextCondition(text.hidden, text.pooled)}))
        draws = draw_noise(
            tuple(batch.target.shape), n_timesteps, settings.dropout, 1.0, "textual inversion", settings.seed, step
        )
        rows = v.expand(len(batch), -1)
        loss = loss_parts(sampler.net, sampler.parts.scheduler, batch, draws, rows, UNWEIGHTED).total(UNWEIGHTED).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        with torch.no_grad():  # as in the recipe: restore all other tokens
            table[:row] = frozen[:row]
    table.requires_grad_(False)
    return WORD
