"""A request costs a real API process at most a constant times its size, whatever it is made of (I3)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import request_costs
from tests.request_costs import LIVEZ_S

BYTES = 200 * 1024  # below the limits on values, which refuse larger ones early


@pytest.mark.slow
@pytest.mark.alone
def test_I3_no_request_costs_more_than_it_is_worth(tmp_path: Path) -> None:
    with request_costs.api(tmp_path) as service:
        costs = list(request_costs.walk(service, [BYTES], fields=1))
        routes = {cost.route for cost in costs}
    assert {"POST /predict", "POST /datasets", "POST /jobs", "PUT /weights/{name}"} <= routes
    assert [cost for cost in costs if cost.status >= 500 and cost.status != 503] == []
    assert [cost for cost in costs if cost.memory_ratio > 1 or cost.cpu_ratio > 1] == []
    assert [cost for cost in costs if cost.livez_s > LIVEZ_S] == []
