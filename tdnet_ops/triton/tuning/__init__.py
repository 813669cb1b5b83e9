"""Which tile sizes a kernel runs in: the table, and `python -m tdnet_ops.triton.tuning.tune`."""
