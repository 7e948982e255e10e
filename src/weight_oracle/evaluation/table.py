"""The result of an evaluation as a page to read."""

from collections.abc import Iterable
from typing import Any

from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

_CHARTS = {
    "exact": "exactly the true chart",
    "same_100": "same on the whole domain",
    "same_99": "same on ≥ 99 %",
    "same_leaf": "same in every leaf",
    "agreement": "mean agreement",
    "follows_99": "followed on ≥ 99 %",
    "follows_leaf": "followed in every leaf",
    "follows": "mean share followed",
}
_CLAIMS = {"prior_only": "no weights", "most_frequent": "most frequent", "nearest_neighbour": "nearest target"}
_GROUPS = {"by_ifs": "tests", "by_kind_of_test": "kind of test", "by_width": "width", "by_depth": "depth"}
_BLIND = "THIS ORACLE IS BLIND. A target's weights help it no more than another target's, or none: it reads nothing and guesses."


def table(result: dict[str, Any]) -> RenderableType:
    """What `evaluate` returned, for a rich console."""
    phrasings = "wordings never trained on" if result["held_out_phrasings"] else "wordings as in training"
    head = f"{result['zoo']['recipe']} {result['zoo']['hash']}, {result['split']} split: {result['targets']:,} targets, "
    head += f"{result['learned']:,} learned their chart; {phrasings}; 95 % intervals in brackets"
    parts: list[RenderableType] = [Text(head)]
    if result["blind"]:
        parts.append(Panel(Text(_BLIND, style="bold white on red"), border_style="red", title="BLIND"))
    return Group(*parts, _losses(result), _questions(result), _charts(result), _breakdowns(result))


def table_text(result: dict[str, Any], width: int = 120) -> str:
    """The same page as plain text."""
    console = Console(width=width, color_system=None, force_terminal=False)
    with console.capture() as capture:
        console.print(table(result))
    return capture.get()


def _new(title: str, *columns: str) -> Table:
    page = Table(title=title, title_justify="left", title_style="bold", header_style="")
    page.add_column(columns[0])
    for name in columns[1:]:
        page.add_column(name, justify="right")
    return page


def _percent(value: float, interval: Iterable[float] | None = None) -> str:
    text = f"{100 * value:.1f} %"
    return text if interval is None else f"{text} [{', '.join(f'{100 * x:.1f}' for x in interval)}]"


def _losses(result: dict[str, Any]) -> Table:
    page = _new("Loss on the flow chart, nats per free token", "weight tokens", "loss")
    ranges = result["intervals"]
    names = {"own": "the target's own", "shuffled": "another target's", "noise": "noise", "none": "none"}
    for key, name in names.items():
        low, high = ranges["loss"][key]
        page.add_row(name, f"{result['loss'][key]:.3f} [{low:.3f}, {high:.3f}]")
    page.add_section()
    gap = result["gap"]
    page.add_row("gap (another's − own)", f"{gap['nats']:.3f} [{gap['low']:.3f}, {gap['high']:.3f}]")
    name = f"information read (temperature {result['temperature']:.2f})"
    page.add_row(name, _percent(result["information_read"], ranges["information_read"]))
    return page


def _questions(result: dict[str, Any]) -> Table:
    page = _new("Questions answered rightly", "kind", "with the weights", "without", "asked")
    questions, ranges = result["questions"], result["intervals"]["questions"]
    for kind, row in questions["by_kind"].items():
        own, none = (_percent(row[key], ranges["by_kind"][kind][key]) for key in ("accuracy", "prior_only"))
        page.add_row(kind, own, none, f"{row['n']:,}")
    page.add_section()
    own, none = (_percent(questions[key], ranges[key]) for key in ("overall", "prior_only"))
    page.add_row("mean over kinds", own, none, "")
    return page


def _charts(result: dict[str, Any]) -> Table:
    baselines = [_CLAIMS[name] for name in result["baselines"]]
    title = "Flow charts read from the weights alone: compared with the true chart, and followed by the running target"
    page = _new(title, "share of targets", "learned", "balanced", "all", *baselines)
    charts, ranges = result["charts"], result["intervals"]["charts"]
    for key, name in _CHARTS.items():
        cells = [_percent(charts["learned"][key], ranges["learned"][key]), _percent(charts["balanced"][key]), _percent(charts[key])]
        page.add_row(name, *cells, *(_percent(rates[key]) for rates in result["baselines"].values()))
    return page


def _breakdowns(result: dict[str, Any]) -> Table:
    page = _new("Same on ≥ 99 % of the domain, among targets that learned", "", "", "same", "agreement", "targets")
    for key, name in _GROUPS.items():
        for label, row in result[key].items():
            page.add_row(name, label, _percent(row["same_99"], row["interval"]), _percent(row["agreement"]), f"{row['n']:,}")
        page.add_section()
    for label, row in result["classes"].items():
        same = _percent(row["same_99"], row["interval"]) if row["n"] else "–"
        page.add_row("behaviour in training", label, same, "", f"{row['n']:,} ({row['classes']:,} classes)")
    return page
