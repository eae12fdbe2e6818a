"""A child that is forked while a thread of its parent holds a lock must be able to probe."""

from __future__ import annotations

from tests.support.forks import run_in_fork

IMPORTS = """
from proxyhealth.probing import addresses, deadline, tls, turns
"""

HELD_AND_USED = {
    "TLS context": ("tls._build_lock.value.acquire()", "assert tls.tls_context('')"),
    "look-ups": (
        "[addresses._free_look_ups.value.acquire() for _ in range(addresses.MAX_LOOK_UPS)]",
        "assert addresses.look_up('localhost', 80, deadline.Deadline(5))",
    ),
    "turn to work": (
        "turns.Turn(turns.turns.value).__enter__()",
        "with turns.Turn(turns.turns.value) as turn: turns.turns.value.next.acquire()",
    ),
}


def test_fork__while_a_thread_holds_the_locks() -> None:
    # In one process, because each start takes a second. Its output names the use that hangs or fails.
    named = (f"print({name!r}, file=sys.stderr)\n{use}" for name, (_, use) in HELD_AND_USED.items())
    run_in_fork(IMPORTS, hold="\n".join(hold for hold, _ in HELD_AND_USED.values()), child="\n".join(named))
