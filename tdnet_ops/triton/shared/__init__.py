"""What the kernels of several operators are made of, and how one is launched."""
