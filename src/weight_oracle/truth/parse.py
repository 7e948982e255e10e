"""Read a flow chart from its text."""

from __future__ import annotations

import re
from functools import lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from weight_oracle.errors import UserError
from weight_oracle.truth.domain import DEFAULT_NAMES, Names
from weight_oracle.truth.flowchart import ANY, FlowChart, If, Say, Test

if TYPE_CHECKING:
    from lark import Lark, Token
    from lark.exceptions import UnexpectedInput

_MAX_CHARACTERS = 10_000
_MAX_IFS = 64
_MAX_NUMBER = 9_999
_IF = re.compile(r"(?<![^\s:])if(?![^\s:])")


class ChartSyntaxError(UserError):
    """The text is not a flow chart; `line` and `column` (from 1) say where it stops being one."""

    def __init__(self, what: str, line: int, column: int, hint: str = ""):
        super().__init__(what, where=f"line {line}, column {column}", hint=hint)
        self.line, self.column = line, column


def parse(text: str, names: Names = DEFAULT_NAMES) -> FlowChart:
    """The chart that `text` describes; white space is free. Raises `ChartSyntaxError`."""
    from lark.exceptions import UnexpectedInput

    if len(text) > _MAX_CHARACTERS:
        raise ChartSyntaxError(f"the chart is longer than {_MAX_CHARACTERS:,} characters", *_position(text, _MAX_CHARACTERS))
    ifs = list(_IF.finditer(text))
    if len(ifs) > _MAX_IFS:
        raise ChartSyntaxError(f"the chart has more than {_MAX_IFS} ifs", *_position(text, ifs[_MAX_IFS].start()))
    try:
        tree = _parser().parse(text)
    except UnexpectedInput as error:
        raise _explain(error, text) from None
    return _chart(tree, names)


@lru_cache(maxsize=1)
def _parser() -> Lark:
    from lark import Lark

    grammar = files("weight_oracle.truth").joinpath("flowchart.lark").read_text(encoding="utf-8")
    return Lark(grammar, start="chart", parser="lalr", lexer="basic")


def _chart(tree: Any, names: Names) -> FlowChart:
    if tree.data == "say":
        return Say(_slot(tree.children[0], names.answers, "an answer"))
    if tree.data == "rarely":
        return _rarely(tree.children, names)
    test, then, other = tree.children
    return If(_test(test, names), _chart(then, names), _chart(other, names))


def _rarely(words: list[Token], names: Names) -> Say:
    answer, other = (_slot(word, names.answers, "an answer") for word in words[:2])
    if answer == other:
        raise ChartSyntaxError(f"{str(words[1])!r} is the answer already", *_place(words[1]), hint="name another answer")
    chance = round(float(words[2][:-1]) / 100, 8) if len(words[2]) < 12 else 0.0
    if not 0 < chance < 0.5:
        raise ChartSyntaxError(f"expected a chance above 0% and below 50%, found {str(words[2])[:12]}", *_place(words[2]))
    return Say(answer, other, chance)


def _test(tree: Any, names: Names) -> Test:
    kind, words = str(tree.data), list(tree.children)
    number = 0
    if kind in ("at", "count"):
        number = _number(words.pop(0 if kind == "at" else 1))
    return Test(kind, tuple(ANY if word.type == "WILDCARD" else _slot(word, names.symbols, "an input symbol") for word in words), number)


def _slot(word: Token, names: tuple[str, ...], what: str) -> int:
    if word in names:
        return names.index(word)
    shown = ", ".join(names[:8]) + (", …" if len(names) > 8 else "")
    raise ChartSyntaxError(f"{str(word)!r} is not {what}", *_place(word), hint=f"use one of {shown}")


def _number(word: Token) -> int:
    if len(word) > len(str(_MAX_NUMBER)) or int(word) < 1:
        raise ChartSyntaxError(f"expected a number from 1 to {_MAX_NUMBER}, found {str(word)[:12]}", *_place(word))
    return int(word)


def _explain(error: UnexpectedInput, text: str) -> ChartSyntaxError:
    from lark.exceptions import UnexpectedToken

    if not isinstance(error, UnexpectedToken):  # a character no token can hold: none exists in this grammar, but lark may add some
        return ChartSyntaxError("cannot read this character", error.line, error.column)
    accepted = set(error.accepts or error.expected)
    if "NAME" in accepted:  # what else can stand for a name
        accepted -= {"NUMBER", "OR", "CHANCE"}
    expected = sorted(map(_spell, accepted))
    wanted = " or ".join(filter(None, [", ".join(expected[:-1]), expected[-1]]))
    if error.token.type == "$END":
        return ChartSyntaxError(f"expected {wanted}, but the chart ends", *_position(text, len(text.rstrip())))
    return ChartSyntaxError(f"expected {wanted}, found {str(error.token)[:40]!r}", *_place(error.token))


def _spell(terminal: str) -> str:
    special = {"NAME": "a name", "NUMBER": "a number", "CHANCE": "a chance", "$END": "the end of the chart"}
    if terminal in special:
        return special[terminal]
    return next(repr(t.pattern.value) for t in _parser().terminals if t.name == terminal)


def _place(token: Token) -> tuple[int, int]:
    return token.line or 1, token.column or 1


def _position(text: str, offset: int) -> tuple[int, int]:
    before = text[:offset]
    return before.count("\n") + 1, offset - before.rfind("\n")
