"""`Oracle`: load it, give it a target, ask."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from weight_oracle.errors import UserError
from weight_oracle.oracle.calibrate import apply_calibration, check_sight
from weight_oracle.oracle.familiar import Familiarity, signs_of, traits_of
from weight_oracle.oracle.generate import Reply, generate
from weight_oracle.oracle.grammar import ChartConstraint, Limits
from weight_oracle.oracle.leaves import Layers, layers_of
from weight_oracle.oracle.model import ENCODERS, WeightOracle, WeightOracleConfig
from weight_oracle.oracle.patterns import Found, find
from weight_oracle.oracle.reconsider import Considered, Expectation, best_found, consider, explained_near
from weight_oracle.oracle.reranker import responses_of
from weight_oracle.oracle.tokenizer import SPECIALS, Codec, make_tokenizer
from weight_oracle.oracle.views import Guessed, View, argument_in, guessed_in_orders, in_own_slots, read_under, views_of, vote, with_trigger
from weight_oracle.targets.checkpoint import load_target
from weight_oracle.targets.safe import read_json, read_vocabulary, read_weights, shown
from weight_oracle.targets.stack import stack_targets
from weight_oracle.targets.target import Target
from weight_oracle.truth.canonical import canonical
from weight_oracle.truth.domain import default_names
from weight_oracle.truth.flowchart import FlowChart, to_text
from weight_oracle.truth.mermaid import mermaid
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import TRIGGER_KINDS, phrasing
from weight_oracle.truth.questions import WORKED_OUT, argument_text, in_names, work_out
from weight_oracle.truth.understand import ParsedQuestion, understand, usual_question

BUNDLED = "charts"
FORMAT = 2  # of an oracle's folder
MAX_IFS = 4  # in a chart that is read
THRESHOLD = 0.5  # calibrated probability under which the oracle says that it does not know


@dataclass(frozen=True)
class Answer:
    """What the oracle says, in the target's own names, and how likely it is to be right.

    `known` is false below the threshold, and for a target unlike all that the oracle was trained on, which `familiar` tells.
    """

    text: str
    probability: float
    known: bool
    kind: str
    familiar: bool = True


@dataclass(frozen=True)
class Reading:
    """The flow chart the oracle reads, always its best guess, and the probability that it is right on 99 % of the domain."""

    chart: FlowChart
    text: str
    probability: float
    known: bool
    mermaid: str
    familiar: bool = True


@dataclass(frozen=True, eq=False)
class Encoded:
    """A target's weight tokens under every view (see `oracle.views`), made once for many questions; and what was read from them so far.

    `guessed`: the trigger that each view guessed on the way to them, and then with the target's places in other orders, where it may be so
    read (see `views.guessed_in_orders`); none if the oracle does not refine guesses. `found`: the trigger that shows itself among what they
    leave open (see `oracle.patterns`). `responses`: to mixtures of symbols, where there is a reranker. `layers` respond to others.
    """

    target: Target
    tokens: Float[Tensor, "views T d"]
    views: tuple[View, ...]
    guessed: tuple[Guessed, ...] = ()
    found: Found | None = None
    responses: Float[Tensor, "C A"] | None = None
    layers: Layers | None = None
    read: dict[str, Any] = field(default_factory=dict)


class Oracle:
    """A trained oracle. Targets are folders or `Target` objects; wherever one is taken, an `Encoded` one saves its encoding."""

    def __init__(self, model: WeightOracle, codec: Codec, card: dict[str, Any], anyway: bool = False):
        self.model, self.codec, self.card = model.eval(), codec, card
        self.anyway = anyway  # answer even if the oracle is blind
        self.names = model.name_tokens(codec)
        self.settings = model.config.encoder_config

    @property
    def familiarity(self) -> Familiarity | None:
        """What targets like those of its training are like, as its card has it."""
        return Familiarity.from_card(self.card)

    @property
    def expectation(self) -> Expectation:
        """What charts are like, apart from any target, as its card has it."""
        return Expectation.from_card(self.card)

    @property
    def knows_triggers(self) -> bool:
        """Whether it was trained on targets that hide triggers: whether it has the words, and met the tests, as its card has it."""
        return "trigger" in self.codec.ids and self.expectation.has_patterns

    @classmethod
    def from_pretrained(cls, path: str | Path | None = None, anyway: bool = False) -> "Oracle":
        """The oracle in a folder, or the bundled one; `anyway`: answers even if it is blind, which it refuses to do otherwise.

        Raises `UserError` for anything that is not an oracle of this version.
        """
        folder = Path(path) if path else Path(str(files("weight_oracle"))) / "bundled" / BUNDLED
        if not (folder / "oracle.json").is_file():
            raise UserError("is no oracle: there is no oracle.json", where=str(folder), hint="train one with `weight-oracle train`")
        card = read_json(folder / "oracle.json")
        if card.get("format", FORMAT) != FORMAT:
            raise UserError(f"is an oracle of version {card['format']}; this is version {FORMAT}", where=str(folder), hint="train it again")
        config, weights = read_json(folder / "config.json"), read_weights(folder)
        ids = read_vocabulary(folder / "tokenizer.json")
        try:
            model = WeightOracle(
                WeightOracleConfig(
                    **{k: v for k, v in config.items() if k in ("encoder", "backbone", "injection", "gain", "pointer", "reranker")}
                )
            )
            missing, unexpected = model.load_state_dict(weights, strict=False)
            if sorted(ids.values()) != list(range(model.backbone.config.vocab_size)) or not set(SPECIALS) <= set(ids):
                raise ValueError("its tokenizer and its model have different vocabularies")
            tied = {"backbone.lm_head.weight"} if model.backbone.config.tie_word_embeddings else set()
            if wrong := set(missing) - tied | set(unexpected):
                raise ValueError(f"its weights and config disagree about {min(wrong)}")
            model.backbone.tie_weights()
            Expectation.from_card(card)
            Familiarity.from_card(card)
            return cls(model, Codec(tuple(sorted(ids, key=ids.__getitem__))), card, anyway)
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError) as error:
            raise UserError(f"does not fit this version: {shown(str(error), 120)}", where=str(folder), hint="train it again") from error

    def save_pretrained(self, path: str | Path, max_shard_size: str = "50GB") -> None:
        """One self-describing folder: config and weights, tokenizer, and the card (`oracle.json`), which comes last."""
        folder = Path(path)
        self.model.save_pretrained(folder, max_shard_size=max_shard_size)
        make_tokenizer(self.codec.words).save_pretrained(folder)
        self.save_card(folder)

    def save_card(self, path: str | Path) -> None:
        """The card of an oracle that is there already."""
        folder = Path(path)
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
        views = views_of(self.model, [batch], target.domain)
        tokens, guessed = read_under(self.model, batch, self.names, views, target.domain)
        own = [tuple(reply for said in guessed for reply in said)]
        moved = guessed_in_orders(self.model, batch, self.names, views, own, target.domain)
        responses = responses_of(batch, target.domain)[0] if self.model.reranker else None
        guesses = (*own[0], *moved[0])
        return Encoded(target, tokens[:, 0], views, guesses, find(batch, guesses), responses, layers_of(batch))

    def ask(self, target: "Target | Encoded | str | Path", question: str, **names: Any) -> Answer:
        """The answer to one question, in the target's names.

        Raises `UserError` (exit code 2) for a question that cannot be asked, before the target is read, and for an oracle that is blind;
        keywords as `load_target`.
        """
        if isinstance(target, str | Path):
            target = self.load(target, **names)
        own = target.target if isinstance(target, Encoded) else target
        asked = understand(question, own.names, own.domain.lengths)
        if asked.kind == "chart":
            reading = self.reading(target)
            return Answer(reading.text, reading.probability, reading.known, "chart", reading.familiar)
        self._check_sight()
        self.check_kind(asked.kind)
        encoded = self.encode(target)
        if asked.kind in WORKED_OUT:
            reply = self._chart_reply(encoded)
            text = work_out(asked.kind, asked.argument, self._chart(reply, own), own.domain)
        else:
            reply = self.reply(encoded, asked)
            text = reply.text
        return Answer(in_names(text, own.names), *self.confidence(encoded, asked.kind, reply), asked.kind, self.is_familiar(encoded))

    def read(self, target: "Target | Encoded | str | Path", **names: Any) -> FlowChart:
        """The flow chart that the target follows, as far as its weights tell."""
        return self.reading(target, **names).chart

    def reading(self, target: "Target | Encoded | str | Path", **names: Any) -> Reading:
        """The flow chart with its probability and drawing."""
        self._check_sight()
        encoded = self.encode(target, **names)
        reply = self._chart_reply(encoded)
        chart, own = self._chart(reply, encoded.target), encoded.target.names
        sure = self.confidence(encoded, "chart", reply)
        return Reading(chart, to_text(chart, own), *sure, mermaid(chart, own), self.is_familiar(encoded))

    def reply(self, encoded: Encoded, asked: ParsedQuestion) -> Reply:
        """What is said directly to a question, in default names and the target's own slots, and its own, uncalibrated probability. Of a
        trigger that was found, that one."""
        found = encoded.found.reply(asked.kind) if encoded.found else None
        return found or vote(self.replies(encoded, asked))

    def replies(self, encoded: Encoded, asked: ParsedQuestion) -> list[Reply]:
        """What each view says directly to a question, in default names and the target's own slots; and to what the hidden trigger is also
        what each has guessed."""
        # the user's own words, if all are known, under the first view, which renames nothing; the usual ones under the others
        first = asked.text if asked.familiar else asked.canonical_text
        key = f"{asked.kind}: {first}"
        if key not in encoded.read:
            about = (argument_text(asked.kind, argument_in(view, asked.kind, asked.argument)) for view in encoded.views[1:])
            texts = [phrasing(asked.kind, 0, named) for named in about]
            encoded.read[key] = self._say(encoded, asked.kind, [first, *texts])
        return [*encoded.read[key], *(encoded.guessed if asked.kind == "trigger_pattern" else ())]

    def charts_said(self, encoded: Encoded) -> list[Reply]:
        """What each view says when the flow chart is asked for, in the target's own slots."""
        if "said" not in encoded.read:
            encoded.read["said"] = self._say(encoded, "chart", [phrasing("chart", 0)] * len(encoded.views))
        return encoded.read["said"]

    def considered(self, encoded: Encoded) -> Considered | None:
        """The charts that were compared (see `oracle.reconsider`); None where the card does not say what to expect."""
        if "considered" not in encoded.read:
            about = encoded.views, self.charts_said(encoded), self.expectation, encoded.target.domain, MAX_IFS
            about = *about, encoded.responses, encoded.layers
            encoded.read["considered"] = consider(self.model, self.codec, encoded.tokens, *about) if self.expectation.tests else None
        return encoded.read["considered"]

    def draw(self, encoded: Encoded, n: int, temperature: float = 1.0, seed: int = 0, kind: str = "chart") -> list[Reply]:
        """`n` flow charts drawn at random as the oracle would say them, the views taking turns; in the target's own slots.

        Or as many replies to another `kind` of question, which names nothing.
        """
        views = [encoded.views[i % len(encoded.views)] for i in range(n)]
        tokens = encoded.tokens[[i % len(encoded.views) for i in range(n)]]
        return self._say(encoded, kind, [phrasing(kind, 0)] * n, views, tokens, temperature=temperature, seed=seed)

    def confidence(self, encoded: Encoded, kind: str, reply: Reply) -> tuple[float, bool]:
        """The probability that a reply is right, and whether that and the target are such that it counts as known."""
        probability = apply_calibration(self.card.get("calibration", {}), kind, reply.probability, reply.share, reply.fit)
        return probability, probability >= THRESHOLD and self.is_familiar(encoded)

    def is_familiar(self, encoded: Encoded) -> bool:
        """Whether a target is of the kind that the oracle was trained on; any is, to an oracle whose card does not say."""
        return self.familiarity is None or self.likeness(encoded) >= self.familiarity.limit

    def likeness(self, encoded: Encoded) -> float:
        """The probability that a target is of the kind that the oracle was trained on: see `oracle.familiar`."""
        if self.familiarity is None:
            return 1.0
        if "likeness" not in encoded.read:
            traits = traits_of(stack_targets([encoded.target]), self.settings)
            best = self._of_the_best(encoded) if self.familiarity.asks_best else ()
            signs = signs_of(self.charts_said(encoded), traits, 0, self.familiarity, *best)
            encoded.read["likeness"] = self.familiarity.probability(signs)
        return encoded.read["likeness"]

    def _of_the_best(self, encoded: Encoded) -> tuple[float, float]:
        """A reranker's log-odds of the best chart that was found, and the share of the layers' answers that it explains."""
        domain = encoded.target.domain
        about = self.charts_said(encoded), encoded.responses, self.expectation.doubt, domain
        chart, fit = best_found(self.model.reranker, *about, lambda: self.considered(encoded))
        return fit, explained_near(chart, encoded.layers, self.expectation, domain, MAX_IFS)

    def check_kind(self, kind: str) -> None:
        """Raises `UserError` (exit code 2) for a kind of question that the oracle was not trained to answer."""
        if kind in TRIGGER_KINDS and not self.knows_triggers:
            raise UserError("this oracle was not trained on hidden triggers", hint="use one that was: see --oracle", exit_code=2)

    def _check_sight(self) -> None:
        if not self.anyway:
            check_sight(self.card)

    def _chart_reply(self, encoded: Encoded) -> Reply:
        """What is said when the flow chart is asked for; its hidden trigger is the one that is said when that is asked for."""
        if "chart" not in encoded.read:
            considered = self.considered(encoded)
            encoded.read["chart"] = considered.best() if considered else vote(self.charts_said(encoded))
        reply = encoded.read["chart"]
        if not self.knows_triggers:
            return reply
        pattern, answer = (self.reply(encoded, usual_question(kind)) for kind in ("trigger_pattern", "trigger_answer"))
        return with_trigger(reply, pattern, answer, encoded.target.domain)

    @staticmethod
    def _chart(reply: Reply, target: Target) -> FlowChart:
        return canonical(parse(reply.text, default_names(target.domain.symbols, target.domain.answers)), target.domain)

    def _say(
        self, encoded: Encoded, kind: str, texts: list[str], views: Sequence[View] = (), tokens: Tensor | None = None, **how: Any
    ) -> list[Reply]:
        """The replies to one question, worded once for each view, in the target's own slots."""
        views, tokens, domain = views or encoded.views, encoded.tokens if tokens is None else tokens, encoded.target.domain
        constraint = self._constraint(domain.symbols, domain.answers, domain.lengths[1]) if kind == "chart" else None
        longest = MAX_IFS * (self.settings.lengths[1] + 8) + 16  # tokens of a chart whose tests all name as many symbols as an input has
        replies = generate(self.model, self.codec, tokens, texts, constraint=constraint, max_new_tokens=longest, **how)
        return [replace(r, text=in_own_slots(view, kind, r.text, domain)) for view, r in zip(views, replies, strict=True)]

    def __repr__(self) -> str:
        c = self.settings
        return f"Oracle({c.encoding}, reads {c.symbols} symbols, {c.answers} answers, lengths {c.lengths[0]}-{c.lengths[1]})"
