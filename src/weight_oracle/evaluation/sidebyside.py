"""The results of a comparison: seeds pooled, intervals over targets, a table to read and plots."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weight_oracle.errors import UserError
from weight_oracle.evaluation.measure import MEASURES
from weight_oracle.evaluation.metrics import bootstrap
from weight_oracle.evaluation.plan import Run

_TITLES = {
    "main": "Encodings side by side",
    "memorise": "Can it learn at all? The training targets of the main `chunk`, {n} of them, without renaming and noise",
    "tokens": "Other numbers of weight tokens",
    "bits": "Other numbers of bits",
    "canonical": "Canonical forms",
    "augment": "Symmetry augmentation",
    "natural": "The natural count, without a resampler",
    "hints": "With hints",
}
_COLUMNS = (
    "encoding", "weight tokens", "numbers per token", "gap (nats)", "over seeds", "information read", "questions right", "charts right",
    "change under symmetry", "encoder / all parameters", "CPU s per 1,000 targets", "CPU s per step", "rate",
)  # fmt: skip


def summarise(out: Path, runs: Sequence[Run], plots: bool) -> dict[str, Any]:
    """Writes table.json and table.md, and with `plots` gap.svg, charts.svg and curves.svg, from the finished runs of OUT."""
    results: dict[str, list[dict]] = {}
    sweeps: dict[str, dict[str, float]] = {}
    for run in runs:
        file = out / "runs" / run.key / "result.json"
        if not file.exists():
            continue
        result = json.loads(file.read_text())
        if run.purpose == "sweep":
            sweeps.setdefault(run.encoding, {})[f"{run.lr:g}"] = result["validation_loss"]
        else:
            results.setdefault(run.variant, []).append(result)
    rows = {name: _pooled(found) for name, found in results.items()}
    _compare_with_best(rows, results)
    data = {"settings": json.loads((out / "settings.json").read_text()), "rows": rows, "sweep": sweeps}
    data |= {"finished": sum(map(len, results.values())) + sum(map(len, sweeps.values())), "planned": len(runs)}
    replace_text(out / "table.json", json.dumps(data, indent=1))
    replace_text(out / "table.md", markdown(data))
    if plots and results:
        _plots(out, rows, results)
    return data


def _sums(results: Sequence[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Numerators and denominators of a measure by target, summed over seeds, which were all measured on the same targets."""
    top, bottom = (np.array([r["per_target"][name][part] for r in results]).sum(0) for part in (0, 1))
    return top, bottom


def _pooled(results: Sequence[dict]) -> dict[str, Any]:
    """One row: means over seeds, their values seed by seed, and 95 % intervals over targets."""
    first = results[0]
    row: dict[str, Any] = {"run": first["run"] | {"seed": None}, "seeds": [r["run"]["seed"] for r in results], "rate": first["rate"]}
    row |= {key: first[key] for key in ("targets", "weight_tokens", "numbers_per_weight_token", "parameters")}
    for name in MEASURES:
        top, bottom = _sums(results, name)
        row[name] = {"mean": float(top.sum() / bottom.sum()), "interval": bootstrap(top, bottom), "by_seed": [r[name] for r in results]}
    row["loss"] = {k: float(np.mean([r["loss"][k] for r in results])) for k in first["loss"]}
    for key in ("validation_loss", "seconds_per_1000_targets"):
        row[key] = float(np.mean([r[key] for r in results]))
    paces = [r["seconds_per_step"] for r in results if r["seconds_per_step"] is not None]
    row["seconds_per_step"] = float(np.mean(paces)) if paces else None
    moved = [r["symmetry"] for r in results if "relative" in r["symmetry"]]
    row["symmetry"] = {k: float(np.median([m[k] for m in moved])) for k in ("change", "another_target", "relative")} if moved else None
    return row


def _compare_with_best(rows: dict[str, Any], results: dict[str, list[dict]]) -> None:
    """Adds to each main row how far its gap is behind the largest one, with an interval over the targets, the same for both."""
    main = [name for name, row in rows.items() if row["run"]["purpose"] == "main"]
    if not main:
        return
    best = max(main, key=lambda name: rows[name]["gap"]["mean"])
    for name in main:
        seeds = set(rows[name]["seeds"]) & set(rows[best]["seeds"])
        if not seeds or name == best:
            continue
        mine, theirs = ([r for r in results[key] if r["run"]["seed"] in seeds] for key in (name, best))
        (top, bottom), (most, of) = _sums(mine, "gap"), _sums(theirs, "gap")
        behind = {"nats": float(most.sum() / of.sum() - top.sum() / bottom.sum()), "interval": bootstrap(most - top, bottom)}
        rows[name]["behind_best"] = behind | {"best": rows[best]["run"]["encoding"]}


def markdown(data: dict[str, Any]) -> str:
    """The table in words for people."""
    s = data["settings"]
    text = [
        f"{data['finished']} of {data['planned']} runs are finished. {s['size']} models, {s['steps']:,} steps of {s['batch']} targets"
        f"{', the learning rate with the least validation loss in a sweep at fewer steps' if data['sweep'] else ''}. In brackets: 95 % "
        "intervals over the targets of the test split, seeds pooled; over seeds: the least and the largest. No hints, one view, no second "
        "look. Change under symmetry: of the answers' logits, the largest for each target, the median over targets.",
    ]
    for purpose, title in _TITLES.items():
        rows = [row for row in data["rows"].values() if row["run"]["purpose"] == purpose]
        if not rows:
            continue
        heading = title.format(n=rows[0]["targets"])
        text += ["", f"**{heading}**", "", f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS), *map(_line, rows)]
        if purpose == "main":
            text += ["", *(_behind(row) for row in rows if "behind_best" in row)]
        if purpose == "memorise":
            loss = rows[0]["loss"]
            said = f"own {loss['own']:.3f}, another's {loss['shuffled']:.3f}, none {loss['none']:.3f}"
            text += ["", f"Nats per token of their flow charts: {said}."]
    if data["sweep"]:
        rates = list(dict.fromkeys(rate for row in data["sweep"].values() for rate in row))
        text += ["", "**Validation loss in the sweep of the learning rate**", "", f"| encoding | {' | '.join(rates)} |"]
        text += ["|" + " --- |" * (len(rates) + 1)]
        cell = lambda row, rate: f"{row[rate]:.3f}" if rate in row else ""  # noqa: E731
        text += [f"| {name} | {' | '.join(cell(row, rate) for rate in rates)} |" for name, row in data["sweep"].items()]
    return "\n".join(text) + "\n"


def label(run: dict[str, Any]) -> str:
    """An encoding with what is special about a run."""
    marks = [f"{run['bits']} bits"] if run["encoding"] == "quantised" else []
    marks += [word for name, word in (("canonical", "canonical"), ("augment", "augmented"), ("hints", "hints")) if run[name]]
    return f"{run['encoding']}{' (' + ', '.join(marks) + ')' if marks else ''}"


def _line(row: dict[str, Any]) -> str:
    def with_range(name: str, form: str) -> str:
        low, high = row[name]["interval"]
        return f"{row[name]['mean']:{form}} [{low:{form}}, {high:{form}}]"

    seeds, moved, pace = row["gap"]["by_seed"], row["symmetry"], row["seconds_per_step"]
    cells = [label(row["run"]), row["weight_tokens"], f"{row['numbers_per_weight_token']:.0f}", with_range("gap", ".3f")]
    cells += [f"{min(seeds):.3f} to {max(seeds):.3f} ({len(seeds)})" if len(seeds) > 1 else "one seed"]
    cells += [with_range(name, ".1%") for name in ("information_read", "questions", "charts")]
    cells += [f"{moved['change']:.2g} ({moved['relative']:.2g} × another target's)" if moved else "–"]
    cells += [f"{row['parameters']['encoder'] / 1e3:,.0f}k / {row['parameters']['all'] / 1e3:,.0f}k"]
    cells += [f"{row['seconds_per_1000_targets']:.2f}", "–" if pace is None else f"{pace:.3f}", f"{row['rate']:g}"]
    return f"| {' | '.join(map(str, cells))} |"


def _behind(row: dict[str, Any]) -> str:
    gap = row["behind_best"]
    low, high = gap["interval"]
    return f"* {label(row['run'])} is {gap['nats']:.3f} nats [{low:.3f}, {high:.3f}] behind {gap['best']}."


def _plots(out: Path, rows: dict[str, Any], results: dict[str, list[dict]]) -> None:
    try:
        import matplotlib
    except ImportError as error:
        raise UserError("the plots need matplotlib", hint="pip install matplotlib and run it again: what is trained is kept") from error
    matplotlib.use("svg")
    import matplotlib.pyplot as plt

    main = {name: row for name, row in rows.items() if row["run"]["purpose"] == "main"}
    for measure, title in (("gap", "gap (nats per token)"), ("charts", "charts right")):
        figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
        for place, row in enumerate(main.values()):
            value, (low, high) = row[measure]["mean"], row[measure]["interval"]
            axis.bar(place, value, color="#9ecae1", yerr=[[max(0, value - low)], [max(0, high - value)]], capsize=4)
            axis.plot([place] * len(row["seeds"]), row[measure]["by_seed"], "k.", label="one seed" if place == 0 else None)
        axis.set_xticks(range(len(main)), [label(row["run"]) for row in main.values()])
        axis.set(ylabel=title)
        if main:
            axis.legend()
        _save(figure, out / f"{measure}.svg")
        plt.close(figure)
    figure, axis = plt.subplots(figsize=(6, 3.2), layout="constrained")
    for name, row in main.items():
        curve = dict.fromkeys(step for step, _ in results[name][0]["curve"]["eval_loss"])
        values = [np.mean([dict(map(tuple, r["curve"]["eval_loss"])).get(step, np.nan) for r in results[name]]) for step in curve]
        axis.plot(list(curve), values, marker=".", label=label(row["run"]))
    axis.set(xlabel="step", ylabel="validation loss (nats per token)")
    if main:
        axis.legend()
    _save(figure, out / "curves.svg")
    plt.close(figure)


def _save(figure: Any, file: Path) -> None:
    partial = file.with_name(f"{file.stem}.{os.getpid()}.svg")
    figure.savefig(partial, metadata={"Date": None})
    partial.replace(file)


def replace_text(file: Path, text: str) -> None:
    """All of it or nothing, also when two processes write at once."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f"{file.name}.{os.getpid()}")
    partial.write_text(text)
    partial.replace(file)
