# How many devices a recipe runs on; sourced by the run scripts. SCALE=one_gpu, one_node (default) or many_nodes, or set
# the knobs one by one.
case "${SCALE:=one_node}" in
    one_gpu)
        : "${NNODES:=1}" "${N_GPUS_PER_NODE:=1}" "${OFFLOAD:=True}" "${ROLLOUT_TP:=1}"
        ;;
    one_node)
        : "${NNODES:=1}" "${N_GPUS_PER_NODE:=8}" "${OFFLOAD:=False}"
        ;;
    many_nodes)
        # Ray runs on every node already: `ray start --head` on one, `ray start --address=HEAD:6379` on the others. veRL
        # joins it by RAY_ADDRESS. rpo-verl has to be installed on all of them.
        : "${NNODES:=4}" "${N_GPUS_PER_NODE:=8}" "${OFFLOAD:=False}"
        export RAY_ADDRESS=${RAY_ADDRESS:?SCALE=many_nodes: set RAY_ADDRESS=HEAD:6379, where Ray listens}
        ;;
    *)
        echo "SCALE=$SCALE: must be one_gpu, one_node or many_nodes" >&2
        exit 1
        ;;
esac
