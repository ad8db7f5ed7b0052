# What `run_all.sh --study` changes, each with its reason; everything else is the defaults, the paper's.
if [ "${STUDY:-self}" != self ]; then  # STUDY=strong: the second study
    source "study/$STUDY/settings.sh"
    return
fi
TABLE=study/results.py RESULTS=${RESULTS:-out/study/results}  # those of study/results were handed on in bf16
SEED=${SEED:-1} OUT=${OUT:-out/study/seed_$SEED}     # of sampling and training; the split and the tests are the same
RECORDED=study/completions           # written by hand, in a strong model's form
SUPERVISOR=recorded-supervisor STUDENT=smollm2 BASE=$OUT/base
WRITER=$BASE WRITING=(served "$BASE")  # the model answers itself: self-alignment
PLAN="supervisor: recorded completions ($RECORDED)"
NLI=llm                              # no hub: mDeBERTa cannot be had
QUERIES=study/queries.txt HELDOUT_QUERIES=${HELDOUT_QUERIES:-study/heldout_queries.txt}
PROCESSES=1 ONLINE_ITERATIONS=2 ONLINE_FROM=$OUT/05_sft  # from SFT on, as in the paper's tables
export HF_HUB_OFFLINE=1 DS_ACCELERATOR=cpu CUDA_VISIBLE_DEVICES=  # on the CPU, where there is a GPU too
FLAGS_SERVING="--slots 64 --context 512"   # short answers: more at a time
FLAGS_01="--seeds study/seeds.txt --k 9 --count 20"  # nine recorded samples, not 100 of 50
FLAGS_02="--k 4"                     # four recorded verifiers, not 8
# A quarter, to measure on 24 families. The seed was looked for among 0 to 39, on the constraints alone, before any model
# was trained: with most of them some held-out constraint follows from a trained one of another family ("End the answer
# with an exclamation mark" and "Include an exclamation mark"), or brevity alone obeys many ("Do not use the word ...").
# Eight trained ones leak with this one too (implied.tsv).
FLAGS_03="--heldout 0.25 --seed 35"
# 3 queries, not 16, for time; a model of 135M is no judge
FLAGS_04="--seed $SEED --queries-per-instruction 3 --max-tokens 96 --heldout-queries 0 --score topic --bare-prompt"
# fp32: a CPU without bf16 products of its own computes them at half the speed, and the loss sees all that is learned
FLAGS_05="--seed $SEED --precision fp32 --batch 8 --lr 2e-5 --epochs 1 --warmup-steps 10 --max-length 512 --micro-tokens 1024"  # 300 rows
# at 1e-5 the loss falls to 0.68 only (tried.jsonl.gz of study/results), at 1e-4 answers do not end (tuning.jsonl.gz)
FLAGS_06="--seed $SEED --precision fp32 --batch 8 --lr 5e-5 --beta 0.1 --epochs 1 --max-length 512 --micro-tokens 1024"
FLAGS_06_PAIRS="--seed $SEED --pairs-per-prompt 2"  # sampling costs more than training
FLAGS_04_ONLINE="--max-tokens 96 --k 8 --score topic"
FLAGS_07_HELDOUT="--queries-per-instruction 4 --k 4 --max-tokens 96"
