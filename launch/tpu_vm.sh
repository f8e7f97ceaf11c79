#!/bin/bash
# A run on all hosts of a TPU slice, each of which finds the others by itself.
#   TPU=my-slice ZONE=us-east5-a WORKDIR=/mnt/shared/runs/e2b launch/tpu_vm.sh
# WORKDIR must be one folder for all hosts: a mounted disk (Filestore, or a bucket through gcsfuse).
set -euo pipefail

run="cd ~/hybrid && python train.py --config=configs/gemma4.py:e2b --workdir=$WORKDIR \
  --config.mesh.fsdp=-1 --config.mesh.data=1 --config.distributed.coordinator=auto"

gcloud compute tpus tpu-vm ssh "$TPU" --zone="$ZONE" --worker=all --command="$run"
