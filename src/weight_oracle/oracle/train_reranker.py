"""Train the reranker of an oracle with `transformers.Trainer`; a killed run goes on from its last checkpoint."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PrinterCallback, Trainer, set_seed
from transformers.utils.logging import disable_progress_bar

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.contrasts import Batches, Hard, contrasts_of, denoiser_of, load_contrasts
from weight_oracle.oracle.denoiser import misread
from weight_oracle.oracle.reranker import Reranker
from weight_oracle.oracle.runs import Report, arguments_of, last_checkpoint
from weight_oracle.zoo.store import Zoo, open_zoo

HELD = 480  # targets of each zoo, at most, by which the loss is watched
_DROPOUT = 0.1


@dataclass(frozen=True)
class RerankerConfig:
    """Everything that decides the training of a reranker; saved with the oracle."""

    oracle: str
    zoo: str
    out: str
    also: tuple[str, ...] = ()  # further zoos
    steps: int = 3000
    batch: int = 24  # targets in a step
    charts: int = 6  # beside each, its own among them
    drawn: int = 15  # charts that are drawn for each target, of which every step takes some
    hard: int = 0  # of these, at most so many near the right one that diverge least from what the oracle's own denoiser reads
    lr: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.05
    width: int = 24
    rounds: int = 2
    twice: bool = True  # compared too with two symbols put at two places
    denoises: bool = True  # with a denoiser, which finds other charts
    targets: int | None = None  # use only so many of each zoo
    go_on: bool = False  # begin with the oracle's own reranker, as far as it has the same parts
    compiled: bool = True  # under torch.compile
    workers: int = 1  # processes that draw charts
    save_every: int = 200
    seed: int = 0
    resume: bool = False


class _Contrast(nn.Module):
    """The reranker with its loss: the negative log of the share that a target's own chart, the first one, has; and its denoiser's."""

    def __init__(self, reranker: Reranker, symbols: int, places: int, compiled: bool):
        super().__init__()
        self.reranker, self.size = reranker, (symbols, places)
        compiler: Callable[..., Callable] = torch.compile
        self.losses = compiler(self._losses, dynamic=False) if compiled else self._losses

    def _losses(self, responses: Tensor, answered: Tensor) -> tuple[Tensor, Tensor | None]:
        read = self.reranker.denoise(responses, *self.size)
        fit = self.reranker(responses, None if read is None else read.detach(), answered, *self.size)
        return -fit.log_softmax(-1)[:, 0].mean(), None if read is None else misread(read, answered[:, 0])

    def forward(self, responses: Tensor, answered: Tensor) -> dict[str, Tensor]:
        contrast, read_badly = self.losses(responses, answered)
        return {"loss": contrast if read_badly is None or not self.training else contrast + read_badly}


def train_reranker(
    config: RerankerConfig,
    progress: Callable[[int, int, dict], None] | None = None,
    stage: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Trains a reranker on the training targets of some zoos and writes the oracle with it to `config.out`; its calibration is left out,
    for probabilities are others now. Raises `UserError` for an oracle or zoos that do not fit, and for options that make no sense."""
    _check(config)
    out = Path(config.out)
    disable_progress_bar()
    last = last_checkpoint(out / "run")
    if last and not config.resume:
        raise UserError(
            "holds the checkpoints of an earlier run", where=config.out, hint="--resume goes on with it; or give another folder"
        )
    if not last and (out / "oracle.json").exists():
        raise UserError("there is an oracle already", where=config.out, hint="give another folder")
    oracle, zoos = load_oracle(config.oracle, anyway=True), [open_zoo(path) for path in (config.zoo, *config.also)]
    reads = oracle.settings
    if reads.encoding != "atoms":
        raise UserError(f"is an oracle with the encoding {reads.encoding}", where=config.oracle, hint="rerankers are for atoms")
    for zoo in zoos:
        if not reads.reads(zoo.recipe.domain):
            raise UserError(f"holds targets that {config.oracle} does not read", where=str(zoo.path), hint="give zoos of its domain")
    set_seed(config.seed)
    reranker = Reranker(config.width, config.rounds, _DROPOUT, config.twice, config.denoises)
    if config.go_on:
        go_on_from(oracle.model.reranker, reranker, config.oracle)
    hard = Hard(config.hard, config.oracle) if config.hard else None
    if hard:
        denoiser_of(config.oracle)  # refused before anything is drawn
    about = config.seed, stage
    train, held = (
        [
            load_contrasts(
                out / "run" / f"{split}-{i}.npz",
                partial(contrasts_of, zoo, zoos, reads, config.drawn, most, *about, split, config.workers, hard),
            )
            for i, zoo in enumerate(zoos)
        ]
        for split, most in (("train", config.targets), ("validation", HELD))
    )
    for split, parts in (("train", train), ("validation", held)):
        if not any(len(part) for part in parts):
            what = f"no target of the {split} split has learned a chart without patterns"
            raise UserError(what, where=", ".join(str(zoo.path) for zoo in zoos), hint="build more targets")
    data = Batches(train, config.steps, config.batch, config.charts, config.seed)
    check = Batches(held, max(1, HELD // config.batch), config.batch, config.charts, config.seed + 1)
    arguments = arguments_of(
        config,
        per_device_train_batch_size=1,  # an item is a whole batch
        per_device_eval_batch_size=1,
        use_cpu=not torch.cuda.is_available(),
        logging_steps=20,
        label_names=[],
    )
    trainer = Trainer(
        _Contrast(reranker, reads.symbols, reads.lengths[1], config.compiled),
        arguments,
        data_collator=lambda items: items[0],
        train_dataset=data,
        eval_dataset=check,
        callbacks=[Report(out / "reranker.jsonl", progress)],
    )
    trainer.can_return_loss = True  # without labels
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last if config.resume else None)
    before = {"after": oracle.card["reranker"]} if config.go_on else {}
    with_reranker(oracle, reranker, before | _card(config, zoos, sum(len(part) for part in train))).save_pretrained(out)
    return out


def _check(config: RerankerConfig) -> None:
    """Raises `UserError` for what makes no sense."""
    least = {name: 1 for name in ("steps", "batch", "width", "save_every", "targets", "workers")}
    least |= {"charts": 2, "rounds": 0, "warmup": 0, "hard": 0}
    for name, low in least.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise UserError(f"--{name.replace('_', '-')} {value}: give {low} or more", exit_code=2)
    if config.drawn < config.charts:
        raise UserError(f"--drawn {config.drawn}: fewer than the {config.charts} of a step", hint="see --charts", exit_code=2)
    if config.hard >= config.drawn:
        raise UserError(f"--hard {config.hard}: give fewer than the {config.drawn} charts of a target", hint="see --drawn", exit_code=2)
    if not config.lr > 0:
        raise UserError(f"--lr {config.lr}: give a number above 0", exit_code=2)


def _card(config: RerankerConfig, zoos: list[Zoo], targets: int) -> dict[str, Any]:
    """How the reranker was made, without the paths of this machine."""
    names = [zoo.recipe.name for zoo in zoos]
    made = [{"recipe": zoo.recipe.name, "hash": zoo.recipe.hash, "built": len(zoo.truths)} for zoo in zoos]
    training = asdict(replace(config, oracle="", zoo=names[0], also=tuple(names[1:]), out="", resume=False))
    return {"training": training, "zoos": made, "training_targets": targets}


def go_on_from(old: Reranker | None, new: Reranker, where: str) -> None:
    """Gives a new reranker the weights of an old one; parts that the old one lacks stay as they were made, and add nothing yet. Raises
    `UserError` where there is none, or where it is of another size."""
    if old is None:
        raise UserError("has no reranker to go on from", where=where, hint="leave out --go-on")
    shapes = {name: tensor.shape for name, tensor in new.state_dict().items()}
    kept = old.state_dict()
    if any(shapes.get(name) != tensor.shape for name, tensor in kept.items()):
        raise UserError(f"its reranker has {old.settings}", where=where, hint="give the same --width and --rounds")
    new.load_state_dict(kept, strict=False)


def with_reranker(oracle: Oracle, reranker: Reranker, card: dict[str, Any]) -> Oracle:
    """Gives an oracle a reranker and takes its calibration, which was fitted without."""
    oracle.model.config.reranker, oracle.model.reranker = reranker.settings, reranker
    rest = {name: value for name, value in oracle.card.items() if name not in ("calibration", "metrics", "made_by")}
    return Oracle(oracle.model, oracle.codec, rest | {"reranker": card}, oracle.anyway)
