"""Baselines of the task predictor for `bench/router.py`."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from emuedit.models import clip
from emuedit.predictor.task_predictor import NO_EDIT
from harness import command

LabelledText = tuple[str, str]
"""A text and its task, or `NO_EDIT`."""
INVERSE_PENALTY = 30.0
"""C of the logistic regressions: the best of 3, 30 and 300 on held-out templates, which favours them."""
KEYWORDS = {
    "segmap": r"segmentation map|semantic|class|segments",
    "depth": r"depth|distance|how far",
    "normal": r"normal|surface",
    "pose": r"pose|skeleton|joints|stick figure",
    "segment": r"segment|mask|cut out|pixels|select|isolate",
    "detect": r"detect|box|find|locate|where|frame|rectangle",
    "sketch": r"outline|lines?\b|edges",
    "text": r"letter|text|write|card",
    "background": r"background|behind|scene on|backdrop",
    "color": r"bright|dark|contrast|saturat|hue|blur|sharp|colours",
    "global": r"rain|snow|fog|night|sunset|weather|day",
    "style": r"style|photo|cartoon|pixel|watercolo|sketch|painting|drawing",
    "texture": r"strip|dot|check|texture|pattern|plain",
    "remove": r"remove|delete|erase|get rid|take .* away|without",
    "add": r"\badd|put|place|insert|draw an?|there be",
    "local": r"make|change|turn|replace|swap|paint|colou?r",
}
"""Task -> pattern; the first match decides, and a text without a match is refused."""


@dataclass(frozen=True)
class Guess:
    """The prediction of a system for a text."""

    task: str
    probability: float | None
    """Probability in [0, 1]; None for a system without probabilities."""
    refused: bool


System = Callable[[Sequence[str]], list[Guess]]


def fit(texts: Sequence[LabelledText]) -> dict[str, System]:
    """Name -> system, fitted to texts with tasks and texts to refuse."""
    return {
        "tf_idf_words": logistic_regression(TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True), texts),
        "tf_idf_letters": logistic_regression(TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True), texts),
        "nearest_neighbour": nearest_neighbour(texts),
        "keywords": keywords,
    }


def logistic_regression(features: TfidfVectorizer, texts: Sequence[LabelledText]) -> System:
    """Refuses if `NO_EDIT` is the most probable class; the guess is then the most probable task.

    The probability of other guesses is conditional on an instruction, like that of the task predictor.
    """
    classifier = make_pipeline(features, LogisticRegression(C=INVERSE_PENALTY, max_iter=3000))
    classifier.fit([text for text, _ in texts], [label for _, label in texts])
    names = list(classifier.classes_)
    tasks = [k for k, name in enumerate(names) if name != NO_EDIT]

    def guess(queries: Sequence[str]) -> list[Guess]:
        guesses = []
        for row in classifier.predict_proba(list(queries)):
            best = max(tasks, key=row.__getitem__)
            refused = names[int(row.argmax())] == NO_EDIT
            guesses.append(Guess(names[best], float(row[best] / (1.0 if refused else row[tasks].sum())), refused))
        return guesses

    return guess


def nearest_neighbour(texts: Sequence[LabelledText]) -> System:
    """The label of the most similar text by the cosine of CLIP's text embeddings; without probabilities."""
    scorer = clip.load(str(command.ROOT / "toyworld/weights/clip"))
    known_texts = [text for text, _ in texts]
    embeddings = embed(scorer, known_texts)
    is_task = torch.tensor([label != NO_EDIT for _, label in texts])

    def guess(queries: Sequence[str]) -> list[Guess]:
        similarity = embed(scorer, queries) @ embeddings.T
        nearest, nearest_task = similarity.argmax(1), similarity.masked_fill(~is_task, -2.0).argmax(1)
        rows = zip(nearest.tolist(), nearest_task.tolist(), strict=True)
        return [Guess(texts[task][1], None, texts[any_][1] == NO_EDIT) for any_, task in rows]

    return guess


def embed(scorer: clip.ClipScorer, texts: Sequence[str], batch: int = 256) -> torch.Tensor:
    """Unit vectors float32 [N, D]."""
    parts = [scorer.embed_texts(list(texts[i : i + batch])) for i in range(0, len(texts), batch)]
    return torch.cat(parts)


def keywords(queries: Sequence[str]) -> list[Guess]:
    """The first matching pattern of `KEYWORDS`."""
    guesses = []
    for text in queries:
        task = next((name for name, pattern in KEYWORDS.items() if re.search(pattern, text.casefold())), None)
        guesses.append(Guess(task or "local", None, task is None))
    return guesses
