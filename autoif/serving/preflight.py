"""Before a full run spends anything: the plan, and the complete list of what is missing, each with its fix (exit code 2).

python -m autoif.serving.preflight --supervisor NAME --base NAME --queries FILE --nli NAME --out out --processes 8
"""

import argparse
import importlib.util
import os
import re
import shutil
from pathlib import Path

from autoif import sandbox
from autoif.files import UserError
from autoif.stage import run

PACKAGES = (
    "torch",
    "transformers",
    "deepspeed",
    "openai",
    "jsonlines",
    "json_repair",
    "ijson",
    "langdetect",
    "sklearn",
    "lm_eval",
    "nltk",
    "datasets",
    "matplotlib",
    "tensorboard",
)
# Bytes a parameter on all GPUs together, ZeRO-3 in bf16: weights 2, gradients 4 (fp32 accumulation), fp32 master weights and two
# Adam moments 12.
STATE_BYTES = 18
# Guesses, for the plan only: 100 x 50 lines less duplicates; what verification and NLI leave; functions a constraint; the share of
# responses that is accepted. The real numbers come with each stage's funnel line.
CONSTRAINTS, KEPT, FUNCTIONS, ACCEPTED = 4500, 0.55, 5, 0.3
OUTPUTS = (
    "01_instructions.jsonl",
    "02_verifiers.jsonl",
    "03_instructions.jsonl",
    "04_sft.jsonl",
    "05_sft",
    "06_pairs.jsonl",
    "06_offline",
)


def on_hub(name: str, what: str, kind: str = "model") -> str | None:
    """None when the model or dataset is a local directory, in the hub's cache or on the hub; else the problem and its fix."""
    if not name:
        return f"no {what}: set it in the environment, as run_all.sh's first lines show"
    if Path(name).is_dir():
        return None
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if try_to_load_from_cache(name, "config.json", repo_type=kind):
            return None
        HfApi().repo_info(name, repo_type=kind, timeout=20)
    except Exception as error:  # the hub's own errors and those of whatever HTTP library it uses: all are the finding here
        return (
            f"{what} {name}: neither a directory here nor reachable on the hub ({str(error).splitlines()[0][:120]}); "
            f"download it, and give its path{' in DATA_DIR' if kind == 'dataset' else ''}"
        )
    return None


def endpoint(url: str | None, model: str, name: str = "SUPERVISOR") -> str | None:
    """None when the server answers a short question as `model`; else the problem in the server's words."""
    if not url:
        return "no endpoint: set OPENAI_BASE_URL, for example http://localhost:8000/v1"
    import openai

    client = openai.OpenAI(
        base_url=url, api_key=os.environ.get("OPENAI_API_KEY") or "none", max_retries=1, timeout=60
    )
    try:
        listed = [served.id for served in client.models.list()]
    except openai.AuthenticationError:
        return f"{url} does not accept the key: set OPENAI_API_KEY"
    except openai.APIConnectionError as error:
        return f"{url} does not answer ({error.__cause__ or error}); start the server, or mend OPENAI_BASE_URL"
    except (
        openai.APIStatusError,
        AttributeError,
        TypeError,
    ):  # not every server lists its models: the request below decides
        listed = []
    if listed and model not in listed:
        return f"{url} does not serve {model!r}, but {', '.join(listed[:5])}; set {name} to one of these"
    for limit in (
        {"max_tokens": 1},
        {"max_completion_tokens": 64},
    ):  # reasoning models want the second
        try:
            reply = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Say yes."}], **limit
            )
            return (
                None
                if getattr(reply, "choices", None)
                else f"{url} sends no completions; its address usually ends in /v1"
            )
        except openai.APIError as error:
            words = str(error)[:200]
    return f"{url} does not answer as {model!r}: {words}"


def parameters(model: str) -> float | None:
    """Number of parameters: from a local checkpoint's size, else from a name such as Qwen2-7B."""
    sizes = [file.stat().st_size for file in Path(model).glob("*.safetensors")] if model else []
    named = re.search(r"(\d+(?:\.\d+)?)\s*[bB]\b", model)
    return sum(sizes) / 2 if sizes else float(named.group(1)) * 1e9 if named else None


def arithmetic(name: str, flags: str, default_batch: int, processes: int) -> str | None:
    """None when the global batch is a multiple of processes x micro-batch."""
    number = {flag: int(value) for flag, value in re.findall(r"--(batch|micro-batch) (\d+)", flags)}
    batch, micro = number.get("batch", default_batch), number.get("micro-batch", 1)
    if batch % (processes * micro):
        return (
            f"{name}: batch {batch} is no multiple of {processes} processes x micro-batch {micro} = {processes * micro}; "
            "set PROCESSES or MICRO_BATCH so that it is"
        )
    return None


def gpus(processes: int) -> tuple[list[float], str | None]:
    """(memory of each GPU here in bytes, problem): a full run needs GPUs."""
    import torch

    memory = [
        float(torch.cuda.get_device_properties(n).total_memory)
        for n in range(torch.cuda.device_count())
    ]
    return (
        memory,
        None
        if memory
        else "no GPU: the full run trains on GPUs; `bash run_all.sh --demo` needs none",
    )


def plan(args, memory: list[float]) -> list[str]:
    """What the run will roughly ask for and hold."""
    kept = int(CONSTRAINTS * KEPT)
    prompts, functions = kept * 16, kept * FUNCTIONS
    scored = int(prompts * 8 * ACCEPTED)
    lines = [
        f"plan: about 100 + {CONSTRAINTS:,} x 8 + {functions:,} + {prompts:,} x 8 + {scored:,} completions of {args.supervisor} "
        f"(01, 02, 03, 04, scores), about {(CONSTRAINTS * 8 * 400 + prompts * 8 * 300 + scored * 200) / 1e6:,.0f} M tokens out",
        f"      {args.online_iterations} online iterations of about {prompts:,} x 8 completions of the policy",
    ]
    size = parameters(args.base)
    if size:
        share = size * STATE_BYTES / args.processes / 1e9
        lines.append(
            f"      {args.base}: {size / 1e9:.1f} B parameters x {STATE_BYTES} bytes / {args.processes} GPUs = {share:.0f} GB "
            "each, and activations" + (f"; there are {min(memory) / 1e9:.0f} GB" if memory else "")
        )
    done = [name for name in OUTPUTS if (Path(args.out) / name).exists()]
    lines.append(f"      finished and kept: {', '.join(done) or 'nothing yet'}")
    return lines


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name in ("supervisor", "base", "queries", "nli", "out"):
        parser.add_argument(f"--{name}", required=True)
    parser.add_argument("--judge", default="", help="of the benchmarks, on the same endpoint")
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--processes", type=int, required=True)
    parser.add_argument("--online-iterations", type=int, default=3)
    parser.add_argument("--sft", default="", help="flags of 05_sft.py")
    parser.add_argument("--dpo", default="", help="flags of 06_dpo.py train")
    args = parser.parse_args(argv)

    lost = [package for package in PACKAGES if importlib.util.find_spec(package) is None]
    missing = [f"package {package}: pip install -r requirements.txt" for package in lost]
    memory, no_gpu = gpus(args.processes) if "torch" not in lost else ([], None)
    missing += [
        no_gpu,
        arithmetic("SFT", args.sft, 128, args.processes),
        arithmetic("DPO", args.dpo, 64, args.processes),
    ]
    missing.append(
        None
        if args.supervisor
        else "no supervisor: set SUPERVISOR to a model that the endpoint serves"
    )
    url = os.environ.get("OPENAI_BASE_URL")
    missing.append(endpoint(url, args.supervisor))
    if url and args.judge not in ("", args.supervisor):
        missing.append(endpoint(url, args.judge, "JUDGE"))
    missing.append(on_hub(args.base, "BASE"))
    missing.append(None if args.nli == "llm" else on_hub(args.nli, "NLI"))
    if not Path(args.queries).is_file():
        missing.append(
            f"queries {args.queries or '(none)'}: set QUERIES to ShareGPT's JSON, JSONL rows with 'query', or text lines"
        )
    if args.data_dir and not Path(args.data_dir).is_dir():
        missing.append(
            f"DATA_DIR {args.data_dir} is no directory; without it benchmark data comes from the hub"
        )
    if not args.data_dir:
        missing.append(on_hub("google/IFEval", "benchmark data", "dataset"))
    try:
        list(
            sandbox.run(
                [{"id": "probe", "code": "def evaluate(response): return True", "inputs": [""]}]
            )
        )
    except UserError as error:
        missing.append(f"sandbox: {error}")
    need = (parameters(args.base) or 0) * (
        2 * (2 + args.online_iterations) + 14
    )  # checkpoints, and one resume point
    free = shutil.disk_usage(args.out if Path(args.out).exists() else ".").free
    if need > free:
        missing.append(
            f"disk: about {need / 1e9:,.0f} GB are needed in {args.out}, {free / 1e9:,.0f} GB are free; set OUT elsewhere"
        )

    print("\n".join(plan(args, memory)), flush=True)
    problems = [problem for problem in missing if problem]
    if problems:
        raise UserError(
            f"{len(problems)} things are missing:\n"
            + "\n".join(f"  {n}. {text}" for n, text in enumerate(problems, 1))
        )


if __name__ == "__main__":
    run(main)
