"""What kernels use and the least time that they take, from their compiled code and data sheets. Needs no GPU.

__main__.py               the command: python -m cips_fast.kernels.report
workload.py               the launches that are analysed: a generator at 256²
ledger.py                 records launches of kernels and of PyTorch's operators; what the last cache holds
cost.py                   operations and bytes of one launch, from its arguments
compile.py                compiles a launch for a named architecture: registers, stack, shared memory, instructions
disassembly.py            counts instructions by kind in compiled code
occupancy.py              how many programs of a kernel a processor holds
per_kernel.py             the report on one launch
per_image.py              the totals of one image
printing.py               both as tables for a terminal
published_formulation.py  the published formulation in PyTorch, which the totals and benchmarks compare with
"""
