#!/usr/bin/env bash
# What a step behind prefixes saves with a 1.5B model, in one command on one NVIDIA GPU (H200 class, Python 3.12,
# PyTorch 2.11, vLLM 0.24.0, veRL 0.9.1):  bash recipes/gpu_check.sh
#
# The tiny reasoner first, then a randomly initialised model of the 1.5B shape: GRPO against RPO with L = 300 and 800.
# Ends with a table and runs/gpu-check-gpu/summary.json. Called again, it keeps the arms that are finished.
# DEVICE=cpu proves the script on a machine without a GPU, with a small shape.
set -euo pipefail

cd "$(dirname "${BASH_SOURCE[0]}")/.."
exec "${PYTHON:-python3}" recipes/gpu_check/check.py --device "${DEVICE:-gpu}" "$@"
