"""The mean of two oracles' weights, where one went on from the other or both from a third: how all bundled oracles end.

    python benchmarks/mean.py BEFORE AFTER OUT [--share 0.5]

OUT keeps AFTER's card without its calibration, so `benchmarks/recalibrate.py OUT ZOO …` comes next.
"""

import argparse
from pathlib import Path

from weight_oracle.commands.output import load_oracle


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("before", "after"):
        parser.add_argument(name, help="folder of an oracle, or a bundled one by its name")
    parser.add_argument("out", type=Path)
    parser.add_argument("--share", type=float, default=0.5, help="of AFTER in the mean")
    args = parser.parse_args()
    if not 0 <= args.share <= 1:
        raise SystemExit(f"--share {args.share}: give 0 to 1")
    if args.out.exists():
        raise SystemExit(f"{args.out}: is there already; give another folder")
    before, after = (load_oracle(path, anyway=True) for path in (args.before, args.after))
    first, last = before.model.state_dict(), after.model.state_dict()
    if before.codec.words != after.codec.words or {k: v.shape for k, v in first.items()} != {k: v.shape for k, v in last.items()}:
        raise SystemExit(f"{args.before} and {args.after} are not oracles of one kind")
    mean = {name: first[name].float() * (1 - args.share) + last[name].float() * args.share for name in last}
    after.model.float().load_state_dict(mean)
    after.card.pop("calibration", None)
    after.save_pretrained(args.out)


if __name__ == "__main__":
    main()
