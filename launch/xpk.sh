#!/bin/bash
# The same through XPK, which writes the JobSet: CLUSTER=my-cluster launch/xpk.sh
set -euo pipefail

run="cd /hybrid && python train.py --config=configs/gemma4.py:31b --workdir=/shared/runs/31b \
  --config.mesh.data=1 --config.mesh.fsdp=-1 --config.distributed.coordinator=auto"

xpk workload create --cluster="$CLUSTER" --workload=hybrid --tpu-type=v5p-128 --num-slices=1 \
  --docker-image=hybrid:latest --max-restarts=10 --command="$run"
