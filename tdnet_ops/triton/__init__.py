"""Triton kernels: a file an operator, named as it is, whose function of that name fills in results.

For GPUs of other makers, for machines that cannot compile CUDA, and for those who want to change a
kernel in Python. They are `torch.ops.tdnet_triton.*`; `tdnet_ops.backends` chooses them. Under
TRITON_INTERPRET=1, set before tdnet_ops is imported, they take CPU tensors.

    shared/   what several kernels are made of, and how one is launched
    tuning/   the tile sizes they run in, and the command that finds them
"""
