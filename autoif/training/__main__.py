"""torchrun that ends as the stage does: with its words and its exit code, no traceback behind them.

    python -m autoif.training --standalone --nproc_per_node 8 05_sft.py --in out/04_sft.jsonl ...

Flags are torchrun's, which by itself ends with exit code 1 and a traceback, and gives each process
one thread: here they share the cores, for the optimizer of --offload.
"""

import os
import signal
import sys

from torch.distributed import run
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError


def main() -> None:
    args = run.parse_args(None)
    processes = run.determine_local_world_size(args.nproc_per_node)
    threads = max(1, len(os.sched_getaffinity(0)) // processes)
    os.environ.setdefault("OMP_NUM_THREADS", str(threads))
    if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # nohup: torchrun would end at the logout
        args.signals_to_handle = "SIGTERM,SIGINT,SIGQUIT"
    if args.standalone:  # else the host's name, which not every laptop resolves
        args.local_addr = args.local_addr or "127.0.0.1"
    try:
        run.run(args)
    except SignalException as stop:
        sys.exit(128 + stop.sigval)
    except ChildFailedError as failure:
        code = failure.get_first_failure()[1].exitcode
        # a process that a signal ended has its number, negative
        sys.exit(code if code > 0 else 128 - code)


if __name__ == "__main__":
    main()
