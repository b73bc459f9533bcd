# shellcheck shell=bash disable=SC2034
# Sourced by the scripts beside it: the names of each TPU generation in Google's tools. The
# generations are those that `--topology` of ddae_jax.compile_check knows.

# Chips per host in a slice with several hosts, the same in every generation.
chips_per_host=4
# Number of sides of a slice (cloud.google.com/tpu/docs, the page of each generation).
declare -A sides=([v4]=3 [v5e]=2 [v5p]=3 [v6e]=2)
# Accelerator types are PREFIX-N. N counts chips for v5e and v6e, and TensorCores, of which each chip
# has two, for v4 and v5p (the same pages).
declare -A accelerator_prefix=([v4]=v4 [v5e]=v5litepod [v5p]=v5p [v6e]=v6e)
# cloud.google.com/tpu/docs/runtimes, for JAX.
declare -A runtime_version=(
  [v4]=tpu-ubuntu2204-base [v5e]=v2-alpha-tpuv5-lite [v5p]=v2-alpha-tpuv5 [v6e]=v2-alpha-tpuv6e
)
# Node label cloud.google.com/gke-tpu-accelerator
# (cloud.google.com/kubernetes-engine/docs/concepts/plan-tpus).
declare -A gke_accelerator=(
  [v4]=tpu-v4-podslice [v5e]=tpu-v5-lite-podslice [v5p]=tpu-v5p-slice [v6e]=tpu-v6e-slice
)
