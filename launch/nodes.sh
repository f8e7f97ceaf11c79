#!/bin/bash
# A run on GPU nodes that nothing but ssh joins: launch/nodes.sh node0 node1 ...
# One process a node with all its GPUs. A Ctrl-C here reaches one of them, and all save and stop.
set -euo pipefail

workdir=${WORKDIR:-/shared/runs/e2b}
port=${PORT:-1234}
index=0
for node in "$@"; do
  ssh -tt "$node" "cd ~/hybrid && python train.py \
    --config=configs/gemma4.py:e2b --workdir=$workdir \
    --config.mesh.data=1 --config.mesh.fsdp=-1 \
    --config.distributed.coordinator=$1:$port \
    --config.distributed.num_processes=$# \
    --config.distributed.process_id=$index" &
  index=$((index + 1))
done
wait
