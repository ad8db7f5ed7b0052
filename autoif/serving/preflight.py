"""Before a full run spends anything: the plan, and all that is missing, each with its fix.

    python -m autoif.serving.preflight --supervisor NAME --base NAME --queries FILE --out out

Exit code 2 when something is missing. `--until 04` asks for what stages 01 to 04 need only.
"""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from autoif import chain, gpu, sandbox
from autoif.evaluation import benchmarks
from autoif.files import UserError
from autoif.flags import Count, Natural, cli
from autoif.models import read_config
from autoif.serving import engines
from autoif.training import arithmetic
from autoif.training.engine import MODELS, check_shape

DATA = ("01", "02", "03", "04")
# Without a GPU a step of a larger model takes minutes, and a run weeks.
CPU_PARAMETERS = 1e9
OUTPUTS = (
    "01_instructions.jsonl 02_verifiers.jsonl 03_instructions.jsonl 04_sft.jsonl 05_sft "
    "06_pairs.jsonl 06_offline"
).split()


@dataclass(kw_only=True)
class Flags:
    supervisor: str = ""  # model that writes the data
    base: str = ""  # model to train: directory or name on the hub
    queries: str = ""  # file of user queries
    nli: str = "llm"  # NLI model, or llm
    judge: str = ""  # of the benchmarks, on the same endpoint
    data_dir: str = ""  # benchmark data
    out: str = "out"
    processes: Count = 1  # that train, on all nodes
    online_iterations: Natural = 0  # of the online loop
    until: str = "07"  # the last stage that will run
    plan: str | None = None  # the commands to come, as autoif.chain reads them
    redo_from: str | None = None  # what this stage and later ones made is out of account


# ---- stages 01 to 04: a supervisor, an NLI model, queries, a sandbox ----


def on_hub(name: str, what: str) -> str | None:
    """None when the model is here, in the hub's cache or on the hub; else the fix."""
    if not name:
        return f"no {what}: set it in the environment, as run_all.sh's first lines show"
    if Path(name).is_dir():
        return None
    from huggingface_hub import HfApi, try_to_load_from_cache

    try:
        if not try_to_load_from_cache(name, "config.json"):
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
    # not every server lists its models, or by the names that it takes
    except (openai.APIStatusError, AttributeError, TypeError, ValueError):
        listed = []
    problem = refusal(client, url, model)
    if problem and listed and model not in listed:
        problem += f"; it lists {', '.join(listed[:5])}: set {name} to what it serves"
    # some servers repeat the key in their words
    return problem.replace(key, "***") if problem and key else problem


def refusal(client, url: str, model: str) -> str | None:
    """None when the server completes a short question; reasoning models want another limit."""
    import openai

    from autoif.llm.endpoint import ADVICE, raise_error_in

    question, words = [{"role": "user", "content": "Say yes."}], ""
    for limit in ({"max_tokens": 1}, {"max_completion_tokens": 2048}):
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


def data_problems(args: Flags, stages: set[str]) -> Iterator[str | None]:
    """What those of 01 to 04 lack that are still to run; afterwards the supervisor may be gone."""
    if stages.isdisjoint(DATA):
        return
    yield endpoint(os.environ.get("OPENAI_BASE_URL"), args.supervisor)
    if "03" in stages and args.nli != "llm":
        yield on_hub(args.nli, "NLI")
    if "04" in stages and not Path(args.queries).is_file():
        yield (
            f"queries {args.queries or '(none)'}: set QUERIES to ShareGPT's JSON, JSONL rows with "
            "'query', or text lines"
        )


# ---- stages 05 and 06: a base model that they train, GPUs, an engine, disk space ----


def refused(check: Callable, *values) -> str | None:
    """What `check(*values)` says against them; None where it raises no UserError."""
    try:
        check(*values)
    except UserError as error:
        return str(error)


def model_problems(
    args: Flags, shape: engines.Shape | None, memory: list[float], outputs: list[chain.Output]
) -> Iterator[str | None]:
    if shape is None and (unknown := on_hub(args.base, "BASE")):
        yield unknown
        return
    longest = [each.args.max_length for each in outputs if hasattr(each.args, "max_length")]
    if wrong := refused(check_shape, args.base, max(longest, default=0)):
        yield f"BASE {wrong}"
    if shape is None:
        return
    if not memory and shape.parameters >= CPU_PARAMETERS:
        yield (
            f"no GPU, and {args.base} has {shape.parameters / 1e9:.1f} B parameters to train; run "
            "this on a machine with GPUs, make the data only (--until 04), or see `bash run_all.sh "
            "--demo`"
        )
    # what cannot be served now could not be once it is trained
    if memory and not os.environ.get("SERVE"):
        yield refused(engines.vllm_command, args.base, args.base, 0, shape, memory)
    elif not os.environ.get("SERVE") and importlib.util.find_spec("xllamacpp") is None:
        yield "package xllamacpp: pip install -r requirements.txt"
    host = gpu.host() / max(1, len(memory))
    for name, layout in layouts(args, memory, outputs).items():
        yield refused(arithmetic.refuse_too_large, f"{name}: {args.base}", layout, host)
    # the checkpoints in float32 with the bf16 copies that vLLM serves, and a resume point, of which
    # there are two while the later one is written
    need = shape.parameters * ((4 + 2) * (2 + args.online_iterations) + 2 * 14)
    free = shutil.disk_usage(args.out if Path(args.out).exists() else ".").free
    if need > free:
        yield (
            f"disk: about {need / 1e9:,.0f} GB are needed in {args.out}, {free / 1e9:,.0f} GB are "
            "free; set OUT elsewhere"
        )


def layouts(args: Flags, memory: list[float], outputs: list[chain.Output]) -> dict:
    """How each model that is trained will lie on the GPUs, by its name; none without GPUs."""
    found, shape = {}, read_config(args.base)
    for output in outputs:
        # check_shape says what models of other kinds lack
        if memory and shape.model_type in MODELS and hasattr(output.args, "micro_tokens"):
            layout = arithmetic.layout(shape, output.args, 0, args.processes, min(memory))
            found.setdefault(Path(output.path).name, layout)
    return found


# ---- stage 07: data of the benchmarks in the plan, a judge that answers ----


def benchmark_problems(
    args: Flags, outputs: list[chain.Output], asked: str
) -> Iterator[str | None]:
    """`asked` is a model that has answered already."""
    # without a plan nobody knows whether a judge is needed
    judged = not args.plan or any(getattr(each.args, "judge_model", None) for each in outputs)
    if judged and args.judge not in ("", asked):
        yield endpoint(os.environ.get("OPENAI_BASE_URL"), args.judge, "JUDGE")
    if args.data_dir and not Path(args.data_dir).is_dir():
        yield (f"DATA_DIR {args.data_dir} is no directory; without it the data comes from the hub")
        return
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
            yield (
                f"benchmark {name}: {gaps[name]}; put its data into DATA_DIR (autoif/evaluation/"
                f'README.md), or name those to run: FLAGS_07="--benchmarks ..."'
            )


def warnings(args: Flags, outputs: list[chain.Output]) -> Iterator[str]:
    """What is no problem and makes stage 07 say less: nothing held out, a judge of its own kind."""
    for output in outputs:
        for flag in ("heldout", "heldout_queries"):
            # of 07 --heldout is a file, and the online loop has no queries of its own
            if getattr(output.args, flag, None) == 0 and not getattr(output.args, "sft", None):
                yield f"--{flag.replace('_', '-')} 0: stage 07 measures benchmarks only"
    whose = {args.base: "the base model", args.supervisor: "the supervisor that wrote the data"}
    if args.judge and args.judge in whose:
        yield (
            f"the judge is {whose[args.judge]}: it may prefer its own kind; set JUDGE to another "
            "model (the paper's judges are GPT-4s)"
        )


def main(args: Flags) -> None:
    problems, memory, shape, outputs, stages = [], [], None, [], {*DATA}
    if args.plan:
        every, problems = chain.read(args.plan)
        problems += chain.problems(every, args.redo_from)
        again = args.redo_from or "99"
        outputs = [out for out in every if not Path(out.path).exists() or out.stage >= again]
        stages = {each.stage for each in outputs}
    problems += data_problems(args, stages)
    try:
        with sandbox.Sandbox(sandbox.Flags()) as box:
            box.submit({"code": "def evaluate(response): return True", "inputs": [""]}).result()
    except UserError as error:
        problems.append(f"sandbox: {error}")
    if args.until >= "05":
        try:
            memory = gpu.memory()
        except UserError as error:
            problems.append(str(error))
        # a model of another kind has no such numbers: model_problems says why
        with contextlib.suppress(UserError, AttributeError):
            shape = engines.shape(args.base) if args.base else None
        problems += model_problems(args, shape, memory, outputs)
    if args.until >= "07":
        asked = "" if stages.isdisjoint(DATA) else args.supervisor
        problems += benchmark_problems(args, outputs, asked)
        for words in warnings(args, outputs):
            print(f"warning: {words}", flush=True)
    if shape and memory:
        for name, layout in layouts(args, memory, outputs).items():
            print(f"plan: {name}: {layout}")
        print(f"plan: serving: {shape.arithmetic(1)} of {min(memory) / 1e9:.0f} GB on one GPU")
    done = [name for name in OUTPUTS if (Path(args.out) / name).exists()]
    print(f"plan: finished and kept: {', '.join(done) or 'nothing yet'}", flush=True)
    problems = list(filter(None, problems))
    if problems:
        numbered = (f"  {number}. {text}" for number, text in enumerate(problems, 1))
        raise UserError(f"{len(problems)} things are missing:\n" + "\n".join(numbered))


if __name__ == "__main__":
    cli(main, __doc__)
