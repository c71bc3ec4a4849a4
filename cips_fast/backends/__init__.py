"""How the operations of `functional` and `synthesis` are computed, and which backend computes them.

    choice.py          which backend computes an operation on given tensors
    triton_ops.py      the kernels of single layers and of the encoding as PyTorch operators
    cpu_ops.py         a layer and the encoding on a CPU as PyTorch operators
    network_ops.py     a whole network as PyTorch operators, on either backend
    triton_network.py  a whole network by the kernels
    cpu_layer.py       the arithmetic of a layer on a CPU
    cpu_encoding.py    the arithmetic of the encoding on a CPU
    cpu_network.py     a whole network on a CPU, forward and backward, in chunks of pixels
    threads.py         independent pieces of work on a CPU, one per thread
    chunks.py          how pixels are divided so that their number does not change the last bits
    autograd.py        saved tensors, and second derivatives through the reference formulas
    autocast.py        which dtype autocast asks for, and how to switch it off
    torch_private.py   the private names of PyTorch that this package uses

`cips_fast.reference` is the specification that all of them are tested against.
"""
