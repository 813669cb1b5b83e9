from tdnet.architectures import MODELS
from tdnet.models import table
from tdnet.models.table import Cost, cost, markdown


def test_costs_are_those_of_the_parts():
    single = cost(MODELS["bisenet-18"], (128, 256))
    assert single.ahead == 0
    # 13.2 M parameters; the head's first convolution alone is 2 * 9 * 256 * 256 at 16 x 32.
    assert 13e6 < single.parameters < 14e6
    assert single.frame > 2 * 9 * 256 * 256 * 16 * 32
    temporal = cost(MODELS["td4-bise18"], (128, 256))
    attention = 2 * (16 * 32) * (4 * 8) * (64 + 128)
    assert 0 < temporal.ahead < attention + temporal.frame
    assert cost(MODELS["td4-bise18"], (256, 256)).frame > 1.9 * temporal.frame


def test_the_table_has_a_row_a_model_and_the_papers_numbers(monkeypatch):
    monkeypatch.setattr(table, "cost", lambda config, size: Cost(52_800_000, size[0], size[1]))
    header, _, *rows = markdown((10**10, 2 * 10**9)).splitlines()
    assert len(rows) == len(MODELS)
    assert {row.count("|") for row in rows} == {header.count("|")}
    assert rows[0] == "| `td4-psp18` | 52.8 | 10 | 2.0 | 76.8, 85 | 72.6, 40 |"
