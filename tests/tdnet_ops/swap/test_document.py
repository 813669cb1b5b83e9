"""The code of docs/swap.md runs."""

import re
from pathlib import Path

import paper_blocks
import torch
from torch import nn

from tdnet_ops.swap import swap

DOCUMENT = Path(__file__).resolve().parents[3] / "docs" / "swap.md"


class MyAttention(paper_blocks.PositionAttention):
    def __init__(self, channels, dropout=0.0):
        super().__init__(channels)
        self.dropout = dropout


def test_its_code_runs(capsys):
    first, second = re.findall(r"```python\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    paper_blocks.register_all()
    model = nn.Sequential(paper_blocks.PositionAttention(8))
    images = torch.randn(1, 8, 9, 7)
    names = {"model": model, "images": images}
    exec(first, names)
    told = capsys.readouterr().out
    assert " MiB" in told
    torch.testing.assert_close(names["model"](images), model(images))

    exec(second, {"MyAttention": MyAttention})
    _, report = swap(nn.Sequential(MyAttention(8), MyAttention(8, 0.5)))
    assert [entry.refusal for entry in report.entries] == [None, "dropout on the affinity"]


def test_it_names_every_known_block():
    from tdnet_ops.swap.blocks import KNOWN_BLOCKS

    for known in KNOWN_BLOCKS:
        name = known.paths[0].rpartition(".")[2]
        assert f"`{name}`" in DOCUMENT.read_text(), name
