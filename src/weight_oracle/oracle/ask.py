"""`Oracle`: load it, give it a target, ask."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.calibrate import apply_calibration
from weight_oracle.oracle.generate import Reply, generate
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.model import ENCODERS, WeightOracle, WeightOracleConfig
from weight_oracle.oracle.reconsider import Expectation, consider
from weight_oracle.oracle.tokenizer import SPECIALS, Codec, make_tokenizer
from weight_oracle.oracle.views import VIEWS, argument_in, draw_views, in_own_slots, tokens_of, vote
from weight_oracle.targets.checkpoint import load_target
from weight_oracle.targets.safe import check_finite, read_json, read_safetensors, read_vocabulary, shown
from weight_oracle.targets.stack import stack_targets
from weight_oracle.targets.target import Target
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import Names, default_names
from weight_oracle.truth.flowchart import FlowChart, to_text
from weight_oracle.truth.mermaid import mermaid
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import phrasing
from weight_oracle.truth.questions import WORKED_OUT, argument_text, in_names, work_out
from weight_oracle.truth.understand import understand

BUNDLED = "charts"
FORMAT = 2  # of an oracle's folder
MAX_IFS = 4  # in a chart that is read
THRESHOLD = 0.5  # calibrated probability under which the oracle says that it does not know


@dataclass(frozen=True)
class Answer:
    """What the oracle says, in the target's own names, and how likely it is to be right. `known` is false below the threshold."""

    text: str
    probability: float
    known: bool
    kind: str


@dataclass(frozen=True)
class Reading:
    """The flow chart the oracle reads, always its best guess, and the probability that it is right on 99 % of the domain."""

    chart: FlowChart
    text: str
    probability: float
    known: bool
    mermaid: str


@dataclass(frozen=True, eq=False)
class Encoded:
    """A target's weight tokens under every view (see `oracle.views`), made once for many questions."""

    target: Target
    tokens: Float[Tensor, "views T d"]


class Oracle:
    """A trained oracle. Targets are folders or `Target` objects; wherever one is taken, an `Encoded` one saves its encoding."""

    def __init__(self, model: WeightOracle, codec: Codec, card: dict[str, Any]):
        self.model, self.codec, self.card = model.eval(), codec, card
        self.names = model.name_tokens(codec)
        self.settings = model.config.encoder_config
        self.views = draw_views(VIEWS, self.settings.symbols, self.settings.answers)

    @property
    def expectation(self) -> Expectation:
        """What charts are like, apart from any target, as its card has it."""
        return Expectation.from_card(self.card)

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None) -> "Oracle":
        """The oracle in a folder, or the bundled one. Raises `UserError` for anything that is not an oracle of this version."""
        folder = Path(path) if path else Path(str(files("weight_oracle"))) / "bundled" / BUNDLED
        if not (folder / "oracle.json").is_file():
            raise UserError("is no oracle: there is no oracle.json", where=str(folder), hint="train one with `weight-oracle train`")
        card = read_json(folder / "oracle.json")
        if card.get("format", FORMAT) != FORMAT:
            raise UserError(f"is an oracle of version {card['format']}; this is version {FORMAT}", where=str(folder), hint="train it again")
        config, weights = read_json(folder / "config.json"), read_safetensors(folder / "model.safetensors")
        for name, tensor in weights.items():
            check_finite(name, tensor, folder / "model.safetensors")
        ids = read_vocabulary(folder / "tokenizer.json")
        try:
            model = WeightOracle(
                WeightOracleConfig(**{k: v for k, v in config.items() if k in ("encoder", "backbone", "injection", "gain")})
            )
            missing, unexpected = model.load_state_dict(weights, strict=False)
            if sorted(ids.values()) != list(range(model.backbone.config.vocab_size)) or not set(SPECIALS) <= set(ids):
                raise ValueError("its tokenizer and its model have different vocabularies")
            tied = {"backbone.lm_head.weight"} if model.backbone.config.tie_word_embeddings else set()
            if wrong := set(missing) - tied | set(unexpected):
                raise ValueError(f"its weights and config disagree about {min(wrong)}")
            model.backbone.tie_weights()
            Expectation.from_card(card)
            return cls(model, Codec(tuple(sorted(ids, key=ids.__getitem__))), card)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"does not fit this version: {shown(str(error), 120)}", where=str(folder), hint="train it again") from error

    def save_pretrained(self, path: str | Path) -> None:
        """One self-describing folder: config and weights, tokenizer, and the card (`oracle.json`), which comes last."""
        folder = Path(path)
        self.model.save_pretrained(folder)
        make_tokenizer(self.codec.words).save_pretrained(folder)
        partial = folder / ".oracle.json"
        partial.write_text(json.dumps({"format": FORMAT} | self.card, indent=1))
        partial.replace(folder / "oracle.json")  # its presence says that the folder is whole

    @lru_cache(maxsize=8)  # noqa: B019 - one oracle lives as long as the process
    def _constraint(self, symbols: int, answers: int, longest: int) -> ChartConstraint:
        chances = bool(self.card.get("chances", False))
        return ChartConstraint(self.codec, Limits(symbols, answers, longest, max_ifs=MAX_IFS, max_run=longest, chances=chances))

    def load(
        self, target: Target | str | Path, symbols: Sequence[str] | None = None, answers: Sequence[str] | None = None, lengths=None
    ) -> Target:
        """A target that this oracle can read. Raises `UserError` for one that it cannot.

        Lengths default to the target's `input_lengths`, and where it has none to all that the oracle reads.
        """
        if not isinstance(target, Target):
            target = load_target(target, symbols, answers, lengths, self.settings.lengths)
        c, d = self.settings, target.domain
        if target.family not in c.families:
            raise UserError(f"the target is a {target.family}", hint=f"this oracle was trained on {' and '.join(c.families)} alone")
        if not c.reads(d):
            what = f"has {d.symbols} symbols, {d.answers} answers and lengths {d.lengths[0]}-{d.lengths[1]}"
            reads = f"{c.symbols} symbols, {c.answers} answers and lengths {c.lengths[0]}-{c.lengths[1]}"
            hint = f"this oracle reads {reads}: see --symbols, --answers, --lengths"
            raise UserError(f"the target {what}", hint=hint)
        return target

    @torch.inference_mode()
    def encode(self, target: "Target | Encoded | str | Path", **names: Any) -> Encoded:
        """The target's weight tokens, for many questions."""
        if isinstance(target, Encoded):
            return target
        target = self.load(target, **names)
        batch = ENCODERS[self.settings.encoding].prepare(stack_targets([target]), self.settings)
        return Encoded(target, torch.cat([tokens_of(self.model, batch, self.names, view) for view in self.views]))

    def ask(self, target: "Target | Encoded | str | Path", question: str, **names: Any) -> Answer:
        """The answer to one question, in the target's names.

        Raises `UserError` (exit code 2) for a question that cannot be asked, before the target is read; keywords as `load_target`.
        """
        if isinstance(target, str | Path):
            target = self.load(target, **names)
        own = target.target if isinstance(target, Encoded) else target
        known_as = own.names
        asked = understand(question, known_as, own.domain.lengths)
        if asked.kind == "chart":
            reading = self.reading(target)
            return Answer(reading.text, reading.probability, reading.known, "chart")
        if asked.kind in WORKED_OUT:
            encoded = self.encode(target)
            reply, chart = self._chart(encoded)
            probability = apply_calibration(self.card.get("calibration", {}), asked.kind, reply.probability)
            text = in_names(work_out(asked.kind, asked.argument, chart, own.domain), known_as)
            return Answer(text, probability, probability >= THRESHOLD, asked.kind)
        texts = [phrasing(asked.kind, 0, argument_text(asked.kind, argument_in(v, asked.kind, asked.argument))) for v in self.views[1:]]
        # the user's own words, if all are known, under the first view, which renames nothing; the usual ones under the others
        reply = self._say(self.encode(target), asked.kind, [asked.text if asked.familiar else asked.canonical_text, *texts])
        probability = apply_calibration(self.card.get("calibration", {}), asked.kind, reply.probability)
        return Answer(in_names(reply.text, known_as), probability, probability >= THRESHOLD, asked.kind)

    def read(self, target: "Target | Encoded | str | Path", **names: Any) -> FlowChart:
        """The flow chart that the target follows, as far as its weights tell."""
        return self.reading(target, **names).chart

    def reading(self, target: "Target | Encoded | str | Path", **names: Any) -> Reading:
        """The flow chart with its probability and drawing."""
        encoded = self.encode(target, **names)
        target = encoded.target
        reply, chart = self._chart(encoded)
        probability = apply_calibration(self.card.get("calibration", {}), "chart", reply.probability)
        known_as = Names(target.names.symbols, target.names.answers)
        return Reading(chart, to_text(chart, known_as), probability, probability >= THRESHOLD, mermaid(chart, known_as))

    def _chart(self, encoded: Encoded) -> tuple[Reply, FlowChart]:
        """What is said when the flow chart is asked for, and the chart."""
        domain = encoded.target.domain
        constraint = self._constraint(domain.symbols, domain.answers, domain.lengths[1])
        reply = self._say(encoded, "chart", [phrasing("chart", 0)] * len(self.views), constraint)
        return reply, canonical(parse(reply.text, default_names(domain.symbols, domain.answers)), domain)

    def _say(self, encoded: Encoded, kind: str, texts: list[str], constraint: ChartConstraint | None = None) -> Reply:
        """The reply of the most views to one question, worded once for each."""
        longest = MAX_IFS * (self.settings.lengths[1] + 8) + 16  # tokens of a chart whose tests all name as many symbols as an input has
        replies = generate(self.model, self.codec, encoded.tokens, texts, constraint=constraint, max_new_tokens=longest)
        own = [in_own_slots(view, kind, r.text, encoded.target.domain) for view, r in zip(self.views, replies, strict=True)]
        replies = [replace(r, text=text) for r, text in zip(replies, own, strict=True)]
        expectation = self.expectation
        if kind == "chart" and expectation.tests:
            about = self.views, replies, expectation, encoded.target.domain, MAX_IFS
            considered = consider(self.model, self.codec, encoded.tokens, *about)
            if considered is not None:
                return considered.best()
        return vote(replies)

    def __repr__(self) -> str:
        c = self.settings
        return f"Oracle({c.encoding}, reads {c.symbols} symbols, {c.answers} answers, lengths {c.lengths[0]}-{c.lengths[1]})"
