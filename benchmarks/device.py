"""How fast targets and the oracle train on a device, and whether it computes what the CPU does.

    python benchmarks/device.py --device cuda --recipe charts-triggers-small-even --shards 1 3 --targets 1024 --batch 512
"""

import argparse
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator

from weight_oracle.oracle.data import Collator, QuestionData, load_population, pick
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.tokenizer import PAD, Codec, vocabulary
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.scaling.loop import backward, batches, new_optimizer, update
from weight_oracle.scaling.pool import Fresh
from weight_oracle.scaling.recorded import MULTIPLE, Recorder
from weight_oracle.zoo.build import build_shard
from weight_oracle.zoo.recipe import find_recipe, shard_plan

WARM = 8  # steps that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--recipe", default="charts-triggers-small-even")
    parser.add_argument("--shards", type=int, nargs="+", default=[1, 3])
    parser.add_argument("--targets", type=int, default=1024, help="in a shard")
    parser.add_argument("--batch", type=int, default=512, help="targets in a step of the oracle")
    parser.add_argument("--steps", type=int, default=16, help="of the oracle, counted")
    parser.add_argument("--sizes", nargs="+", default=["small", "medium"])
    parser.add_argument("--workers", type=int, default=8, help="processes that draw questions")
    args = parser.parse_args()
    torch.backends.cuda.matmul.allow_tf32 = True
    wait = torch.cuda.synchronize if args.device == "cuda" else lambda: None
    recipe = replace(find_recipe(args.recipe), shard_size=args.targets, compiled=False)
    held = {}
    for shard in args.shards:
        start = time.perf_counter()
        held[shard] = build_shard(recipe, shard, args.device, turn := Turn())
        shape, schedule = shard_plan(recipe, shard)
        learned = np.mean([row["learned"] for row in held[shard][1]])
        print(
            f"shard {shard}: {args.targets} targets of {shape.depth} blocks, {schedule.steps} steps: lessons {turn.start - start:.1f} s, "
            f"training and judging {turn.seconds:.1f} s; {learned:.1%} learned"
        )
    zoo, codec = Fresh(Path(recipe.name), recipe, tuple(held), held), Codec(vocabulary())
    for size in args.sizes:
        model = new_oracle(TrainConfig("", "", size=size), [zoo], codec)
        settings = model.config.encoder_config
        population = load_population(zoo, ENCODERS["atoms"], settings, pick(zoo, "train"))
        names, pad = model.name_tokens(codec), codec.ids[PAD]
        few = QuestionData(population, codec, 16, 0, batch=16)
        asked = Collator(population, names, pad).ask([few[i] for i in range(16)])
        with torch.no_grad():
            expected = model.eval()(**Collator(population, names, pad).read(asked)).logits
        population = population.to(args.device)
        accelerator = Accelerator(mixed_precision="no", cpu=args.device == "cpu")
        model, optimizer = accelerator.prepare(model, new_optimizer(model, 1e-3, 0.05))
        with torch.no_grad():
            found = model.eval()(**Collator(population, names, pad).read(asked)).logits.cpu()
        off = float((found - expected).norm() / expected.norm())
        print(f"{size}: logits differ from the CPU's by {off:.1e}")
        begun = {name: x.clone() for name, x in model.state_dict().items()}
        ended = []
        for recorded in (False, True) if args.device == "cuda" else (False,):
            model.load_state_dict(begun)
            optimizer = new_optimizer(model, 1e-3, 0.05)
            step = Recorder(model, optimizer).step if recorded else plain_step(accelerator, model, optimizer)
            data = QuestionData(population, codec, args.batch * (args.steps + WARM), 0, batch=args.batch)
            collate = Collator(population, names, pad, 0.08, multiple=MULTIPLE)
            times, losses, last = [], [], 0.0
            for batch in batches(data, collate, 0, args.steps + WARM, args.batch, args.workers):
                losses.append(step(batch, 1e-3))
                wait()
                times.append(time.perf_counter() - last)
                last = time.perf_counter()
            ended.append(torch.stack(losses).tolist())
            each = float(np.median(times[WARM:]))
            how = ", recorded" if recorded else ""
            print(f"{size}: a step of {data.batch} targets takes {1e3 * each:.1f} ms{how}; loss {ended[-1][0]:.3f} to {ended[-1][-1]:.3f}")
        if len(ended) > 1:
            print(f"losses recorded and not: apart by at most {np.abs(np.subtract(*ended)).max():.1e}")


Step = Callable[[dict[str, Any], float], torch.Tensor]


def plain_step(accelerator: Accelerator, model: WeightOracle, optimizer: torch.optim.AdamW) -> Step:
    """A step that is not recorded."""

    def step(batch: dict[str, Any], rate: float) -> torch.Tensor:
        loss = backward(accelerator, model, batch)
        update(accelerator, model, optimizer, rate)
        return loss

    return step


class Turn:
    """Notes when the device is used: see `build_shard`."""

    start = seconds = 0.0

    def __enter__(self) -> None:
        self.start = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        self.seconds = time.perf_counter() - self.start


if __name__ == "__main__":
    main()
