"""Run model-written functions on inputs and yield a verdict for each call: pass, fail or error.

    python -m autoif.sandbox < jobs.jsonl > verdicts.jsonl

    {"id": 1, "code": "def evaluate(response):\\n    return response.islower()", "inputs": ["abc", "Abc"]}
    {"id": 1, "verdicts": ["pass", "fail"], "error": null}

`error` is the reason of the first error: syntax, no evaluate, missing module, load (the type of an exception before there
was a function), exception (its type, in a call), non-boolean (the type; pass and fail are True, 1, "true" and False, 0,
"false" of exactly the built-in types), memory, timeout, crash, protocol. A function is disqualified at its first timeout: later calls, and later jobs with the same code, are errors.

How it works. The parent (this file) keeps ids, labels and keys to itself. One worker a core (child.py, a fresh
interpreter with a clean environment, started as text so that it knows no path of the project) locks itself in
and forks one child for each function with all its inputs. Only the child reads the code and the inputs, and it is
reaped before its verdicts count. What holds a child, none of it needing privileges:

    Landlock           opens nothing but the interpreter's libraries, for reading; no TCP; ABI 1 and later
    seccomp            a list of system calls; no process, thread, socket, signal, write-open, mount, io_uring ...
    capabilities       all dropped, no_new_privs, not dumpable
    rlimits            address space, file size, descriptors, processes, CPU
    CPU and wall time  watched by the worker, for each call; a wall cap of ten times the CPU limit
    a private pipe     frames of at most 64 bytes; a child that breaks the protocol loses all its verdicts

Each worker tries these from inside at its start and the run is refused where one does not hold, with its name;
--unsafe-no-sandbox runs with what there is. A worker whose functions import third-party modules loads them once.

Functions share a child (forking costs more than calling) only when their syntax tree shows that they cannot touch
anything a sibling sees (`tame` in child.py). The rest run apart; so do a call that takes long, with all the
time it may have, and all siblings of one that crashes, runs out of memory or breaks the protocol.

What it does not do. Code can forge its own verdict, which equals `return True`, since it never sees an expected output.
It can see that a file exists (stat), the time, and the inputs of its own job. Bugs in the kernel or in timing of the
processor (Spectre) are out of scope. `random` is seeded, hashes, locale and time zone are fixed; code that reads the
clock, os.urandom or the addresses of objects can still answer differently from run to run. Linux on x86_64 or aarch64.
"""

from autoif.sandbox.pool import MODULES, Sandbox, add_flags, options, run  # noqa: F401  the door
