"""An oracle goes on where there are more symbols and lengths, from what it knows."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from weight_oracle.errors import UserError
from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.train import TrainConfig, go_on_from, new_oracle
from weight_oracle.oracle.widen import can_widen, like_others, widened
from weight_oracle.scaling.pool import Fresh
from weight_oracle.targets.stack import stack_targets
from weight_oracle.truth.domain import Domain
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.recipe import RECIPES, recipe_from_dict
from weight_oracle.zoo.store import Zoo


@pytest.fixture(scope="module")
def wider_zoo(nano_recipe, zoo) -> Zoo:
    """A zoo of the same kind on more symbols and lengths; only its recipe is looked at."""
    raw = json.loads(nano_recipe.read_text())
    domain = zoo.recipe.domain
    lengths = [domain.lengths[0] - 1, domain.lengths[1] + 2]
    raw["domain"] |= {"symbols": domain.symbols + 3, "lengths": lengths}
    return replace(zoo, recipe=recipe_from_dict(raw | {"positions": [lengths[1] + 2]}, ""))


@pytest.fixture
def pair(zoo, wider_zoo, codec):
    config = TrainConfig("", "", size="tiny")
    return new_oracle(config, [zoo], codec), new_oracle(config, [wider_zoo], codec)


RESCALED = ("encoder.row_in.weight", "encoder.row_name", "backbone.model.embed_tokens.weight", "backbone.lm_head.weight")


def gone_on(before, after, codec):
    """The weights before and after; all old ones are among the new, and what is new is zero, but for those that are `RESCALED`."""
    with torch.no_grad():
        for tensor in before.parameters():
            tensor += 1.0  # so that none is zero by chance
    assert go_on_from(Oracle(before, codec, {"training": {"steps": 1}}), "before", after, codec) == {"training": {"steps": 1}}
    old, new = before.state_dict(), after.state_dict()
    assert old.keys() == new.keys()
    for name in old.keys() - {*RESCALED}:
        kept = new[name][new[name] != 0]
        assert torch.equal(kept.sort().values, old[name].flatten().sort().values), name
    return old, new


def test_the_old_weights_are_all_there_and_what_is_new_is_silent(pair, codec):
    before, after = pair
    old, new = gone_on(before, after, codec)
    for name in RESCALED[1:]:
        assert torch.isin(old[name][0], new[name]).all()
    symbols = after.config.encoder_config.symbols
    assert len(new["encoder.row_name"][:symbols].unique(dim=0)) == symbols and bool((new["encoder.row_name"][:symbols] != 0).all())


@torch.no_grad()
def test_a_target_of_the_old_lengths_is_seen_nearly_as_before(pair, zoo):
    """Not to the bit: rows of positions that it does not have count in means over rows."""
    before, after = (model.eval() for model in pair)
    reads, wider = before.config.encoder_config, after.config.encoder_config
    longer = replace(wider, symbols=reads.symbols)
    encoder = type(before.encoder)(longer, before.backbone.config.hidden_size).eval()
    stack = stack_targets([zoo.target(zoo.truths[i]["index"]) for i in pick(zoo, "train", learned=False)[:1]])
    prepare = ENCODERS["atoms"].prepare
    own = before.encoder(prepare(stack, reads))
    fresh = (encoder(prepare(stack, longer)) - own).norm() / own.norm()
    weights = widened(before.state_dict(), reads, longer)
    encoder.load_state_dict({name.removeprefix("encoder."): x for name, x in weights.items() if name.startswith("encoder.")})
    assert (encoder(prepare(stack, longer)) - own).norm() / own.norm() < 0.05 < 0.5 < fresh


def test_what_reads_patterns_goes_on_with_longer_inputs_as_it_takes_the_longest(codec):
    """As the first test; the length is one, that of the longest inputs, and the position of `<ans>` is the last before and after."""
    zoos = [Fresh(Path(name), RECIPES[name], (), {}) for name in ("charts-triggers-small", "charts-triggers")]
    config = TrainConfig("", "", size="tiny", refinements=1)
    before = new_oracle(config, zoos[:1], codec)
    after = new_oracle(config, zoos[1:], codec, Oracle(before, codec, {}))
    settings = after.config.encoder_config
    assert settings.longest and settings.lengths == (12, 12) and settings.symbols == 22 and before.config.encoder_config.lengths == (8, 8)
    assert settings.reads(RECIPES["charts-triggers"].domain) and settings.reads(Domain(22, 4, (3, 12)))
    assert not settings.reads(Domain(22, 4, (8, 11))) and not settings.reads(Domain(12, 4, (8, 12)))
    old, new = gone_on(before, after, codec)
    assert torch.equal(new["place.weight"][:8], old["place.weight"]) and not new["place.weight"][8:].any()
    assert torch.equal(new["encoder.row_name"][-1], old["encoder.row_name"][-1])
    assert bool((new["encoder.row_in.weight"][:, -1] != 0).all()) and not new["encoder.row_in.weight"][:, -2].any()


def test_what_reads_less_or_patterns_of_several_lengths_cannot_be_widened():
    here = EncoderConfig(symbols=8, lengths=(4, 6))
    assert can_widen(here, replace(here, symbols=12, lengths=(4, 8), sizes=True, families=("llama",)))
    assert not can_widen(here, replace(here, symbols=7))
    assert not can_widen(here, replace(here, lengths=(5, 8))) and not can_widen(here, replace(here, lengths=(3, 5)))
    assert not can_widen(here, replace(here, symbols=12, width=64))
    assert not can_widen(replace(here, places=True), replace(here, places=True, symbols=12))
    patterns = replace(here, places=True, lengths=(6, 6))
    assert can_widen(patterns, replace(patterns, symbols=12, lengths=(9, 9), longest=True))
    assert not can_widen(patterns, replace(patterns, lengths=(5, 5))) and not can_widen(patterns, replace(patterns, lengths=(6, 9)))
    assert can_widen(here, replace(here, symbols=12, interactions=True))
    assert can_widen(replace(here, interactions=True), replace(here, symbols=12, interactions=True))
    assert not can_widen(replace(here, encoding="svd"), replace(here, encoding="svd", symbols=12))


def test_how_symbols_act_together_is_learned_anew(zoo, wider_zoo, codec):
    config = TrainConfig("", "", size="tiny", interactions=True)
    before, after = new_oracle(config, [zoo], codec), new_oracle(config, [wider_zoo], codec)
    with torch.no_grad():
        for tensor in before.parameters():
            tensor += 1.0
    fresh = {name: x.clone() for name, x in after.state_dict().items() if name.startswith("encoder.interact.")}
    go_on_from(Oracle(before, codec, {}), "before", after, codec)
    new = after.state_dict()
    assert fresh and all(torch.equal(new[name], x) for name, x in fresh.items())
    assert torch.isin(before.state_dict()["encoder.row_name"][0], new["encoder.row_name"]).all()


def test_a_narrower_oracle_is_refused(pair, codec):
    before, after = pair
    with pytest.raises(UserError, match="another size, encoding or domain"):
        go_on_from(Oracle(after, codec, {}), "after", before, codec)


def test_new_rows_are_like_the_others():
    rows = torch.randn(40, 64) * 3 + 5
    found = like_others(rows, range(30), range(30, 40))
    assert torch.equal(found[:30], rows[:30]) and not torch.isin(found[30:], rows).any()
    assert abs(found[30:].mean() - 5) < 1 and 2 < found[30:].std() < 4
    assert torch.equal(found, like_others(rows, range(30), range(30, 40)))
