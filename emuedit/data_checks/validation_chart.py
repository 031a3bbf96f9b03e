"""The chart of a validation: kept and rejected pairs by task, text lengths, and drift from the reference."""

from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image, ImageDraw

from emuedit.data.contact_sheet import BACKGROUND_COLOR, BAD_COLOR, GOOD_COLOR, ROW_NAME_COLOR, TEXT_COLOR
from emuedit.data.fonts import Font, drawable, load_font
from emuedit.data_checks.check_bounds import CheckResult
from emuedit.data_checks.reference_profile import Reference

TaskRow = tuple[str, int, int]
Histogram = tuple[str, Mapping[str, int], Mapping[str, int] | None]
WIDTH_PX, PAD_PX, ROW_PX, LABEL_PX, NUMBER_PX = 920, 24, 22, 190, 130
_HISTOGRAM_PX, _MAX_BINS = 110, 60
_WARN_COLOR, _REFERENCE_COLOR = (222, 154, 32), (66, 104, 176)
_REJECTED_COLOR, _GRID_COLOR = (222, 190, 186), (226, 226, 224)


def draw(
    tasks: Sequence[TaskRow], histograms: Sequence[Histogram], drift: Sequence[CheckResult], reference: Reference
) -> Image.Image:
    """Draw three stacked panels, WIDTH_PX wide. `histograms`: (name, words -> texts, the reference's words -> texts)."""
    n_drift = 0 if reference.profile is None else len(drift) + 2
    heights = [(len(tasks) + 2) * ROW_PX, len(histograms) * (_HISTOGRAM_PX + 3 * ROW_PX), (n_drift + 1) * ROW_PX]
    image = Image.new("RGB", (WIDTH_PX, 2 * PAD_PX + sum(heights)), BACKGROUND_COLOR)
    canvas = ImageDraw.Draw(image)
    y = PAD_PX
    _draw_tasks(canvas, tasks, y)
    y += heights[0]
    for histogram in histograms:
        _draw_histogram(canvas, histogram, y)
        y += _HISTOGRAM_PX + 3 * ROW_PX
    _draw_drift(canvas, drift, reference, y)
    return image


def _font(size: int = 13) -> Font:
    return load_font(size)


def _title(canvas: ImageDraw.ImageDraw, y: int, title: str, legend: Sequence[tuple[str, tuple[int, int, int]]] = ()) -> None:
    title = drawable(title)
    canvas.text((PAD_PX, y), title, TEXT_COLOR, _font(15))
    x = PAD_PX + canvas.textlength(title, _font(15)) + 24
    for name, color in legend:
        canvas.rectangle((x, y + 5, x + 10, y + 15), fill=color)
        canvas.text((x + 16, y + 2), name, ROW_NAME_COLOR, _font())
        x += 40 + canvas.textlength(name, _font())


def _draw_tasks(canvas: ImageDraw.ImageDraw, tasks: Sequence[TaskRow], y: int) -> None:
    _title(canvas, y, "Pairs by task", [("kept", GOOD_COLOR), ("rejected", _REJECTED_COLOR)])
    left, right = PAD_PX + LABEL_PX, WIDTH_PX - PAD_PX - NUMBER_PX
    scale = (right - left) / max(1, *(kept + rejected for _, kept, rejected in tasks))
    for number, (task, kept, rejected) in enumerate(tasks):
        top = y + (number + 1) * ROW_PX + 4
        canvas.text((PAD_PX, top), task, TEXT_COLOR, _font())
        middle = left + kept * scale
        canvas.rectangle((left, top, middle, top + ROW_PX - 7), fill=GOOD_COLOR if kept else BAD_COLOR)
        if rejected:
            canvas.rectangle((middle, top, middle + rejected * scale, top + ROW_PX - 7), fill=_REJECTED_COLOR)
        canvas.text((middle + rejected * scale + 8, top), f"{kept} of {kept + rejected}", ROW_NAME_COLOR, _font())


def _draw_histogram(canvas: ImageDraw.ImageDraw, histogram: Histogram, y: int) -> None:
    name, counts, former = histogram
    legend = [("kept pairs", GOOD_COLOR), ("reference", _REFERENCE_COLOR)] if former else []
    _title(canvas, y, f"{name} by number of words", legend)
    longest = max((int(n) for n in [*counts, *(former or ())]), default=1)
    n_per_bin = longest // _MAX_BINS + 1
    bins, former_bins = (_bin(c, n_per_bin, longest) for c in (counts, former or {}))
    left, right, bottom = PAD_PX, WIDTH_PX - PAD_PX, y + ROW_PX + 6 + _HISTOGRAM_PX
    width = (right - left) / max(1, len(bins))
    highest = max(*bins, *former_bins, 1e-9)
    for number, (share, former_share) in enumerate(zip(bins, former_bins, strict=True)):
        x = left + number * width
        if share:
            canvas.rectangle((x + 1, bottom - share / highest * _HISTOGRAM_PX, x + width - 2, bottom), fill=GOOD_COLOR)
        if former:
            top = bottom - former_share / highest * _HISTOGRAM_PX
            canvas.line((x, top, x + width, top), fill=_REFERENCE_COLOR, width=2)
    canvas.line((left, bottom, right, bottom), fill=ROW_NAME_COLOR)
    for number in range(0, len(bins), max(1, len(bins) // 10)):
        canvas.text((left + (number + 0.5) * width, bottom + 4), str(number * n_per_bin), ROW_NAME_COLOR, _font(), anchor="ma")


def _bin(counts: Mapping[str, int], n_per_bin: int, longest: int) -> list[float]:
    """Shares of texts, by length; bins of `n_per_bin` words from 0."""
    shares = [0.0] * (longest // n_per_bin + 1)
    for length, count in counts.items():
        shares[int(length) // n_per_bin] += count / max(1, sum(counts.values()))
    return shares


def _draw_drift(canvas: ImageDraw.ImageDraw, drift: Sequence[CheckResult], reference: Reference, y: int) -> None:
    _title(canvas, y, f"Drift against {reference.name}" if reference.name else f"Drift: {reference.note}")
    if reference.profile is None:
        return
    left, right = PAD_PX + LABEL_PX, WIDTH_PX - PAD_PX - NUMBER_PX
    colors: dict[str, Any] = {"pass": GOOD_COLOR, "warn": _WARN_COLOR, "fail": BAD_COLOR, "accepted": BAD_COLOR}
    for number, result in enumerate(drift):
        top = y + (number + 1) * ROW_PX + 8
        canvas.text((PAD_PX, top), result.name, TEXT_COLOR, _font())
        if result.value is None:
            canvas.text((left, top), drawable(result.note), ROW_NAME_COLOR, _font())
            continue
        limit = max(result.bound.fail or 0.0, result.bound.warn or 0.0, abs(result.value), 1e-9)
        canvas.rectangle((left, top, right, top + ROW_PX - 7), fill=_GRID_COLOR)
        length = (right - left) * max(0.0, result.value) / limit
        canvas.rectangle((left, top, left + length, top + ROW_PX - 7), fill=colors[result.verdict])
        for bound, color in ((result.bound.warn, _WARN_COLOR), (result.bound.fail, BAD_COLOR)):
            if bound is not None:
                x = left + (right - left) * bound / limit
                canvas.line((x, top - 2, x, top + ROW_PX - 5), fill=color, width=3)
        canvas.text((right + 8, top), f"{result.value:.3g}, {result.verdict}", TEXT_COLOR, _font())
    bottom = y + (len(drift) + 1) * ROW_PX + 10
    canvas.text((left, bottom), "lines: bounds of warnings (yellow) and failures (red)", ROW_NAME_COLOR, _font())
