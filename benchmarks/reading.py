"""What the vote over renamings and the parts of the second look bring to the charts that are read.

    python benchmarks/reading.py ORACLE ZOO --targets 400 [--split validation]

The second look: the likelihood of the charts that are compared, what is given back (`oracle.reconsider`), and the reranker, where there is
one. In the end a chart that the layers contradict is mended (`oracle.mend`).
"""

import argparse
import json

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from weight_oracle.evaluation.metrics import chart_scores, wilson
from weight_oracle.evaluation.subjects import draw_questions, encode, read_chart, reconsidered, sample_places, under_views
from weight_oracle.oracle.bundle import load_oracle
from weight_oracle.oracle.data import pick
from weight_oracle.oracle.reconsider import Considered
from weight_oracle.oracle.views import vote
from weight_oracle.truth.flowchart import n_ifs, to_text
from weight_oracle.zoo.store import open_zoo

WAYS = ("one renaming", "the vote", "likelihood", "likelihood and what is given back", "likelihood and reranker", "reranker", "second look")
FINAL = "second look, and mended as the layers say"


def _scores(found: Considered) -> dict[str, Tensor]:
    """What the compared charts are ranked by."""
    fit = torch.zeros(len(found.charts)) if found.fit is None else found.fit
    scores = found.likelihood, found.likelihood + found.gap, found.likelihood + found.trust * fit, fit, found.posterior
    return dict(zip(WAYS[2:], scores, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("oracle")
    parser.add_argument("zoo")
    parser.add_argument("--targets", type=int, default=400)
    parser.add_argument("--split", choices=["test", "validation"], default="test")
    args = parser.parse_args()
    torch.set_num_threads(1)
    oracle, zoo = load_oracle(args.oracle), open_zoo(args.zoo)
    places = sample_places(pick(zoo, args.split), args.targets, 0)
    subjects = encode(oracle.model, oracle.codec, zoo, places, expectation=oracle.expectation)
    asked = draw_questions(subjects, kinds=["chart"])
    read: dict[str, list[str]] = {way: [] for way in (*WAYS, FINAL)}
    near = []
    for a, said in zip(tqdm(asked, "reading", mininterval=1), under_views(subjects, asked), strict=True):
        found = reconsidered(subjects, a.subject, said)
        read["one renaming"].append(said[0].text)
        read["the vote"].append(vote(said).text)
        if found is not None:
            for way, score in _scores(found).items():
                read[way].append(to_text(found.charts[int(score.argmax())]))
            read[FINAL].append(found.best().text)
        for texts in read.values():  # nothing was said that is a chart
            texts += [""] * (len(read["one renaming"]) - len(texts))
        near.append(found.charts if found else [])
    truths = [facts.chart for facts in subjects.facts]
    tests = np.array([n_ifs(chart) for chart in truths])
    result: dict = {"oracle": args.oracle, "zoo": zoo.recipe.name, "split": args.split, "targets": len(truths), "same_99": {}}
    for way, texts in read.items():
        charts = [read_chart(text, subjects.domain) for text in texts]
        same = np.array(chart_scores(truths, charts, subjects.domain)["same_99"])
        by_tests = {int(n): float(same[tests == n].mean()) for n in np.unique(tests)}
        result["same_99"][way] = {"all": float(same.mean()), "interval": wilson(float(same.sum()), len(same)), "by_tests": by_tests}
    result["truth_among_candidates"] = float(np.mean([chart in charts for chart, charts in zip(truths, near, strict=True)]))
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
