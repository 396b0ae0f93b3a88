#!/bin/sh
# Several workers of one search on this machine: as many as `WORKERS`, each of `THREADS` threads.
# They find one another through the journal in the search's output directory.
#   WORKERS=2 THREADS=1 sh recipes/cluster/local.sh digits-search [--search.field value ...]
set -eu
pids=""
trap 'kill $pids 2>/dev/null' INT TERM
for _ in $(seq "${WORKERS:-2}"); do
  OMP_NUM_THREADS="${THREADS:-1}" accelerate launch --num_processes 1 --num_machines 1 \
    --mixed_precision no --dynamo_backend no -m timm_ktg.search "$@" &
  pids="$pids $!"
done
status=0
for pid in $pids; do wait "$pid" || status=$?; done
exit "$status"
