#!/bin/bash
# Workers of one search on a SLURM cluster: an array job, each task one worker on one GPU. It goes on with a search that
# was stopped: submit it again. The study is in PostgreSQL (pip install 'timm_ktg[postgres]'); weights travel by S3, or by
# a folder that all nodes share.
#   sbatch --export=ALL,STORAGE=postgresql://user:password@host/database recipes/cluster/slurm.sh cifar100/search-4
#SBATCH --job-name=timm_ktg
#SBATCH --array=0-29
#SBATCH --ntasks=1
#SBATCH --cpus-per-task=4
#SBATCH --gpus-per-task=1
#SBATCH --time=24:00:00
#SBATCH --signal=INT@60
#SBATCH --output=timm_ktg-%A-%a.log
set -eu
srun accelerate launch --num_processes 1 --num_machines 1 -m timm_ktg.search "$@" \
  --search.storage "$STORAGE" \
  --search.artifacts "${ARTIFACTS:-$HOME/timm_ktg-artifacts}" \
  --output-dir "runs/$(echo "$1" | tr / -)/worker-$SLURM_ARRAY_TASK_ID"
