"""Stage 05 for one line of flags after the other: to start a process takes longer than to train.

python tests/in_a_row.py "--in rows.jsonl --model base --out one" "--in rows.jsonl --model one ..."
"""

import shlex
import sys

import tiny_models

from autoif.flags import call

NEXT = "== next training ==\n"

if __name__ == "__main__":
    for line in sys.argv[1:]:
        print(NEXT, end="")
        call(tiny_models.stage("05_sft").main, shlex.split(line))
