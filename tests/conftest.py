"""One thread for torch, as everywhere in the package; shapes checked at run time; a zoo and an oracle made by the commands themselves."""

import json
import os
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch is imported

import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

# Modules that work on whole arrays. Elsewhere the checks would take longer than the work, or stand in the way of torch.compile.
CHECKED = ["truth.domain", "truth.interpret", "targets.target", "targets.checkpoint"]
CHECKED += ["targets.stack", "weights.encoder", "weights.atoms"]
CHECKED += ["weights.expected", "weights.chunk", "weights.symmetry.groups", "weights.symmetry.scramble"]
CHECKED += ["weights.raw", "weights.learned", "weights.directions", "weights.resample", "weights.normal_form"]
CHECKED += ["targets.stream", "targets.architecture", "weights.budget"]
CHECKED += ["weights.large.mapped", "weights.large.bridge", "weights.large.anchors", "weights.large.streaming"]
HOOK = install_import_hook([f"weight_oracle.{name}" for name in CHECKED], "beartype.beartype")

NANO = {
    "name": "nano",
    "domain": {"symbols": 4, "answers": 3, "lengths": [2, 3]},
    "charts": {"kinds": ["has", "first", "last"]},
    "widths": [8],
    "positions": [5, 8],
    "inits": ["wide"],
    "dropouts": [0.0],
    "lr": [0.01, 0.02],
    "steps": [150],
    "batch": 32,
    "pool": 512,
    "checks": 128,
    "shard_size": 48,
    "compiled": False,
}


@pytest.fixture(scope="session")
def nano_recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe file for targets that take a moment to train."""
    file = tmp_path_factory.mktemp("recipe") / "nano.json"
    file.write_text(json.dumps(NANO))
    return file


@pytest.fixture(scope="session")
def nano_zoo(nano_recipe: Path) -> Path:
    """`weight-oracle zoo build`."""
    from weight_oracle.cli import main

    folder = nano_recipe.parent / "zoo"
    assert main(["zoo", "build", str(nano_recipe), str(folder), "--count", "90"]) == 0
    return folder


@pytest.fixture(scope="session")
def nano_target(nano_zoo: Path) -> Path:
    """`weight-oracle zoo export`."""
    from weight_oracle.cli import main

    folder = nano_zoo.parent / "target"
    assert main(["zoo", "export", str(nano_zoo), "0", str(folder)]) == 0
    return folder


@pytest.fixture(scope="session")
def nano_oracle(nano_zoo: Path) -> Path:
    """`weight-oracle train`, for so short that nothing is learned."""
    from weight_oracle.cli import main

    folder = nano_zoo.parent / "oracle"
    assert main(["train", str(nano_zoo), str(folder), "--size", "tiny", "--steps", "2", "--batch", "4"]) == 0
    return folder
