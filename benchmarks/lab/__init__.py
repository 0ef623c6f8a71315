"""The fast lane: reinforcement learning in a plain PyTorch loop, minutes a run on one core.

A step reads in the order of the modules: questions → groups (what a group starts from, its rollouts) → sampler →
batches (dynamic filter) → advantages → update. `training` is the loop, `options` and `methods` say what to train,
`suites` and `runs` train many. The cache, the cuts, the shaping and the credit are the package's own; the advantages
and the policy loss are veRL's. Ideas are tried here; whatever a page claims is run through veRL.
"""
