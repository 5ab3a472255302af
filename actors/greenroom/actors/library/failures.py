"""Remembers pulls that failed, so that repeated requests are refused without asking the source again.

Each pull that begins and fails makes two events, and programs may request a missing model several times a
second. So after a few failures in a row a reference is asked of its source less and less often, and one
caller may have only so many failing pulls a minute; other callers are not affected. Losing this memory with
the actor does no harm.
"""

from __future__ import annotations

from collections.abc import Mapping

import msgspec
from msgspec.structs import replace

from greenroom.actors.kernel.clock import Moment
from greenroom.actors.kernel.core import refuse
from greenroom.actors.kernel.errors import Refusal

FREE = 3
"""Failures in a row that are still followed by an immediate retry."""
LONGEST = 60.0
"""Longest pause, in seconds, during which the last error is repeated."""
A_MINUTE = 30
"""Failed pulls that one caller may have within a minute."""
_TOGETHER = 120
"""Failed pulls of all callers within a minute, beyond which no caller may have another."""
_REMEMBERED = 256
_FORGOTTEN = 600.0
"""Seconds after which a failure no longer counts as one in a row."""


class Failed(msgspec.Struct, frozen=True, kw_only=True):
    times: int
    at: float
    """Monotonic second of the last."""
    refusal: Refusal


class Failures(msgspec.Struct, frozen=True, kw_only=True):
    """Recent failures: of each reference, and when each caller had one."""

    by_reference: Mapping[str, Failed] = msgspec.field(default_factory=dict)
    """The newest last."""
    recent: tuple[tuple[str, float], ...] = ()
    """(caller, monotonic second), the newest last."""

    def failed(self, reference: str, refusal: Refusal, caller: str, now: Moment) -> Failures:
        known = self.by_reference.get(reference)
        again = known is not None and now.monotonic - known.at < _FORGOTTEN
        times = known.times + 1 if known is not None and again else 1
        others = {one: known for one, known in self.by_reference.items() if one != reference}
        kept = dict(list(others.items())[-(_REMEMBERED - 1) :])
        kept[reference] = Failed(times=times, at=now.monotonic, refusal=refusal)
        return replace(self, by_reference=kept).came_to_nothing(caller, now)

    def came_to_nothing(self, caller: str, now: Moment) -> Failures:
        """A pull has ended without a model; also if it was cancelled."""
        recent = (*self.recent, (caller, now.monotonic))
        return replace(self, recent=recent[-2 * _TOGETHER :])

    def succeeded(self, reference: str) -> Failures:
        if reference not in self.by_reference:
            return self
        kept = {one: known for one, known in self.by_reference.items() if one != reference}
        return replace(self, by_reference=kept)

    def answer(self, reference: str, caller: str, now: Moment, *, has_changed: bool) -> Refusal | None:
        """Why a pull is not worth beginning; None if it is.

        `has_changed`: something differs from the last try, such as a token.
        """
        late = [(who, at) for who, at in self.recent if now.monotonic - at < 60.0]
        own = [at for who, at in late if who == caller]
        if own and (len(own) >= A_MINUTE or len(late) >= _TOGETHER):
            left = own[-A_MINUTE:][0] + 60.0 - now.monotonic
            return replace(
                refuse(
                    "too_many_failures",
                    f"{len(own)} of your pulls failed within the last minute.",
                    advice="Check the names of the models; see which pulls failed: greenroom log",
                    kind="exhausted",
                ),
                retry_after=left,
            )
        known = self.by_reference.get(reference)
        if known is None or known.times < FREE or has_changed:
            return None
        wait = min(LONGEST, 2.0 ** (known.times - FREE))
        left = known.at + wait - now.monotonic
        if left <= 0:
            return None
        again = f"It has failed {known.times} times in a row; the next try is in {left:.0f}s."
        return replace(
            known.refusal,
            advice=f"{known.refusal.advice.rstrip('.')}. {again}" if known.refusal.advice else again,
            retry_after=left,
        )
