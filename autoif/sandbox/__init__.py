"""Run model-written functions on inputs: one verdict for each call, pass, fail or error.

    python -m autoif.sandbox < jobs.jsonl > verdicts.jsonl

    {"id": 1, "code": "def evaluate(response): return response == 'a'", "inputs": ["a", "b"]}
    {"id": 1, "verdicts": ["pass", "fail"], "error": null}

Pass and fail are True, 1, "true" and False, 0, "false" of exactly the built-in types. `error` is
the reason of the first error: syntax, load, exception, non-boolean (each with a built-in's name, or
"other"), no evaluate, missing module, memory, timeout, exit, protocol, wait (a sleep, a lock that
would never come), crash (with its signal); `load: timeout` and the like where it cannot be called.

Promised, to whoever runs code that a model wrote:
- The host: it reads no file but the standard library, writes none, and starts, signals, connects
  to and outlives nothing. Landlock, seccomp, no capabilities, no_new_privs, rlimits, all without
  privileges. Each worker tries them at its start; where one does not hold the run is refused by its
  name, unless --unsafe-no-sandbox is given or SANDBOX_PREFIX holds a command that isolates workers
  ("docker run -i --rm --network none IMAGE"; bwrap, runsc).
- Other functions: each has a process of its own, which never sees an id, an expected verdict, a
  key, another job, or, unless it imports nltk or numpy, where the project lies.
- Other inputs of the function: one that times out, crashes, exits or takes all memory is an error,
  and the next one is judged in a fresh process. A function is disqualified when its loading does
  so, after two time-outs with nothing answered yet, or after eight such inputs: what always loops
  must cost little, and a few degenerate responses must not remove a verifier for the others.
  `untried` then says how many of the last inputs it never saw. Code that names eval, exec, setattr
  and the like (POWERS in child.py) or a module that is not in MODULES gets a process for each
  input, so that no response decides about another.
- The run: `cpu_seconds` a call, a wall cap that only whole answers renew, a deadline a worker.
- With `keep_mb` (autoif.reward): a function's process is stopped when it has answered, and goes on
  with its next job; one that has grown by 16 MB ends. Its passes and fails count; at anything else
  it is killed and the job judged in fresh processes.

Not promised. What a call leaves behind (globals, a recursion limit, memory, timers, rebound names
of modules) reaches later inputs of the same function; with `keep_mb`, also those of its later jobs.
A function can forge its own verdicts, which equals `return True`, and so can code made for it. It
sees that a file exists (stat), the time, and the inputs of its own job. Kernel bugs and Spectre are
out of scope. `random`, hashes, locale and time zone are fixed; what reads the clock, os.urandom or
addresses may differ from run to run. Linux on x86_64 or aarch64, else a prefix.
"""

from autoif.sandbox.pool import MODULES, Flags, Sandbox  # noqa: F401  the door
from autoif.sandbox.together import Together  # noqa: F401
