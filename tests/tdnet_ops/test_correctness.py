"""Every sample, by every way to call an operator, against the definition in float64."""

import pytest
import samples


@pytest.mark.parametrize("route", samples.ROUTES)
@pytest.mark.parametrize("sample", samples.SAMPLES, ids=str)
def test_sample_is_right(sample, route):
    samples.check(sample, samples.ROUTES[route](sample.operator))
