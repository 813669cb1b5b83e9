"""How `tdnet_ops._C` is built: find torch, decide about CUDA, compile; and the pip backend."""
