"""What several test files share: one made run a session, and which tests are slow or need data."""

import pytest

# What `make test` leaves out: a file, a fixture or a test, and why it takes its time.
SLOW = {
    "test_bench.py": "each benchmark once, in small",
    "test_handover.py": "trainings in a row, in processes of their own",
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
    "test_kill_9_and_resume_asks_nothing_twice": "kills",
    "test_kill_9_at_any_moment_loses_nothing_stored_and_asks_for_nothing_twice": "kills",
    "test_ctrl_c_ends_with_130_at_once_and_loses_nothing": "kills",
    "test_a_tenth_of_a_million_completions_opens_in_a_second_without_holding_the_texts": "size",
    "test_a_full_disk_stops_the_run_and_keeps_the_store_whole": "size",
    "test_the_benchmark_runs_in_a_checkout_as_it_is": "a benchmark",
    "test_a_limit_longer_than_the_retries_is_waited_out_by_all_requests_together": "waits",
}
# What reads files that lie in the repository; tests of the benchmarks' own data name it (`needs`).
DATA = ("test_demo.py", "test_study.py", "test_study_results.py")


def pytest_collection_modifyitems(items):
    for item in items:
        file = item.path.name
        if SLOW.keys() & {file, item.originalname, *item.fixturenames}:
            item.add_marker(pytest.mark.slow)
        skips = " ".join(mark.kwargs.get("reason", "") for mark in item.iter_markers("skipif"))
        if file in DATA or "benchmark data" in skips:
            item.add_marker(pytest.mark.data)


@pytest.fixture(scope="session")
def whole_run(tmp_path_factory):
    """The folder of a whole run (example_run.py); to be read only."""
    import example_run

    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("OPENAI_BASE_URL", raising=False)
        return example_run.make(tmp_path_factory.mktemp("runs") / "run")
