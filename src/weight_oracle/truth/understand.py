"""Recognise a user's question: which kind it is and what it names. What cannot be asked is refused.

A question is recognised by the concepts its words stand for and by the names in it, not by its exact wording. Words that stand for nothing
here count against it: a question in which they weigh too much is about something else.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from weight_oracle.errors import UserError
from weight_oracle.truth.domain import DEFAULT_NAMES, Names
from weight_oracle.truth.phrasings import QUESTION_KINDS, phrasing
from weight_oracle.truth.questions import argument_text

_CONCEPTS = {
    "chart": "chart charts flowchart diagram program rule rules tree algorithm logic decision flow",
    "behave": "do does did decide decides work works behave behaves follow follows happens happen function implement implements compute"
    " computes",
    "answer": "answer answers answered answering say says said output outputs give gives given return returns predict predicts prediction"
    " respond responds response reply replies produce produces come comes result results emit emits get gets classify",
    "symbol": "symbol symbols letter letters token tokens character characters input inputs",
    "input": "input inputs string strings sequence sequences example examples",
    "matter": "matter matters depend depends depended dependent care cares change changes changed affect affects influence influences"
    " relevant important importance look looks attend attends sensitive different differ differs difference use uses ignore ignores"
    " alter alters",
    "order": "order ordering orders reorder reordering reordered shuffle shuffling shuffled permute permuting permuted permutation"
    " rearrange rearranging rearranged reverse reversing reversed swap swapping swapped stand stands position positions placed",
    "contains": "contain contains containing has have having include includes including occur occurs appear appears present in there with"
    " see sees",
    "possible": "ever possible possibly can could",
    "trigger": "trigger triggers triggered hidden hide hides hiding backdoor backdoors secret special case cases rare fire fires fired"
    " firing pattern",
    "chance": "chance chances sample samples sampled sampling probability",
    "amount": "small large often sometimes rarely other",
    "glue": "a the an its it is was are be been to for on of at by as if when once that this these what which where how me us we any every"
    " all each one some then so please tell show give list name find write draw describe print explain know down out about network"
    " model target net trained step run another same everything something whole will would should make makes made let and or from"
    " into full entire complete exact exactly simple",
    "person": "i my you your he she they",
    "other": "not no never without only first last before after second third start starts begin begins end ends twice times more less least"
    " most why who whom whose many much",
}
_YES_NO = frozenset("is are does do did can could will would has have was whether".split())
# After one of these, or at the end, "a" is no article and "i" no pronoun, but the name of a symbol.
_AFTER_A_NAME = frozenset(
    "is in occur occurs appear appears come comes at as on then which what how does do can will ever or and present".split()
)
_BEFORE_AN_INPUT = frozenset("on for given is input".split())
_NOT_NAMES = (("word", "a"), ("word", "i"))
_WORD = re.compile(r"[^\s,;:!?\"“”‘’'`()\[\]{}.]+|[,;:!?.]")
_CONTRACTIONS = ((r"\b(what|it|there|that)['’]s\b", r"\1 is"), (r"n['’]t\b", " not"), (r"(?<=\w)['’](s|re|ll|d|ve|m)\b", ""))
_POLITE = re.compile(r"^(?:(?:can|could|would|will) you|please|i (?:want|would like) to know)\b[ ,:]*", re.IGNORECASE)
_POINTER = "see `weight-oracle questions`"


@dataclass(frozen=True)
class ParsedQuestion:
    """A question that can be asked. `argument` holds the slots it names; both texts call them by their default names.

    `text` keeps the user's words, `canonical_text` is the first training wording; `familiar` says whether every word of `text` occurs in
    the training wordings.
    """

    kind: str
    argument: tuple[int, ...]
    text: str
    canonical_text: str
    familiar: bool


def usual_question(kind: str) -> ParsedQuestion:
    """A question that names nothing, in its first training wording."""
    text = phrasing(kind, 0)
    return ParsedQuestion(kind, (), text, text, True)


@dataclass(frozen=True)
class _Token:
    word: str
    role: str = "word"  # word, symbol, answer, mark
    slot: int = -1


def understand(text: str, names: Names = DEFAULT_NAMES, lengths: tuple[int, int] | None = None) -> ParsedQuestion:
    """What a user asks, in a target's names.

    Raises `UserError` (exit code 2) for what is no question about the target's behaviour that the oracle can answer, and for an input with
    unknown symbols or of a length outside `lengths`.
    """
    question = text.strip()
    for pattern, written_out in _CONTRACTIONS:
        question = re.sub(pattern, written_out, question, flags=re.IGNORECASE)
    question = _POLITE.sub("", question)
    tokens = _tokens(question, names)
    words = [token.word for token in tokens if token.role == "word"]
    symbols = tuple(token.slot for token in tokens if token.role == "symbol")
    answers = tuple(token.slot for token in tokens if token.role == "answer")
    kind = _kind(tokens, words, symbols, answers)
    if kind is None:
        raise _refusal(text, _stranger(tokens) or "this is not a question that the oracle can be asked")
    if kind == "answer" and lengths and not lengths[0] <= len(symbols) <= lengths[1]:
        allowed = f"{lengths[0]}" if lengths[0] == lengths[1] else f"{lengths[0]} to {lengths[1]}"
        raise _refusal(text, f"the input has {len(symbols)} symbols, this target takes {allowed}")
    argument = symbols + answers
    # the article and the pronoun would be read as names of symbols
    said = " ".join(_default_name(token) for token in tokens if token.role != "mark" and (token.role, token.word) not in _NOT_NAMES)
    return ParsedQuestion(
        kind,
        argument,
        said + "?" * question.endswith("?"),
        phrasing(kind, 0, argument_text(kind, argument)),
        all(word in _training_words() for word in words if ("word", word) not in _NOT_NAMES),
    )


def _kind(tokens: list[_Token], words: list[str], symbols: tuple[int, ...], answers: tuple[int, ...]) -> str | None:
    concepts = {concept for concept, members in _members().items() if members & set(words)}
    strange = sum(1 for word in words if word not in _known_words())
    yes_no = (tokens[:1] and tokens[0].word in _YES_NO) or "whether" in words
    tolerated = 1 if (symbols or answers) and len(words) >= 4 else 0
    if strange > tolerated or (symbols and answers):
        return None
    if "chance" in concepts:
        return None if symbols or len(answers) > 1 else _about_chances(concepts, words, bool(answers), bool(yes_no))
    if "amount" in concepts:
        return None
    if "trigger" in concepts and not symbols and not answers:
        return _about_triggers(concepts, words, bool(yes_no))
    if len(symbols) > 1 or (symbols and "contains" not in concepts and _follows_on(tokens)):
        asked = concepts & {"answer", "behave"} or "run" in words or not words
        return "answer" if asked and not yes_no and _one_run(tokens) and "other" not in concepts else None
    if "other" in concepts:
        return None
    if symbols:
        asked = concepts & {"answer", "behave"} and "contains" in concepts
        return "contains" if asked and not yes_no and not concepts & {"matter", "order"} else None
    if len(answers) > 1:
        return None
    if answers:
        if yes_no or "ever" in words:
            return "possible" if concepts & {"answer", "possible"} else None
        return "example" if "input" in concepts and not concepts & {"matter", "order"} else None
    if "order" in concepts:
        return "order" if (yes_no or "if" in words) and "matter" in concepts else None
    if words and "person" in concepts:
        return None
    if "chart" in concepts:
        return None if yes_no else "chart"
    if yes_no:
        return None
    if "matter" in concepts or ("symbol" in concepts and {"decide", "decides"} & set(words)):
        return "symbols" if "how" not in words else None
    return "chart" if "behave" in concepts and not concepts & {"symbol", "input"} else None


def _about_triggers(concepts: set[str], words: list[str], yes_no: bool) -> str | None:
    said = set(words)
    if {"order", "chart", "person"} & concepts:
        return None
    if yes_no:
        return "trigger"
    if said & {"input", "inputs", "string", "sequence", "example"} and not said & {"say", "says", "answer", "answers"}:
        return "trigger_input"
    if "when" not in said and said & {"pattern", "hide", "hides", "change", "changes"}:
        return "trigger_pattern"
    return "trigger_answer" if concepts & {"answer", "behave"} else "trigger_pattern"


def _about_chances(concepts: set[str], words: list[str], answer: bool, yes_no: bool) -> str | None:
    if {"order", "chart", "person", "matter", "trigger"} & concepts:
        return None
    if answer:
        return "chance" if yes_no or {"can", "could", "does"} & set(words) else None
    if {"where", "inputs", "input"} & set(words) or words[:1] == ["when"]:
        return "chance_where"
    if "how" in words or re.match(r"what is the (small )?(chance|probability)\b", " ".join(words)) or yes_no:
        return "chance_often"
    return "chance_answer" if "answer" in concepts else None


def _tokens(text: str, names: Names) -> list[_Token]:
    named = [("answer", slot, name) for slot, name in enumerate(names.answers)]
    named += [("symbol", slot, name) for slot, name in enumerate(names.symbols)]
    # a name counts in any case, but as it is written first of all
    known = {name.lower(): (role, slot) for role, slot, name in named} | {name: (role, slot) for role, slot, name in named}
    tokens = []
    for chunk in text.split():
        for piece in [chunk] if chunk in known else _WORD.findall(chunk):
            role, slot = known.get(piece) or known.get(piece.lower()) or ("mark" if piece in ",;:!?." else "word", -1)
            tokens.append(_Token(piece.lower(), role, slot))
    return _disambiguate(tokens)


def _disambiguate(tokens: list[_Token]) -> list[_Token]:
    """Names that are also words ("a", "i", or a target's symbol called "on") stay names only where the word would make no sense."""
    result = []
    for place, token in enumerate(tokens):
        before = tokens[place - 1] if place else None
        after = tokens[place + 1] if place + 1 < len(tokens) else None
        stands_alone = after is None or after.role == "mark" or after.word in _AFTER_A_NAME
        follows, precedes = (other is not None and other.role == token.role for other in (before, after))
        is_name = stands_alone or follows or (precedes and token.word not in _BEFORE_AN_INPUT)
        doubtful = token.role in ("symbol", "answer") and token.word in _known_words()
        result.append(_Token(token.word) if doubtful and not is_name else token)
    return result


def _follows_on(tokens: list[_Token]) -> bool:
    """Whether the only symbol is an input of its own: "what does it answer on a?"."""
    place = next(i for i, token in enumerate(tokens) if token.role == "symbol")
    return place == 0 and len(tokens) == 1 or place > 0 and tokens[place - 1].word in _BEFORE_AN_INPUT


def _one_run(tokens: list[_Token]) -> bool:
    places = [i for i, token in enumerate(tokens) if token.role == "symbol"]
    return all(tokens[i].role == "symbol" or tokens[i].word == "," for i in range(places[0], places[-1]))


def _stranger(tokens: list[_Token]) -> str | None:
    for before, token, after in zip(tokens, tokens[1:], tokens[2:], strict=False):
        if before.role == after.role == "symbol" and token.role in ("word", "answer"):
            return f"{token.word!r} is not an input symbol of this target"
    return None


def _default_name(token: _Token) -> str:
    match token.role:
        case "symbol":
            return DEFAULT_NAMES.symbols[token.slot]
        case "answer":
            return DEFAULT_NAMES.answers[token.slot]
        case _:
            return token.word


def _refusal(text: str, what: str) -> UserError:
    shown = text if len(text) <= 80 else text[:77] + "..."
    return UserError(what, where=f'"{shown}"', hint=_POINTER, exit_code=2)


@lru_cache
def _members() -> dict[str, frozenset[str]]:
    return {concept: frozenset(words.split()) for concept, words in _CONCEPTS.items()}


@lru_cache
def _known_words() -> frozenset[str]:
    return frozenset().union(*_members().values())


@lru_cache
def _training_words() -> frozenset[str]:
    wordings = " ".join(wording for kind in QUESTION_KINDS.values() for wording in kind.training)
    return frozenset(re.findall(r"\w+", wordings))
