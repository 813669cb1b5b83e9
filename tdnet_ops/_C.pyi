version: str
torch_target: str
cuda_architectures: str
cuda_status: str
compiler: str
cpu_compiled: str
cpu_in_use: str
cuda_most_partials: int
