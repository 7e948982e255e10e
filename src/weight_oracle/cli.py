"""The command line: one frozen dataclass per command, its fields the arguments.

Nothing heavy is imported before a command runs, so `--help` answers at once; what the commands do is in `commands`.
"""

import errno
import json
import os
import signal
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro
from tyro.conf import FlagCreatePairsOff, Positional, arg, subcommand

from weight_oracle.errors import UserError

if TYPE_CHECKING:
    from weight_oracle.commands import Output

INTERRUPTED = 130  # what shells report for Ctrl-C
PIPE_CLOSED = 141

NO_HINT = arg(help_behavior_hint="")  # the help of an option says itself what happens without it
Text = Annotated[str | None, NO_HINT]
TargetPath = Positional[Annotated[str, arg(metavar="TARGET", help="Folder of a Hugging Face checkpoint.")]]
ZooPath = Positional[Annotated[str, arg(metavar="ZOO", help="Folder of a zoo.")]]
OraclePath = Annotated[Text, arg(metavar="ORACLE", help="Folder or name of an oracle. Default: a bundled one that reads the target.")]
Anyway = Annotated[bool, NO_HINT, arg(help="Hear an oracle that is blind, too.")]
Guess = Annotated[bool, NO_HINT, arg(help="Show the best guess where the oracle does not know.")]
Samples = Annotated[int, arg(metavar="N", help="Charts, and triggers, drawn at random, with --check.")]
Count = Annotated[int | None, NO_HINT, arg(metavar="N")]


@dataclass(frozen=True, kw_only=True)
class Command:
    """What every command takes."""

    json: Annotated[bool, NO_HINT, arg(help="Print one JSON object.")] = False
    seed: Annotated[int | None, NO_HINT, arg(metavar="INT", help="Fixes everything that is drawn at random.")] = None
    debug: Annotated[bool, NO_HINT, arg(help="Show the traceback of an error.")] = False

    def run(self) -> "Output":
        """Do it. The function of the same name in `commands` says how."""
        if self.seed is not None and not 0 <= self.seed < 1 << 32:
            raise UserError(f"{self.seed} is no seed", hint="--seed takes a whole number from 0 to 2^32 - 1", exit_code=2)
        if not isinstance(self, Questions):
            _import_torch()
        from weight_oracle import commands

        return getattr(commands, COMMANDS[type(self)])(self)


@dataclass(frozen=True, kw_only=True)
class TargetCommand(Command):
    """What every command about one target takes."""

    target: TargetPath
    symbols: Annotated[Text, arg(metavar="A,B,C", help="Input symbols. Default: all that are no answers.")] = None
    answers: Annotated[Text, arg(metavar="P,Q", help="Answer symbols. Default: those of p, q, r, s that are there.")] = None
    lengths: Annotated[
        Text, arg(metavar="LO-HI", help="Lengths of inputs. Default: those in config.json, the oracle's, or 4 to n_positions - 2.")
    ] = None


@dataclass(frozen=True, kw_only=True)
class Demo(Command):
    """Train a small network on a fresh flow chart, and have it read from its weights."""

    out: Annotated[str, arg(metavar="DIR", help="Where the checkpoints and index.html go.")] = "demo"
    oracle: OraclePath = None
    anyway: Anyway = False


@dataclass(frozen=True, kw_only=True)
class ZooBuild(Command):
    """Train a zoo of targets. Stop it at any time: run again, it goes on where it was."""

    recipe: Positional[Annotated[str, arg(metavar="RECIPE", help="A recipe's name, or a JSON file.")]]
    out: Positional[Annotated[str, arg(metavar="OUT", help="Folder of the zoo.")]]
    count: Annotated[Count, arg(help="How many targets, rounded up to whole shards.")] = None
    workers: Annotated[int, arg(metavar="W", help="Processes at work.")] = 1
    shards: Annotated[Text, arg(metavar="A:B", help="Build shards A to B - 1 only, instead of --count.")] = None
    device: Annotated[Literal["cpu", "cuda"], arg(help="Where targets are trained.")] = "cpu"


@dataclass(frozen=True, kw_only=True)
class ZooShow(Command):
    """What is in a zoo: counts, accuracies, an example chart."""

    zoo: ZooPath


@dataclass(frozen=True, kw_only=True)
class ZooExport(Command):
    """Write one target of a zoo as a Hugging Face checkpoint."""

    zoo: ZooPath
    index: Positional[Annotated[int, arg(metavar="INDEX", help="Its number.")]]
    out: Positional[Annotated[str, arg(metavar="OUT_DIR", help="Folder of the checkpoint.")]]


@dataclass(frozen=True, kw_only=True)
class Train(Command):
    """Train an oracle on a zoo."""

    zoo: ZooPath
    out: Positional[Annotated[str, arg(metavar="OUT", help="Folder of the oracle.")]]
    also: Annotated[tuple[str, ...], NO_HINT, arg(metavar="ZOO", help="Further zoos, whose targets are mixed in.")] = ()
    size: Annotated[Literal["tiny", "small", "medium", "base"], arg(help="Size of the encoder and of a new language model.")] = "small"
    backbone: Annotated[Text, arg(metavar="HF_MODEL", help="Start from this causal LM instead of a new small one.")] = None
    resume: Annotated[bool, NO_HINT, arg(help="Go on from the last checkpoint of a run that was stopped.")] = False
    start: Annotated[
        Text, arg(metavar="ORACLE", help="Go on from this trained oracle, or a bundled one by its name, instead of a new one.")
    ] = None
    encoding: Annotated[
        Literal["atoms", "chunk", "quantised", "svd", "svd2", "learned"], arg(help="How weights become tokens: docs/encodings.md.")
    ] = "atoms"
    tokens: Annotated[int, NO_HINT, arg(metavar="T", help="Weight tokens of a target. Default: as many as the encoding makes.")] = 0
    bits: Annotated[int, arg(metavar="8|4|2", help="Bits of a quantised number.")] = 4
    canonical: Annotated[bool, NO_HINT, arg(help="Raw encodings: bring each target to its canonical form first.")] = False
    augment: Annotated[bool, NO_HINT, arg(help="Raw encodings: a random symmetry of the weights in every example.")] = False
    hints: Annotated[bool, arg(help="Atoms: symbols' tokens are trained to tell what the chart says of them.")] = True
    pointer: Annotated[bool, arg(help="Atoms: names are said by pointing at the weight tokens that stand for them.")] = True
    refinements: Annotated[int, arg(metavar="N", help="Atoms: of the guess at a pattern, where charts have such.")] = 2
    injection: Annotated[Literal["prefix", "residual"], arg(help="Where the weight tokens enter.")] = "prefix"
    gain: Annotated[float, arg(help="Strength of the residual injection.")] = 1.0
    steps: Annotated[int, arg(help="Optimiser steps.")] = 10_000
    batch: Annotated[int, arg(help="Targets in a step.")] = 64
    others: Annotated[int, arg(metavar="N", help="Questions about a target in an example, beside its flow chart.")] = 1
    lr: Annotated[float, arg(help="Peak learning rate.")] = 2e-3
    warmup: Annotated[int, arg(metavar="N", help="Steps in which the rate rises.")] = 300
    blind: Annotated[float, arg(metavar="SHARE", help="Of the examples: those without weight tokens.")] = 0.1
    noise: Annotated[float, arg(help="On the weights, in training: a share of their size.")] = 0.08
    interactions: Annotated[bool, arg(help="Atoms: also look at how symbols act together: docs/wider.md.")] = False
    reorder: Annotated[float, arg(metavar="SHARE", help="Of the examples: those with a target's places in another order.")] = 0.0
    targets: Annotated[Count, arg(help="Use only so many targets. Default: all that learned.")] = None
    bf16: Annotated[bool, arg(help="On a CPU: products in bf16. A GPU that can does so in any case.")] = False
    save_every: Annotated[int, arg(metavar="N", help="Steps from one checkpoint to the next.")] = 500


@dataclass(frozen=True, kw_only=True)
class TrainReranker(Command):
    """Train a reranker for an oracle: it compares the charts that the oracle might mean by how a target's layers respond to mixtures."""

    oracle: Positional[Annotated[str, arg(metavar="ORACLE", help="Folder of an oracle, or a bundled one by its name.")]]
    zoo: ZooPath
    out: Positional[Annotated[str, arg(metavar="OUT", help="Folder of the oracle with its reranker.")]]
    also: Annotated[tuple[str, ...], NO_HINT, arg(metavar="ZOO", help="Further zoos, whose targets are mixed in.")] = ()
    resume: Annotated[bool, NO_HINT, arg(help="Go on from the last checkpoint of a run that was stopped.")] = False
    steps: Annotated[int, arg(help="Optimiser steps.")] = 3000
    batch: Annotated[int, arg(help="Targets in a step.")] = 24
    charts: Annotated[int, arg(metavar="N", help="Charts that are compared for each target in a step, its own among them.")] = 6
    drawn: Annotated[int, arg(metavar="N", help="Charts that are drawn for each target.")] = 15
    hard: Annotated[int, arg(metavar="N", help="Of these, charts near the right one that the oracle's denoiser finds.")] = 0
    lr: Annotated[float, arg(help="Peak learning rate.")] = 3e-3
    warmup: Annotated[int, arg(metavar="N", help="Steps in which the rate rises.")] = 50
    width: Annotated[int, arg(metavar="W", help="Numbers that are kept of every cell.")] = 24
    rounds: Annotated[int, arg(metavar="N", help="How often cells hear of each other.")] = 2
    twice: Annotated[bool, arg(help="Compare also what is made of two symbols that are put at two places.")] = True
    denoises: Annotated[bool, arg(help="Train a denoiser too, by which charts are found that were not said.")] = True
    go_on: Annotated[bool, arg(help="Begin with the reranker that the oracle has.")] = False
    targets: Annotated[Count, arg(help="Use only so many targets of each zoo. Default: all that learned.")] = None
    workers: Annotated[int, arg(metavar="W", help="Processes that draw charts.")] = 1
    compiled: Annotated[bool, arg(help="Train under torch.compile, where that works.")] = True
    save_every: Annotated[int, arg(metavar="N", help="Steps from one checkpoint to the next.")] = 200


@dataclass(frozen=True, kw_only=True)
class Scale(Command):
    """Train an oracle on targets that are trained beside it, without storing a zoo. Stop it at any time: run again, it goes on."""

    recipes: Positional[Annotated[tuple[str, ...], arg(metavar="RECIPE", help="Names of recipes for training, or JSON files.")]]
    out: Annotated[str, arg(metavar="ORACLE", help="Folder of the oracle, and of the run's checkpoint.")]
    slice: Annotated[float | None, NO_HINT, arg(metavar="SECONDS", help="Stop before so long, and go on when run again.")] = None
    size: Annotated[Literal["tiny", "small", "medium", "base"], arg(help="Size of the encoder and of the language model.")] = "small"
    steps: Annotated[int, arg(help="Optimiser steps in all.")] = 10_000
    batch: Annotated[int, arg(help="Targets in a step.")] = 64
    pool: Annotated[int, arg(metavar="N", help="Shards of targets that are held at once; the oldest makes room for the newest.")] = 16
    first: Annotated[Count, arg(metavar="N", help="Shards to begin with; each round adds one. Default: as many as the pool holds.")] = None
    round: Annotated[int, arg(metavar="N", help="Steps from one new shard to the next.")] = 50
    seconds: Annotated[float | None, NO_HINT, arg(metavar="SECONDS", help="End after so long, at rates that fall with the time.")] = None
    shards: Annotated[Count, arg(metavar="N", help="Train at most so many shards, and then go on with those.")] = None
    others: Annotated[int, arg(metavar="N", help="Questions about a target beside its flow chart.")] = 1
    blind: Annotated[float, arg(metavar="SHARE", help="Share of examples without weights, from which the prior is learned.")] = 0.1
    interactions: Annotated[bool, arg(help="Atoms: also look at how symbols act together: docs/wider.md.")] = False
    reorder: Annotated[float, arg(metavar="SHARE", help="Share of examples of one-block targets with their places in another order.")] = 0.0
    noise: Annotated[float, arg(help="On the weights of targets, in training: the strongest, as a share of their RMS.")] = 0.08
    shard_size: Annotated[Count, arg(help="Targets in a shard. Default: as in the recipe.")] = None
    lr: Annotated[float, arg(help="Peak learning rate.")] = 2e-3
    warmup: Annotated[int, arg(metavar="N", help="Steps in which the rate rises.")] = 300
    start: Annotated[
        Text, arg(metavar="ORACLE", help="Go on from this trained oracle, or a bundled one by its name, instead of a new one.")
    ] = None
    compiled: Annotated[bool, arg(help="Train targets under torch.compile.")] = True
    save_every: Annotated[float, arg(metavar="SECONDS", help="From one checkpoint to the next.")] = 300.0
    workers: Annotated[int, arg(metavar="W", help="Processes that draw questions.")] = 0
    builders: Annotated[int, arg(metavar="W", help="Processes that train the next shards meanwhile, on the same device.")] = 0
    at_once: Annotated[int, arg(metavar="W", help="Of these, how many may use a GPU at the same time; more than one wants MPS.")] = 1
    cache: Annotated[bool, arg(help="Keep the pool's targets on disk between slices; otherwise they are trained again.")] = True


@dataclass(frozen=True, kw_only=True)
class Eval(Command):
    """Measure an oracle on a zoo: all controls, all metrics."""

    oracle: Positional[Annotated[str, arg(metavar="ORACLE", help="Folder of an oracle, or a bundled one by its name.")]]
    zoo: ZooPath
    split: Annotated[Literal["train", "validation", "test"], arg(help="Which targets.")] = "test"
    targets: Annotated[Count, arg(help="Use only so many targets.")] = None
    held_out_phrasings: Annotated[bool, NO_HINT, arg(help="Ask in wordings never trained on.")] = False
    training: Annotated[Text, arg(metavar="ZOO", help="The zoo that the oracle was trained on, if it is another.")] = None
    views: Annotated[int, arg(metavar="N", help="Renamings under which each question is asked.")] = 8


@dataclass(frozen=True, kw_only=True)
class Compare(Command):
    """Train an oracle with each encoding, alike in all else, and compare them. Run it again, or twice at once: it goes on."""

    zoo: ZooPath
    out: Positional[Annotated[str, arg(metavar="OUT", help="Folder of the comparison.")]]
    test: Annotated[Text, arg(metavar="ZOO", help="Measure on the test split of this zoo. Default: that of ZOO.")] = None
    encodings: Annotated[str, arg(metavar="A,B", help="Which encodings.")] = "chunk,quantised,svd,svd2,learned,atoms"
    tokens: Annotated[int, arg(metavar="T", help="Weight tokens of a target.")] = 32
    seeds: Annotated[str, arg(metavar="A,B", help="A training of each encoding for each seed.")] = "0,1,2"
    variants: Annotated[str, arg(metavar="A,B", help="What else is trained, with one seed; or `none`.")] = (
        "memorise,tokens,bits,canonical,augment,natural,hints"
    )
    lr: Annotated[str, arg(metavar="A,B,C", help="Learning rates, of which validation chooses one for each encoding.")] = "1e-3,2e-3,4e-3"
    steps: Annotated[int, arg(help="Optimiser steps.")] = 600
    sweep_steps: Annotated[Count, arg(help="Steps to choose the learning rate by. Default: a quarter of the steps.")] = None
    size: Annotated[Literal["tiny", "small", "medium", "base"], arg(help="Size of the encoders and of the language model.")] = "tiny"
    batch: Annotated[int, arg(help="Targets in a step.")] = 64
    targets: Annotated[Count, arg(help="Train on only so many targets. Default: all that learned.")] = None
    test_targets: Annotated[int, arg(metavar="N", help="Measure on so many targets.")] = 256


@dataclass(frozen=True, kw_only=True)
class Questions(Command):
    """What can be asked."""


@dataclass(frozen=True, kw_only=True)
class Ask(TargetCommand):
    """Ask one question about a checkpoint. Only its weights are looked at."""

    question: Positional[Annotated[str, arg(metavar="QUESTION", help="See `weight-oracle questions`.")]]
    oracle: OraclePath = None
    guess: Guess = False
    why: Annotated[bool, NO_HINT, arg(help="Also tell which layers, heads and neurons the answer rests on.")] = False
    check: Annotated[bool, NO_HINT, arg(help="Also run the target, and tell its answer apart.")] = False
    samples: Samples = 16
    anyway: Anyway = False


@dataclass(frozen=True, kw_only=True)
class Read(TargetCommand):
    """Read the whole flow chart of a checkpoint from its weights."""

    oracle: OraclePath = None
    guess: Guess = False
    check: Annotated[bool, NO_HINT, arg(help="Also run the target, and compare it with several charts that the oracle might mean.")] = False
    samples: Samples = 16
    anyway: Anyway = False


@dataclass(frozen=True, kw_only=True)
class Verify(TargetCommand):
    """Run a checkpoint and compare it with a flow chart."""

    chart: Positional[Annotated[str, arg(metavar="CHART", help="A flow chart in one line, or a file that holds one.")]]


@dataclass(frozen=True, kw_only=True)
class Scramble(TargetCommand):
    """Write a checkpoint with the same function and other weights, by random symmetries."""

    out: Positional[Annotated[str, arg(metavar="OUT", help="Folder of the scrambled checkpoint.")]]
    only: Annotated[Text, arg(metavar="KIND,KIND", help="Only these symmetries: heads, neurons, rotation, … Default: all.")] = None


@dataclass(frozen=True, kw_only=True)
class Budget(Command):
    """How many embeddings it takes to read a network's weights, for each encoding, and how much fits in a context.

    A token is one embedding of d_model numbers of 16 bits. With weights at hand, also the error of what is dropped.
    """

    network: Positional[Annotated[str, arg(metavar="CONFIG_OR_TARGET", help="A config.json, or the folder of a Hugging Face checkpoint.")]]
    context: Annotated[int, arg(metavar="TOKENS", help="Size of the context.")] = 131072
    tokens: Annotated[int, arg(metavar="T", help="Tokens of the learned encoding.")] = 32
    ranks: Annotated[int, arg(metavar="R", help="Directions that SVD keeps of each linear map in a layer.")] = 16


COMMANDS: dict[type[Command], str] = {
    Demo: "demo", ZooBuild: "zoo_build", ZooShow: "zoo_show", ZooExport: "zoo_export", Train: "train", Eval: "evaluate",
    Questions: "questions", Ask: "ask", Read: "read", Verify: "verify", Compare: "compare", Scramble: "scramble",
    Budget: "budget", Scale: "scale", TrainReranker: "train_reranker",
}  # fmt: skip
AnyZoo = (
    Annotated[ZooBuild, subcommand("build")]
    | Annotated[ZooShow, subcommand("show")]
    | Annotated[ZooExport, subcommand("export")]
)  # fmt: skip
AnyCommand = (
    Annotated[Demo, subcommand("demo")]
    | Annotated[AnyZoo, subcommand("zoo", description="Build, show and export populations of targets.")]
    | Annotated[Train, subcommand("train")]
    | Annotated[TrainReranker, subcommand("train-reranker")]
    | Annotated[Scale, subcommand("scale")]
    | Annotated[Eval, subcommand("eval")]
    | Annotated[Questions, subcommand("questions")]
    | Annotated[Ask, subcommand("ask")]
    | Annotated[Read, subcommand("read")]
    | Annotated[Verify, subcommand("verify")]
    | Annotated[Compare, subcommand("compare")]
    | Annotated[Scramble, subcommand("scramble")]
    | Annotated[Budget, subcommand("budget")]
)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit code. Wrong arguments end in tyro's message and `SystemExit(2)`."""
    about = "Reads a neural network's weights and says, in words, what the network does."
    command: Command = tyro.cli(AnyCommand, prog="weight-oracle", description=about, args=argv, config=(FlagCreatePairsOff,))  # type: ignore[arg-type]
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    try:
        output = command.run()
        print(json.dumps(output.data) if command.json else output.text, flush=True)
        return 0
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the interpreter's last flush is quiet too
        return PIPE_CLOSED
    except (Exception, KeyboardInterrupt) as error:
        if command.debug:
            raise
        text, code = _explain(error)
        print(f"weight-oracle: {text}", file=sys.stderr)
        return code


def _import_torch() -> None:
    """Ctrl-C while torch starts would make its C++ part abort with a complaint; for that moment, it ends the process at once."""
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    import torch  # noqa: F401

    signal.signal(signal.SIGINT, before)


def _explain(error: BaseException) -> tuple[str, int]:
    """One line, and the exit code."""
    match error:
        case UserError():
            return str(error), error.exit_code
        case KeyboardInterrupt():
            return "stopped; what is built is kept", INTERRUPTED
        case OSError(errno=errno.ENOSPC | errno.EDQUOT):
            return f"{error.filename or 'the disk'}: no space left — free some and run it again: what is built is kept", 1
        case OSError(strerror=str()):
            return f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror), 1
        case MemoryError():
            return "out of memory — take a smaller target, batch or number of workers", 1
    said: Any = " ".join(str(error).split())[:200] or "no message"
    return f"{type(error).__name__}: {said} — not expected; --debug shows the traceback", 1
