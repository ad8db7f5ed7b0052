import pytest
from fake_server import FakeServer, always, without
from tiny_models import checkpoint

from autoif.files import UserError
from autoif.serving import preflight


def check(monkeypatch, tmp_path, url="", **settings):
    monkeypatch.setenv("OPENAI_BASE_URL", url)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(preflight, "gpus", lambda processes: ([80e9] * 8, None))
    flags = {
        "supervisor": "big",
        "base": "",
        "queries": "",
        "nli": "llm",
        "out": str(tmp_path),
        "processes": "8",
        **settings,
    }
    preflight.main([word for name, value in flags.items() for word in (f"--{name}", value)])


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


def test_a_batch_that_does_not_divide_is_shown_with_its_arithmetic():
    assert "128 is no multiple of 8 processes x micro-batch 3 = 24" in preflight.arithmetic(
        "SFT", "--micro-batch 3", 128, 8
    )
    assert preflight.arithmetic("SFT", "--batch 512", 128, 64) is None


def test_a_refused_key_and_an_unknown_model_are_told_apart():
    with FakeServer(refuse=(401, "bad key")) as server:
        assert "bad key" in preflight.endpoint(
            server.url, "big"
        ) or "does not accept the key" in preflight.endpoint(server.url, "big")
    with FakeServer() as server:
        assert preflight.endpoint(server.url, "big") is None
    assert "does not answer" in preflight.endpoint("http://127.0.0.1:9/v1", "big")


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
