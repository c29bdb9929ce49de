"""Evaluations of length models as tables, a plot and a model card. Renders, computes nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from rich import box
from rich.table import Table

from length_model.artifact import SUFFIX
from length_model.core.evaluation import Evaluation, Scores
from length_model.core.scoring import Interval
from length_model.core.split import SplitManifest

PUBLISHED = (
    (
        "Block, tagged ShareGPT file",
        "28",
        "-",
        "-",
        "37 % duplicate rows; unknown whether held out",
    ),
    ("Block, Table 1 as quoted elsewhere", "-", "24.4 %", "77.2 %", "unverified which predictor it was"),
    ("Block, documentation", "-", "10-15 %", "-", "claimed for its RoBERTa, set-up not stated"),
)
"""Name, mean absolute error in tokens, relative error, Acc-100, remark (from Block's repository and documents)."""

SETUP_DIFFERENCES = (
    "Published: RoBERTa regression, 40,000 training and 10,000 validation rows of ShareGPT, 300 epochs, "
    "Llama-2 tokens, split by row. Here: conversations split as a whole with near-copies on one side, Qwen2 tokens, "
    "fewer samples, duplicates removed, and distributions instead of points (the median is judged)."
)


REMAINING_LIMIT = (
    "Against the rule with the model's own median there is little to gain early on: few predictions lie below 50 "
    "tokens, so rule and belief say nearly the same. Where half of the answers lie below the conditional median, no "
    "better number follows from the prompt and the count alone; what is left would have to be read from the answer "
    "itself."
)


def short_name(name: str) -> str:
    """A model's name for a table: the file's stem when it is a path."""
    return Path(name).stem if name.endswith(SUFFIX) else name


def tokens(interval: Interval) -> str:
    return f"{interval.mean:.1f} [{interval.low:.1f}, {interval.high:.1f}]"


def share(interval: Interval) -> str:
    return f"{interval.mean:.1%} [{interval.low:.1%}, {interval.high:.1%}]".replace("%", "")


_SHORT: tuple[tuple[str, Callable[[Scores], str]], ...] = (
    ("answers", lambda s: f"{s.count:,}"),
    ("CRPS", lambda s: tokens(s.crps)),
    ("abs. error", lambda s: tokens(s.absolute_error)),
    ("rel. %", lambda s: f"{100 * s.relative_error.mean:.0f}"),
    ("Acc-50 %", lambda s: f"{100 * s.acc_50.mean:.1f}"),
    ("Acc-100 %", lambda s: f"{100 * s.acc_100.mean:.1f}"),
    ("pinball 50/90", lambda s: f"{s.pinball_50.mean:.1f} / {s.pinball_90.mean:.1f}"),
    ("under p50 %", lambda s: f"{100 * s.coverage_50.mean:.1f}"),
    ("under p90 %", lambda s: f"{100 * s.coverage_90.mean:.1f}"),
)
"""For a terminal; the card has all intervals."""

_COLUMNS: tuple[tuple[str, Callable[[Scores], str]], ...] = (
    ("answers", lambda s: f"{s.count:,}"),
    ("CRPS", lambda s: tokens(s.crps)),
    ("abs. error", lambda s: tokens(s.absolute_error)),
    ("rel. error %", lambda s: f"{s.relative_error.mean:.0%}".replace("%", "")),
    ("Acc-50 %", lambda s: share(s.acc_50)),
    ("Acc-100 %", lambda s: share(s.acc_100)),
    ("pinball 50/90", lambda s: f"{s.pinball_50.mean:.1f} / {s.pinball_90.mean:.1f}"),
    ("under p50 %", lambda s: share(s.coverage_50)),
    ("under p90 %", lambda s: share(s.coverage_90)),
)


def tables(found: Sequence[Evaluation], side: str) -> list[Table]:
    """Overview, last model in detail, remaining lengths."""
    overview = _table(f"held-out answers ({side} side), 95 % intervals over conversations, lengths in tokens")
    for evaluation in found:
        overview.add_row(evaluation.model, *(cell(evaluation.overall) for _, cell in _SHORT))
    last = found[-1]
    detail = _table(f"{last.model}, by class, prompt length, predicted length and true length")
    for scores in groups(last):
        detail.add_row(scores.name, *(cell(scores) for _, cell in _SHORT))
    return [overview, _pairs(found), detail, _remaining(found), _published()]


def groups(evaluation: Evaluation) -> tuple[Scores, ...]:
    """Groups whose answers are few enough to differ, in the order in which they are shown."""
    e = evaluation
    return (*e.by_class, *e.by_prompt, *e.by_predicted, *e.by_true_length)


def _table(title: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE_HEAD, padding=(0, 1))
    table.add_column("", no_wrap=True)
    for name, _ in _SHORT:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def _pairs(found: Sequence[Evaluation]) -> Table:
    table = Table(title="paired on the same answers (CRPS gained, tokens)", title_justify="left", box=box.SIMPLE_HEAD)
    for name in ("model", "against", "gain", "share %", "own intervals apart"):
        table.add_column(name, justify="left" if name in ("model", "against") else "right")
    for row in pair_rows(found):
        table.add_row(*row)
    return table


def pair_rows(found: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    return [
        (e.model, p.other, tokens(p.crps_gain), f"{100 * p.relative_gain:.1f}", "yes" if p.intervals_apart else "no")
        for e in found
        for p in e.against
    ]


_REMAINING = (
    "model",
    "produced",
    "answers",
    "belief",
    "rule, own median",
    "rule, baseline's",
    "gain %",
    "vs baseline %",
    "under p50/p90 %",
)


def _remaining(found: Sequence[Evaluation]) -> Table:
    table = Table(
        title="what is still to come after k tokens: mean absolute error (rule: prediction, else k + 10)",
        title_justify="left",
        box=box.SIMPLE_HEAD,
    )
    for name in _REMAINING:
        table.add_column(name, justify="left" if name == "model" else "right")
    for row in remaining_rows(found):
        table.add_row(*row)
    return table


def remaining_rows(found: Sequence[Evaluation]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = []
    for e in found:
        for r in e.remaining:
            base = r.rule_of_baseline
            rows.append(
                (
                    e.model,
                    str(r.produced_tokens),
                    f"{r.count:,}",
                    tokens(r.belief),
                    tokens(r.rule),
                    tokens(base) if base else "",
                    f"{100 * r.gain.mean / r.rule.mean:.1f}",
                    f"{100 * (1 - r.belief.mean / base.mean):.1f}" if base else "",
                    f"{100 * r.coverage_50:.1f} / {100 * r.coverage_90:.1f}",
                )
            )
    return rows


def _published() -> Table:
    table = Table(title="published", title_justify="left", box=box.SIMPLE_HEAD, caption=SETUP_DIFFERENCES)
    for name in ("", "abs. error", "rel. error", "Acc-100", "remark"):
        table.add_column(name, no_wrap=name != "remark", max_width=60 if name == "remark" else None)
    for row in PUBLISHED:
        table.add_row(*row)
    return table


def write_plot(path: Path, found: Sequence[Evaluation]) -> None:
    """Reliability: share of answers at or below each quantile, against the quantile's level."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 5), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1, label="exact")
    for evaluation in found:
        r = evaluation.reliability
        axes.plot(r.levels, r.observed, marker="o", markersize=3, linewidth=1, label=evaluation.model)
    axes.set(xlabel="level of the quantile", ylabel="answers at or below it", xlim=(0, 1), ylim=(0, 1))
    axes.set_title("Reliability on held-out conversations", loc="left", fontsize=11)
    axes.legend(frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def write_card(
    path: Path, found: Sequence[Evaluation], manifest: SplitManifest, side: str, *, models: str, longest_tokens: int
) -> None:
    """The last model's card, in Markdown. `models`: whose answers it learnt from; `longest_tokens`: their longest."""
    last = found[-1]
    lines = [
        f"# Model card: {last.model}",
        "",
        f"Content hash `{last.sha256}`. Samples `{manifest.samples_sha256[:16]}`, split seed {manifest.seed}: "
        + ", ".join(f"{manifest.counts[s]:,} {s} ({manifest.groups[s]:,} conversations)" for s in manifest.counts)
        + f"; {manifest.joined_groups:,} conversations joined as near-copies (Jaccard {manifest.near_jaccard}).",
        "",
        f"It knows the answers of: {models}; the longest had {longest_tokens:,} tokens. Of other models, languages or "
        "limits it says what these suggest: what is learned online (per model, class and turn) is what corrects it "
        "there. The artefact holds numbers only, no text. It reads the beginning and the end of a prompt and the last "
        "turns.",
        "",
        f"Judged on the {side} side, {last.overall.count:,} finished answers ({last.left_out_censored:,} cut ones left "
        "out). Lengths in tokens; the point prediction is the median; [95 % bootstrap intervals over conversations].",
        "",
        *_markdown(
            ("model", *(n for n, _ in _COLUMNS)), [(e.model, *(c(e.overall) for _, c in _COLUMNS)) for e in found]
        ),
        "",
        "Paired on the same answers:",
        "",
        *_markdown(("model", "against", "CRPS gained", "share %", "own intervals apart"), pair_rows(found)),
        "",
        f"## {last.model} in detail",
        "",
        *_markdown(
            ("group", *(n for n, _ in _COLUMNS)),
            [(s.name, *(c(s) for _, c in _COLUMNS)) for s in groups(last)],
        ),
        "",
        coverage_line(last),
        "",
        "Coverage by true length is no property that a calibrated belief could have: the longest answers lie above "
        "their p90 by construction. Calibration is judged by what is known before the answer: class, prompt length and "
        "predicted length.",
        "",
        "## What is still to come after k tokens",
        "",
        "Mean absolute error. Rule: the prediction while it lies ahead, else k + 10 (Block).",
        "",
        *_markdown(_REMAINING, remaining_rows(found)),
        "",
        REMAINING_LIMIT,
        "",
        "## Beside published numbers",
        "",
        *_markdown(("", "abs. error", "rel. error", "Acc-100", "remark"), PUBLISHED),
        "",
        SETUP_DIFFERENCES,
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def coverage_line(evaluation: Evaluation) -> str:
    """Whether the p90 holds what it promises, overall and wherever a belief can be judged."""
    overall = evaluation.overall.coverage_90.mean
    known = (*evaluation.by_class, *evaluation.by_prompt, *evaluation.by_predicted)
    low, high = (pick(known, key=lambda s: s.coverage_90.mean) for pick in (min, max))
    return (
        f"Answers at or below the p90: {overall:.1%} of all; between {low.coverage_90.mean:.1%} ({low.name}, "
        f"{low.count:,} answers) and {high.coverage_90.mean:.1%} ({high.name}, {high.count:,} answers) by class, "
        "prompt length and predicted length."
    ).replace("%", " %")


def _markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [
        "| " + " | ".join(header) + " |",
        "|" + "---|" * len(header),
        *("| " + " | ".join(row) + " |" for row in rows),
    ]
