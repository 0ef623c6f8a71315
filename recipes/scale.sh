# How many devices a recipe runs on, sourced by the run scripts. SCALE=one_gpu, one_node (default) or many_nodes sets these
# knobs, each of which can be set by itself.
case "${SCALE:=one_node}" in
    one_gpu)
        : "${NNODES:=1}" "${N_GPUS_PER_NODE:=1}" "${ROLLOUT_TP:=1}"
        if [[ $MODEL_SIZE == 7B ]]; then
            # Weights, gradients and optimizer of 7B, 120 GB in float32, stay in the memory of the machine.
            : "${OFFLOAD:=False}" "${OFFLOAD_POLICY:=True}"
        else
            : "${OFFLOAD:=True}" "${OFFLOAD_POLICY:=False}"
        fi
        ;;
    one_node)
        : "${NNODES:=1}" "${N_GPUS_PER_NODE:=8}" "${OFFLOAD:=False}" "${OFFLOAD_POLICY:=False}"
        ;;
    many_nodes)
        # Ray runs on every node already: `ray start --head` on one, `ray start --address=HEAD:6379` on the others. veRL
        # joins it by RAY_ADDRESS. rpo-verl is installed on all of them, and RUN_DIR is on a file system that they share.
        : "${NNODES:=4}" "${N_GPUS_PER_NODE:=8}" "${OFFLOAD:=False}" "${OFFLOAD_POLICY:=False}"
        export RAY_ADDRESS=${RAY_ADDRESS:?SCALE=many_nodes: set RAY_ADDRESS=HEAD:6379, where Ray listens}
        ;;
    *)
        echo "SCALE=$SCALE: must be one_gpu, one_node or many_nodes" >&2
        exit 1
        ;;
esac
