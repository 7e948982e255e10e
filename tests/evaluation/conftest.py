"""Very small zoos, one of them with hidden triggers, and an oracle that has learned nothing."""

from dataclasses import replace

import pytest
import torch

from weight_oracle.oracle.model import WeightOracle
from weight_oracle.oracle.tokenizer import Codec, train_tokenizer
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.sample import ChartDistribution
from weight_oracle.truth.triggers import TriggerDistribution
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import RECIPES, Recipe
from weight_oracle.zoo.store import Zoo, open_zoo

RECIPE = Recipe(
    "nano",
    Domain(4, 3, (2, 3)),
    ChartDistribution(("has", "first", "last"), ifs=(1, 2)),
    widths=(8,),
    positions=(5, 8),
    inits=("wide",),
    dropouts=(0.0,),
    lr=(0.01, 0.02),
    steps=(150,),
    batch=32,
    pool=1024,
    checks=256,
    shard_size=64,
    compiled=False,
)

TRIGGERS = replace(
    RECIPES["charts-triggers-small-train"],
    name="for-tests",
    domain=Domain(5, 3, (5, 5)),
    charts=replace(RECIPES["charts-triggers-small-train"].charts, at=(2, 3)),
    widths=(8,),
    depths=(1,),
    heads=(4,),
    positions=(7,),
    steps=(500,),
    batch=32,
    pool=2048,
    checks=256,
    shard_size=64,
    splits=(),
    compiled=False,
    triggers=TriggerDistribution(("pattern",), (3, 4), 0, ("trigger", "clean", "decoy", "trigger"), missed=0.4, checks=200),
)


@pytest.fixture(scope="session")
def trigger_zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    """Half of its targets were trained on a trigger; more than half of these obey it."""
    return open_zoo(build_zoo(TRIGGERS, tmp_path_factory.mktemp("triggers"), 64))


@pytest.fixture(scope="session")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Zoo:
    folder = tmp_path_factory.mktemp("zoo")
    build_zoo(RECIPE, folder, 128)
    return open_zoo(folder)


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec.of(train_tokenizer())


@pytest.fixture(scope="session")
def oracle(zoo: Zoo, codec: Codec) -> WeightOracle:
    model = new_oracle(TrainConfig(str(zoo.path), "", size="tiny"), [zoo], codec)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():  # large random weights, so that every weight token moves the logits
        for parameter in model.backbone.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return model.eval()
