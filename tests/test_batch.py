"""A batch file in the place of a server: a stage writes of its results what it writes of one."""

import importlib
import json

import pytest
import tiny_models
from fake_server import FakeServer

from autoif import files
from autoif.files import UserError
from autoif.flags import call

LOWER = "def evaluate(response): return response == response.lower()"


def answer(messages, request):
    text = messages[0]["content"]
    if "Score: <number>" in text:
        return f"It helps.\nScore: {7 + len(text) % 3}"
    seed = request["seed"] * 1000 if request["seed"] < 1000 else request["seed"]
    return [f"{'ok' if n % 2 else 'NO'} {len(text)} {seed + n}" for n in range(request.get("n", 1))]


def results(requests, path, without=None):
    """The file of results that a batch of `requests` comes back as, one request failed."""
    rows = []
    for number, row in enumerate(files.read(requests)):
        assert (row["method"], row["url"]) == ("POST", "/v1/chat/completions")
        body, texts = row["body"], answer(row["body"]["messages"], row["body"])
        texts = texts if isinstance(texts, list) else [texts]
        choices = []
        for index, text in enumerate(texts):
            message = {"role": "assistant", "content": text}
            choices.append({"index": index, "message": message, "finish_reason": "stop"})
        usage = {"prompt_tokens": 7, "completion_tokens": 5 * len(texts)}
        reply = {"status_code": 200, "body": {"choices": choices, "usage": usage}}
        if number == without:
            reply = {"status_code": 429, "body": {"error": {"message": "try later"}}}
        assert body["model"] == "m"
        rows.append({"id": f"b{number}", "custom_id": row["custom_id"], "response": reply})
    tiny_models.write(path, rows[::-1])  # in any order
    return len(rows)


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run stage 04 into a folder; without a base URL there is no server to ask."""
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    rows = []
    for number in range(3):
        row = {"id": f"i{number}", "instruction": f"Use case {number}", "split": "train"}
        rows.append({**row, "verifiers": [{"code": LOWER}]})
    tiny_models.write(tmp_path / "03.jsonl", rows)
    queries = [f"What should I know about the number {n} today?" for n in range(9)]
    (tmp_path / "queries.txt").write_text("\n".join(queries))

    def run(folder, *flags):
        command = ["--model", "m", "--in", tmp_path / "03.jsonl", "--k", 4]
        command += ["--queries", tmp_path / "queries.txt", "--queries-per-instruction", 2]
        command += ["--out", tmp_path / folder / "04_responses.jsonl", *flags]
        call(importlib.import_module("04_responses").main, list(map(str, command)))
        return (tmp_path / folder / "04_responses.jsonl").read_bytes()

    return run


def test_a_stage_writes_of_a_batch_what_it_writes_of_a_server(stage, tmp_path):
    with FakeServer(answer) as server:
        wanted = stage("live", "--base-url", server.url)
        asked = server.answered
    requests, done = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    with pytest.raises(UserError, match="^6 requests are in .*requests.jsonl; send them, and run"):
        stage("batch", "--batch-out", requests)
    assert results(requests, done) == 6
    # the judge is asked about answers, so it is a second batch; it sees no constraint, so that two
    # of the twelve answers that are kept, alike and to the same query, are judged once
    with pytest.raises(UserError, match="^10 requests are in "):
        stage("batch", "--batch-in", done, "--batch-out", requests)
    assert results(requests, done) == 10
    assert not (tmp_path / "batch" / "04_responses.jsonl").exists()
    assert stage("batch", "--batch-in", done) == wanted and asked.total() == 6 * 4 + 10
    stored = list(files.read(tmp_path / "batch" / "completions" / "04_responses.jsonl"))
    assert len(stored) == asked.total()
    stage("batch", "--batch-in", done)  # once more, and nothing comes twice
    assert stored == list(files.read(tmp_path / "batch" / "completions" / "04_responses.jsonl"))
    assert sum(row["completion_tokens"] for row in stored) == 5 * asked.total()


def test_a_prompt_that_is_tried_first_is_written_once(stage, tmp_path):
    requests, done = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    many = ["--queries-per-instruction", 8]  # 24 prompts: the judge is tried on 20 of them
    with pytest.raises(UserError, match="^24 requests are in "):
        stage("batch", "--batch-out", requests, *many)
    names = [row["custom_id"].split(".") for row in files.read(requests)]
    samples = set()
    for key, first, count in names:
        samples |= {(key, int(first) + number) for number in range(int(count))}
    assert len(samples) == sum(int(count) for _, _, count in names) == 24 * 4
    assert max(len(row["custom_id"]) for row in files.read(requests)) <= 64
    results(requests, done)
    with pytest.raises(UserError, match="requests are in "):
        stage("batch", "--batch-in", done, "--batch-out", requests, *many)
    assert all("Score:" in row["body"]["messages"][0]["content"] for row in files.read(requests))


def test_what_failed_in_a_batch_is_asked_again(stage, tmp_path, capsys):
    requests, done = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    for _ in range(2):  # a second call before any result writes the same
        with pytest.raises(UserError, match="^6 requests are in "):
            stage("batch", "--batch-out", requests, "--no-score")
    results(requests, done, without=2)
    with pytest.raises(UserError, match="^1 requests are in "):
        stage("batch", "--batch-in", done, "--batch-out", requests, "--no-score")
    said = capsys.readouterr().err
    assert "results.jsonl: 1 requests failed in the batch; the first with: " in said
    assert results(requests, done) == 1
    rows = stage("batch", "--batch-in", done, "--no-score").splitlines()
    assert [len(json.loads(row)["responses"]) for row in rows] == [4] * 6


def test_results_of_another_batch_are_refused(stage, tmp_path):
    tiny_models.write(tmp_path / "results.jsonl", [{"custom_id": "request-1", "response": None}])
    with pytest.raises(
        UserError, match="results.jsonl:1: 'request-1' is no request of --batch-out"
    ):
        stage("batch", "--batch-in", tmp_path / "results.jsonl")


def test_what_a_reasoning_model_refuses_is_left_out_of_the_next_requests(stage, tmp_path, capsys):
    requests, done = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    words = {
        "max_tokens": "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
        "temperature": "Unsupported value: 'temperature' does not support 0.8 with this model.",
    }
    rows = []
    for name in (None, *words):
        given = ["--batch-in", done] if name else []
        with pytest.raises(UserError, match="^6 requests are in "):
            stage("batch", *given, "--batch-out", requests, "--no-score")
        bodies = [row["body"] for row in files.read(requests)]
        for row in files.read(requests):
            for refused in words:
                if refused in row["body"]:
                    break
            reply = {"status_code": 400, "body": {"error": {"message": words[refused]}}}
            rows.append({"custom_id": row["custom_id"], "response": reply})
        tiny_models.write(done, rows)  # of all rounds so far
    assert all(body["max_completion_tokens"] for body in bodies)
    assert not any({"max_tokens", "temperature"} & body.keys() for body in bodies)


def test_a_stored_sample_between_two_that_are_not_is_not_bought_again(stage, tmp_path):
    requests = tmp_path / "requests.jsonl"

    def without_two(messages, request):  # answers without text are not stored
        return ["" if n in (0, 2) else text for n, text in enumerate(answer(messages, request))]

    with FakeServer(without_two) as server:
        stage("batch", "--base-url", server.url, "--no-score")
    with pytest.raises(UserError, match="^12 requests are in "):
        stage("batch", "--batch-out", requests, "--no-score")
    asked = [row["custom_id"].split(".")[1:] for row in files.read(requests)]
    assert asked == [["0", "1"], ["2", "1"]] * 6
