"""A module of your own around an operator, under torch.compile and torch.export.

    python examples/compile_and_export.py attention.pt2

The operators are custom operators of torch (`torch.ops.tdnet.*`): a graph holds them as one node,
and a program exported with one size of maps runs with others.
"""

import argparse

import torch
from torch import Tensor, nn

import tdnet_ops

parser = argparse.ArgumentParser()
parser.add_argument("program", help="name of the program that is written, such as attention.pt2")
arguments = parser.parse_args()


class PooledSelfAttention(nn.Module):
    """Every position of a map attends to the map pooled over stride x stride windows."""

    def __init__(self, channels: int, key_channels: int = 64, stride: int = 4) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, key_channels, 1)
        self.key = nn.Conv2d(channels, key_channels, 1)
        self.phi = nn.Linear(channels, channels)
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        k = tdnet_ops.spatial_pool(self.key(x), self.stride)
        v = tdnet_ops.spatial_pool(x, self.stride)
        return tdnet_ops.attention_propagate(
            self.query(x), k, v, residual=x, weight=self.phi.weight, bias=self.phi.bias
        )


torch.manual_seed(0)
module = PooledSelfAttention(channels=128).eval()
maps = torch.randn(1, 128, 32, 64).to(memory_format=torch.channels_last)
larger = torch.randn(1, 128, 40, 96).to(memory_format=torch.channels_last)

with torch.no_grad():
    compiled = torch.compile(module, fullgraph=True)  # fullgraph: a graph break would be an error
    print(f"compiled, largest difference: {(compiled(maps) - module(maps)).abs().max():.1e}")

    # Height and width may be others when the program runs.
    sizes = {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    program = torch.export.export(module, (maps,), dynamic_shapes=(sizes,))
    torch.export.save(program, arguments.program)

    # In another process: `import tdnet_ops` gives the operators to torch, the class is not needed.
    loaded = torch.export.load(arguments.program).module()
    print(f"exported, largest difference: {(loaded(larger) - module(larger)).abs().max():.1e}")
operators = {str(node.target) for node in program.graph.nodes if "tdnet" in str(node.target)}
print(f"nodes of the graph: {', '.join(sorted(operators))}")
