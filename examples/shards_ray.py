"""Stage 04, 03 or 02 on the GPUs of a Ray cluster: a shard a task, tried again where one dies.

    ray start --head    # and `ray start --address=...` on the other nodes
    python examples/shards_ray.py 64 python -m autoif.serving MODEL -- python 04_responses.py \\
        --model MODEL --in out/03_instructions.jsonl --queries out/04_queries.jsonl

Checkout and `out` lie on a disk that all nodes share; commands and paths are from the checkout.
"""

import os
import subprocess
import sys
from pathlib import Path

import ray

CHECKOUT = Path(__file__).resolve().parents[1]


@ray.remote(num_gpus=1, max_retries=3, retry_exceptions=True)
def shard(command: list[str]) -> None:
    # with the worker its command ends as well, so that no two write one store
    log = f"out/logs/{command[-1].replace('/', '-of-')}"
    command = ["setpriv", "--pdeathsig", "TERM", "--", *command]
    subprocess.run(command, cwd=CHECKOUT, check=True, env={**os.environ, "SERVE_LOG": log})


def main(count: int, command: list[str]) -> None:
    ray.init()
    ray.get([shard.remote([*command, "--shard", f"{n}/{count}"]) for n in range(count)])


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
