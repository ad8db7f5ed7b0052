# What `run_all.sh --demo` changes of --live: the supervisor's answers are those that a --live run was given.
OUT=${OUT:-out/demo} RECORDED=demo/completions SUPERVISOR=coder-1.5b
source live/settings.sh
