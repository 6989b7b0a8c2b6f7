#!/usr/bin/env bash
# The first minutes on a GPU, in stages: bench/gpu.sh RESULTS; gpu_stages.py tells the rest.
exec "${PYTHON:-python3}" "$(dirname "${BASH_SOURCE[0]}")/gpu_stages.py" "$@"
