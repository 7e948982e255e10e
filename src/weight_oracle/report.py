"""Flow charts drawn for people: as a tree of text, as SVG, and on the page that the demo leaves behind."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from weight_oracle.truth.domain import DEFAULT_NAMES, Names
from weight_oracle.truth.flowchart import FlowChart, Say, leaves, test_text

CHARACTER, LINE, GAP = 8.2, 84, 18  # pixels: width of a letter, height of a level, space between boxes


def chart_tree(chart: FlowChart, names: Names = DEFAULT_NAMES) -> str:
    """The chart as lines of text, one for every test and answer."""

    def lines(node: FlowChart) -> list[str]:
        if isinstance(node, Say):
            return [f"say {names.answers[node.answer]}"]
        (first, *more), (last, *rest) = lines(node.then), lines(node.other)
        upper = [f"├─ yes ─ {first}", *(f"│        {line}" for line in more)]
        return [f"{test_text(node.test, names)}?", *upper, f"└─ no ── {last}", *(f"         {line}" for line in rest)]

    return "\n".join(lines(chart))


def chart_svg(chart: FlowChart, names: Names = DEFAULT_NAMES) -> str:
    """The chart as an SVG element: leaves side by side, every test above the middle of its branches. Colours come from the page."""
    texts: list[str] = []
    boxes: list[str] = []
    edges: list[str] = []
    free = [0.0]  # where the next leaf may begin
    depth = [0]

    def place(node: FlowChart, level: int) -> float:
        """Draws a node and what is below it; returns the x of its middle."""
        text = f"say {names.answers[node.answer]}" if isinstance(node, Say) else f"{test_text(node.test, names)}?"
        width, top = CHARACTER * len(text) + 24, level * LINE + 4
        depth[0] = max(depth[0], level)
        if isinstance(node, Say):
            x = free[0] + width / 2
            free[0] += width + GAP
        else:
            start = free[0]
            ends = place(node.then, level + 1), place(node.other, level + 1)
            x = max(sum(ends) / 2, start + width / 2)
            free[0] = max(free[0], start + width + GAP)
            for label, end in zip(("yes", "no"), ends, strict=True):
                middle, bottom = top + 36 + (LINE - 36) / 2, top + LINE
                edges.append(f'<path d="M{x:.0f} {top + 36}C{x:.0f} {middle:.0f} {end:.0f} {middle:.0f} {end:.0f} {bottom}"/>')
                texts.append(f'<text class="edge" x="{(x + end) / 2:.0f}" y="{middle + 4:.0f}">{label}</text>')
        kind, radius = ("leaf", 18) if isinstance(node, Say) else ("test", 6)
        boxes.append(f'<rect class="{kind}" x="{x - width / 2:.0f}" y="{top}" width="{width:.0f}" height="36" rx="{radius}"/>')
        texts.append(f'<text x="{x:.0f}" y="{top + 23}">{escape(text)}</text>')
        return x

    place(chart, 0)
    width, height = free[0] - GAP + 8, depth[0] * LINE + 44
    title = f"<title>a flow chart with {len(leaves(chart))} answers</title>"
    body = "".join((title, *edges, *boxes, *texts))
    return f'<svg class="chart" viewBox="-4 0 {width:.0f} {height}" width="{width:.0f}" height="{height}" role="img">{body}</svg>'


def table(header: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Rows as aligned columns of text; numbers stand to the right."""
    cells = [[*header], *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    right = [all(_is_number(row[i]) for row in cells[1:]) for i in range(len(widths))]
    align = [[c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True)] for row in cells]
    return "\n".join("  ".join(row).rstrip() for row in align)


def _cell(value: object) -> str:
    return f"{value:.3f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)


def _is_number(text: str) -> bool:
    return text.replace(",", "").replace(".", "").rstrip(" %").isdigit() or text == "-"


def percent(share: float) -> str:
    """Such as 93.4%; 100.0% only for all of it."""
    shown = f"{share:.1%}"
    return "99.9%" if shown == "100.0%" and share < 1 else shown


def budget_text(budget: Mapping[str, Any], meanings: Iterable[str]) -> str:
    """What `weight-oracle budget` prints: its JSON object, and what a token of each encoding is."""
    measured = budget["energy_kept"] is not None
    header = ["encoding", "a token is", "parameters per token", "tokens for all", "fits", ""]
    rows = []
    for row, meaning in zip(budget["encodings"], meanings, strict=True):
        per_token = row["parameters_per_token"]
        shown = f"{per_token:,.0f}" if per_token >= 100 else f"{per_token:.3g}"
        cells = [row["encoding"], meaning, shown, row["tokens"], small_percent(row["fits"]), bar(row["fits"])]
        if measured:
            cells.insert(5, "-" if row["relative_error"] is None else f"{row['relative_error']:.4f}")
        rows.append(cells)
    if measured:
        header.insert(5, "relative error")
    layers = f"{budget['layers']:,} layer{'s' * (budget['layers'] != 1)}"
    about = f"{budget['architecture']}: {budget['parameters']:,} parameters, d_model {budget['width']:,}, {layers}"
    text = [about, f"what fits in a context of {budget['context']:,} tokens:", "", table(header, rows)]
    if not measured:
        return "\n".join([*text, "", "Given a folder with weights, also the error of what is dropped."])
    text += ["", "relative error: Frobenius norm of what is dropped, over that of the weights (svd2: of the linear maps in layers)."]
    text += ["-: these tokens do not give back the weights: one side alone does not; of what is learned only a trained oracle can say."]
    if budget["energy_kept"]:
        kept = [(name, small_percent(share), bar(share)) for name, share in budget["energy_kept"].items()]
        title = f"squared norm in the {budget['ranks']} strongest directions of each linear map"
        text += ["", table(("layer", title, ""), kept)]
    return "\n".join(text)


def bar(share: float, width: int = 20) -> str:
    """A bar of text as long as `share` (0 to 1) of `width` letters; anything above 0 shows."""
    eighths = min(8 * width, max(round(8 * width * share), share > 0))
    return "█" * (eighths // 8) + " ▏▎▍▌▋▊▉"[eighths % 8].strip()


def small_percent(share: float) -> str:
    """Such as 0.0016%, with two digits that count; 100% only for all of it."""
    shown = f"{share:.1%}" if share >= 0.1 else f"{100 * share:.2g}%"
    return "100%" if share == 1 else "99.9%" if shown == "100.0%" else shown


def demo_page(demo: Mapping[str, Any], charts: Mapping[str, FlowChart], names: Names) -> str:
    """A self-contained HTML page about one run of the demo: what `run_demo` returns, and the charts "truth", "read" and "control"."""
    scrambled, own, control = demo["scramble"], demo["read"]["agreement"], demo["control"]["agreement"]
    kind, verdict = ("right", "The oracle read it right") if own >= 0.99 else ("wrong", "The oracle did not read it right")
    facts = {
        "the network": f"{demo['parameters']:,} numbers; follows its flow chart on {percent(demo['accuracy'])} of hard inputs",
        "its flow chart": f"drawn at random from the {demo['split']} split, so that no oracle was trained on it",
        "its weights": f"moved by {percent(scrambled['change'])} of their size by random symmetries, which changed"
        f" {scrambled['answers_changed']:,} of {demo['inputs']:,} answers",
        "read by": demo["oracle"],
        "seen again with": f"weight-oracle demo --seed {demo['seed']}",
    }
    told = "".join(f"<dt>{escape(name)}<dd>{escape(text)}" for name, text in facts.items())
    titles = {"truth": "What it was trained to do", "read": "What the oracle read", "control": "Control: read from another network"}
    figures = "".join(_figure(title, demo[key], charts[key], names) for key, title in titles.items())
    asked = "".join(f"<tr>{_cells(q)}{_reply(q)}{_reply(q['control'])}" for q in demo["questions"])
    return f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>One network, read from its weights</title>
<style>{_STYLE}</style>
<h1>One network, read from its weights</h1>
<p class="lead {kind}">{verdict}: its chart gives the true answer on {percent(own)} of all inputs.
Read from another network: {percent(control)}.</p>
<dl>{told}</dl>
<h2>Flow charts</h2>
<div class="charts">{figures}</div>
<h2>Questions</h2>
<table><tr><th>question<th>truth<th>the oracle, given its weights<th>given another network's</tr>{asked}</table>
</html>
"""


def _figure(title: str, about: Mapping[str, Any], chart: FlowChart, names: Names) -> str:
    told = f"answers as the true chart on {percent(about['agreement'])} of inputs, as the running network on {percent(about['follows'])}"
    if "probability" in about:
        told += f"; probability {about['probability']:.2f}"
    if not about.get("known", True):
        told += ": the oracle says that it does not know, and this is its best guess"
    head = f"<figcaption><b>{escape(title)}</b><br>{told}</figcaption>"
    source = f"<details><summary>Mermaid</summary><pre>{escape(about['mermaid'])}</pre></details>"
    return f'<figure>{head}<div class="scroll">{chart_svg(chart, names)}</div><code>{escape(about["chart"])}</code>{source}</figure>'


def _cells(question: Mapping[str, Any]) -> str:
    return f"<td>{escape(question['question'])}<td>{escape(question['truth'])}"


def _reply(reply: Mapping[str, Any]) -> str:
    kind, mark = ("right", "✓") if reply["right"] else ("wrong", "✗")
    unsure = "" if reply["known"] else "don't know; "
    return f'<td class="{kind}">{mark} {escape(unsure + reply["answer"])} <small>{reply["probability"]:.2f}</small>'


_STYLE = """
:root { color-scheme: light dark; --line: light-dark(#9aa4b2, #69727f);
  --test: light-dark(#e8effd, #1f3350); --leaf: light-dark(#e6f4ea, #1d3a2a);
  --right: light-dark(#176b3a, #6fd198); --wrong: light-dark(#b3261e, #ff8d85) }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 72rem; margin: 2rem auto; padding: 0 1rem }
.lead { font-size: 1.2rem }
.right { color: var(--right) }
.wrong { color: var(--wrong) }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem }
dt { opacity: .7 }
dd { margin: 0 }
.charts { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(30rem, 100%), 1fr)) }
figure { margin: 0; min-width: 0; padding: 1rem; border: 1px solid var(--line); border-radius: 8px }
figcaption { margin-bottom: .75rem }
.scroll { overflow-x: auto }
code, pre { font-size: .85rem; white-space: pre-wrap }
details { margin-top: .5rem }
svg text { font: 14px ui-monospace, monospace; text-anchor: middle; fill: currentColor }
svg .edge { font-size: 12px; paint-order: stroke; stroke: Canvas; stroke-width: 4px }
svg path { fill: none; stroke: var(--line) }
svg rect { stroke: var(--line) }
.test { fill: var(--test) }
.leaf { fill: var(--leaf) }
table { border-collapse: collapse; width: 100% }
td, th { text-align: left; vertical-align: top; padding: .35rem .75rem .35rem 0; border-bottom: 1px solid var(--line) }
"""
