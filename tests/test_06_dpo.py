"""06_dpo.py: which rows become pairs, the loss against TRL's, and a whole run on a tiny model."""

import difflib
import inspect
import json
import math
import random
from pathlib import Path

import pytest
import shared_data
import tiny_models
import torch
from sandbox_run import run
from shared_data import needs

from autoif.files import UserError
from autoif.flags import call, parse
from autoif.training import packed, reference
from autoif.training.rows import read_pairs

dpo = tiny_models.stage("06_dpo")


def candidate(text, *verdicts):
    return {
        "text": text,
        "verdicts": list(verdicts),
        "accuracy": verdicts.count("pass") / len(verdicts),
    }


def case(text, *verdicts):
    return {
        "input": text,
        "output": True,
        **{key: value for key, value in candidate(text, *verdicts).items() if key != "text"},
    }


def run_pairs(tmp_path, *files, flags=()):
    names = [
        tiny_models.write(tmp_path / f"in{number}.jsonl", rows) for number, rows in enumerate(files)
    ]
    out = str(tmp_path / "pairs.jsonl")
    call(dpo.COMMANDS, ["pairs", "--in", *names, "--out", out, *flags])
    return [json.loads(line) for line in open(tmp_path / "pairs.jsonl")]


def sides(candidates, **flags):
    args = dpo.Pairs(input=[], out="", **flags)
    chosen, rejected = dpo.sides(candidates, args, scored=False)
    return [each["text"] for each in chosen], [each["text"] for each in rejected]


def test_errors_make_no_pair_and_only_an_accuracy_above_half_is_chosen():
    assert sides(
        [
            candidate("best", "pass", "pass"),
            candidate("half", "pass", "fail"),
            candidate("bad", "fail", "fail"),
            candidate("crash", "error", "error"),
            candidate("unsure", "fail", "error"),
            candidate("most", "pass", "pass", "error"),
        ]
    ) == (["best"], ["bad"])


def test_a_text_is_never_on_both_sides():
    same = [candidate("same", "pass"), candidate("same", "fail"), candidate("no", "fail")]
    assert sides(same) == ([], ["no"])


def run_of(*scores, name="r"):
    """Rows of a 04_responses.jsonl: an accepted response with each of the scores, one refused."""
    rows = []
    for number, score in enumerate(scores):
        good = {**candidate(f"{name.upper()}{number}", "pass"), "score": score}
        bad = {**candidate(f"{name}{number}", "fail"), "score": None}
        rows.append(
            {"id": f"{name}{number}", "prompt": f"Greet {number}.", "responses": [good, bad]}
        )
    return rows


def chosen(pairs):
    return [pair["chosen"][0]["content"] for pair in pairs]


def test_a_chosen_answer_has_the_quality_score_where_the_run_gave_scores(tmp_path):
    rows = run_of(8.0, 0.0, 9.0)
    rows[2]["responses"].append({**candidate("LOST", "pass"), "score": None})
    assert chosen(run_pairs(tmp_path, rows)) == ["R0", "R2"]
    flags = ["--min-score", "0", "--pairs-per-prompt", "9"]
    assert set(chosen(run_pairs(tmp_path, rows, flags=flags))) == {"R0", "R1", "R2", "LOST"}


def test_a_row_that_the_judge_gave_no_number_at_all_is_not_chosen(tmp_path, capsys):
    assert chosen(run_pairs(tmp_path, run_of(None, 9.0, None))) == ["R1"]
    assert "query: nothing to choose 2" in capsys.readouterr().out


def test_a_run_without_scores_is_paired_by_its_verdicts_beside_one_that_has_them(tmp_path):
    """The online loop samples with --no-score; one's own rows may have no such field at all."""
    online, own = run_of(None, None, name="online"), run_of(None, name="own")
    for response in own[0]["responses"]:
        del response["score"]
    cases = {"id": "i1", "instruction": "A.", "split": "train"}
    cases["cases"] = [case("HI", "pass"), case("hi", "fail")]
    pairs = run_pairs(tmp_path, run_of(None, 9.0), online, own, [cases])
    assert chosen(pairs) == ["R1", "ONLINE0", "ONLINE1", "OWN0", "HI"]


def test_a_truncated_answer_is_neither_chosen_nor_rejected_unless_asked_for(tmp_path):
    good = {**candidate("good", "pass"), "finish_reason": "stop"}
    cut_good = {**candidate("cut good", "pass"), "finish_reason": "length"}
    cut_bad = {**candidate("cut bad", "fail"), "finish_reason": "length"}
    bad = {**candidate("bad", "fail"), "finish_reason": "stop"}
    assert sides([good, cut_good, cut_bad, bad]) == (["good"], ["bad"])
    assert sides([good, cut_good, cut_bad], reject_truncated=True) == (["good"], ["cut bad"])
    row = {"id": "r1", "prompt": "Go.", "responses": [good, cut_good, cut_bad]}
    [pair] = run_pairs(tmp_path, [row], flags=["--reject-truncated"])
    assert pair["truncated"] == ["rejected"]
    row["responses"] = [good, bad]
    [pair] = run_pairs(tmp_path, [row], flags=["--reject-truncated"])
    assert "truncated" not in pair


def test_pairs_are_made_for_the_training_samples_only(tmp_path):
    both = [candidate("HEY", "pass"), candidate("hey", "fail")]
    instructions = [
        {**row, "split": "train", "cases": [case("HI", "pass"), case("hi", "fail")]}
        for row in ({"id": "i1", "instruction": "A."}, {"id": "i2", "instruction": "B."})
    ]
    responses = [
        {"id": f"i1.{n}", "prompt": f"Greet {n}.\nA.", "responses": both} for n in range(3)
    ]
    message = {"role": "user", "content": "Greet 1.\nA."}
    samples = [{"id": "i1.1.0", "instruction_id": "i1", "messages": [message]}]
    sft = tiny_models.write(tmp_path / "04_sft.jsonl", samples)
    rows = run_pairs(tmp_path, instructions, responses, flags=["--sft", sft])
    assert [row["id"] for row in rows] == ["i1/instruction/1", "i1.1/query/1"]
    assert len(run_pairs(tmp_path, instructions, responses)) == 5


def test_pairs_of_several_constraints_are_of_prompts_that_name_them_all(tmp_path):
    """The accuracy that stage 04 gives is the lowest of the constraints'."""
    both = candidate("both", "pass", "pass")
    neither = {**candidate("neither", "pass", "fail"), "accuracy": 0.0}
    row = {"id": "i1.0", "prompt": "Greet.\nA.\nB."}
    instructions = [
        {"id": name, "instruction": name, "split": "train", "cases": [case("HI", "pass")]}
        for name in ("i1", "i2", "i3")
    ]
    for each in instructions:
        each["cases"].append(case("hi", "fail"))
    message = {"role": "user", "content": row["prompt"]}
    sample = {"id": "i1.0.0", "instruction_id": "i1+i2"}
    sft = tiny_models.write(tmp_path / "04_sft.jsonl", [{**sample, "messages": [message]}])
    pairs = run_pairs(
        tmp_path, instructions, [{**row, "responses": [both, neither]}], flags=["--sft", sft]
    )
    ids = [pair["id"] for pair in pairs]
    assert ids == ["i1/instruction/1", "i2/instruction/2", "i1.0/query/1"]
    assert pairs[-1]["chosen"][0]["content"] == "both"
    assert pairs[-1]["rejected"][0]["content"] == "neither"


@needs("autoif_sample/dpo_query_eval_score_results.jsonl")
def test_the_released_flags_make_the_pairs_of_the_released_script(tmp_path):
    """Their script makes 6 pairs of their sample (5 where it draws a repeated text twice).

    Their rows have no verdicts, only accuracies of 0 and 1.
    """
    rows, able = [], {}
    for number, row in enumerate(
        shared_data.rows("autoif_sample/dpo_query_eval_score_results.jsonl")
    ):
        responses = [
            {"text": text, "accuracy": share, "verdicts": ["pass" if share else "fail"]}
            for text, share in row["response"]
        ]
        rows.append({"id": f"a{number}", "prompt": row["query"], "responses": responses})
        good = {text for text, accuracy in row["response"] if accuracy >= 0.5}
        able[row["query"]] = good, {text for text, _ in row["response"]} - good
    flags = ["--pairs-per-prompt", "4", "--texts-per-side", "2", "--min-accuracy", "0.4999"]
    pairs = run_pairs(tmp_path, rows, flags=flags)
    assert len(pairs) == 6
    for pair in pairs:
        good, bad = able[pair["prompt"][0]["content"]]
        assert pair["chosen"][0]["content"] in good and pair["rejected"][0]["content"] in bad


@needs("autoif_sample/dpo_query_w_funcs.jsonl")
def test_a_response_that_crashes_its_function_is_rejected_by_the_released_script_alone():
    """Each of the 168 in their sample: a mean without errors is 0 there, which rejects."""
    responses = 0
    for row in shared_data.rows("autoif_sample/dpo_query_w_funcs.jsonl"):
        [(code, _)], texts = row["eval_func"], row["gpt-answer"]
        [result] = run([{"id": "f", "code": code, "inputs": texts}])
        judged = zip(texts, result["verdicts"], strict=True)
        assert sides([candidate(text, verdict) for text, verdict in judged]) == ([], [])
        assert set(result["verdicts"]) == {"error"}
        responses += len(texts)
    assert responses == 168


@pytest.mark.parametrize(
    "flag, value", [("--fraction", "2"), ("--min-accuracy", "-1"), ("--pairs-per-prompt", "0")]
)
def test_values_out_of_range_end_the_parser_of_pairs(flag, value):
    with pytest.raises(UserError, match=f"^argument {flag}: must be"):
        parse(dpo.COMMANDS, ["pairs", "--in", "x", "--out", "o", flag, value])


@pytest.mark.parametrize(
    "change, words",
    [
        ({"responses": [{"text": "a"}]}, "in0.jsonl:1 must have 'verdicts'"),
        ({"responses": "text"}, "in0.jsonl:1"),
        ({"prompt": ["x"]}, "in0.jsonl:1 has 'prompt', which must be a text"),
        ({"id": 7}, "in0.jsonl:1: 'id' must be a text, but is 7"),
        (
            {"responses": [{"text": "a", "verdicts": [], "accuracy": None}]},
            "in0.jsonl:1 has 'accuracy', which must be a number",
        ),
    ],
)
def test_a_row_of_the_wrong_form_is_named(tmp_path, change, words):
    row = {"id": "r1", "prompt": "Go.", "responses": [candidate("GO", "pass")]}
    with pytest.raises(UserError, match=words):
        run_pairs(tmp_path, [{**row, **change}])


def test_cases_without_a_split_are_refused_since_held_out_ones_may_be_among_them(tmp_path):
    rows = [{"id": "i1", "instruction": "A.", "cases": [case("HI", "pass"), case("hi", "fail")]}]
    with pytest.raises(UserError, match="in0.jsonl:1 has no 'split'.*03_instructions.jsonl"):
        run_pairs(tmp_path, rows)
    rows[0]["split"] = "Train"
    with pytest.raises(UserError, match="in0.jsonl:1 has 'split', which must be one of heldout"):
        run_pairs(tmp_path, rows)


def test_no_pairs_at_all_is_an_error_with_the_funnel_and_no_file(tmp_path):
    rows = [{"id": "r1", "prompt": "Go.", "responses": [candidate("GO", "pass")]}]
    with pytest.raises(UserError, match="1 in -> 0 kept .query: nothing to reject 1"):
        run_pairs(tmp_path, rows)
    assert not (tmp_path / "pairs.jsonl").exists() and not (tmp_path / "stats.json").exists()


def test_a_fraction_of_the_pairs_is_exact_and_part_of_a_larger_one(tmp_path):
    both = [candidate("HEY", "pass"), candidate("hey", "fail")]
    rows = [{"id": f"r{n}", "prompt": f"Greet {n}.", "responses": both} for n in range(64)]
    made = {
        share: [row["id"] for row in run_pairs(tmp_path, rows, flags=["--fraction", share])]
        for share in ("1/64", "1/8", "1")
    }
    assert [len(ids) for ids in made.values()] == [1, 8, 64]
    assert set(made["1/64"]) < set(made["1/8"]) and made["1"] == [
        f"r{n}/query/{n + 1}" for n in range(64)
    ]


def texts(*names):
    return [{"text": name} for name in names]


def matched(chosen, rejected, count, **flags):
    args = dpo.Pairs(input=[], out="", pairs_per_prompt=count, **flags)
    pairs = dpo.match(texts(*chosen), texts(*rejected), args, random.Random(0))
    return [(good["text"], bad["text"]) for good, bad in pairs]


def test_pairs_use_every_text_before_any_comes_again():
    for good, bad in ((2, 3), (2, 2), (1, 4), (2, 4)):
        made = matched([f"c{n}" for n in range(good)], [f"r{n}" for n in range(bad)], 100)
        assert len(set(made)) == len(made) == good * bad
        assert len({chosen for chosen, _ in made[:good]}) == good
        assert len({rejected for _, rejected in made[:bad]}) == bad
    assert len(matched(["a", "b"], ["x", "y"], 3)) == 3


def test_pairs_whose_lengths_are_apart_are_passed_over(tmp_path):
    assert matched(["ten signs."], ["seven s", "six si"], 9, max_length_gap=0.3) == [
        ("ten signs.", "seven s")
    ]
    assert len(matched(["c"], ["long enough", "x"], 1, max_length_gap=0.5)) == 1
    both = [candidate("HEY", "pass"), candidate("hey there, my friend", "fail")]
    rows = [{"id": "r1", "prompt": "Greet.", "responses": both}]
    with pytest.raises(UserError, match="query: lengths apart 1"):
        run_pairs(tmp_path, rows, flags=["--max-length-gap", "0.5"])
    assert len(run_pairs(tmp_path, rows)) == 1


def test_both_levels_merge_and_every_row_is_accounted_for(tmp_path, capsys):
    cases = [
        {
            "id": "i1",
            "instruction": "In capitals.",
            "cases": [case("HI", "pass"), case("hi", "fail")],
            "split": "train",
        },
        {
            "id": "i2",
            "instruction": "Held out.",
            "cases": [case("HI", "pass"), case("hi", "fail")],
            "split": "heldout",
        },
    ]
    responses = [
        {
            "id": "r1",
            "prompt": "Greet.\nIn capitals.",
            "responses": [candidate("HEY", "pass"), candidate("hey", "fail")],
        },
        {"id": "r2", "prompt": "Go.\nIn capitals.", "responses": [candidate("GO", "pass")]},
        {"id": "r3", "prompt": "Run.\nIn capitals.", "responses": [candidate("run", "fail")]},
    ]
    rows = run_pairs(tmp_path, cases, responses)
    assert rows == [
        {
            "id": "i1/instruction/1",
            "level": "instruction",
            "prompt": [{"role": "user", "content": "In capitals."}],
            "chosen": [{"role": "assistant", "content": "HI"}],
            "rejected": [{"role": "assistant", "content": "hi"}],
        },
        {
            "id": "r1/query/1",
            "level": "query",
            "prompt": [{"role": "user", "content": "Greet.\nIn capitals."}],
            "chosen": [{"role": "assistant", "content": "HEY"}],
            "rejected": [{"role": "assistant", "content": "hey"}],
        },
    ]
    printed = capsys.readouterr().out
    assert "5 in -> 2 kept" in printed and "instruction: held out 1" in printed
    assert "query: nothing to reject 1" in printed and "query: nothing to choose 1" in printed


def test_online_pairs_are_labelled_and_their_number_is_a_flag(tmp_path):
    responses = [
        {
            "id": "r1",
            "prompt": "Go.",
            "responses": [candidate(text, "pass") for text in "AB"]
            + [candidate(text, "fail") for text in "cd"],
        }
    ]
    rows = run_pairs(tmp_path, responses, flags=["--level", "online", "--pairs-per-prompt", "4"])
    assert [row["level"] for row in rows] == ["online"] * 4 and len(
        {row["id"] for row in rows}
    ) == 4


def test_rows_of_another_stage_are_an_error(tmp_path):
    with pytest.raises(UserError, match="in0.jsonl:1 has neither 'responses' nor 'cases'"):
        run_pairs(tmp_path, [{"id": "x", "messages": []}])


def test_equal_sides_are_an_error(tmp_path):
    side = [{"role": "assistant", "content": "Hi"}]
    path = tiny_models.write(
        tmp_path / "pairs.jsonl",
        [
            {
                "id": "a",
                "prompt": [{"role": "user", "content": "x"}],
                "chosen": side,
                "rejected": side,
            }
        ],
    )
    [row] = read_pairs(path, tiny_models.tokenizer("smollm2"))
    assert "pairs.jsonl:1: chosen and rejected are equal" in row["error"]


def pair(**changes):
    say = {role: [{"role": role, "content": role}] for role in ("user", "assistant")}
    rejected = [{"role": "assistant", "content": "No"}]
    return {"prompt": say["user"], "chosen": say["assistant"], "rejected": rejected, **changes}


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"prompt": "Say hi."}, "prompt must be a list of messages"),
        ({"chosen": "Hi"}, "chosen must be a list of messages"),
        ({"rejected": ["Hi"]}, "rejected has a message without role and text: 'Hi'"),
        ({"truncated": "rejected"}, "truncated must be a list of"),
        ({"truncated": ["both"]}, "truncated must be a list of"),
    ],
)
def test_pairs_of_strings_are_named_with_file_and_line(tmp_path, changes, message):
    path = tiny_models.write(tmp_path / "pairs.jsonl", [pair(), pair(**changes)])
    good, bad = read_pairs(path, tiny_models.tokenizer("smollm2"))
    assert "error" not in good and f"pairs.jsonl:2: {message}" in bad["error"]


def test_all_bad_pairs_are_named_at_once_or_left_out(tmp_path, capsys):
    side = [{"role": "assistant", "content": "Hi"}]
    made = [pair(), pair(chosen=side, rejected=side), {"prompt": "Say hi."}]
    path = tiny_models.write(tmp_path / "own.jsonl", made)
    tokenizer = tiny_models.tokenizer("smollm2")

    def usable(skip_bad):
        encoded, out = read_pairs(path, tokenizer), tmp_path / "model"
        return tiny_models.usable("06_dpo train", encoded, tokenizer, out, skip_bad=skip_bad)

    with pytest.raises(UserError, match="2 of 3 rows of") as error:
        usable(skip_bad=False)
    assert "own.jsonl:2: chosen and rejected are equal" in str(error.value)
    assert "own.jsonl:3 has no 'chosen'" in str(error.value) and "pairs first" not in str(
        error.value
    )
    assert [row["id"] for row in usable(skip_bad=True)] == ["1"]
    assert "3 in -> 1 kept (bad row 2)" in capsys.readouterr().out


def test_a_pair_may_follow_several_turns_and_text_parts(tmp_path):
    turns = [*pair()["prompt"], *pair()["chosen"], {"role": "user", "content": [{"text": "So?"}]}]
    path = tiny_models.write(tmp_path / "own.jsonl", [pair(prompt=turns)])
    tokenizer = tiny_models.tokenizer("smollm2")
    [row] = read_pairs(path, tokenizer)
    assert "So?<|im_end|>" in tokenizer.decode(row["prompt"])
    assert [tokenizer.decode(side) for side in row["responses"]] == [
        "assistant<|im_end|>",
        "No<|im_end|>",
    ]


def test_a_response_that_was_cut_off_has_no_end_token_and_rows_without_id_are_numbered(tmp_path):
    rows = [pair(), pair(truncated=["rejected"]), pair(truncated=["chosen", "rejected"])]
    path, tokenizer = tiny_models.write(tmp_path / "p", rows), tiny_models.tokenizer("smollm2")
    made = list(read_pairs(path, tokenizer))
    ended = [[side[-1] == tokenizer.eos_token_id for side in row["responses"]] for row in made]
    assert ended == [[True, True], [True, False], [False, False]]
    assert [row["id"] for row in made] == ["1", "2", "3"]


@pytest.mark.parametrize(
    "flag, value", [("--beta", "-1"), ("--beta", "nan"), ("--warmup-ratio", "1.5"), ("--lr", "inf")]
)
def test_a_setting_out_of_range_is_refused_by_the_parser(flag, value):
    with pytest.raises(UserError, match=f"^argument {flag}: "):
        parse(dpo.COMMANDS, ["train", "--in", "x", "--model", "m", "--out", "o", flag, value])


def test_loss_is_log_2_without_margin_when_policy_equals_reference():
    logprobs = torch.tensor([[-3.0, -9.0], [-40.0, -2.0]])
    losses, rewards = dpo.dpo_loss(logprobs, logprobs, beta=0.3)
    assert losses.tolist() == pytest.approx([math.log(2)] * 2) and rewards.tolist() == [
        [0, 0],
        [0, 0],
    ]


def test_loss_rewards_and_gradients_equal_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is the reference; pip install trl==1.16.0")
    from datasets import Dataset

    rows = tiny_models.random_rows(2, 4)
    ours = tiny_models.model(attention="packed")
    with torch.no_grad():
        reference = packed.ResponseLogprobs(tiny_models.model(attention="packed", seed=1))(
            **packed.pack(rows)
        ).view(-1, 2)
    losses, rewards = dpo.dpo_loss(
        packed.ResponseLogprobs(ours)(**packed.pack(rows)).view(-1, 2), reference, beta=0.3
    )
    losses.mean().backward()

    data = [
        {
            "prompt_ids": row["prompt"],
            "chosen_ids": row["responses"][0],
            "rejected_ids": row["responses"][1],
        }
        for row in rows
    ]
    text = {
        key: [{"role": role, "content": key}]
        for key, role in (("prompt", "user"), ("chosen", "assistant"), ("rejected", "assistant"))
    }
    config = trl.DPOConfig(
        str(tmp_path),
        beta=0.3,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        use_cpu=True,
    )
    theirs = tiny_models.model()
    trainer = trl.DPOTrainer(
        theirs,
        tiny_models.model(seed=1),
        config,
        train_dataset=Dataset.from_list([text] * 2),
        processing_class=tiny_models.tokenizer("smollm2"),
    )
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(data))
    expected.backward()
    logged = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    assert float(losses.detach().mean()) == pytest.approx(float(expected.detach()), abs=1e-5)
    assert rewards.mean(0).tolist() == pytest.approx(
        [logged["rewards/chosen"], logged["rewards/rejected"]], abs=1e-5
    )
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-5, msg=name)


def test_a_run_learns_the_pairs_and_computes_the_reference_once(tmp_path):
    model = tiny_models.checkpoint(tmp_path / "sft")

    def say(role, text):
        return [{"role": role, "content": text}]

    path = tiny_models.write(
        tmp_path / "pairs.jsonl",
        [
            {
                "id": str(n),
                "level": "query",
                "prompt": say("user", f"Count to {n}."),
                "chosen": say("assistant", "ONE TWO"[: n + 2]),
                "rejected": say("assistant", "one two three"[: n + 2]),
            }
            for n in range(6)
        ],
    )
    flags = [
        "--in",
        path,
        "--model",
        model,
        "--precision",
        "fp32",
        "--batch",
        "4",
        "--micro-tokens",
        "120",
        "--lr",
        "1e-2",
    ]
    output = tiny_models.finish(
        tiny_models.start("06_dpo.py", "train", *flags, "--out", str(tmp_path / "first"))
    )
    assert "6/6 pairs" in output and "first loss 0.6931: ln 2" in output
    rows = tiny_models.metrics(tmp_path / "first")
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-6) and rows[0][
        "margin"
    ] == pytest.approx(0, abs=1e-5)
    assert (
        len(rows) == 3
        and rows[-1]["margin"] > 0.1
        and rows[-1]["chosen"] - rows[-1]["rejected"] == pytest.approx(rows[-1]["margin"], abs=1e-5)
    )
    # of one batch of all pairs, the reference being the policy: log 2, and the SFT loss added to it
    added = str(tmp_path / "added")
    more = ["--batch", "6", "--epochs", "1", "--sft-weight", "0.5", "--out", added]
    output = tiny_models.finish(tiny_models.start("06_dpo.py", "train", *flags, *more))
    # the only step has no warm-up, in which its rate would be 0
    assert "there is one step: it is taken at the full learning rate, 1.0e-02" in output
    assert tiny_models.metrics(added)[0]["lr"] == 1e-2
    weights = [Path(folder, "model.safetensors").read_bytes() for folder in (model, added)]
    assert weights[0] != weights[1]
    tokenizer = dpo.load_tokenizer(model, None, "2026-01-31")
    tokens = [row["responses"][0] for row in read_pairs(path, tokenizer)]
    [kept] = tmp_path.glob("pairs.jsonl.reference-*.jsonl")
    chosen = [json.loads(line)["logprobs"][0] for line in kept.open()]
    assert tiny_models.metrics(added)[0]["loss"] == pytest.approx(
        math.log(2) - 0.5 * sum(chosen) / sum(map(len, tokens)), abs=1e-5
    )
    # an online iteration: the policy goes on, the reference stays and is found on the disk
    output = tiny_models.finish(
        tiny_models.start(
            "06_dpo.py",
            "train",
            *flags[:2],
            "--model",
            str(tmp_path / "first"),
            *flags[4:],
            "--reference",
            model,
            "--out",
            str(tmp_path / "second"),
        )
    )
    assert "reference policy" not in output and "first loss" not in output
    assert tiny_models.metrics(tmp_path / "second")[0]["margin"] > 0.1
    # log-probabilities of another model than the reference: the first step shows it
    wrong = [{**json.loads(line), "logprobs": [-9.0, -5.0]} for line in kept.open()]
    tiny_models.write(kept, wrong)
    third = str(tmp_path / "third")
    output = tiny_models.finish(
        tiny_models.start("06_dpo.py", "train", *flags, "--out", third), code=2
    )
    said = f"and not ln 2 = 0.6931, though the policy {model} and the reference {model} are"
    assert said in output and f"{path}.reference-*.jsonl" in output
    assert "Traceback" not in output and not list(Path(f"{third}.state").glob("step-*"))


@pytest.mark.parametrize("precision, loss", [("fp32", 0.6970), ("bf16", 1.1)])
def test_a_first_loss_other_than_ln_2_is_an_error_that_names_both_models(
    precision, loss, tmp_path, capsys
):
    """Of one model at two places too; where the reference is another one nothing is known."""
    sft, copy, other = (str(tmp_path / name) for name in ("sft", "copy", "other"))
    for folder, seed in ((sft, 0), (copy, 0), (other, 1)):
        tiny_models.checkpoint(Path(folder), seed=seed)
    flags = {"input": "pairs.jsonl", "out": "", "precision": precision}
    args, batch = dpo.Train(**flags, model=sft, reference=copy), [{"responses": [[1] * 50] * 2}]
    with pytest.raises(UserError, match=f"not ln 2 .* policy {sft} and the reference {copy} are"):
        reference.check_first_loss(loss, batch, args, rank=0)
    reference.check_first_loss(0.6935, batch, args, rank=0)
    assert "first loss 0.6935: ln 2" in capsys.readouterr().out
    args = dpo.Train(**flags, model=sft, reference=other)
    reference.check_first_loss(loss, batch, args, rank=0)
    assert not capsys.readouterr().out


def test_where_reference_values_cannot_be_kept_is_said_before_they_are_computed():
    flags = {"input": "/proc/pairs.jsonl", "out": "", "model": "m", "precision": "fp32"}
    with pytest.raises(UserError, match="pairs.jsonl.reference-.* cannot be written"):
        reference.add_reference([], dpo.Train(**flags), 0, 1)


def test_the_reference_pass_gives_the_same_numbers_to_any_number_of_ranks(monkeypatch):
    model = packed.ResponseLogprobs(tiny_models.model(attention="packed"))
    model.device = "cpu"
    rows, total = tiny_models.random_rows(2, 5), torch.zeros(5, 2)
    monkeypatch.setattr(torch.distributed, "all_reduce", lambda tensor: None)
    alone = reference.compute(rows, model, 20, 0, 1)
    for rank in range(3):
        total += reference.compute(rows, model, 60, rank, 3)
    torch.testing.assert_close(total, alone, rtol=1e-5, atol=1e-5)


def test_the_paper_settings_are_the_defaults():
    _, args = parse(dpo.COMMANDS, ["train", "--in", "x", "--model", "m", "--out", "o"])
    assert (
        args.lr,
        args.schedule,
        args.warmup_ratio,
        args.batch,
        args.epochs,
        args.max_length,
        args.beta,
    ) == (5e-7, "cosine", 0.1, 64, 2, 4096, 0.3)
    _, args = parse(dpo.COMMANDS, ["pairs", "--in", "x", "--out", "o"])
    assert args.min_accuracy == 0.5


def test_a_case_without_its_verdicts_is_paired_by_its_accuracy():
    cases = [
        {"input": "good", "output": True, "accuracy": 1.0},
        {"input": "bad", "output": False, "accuracy": 0.0},
    ]
    assert sides(dpo.candidates({"cases": cases})) == (["good"], ["bad"])


def test_the_training_functions_of_05_and_06_differ_in_thirty_lines():
    """`diff` of the two is the documentation of what DPO adds."""
    sft = tiny_models.stage("05_sft")
    parts = [inspect.getsource(each).splitlines() for each in (sft.main, dpo.learn)]
    changed = [line for line in difflib.ndiff(*parts) if line[0] in "+-"]
    assert len(changed) <= 30, "\n".join(changed)
