"""Triton kernels of the per-pixel layers and of whole networks. Nothing in this folder imports the rest of cips_fast.

Kernels: every file holds the kernels, the functions that launch them, and the formulas.

    fourier.py        coordinates to the first layer's input, [sin(F c + φ); E(c)], and gradients of F, φ, c
    embedding.py      bilinear read of the embedding table, and its gradients
    modulate.py       weights modulated by a style, and their gradients
    mod_fc.py         one layer for every pixel, forward; says why only lrelu is fused
    mod_fc_bwd.py     its gradients
    mod_fc_mixed.py   one layer with pixel styles, forward
    stack.py          a whole network in one launch, for inference
    stack_narrow.py   the same with all activations on chip, up to 128 channels
    stack_plan.py     the list of layers that these two kernels read
    layered.py        a whole network layer by layer, forward and backward, in chunks of pixels
    dispatch.py       inference in one launch or layer by layer, whichever is faster

What they need:

    network.py        the parameters of a whole network as plain tensors    (shared, needs no Triton)
    formulas.py       the numbers in the formulas: slope, gain, epsilon     (shared, needs no Triton)
    cache.py          the path of the package's cache folder                (shared, needs no Triton)
    chips.py          one record per GPU: its limits and its data sheet; how each dtype is multiplied
    tiles.py          tables of tiles by architecture, and how work is split
    autotune.py       measures which tiles are fastest on this GPU
    device.py         the one function that launches kernels: on a GPU, in the interpreter, on a stand-in

Commands that need no GPU:

    report/           python -m cips_fast.kernels.report: what every kernel uses, and the least time for its work
    limits.py         python -m cips_fast.kernels.limits: the most registers, stack and shared memory per target

A new chip is a record in chips.py and a table in tiles.py. A new dtype is an entry of `chips.DTYPES`, with a rate in
`Chip` and a table in tiles.py if it is multiplied in a new way.
"""
