# What `run_all.sh --demo` changes: a live run once more, whose supervisor's completions are replayed (README.md here).
OUT=${OUT:-out/demo} RECORDED=demo/completions SUPERVISOR=coder-1.5b
source live/settings.sh
PLAN="$SUPERVISOR's completions are replayed from $RECORDED; $STUDENT learns and is measured"
