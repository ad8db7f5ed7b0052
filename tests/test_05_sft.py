"""05_sft.py: the loss against TRL's, and whole runs of a tiny model, alone, in two, killed."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import tiny_models
import torch
from killed import killed

from autoif.files import UserError
from autoif.flags import call, parse
from autoif.training import __main__ as launcher
from autoif.training import packed, rows

sft = tiny_models.stage("05_sft")
FLAGS = [
    "--batch",
    "4",
    "--micro-tokens",
    "120",
    "--epochs",
    "3",
    "--lr",
    "1e-2",
    "--warmup-steps",
    "2",
    "--precision",
    "fp32",
    "--save-every",
    "2",
]


def messages(number):
    return [
        {"role": "user", "content": f"Count to {number}."},
        {"role": "assistant", "content": " ".join(map(str, range(number + 1)))},
    ]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sft")
    tiny_models.checkpoint(folder / "base", "qwen2")
    settings = {"do_sample": False, "repetition_penalty": 1.1, "top_k": 20, "max_length": 64}
    settings["eos_token_id"] = 0
    (folder / "base" / "generation_config.json").write_text(json.dumps(settings))
    tiny_models.write(
        folder / "rows.jsonl", [{"id": f"row-{n}", "messages": messages(n)} for n in range(12)]
    )
    return folder


def command(folder, out):
    return [
        "05_sft.py",
        "--in",
        str(folder / "rows.jsonl"),
        "--model",
        str(folder / "base"),
        "--out",
        str(folder / out),
        *FLAGS,
    ]


@pytest.fixture(scope="module")
def undisturbed(folder):
    tiny_models.finish(tiny_models.start(*command(folder, "alone")))
    return folder / "alone"


def test_loss_and_gradients_equal_trl(tmp_path):
    trl = pytest.importorskip("trl", reason="TRL is the reference; pip install trl==1.16.0")
    from datasets import Dataset

    made = tiny_models.random_rows(1, 4)
    tokens = sum(len(row["responses"][0]) for row in made)
    ours = tiny_models.model(attention="packed")
    loss = sft.sft_loss(packed.ResponseLogprobs(ours)(**packed.pack(made)), tokens)
    loss.backward()

    data = [
        {
            "input_ids": row["prompt"] + row["responses"][0],
            "labels": [-100] * len(row["prompt"]) + row["responses"][0],
        }
        for row in made
    ]
    config = trl.SFTConfig(
        str(tmp_path), bf16=False, gradient_checkpointing=False, report_to="none", use_cpu=True
    )
    theirs = tiny_models.model()
    trainer = trl.SFTTrainer(
        theirs,
        config,
        train_dataset=Dataset.from_list(data),
        processing_class=tiny_models.tokenizer("smollm2"),
    )
    expected = trainer.compute_loss(trainer.model, trainer.data_collator(data))
    expected.backward()
    assert abs((loss - expected).item()) < 1e-5
    for (name, parameter), other in zip(ours.named_parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(parameter.grad, other.grad, rtol=0, atol=1e-5, msg=name)


def test_micro_batches_add_up_to_the_mean_over_the_tokens_of_the_global_batch():
    parts = [torch.tensor([-2.0, -4.0]), torch.tensor([-6.0])]
    assert sum(sft.sft_loss(part, 24) for part in parts) == 0.5


def test_output_loads_like_any_checkpoint_and_stops_at_the_trained_end_token(undisturbed):
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(undisturbed)
    tokenizer = transformers.AutoTokenizer.from_pretrained(undisturbed)
    assert tokenizer.chat_template == tiny_models.CHATML
    # Qwen2's base model ends with <|endoftext|>; it has now learned to end with <|im_end|>
    assert model.generation_config.eos_token_id == [
        0,
        tokenizer.convert_tokens_to_ids("<|im_end|>"),
    ]
    base = transformers.AutoModelForCausalLM.from_pretrained(undisturbed.parent / "base")
    assert any(not torch.equal(a, b) for a, b in zip(model.parameters(), base.parameters()))
    # nothing else of the base's settings is left that would change how an answer is sampled
    written = json.loads((undisturbed / "generation_config.json").read_text())
    del written["transformers_version"], written["eos_token_id"]
    assert {name: written[name] for name in ("do_sample", "temperature", "top_p", "top_k")} == {
        "do_sample": True,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 0,
    }
    assert not {"repetition_penalty", "max_length", "max_new_tokens", "min_p"} & set(written)
    assert {"metrics.jsonl", "curves.png"} <= {file.name for file in undisturbed.iterdir()}
    assert not (undisturbed.parent / "alone.state").exists()


def test_learning_rates_equal_transformers_at_every_step(undisturbed):
    from transformers import get_scheduler

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-2)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=2, num_training_steps=9)
    for row in tiny_models.metrics(undisturbed):
        assert row["lr"] == optimizer.param_groups[0]["lr"]
        optimizer.step()
        schedule.step()


def test_two_nodes_have_the_losses_of_one(folder, undisturbed):
    port = tiny_models.free_port()
    nodes = [
        tiny_models.start(*command(folder, "nodes"), node=node, nodes=2, port=port)
        for node in (0, 1)
    ]
    for node in nodes:
        tiny_models.finish(node)
    for one, two in zip(
        tiny_models.metrics(undisturbed), tiny_models.metrics(folder / "nodes"), strict=True
    ):
        assert one["loss"] == pytest.approx(two["loss"], abs=1e-5) and one["norm"] == pytest.approx(
            two["norm"], abs=1e-4
        )


def test_a_killed_run_ends_with_the_same_losses_and_weights(folder, undisturbed):
    def five_steps(_):
        log = folder / "killed.state" / "metrics.jsonl"
        return log.exists() and log.read_text().count("\n") >= 5

    stage = [sys.executable, *command(folder, "killed")]
    assert killed(stage, five_steps, env=tiny_models.environment())
    assert "resumed after step" in tiny_models.finish(tiny_models.start(*command(folder, "killed")))
    assert (folder / "killed/model.safetensors").read_bytes() == (
        undisturbed / "model.safetensors"
    ).read_bytes()
    assert [row["loss"] for row in tiny_models.metrics(folder / "killed")] == [
        row["loss"] for row in tiny_models.metrics(undisturbed)
    ]


def usable(path, skip_bad=False):
    """The rows of `path` that stage 05 would train on."""
    tokenizer, out = tiny_models.tokenizer("smollm2"), Path(path).parent / "model"
    encoded = rows.read_sft(path, tokenizer)
    return tiny_models.usable("05_sft", encoded, tokenizer, out, skip_bad=skip_bad)


@pytest.mark.parametrize(
    "row, message",
    [
        ({"id": "a"}, "rows.jsonl:1 has no 'messages' .*; a row needs messages"),
        ({"id": "a", "messages": "Say hi."}, "rows.jsonl:1: messages must be a list"),
        ({"id": "a", "messages": ["Say hi."]}, "rows.jsonl:1: messages has a message without"),
        ({"id": "a", "messages": []}, "rows.jsonl:1: the prompt must end with the user"),
        (
            {"id": "a", "messages": messages(1)[:1]},
            "rows.jsonl:1: the prompt must end with the user",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path, row, message):
    path = tiny_models.write(tmp_path / "rows.jsonl", [row])
    with pytest.raises(UserError, match=message):
        usable(path)


def bad_rows(tmp_path, good, bad):
    """Good rows, a blank line, bad ones of two kinds, a line that is no JSON, in one file."""
    path = tmp_path / "own.jsonl"
    made = [{"id": f"good-{n}", "messages": messages(n)} for n in range(good)]
    made += [{"id": f"bad-{n}", "messages": messages(n)[: n % 2]} for n in range(bad)]
    lines = [json.dumps(row) for row in made]
    path.write_text("\n".join([*lines[:good], "", *lines[good:], '{"id": '] + [""]))
    return str(path)


def test_all_bad_rows_are_named_at_once(tmp_path):
    with pytest.raises(UserError) as error:
        usable(bad_rows(tmp_path, 2, 3))
    text = str(error.value)
    assert "4 of 6 rows of " in text and "--skip-bad" in text
    for line in (4, 5, 6, 7):
        assert f"own.jsonl:{line}" in text
    assert "own.jsonl:7 is no JSON" in text and "and " not in text.splitlines()[-1]
    with pytest.raises(UserError) as error:
        usable(bad_rows(tmp_path, 2, 13))
    text = str(error.value)
    assert "14 of 16 rows of " in text and text.endswith("\n  and 4 more")
    assert text.count("own.jsonl:") == 10
    assert not list(tmp_path.glob("*.dropped.jsonl"))


def test_bad_rows_are_left_out_and_counted_where_that_is_wanted(tmp_path, capsys):
    kept = usable(bad_rows(tmp_path, 2, 3), skip_bad=True)
    assert [row["id"] for row in kept] == ["good-0", "good-1"]
    assert "6 in -> 2 kept (bad row 4)" in capsys.readouterr().out
    dropped = [json.loads(line) for line in (tmp_path / "model.dropped.jsonl").open()]
    assert [row["id"] for row in dropped] == ["bad-0", "bad-1", "bad-2", "7"]
    assert "own.jsonl:4: the prompt must end" in dropped[0]["error"]
    with pytest.raises(UserError, match="no row of .* is left"):
        usable(bad_rows(tmp_path, 0, 3), skip_bad=True)


def test_only_files_of_the_stages_are_told_which_stage_makes_them(tmp_path):
    with pytest.raises(UserError, match="04_sft.jsonl does not exist; run 04_responses.py first"):
        usable(str(tmp_path / "04_sft.jsonl"))
    with pytest.raises(UserError, match="own.jsonl does not exist$"):
        usable(str(tmp_path / "own.jsonl"))
    (tmp_path / "own.jsonl").write_text('{"text": "Hi"}\n')
    with pytest.raises(UserError) as error:
        usable(str(tmp_path / "own.jsonl"))
    assert "own.jsonl:1 has no 'messages'" in str(error.value)
    assert "04_responses" not in str(error.value)


def test_of_several_turns_the_last_answer_is_trained_on(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, *messages(1), *messages(2)]
    path = tiny_models.write(tmp_path / "own.jsonl", [{"id": "a", "messages": turns}])
    tokenizer, [row] = tiny_models.tokenizer("smollm2"), usable(path)
    assert tokenizer.decode(row["responses"][0]) == "0 1 2<|im_end|>"
    assert "Be brief." in tokenizer.decode(row["prompt"]) and "0 1<|im" in tokenizer.decode(
        row["prompt"]
    )
    assert "the loss is on that last answer alone" in " ".join(sft.__doc__.split())


@pytest.mark.parametrize(
    "flag, value",
    [
        ("--lr", "nan"),
        ("--lr", "-1"),
        ("--lr", "0"),
        ("--epochs", "0"),
        ("--epochs", "inf"),
        ("--batch", "0"),
        ("--batch", "1.5"),
        ("--micro-tokens", "0"),
        ("--max-length", "-1"),
        ("--schedule", "foo"),
        ("--warmup-steps", "-2"),
        ("--weight-decay", "-0.1"),
        ("--save-every", "0"),
        ("--divergence", "nan"),
        ("--zero", "4"),
    ],
)
def test_a_setting_out_of_range_is_refused_by_the_parser(flag, value, tmp_path):
    required = ["--in", "x", "--model", "m", "--out", str(tmp_path / "out")]
    with pytest.raises(UserError, match=f"^argument {flag}: .*{value}"):
        call(sft.main, [*required, flag, value])
    assert not list(tmp_path.iterdir())


def test_a_beta_of_one_is_refused_by_the_parser():
    """Adam's averages would never move; PyTorch refuses it only when the model is in memory."""
    required = ["--in", "x", "--model", "m", "--out", "o"]
    with pytest.raises(UserError, match="^argument --betas: must be at least 0"):
        parse(sft.main, [*required, "--betas", "0.9", "1"])


def test_bad_input_ends_with_exit_code_2_and_the_corrected_command_runs(folder):
    """Neither a refused flag nor a run that diverged before a resume point binds the next one."""
    bad = command(folder, "bad")
    bad[bad.index("--lr") + 1] = "nan"
    output = tiny_models.finish(tiny_models.start(*bad), code=2)
    assert "argument --lr: must be above 0" in output
    assert not (folder / "bad.state").exists()
    bad[bad.index("--lr") + 1] = "1e30"
    bad[bad.index("--warmup-steps") + 1] = "0"
    assert "stopped at step" in tiny_models.finish(tiny_models.start(*bad), code=2)
    assert (folder / "bad.state" / "settings.json").exists()
    bad[bad.index("--lr") + 1] = "1e-2"
    tiny_models.finish(tiny_models.start(*bad[: bad.index("--epochs")], "--epochs", "0.3"))
    assert (folder / "bad" / "config.json").exists()


def test_rows_without_an_id_are_numbered(tmp_path):
    own = [{"messages": messages(number)} for number in range(3)]
    path = tiny_models.write(tmp_path / "own.jsonl", own)
    assert [row["id"] for row in usable(path)] == ["1", "2", "3"]


def launched(tmp_path, end):
    """A stage that gets ready and then does `end`, in its own process group as in a terminal."""
    lines = [
        "import dataclasses, time",
        "from autoif.files import UserError",
        "from autoif.flags import cli",
        "@dataclasses.dataclass",
        "class Flags: pass",
        "def main(args: Flags):",
        "    print('ready', flush=True)",
        f"    {end}",
        "cli(main, '')",
    ]
    (tmp_path / "stage.py").write_text("\n".join(lines))
    command = [sys.executable, "-m", "autoif.training", "--standalone", "--nproc_per_node", "2"]
    return subprocess.Popen(
        [*command, str(tmp_path / "stage.py")],
        cwd=tiny_models.ROOT,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tiny_models.ROOT)},
        start_new_session=True,
    )


def test_ctrl_c_under_our_torchrun_ends_with_the_stages_line_and_no_traceback(tmp_path):
    process = launched(tmp_path, "time.sleep(600)")
    for _ in range(2):  # both processes are in the stage, where Ctrl-C is met
        while "ready" not in process.stdout.readline():
            assert process.poll() is None
    os.killpg(process.pid, signal.SIGINT)
    output = tiny_models.finish(process, code=130)
    assert "Traceback" not in output
    assert "run the same command to go on" in output.splitlines()[-1]


def test_bad_input_under_our_torchrun_ends_with_exit_code_2_and_no_traceback(tmp_path):
    """Both processes meet it, and the first says it."""
    output = tiny_models.finish(launched(tmp_path, "raise UserError('no rows')"), code=2)
    assert output.count("stage.py: error: no rows") == 1 and "Traceback" not in output


def test_under_our_torchrun_the_processes_share_the_cores(monkeypatch):
    """For the optimizer of --offload: torchrun gives each process one thread."""
    monkeypatch.setattr(os, "environ", {})
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(16)))
    monkeypatch.setattr(sys, "argv", ["training", "--nproc_per_node", "2", "05_sft.py"])
    monkeypatch.setattr(launcher.run, "run", lambda args: None)
    launcher.main()
    assert os.environ["OMP_NUM_THREADS"] == "8"


def test_the_paper_settings_are_the_defaults():
    _, args = parse(sft.main, ["--in", "x", "--model", "m", "--out", "o"])
    assert (
        args.lr,
        args.schedule,
        args.warmup_steps,
        args.batch,
        args.epochs,
        args.max_length,
        args.weight_decay,
        args.betas,
    ) == (7e-6, "linear", 20, 128, 3, 8192, 0.1, (0.9, 0.95))


def test_the_slurm_example_is_a_valid_script_that_starts_one_torchrun_a_node():
    path = tiny_models.ROOT / "examples" / "train.sbatch"
    subprocess.run(["bash", "-n", str(path)], check=True)
    text = path.read_text()
    assert (
        text.startswith("#!/bin/bash\n#SBATCH")
        and "--ntasks-per-node=1" in text
        and "--rdzv-endpoint" in text
        and "export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK" in text
    )


def training(tmp_path, **environment):
    """The lines of run_all.sh that say how a training is started, and what they start."""
    script = (tiny_models.ROOT / "run_all.sh").read_text()
    part = script[script.index("TRAINING=(python") : script.index("begin   #")]
    words = "source autoif/run.sh\nset -eu\nVENV=.venv\n"
    words += 'srun() { printf "%s " srun "$SRUN_CPUS_PER_TASK" "$@"; }\n'
    words += 'python() { printf "%s " python "$@"; }\n'
    done = subprocess.run(
        ["bash", "-c", words + part + '"${TRAINING[@]}" 05_sft.py --in "a b"'],
        cwd=tiny_models.ROOT,
        env={**os.environ, "PROCESSES": "8", "NNODES": "2", "MASTER_ADDR": "one", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_under_slurm_every_node_has_its_cores_and_all_end_with_the_first_that_fails(tmp_path):
    said = training(tmp_path, SLURM_JOB_ID="7", SLURM_CPUS_PER_TASK="96")
    assert said.startswith("srun 96 --kill-on-bad-exit=1 --ntasks-per-node=1 python -m autoif.")
    assert "--nnodes 2" in said and "05_sft.py" in said


def test_under_slurm_without_cores_a_task_srun_is_told_none(tmp_path):
    said = training(tmp_path, SLURM_JOB_ID="7", SRUN_CPUS_PER_TASK="none")
    assert said.startswith("srun none --kill-on-bad-exit=1")


@pytest.mark.parametrize("ignored", [True, False])
def test_a_training_under_nohup_outlives_the_logout_and_asks_for_no_host_name(monkeypatch, ignored):
    given = []
    monkeypatch.setattr(launcher.run, "run", given.append)
    monkeypatch.setattr(sys, "argv", ["training", "--standalone", "05_sft.py"])
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN if ignored else signal.SIG_DFL)
    try:
        launcher.main()
    finally:
        signal.signal(signal.SIGHUP, before)
    [args] = given
    assert ("SIGHUP" in args.signals_to_handle) != ignored
    assert args.local_addr == "127.0.0.1"


def test_several_nodes_without_slurm_are_told_the_line_that_each_runs(tmp_path):
    """It waits a day for the others, who would else end at the lock of the first."""
    said = training(tmp_path)
    told, line, run = said.splitlines()
    assert "on each of the 1 other nodes" in told
    folder, _, command = line.partition(" && source '.venv'/bin/activate && ")
    assert folder == f"cd '{tiny_models.ROOT}'"
    assert command.startswith("'python' '-m' 'autoif.training' '--nnodes' '2'")
    assert command.endswith("'join_timeout=86400' '05_sft.py' '--in' 'a b'")
    assert run.split() == [word.strip("'") for word in command.split()]
