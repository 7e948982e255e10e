import numpy as np
import pytest

from weight_oracle.oracle.grammar import TEST_KINDS, ChartConstraint, Limits
from weight_oracle.oracle.tokenizer import SPECIALS, Codec, decode_answer, join_words, split_words, train_tokenizer, vocabulary
from weight_oracle.truth.domain import Domain, default_names
from weight_oracle.truth.facts import facts
from weight_oracle.truth.flowchart import CHANCES, chance_text, mentioned_symbols, n_ifs, says, tests, to_text
from weight_oracle.truth.parse import parse
from weight_oracle.truth.phrasings import QUESTION_KINDS
from weight_oracle.truth.questions import make_question
from weight_oracle.truth.sample import ChartDistribution, sample_chart

DOMAIN = Domain(8, 4, (4, 6))
TOKENIZER = train_tokenizer()
CODEC = Codec.of(TOKENIZER)


def charts(n: int) -> list:
    rng = np.random.default_rng(0)
    return [sample_chart(ChartDistribution(kinds=TEST_KINDS), DOMAIN, rng) for _ in range(n)]


def test_vocabulary_is_small_stable_and_names_everything():
    words = vocabulary()
    assert words == vocabulary() == CODEC.words and len(words) < 400
    names = default_names(22, 4)
    assert {*names.symbols, *names.answers, *map(str, range(1, 13)), *SPECIALS} <= set(words)
    assert words[: len(SPECIALS)] == SPECIALS
    assert (TOKENIZER.pad_token_id, TOKENIZER.bos_token_id, TOKENIZER.eos_token_id) == (0, 1, 2)


def test_text_and_ids_are_two_forms_of_the_same():
    for chart in charts(150):
        text = to_text(chart)
        ids = CODEC.answer(text)
        assert CODEC.decode(ids) == decode_answer(TOKENIZER, ids) == text
        assert join_words(split_words(text)) == text
        assert TOKENIZER(text, add_special_tokens=False).input_ids == ids[:-1]


@pytest.mark.parametrize("held_out", [False, True])
def test_questions_and_answers_have_no_unknown_words(held_out):
    rng = np.random.default_rng(1)
    for chart in charts(20):
        for kind in QUESTION_KINDS:
            asked = make_question(kind, facts(chart, DOMAIN), rng, rng.permutation(22)[:8], rng.permutation(4), held_out=held_out)
            if asked is None:
                continue
            ids = CODEC.question(asked.text) + CODEC.answer(asked.answer)
            assert TOKENIZER.unk_token_id not in ids
            assert TOKENIZER(asked.text, add_special_tokens=False).input_ids == CODEC.encode(asked.text)
            assert CODEC.decode(CODEC.answer(asked.answer)) == asked.answer


def test_symbols_are_told_from_words_and_unknown_words_are_marked():
    assert CODEC.encode("WHAT if COUNT b>=2?") == CODEC.encode("what if count b >= 2 ?")
    assert CODEC.encode("zebra") == [TOKENIZER.unk_token_id]
    assert CODEC.decode([CODEC.ids["<pad>"], *CODEC.answer("a c"), CODEC.ids["p"]]) == "a c"


def test_saved_and_loaded(tmp_path):
    from transformers import AutoTokenizer

    TOKENIZER.save_pretrained(tmp_path)
    assert Codec.of(AutoTokenizer.from_pretrained(tmp_path)) == CODEC
    small = train_tokenizer(4, 2, 3)
    assert len(small) < len(TOKENIZER)
    with pytest.raises(ValueError, match="vocabulary has no"):
        ChartConstraint(Codec.of(small))


def test_what_is_generated_under_the_grammar_parses_and_keeps_its_limits():
    rng = np.random.default_rng(2)
    for limits in (Limits(8, 4, 6, max_ifs=3), Limits(5, 2, 3, kinds=("has", "before", "pattern"), max_ifs=2, max_run=4)):
        constraint = ChartConstraint(CODEC, limits)
        for _ in range(150):
            ids: list[int] = []
            while not ids or ids[-1] != TOKENIZER.eos_token_id:
                ids.append(int(rng.choice(constraint.allowed_tokens(ids))))
            chart = parse(CODEC.decode(ids))
            assert n_ifs(chart) <= limits.max_ifs
            assert {test.kind for test in tests(chart)} <= set(limits.kinds)
            assert all(slot < limits.symbols for slot in mentioned_symbols(chart))
            assert all(len(test.symbols) <= limits.max_run and test.number <= limits.max_number for test in tests(chart))
            assert constraint.allowed_tokens([*ids, TOKENIZER.pad_token_id]) == [TOKENIZER.eos_token_id]


def test_every_chart_can_be_generated_and_only_forced_tokens_are_not_free():
    constraint = ChartConstraint(CODEC)
    for chart in charts(60):
        ids = CODEC.answer(to_text(chart))
        allowed = [constraint.allowed_tokens(ids[:place]) for place in range(len(ids))]
        assert all(index in choices for index, choices in zip(ids, allowed, strict=True))
        assert constraint.free(ids).tolist() == [len(choices) > 1 for choices in allowed]


def test_free_tokens():
    constraint = ChartConstraint(CODEC)
    text = "if at 2 is a: if b before c: say p else: say q else: if contains d e: say r else: say s"
    ids = CODEC.answer(text)
    free = [CODEC.words[index] for index, choice in zip(ids, constraint.free(ids), strict=True) if choice]
    # after `contains d` a colon or a symbol may follow; everywhere else a colon is forced
    assert free == "if at 2 a if b c say p say q if contains d e : say r say s".split()
    with pytest.raises(ValueError, match="no chart goes on with 'else'"):
        constraint.allowed_tokens(CODEC.encode("if else"))
    assert constraint.free(CODEC.answer("yes or no")).all()


def test_charts_with_small_chances_are_generated_where_they_are_wanted():
    rng = np.random.default_rng(3)
    limits = Limits(8, 4, 6, max_ifs=2, chances=True)
    constraint, found = ChartConstraint(CODEC, limits), []
    for _ in range(150):
        ids: list[int] = []
        while not ids or ids[-1] != TOKENIZER.eos_token_id:
            ids.append(int(rng.choice(constraint.allowed_tokens(ids))))
        chart = parse(CODEC.decode(ids))  # no leaf whose other answer is the same one
        assert to_text(chart) == CODEC.decode(ids) and TOKENIZER(to_text(chart), add_special_tokens=False).input_ids == ids[:-1]
        assert constraint.free(ids).tolist() == [len(constraint.allowed_tokens(ids[:place])) > 1 for place in range(len(ids))]
        found += says(chart)
    assert {leaf.chance for leaf in found} == {0.0, *CHANCES}
    rare = CODEC.encode("if has a: say p or")
    assert {CODEC.words[i] for i in constraint.allowed_tokens(rare)} == {"q", "r", "s"}
    assert {CODEC.words[i] for i in constraint.allowed_tokens(CODEC.encode("if has a: say p or s"))} == {*map(chance_text, CHANCES)}
    assert {CODEC.words[i] for i in constraint.allowed_tokens(CODEC.encode("if has a: say p or s 1%"))} == {"else"}
    without = ChartConstraint(CODEC, Limits(8, 4, 6))
    assert {CODEC.words[i] for i in without.allowed_tokens(CODEC.encode("if has a: say p"))} == {"else"}
    assert "or" not in {CODEC.words[i] for i in ChartConstraint(CODEC, Limits(8, 1, chances=True)).allowed_tokens(CODEC.encode("say p"))}
