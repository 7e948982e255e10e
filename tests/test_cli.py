"""Every command, what it prints, and what it says to bad input: one line, and never a traceback."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import MISSING, fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from weight_oracle import cli, commands
from weight_oracle.errors import UserError
from weight_oracle.truth.parse import parse

RUN = [sys.executable, "-c", "import sys; from weight_oracle.cli import main; sys.exit(main())"]
NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
NAMED = ["demo", "zoo build", "zoo show", "zoo export", "train", "eval", "questions", "ask", "read", "verify"]
NAMED += ["compare", "scramble", "budget"]


@pytest.fixture
def run(capsys):
    """Runs a command in this process; returns exit code, what it printed, and what it complained about."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        code = cli.main([str(a) for a in arguments])
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def complaint(run):
    """The one line of a command that fails."""

    def complaint(*arguments: object, code: int = 1) -> str:
        got, out, err = run(*arguments)
        assert (got, out) == (code, "") and err.startswith("weight-oracle: ") and err.count("\n") == 1, (got, out, err)
        return err

    return complaint


def stop(*arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main(list(arguments))
    return int(str(ended.value.code))


def test_help_is_quick_because_nothing_heavy_is_imported():
    code = "import sys, weight_oracle, weight_oracle.cli as c; c.main(['--help'])"
    check = f"try: exec({code!r})\nfinally: print([m for m in ('torch', 'transformers', 'numpy', 'rich', 'pyarrow') if m in sys.modules])"
    ended = subprocess.run([sys.executable, "-c", f"import sys\n{check}"], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == "[]"


def test_every_command_has_help_and_takes_json_seed_and_debug(capsys):
    assert stop("--help") == 0
    overview = capsys.readouterr().out
    for name in NAMED:
        assert name.split()[0] in overview
        assert stop(*name.split(), "--help") == 0
        shown = capsys.readouterr().out
        assert all(option in shown for option in ("--json", "--seed", "--debug")), name


def test_wrong_arguments_end_in_2(capsys):
    for wrong in ([], ["bogus"], ["ask", "somewhere"], ["eval", "a", "b", "--split", "everything"], ["questions", "--bogus"]):
        assert stop(*wrong) == 2
        assert "Traceback" not in capsys.readouterr().err


def test_train_has_the_options_and_defaults_of_a_training_run():
    from weight_oracle.oracle.train import TrainConfig

    defaults = {f.name: f.default for f in fields(TrainConfig)}
    ours = {f.name: f.default for f in fields(cli.Train) if f.name not in {f.name for f in fields(cli.Command)}}
    assert ours.keys() <= defaults.keys()
    made_with = {"noise", "warmup", "refinements", "bf16", "reorder", "others", "blind", "interactions"}  # the bundled oracles
    assert made_with <= ours.keys()
    assert {k: v for k, v in ours.items() if v is not MISSING} == {k: defaults[k] for k, v in ours.items() if v is not MISSING}


def test_train_reranker_takes_all_that_its_training_can_be_given():
    from weight_oracle.oracle.train_reranker import RerankerConfig

    defaults = {f.name: f.default for f in fields(RerankerConfig)}
    ours = {f.name: f.default for f in fields(cli.TrainReranker) if f.name not in {f.name for f in fields(cli.Command)}}
    assert ours.keys() == defaults.keys() - {"weight_decay", "seed"}
    assert {k: v for k, v in ours.items() if v is not MISSING} == {k: defaults[k] for k, v in ours.items() if v is not MISSING}


def test_questions(run):
    code, out, err = run("questions", "--json")
    kinds = json.loads(out)["questions"]
    assert (code, err) == (0, "") and {"kind", "asks", "example", "answer"} <= kinds[0].keys()
    shown = run("questions")[1]
    assert all(kind["example"] in shown and kind["asks"] in shown for kind in kinds)


def test_zoo(run, nano_zoo, nano_target):
    code, out, _ = run("zoo", "show", nano_zoo, "--json", "--seed", 1)
    shown = json.loads(out)
    assert code == 0 and shown["targets"] == 96 and sum(n["targets"] for n in shown["by"]["split"].values()) == 96
    assert sum(n["learned"] for n in shown["by"]["split"].values()) == shown["learned"] > 30
    text = run("zoo", "show", nano_zoo, "--seed", 1)[1]
    assert "96 targets of nano" in text and f"target {shown['example']['index']} " in text and "└─ no" in text

    code, out, _ = run("zoo", "build", nano_zoo.parent / "nano.json", nano_zoo, "--count", 90, "--json")
    assert (code, json.loads(out)["shards"]) == (0, 2)
    code, out, _ = run("zoo", "export", nano_zoo, 95, nano_target.parent / "other", "--json")
    exported = json.loads(out)
    assert code == 0 and exported["lengths"] == [2, 3] and parse(exported["chart"])
    assert {p.name for p in nano_target.iterdir()} >= {"config.json", "model.safetensors", "tokenizer.json"}


def test_ask(run, nano_target, nano_oracle):
    ask = ["ask", nano_target, "which symbols matter?", "--oracle", nano_oracle, "--anyway"]
    code, out, err = run(*ask, "--json")
    answer = json.loads(out)
    keys = {"answer", "probability", "known", "familiar"}
    assert (code, err) == (0, "") and answer.keys() == keys and 0 <= answer["probability"] <= 1
    code, out, _ = run(*ask, "--guess")
    assert code == 0 and answer["answer"] in out and ("I don't know" in out) == (not answer["known"])
    code, out, _ = run(*ask)
    assert code == 0 and (answer["known"] or ("I don't know" in out and "--guess" in out and f": {answer['answer']}" not in out))

    code, out, _ = run(*ask, "--why", "--check", "--samples", 2, "--json")
    more = json.loads(out)
    assert code == 0 and more.keys() == keys | {"why", "checked"} and {key: more[key] for key in keys} == answer
    assert {cause["part"] for cause in more["why"]} == {"layer", "head", "neuron"} and more["checked"]["samples"] == 2
    text = run(*ask, "--why", "--check", "--samples", 2, "--guess")[1]
    assert "rests on" in text and "checked by running the network" in text
    about = ["ask", nano_target, "what does it answer on a b?", "--oracle", nano_oracle, "--anyway", "--check", "--json"]
    assert json.loads(run(*about)[1])["checked"].keys() == {"answer", "how"}


def test_a_blind_oracle_refuses(complaint, run, nano_target, nano_oracle):
    for command in (["ask", nano_target, "does order matter?"], ["read", nano_target]):
        said = complaint(*command, "--oracle", nano_oracle)
        assert "blind" in said and "nats per token" in said and "--anyway" in said
        assert run(*command, "--oracle", nano_oracle, "--anyway")[0] == 0


def test_a_question_that_cannot_be_asked(complaint, nano_target, nano_oracle):
    said = complaint("ask", nano_target, "what is the capital of France?", "--oracle", nano_oracle, code=2)
    assert "weight-oracle questions" in said and "France" in said


def test_read_and_verify(run, nano_target, nano_oracle, tmp_path):
    options = [nano_target, "--oracle", nano_oracle, "--anyway"]
    code, out, err = run("read", *options, "--check", "--samples", 3, "--json")
    read = json.loads(out)
    assert (code, err) == (0, "")
    check = {"agreement", "interval", "inputs", "exhaustive", "counterexamples"}
    assert read.keys() == {"chart", "probability", "known", "familiar", "mermaid", "checked"}
    checked = read["checked"]
    assert checked.keys() == {"samples", "charts", "found", "read", "candidates"} and checked["read"].keys() == check | {"chart", "said"}
    assert checked["read"]["chart"] == read["chart"] and checked["read"]["agreement"] <= checked["candidates"][0]["agreement"]
    assert parse(read["chart"]) and read["mermaid"].startswith("flowchart TD")
    assert (checked["read"]["inputs"], checked["read"]["exhaustive"]) == (80, True)

    file = tmp_path / "chart.txt"
    file.write_text(read["chart"] + "\n")
    for chart in (read["chart"], file):
        verdict = json.loads(run("verify", nano_target, chart, "--lengths", "2-3", "--json")[1])
        assert verdict == {key: checked["read"][key] for key in check}
    text = run("read", *options, "--check", "--samples", 3, "--guess")[1]
    assert read["chart"] in text and "all 80 inputs" in text and "read from the weights" in text
    assert "shortest inputs that differ" in text
    text = run("read", *options)[1]
    assert read["known"] or ("I don't know what this network does" in text and read["chart"] not in text)
    assert run("read", *options, "--check", "--samples", 0)[0] == 2


def test_eval(run, nano_oracle, nano_zoo):
    code, out, _ = run("eval", nano_oracle, nano_zoo, "--json")
    result = json.loads(out)["test"]
    assert code == 0 and {"loss", "gap", "information_read", "questions", "charts", "baselines", "targets", "learned"} <= result.keys()
    assert result["views"] == 8
    code, out, _ = run("eval", nano_oracle, nano_zoo, "--targets", 12, "--views", 1)
    assert code == 0 and "nano" in out


def test_training_goes_on_with_a_further_zoo(run, nano_oracle, nano_zoo, nano_recipe, tmp_path):
    recipe = tmp_path / "more.json"
    recipe.write_text(json.dumps(json.loads(nano_recipe.read_text()) | {"name": "more", "seed": 7, "shard_size": 8}))
    assert run("zoo", "build", recipe, tmp_path / "more", "--count", 16)[0] == 0
    options = ["--size", "tiny", "--steps", 1, "--batch", 4, "--json"]
    code, out, _ = run("train", nano_zoo, tmp_path / "out", "--also", tmp_path / "more", "--start", nano_oracle, *options)
    card = json.loads((tmp_path / "out" / "oracle.json").read_text())
    assert code == 0 and json.loads(out)["targets"] == card["training_targets"] > 30
    assert [z["recipe"] for z in card["zoos"]] == ["nano", "more"] and card["after"]["training"]["steps"] == 2


def test_names_of_the_targets_own(run, nano_target):
    chart = "if has b: say q else: say p"
    code, out, _ = run("verify", nano_target, chart, "--symbols", "b,a", "--answers", "p,q", "--lengths", "3-3", "--json")
    assert code == 0 and json.loads(out)["inputs"] == 8


def broken_chart(folder: Path) -> str:
    (folder / "chart.txt").write_text("if has a say p else: say q")
    return str(folder / "chart.txt")


@pytest.mark.parametrize(
    ("chart", "says"),
    [
        ("if has a: say p", "line 1, column 16"),
        ("if has a: say p else: say nothing", "'nothing' is not an answer"),
        ("say p " * 500, "or the end of the chart"),
        (broken_chart, "chart.txt, line 1, column 10"),
    ],
)
def test_a_chart_with_a_mistake(complaint, nano_target, tmp_path, chart, says):
    assert says in complaint("verify", nano_target, chart if isinstance(chart, str) else chart(tmp_path))


def edited(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors["transformer.wte.weight"])
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps({"a": 1}))


DAMAGES = {
    "there is no such folder": shutil.rmtree,
    "the file is cut short": lambda folder: os.truncate(folder / "model.safetensors", 500),
    "this is a pickle": pickled,
    "NaN in transformer.wte.weight": lambda folder: edited(folder, lambda weights: weights[0].fill_(torch.nan)),
    "there is no tokenizer.json": lambda folder: (folder / "tokenizer.json").unlink(),
    "'LlamaForCausalLM' is not supported": lambda folder: (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}'),
}


@pytest.mark.parametrize("says", DAMAGES)
@pytest.mark.parametrize("command", ["ask", "read", "verify"])
def test_a_target_that_cannot_be_read(complaint, nano_target, nano_oracle, tmp_path, command, says):
    folder = shutil.copytree(nano_target, tmp_path / "target")
    DAMAGES[says](folder)
    more = {"ask": ["does order matter?", "--oracle", nano_oracle], "read": ["--oracle", nano_oracle], "verify": ["say p"]}[command]
    said = complaint(command, folder, *more)
    assert says in said and str(folder) in said


@pytest.mark.parametrize(
    ("arguments", "says", "code"),
    [
        (["zoo", "build", "charts-huge", "out", "--count", "1"], "no recipe called 'charts-huge'", 1),
        (["zoo", "build", "charts-tiny", "out"], "--count N", 2),
        (["zoo", "build", "charts-tiny", "out", "--shards", "3:3"], "is not a range", 2),
        (["zoo", "build", "charts-tiny", "out", "--count", "0"], "at least 1", 2),
        pytest.param(["zoo", "build", "charts-tiny", "out", "--count", "1", "--device", "cuda"], "no GPU", 2, marks=NO_GPU),
        (["zoo", "show", "nowhere"], "is not a zoo", 1),
        (["train", "nowhere", "out"], "is not a zoo", 1),
        (["zoo", "export", "nowhere", "0", "out"], "is not a zoo", 1),
        (["train", "nowhere", "out"], "is not a zoo", 1),
        (["eval", "nowhere", "nowhere"], "is no oracle", 1),
        (["read", "nowhere", "--oracle", "nowhere"], "is no oracle", 1),
        (["demo", "--oracle", "nowhere"], "is no oracle", 1),
        (["verify", "nowhere", "say p", "--lengths", "six"], "'six' is not a range", 2),
    ],
)
def test_what_is_not_there(complaint, tmp_path, monkeypatch, arguments, says, code):
    monkeypatch.chdir(tmp_path)
    assert says in complaint(*arguments, code=code)
    assert not list(tmp_path.iterdir())


def test_a_target_that_the_oracle_was_not_made_for(complaint, nano_target, nano_oracle):
    assert "1-3" in complaint("read", nano_target, "--oracle", nano_oracle, "--lengths", "1-3")


def test_broken_zoos_and_recipes(complaint, nano_recipe, nano_zoo, nano_oracle, tmp_path):
    assert "there is no target 96" in complaint("zoo", "export", nano_zoo, 96, tmp_path / "out")
    assert "another recipe" in complaint("zoo", "build", nano_recipe, nano_zoo, "--count", 1, "--seed", 7)
    recipe = tmp_path / "recipe.json"
    recipe.write_text(nano_recipe.read_text().replace("widths", "breadths"))
    assert "unknown field 'breadths'" in complaint("zoo", "build", recipe, tmp_path / "zoo", "--count", 1)
    recipe.write_text("{")
    assert str(recipe) in complaint("zoo", "build", recipe, tmp_path / "zoo", "--count", 1)
    zoo = shutil.copytree(nano_zoo, tmp_path / "zoo")
    os.truncate(zoo / "shards" / "00000" / "weights.safetensors", 100)
    assert str(zoo) in complaint("eval", nano_oracle, zoo)
    (zoo / "recipe.json").write_text(json.dumps(json.loads((zoo / "recipe.json").read_text()) | {"format": 999}))
    assert "version 999" in complaint("zoo", "show", zoo)


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("is odd", where="file", hint="mend it", exit_code=3), 3, "file: is odd — mend it"),
        (KeyboardInterrupt(), 130, "stopped; what is built is kept"),
        (OSError(28, "No space left on device", "zoo/x"), 1, "zoo/x: no space left"),
        (PermissionError(13, "Permission denied", "zoo"), 1, "zoo: Permission denied"),
        (MemoryError(), 1, "out of memory"),
        (ZeroDivisionError("two\nlines"), 1, "ZeroDivisionError: two lines — not expected; --debug shows the traceback"),
    ],
)
def test_errors_are_one_line_unless_debug_is_on(complaint, monkeypatch, error, code, says):
    def fail(config):
        raise error

    monkeypatch.setattr(commands, "questions", fail)
    assert says in complaint("questions", code=code)
    with pytest.raises(type(error)):
        cli.main(["questions", "--debug"])


def test_a_reader_that_stops_reading():
    program = f"{sys.executable} -c 'from weight_oracle.cli import main; import sys; sys.exit(main())' questions; echo $? >&2"
    ended = subprocess.run(["bash", "-c", f"({program}) | true"], capture_output=True, text=True, check=True)
    assert ended.stderr.strip() in ("0", "141")


def test_ctrl_c_keeps_finished_shards(nano_recipe, tmp_path, run):
    recipe, zoo = tmp_path / "recipe.json", tmp_path / "zoo"
    recipe.write_text(json.dumps(json.loads(nano_recipe.read_text()) | {"shard_size": 4, "steps": [60]}))
    command = [*RUN, "zoo", "build", str(recipe), str(zoo), "--count", "100000", "--workers", "2"]
    heard = lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)  # noqa: E731 - a test run in the background may have been told to ignore it
    pipes: dict = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, start_new_session=True, preexec_fn=heard) as process:
        try:
            deadline = time.monotonic() + 240
            while len(list(zoo.glob("shards/*[0-9]"))) < 2 and process.poll() is None and time.monotonic() < deadline:
                time.sleep(0.1)
            os.killpg(process.pid, signal.SIGINT)  # as a terminal does: the workers get it too
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, out, err) == (130, "", "weight-oracle: stopped; what is built is kept\n")
    assert json.loads(run("zoo", "show", zoo, "--json")[1])["shards"] >= 2
