"""The threads of numpy's products."""

from __future__ import annotations

import pytest

from skdeploy.quant import blas
from skdeploy.quant.blas import one_thread


def test_products_take_one_thread_inside_and_as_many_as_before_after_it() -> None:
    calls = blas._calls()
    if calls is None:
        pytest.fail("numpy's wheels carry an OpenBLAS, but none of its functions was found")
    threads, use = calls
    given = threads()
    use(2)
    try:
        with one_thread() as done:
            assert done
            assert threads() == 1
        assert threads() == 2
    finally:
        use(given)


def test_another_library_goes_on_as_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "NAMES", ("no_such_{}",))
    with one_thread() as done:
        assert not done
