"""Tables and the figure of what benchmarks/triggers.py measured."""

from pathlib import Path

import numpy as np

PARTS = {"by_depth": ("blocks", "block"), "by_symbols": ("symbols of the trigger", "symbol")}


def percent(r: dict) -> str:
    """A rate with its interval."""
    return f"{100 * r['rate']:.0f} % [{100 * r['interval'][0]:.0f}, {100 * r['interval'][1]:.0f}]"


def tables(result: dict) -> str:
    """Markdown: triggers found by firing probability, with what each method costs; by depth of the target; by length of the trigger."""
    return "\n\n".join([by_probability(result), *(by_part(result, part) for part in PARTS)])


def by_probability(result: dict) -> str:
    """Triggers found by decade of their firing probability, and cost."""
    tens = list(result["decades"])
    head = ["", *(f"p ≈ {result['median_probability'][t]:.0e} (n = {result['decades'][t]})" for t in tens), "forward passes", "seconds"]
    rows = [head]
    for name, method in result["methods"].items():
        if "recovered" not in method:
            continue
        cells = [percent(method["recovered"][t]) for t in tens]
        rows.append([method["label"], *cells, f"{method['forwards']:,.0f}", f"{method['seconds']:.2g}"])
        if name in ("oracle", "checked"):
            rows.append(["… fired when run", *(percent(method["fired"][t]) for t in tens), "", ""])
        if "before_trying" in method:
            plain = method["before_trying"]["recovered"]
            rows.append(["… before any pattern is tried on the layers", *(percent(plain[t]) for t in tens), "", ""])
    return _markdown(rows)


def by_part(result: dict, part: str) -> str:
    """Triggers found by the number of blocks, or of the symbols that the trigger names, for every method that was measured so."""
    methods = [m for m in result["methods"].values() if part in m]
    what, one = PARTS[part]
    if not methods:
        return f"by {what}: not measured"
    size = {int(n): r["n"] for m in methods for n, r in m[part].items()}
    head = ["", *(f"{n} {one}{'s' * (n != 1)} (n = {size[n]})" for n in sorted(size))]
    return _markdown([head, *([m["label"], *(percent(m[part][str(n)]) for n in sorted(size))] for m in methods)])


def _markdown(rows: list[list[str]]) -> str:
    lines = [rows[0], ["---"] * len(rows[0]), *rows[1:]]
    return "\n".join("| " + " | ".join(row) + " |" for row in lines)


def draw(result: dict, path: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "weight-oracle"
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    tens = list(result["decades"])
    x = np.array([result["median_probability"][t] for t in tens])
    for name, method in result["methods"].items():
        if "recovered" not in method:
            continue
        cells = [method["recovered"][t] for t in tens]
        y = np.array([100 * c["rate"] for c in cells])
        low, high = (np.array([100 * c["interval"][i] for c in cells]) for i in (0, 1))
        main = name == "oracle"
        axes.errorbar(x, y, [y - low, high - y], label=method["label"], marker="o" if main else ".", lw=2.2 if main else 1.2, capsize=2)
    axes.set(xscale="log", xlabel="firing probability of the trigger", ylabel="triggers found, %", ylim=(-3, 103))
    axes.invert_xaxis()
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8, loc="lower left")
    figure.savefig(path, metadata={"Date": None})
