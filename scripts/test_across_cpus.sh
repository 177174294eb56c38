#!/usr/bin/env bash
# Run the tests whose results depend on arithmetic as other CPUs would run them: with fewer vector instructions,
# with one thread and two, and with other last bits (tests/rounding.py). Needs the .venv that `make test` makes.
#
#   scripts/test_across_cpus.sh            all settings, about 10 minutes
#   scripts/test_across_cpus.sh --quick    AVX2, one thread and other last bits at once, about 2 minutes
set -euo pipefail
cd "$(dirname "$0")/.."

tests=(tests/test_{attention,average,captioner,checkpoint,convert,evaluate,generation,initial,linear,logits}.py
    tests/test_{model,search,sequence_runner,swap,training,vision,weights,words}.py)
# These two compare results of the main thread with those of other threads or processes, which round as they always do.
elsewhere=(--deselect tests/test_captioner.py::test_threads_that_share_a_model_do_not_disturb_each_other
    --deselect tests/test_training.py::test_killed_and_resumed_is_as_if_undisturbed)
rounding=(-p rounding "${elsewhere[@]}")
avx2=(ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2)

# run "VARIABLE=value ..." [pytest options]
run() {
    echo "== $*"
    # shellcheck disable=SC2086 # the variables are words
    env PYTHONPATH=tests OMP_WAIT_POLICY=PASSIVE $1 .venv/bin/python -m pytest -q -m "not slow" "${@:2}" "${tests[@]}"
}

if [[ ${1:-} == --quick ]]; then
    run "${avx2[*]} OMP_NUM_THREADS=1 ROUNDING=1" "${rounding[@]}"
    exit
fi
for threads in 1 2; do
    run "OMP_NUM_THREADS=$threads"
    run "${avx2[*]} OMP_NUM_THREADS=$threads"
    run "ATEN_CPU_CAPABILITY=default ONEDNN_MAX_CPU_ISA=SSE41 MKL_ENABLE_INSTRUCTIONS=SSE4_2 OMP_NUM_THREADS=$threads"
    run "OMP_NUM_THREADS=$threads ROUNDING=$threads" "${rounding[@]}"
done
