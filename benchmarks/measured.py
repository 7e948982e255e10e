"""Write the README's tables from the results of evaluations.

    python benchmarks/measured.py docs/results

Each `weight-oracle eval … --json` is one file there; the order and the titles of the rows are below.
"""

import json
import sys
from pathlib import Path

ROWS = {
    "tiny": "`charts-tiny`: behaviours never trained on",
    "tiny-phrasings": "… and wordings never trained on",
    "wide": "… and a width never trained on (24)",
    "deep": "… and a depth never trained on (3 blocks)",
    "small": "`charts-small`: behaviours never trained on",
    "tiny-llama": "`charts-tiny-llama`: behaviours never trained on",
    "small-llama": "`charts-small-llama`: behaviours never trained on",
    "charts-12/charts": "`charts` (12 symbols, by `charts-12`): behaviours never trained on",
}
COLUMNS = ("held out", "learned", "loss own / shuffled / noise / none", "information read", "questions (no weights)")
COLUMNS += ("same_99", "mean over numbers of tests", "1 / 2 / 3 / 4 tests")
KINDS = "chart answer symbols order possible example contains".split()


def percent(x: float, interval: list[float] | None = None) -> str:
    return f"{100 * x:.1f} %" + (f" [{100 * interval[0]:.1f}, {100 * interval[1]:.1f}]" if interval else "")


def row(title: str, r: dict) -> str:
    loss, most = r["loss"], max(map(int, r["by_ifs"]))
    by_tests = [r["by_ifs"].get(str(n), {}).get("same_99") for n in range(1, most + 1)]
    return " | ".join(
        (
            f"| {title}",
            f"{r['learned']:,} of {r['targets']:,}",
            " / ".join(f"{loss[name]:.2f}" for name in ("own", "shuffled", "noise", "none")),
            percent(r["information_read"]),
            f"{percent(r['questions']['overall'])} ({percent(r['questions']['prior_only'])})",
            percent(r["charts"]["learned"]["same_99"], r["intervals"]["charts"]["learned"]["same_99"]),
            percent(r["charts"]["balanced"]["same_99"], r["intervals"]["charts"]["balanced"]["same_99"]),
            " / ".join("–" if x is None else f"{100 * x:.0f}" for x in by_tests) + " % |",
        )
    )


def main(folder: Path) -> None:
    files = {name: folder / f"{name}.json" for name in ROWS}
    results = {name: json.loads(file.read_text())["test"] for name, file in files.items() if file.exists()}
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    for name, r in results.items():
        print(row(ROWS[name], r))
    for name in ("tiny", "small"):
        if name not in results:
            continue
        r = results[name]
        print(f"\n{ROWS[name]}")
        print("\n| kind | with the weights | without |\n|---|---|---|")
        for kind in KINDS:
            q = r["questions"]["by_kind"][kind]
            print(f"| {kind} | {percent(q['accuracy'])} | {percent(q['prior_only'])} |")
        for key in ("by_kind_of_test", "by_width", "by_depth"):
            print(f"\n| {key.removeprefix('by_').replace('_', ' ')} | targets | same_99 |\n|---|---|---|")
            for value, part in r[key].items():
                print(f"| {value} | {part['n']:,} | {percent(part['same_99'])} |")
        charts = r["charts"]["learned"]
        print("\nof those that learned: " + ", ".join(f"{key} {percent(charts[key])}" for key in charts))
        for key, part in r["baselines"].items():
            print(f"baseline {key}: same_99 {percent(part['same_99'])}, agreement {percent(part['agreement'])}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
