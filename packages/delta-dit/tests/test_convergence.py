"""Two cheap differences tell how far images are from the exact ones, and that some never come near."""

import pytest

from delta_dit.planning.convergence import Convergence


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("c", [1e-3, 3.0])
def test_the_order_of_a_solver_is_found(order, c):
    exact = 0.7
    images = {steps: exact + c * steps**-order for steps in (10, 20, 40)}
    half, whole = ((images[steps] - images[40]) ** 2 for steps in (10, 20))
    found = Convergence.of(20, half, whole)
    assert found.exists and found.p == pytest.approx(order)
    for steps in (8, 20, 50):
        assert found.error(steps) == pytest.approx((c * steps**-order) ** 2)


@pytest.mark.parametrize(("half", "whole"), [(0.04, 0.04), (0.01, 0.04), (0.042, 0.04), (0.0, 0.0)])
def test_images_that_do_not_come_nearer_have_no_exact_one(half, whole):
    assert not Convergence.of(4, half, whole).exists
