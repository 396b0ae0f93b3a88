#!/bin/sh
# Several workers of one search on this machine: as many as `WORKERS`, each of `THREADS` threads.
# They find one another through the journal in the search's output directory.
#   WORKERS=2 THREADS=1 sh recipes/cluster/local.sh digits-search [--search.field value ...]
# The method is a flag like any other: --search.method short_runs
set -eu
pids=""
trap 'kill $pids 2>/dev/null' INT TERM
for _ in $(seq "${WORKERS:-2}"); do
  OMP_NUM_THREADS="${THREADS:-1}" python -m timm_ktg.search "$@" &  # one process, which needs no launcher
  pids="$pids $!"
done
status=0
for pid in $pids; do wait "$pid" || status=$?; done
exit "$status"
