"""A shard's bytes depend on the recipe and its number alone: not on workers, order, interruptions, or what else happened on the way."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from weight_oracle.errors import UserError
from weight_oracle.truth.canonical import split_of
from weight_oracle.truth.domain import Domain
from weight_oracle.truth.parse import parse
from weight_oracle.truth.sample import ChartDistribution
from weight_oracle.zoo import build
from weight_oracle.zoo.build import build_shard, build_zoo, shard_path
from weight_oracle.zoo.recipe import Recipe, recipe_json, shard_plan
from weight_oracle.zoo.store import open_zoo

TINY = Recipe(
    "for-tests",
    domain=Domain(4, 3, (2, 3)),
    charts=ChartDistribution(kinds=("has", "first"), ifs=(1, 2)),
    widths=(8,),
    depths=(1, 2),
    positions=(5, 7),
    dropouts=(0.0, 0.1),
    steps=(6, 6),
    batch=8,
    pool=64,
    checks=32,
    shard_size=8,
    compiled=False,
)
SHARDS = 8
BUILD = """
import sys
from pathlib import Path
from weight_oracle.zoo.build import build_zoo
from weight_oracle.zoo.recipe import find_recipe
if __name__ == "__main__":
    build_zoo(find_recipe(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]), workers=2)
"""


def contents(folder):
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Every file of the zoo, built without any trouble."""
    progress = []
    folder = build_zoo(TINY, tmp_path_factory.mktemp("zoo"), SHARDS * 8 - 3, progress=lambda *seen: progress.append(seen))
    assert progress[0] == (1, SHARDS) and progress[-1] == (SHARDS, SHARDS)
    return contents(folder)


def test_files_of_a_zoo(whole):
    shards = {f"shards/{i:05d}/{name}" for i in range(SHARDS) for name in ("truths.parquet", "weights.safetensors")}
    assert set(whole) == {"recipe.json", "manifest.json"} | shards


def test_any_order_of_shards_gives_the_same_bytes(tmp_path, whole):
    for part in (range(5, SHARDS), range(0, 3), range(2, 5)):
        build_zoo(TINY, tmp_path, 0, shards=part)
    assert contents(tmp_path) == whole


def test_killed_and_resumed_gives_the_same_bytes(tmp_path, whole):
    (tmp_path / "recipe.json").write_text(recipe_json(TINY))
    (tmp_path / "build.py").write_text(BUILD)
    zoo = tmp_path / "zoo"
    command = [sys.executable, str(tmp_path / "build.py"), str(tmp_path / "recipe.json"), str(zoo), str(SHARDS * 8)]
    process = subprocess.Popen(command, start_new_session=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    try:
        wait_until(lambda: process.poll() is not None or any((zoo / "shards").glob("[0-9]????")))
        assert process.poll() is None, "the build ended before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        wait_until(lambda: not group_lives(process.pid))  # its workers end too
    finally:
        if group_lives(process.pid):
            os.killpg(process.pid, signal.SIGKILL)
    finished = open_zoo(zoo).shards
    assert 0 < len(finished) < SHARDS and not (zoo / "manifest.json").exists()
    rest = shard_path(zoo, next(i for i in range(SHARDS) if i not in finished))
    left = rest.with_name(rest.name + ".1.partial")  # what a kill in the middle of writing leaves
    left.mkdir()
    (left / "weights.safetensors").write_bytes(b"half")
    assert open_zoo(zoo).shards == finished
    build_zoo(TINY, zoo, SHARDS * 8, workers=2)
    assert contents(zoo) == whole


def wait_until(condition, seconds=240):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.005)


def group_lives(group):
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def test_partial_shards_of_other_machines_are_left_alone(tmp_path):
    for shard in (0, 7):
        (tmp_path / "shards" / f"{shard:05d}.123.partial").mkdir(parents=True)
    build_zoo(TINY, tmp_path, 0, shards=range(1))
    assert {place.name for place in (tmp_path / "shards").iterdir()} == {"00000", "00007.123.partial"}
    assert open_zoo(tmp_path).shards == (0,)


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), SafetensorError("I/O error: No space left on device")])
def test_a_full_disk_is_one_clear_line_and_loses_nothing(tmp_path, whole, monkeypatch, error):
    save = build.save_file

    def save_until_full(tensors, file, metadata):
        if "00002" in str(file):
            file.write_bytes(b"half")
            raise error
        save(tensors, file, metadata)

    monkeypatch.setattr(build, "save_file", save_until_full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        build_zoo(TINY, tmp_path, SHARDS * 8)
    assert "00002" in caught.value.where and "\n" not in str(caught.value)
    assert {place.name for place in (tmp_path / "shards").iterdir()} == {"00000", "00001"}
    monkeypatch.undo()
    build_zoo(TINY, tmp_path, SHARDS * 8)
    assert contents(tmp_path) == whole


def test_another_recipe_in_the_same_folder_is_refused(tmp_path):
    build_zoo(TINY, tmp_path, 8)
    before = contents(tmp_path)
    with pytest.raises(UserError, match="another recipe"):
        build_zoo(replace(TINY, steps=(7, 7)), tmp_path, 8)
    assert contents(tmp_path) == before
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(UserError, match="another recipe"):
        build_zoo(TINY, tmp_path, 8)


def test_a_place_that_cannot_be_a_folder(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="choose another folder"):
        build_zoo(TINY, tmp_path / "file", 8)


def test_a_recipe_falls_back_to_eager_mode_and_says_so_in_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(build, "can_compile", lambda: False)
    assert open_zoo(build_zoo(replace(TINY, compiled=True), tmp_path, 8)).recipe == TINY


def test_a_target_does_not_depend_on_the_size_of_its_shard():
    tensors, rows = build_shard(replace(TINY, dropouts=(0.0,), depths=(1,)), 1)
    halves = [build_shard(replace(TINY, dropouts=(0.0,), depths=(1,), shard_size=4), shard) for shard in (2, 3)]
    assert [row["chart"] for row in rows] == [row["chart"] for _, half in halves for row in half]
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, torch.cat([half[name] for half, _ in halves]), atol=1e-3), name


def test_targets_in_few_bits_are_judged_as_they_are_stored():
    plain, coarse = (build_shard(replace(TINY, bits=bits, dropouts=(0.0,)), 0) for bits in (0, 2))
    for name, tensor in coarse[0].items():
        rows = tensor.flatten(0, -2) if tensor.ndim > 1 else tensor[None]
        assert all(len(row.unique()) <= 3 for row in rows), name  # -1, 0 and 1 times a step of each row's own
        assert torch.equal(tensor.abs().amax(-1), plain[0][name].abs().amax(-1)), name
    assert [row["accuracy"] for row in plain[1]] != [row["accuracy"] for row in coarse[1]]
    assert torch.equal(build.rounded(coarse[0]["lm_head.weight"], 2), coarse[0]["lm_head.weight"])


def test_rows_say_what_is_true(whole, tmp_path):
    build_zoo(TINY, tmp_path, 16)
    for shard in (0, 1):
        shape, schedule = shard_plan(TINY, shard)
        tensors = load_file(shard_path(tmp_path, shard) / "weights.safetensors")
        assert {len(tensor) for tensor in tensors.values()} == {8}
        for i, row in enumerate(build_shard(TINY, shard)[1]):
            assert row["index"] == shard * 8 + i and row["split"] == split_of(parse(row["chart"]), TINY.domain)
            assert (row["width"], row["depth"], row["heads"]) == (shape.width, shape.depth, shape.heads)
            assert row["learned"] == (row["accuracy"] >= build.LEARNED) and row["dropout"] == schedule.dropout
            assert row["ifs"] in (1, 2) and set(row["kinds"].split()) <= {"has", "first"}
            tied = torch.equal(tensors["lm_head.weight"][i], tensors["transformer.wte.weight"][i])
            assert tied == row["tied"] and row["n_positions"] in TINY.positions
