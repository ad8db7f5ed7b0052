# What `STUDY=strong bash run_all.sh --study` changes: strong to weak. Constraints, functions, answers and scores are
# one live run's (live/settings.sh), the same in all seeds; a seed varies training, and all that the student samples.
# SPLIT=2, SPLIT=3: other families are held out (study/heldout_2.jsonl), and other constraints left to be trained on
setting=${WEAK:-smollm2}${SPLIT:+/split_$SPLIT}
SEED=${SEED:-1} OUT=${OUT:-out/strong/$setting/seed_$SEED}
heldout_queries=${HELDOUT_QUERIES:-study/heldout_queries.txt}
BASE=${WEAK:-smollm2}                # the student; WEAK=coder-0.5b is the second
source live/settings.sh
# Questions that take a sentence or more: the supervisor answers the demo's in five words, and brevity obeys by itself
QUERIES=study/strong/queries.txt HELDOUT_QUERIES=$heldout_queries
RECORDED=study/strong/completions    # asked before a server is
[ "${LIVE:-}" ] || SUPERVISED=() WRITING=()  # LIVE=1: coder-1.5b is asked for what is not recorded
PLAN="supervisor: coder-1.5b, recorded ($RECORDED)${LIVE:+ and live}; $STUDENT learns"
ONLINE_ITERATIONS=2
# a file a seed, and their table
TABLE=study/strong/table.py RESULTS=${RESULTS:-out/strong/results/$setting}
# live/seeds.txt and 63 more, of all kinds: what is left of those beside the test set is little
FLAGS_01+=" --seeds ${SEEDS:-study/strong/seeds.txt}"
FLAGS_03+=" --heldout 0"  # study/heldout.jsonl is held out
FLAGS_04+=" --queries-per-instruction 5 --max-tokens 128"
FLAGS_04_ONLINE="--max-tokens 96 --k 8 --score topic"  # the student is no judge; without one answers leave their query
FLAGS_05="--seed $SEED --precision fp32 --batch 8 --lr 2e-5 --epochs 2 --warmup-steps 10 --max-length 512 --micro-tokens 1024"
# beta and epochs are the paper's; its rate is for hundreds of steps of 64 pairs
BETA=0.3 FLAGS_06="--seed $SEED --precision fp32 --batch 8 --lr 5e-5 --epochs 2 --max-length 512 --micro-tokens 1024"
FLAGS_06+=" --sft-weight 1"  # at this rate answers grew until they were cut, or shrank to ten words (tried, README.md)
FLAGS_06_PAIRS="--seed $SEED --pairs-per-prompt 4"  # as the released code
# Pairs of every arm, of cases and of responses: offline there are 109 and 137. Online an iteration has a half of both,
# and (96 + 128) x 2 epochs / 8 are 56 steps offline as online.
[ -z "${SPLIT:-}" ] || PAIRS_OF_CASES=${PAIRS_OF_CASES:-72} PAIRS_OF_RESPONSES=${PAIRS_OF_RESPONSES:-88}
PAIRS_OF_CASES=${PAIRS_OF_CASES:-96} PAIRS_OF_RESPONSES=${PAIRS_OF_RESPONSES:-128}
FLAGS_07_HELDOUT="--seed $SEED --queries-per-instruction 4 --k 4 --max-tokens 96"  # other queries and draws in each seed
