"""Oracles that have learned nothing, with weights large enough for every weight token to move the logits, and a few targets to read."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import Population, load_population, pick
from weight_oracle.oracle.model import ENCODERS, WeightOracle
from weight_oracle.oracle.tokenizer import Codec, vocabulary
from weight_oracle.oracle.train import TrainConfig, new_oracle
from weight_oracle.targets.target import Target
from weight_oracle.zoo.store import Zoo, open_zoo

GAIN = 0.7


@pytest.fixture(scope="session")
def zoo(nano_zoo: Path) -> Zoo:
    return open_zoo(nano_zoo)


@pytest.fixture(scope="session")
def targets(zoo: Zoo) -> list[Target]:
    return [zoo.target(zoo.truths[i]["index"]) for i in pick(zoo, "train")[:8]]


@pytest.fixture(scope="session")
def codec() -> Codec:
    return Codec(vocabulary())


@pytest.fixture(scope="session")
def population(zoo: Zoo) -> Callable[[WeightOracle], Population]:
    def load(model: WeightOracle) -> Population:
        settings = model.config.encoder_config
        return load_population(zoo, ENCODERS[settings.encoding], settings, pick(zoo, "train"))

    return load


@pytest.fixture(scope="session")
def backbones(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Folders as `save_pretrained` leaves them, with other vocabularies than ours."""
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    heads = {"num_attention_heads": 2, "num_key_value_heads": 1}
    llama = LlamaConfig(vocab_size=90, hidden_size=32, intermediate_size=48, num_hidden_layers=3, pad_token_id=None, **heads)
    configs = {"gpt2": GPT2Config(vocab_size=300, n_embd=32, n_layer=3, n_head=2, n_positions=160), "llama": llama}
    folder = tmp_path_factory.mktemp("backbones")
    for name, config in configs.items():
        torch.manual_seed(0)
        AutoModelForCausalLM.from_config(config).save_pretrained(folder / name)
    return {name: str(folder / name) for name in configs}


@pytest.fixture(scope="session")
def make_model(zoo: Zoo, codec: Codec, backbones: dict[str, str]) -> Callable[..., WeightOracle]:
    def make(injection: str = "prefix", encoding: str = "atoms", backbone: str | None = None, seed: int = 0) -> WeightOracle:
        folder = backbones[backbone] if backbone else None
        config = TrainConfig(str(zoo.path), "", size="tiny", backbone=folder, encoding=encoding, injection=injection, gain=GAIN)  # pyright: ignore[reportArgumentType]
        model = new_oracle(config, [zoo], codec)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in model.backbone.parameters():
                parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return make


@pytest.fixture(scope="session")
def oracle(make_model: Callable[..., WeightOracle], codec: Codec) -> Oracle:
    return Oracle(make_model(), codec, {"training": {"size": "tiny"}, "calibration": {}})
