import json
import os
import shutil
from types import SimpleNamespace

import pytest
import transformers
from fake_server import FakeServer, always, without
from tiny_models import checkpoint, qwen2

from autoif import gpu
from autoif.files import UserError
from autoif.flags import call
from autoif.serving import engines, preflight


def check(monkeypatch, tmp_path, url="", gpus=8, gigabytes=80, **settings):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(gpu, "memory", lambda: [1e9 * gigabytes] * gpus)
    monkeypatch.setattr(engines, "vllm", lambda: "vllm")
    flags = {"supervisor": "big", "out": str(tmp_path), "processes": "8", **settings}
    call(preflight.main, [word for name, value in flags.items() for word in (f"--{name}", value)])


def test_everything_that_is_missing_is_listed_at_once_each_with_its_fix(
    monkeypatch, tmp_path, capsys
):
    with pytest.raises(UserError) as error:
        check(monkeypatch, tmp_path, nli="no/model", **{"data-dir": "/no/such"})
    text = str(error.value)
    for fix in (
        "set OPENAI_BASE_URL",
        "no BASE",
        "NLI no/model",
        "set QUERIES",
        "DATA_DIR /no/such",
    ):
        assert fix in text
    assert "plan:" in capsys.readouterr().out


def test_a_model_that_cannot_be_served_is_told_before_anything_is_spent(monkeypatch, tmp_path):
    base = qwen2(tmp_path / "Qwen2-72B", "72B")
    with pytest.raises(UserError, match=r"72.7 B parameters x 2 bytes / 1 .* = 154 GB each"):
        check(monkeypatch, tmp_path, base=base, gpus=1)


def test_weights_that_are_not_whole_are_told_before_anything_is_spent(monkeypatch, tmp_path):
    base = checkpoint(tmp_path / "base")
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"base/model.safetensors is cut off or damaged"):
        check(monkeypatch, tmp_path, base=base)
    with pytest.raises(UserError) as error:
        check(monkeypatch, tmp_path, base=base, until="04")
    assert "cut off" not in str(error.value)


def test_vllm_that_is_missing_is_told_before_anything_is_spent(monkeypatch, tmp_path):
    base = qwen2(tmp_path / "Qwen2-7B", "7B")
    monkeypatch.setenv("VLLM", "no-such-program")
    monkeypatch.setattr(gpu, "memory", lambda: [80e9])
    with pytest.raises(UserError, match="set VLLM="):
        call(preflight.main, ["--supervisor", "big", "--out", str(tmp_path), "--base", base])


def test_a_large_model_wants_a_gpu_and_data_alone_does_not(monkeypatch, tmp_path):
    base = qwen2(tmp_path / "Qwen2-7B", "7B")
    with pytest.raises(UserError, match="no GPU, and .* has 7.6 B parameters to train"):
        check(monkeypatch, tmp_path, base=base, gpus=0)
    with pytest.raises(UserError) as error:
        check(monkeypatch, tmp_path, base=base, gpus=0, until="04")
    assert "GPU" not in str(error.value) and "benchmark data" not in str(error.value)


def plan(tmp_path, *lines):
    (tmp_path / "plan").write_text("\n".join(lines) + "\n")
    return str(tmp_path / "plan")


@pytest.mark.parametrize("kind", ["gpt2", "gemma2", "mamba"])
def test_a_base_that_stage_05_does_not_train_is_told_before_anything_is_spent(
    monkeypatch, tmp_path, kind
):
    transformers.AutoConfig.for_model(kind).save_pretrained(tmp_path / "base")
    with pytest.raises(UserError, match=f"BASE .* is a '{kind}' model.*llama, mistral, qwen2"):
        check(monkeypatch, tmp_path, base=str(tmp_path / "base"))


# ---- one card: whoever is not needed any more need not stand there ----


DATA = [
    ("01", "01_instructions.jsonl", "01_seed_augment.py --model big"),
    ("02", "02_verifiers.jsonl", "02_verifiers.py --model big"),
    ("03", "03_instructions.jsonl", "03_backtranslate.py --model big"),
    ("04", "04_sft.jsonl", "04_responses.py --model big --queries gone.txt"),
]


def in_turns(tmp_path, *more, done=4):
    """A plan of the data, of which the first files are there, and of what comes `more`."""
    lines = []
    for number, (stage, name, command) in enumerate(DATA):
        lines.append(f"{stage} {tmp_path}/{name} python {command}")
        if number < done:
            (tmp_path / name).touch()
    return plan(tmp_path, *lines, *more)


@pytest.mark.parametrize(
    "done, told",
    [
        (4, []),
        (3, ["set OPENAI_BASE_URL", "queries"]),
        (2, ["set OPENAI_BASE_URL", "NLI", "queries"]),
    ],
)
def test_only_what_is_still_to_be_made_is_asked_for(monkeypatch, tmp_path, done, told):
    """The supervisor has left the card when its data are there."""
    flags = {"plan": in_turns(tmp_path, done=done), "nli": "no/model", "until": "04"}
    if not told:
        return check(monkeypatch, tmp_path, **flags)
    with pytest.raises(UserError) as error:
        check(monkeypatch, tmp_path, **flags)
    words = ["set OPENAI_BASE_URL", "NLI", "queries"]
    assert [word for word in words if word in str(error.value)] == told


def test_a_judge_is_asked_for_where_verdicts_are_to_be_made_and_not_for_answers(
    monkeypatch, tmp_path
):
    answers = f"07 {tmp_path}/a python 07_eval.py --model m --benchmarks heldout --only answers"
    verdicts = f"07 {tmp_path}/b python 07_eval.py --model m --benchmarks heldout --judge-model j"
    base = checkpoint(tmp_path / "base")
    settings = {"base": base, "judge": "j", "gpus": 0}
    check(monkeypatch, tmp_path, plan=in_turns(tmp_path, answers), **settings)
    with pytest.raises(UserError, match="1 things are missing:\n  1. no endpoint: set OPENAI"):
        check(monkeypatch, tmp_path, plan=in_turns(tmp_path, answers, verdicts), **settings)


def test_a_model_too_large_for_the_card_is_told_before_anything_is_spent(
    monkeypatch, tmp_path, capsys
):
    base = qwen2(tmp_path / "Qwen2-1.5B", "1.5B")
    train = f"05 {tmp_path}/05_sft python 05_sft.py --in x --model {base} --out {tmp_path}/05_sft"
    monkeypatch.setattr(preflight, "check_shape", lambda *_: None)  # its weights are not here
    sizes, sysconf = {"SC_PHYS_PAGES": 64 * 10**9, "SC_PAGE_SIZE": 1}, os.sysconf
    monkeypatch.setattr(os, "sysconf", lambda name: sizes.get(name) or sysconf(name))
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1e15))
    settings = {"base": base, "gpus": 1, "gigabytes": 24, "processes": "1", "until": "06"}
    with pytest.raises(UserError, match=r"05_sft: .* does not fit its GPU: .* 24 GB; .*--offload"):
        check(monkeypatch, tmp_path, plan=in_turns(tmp_path, train), **settings)
    capsys.readouterr()
    check(monkeypatch, tmp_path, plan=in_turns(tmp_path, train + " --offload"), **settings)
    printed = capsys.readouterr().out
    assert "plan: 05_sft: ZeRO-3, packs of 4,096 tokens, 0 of 28 layers recomputed" in printed
    assert "31 GB of CPU memory" in printed
    assert "plan: serving: 1.5 B parameters x 2 bytes / 1 + 0.5 GB of cache" in printed


def test_a_driver_that_is_too_old_is_told_before_anything_is_spent(monkeypatch, tmp_path):
    def memory():
        raise UserError("the driver is too old")

    monkeypatch.setattr(gpu, "memory", memory)
    with pytest.raises(UserError, match="the driver is too old"):
        call(preflight.main, ["--supervisor", "big", "--out", str(tmp_path)])


def test_benchmarks_without_data_are_named_one_by_one(monkeypatch, tmp_path):
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    (folder / "test.jsonl").write_text(json.dumps({"question": "1 + 1?", "answer": "#### 2"}))
    asked = "python 07_eval.py --model m --data-dir {} --benchmarks heldout,ifeval,gsm8k,mmlu"
    line = f"07 {tmp_path}/none " + asked.format(folder.parent)
    settings = {"data-dir": str(folder.parent), "plan": plan(tmp_path, line)}
    with pytest.raises(UserError) as error:
        check(monkeypatch, tmp_path, **settings)
    told = [
        name for name in ("heldout", "ifeval", "gsm8k", "mmlu") if f"k {name}:" in str(error.value)
    ]
    assert told == ["ifeval", "mmlu"] and 'FLAGS_07="--benchmarks' in str(error.value)


def test_flags_that_hold_nothing_out_are_warned_about(monkeypatch, tmp_path, capsys):
    line = f"03 {tmp_path}/none python 03_backtranslate.py --model m --heldout 0"
    with pytest.raises(UserError):
        check(monkeypatch, tmp_path, plan=plan(tmp_path, line))
    assert "--heldout 0: stage 07 measures benchmarks only" in capsys.readouterr().out


def test_a_judge_that_wrote_the_data_is_warned_about(monkeypatch, tmp_path, capsys):
    with pytest.raises(UserError):
        check(monkeypatch, tmp_path, judge="big")
    assert "the judge is the supervisor" in capsys.readouterr().out
    with pytest.raises(UserError):
        check(monkeypatch, tmp_path, judge="other")
    assert "warning" not in capsys.readouterr().out


def test_a_refused_key_and_an_unknown_model_are_told_apart():
    with FakeServer(refuse=(401, "bad key")) as server:
        assert "bad key" in preflight.endpoint(
            server.url, "big"
        ) or "does not accept the key" in preflight.endpoint(server.url, "big")
    with FakeServer() as server:
        assert preflight.endpoint(server.url, "big") is None
    assert "does not answer" in preflight.endpoint("http://127.0.0.1:9/v1", "big")


def test_a_model_that_the_server_answers_as_need_not_be_in_its_list():
    """Azure lists what its deployments are of, Ollama a tag, Gemini a folder."""
    with FakeServer() as server:
        assert preflight.endpoint(server.url, "my-deployment") is None
    with FakeServer(refuse=(404, "no such model")) as server:
        problem = preflight.endpoint(server.url, "other", "JUDGE")
    assert "no such model" in problem and "it lists big" in problem and "set JUDGE to" in problem


def test_reasoning_models_pass_and_a_page_that_is_no_api_does_not():
    with FakeServer(refuse=without("max_tokens", "use max_completion_tokens")) as server:
        assert preflight.endpoint(server.url, "big") is None
    with FakeServer(faults=always("html")) as server:
        assert "usually ends in /v1" in preflight.endpoint(server.url, "big")
    with FakeServer(refuse=(404, "no such model")) as server:
        assert "no such model" in preflight.endpoint(server.url, "other", "JUDGE")


def test_a_complete_setting_passes_and_finished_work_is_named(monkeypatch, tmp_path, capsys):
    (tmp_path / "queries.txt").write_text("What is the tallest mountain on earth?\n")
    (tmp_path / "01_instructions.jsonl").write_text("")
    with FakeServer() as server:
        check(
            monkeypatch,
            tmp_path,
            server.url,
            base=checkpoint(tmp_path / "base"),
            queries=str(tmp_path / "queries.txt"),
            **{"data-dir": str(tmp_path)},
        )
    assert "finished and kept: 01_instructions.jsonl" in capsys.readouterr().out


@pytest.mark.parametrize("around", ["{}\n", "{}\r", " {} "])
def test_white_space_around_the_address_and_the_key_is_nothing(monkeypatch, around):
    monkeypatch.setenv("OPENAI_API_KEY", around.format("sk-1"))
    with FakeServer() as server:
        assert preflight.endpoint(around.format(server.url), "big") is None
        assert server.keys == {"sk-1"}


@pytest.mark.parametrize("key", ["sk-se\ncret", "sk-se\rcret", "sk-s\u00e9cret"])
def test_a_key_that_no_header_takes_is_named_and_not_printed(monkeypatch, key):
    monkeypatch.setenv("OPENAI_API_KEY", key)
    with FakeServer() as server:
        problem = preflight.endpoint(server.url, "big")
    assert "$OPENAI_API_KEY has a character" in problem and key not in problem


@pytest.mark.parametrize("url", ["http://h:port/v1", "http://h:99999/v1", "h/v1"])
def test_an_address_that_is_none_names_its_variable(url):
    assert "OPENAI_BASE_URL" in preflight.endpoint(url, "big")


def test_a_server_that_repeats_the_key_does_not_make_it_printed(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeServer(refuse=(400, "nothing for sk-secret")) as server:
        assert "nothing for ***" in preflight.endpoint(server.url, "big")


def test_an_address_without_v1_is_hinted_at_as_in_the_stages():
    with FakeServer() as server:
        problem = preflight.endpoint(server.url.removesuffix("/v1"), "big")
    assert "404" in problem and "--base-url, which usually ends in /v1" in problem


def test_an_error_in_a_reply_with_200_is_shown():
    with FakeServer(refuse=(200, {"error": {"code": 402, "message": "no credit"}})) as server:
        assert "no credit" in preflight.endpoint(server.url, "big")


def test_a_reply_that_is_no_json_is_no_traceback():
    with FakeServer(faults=always("broken json")) as server:
        assert "usually ends in /v1" in preflight.endpoint(server.url, "big")
