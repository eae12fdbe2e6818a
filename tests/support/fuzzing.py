"""Random input by Hypothesis, which reduces an input that fails to a small one."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from io import StringIO
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st

Edit = tuple[int, int, bytes]  # the place, the number of bytes to delete there, and the bytes to insert


def findings_of(check: Callable[..., None], *inputs: Any, seed: int, count: int) -> Iterator[str]:
    """Call ``check`` with ``count`` random inputs. Yield a small input, and the error, for each failure.

    The same seed produces the same inputs.
    """

    def test(arguments: tuple[Any, ...]) -> None:
        check(*arguments)

    test = hypothesis.seed(seed)(hypothesis.given(st.tuples(*inputs))(test))
    test = hypothesis.settings(
        max_examples=count,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )(test)
    try:
        with redirect_stdout(StringIO()):
            test()
    except Exception as error:
        errors = error.exceptions if isinstance(error, ExceptionGroup) else [error]
        for each in errors:
            place = traceback.extract_tb(each.__traceback__)[-1]
            notes = "\n".join(getattr(each, "__notes__", ()))
            yield f"{each!r:.1000} in {place.filename}:{place.lineno}\n{notes:.4000}"


def edits(*tokens: bytes) -> st.SearchStrategy[list[Edit]]:
    """Return a strategy of changes to some bytes."""
    inserted = st.sampled_from([b"", *tokens]) | st.binary(max_size=2)
    return st.lists(st.tuples(st.integers(0, 1000), st.integers(0, 8), inserted), min_size=1, max_size=4)


def edited(data: bytes, changes: list[Edit]) -> bytes:
    """Return ``data`` with changes."""
    out = bytearray(data)
    for place, deleted, inserted in changes:
        at = place % (len(out) + 1)
        out[at : at + deleted] = inserted
    return bytes(out)
