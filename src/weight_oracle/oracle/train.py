"""Train an oracle on a zoo with `transformers.Trainer`; a killed run resumes to the same bits."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    set_seed,
)
from transformers.utils.logging import disable_progress_bar

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import Collator, Population, QuestionData, load_population, pick_apart, together, with_orders
from weight_oracle.oracle.model import ENCODERS, WeightOracle, new_config
from weight_oracle.oracle.runs import Report, arguments_of, last_checkpoint
from weight_oracle.oracle.tokenizer import BOS, EOS, PAD, SPECIALS, Codec, vocabulary
from weight_oracle.oracle.widen import can_widen, like_others, widened
from weight_oracle.truth.domain import default_names
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.store import Zoo, open_zoo

# name -> encoder width, channels, rounds; language model width, layers
SIZES = {
    "tiny": (64, 24, 1, 96, 2),
    "small": (96, 32, 1, 128, 2),
    "medium": (128, 32, 2, 192, 3),
    "base": (192, 48, 2, 256, 4),
}

BITS = (8, 4, 2)
AUGMENTED = ("chunk", "quantised", "learned")  # encodings of the raw tensors themselves
LEAST_BLOCKS = 3  # for the "residual" injection: attention must follow the output of block 1, or nothing sees the weight tokens
ORDERS = 8  # of the places of a target with several blocks that are tried
TEXT = 128  # positions for a question and its answer


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides a training run; saved with the oracle."""

    zoo: str
    out: str
    also: tuple[str, ...] = ()  # further zoos, whose targets are mixed in
    size: Literal["tiny", "small", "medium", "base"] = "small"
    backbone: str | None = None  # a folder or name of a Hugging Face causal LM instead of a small Llama trained from scratch
    encoding: Literal["atoms", "chunk", "quantised", "svd", "svd2", "learned"] = "atoms"
    tokens: int = 0  # weight tokens of a target; 0: as many as the encoding makes of it
    bits: int = 4  # of a number, if quantised: 8, 4 or 2
    canonical: bool = False  # raw encodings: of the canonical form of a target
    augment: bool = False  # raw encodings: a random symmetry of the weights in every example
    hints: bool = True  # atoms: each symbol's weight token is also trained to tell what the chart says of the symbol
    pointer: bool = True  # atoms: names are said by pointing at the weight tokens that stand for them
    interactions: bool = False  # atoms: how symbols act together is looked at too, see `weights.interact`
    refinements: int = 2  # atoms, where charts have patterns: of the guess at a pattern, see `weights.refine`
    injection: Literal["prefix", "residual"] = "prefix"
    gain: float = 1.0  # of the "residual" injection
    steps: int = 10_000
    batch: int = 64  # targets in a step
    others: int = 1  # questions about a target beside its flow chart
    lr: float = 2e-3
    warmup: int = 300
    weight_decay: float = 0.05
    blind: float = 0.1  # share of examples without weight tokens
    rename: bool = True
    reorder: float = 0.0  # share of examples in which a target's places are in another order, see `truth.places`
    noise: float = 0.08  # on the weights, in training: see `WeightEncoder.noisy`
    start: str | None = None  # a trained oracle to go on from, instead of a new one
    targets: int | None = None  # use only so many of the zoo's training targets
    bf16: bool = False  # on a CPU; a GPU that can always does
    save_every: int = 500
    seed: int = 0
    resume: bool = False


def small_llama(config: TrainConfig, vocabulary: int) -> LlamaConfig:
    """The language model of an oracle that is trained from scratch."""
    width, layers = SIZES[config.size][3:]
    if config.injection == "residual":
        layers = max(layers, LEAST_BLOCKS)
    heads = width // 32
    return LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=width * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        pad_token_id=0,
    )


def pretrained(name: str, codec: Codec) -> PreTrainedModel:
    """A Hugging Face causal language model that speaks our words. Raises `UserError` if it cannot be loaded."""
    try:
        backbone = AutoModelForCausalLM.from_pretrained(name, trust_remote_code=False, dtype=torch.float32)
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        hint = "give a folder with a config.json and weights, or a model's name"
        raise UserError("is no Hugging Face language model that can be loaded", where=name, hint=hint) from error
    tables: list[Any] = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    words = [own_words(table.weight.detach(), name, codec) for table in tables]
    backbone.resize_token_embeddings(len(codec.words), mean_resizing=False)
    tables = [backbone.get_input_embeddings(), backbone.get_output_embeddings()]
    for table, rows in zip(tables, words, strict=True):
        table.weight.data.copy_(rows)
    ids = {f"{role}_token_id": codec.ids[token] for role, token in (("pad", PAD), ("bos", BOS), ("eos", EOS))}
    backbone.config.update(ids)
    backbone.generation_config = GenerationConfig(**ids)  # the model's own way of sampling is not the oracle's
    return backbone


def own_words(table: Tensor, name: str, codec: Codec) -> Tensor:
    """A row of an embedding table for each of our words: the mean over the pieces that the model's own tokenizer writes it with, and
    where it has none a random row like the others."""
    rows = table.mean(0) + table.std(0) * torch.randn(len(codec.words), table.shape[1], generator=torch.Generator().manual_seed(0))
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return rows
    for i, word in enumerate(codec.words):
        pieces = [p for p in tokenizer(" " + word, add_special_tokens=False)["input_ids"] if p < len(table)]
        if word not in SPECIALS and pieces:
            rows[i] = table[pieces].mean(0)
    return rows


def encoder_config(config: TrainConfig, zoos: Sequence[Zoo]) -> EncoderConfig:
    """Reads what all the zoos hold. Raises `UserError` where these differ in symbols or answers."""
    width, channels, rounds = SIZES[config.size][:3]
    domains = [zoo.recipe.domain for zoo in zoos]
    first = domains[0]
    for zoo, domain in zip(zoos, domains, strict=True):
        if (domain.symbols, domain.answers) != (first.symbols, first.answers):
            what = f"has {domain.symbols} symbols and {domain.answers} answers, and the first zoo {first.symbols} and {first.answers}"
            raise UserError(what, where=str(zoo.path), hint="train on zoos with the same numbers of symbols and answers")
    _check_encoding(config)
    lengths = min(d.lengths[0] for d in domains), max(d.lengths[1] for d in domains)
    named = first.symbols + first.answers
    families = tuple(sorted({family for zoo in zoos for family in zoo.recipe.families}))
    settings = EncoderConfig(config.encoding, first.symbols, first.answers, lengths, width, channels, rounds, families=families)
    settings = replace(settings, tokens=config.tokens)
    if config.encoding == "atoms":
        # tests that name many symbols at once are read place by place
        patterns = any({"pattern", "contains"} & {*zoo.recipe.charts.kinds, *zoo.recipe.triggers.kinds} for zoo in zoos)
        chances = any(zoo.recipe.chances for zoo in zoos)
        refinements = config.refinements if patterns else 0
        settings = replace(settings, places=patterns, refinements=refinements, sizes=chances, interactions=config.interactions)
        if patterns and lengths[0] < lengths[1] and {d.lengths[1] for d in domains} == {lengths[1]}:
            # a pattern that inputs of every length may have shows in the longest ones
            settings = replace(settings, lengths=(lengths[1],) * 2, longest=True)
        return replace(settings, latents=config.tokens - named) if config.tokens > named else settings
    shapes = [zoo.shape(shard) for zoo in zoos for shard in zoo.shards] if config.encoding in ("svd", "svd2") else []
    side = max((max(shape.width, shape.neurons) + 1 for shape in shapes), default=0)
    return replace(settings, bits=config.bits, canonical=config.canonical, augment=config.augment, side=side)


def _check_encoding(config: TrainConfig) -> None:
    """Raises `UserError` for what the encodings cannot do."""
    if config.encoding not in ENCODERS:
        raise UserError(f"there is no encoding called {config.encoding!r}", hint=f"choose among {', '.join(ENCODERS)}", exit_code=2)
    if config.tokens < 0:
        raise UserError(f"--tokens {config.tokens}: a target has at least one weight token", hint="give 1 or more", exit_code=2)
    if config.refinements < 0:
        raise UserError(f"--refinements {config.refinements}: less than none", hint="give 0 or more", exit_code=2)
    if config.noise < 0:
        raise UserError(f"--noise {config.noise}: less than none", hint="give 0 or more", exit_code=2)
    if config.others < 0:
        raise UserError(f"--others {config.others}: less than none", hint="give 0 or more", exit_code=2)
    for name, share in (("reorder", config.reorder), ("blind", config.blind)):
        if not 0 <= share <= 1:
            raise UserError(f"--{name} {share}: no share", hint="give 0 to 1", exit_code=2)
    if config.reorder and config.encoding != "atoms":
        raise UserError("--reorder is for atoms: other encodings know no places", hint="leave it out", exit_code=2)
    if config.bits not in BITS:
        raise UserError(f"--bits {config.bits}: numbers can have 8, 4 or 2 bits", exit_code=2)
    if config.interactions and config.encoding != "atoms":
        raise UserError("--interactions is for atoms", hint="leave it out", exit_code=2)
    if config.encoding == "atoms" and (config.canonical or config.augment):
        raise UserError("atoms do not change under symmetries: --canonical and --augment are for the others", exit_code=2)
    if config.augment and config.encoding not in AUGMENTED:
        raise UserError(f"--augment is for {', '.join(AUGMENTED)}", hint="leave it out", exit_code=2)
    if config.augment and config.canonical:
        raise UserError("--canonical and --augment undo each other", hint="give one of them", exit_code=2)


def new_oracle(config: TrainConfig, zoos: Sequence[Zoo], codec: Codec, start: Oracle | None = None) -> WeightOracle:
    """An untrained oracle, around a small Llama or a pretrained backbone; it reads the lengths that `start` reads too."""
    set_seed(config.seed)
    backbone = pretrained(config.backbone, codec) if config.backbone else None
    settings = small_llama(config, len(codec.words)) if backbone is None else backbone.config
    reads = encoder_config(config, zoos)
    if start is not None:
        before = start.settings
        low, high = zip(reads.lengths, before.lengths, strict=True)
        more = {"sizes": reads.sizes or before.sizes, "interactions": reads.interactions or before.interactions}
        lengths = reads.lengths if before.places else (min(low), max(high))
        reads = replace(reads, lengths=lengths, **more)
    names = default_names(reads.symbols, reads.answers)
    named = config.pointer and config.encoding == "atoms" and not reads.resampled
    pointer = [codec.ids[word] for word in (*names.symbols, *names.answers)] if named else None
    model = WeightOracle(new_config(reads, settings, config.injection, config.gain, pointer))
    if backbone is not None:
        model.backbone = backbone
    if config.injection == "residual" and len(model.blocks()) < LEAST_BLOCKS:
        what = f"has {len(model.blocks())} blocks; no text would see what enters at the output of the second"
        raise UserError(what, where=str(config.backbone), hint="use --injection prefix")
    return model


def go_on_from(trained: Oracle, where: str, model: WeightOracle, codec: Codec) -> dict[str, Any]:
    """Gives a new oracle the weights of a trained one; returns how that was made. Raises `UserError` where they are not of one kind.

    A word that the trained one does not know keeps its random embedding, and one that does not point at names, refine its guesses, or see
    logits in nats, learns to. Where the new one reads more symbols or lengths, it begins as `widen` says. A reranker is left out.
    """
    old, new = trained.model.state_dict(), model.state_dict()
    old = {name: tensor for name, tensor in old.items() if not name.startswith("reranker.")}
    reads, wider = trained.settings, model.config.encoder_config
    widens = (reads.symbols, reads.lengths) != (wider.symbols, wider.lengths) and can_widen(reads, wider)
    if widens:
        old, reads = widened(old, reads, wider), replace(reads, symbols=wider.symbols, lengths=wider.lengths)
    free = {"families": (), "refinements": 0, "sizes": False, "interactions": False, "longest": False}
    alike = lambda settings: replace(settings, **free)  # noqa: E731
    kind = lambda c: (c.backbone["model_type"], c.injection, c.gain)  # noqa: E731
    missing = {part for part in ("pointer", "refine", "place_state") if getattr(trained.model, part) is None}
    parts = () if trained.settings.sizes else ("encoder.answer_size.", "encoder.meeting_size.")
    parts += () if trained.settings.interactions and not widens else ("encoder.interact.",)
    old |= {name: tensor for name, tensor in new.items() if name.split(".")[0] in missing or name.startswith(parts)}
    tables = {name for name in new if name.endswith(("embed_tokens.weight", "lm_head.weight"))}
    shapes = lambda tensors: {name: t.shape[name in tables :] for name, t in tensors.items()}  # noqa: E731
    if alike(reads) != alike(wider) or kind(trained.model.config) != kind(model.config) or shapes(old) != shapes(new):
        hint = "give the options it was trained with, and zoos whose inputs have the same lengths and symbols (or more)"
        raise UserError("is an oracle of another size, encoding or domain", where=where, hint=hint)
    known = [word for word in codec.words if word in trained.codec.ids]
    for name in tables:
        rows = new[name].clone()
        rows[[codec.ids[word] for word in known]] = old[name][[trained.codec.ids[word] for word in known]]
        if widens:  # it has only learned that it never says them
            names = [codec.ids[word] for word in default_names(wider.symbols, wider.answers).symbols]
            rows = like_others(rows, names[: trained.settings.symbols], names[trained.settings.symbols :])
        old[name] = rows
    model.load_state_dict(old)
    return {name: trained.card[name] for name in ("training", "zoos", "after") if name in trained.card}


def _data(
    zoos: Sequence[Zoo], split: str, model: WeightOracle, most: int | None, stage: Callable[[str, int, int], None] | None = None
) -> list[tuple[Zoo, Population]]:
    """The targets of a split that learned their chart, at most so many of each zoo."""
    settings = model.config.encoder_config
    wanted = [(zoo, pick_apart(zoo, split, zoos)[:most]) for zoo in zoos]
    encoder, found = ENCODERS[settings.encoding], []
    for zoo, places in wanted:
        if len(places):
            folding = partial(stage, f"folding targets of {zoo.recipe.name} ({split})") if stage else None
            found.append((zoo, load_population(zoo, encoder, settings, places, folding)))
    if not found:
        where = ", ".join(str(zoo.path) for zoo in zoos)
        raise UserError(f"no target of the {split} split has learned its chart", where=where, hint="build more targets")
    return found


@torch.no_grad()
def _check_room(model: WeightOracle, population: Population, names: Tensor, where: str) -> None:
    tokens = model.eval().weight_tokens(population.take([0]), names).shape[1]
    room = getattr(model.backbone.config, "max_position_embeddings", None)
    if room and room < tokens + TEXT:
        raise UserError(
            f"takes {room} positions; {tokens} weight tokens and the text need {tokens + TEXT}", where=where, hint="choose another"
        )


def train(
    config: TrainConfig,
    progress: Callable[[int, int, dict], None] | None = None,
    device: str | None = None,
    stage: Callable[[str, int, int], None] | None = None,
) -> Path:
    """Train, save and return the folder. With `resume`, goes on from the last checkpoint in it; the result is the same as without the kill.
    `stage` is told how far what comes before the training is, where that takes long.

    Raises `UserError` for a zoo without learned targets, or a folder that already holds an oracle or a run.
    """
    disable_progress_bar()  # of writing checkpoints, in the midst of ours
    out = Path(config.out)
    last = last_checkpoint(out / "run")
    if not config.resume and (last or (out / "oracle.json").exists()):
        raise UserError("already holds a training run", where=str(out), hint="give --resume, or another folder")
    zoos = [open_zoo(path) for path in (config.zoo, *config.also)]
    codec = Codec(vocabulary())
    start = load_oracle(config.start) if config.start else None
    model = new_oracle(config, zoos, codec, start)
    before = go_on_from(start, str(config.start), model, codec) if start else None
    found = _data(zoos, "train", model, config.targets, stage)
    held = together([population for _, population in _data(zoos, "validation", model, 512, stage)])
    if config.reorder:
        trying = partial(stage, "trying orders of places") if stage else None
        for number, (zoo, some) in enumerate(found):
            found[number] = zoo, with_orders(some, zoo, ORDERS, config.seed, out / "run" / f"orders-{number}.npz", trying)
    population = together([some for _, some in found])
    names = model.name_tokens(codec)
    if config.backbone:
        _check_room(model, population, names, config.backbone)
    pad = codec.ids[PAD]
    length = config.steps * config.batch
    asked = config.seed, config.others, config.blind, config.rename
    clear = [domain for zoo in zoos if (domain := zoo.recipe.clear_domain)]
    data = QuestionData(population, codec, length, *asked, batch=config.batch, reorder=config.reorder, clear=clear)
    check = QuestionData(held, codec, len(held), config.seed + 1, config.others, blind=0.0)
    cpu = device == "cpu" or not torch.cuda.is_available()
    out.mkdir(parents=True, exist_ok=True)
    arguments = arguments_of(
        config,
        per_device_train_batch_size=config.batch,
        per_device_eval_batch_size=128,
        bf16=config.bf16 or (not cpu and torch.cuda.is_bf16_supported()),
        use_cpu=cpu,
        logging_steps=100,
        label_names=["labels"],
    )
    learning = Collator(population, names, pad, config.noise, config.augment, config.hints)
    collate = _Collators(learning, Collator(held, names, pad))
    trainer = _Trainer(model, arguments, train_dataset=data, eval_dataset=check, callbacks=[Report(out / "log.jsonl", progress)])
    trainer.collators = collate
    trainer.remove_callback(PrinterCallback)
    trainer.train(resume_from_checkpoint=last if config.resume else None)
    card = _card(config, zoos, before) | {"training_targets": len(population)}
    Oracle(model, codec, card).save_pretrained(out)
    return out


def _card(config: TrainConfig, zoos: Sequence[Zoo], before: dict[str, Any] | None) -> dict[str, Any]:
    """How the oracle was made, without the paths of this machine; `before` is the same of the oracle that it started from."""
    names = [zoo.recipe.name for zoo in zoos]
    made = [{"recipe": zoo.recipe.name, "hash": zoo.recipe.hash, "built": len(zoo.truths)} for zoo in zoos]
    training = asdict(replace(config, zoo=names[0], also=tuple(names[1:]), out="", resume=False, start=None))
    made_of = {"training": training, "zoos": made} | ({"chances": True} if any(zoo.recipe.chances for zoo in zoos) else {})
    return made_of | ({"after": before} if before else {})


@dataclass(frozen=True)
class _Collators:
    train: Collator
    held: Collator


class _Trainer(Trainer):
    """Trainer with one collator for each population, as a batch is taken from the population it is about."""

    collators: _Collators

    def get_train_dataloader(self):
        self.data_collator = self.collators.train
        return super().get_train_dataloader()

    def get_eval_dataloader(self, eval_dataset=None):
        self.data_collator = self.collators.held
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = self.collators.train
