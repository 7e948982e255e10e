"""The oracle's own tokenizer: one token per word, with a small vocabulary made from everything the questions and charts can say."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from weight_oracle.truth.domain import default_names
from weight_oracle.truth.flowchart import CHANCES, chance_text
from weight_oracle.truth.phrasings import QUESTION_KINDS

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, BOS, EOS, UNKNOWN, SEPARATOR = SPECIALS = ("<pad>", "<bos>", "<eos>", "<unk>", "<sep>")
CHART_WORDS = ("if", "else", ":", "say", "has", "first", "last", "is", "at", "count", ">=", "before", "contains", "pattern", ".")
ANSWER_WORDS = ("yes", "no", "none", "always", "or")
CHANCE_WORDS = (*map(chance_text, CHANCES), "and", "not")
WORD = r">=|[0-9]+(?:\.[0-9]+)?%|\w+|[^\w\s]"
_word = re.compile(WORD)


def split_words(text: str) -> list[str]:
    """Text as the tokenizer sees it: lower case, split at spaces and around punctuation (`>=` and `0.5%` are one word each)."""
    return _word.findall(text.lower())


def join_words(words: Iterable[str]) -> str:
    """The inverse of `split_words` on charts and answers: single spaces, no space before a colon."""
    return " ".join(words).replace(" :", ":")


def vocabulary(n_symbols: int = 22, n_answers: int = 4, max_number: int = 12) -> tuple[str, ...]:
    """All tokens in order of their ids: specials, charts, numbers, names, chances, then the questions' words in alphabetical order."""
    names = default_names(n_symbols, n_answers)
    numbers = tuple(str(number) for number in range(1, max_number + 1))
    wordings = (wording for kind in QUESTION_KINDS.values() for wording in kind.training + kind.held_out)
    words = sorted({word for wording in wordings for word in split_words(wording.replace("{}", " "))})
    return tuple(dict.fromkeys((*SPECIALS, *CHART_WORDS, *ANSWER_WORDS, *numbers, *names.symbols, *names.answers, *CHANCE_WORDS, *words)))


def train_tokenizer(n_symbols: int = 22, n_answers: int = 4, max_number: int = 12) -> "PreTrainedTokenizerFast":
    """A WordLevel tokenizer over `vocabulary(...)`; always the same for the same arguments."""
    return make_tokenizer(vocabulary(n_symbols, n_answers, max_number))


def make_tokenizer(words: Sequence[str]) -> "PreTrainedTokenizerFast":
    """A WordLevel tokenizer in which words[i] has the id i; the special tokens are among them."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    ids = {word: index for index, word in enumerate(words)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()  # pyright: ignore[reportAttributeAccessIssue]
    splitter = pre_tokenizers.Split(Regex(WORD), behavior="removed", invert=True)
    tokenizer.pre_tokenizer = splitter  # pyright: ignore[reportAttributeAccessIssue]
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        unk_token=UNKNOWN,
        sep_token=SEPARATOR,
        clean_up_tokenization_spaces=False,
        padding_side="right",
    )


@dataclass(frozen=True)
class Codec:
    """Text to ids and back, without a tokenizer's overhead: a data loader calls this hundreds of times per training step.

    A question ends with `<sep>`, an answer with `<eos>`; the ids are those that the tokenizer itself gives.
    """

    words: tuple[str, ...]

    @classmethod
    def of(cls, tokenizer: "PreTrainedTokenizerFast") -> "Codec":
        """The codec of a loaded tokenizer; raises ValueError unless its ids are 0 … n − 1 and the special tokens are among them."""
        ids = tokenizer.get_vocab()
        if sorted(ids.values()) != list(range(len(ids))) or not set(SPECIALS) <= set(ids):
            raise ValueError("not a tokenizer made by train_tokenizer")
        return cls(tuple(sorted(ids, key=ids.__getitem__)))

    @cached_property
    def ids(self) -> dict[str, int]:
        """The id of every token."""
        return {word: index for index, word in enumerate(self.words)}

    def encode(self, text: str) -> list[int]:
        """The ids of the words of a text; unknown words become `<unk>`."""
        ids, unknown = self.ids, self.ids[UNKNOWN]
        return [ids.get(word, unknown) for word in split_words(text)]

    def question(self, text: str) -> list[int]:
        """A question's ids, `<sep>` at the end."""
        return [*self.encode(text), self.ids[SEPARATOR]]

    def answer(self, text: str) -> list[int]:
        """An answer's ids, `<eos>` at the end."""
        return [*self.encode(text), self.ids[EOS]]

    def decode(self, ids: Sequence[int]) -> str:
        """The text of an answer up to its first `<eos>`, in the exact form of charts and answers; other special tokens are dropped."""
        words = []
        for index in ids:
            word = self.words[int(index)]
            if word == EOS:
                break
            if word not in SPECIALS:
                words.append(word)
        return join_words(words)


def decode_answer(tokenizer: "PreTrainedTokenizerFast", ids: Sequence[int]) -> str:
    """The text of a generated answer up to its first `<eos>`; see `Codec.decode`."""
    return Codec.of(tokenizer).decode(ids)
