"""Fit and show scaling curves: loss = floor + (scale / x)^power, with intervals, extrapolation, a table and a figure."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

UNITS = {"compute": "operations in matrix products", "targets": "distinct training targets", "parameters": "parameters of the oracle"}
LEAST = 5  # points of a curve


def law(x: np.ndarray, y: np.ndarray, near: tuple[float, float, float] | None = None) -> tuple[float, float, float]:
    """Least squares in log loss of y = floor + (scale / x)^power, 0 <= floor < min y: floor, scale, power. `near`: where to look."""
    from scipy.optimize import least_squares

    best = None
    shares, powers = ((min(near[0] / y.min(), 0.9),), (near[2],)) if near else ((0.0, 0.5, 0.9), (0.2, 0.6, 1.5))
    for share in shares:
        for power in powers:
            start = [share * y.min(), np.log(x[0]) + np.log(max(y[0] - share * y.min(), 1e-3)) / power, power]
            model = lambda p: np.log(p[0] + np.exp(p[2] * (p[1] - np.log(x)))) - np.log(y)  # noqa: E731
            bounds = ([0.0, -np.inf, 0.02], [0.9999 * y.min(), np.inf, 4.0])
            found = least_squares(model, start, bounds=bounds, x_scale=[0.1, 1.0, 0.3])
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return float(best.x[0]), float(np.exp(best.x[1])), float(best.x[2])


def predicted(x: Any, floor: float, scale: float, power: float) -> Any:
    return floor + (scale / np.asarray(x, float)) ** power


def spread(x: np.ndarray, y: np.ndarray) -> float:
    """Standard deviation of the log losses around their law."""
    return float(np.sqrt(np.square(np.log(predicted(x, *law(x, y)) / y)).sum() / (len(x) - 3)))


def slope(x: float, floor: float, scale: float, power: float) -> float:
    """By how many per cent the loss falls for each per cent more of x."""
    above = (scale / x) ** power
    return power * above / (floor + above)


def curve(points: Sequence[dict[str, Any]], x: np.ndarray, noise: float, resamples: int = 300) -> dict[str, Any]:
    """The law of one curve, its 95 % intervals, and what ten and a hundred times the last x would give.

    Intervals: the targets are drawn anew, the same ones for all points, and every log loss is moved by what one training differs from the
    next (`noise`, a standard deviation).
    """
    losses = np.array([p["loss"] for p in points])
    nats, tokens = (np.array([p["per_target"][name] for p in points]) for name in ("nats", "tokens"))
    rng = np.random.default_rng(0)
    found, fits = law(x, losses), []
    for _ in range(resamples):
        times = rng.multinomial(nats.shape[1], np.full(nats.shape[1], 1 / nats.shape[1]))
        fits.append(law(x, (nats @ times) / (tokens @ times) * np.exp(noise * rng.standard_normal(len(x))), found))
    interval = lambda values: [round(float(v), 5) for v in np.percentile(values, (2.5, 97.5))]  # noqa: E731
    ahead = {}
    for times in (10, 100):
        value = float(predicted(x[-1] * times, *found))
        ahead[str(times)] = {"loss": value, "interval": interval([predicted(x[-1] * times, *fit) for fit in fits])}
    floor, scale, power = (dict(value=v, interval=interval([f[i] for f in fits])) for i, v in enumerate(found))
    fitted = predicted(x, *found)
    return {
        "x": x.tolist(),
        "loss": losses.tolist(),
        "fitted": fitted.tolist(),
        "largest_residual": float(np.abs(np.log(fitted / losses)).max()),
        "floor": floor,
        "scale": scale,
        "power": power,
        "times_as_much": ahead,
        "slopes": {f"{at:.4g}": {"value": slope(at, *found), "interval": interval([slope(at, *fit) for fit in fits])} for at in x},
        "fits": [list(fit) for fit in fits],
    }


def draw(result: dict[str, Any], out: Path) -> None:
    """Losses with their laws a hundred times beyond the last point, and the charts that were recovered."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "scaling"
    import matplotlib.pyplot as plt

    curves = result["curves"]
    figure, axes = plt.subplots(2, len(curves), figsize=(3.4 * len(curves), 5.4), layout="constrained", sharey="row", squeeze=False)
    for (top, bottom), (name, found) in zip(axes.T, curves.items(), strict=True):
        x = np.array(found["x"])
        far = np.geomspace(x[0], x[-1] * 100, 80)
        many = np.array([predicted(far, *fit) for fit in found["fits"]])
        top.fill_between(far, *np.percentile(many, (2.5, 97.5), axis=0), alpha=0.2, lw=0)
        top.plot(far, predicted(far, *(found[k]["value"] for k in ("floor", "scale", "power"))), lw=1)
        top.plot(x, found["loss"], "o", ms=4)
        for score, style in (("same_99", "o-"), ("agreement", "s--")):
            low, high = np.array(found[f"{score}_interval"]).T
            y = np.array(found[score])
            bottom.errorbar(x, y, [np.maximum(y - low, 0), np.maximum(high - y, 0)], fmt=style, ms=3, lw=1, label=score)
        if name == "compute" and "ahead" in result:
            top.plot(result["ahead"]["x"], result["ahead"]["loss"], "kx", label="not in the fit")
            top.legend()
        top.set(xscale="log", yscale="log", title=f"against {name}")
        bottom.set(xscale="log", xlabel=UNITS[name], xlim=top.get_xlim())
    axes[0, 0].set_ylabel("held-out nats per free chart token")
    axes[1, 0].set_ylabel("charts recovered")
    axes[1, 0].legend()
    figure.savefig(out, metadata={"Date": None})


def markdown(result: dict[str, Any]) -> str:
    """The tables of docs/scaling.md."""
    lines = []
    for name, found in result["curves"].items():
        lines += [f"### Against {name}", "", f"| {UNITS[name]} | steps | parameters | loss | law | same_99 | agreement |"]
        lines += ["|---|---|---|---|---|---|---|"]
        columns = ("x", "points", "parameters", "loss", "fitted", "same_99", "agreement")
        for x, point, parameters, loss, fitted, same_99, agreement in zip(*(found[key] for key in columns), strict=True):
            shown = f"{x:.3g}" if name == "compute" else f"{int(x):,}"
            row = f"{shown} | {point['steps']:,} | {parameters:,} | {loss:.3f} | {fitted:.3f} | {100 * same_99:.1f} % | {agreement:.3f}"
            lines.append(f"| {row} |")
        power, floor, last = found["power"], found["floor"], list(found["slopes"].values())[-1]
        lines += ["", f"Power {_shown(power)}, floor {_shown(floor)}; at the last point 1 % more gives {_shown(last)} % less loss."]
        ahead = [f"{times} times as much would give {_shown({'value': v['loss']} | v)}" for times, v in found["times_as_much"].items()]
        lines += [f"By this law {' and '.join(ahead)}. Log losses scatter around it by {found['noise']:.3f}.", ""]
    if "ahead" in result:
        a = result["ahead"]
        low, high = a["interval"]
        said = f"predicted {a['predicted']:.3f} [{low:.3f}, {high:.3f}], got {a['loss']:.3f}"
        lines += [f"A run of {a['point']['steps']:,} steps, not in the fit: {said}.", ""]
    return "\n".join(lines)


def _shown(found: dict[str, Any]) -> str:
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"
