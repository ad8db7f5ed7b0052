# What `run_all.sh --demo` changes, each with its reason; everything else is the defaults, the paper's.
OUT=${OUT:-out/demo}
RECORDED=study/completions            # written by hand, in a strong model's form
SUPERVISOR=recorded-supervisor STUDENT=smollm2 BASE=$OUT/base
WRITER=$BASE WRITING=(served "$BASE")  # the model answers itself: self-alignment
PLAN="supervisor: recorded completions ($RECORDED); a live one: --live"
NLI=llm                              # no hub: mDeBERTa cannot be had
QUERIES=demo/queries.txt HELDOUT_QUERIES=demo/heldout_queries.txt
PROCESSES=1 ONLINE_ITERATIONS=1 ONLINE_FROM=$OUT/06_offline  # one iteration is little: it goes on from offline DPO
export HF_HUB_OFFLINE=1
# on the CPU, where there is a GPU too; DEMO_GPU=1 is for one, with vLLM beside it
[ "${DEMO_GPU:-}" = 1 ] || export DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=
FLAGS_SERVING="--slots 64 --context 512"   # short answers: more at a time
FLAGS_01="--seeds study/seeds.txt --k 4 --count 20"    # four recorded samples, not 100 of 50
FLAGS_02="--k 4"                     # four recorded verifiers, not 8
# Of 64 constraints a tenth would be too few to measure on. The seed was looked for among 0 to 59 on the constraints alone:
# with most, one held out follows from a trained one ("End ... with an exclamation mark", "Include an exclamation mark").
FLAGS_03="--heldout 0.25 --seed 59"
FLAGS_04="--queries-per-instruction 2 --k 6 --max-tokens 96 --heldout-queries 0 --no-score --bare-prompt"  # 135M: no judge, and it talks about a template
# fp32: a CPU without bf16 products of its own computes them at half the speed, and the loss sees all that is learned
FLAGS_05="--precision fp32 --batch 8 --lr 2e-5 --epochs 1 --warmup-steps 2 --max-length 512 --micro-tokens 1024"  # some 200 rows
FLAGS_06="--precision fp32 --batch 8 --lr 3e-5 --beta 0.1 --epochs 1 --max-length 512 --micro-tokens 1024"  # some 15 steps: larger ones
FLAGS_04_ONLINE="--max-tokens 96 --k 8"
FLAGS_07_HELDOUT="--queries-per-instruction 4 --k 2 --max-tokens 96"
