# The settings of the study, each with its reason; everything else is the defaults, the paper's.
OUT=${OUT:-out/study}
SUPERVISOR=recorded-supervisor       # demo/completions and study/completions, in the form of a strong model's answers
NLI=llm                              # no hub: mDeBERTa cannot be had
FLAGS_01="--seeds demo/seeds.txt --k 9 --count 20"  # the demo's four recorded samples and five more
FLAGS_02="--k 4"                     # four recorded verifiers, not 8
# A quarter, to measure on 24 families. The seed was looked for among 0 to 39, on the constraints alone, before any model
# was trained: with most of them some held-out constraint follows from a trained one of another family ("End the answer
# with an exclamation mark" and "Include an exclamation mark"), or brevity alone obeys many ("Do not use the word ...").
FLAGS_03="--heldout 0.25 --seed 35"
