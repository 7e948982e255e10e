"""On a GPU: targets learn what they learn on the CPU, the oracle says the same, and a run of both ends. Skipped where there is none."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from weight_oracle.oracle.ask import Oracle
from weight_oracle.oracle.data import Collator, QuestionData, load_population, together
from weight_oracle.oracle.model import ENCODERS
from weight_oracle.oracle.reranker import Reranker, responses_of
from weight_oracle.oracle.tokenizer import PAD
from weight_oracle.scaling.loop import batches, new_optimizer
from weight_oracle.scaling.pool import Fresh, prepare
from weight_oracle.scaling.recorded import MULTIPLE, Recorder
from weight_oracle.scaling.scale import ScaleConfig, scale
from weight_oracle.targets import gpt2
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import Hyper, Schedule, initialise, train
from weight_oracle.truth import mixtures
from weight_oracle.weights.atoms import AtomsEncoder
from weight_oracle.weights.encoder import EncoderConfig
from weight_oracle.zoo.build import build_shard
from weight_oracle.zoo.recipe import find_recipe

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_targets_learn_on_a_gpu_what_they_learn_on_the_cpu(nano_recipe, dropout):
    recipe = replace(find_recipe(str(nano_recipe)), dropouts=(dropout,))
    here, there = (build_shard(recipe, 0, device) for device in ("cpu", "cuda"))
    learned = [np.mean([row["accuracy"] for row in rows]) for _, rows in (here, there)]
    assert abs(learned[0] - learned[1]) < 0.03
    if not dropout:  # whose masks are another device's own
        first = replace(recipe, steps=(6,))
        pairs = [build_shard(first, 0, device)[0] for device in ("cpu", "cuda")]
        for name, tensor in pairs[0].items():
            parts = [(pairs[1][name], tensor)]
            if name.endswith("c_attn.bias"):  # softmax does not see the keys' bias: its gradient is rounding, which AdamW blows up
                queries, _, values = zip(*(x.chunk(3, -1) for x in parts[0]), strict=True)
                parts = [queries, values]
            for found, expected in parts:
                torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")  # torch's own, as it begins to compile
@pytest.mark.parametrize("compiled", [False, True])
def test_a_gpu_takes_inputs_of_all_lengths_at_once(compiled):
    shape = Shape(16, 2, 2, 6, 3, 9)
    hypers = [Hyper("wide", "relu", True, 1e-3, 0.0, 0.99), Hyper("fan_in", "gelu_new", False, 1e-3, 0.0, 0.99)]
    parts = [initialise(shape, hyper, np.random.default_rng(i)) for i, hyper in enumerate(hypers)]
    draw = torch.Generator().manual_seed(0)
    inputs = [torch.randint(0, 6, (2, 64, n), generator=draw, dtype=torch.int8) for n in (4, 5, 7)]
    labels = [(x[..., 0] + x[..., 2]) % 3 for x in inputs]
    found = []
    for device in ("cpu", "cuda"):
        start = {name: torch.from_numpy(np.stack([part[name] for part in parts])).to(device) for name in parts[0]}
        moved = [[x.to(device) for x in some] for some in (inputs, labels)]
        done = train(shape, Schedule(8, 12), hypers, start, *moved, 0, compiled and device == "cuda")
        relu = torch.tensor([True, False], device=device)
        found.append(gpt2.forward(done, shape, relu, moved[0]).cpu())
    torch.testing.assert_close(*found, rtol=1e-2, atol=1e-3)


def test_the_oracle_computes_on_a_gpu_what_it_computes_on_the_cpu(nano_recipe, nano_oracle):
    recipe = find_recipe(str(nano_recipe))
    oracle = Oracle.from_pretrained(nano_oracle, anyway=True)
    zoo = Fresh(nano_recipe, recipe, (0,), {0: build_shard(recipe, 0)})
    population = load_population(zoo, ENCODERS["atoms"], oracle.settings, np.arange(16))
    data = QuestionData(population, oracle.codec, 16, 0, batch=16)
    found = []
    for device in ("cpu", "cuda"):
        collate = Collator(population.to(device), oracle.names.cpu(), oracle.codec.ids[PAD])
        with torch.no_grad():
            found.append(oracle.model.to(device).eval()(**collate([data[i] for i in range(16)])).logits.cpu())
    assert (found[0] - found[1]).norm() / found[0].norm() < 5e-3


def test_recorded_steps_are_those_that_are_not(nano_recipe, nano_oracle):
    recipe = replace(find_recipe(str(nano_recipe)), steps=(6,))
    zoos = [Fresh(nano_recipe, r, (0,), {0: build_shard(r, 0)}) for r in (recipe, replace(recipe, heads=(4,)))]
    losses = []
    for most in (0, 64):
        oracle = Oracle.from_pretrained(nano_oracle, anyway=True)
        parts = [load_population(zoo, ENCODERS["atoms"], oracle.settings, np.arange(8)) for zoo in zoos]
        population = together(parts).to("cuda")
        model = oracle.model.float().cuda()
        recorder = Recorder(model, new_optimizer(model, 1e-3, 0.05), most)
        data = QuestionData(population, oracle.codec, 80, 0, batch=8)
        collate = Collator(population, oracle.names.cpu(), oracle.codec.ids[PAD], multiple=MULTIPLE)
        losses.append(torch.stack([recorder.step(batch, 1e-3) for batch in batches(data, collate, 0, 10, 8, 0)]).cpu())
        assert len(recorder.used) > 1 and bool(recorder.graphs) == bool(most)
    torch.testing.assert_close(*losses, rtol=1e-3, atol=1e-3)


def test_targets_and_oracle_train_on_a_gpu_side_by_side(nano_recipe, tmp_path):
    config = ScaleConfig((str(nano_recipe),), str(tmp_path / "out"), size="tiny", steps=6, batch=8, pool=2, round=3, warmup=2)
    done = scale(replace(config, builders=1, workers=1, compiled=False))
    assert done.finished
    assert json.loads((tmp_path / "out" / "log.jsonl").read_text().splitlines()[-1])["loss"] < 20


def test_interactions_and_the_fit_of_charts_are_on_a_gpu_what_they_are_on_the_cpu(nano_recipe):
    recipe = find_recipe(str(nano_recipe))
    settings = EncoderConfig(symbols=4, answers=3, lengths=(2, 3), width=8, channels=4, interactions=True)
    here, there = (prepare(recipe, 0, (recipe,), settings, device, None) for device in ("cpu", "cuda"))
    assert there.train and here.train and there.train.device.type == "cpu" and there.trained
    zoo = Fresh(nano_recipe, recipe, (0,), {0: here.fresh.held[0]})
    population = load_population(zoo, AtomsEncoder, settings, np.arange(16))
    torch.manual_seed(0)
    reranker = Reranker(twice=True, denoises=True).eval()
    answered = torch.stack([torch.from_numpy(mixtures.answered(zoo.charts[i], recipe.domain)) for i in range(4)]).expand(16, -1, -1, -1)
    told, scores = [], []
    for device in ("cpu", "cuda"):
        batch = population.to(device).groups[0]
        told.append(AtomsEncoder.with_interactions(batch, settings)["interactions"].cpu())
        with torch.no_grad():
            told_by = responses_of(batch, recipe.domain)
            size = recipe.domain.symbols, recipe.domain.lengths[1]
            fit = reranker.to(device)(told_by, reranker.denoise(told_by, *size), answered.to(device), *size)
        scores.append(fit.cpu())
    torch.testing.assert_close(*told, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(*scores, rtol=1e-3, atol=1e-3)
