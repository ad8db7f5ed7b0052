"""Before a full run spends anything: the plan, and all that is missing, each with its fix.

    python -m autoif.serving.preflight --supervisor NAME --base NAME --queries FILE --out out

Exit code 2 when something is missing. `--until 04` asks for what stages 01 to 04 need only.
"""

import argparse
import importlib.util
import os
import shutil
from pathlib import Path

from autoif import chain, sandbox
from autoif.evaluation import benchmarks
from autoif.files import UserError
from autoif.serving import engines
from autoif.stage import Help, natural, positive_int, run
from autoif.training.engine import check_shape

PACKAGES = {
    "01": ("openai", "aiohttp", "jsonlines", "json_repair", "ijson", "langdetect", "sklearn"),
    "05": ("torch", "transformers", "deepspeed", "matplotlib", "tensorboard"),
    "07": ("lm_eval", "nltk", "datasets"),
}
# Bytes a parameter on all GPUs together, ZeRO-3 in bf16: weights 2, gradients 4 (added up in fp32),
# fp32 master weights and Adam's two moments 12.
STATE_BYTES = 18
# Without a GPU a step of a larger model takes minutes, and a run weeks.
CPU_PARAMETERS = 1e9
OUTPUTS = (
    "01_instructions.jsonl",
    "02_verifiers.jsonl",
    "03_instructions.jsonl",
    "04_sft.jsonl",
    "05_sft",
    "06_pairs.jsonl",
    "06_offline",
)


def on_hub(name: str, what: str) -> str | None:
    """None when the model is here, in the hub's cache or on the hub; else the fix."""
    if not name:
        return f"no {what}: set it in the environment, as run_all.sh's first lines show"
    if Path(name).is_dir():
        return None
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if try_to_load_from_cache(name, "config.json"):
            return None
        HfApi().repo_info(name, timeout=20)
    # the hub's own errors and those of whatever HTTP library it uses: all are the finding here
    except Exception as error:
        words = str(error).splitlines()[0][:120]
        return (
            f"{what} {name}: neither a directory here nor reachable on the hub ({words}); "
            "download it, and give its path"
        )
    return None


def endpoint(url: str | None, model: str, name: str = "SUPERVISOR") -> str | None:
    """None when the server answers a short question as `model`; else the problem in its words."""
    if not url:
        return "no endpoint: set OPENAI_BASE_URL, for example http://localhost:8000/v1"
    if not model:
        return f"no model: set {name} to one that {url} serves"
    import openai

    from autoif.llm.endpoint import address, secret

    try:
        url, key = address(url), secret()
    except UserError as error:
        return str(error)
    client = openai.OpenAI(base_url=url, api_key=key or "none", max_retries=1, timeout=60)
    try:
        listed = [served.id for served in client.models.list()]
    except openai.AuthenticationError:
        return f"{url} does not accept the key: set OPENAI_API_KEY"
    except openai.APIConnectionError as error:
        words = error.__cause__ or error
        return f"{url} does not answer ({words}); start the server, or mend OPENAI_BASE_URL"
    # not every server lists its models: the request below decides
    except (openai.APIStatusError, AttributeError, TypeError, ValueError):
        listed = []
    if listed and model not in listed:
        served = ", ".join(listed[:5])
        return f"{url} does not serve {model!r}, but {served}; set {name} to one of these"
    problem = _answers(client, url, model)
    # some servers repeat the key in their words
    return problem.replace(key, "***") if problem and key else problem


def _answers(client, url: str, model: str) -> str | None:
    """None when the server completes a short question; reasoning models want another limit."""
    import openai

    from autoif.llm.endpoint import ADVICE, raise_error_in

    question = [{"role": "user", "content": "Say yes."}]
    for limit in ({"max_tokens": 1}, {"max_completion_tokens": 64}):
        try:
            reply = client.chat.completions.create(model=model, messages=question, **limit)
            raise_error_in(reply)
        except openai.APIError as error:
            words = str(error)[:200]
            if advice := ADVICE.get(getattr(error, "status_code", None)):
                words += f"; {advice}"
            continue
        except ValueError:  # no JSON
            reply = None
        if getattr(reply, "choices", None):
            return None
        return f"{url} sends no completions; its address usually ends in /v1"
    return f"{url} does not answer as {model!r}: {words}"


def training(base: str, shape: engines.Shape, memory: list[float]) -> list[str]:
    """Problems of training `base` here."""
    if memory or shape.parameters < CPU_PARAMETERS:
        return []
    return [
        f"no GPU, and {base} has {shape.parameters / 1e9:.1f} B parameters to train; run this on a "
        "machine with GPUs, make the data only (--until 04), or see `bash run_all.sh --demo`"
    ]


def serving(base: str, shape: engines.Shape, memory: list[float]) -> list[str]:
    """Problems of serving `base`, and so every model trained from it, on the GPUs here."""
    if os.environ.get("SERVE"):
        return []
    if not memory:
        if importlib.util.find_spec("xllamacpp") is None:
            return ["package xllamacpp: pip install -r requirements.txt"]
        return []
    try:
        engines.vllm_command(base, base, 0, shape, memory)
    except UserError as error:
        return [str(error)]
    return []


def warn_of_judge(judge: str, supervisor: str, base: str) -> None:
    """Say it where a judge judges itself or its pupil."""
    if not judge or judge not in (supervisor, base):
        return
    whose = "the base model"
    if judge == supervisor:
        whose = "the supervisor that wrote the data"
    print(
        f"warning: the judge is {whose}: it may prefer its own kind; set JUDGE to another model "
        "(the paper's judges are GPT-4s)",
        flush=True,
    )


def plan(args, shape: engines.Shape | None, memory: list[float]) -> list[str]:
    """What the run holds, and what is finished."""
    lines = []
    if shape:
        states = shape.parameters * STATE_BYTES / args.processes / 1e9
        line = (
            f"plan: {args.base}: {shape.parameters / 1e9:.1f} B parameters x {STATE_BYTES} bytes / "
            f"{args.processes} processes = {states:.0f} GB each, and activations"
        )
        lines.append(line + (f"; there are {min(memory) / 1e9:.0f} GB" if memory else ""))
    done = [name for name in OUTPUTS if (Path(args.out) / name).exists()]
    lines.append(f"plan: finished and kept: {', '.join(done) or 'nothing yet'}")
    return lines


def data_problems(args) -> list[str | None]:
    """What stages 01 to 04 lack: a supervisor, an NLI model, queries, a sandbox."""
    url = os.environ.get("OPENAI_BASE_URL")
    problems = [endpoint(url, args.supervisor)]
    if args.nli != "llm":
        problems.append(on_hub(args.nli, "NLI"))
    if not Path(args.queries).is_file():
        problems.append(
            f"queries {args.queries or '(none)'}: set QUERIES to ShareGPT's JSON, JSONL rows with "
            "'query', or text lines"
        )
    probe = {"id": "probe", "code": "def evaluate(response): return True", "inputs": [""]}
    try:
        list(sandbox.run([probe]))
    except UserError as error:
        problems.append(f"sandbox: {error}")
    return problems


def model_problems(
    args, shape: engines.Shape | None, memory: list[float], outputs: list[chain.Output]
) -> list[str | None]:
    """What stages 05 and 06 lack: a base model that they train, GPUs, an engine, disk space."""
    if shape is None and (unknown := on_hub(args.base, "BASE")):
        return [unknown]
    longest = [each.args.max_length for each in outputs if hasattr(each.args, "max_length")]
    problems = []
    try:
        check_shape(args.base, max(longest, default=0))
    except UserError as error:
        problems.append(f"BASE {error}")
    if shape is None:
        return problems
    problems += training(args.base, shape, memory)
    problems += serving(args.base, shape, memory)
    # the checkpoints in float32 with the bf16 copies that vLLM serves, and one resume point
    need = shape.parameters * ((4 + 2) * (2 + args.online_iterations) + 14)
    free = shutil.disk_usage(args.out if Path(args.out).exists() else ".").free
    if need > free:
        problems.append(
            f"disk: about {need / 1e9:,.0f} GB are needed in {args.out}, {free / 1e9:,.0f} GB are "
            "free; set OUT elsewhere"
        )
    return problems


def benchmark_problems(args, outputs: list[chain.Output]) -> list[str | None]:
    """What stage 07 lacks: data of the benchmarks in the plan, a judge that answers."""
    problems = []
    if args.judge not in ("", args.supervisor):
        problems.append(endpoint(os.environ.get("OPENAI_BASE_URL"), args.judge, "JUDGE"))
    if args.data_dir and not Path(args.data_dir).is_dir():
        problems.append(
            f"DATA_DIR {args.data_dir} is no directory; without it the data comes from the hub"
        )
        return problems
    wanted = {}
    for output in outputs:
        for name in getattr(output.args, "benchmarks", ()):
            # the run makes the held-out rows; the contamination check takes what is there
            if name != "heldout" and not hasattr(output.args, "training"):
                wanted.setdefault(name, output.args)
    for name, flags in wanted.items():
        try:
            _, gaps = benchmarks.load([name], flags)
        except UserError as error:  # there, and broken
            gaps = {name: error}
        if gaps:
            problems.append(
                f"benchmark {name}: {gaps[name]}; put its data into DATA_DIR (autoif/evaluation/"
                f'README.md), or name those to run: FLAGS_07="--benchmarks ..."'
            )
    return problems


def warn_of_split(outputs: list[chain.Output]) -> None:
    """Say it where nothing is held out to measure on."""
    for output in outputs:
        for flag in ("heldout", "heldout_queries"):
            # of 07 --heldout is a file, and the online loop has no queries of its own
            if getattr(output.args, flag, None) == 0 and not getattr(output.args, "sft", None):
                name = flag.replace("_", "-")
                print(f"warning: --{name} 0: stage 07 measures benchmarks only", flush=True)


def parse(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m autoif.serving.preflight",
        description=__doc__,
        formatter_class=Help,
    )
    parser.add_argument("--supervisor", default="", help="model that writes the data")
    parser.add_argument("--base", default="", help="model to train: directory or name on the hub")
    parser.add_argument("--queries", default="", help="file of user queries")
    parser.add_argument("--nli", default="llm", help="NLI model, or llm")
    parser.add_argument("--judge", default="", help="of the benchmarks, on the same endpoint")
    parser.add_argument("--data-dir", default="", help="benchmark data")
    parser.add_argument("--out", default="out")
    parser.add_argument(
        "--processes", type=positive_int, default=1, help="that train, on all nodes"
    )
    parser.add_argument("--online-iterations", type=natural, default=0)
    parser.add_argument("--until", default="07", help="the last stage that will run")
    parser.add_argument("--plan", help="the commands to come, as autoif.chain reads them")
    parser.add_argument("--redo-from", help="what this stage and later ones made is out of account")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse(argv)
    stages = [stage for stage in PACKAGES if stage <= args.until]
    missing = []
    for stage in stages:
        for package in PACKAGES[stage]:
            if importlib.util.find_spec(package) is None:
                missing.append(f"package {package}: pip install -r requirements.txt")

    memory, shape = [], None
    # what a model needs is read with these packages
    if "05" in stages and not missing:
        memory = engines.gpu_memory()
        try:
            shape = engines.shape(args.base) if args.base else None
        except (UserError, AttributeError):  # a model of another kind has no such numbers
            shape = None  # model_problems says why
    outputs = []
    if args.plan and not missing:
        outputs, _ = chain.read(args.plan)
        missing += chain.problems(args.plan, args.redo_from)
    missing += data_problems(args)
    if "05" in stages:
        missing += model_problems(args, shape, memory, outputs)
    if "07" in stages:
        missing += benchmark_problems(args, outputs)
        warn_of_split(outputs)

    print("\n".join(plan(args, shape, memory)), flush=True)
    if "07" in stages:
        warn_of_judge(args.judge, args.supervisor, args.base)
    problems = [problem for problem in missing if problem]
    if problems:
        numbered = (f"  {number}. {text}" for number, text in enumerate(problems, 1))
        raise UserError(f"{len(problems)} things are missing:\n" + "\n".join(numbered))


if __name__ == "__main__":
    run(main)
