"""Finished runs as one page that needs nothing beside itself: tables, claims and pictures inside."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path

import msgspec

from bench.experiments.agreement import AGREEMENT_FILE
from bench.experiments.catalogue import ExperimentError, all_experiments
from bench.experiments.run import Size, tasks_of, write_outcome
from bench.experiments.schema import Experiment, Figure, Panel, Variant
from bench.experiments.series import by_variant_and_rate, mean_text
from bench.experiments.tables import cells
from bench.run.files import FILE_NAME, read_lines
from bench.run.simulated import RunLine
from bench.show.plots_scaling import MOST_RUNS, plot_courses
from bench.workload.rows import plural

SHOWN = (
    ("TTFT mean, s", "ttft_mean_s"),
    ("TTFT P99, s", "ttft_p99_s"),
    ("TPOT mean, s", "tpot_mean_s"),
    ("E2E mean, s", "e2e_mean_s"),
    ("E2E P99, s", "e2e_p99_s"),
    ("good answers, share", "goodput_share"),
    ("preemptions", "preemptions"),
)
SHOWN_SCALED = (
    ("beyond the objective, share", "slo_missed_share"),
    ("node-hours", "node_hours"),
    ("cost", "cost"),
    ("mean nodes", "nodes_mean"),
    ("flaps an hour", "flaps_per_hour"),
)
"""Of runs with a scaler."""
MOST_PICTURES = 4
"""Of scaled runs, a few in each."""
PANELS = [
    Panel(title="P99 TTFT, s", measure="ttft_p99_s", log=True),
    Panel(title="mean TTFT, s", measure="ttft_mean_s", log=True),
    Panel(title="mean E2E, s", measure="e2e_mean_s"),
    Panel(title="good answers, share", measure="goodput_share"),
]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 72rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; } h2 { font-size: 1.2rem; margin-top: 2.5rem; border-top: 1px solid #ddd; padding-top: 1rem; }
table { border-collapse: collapse; margin: 1rem 0; font-variant-numeric: tabular-nums; }
th, td { padding: .2rem .7rem; text-align: right; border-bottom: 1px solid #eee; } th:first-child, td:first-child
{ text-align: left; } caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
img { max-width: 100%; } pre { background: #f6f6f6; padding: .8rem; overflow-x: auto; font-size: 13px; }
.note { color: #666; font-size: 13px; }
"""


class Section(msgspec.Struct, frozen=True, kw_only=True):
    """One experiment or sweep of the page."""

    title: str
    note: str
    tables: list[tuple[str, list[str], list[list[str]]]]
    """(title, head, rows)"""
    claims: str
    agreement: str = ""
    """Of live runs: how the same requests come out simulated."""
    pictures: list[str]
    """Paths of PNG files."""


def sections_of(folder: Path) -> list[Section]:
    """One per folder with result lines, `folder` and those in it. Raises ExperimentError, ResultFileError, OSError."""
    logs = sorted(folder.rglob(FILE_NAME)) if folder.is_dir() else []
    if not logs:
        raise ExperimentError(
            f"{folder}: no {FILE_NAME} there or below; run `astrolabe bench sweep` or `experiment` with --output first"
        )
    return [section for log in logs if (section := _section(log)) is not None]


def as_html(sections: Sequence[Section], *, title: str) -> str:
    """The page."""
    out = ["<!doctype html><html lang='en'><head><meta charset='utf-8'>", f"<title>{html.escape(title)}</title>"]
    out += [f"<style>{_STYLE}</style></head><body>", f"<h1>{html.escape(title)}</h1>", "<ul>"]
    out += [f"<li><a href='#s{i}'>{html.escape(s.title)}</a></li>" for i, s in enumerate(sections)]
    out.append("</ul>")
    for index, section in enumerate(sections):
        out += [
            f"<h2 id='s{index}'>{html.escape(section.title)}</h2>",
            f"<p class='note'>{html.escape(section.note)}</p>",
        ]
        for caption, head, rows in section.tables:
            out.append(f"<table><caption>{html.escape(caption)}</caption>")
            out.append("<tr>" + "".join(f"<th>{html.escape(cell)}</th>" for cell in head) + "</tr>")
            out += ["<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in row) + "</tr>" for row in rows]
            out.append("</table>")
        for picture in section.pictures:
            data = base64.b64encode(Path(picture).read_bytes()).decode()
            out.append(f"<img alt='{html.escape(Path(picture).stem)}' src='data:image/png;base64,{data}'>")
        for title, text in (("claims", section.claims), ("simulated beside live", section.agreement)):
            if text:
                out.append(f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>")
    out.append("</body></html>")
    return "\n".join(out)


def _section(log: Path) -> Section | None:
    lines = read_lines(log)
    if not lines:
        return None
    name = lines[0].group.partition("/")[0]
    known = all_experiments().get(name)
    if known is not None:
        lines = _of_the_experiment(known, lines)
    experiment = known if known is not None else _as_experiment(lines, log.parent.name)
    claims, files = write_outcome(experiment, lines, log.parent)
    tables = [
        (table.title, ["", *(column.title for column in table.columns)], cells(experiment, table, lines))
        for table in experiment.tables
    ]
    if known is None:
        tables.append(_summary_table(lines))
    text = (log.parent / f"{experiment.name}.claim").read_text(encoding="utf-8") if claims else ""
    is_live = lines[0].mode == "live"
    agreement = log.parent / AGREEMENT_FILE
    return Section(
        title=f"{experiment.title} (live)" if is_live else experiment.title,
        note=_note(experiment, lines),
        tables=tables,
        claims=text,
        agreement=agreement.read_text(encoding="utf-8") if is_live and agreement.is_file() else "",
        pictures=[*(str(file) for file in files if file.suffix == ".png"), *_courses(lines, log.parent)],
    )


def _courses(lines: Sequence[RunLine], folder: Path) -> list[str]:
    """Pictures of scaled runs over time, written beside their lines."""
    first = min(line.spec.seed for line in lines)
    scaled = [line for line in lines if line.scaling is not None and line.spec.seed == first]
    found = []
    for number, start in enumerate(range(0, min(len(scaled), MOST_PICTURES * MOST_RUNS), MOST_RUNS)):
        own = scaled[start : start + MOST_RUNS]
        path = folder / f"scaling-{number}.png"
        plot_courses(path, own, title="nodes, load and latency over time", caption=f"seed {first}; {folder.name}")
        found.append(str(path))
    return found


def _of_the_experiment(experiment: Experiment, lines: list[RunLine]) -> list[RunLine]:
    """Without small trials and older definitions that lie in the same file, unless there is nothing else."""
    seeds = max(line.spec.seed for line in lines) + 1
    wanted = {task.spec.key for task in tasks_of(experiment, Size(seeds=seeds))}
    return [line for line in lines if line.mode == "simulated" and line.key in wanted] or lines


def _as_experiment(lines: Sequence[RunLine], name: str) -> Experiment:
    """A sweep as if it were an experiment: one curve per variant, if there are rates."""
    rates = {line.spec.rate_per_s for line in lines if line.spec.rate_per_s is not None}
    variants = [Variant(name=variant, values={}) for variant in dict.fromkeys(line.variant for line in lines)]
    figure = Figure(name="curves", title=f"Over the load: {name}", kind="curves", panels=PANELS)
    return Experiment(
        name=name,
        title=f"{lines[0].group}: {name}",
        system="own",
        source="",
        variants=variants,
        figures=[figure] if len(rates) > 1 else [],
    )


def _summary_table(lines: Sequence[RunLine]) -> tuple[str, list[str], list[list[str]]]:
    groups = by_variant_and_rate(lines)
    rows = []
    shown = (*SHOWN, *(SHOWN_SCALED if any(line.scaling is not None for line in lines) else ()))
    names = list(dict.fromkeys(line.variant for line in lines))
    for variant, rate in sorted(groups, key=lambda place: (place[1] or 0.0, names.index(place[0]))):
        own = groups[variant, rate]
        cells_of_row = [mean_text(own, measure) for _, measure in shown]
        rows.append([variant, "recorded" if rate is None else f"{rate:g}", *cells_of_row])
    return "means over seeds, ± half the 95 % interval", ["", "rate/s", *(title for title, _ in shown)], rows


def _note(experiment: Experiment, lines: Sequence[RunLine]) -> str:
    seeds = len({line.spec.seed for line in lines})
    commits = ", ".join(sorted({line.commit[:12] or "no commit" for line in lines}))
    cpu = lines[0].machine.get("cpu", "")
    source = f"{experiment.source}. " if experiment.source else ""
    counted = f"{plural(len(lines), f'{lines[0].mode} run')}, {plural(seeds, 'seed')}"
    return f"{source}{counted}, commit {commits}, on {cpu}."
