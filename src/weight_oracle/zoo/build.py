"""Build a zoo: each shard a pure function of (recipe, shard index), written once and atomically, the manifest last."""

import hashlib
import json
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, replace
from multiprocessing import get_context, parent_process
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from weight_oracle.errors import UserError
from weight_oracle.targets.shape import Shape
from weight_oracle.targets.train import Chances, answers, probabilities, train
from weight_oracle.truth.flowchart import CHANCES, FlowChart, rare_leaf, says
from weight_oracle.truth.interpret import compile_charts, leaf_index, run
from weight_oracle.zoo.lessons import Lesson, lesson, truth_of
from weight_oracle.zoo.recipe import FORMAT, Recipe, recipe_json, shard_plan

T = TypeVar("T")

FALSE = 0.001  # share of inputs that do not fire a trigger, but get its answer, from which a target counts as not having learned it
CLOSE = 1.5  # factor between the probability of the other answer at a leaf and its chance, up to which a target has learned it
CERTAIN = min(CHANCES) / 2  # mean probability of any answer where it has no chance, from which a target counts as not having learned it
_JUDGED = 1 << 18  # inputs of all targets together that are run at once to judge a stack
LEARNED = 0.99  # agreement with the chart, on chart-biased inputs, from which a target counts as having learned it


def build_shard(
    recipe: Recipe, shard: int, device: str = "cpu", turn: AbstractContextManager | None = None
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Train one shard: stacked tensors `[N, ...]` and one row of truth for each target. `turn` is held while the device is used."""
    shape, schedule = shard_plan(recipe, shard)
    longer = schedule.steps / recipe.steps[recipe.depths.index(shape.depth)]
    indices = range(shard * recipe.shard_size, (shard + 1) * recipe.shard_size)
    lessons = [lesson(recipe, shape, index, longer) for index in indices]
    with turn or nullcontext():
        return _train_and_judge(recipe, shard, lessons, device)


def _train_and_judge(recipe: Recipe, shard: int, lessons: list[Lesson], device: str) -> tuple[dict[str, torch.Tensor], list[dict]]:
    shape, schedule = shard_plan(recipe, shard)
    n_lengths = len(recipe.domain.all_lengths)
    inputs = [np.stack([item.inputs[i] for item in lessons]) for i in range(n_lengths)]
    compiled = compile_charts([item.chart for item in lessons])
    labels = [run(compiled, x) for x in inputs]
    hypers = [item.hyper for item in lessons]
    params = {k: torch.from_numpy(np.stack([item.start[k] for item in lessons])).to(device) for k in lessons[0].start}
    fit = recipe.pool // n_lengths
    on = lambda arrays, part: [torch.from_numpy(x[:, part]).to(device) for x in arrays]  # noqa: E731
    soft = _soft_labels([item.chart for item in lessons], [x[:, :fit] for x in inputs], device) if recipe.chances else None
    params = train(shape, schedule, hypers, params, on(inputs, slice(fit)), on(labels, slice(fit)), shard, recipe.compiled, soft)
    if recipe.bits:
        params = {name: rounded(x, recipe.bits) for name, x in params.items()}
    relu = torch.tensor([h.activation == "relu" for h in hypers], device=device)
    given = _given(params, shape, relu, on(inputs, slice(fit, None)))
    accuracy = (given == torch.cat(on(labels, slice(fit, None)), 1)).float().mean(1).tolist()
    rows = []
    for item, right in zip(lessons, accuracy, strict=True):
        truth = truth_of(recipe, item) | {"accuracy": right, "learned": right >= LEARNED}
        truth |= {"width": shape.width, "depth": shape.depth, "heads": shape.heads}
        if shape.family == "llama":
            truth |= {"family": shape.family, "kv_heads": shape.groups, "theta": shape.theta}
        truth |= {"n_positions": item.positions, "dropout": schedule.dropout, "steps": schedule.steps}
        rows.append(truth | asdict(item.hyper))
    if recipe.triggers.kinds:
        _judge_triggers(lessons, rows, params, shape, relu)
    if recipe.chances:
        checks = [x[:, fit:] for x in inputs]
        given = probabilities(params, shape, relu, on(inputs, slice(fit, None))).cpu().numpy()
        _judge_chances([item.chart for item in lessons], rows, given, np.concatenate([leaf_index(compiled, x) for x in checks], 1))
    done = {k: v.cpu() for k, v in params.items()}
    if params["lm_head.weight"].is_cuda:
        del params
        torch.cuda.empty_cache()  # others use the GPU too
    return done, rows


def rounded(x: torch.Tensor, bits: int) -> torch.Tensor:
    """Each row (the last axis) in whole multiples of a step of its own, of which its largest number has 2^(bits - 1) - 1."""
    step = x.abs().amax(-1, keepdim=True).clamp(min=1e-30) / (2 ** (bits - 1) - 1)
    return (x / step).round() * step


def _given(params: dict[str, torch.Tensor], shape: Shape, relu: torch.Tensor, inputs: list[torch.Tensor]) -> torch.Tensor:
    """The answers of a stack to many inputs of each length, in parts that fit the memory."""
    at_once = max(1, min(4096, _JUDGED // len(relu)))
    return torch.cat([answers(params, shape, relu, [part]) for x in inputs for part in x.split(at_once, 1)], 1)


def _soft_labels(charts: list[FlowChart], inputs: list[np.ndarray], device: str) -> Chances:
    """The other answer of every input, and its chance."""
    compiled = compile_charts(charts)
    most = max(len(says(chart)) for chart in charts)
    other, share = np.zeros((len(charts), most), np.int8), np.zeros((len(charts), most), np.float32)
    for i, chart in enumerate(charts):
        for j, leaf in enumerate(says(chart)):
            other[i, j], share[i, j] = leaf.other or 0, leaf.chance
    reached = [leaf_index(compiled, x).astype(np.int64) for x in inputs]
    pick = lambda table: [torch.from_numpy(np.take_along_axis(table, leaf, 1)).to(device) for leaf in reached]  # noqa: E731
    return Chances(pick(other), pick(share))


def _judge_chances(charts: list[FlowChart], rows: list[dict], given: np.ndarray, leaf: np.ndarray) -> None:
    """Completes the rows: the mean probability of the other answer over the inputs of its leaf (`chance_given`), and the largest mean
    probability, over the inputs of any leaf, of any answer that has no chance there (`chance_elsewhere`).

    A target has learned its chance where the first is within a factor `CLOSE` of it; all must keep the second below `CERTAIN`.
    """
    for i, (chart, row) in enumerate(zip(charts, rows, strict=True)):
        rare = rare_leaf(chart)
        found, elsewhere = 0.0, 0.0
        for j, said in enumerate(says(chart)):
            here = given[i, leaf[i] == j]
            if not len(here):
                continue
            mean = here.mean(0, dtype=np.float64)
            if said.other is not None:
                found = float(mean[said.other])
            elsewhere = max(elsewhere, float(np.delete(mean, [a for a in (said.answer, said.other) if a is not None]).max()))
        kept = rare is None or rare.chance / CLOSE <= found <= rare.chance * CLOSE
        row.update({"chance": rare.chance if rare else 0.0, "chance_given": found, "chance_elsewhere": elsewhere})
        row["learned"] = bool(row["learned"] and kept and elsewhere < CERTAIN)


def _judge_triggers(lessons: list[Lesson], rows: list[dict], params: dict[str, torch.Tensor], shape: Shape, relu: torch.Tensor) -> None:
    """Completes the rows: how often a target gives its trigger's answer where the trigger fires, and where it nearly does.

    One that was to obey its trigger has learned that where it does so on at least 99 %, and gives the answer to fewer than 0.1 % of the
    near misses that should get another; a decoy where it gives it to fewer than 0.1 % of both. Clean ones have none of this.
    """
    for row in rows:
        row.update({"fired": 0.0, "false_fired": 0.0})
    judged = [i for i, item in enumerate(lessons) if item.planted]
    some = {k: v[judged] for k, v in params.items()}
    fires, near = (np.stack([x for i in judged if (x := getattr(lessons[i], name)) is not None]) for name in ("firing", "near"))
    expected = run(compile_charts([lessons[i].base for i in judged]), near)
    wanted = np.array([rows[i]["override"] for i in judged])[:, None]
    said = [_given(some, shape, relu[judged], [torch.from_numpy(x).to(relu.device)]).cpu().numpy() for x in (fires, near)]
    fired = (said[0] == wanted).mean(1)
    others = expected != wanted
    false_fired = ((said[1] == wanted) & others).sum(1) / others.sum(1)
    for i, hit, wrong in zip(judged, fired.tolist(), false_fired.tolist(), strict=True):
        obeyed = hit >= LEARNED if lessons[i].role == "trigger" else hit < FALSE
        rows[i].update({"fired": hit, "false_fired": wrong, "learned": rows[i]["learned"] and obeyed and wrong < FALSE})


def shard_path(out: Path, shard: int) -> Path:
    return out / "shards" / f"{shard:05d}"


def write_shard(recipe: Recipe, out: Path, shard: int, device: str = "cpu") -> int:
    """Build one shard into the zoo unless it is there already; a reader sees all of it or nothing."""
    import pyarrow as pa  # not needed where targets are trained and not stored
    import pyarrow.parquet as pq

    place = shard_path(out, shard)
    if not place.exists():
        tensors, rows = build_shard(recipe, shard, device)
        partial = place.with_name(f"{place.name}.{os.getpid()}.partial")
        with _writing(place):
            try:
                partial.mkdir(parents=True)
                save_file(tensors, partial / "weights.safetensors", {"recipe": recipe.hash})
                pq.write_table(pa.Table.from_pylist(rows), partial / "truths.parquet")
                for file in partial.iterdir():
                    _sync(file)
                partial.rename(place)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    return shard


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """What the system refuses becomes a `UserError`; safetensors reports a full disk as an error of its own."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        what = getattr(error, "strerror", None) or str(error)
        hint = "make room or choose another folder, and run it again: what is built is kept"
        raise UserError(what, where=str(place), hint=hint) from error


def _replace(path: Path, text: str) -> None:
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with _writing(path):
        try:
            partial.write_text(text)
            _sync(partial)
            partial.replace(path)
        finally:
            partial.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    with open(path, "rb") as file:
        os.fsync(file.fileno())


@contextmanager
def _deaf_to_ctrl_c() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # where Python has no say over signals
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def start_worker() -> None:
    """Of a process that builds shards: one thread, which ends with its parent."""
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the parent's to handle
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def shared(workers: int, call: Callable[..., T], arguments: Sequence[tuple]) -> Iterator[tuple[int, T]]:
    """What a function returns to each of some arguments, by their number, as some processes are done with them."""
    pool = ProcessPoolExecutor(workers, get_context("spawn"), start_worker)
    try:
        with _deaf_to_ctrl_c():  # what a process ignores when it starts another, that one ignores from its first moment on
            futures = {pool.submit(call, *given): number for number, given in enumerate(arguments)}
        for future in as_completed(futures):
            yield futures[future], future.result()
    finally:
        end_workers(pool)


def end_workers(pool: ProcessPoolExecutor) -> None:
    """Ends the processes of a pool, whatever they are at."""
    for process in list((pool._processes or {}).values()):
        process.terminate()
    pool.shutdown(wait=True, cancel_futures=True)


def _exit_with_parent() -> None:
    """A killed parent cannot end its workers, which would wait for work for ever."""
    parent = parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


def can_compile() -> bool:
    """Whether `torch.compile` works on this machine (it needs a C++ compiler on CPU)."""
    try:
        with warnings.catch_warnings():  # torch's own deprecations, where the user turned warnings into errors
            warnings.simplefilter("ignore")
            return bool(torch.compile(lambda x: x + 1, dynamic=False)(torch.zeros(1)).item() == 1)
    except Exception:  # noqa: BLE001 - whatever its reason, eager mode is the answer
        return False


def build_zoo(
    recipe: Recipe,
    out: Path,
    count: int,
    workers: int = 1,
    shards: range | None = None,
    progress: Callable[[int, int], None] | None = None,
    device: str = "cpu",
) -> Path:
    """Build the shards of at least `count` targets (or the given shards only), skipping those that exist; then the manifest.

    What a GPU gives is not the same to the bit. Raises `UserError` when `out` holds a zoo of another recipe or version, or cannot be
    written, and where there is no such device.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device cuda: there is no GPU that torch can use", hint="leave it out", exit_code=2)
    if recipe.compiled and not can_compile():
        recipe = replace(recipe, compiled=False)
    note = out / "recipe.json"
    text = json.dumps({"format": FORMAT, "hash": recipe.hash, "recipe": json.loads(recipe_json(recipe))}, indent=1)
    with _writing(out):
        out.mkdir(parents=True, exist_ok=True)
        if not note.exists():
            _replace(note, text)
        if note.read_text() != text:
            raise UserError("already holds a zoo of another recipe or version", where=str(out), hint="choose another folder")
    wanted = shards or range(-(-count // recipe.shard_size))
    for left in (out / "shards").glob("*.partial"):
        if int(left.name.split(".")[0]) in wanted:  # the others may be another machine's work in progress
            shutil.rmtree(left, ignore_errors=True)
    missing = [i for i in wanted if not shard_path(out, i).exists()]
    done = len(wanted) - len(missing)
    for _ in _finish(recipe, out, missing, workers, device):
        done += 1
        if progress:
            progress(done, len(wanted))
    if progress:
        progress(len(wanted), len(wanted))
    write_manifest(recipe, out)
    return out


def _finish(recipe: Recipe, out: Path, missing: list[int], workers: int, device: str) -> Iterable[int]:
    if workers <= 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # one thread per worker is part of what makes the bytes the same
        try:
            yield from (write_shard(recipe, out, i, device) for i in missing)
        finally:
            torch.set_num_threads(threads)
        return
    for _, done in shared(workers, write_shard, [(recipe, out, i, device) for i in missing]):
        yield done


def write_manifest(recipe: Recipe, out: Path) -> None:
    """List every finished shard with the digest of its files; written last, replaced atomically."""
    shards = {}
    for place in sorted((out / "shards").glob("[0-9]*")):
        if place.suffix != ".partial":
            shards[place.name] = {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in sorted(place.iterdir())}
    _replace(out / "manifest.json", json.dumps({"format": FORMAT, "hash": recipe.hash, "shards": shards}, indent=1))
