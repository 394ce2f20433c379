"""Which servers of one database live: each raises a number of its own, and the others watch whether it moves.

No clock is compared with another machine's or with itself before a jump: a process is dead to an observer who has seen
its number stand still for the length of a lease, by a clock that only goes forwards.
"""

from collections.abc import Callable

from sqlalchemy import Connection, delete, insert, select, update

from qwen3vl_compat.accounts.tables import ledger, processes

_REMEMBERED_S = 86_400.0
"""How long a process without a row is known to be dead: its kept replies may be asked for."""


class Heartbeat:
    """This process's own beat, and what it has seen of the others'."""

    def __init__(self, owner: str, lease: float, ticks: Callable[[], float]) -> None:
        """`lease` and `ticks` are in seconds; `ticks` never goes backwards."""
        self.owner, self._lease, self._ticks = owner, lease, ticks
        self._seen: dict[str, tuple[int | None, float]] = {}
        self._looked = ticks()
        self._leaving: frozenset[str] = frozenset()
        """Those that have a row in `processes` or open ones in the ledger: what a dead one leaves to do."""

    def beat(self, connection: Connection, now_ms: int) -> None:
        """Say that this process lives, and look at the others."""
        mine = update(processes).where(processes.c.id == self.owner).values(beat=processes.c.beat + 1)
        if not connection.execute(mine).rowcount:
            connection.execute(insert(processes).values(id=self.owner, beat=1, started_at=now_ms))
        beats = {row.id: row.beat for row in connection.execute(select(processes.c.id, processes.c.beat))}
        owners = connection.execute(select(ledger.c.owner).where(ledger.c.state == "open").distinct()).scalars()
        self._leaving = frozenset(leaving := {*beats, *owners} - {self.owner})
        now = self._ticks()
        # Who could not look for a while cannot know who was still: the database was away, or this process slept.
        blind = now - self._looked > self._lease / 2
        self._looked = now
        seen: dict[str, tuple[int | None, float]] = {}
        for owner in leaving | self._seen.keys():
            beat = beats.get(owner)
            before = self._seen.get(owner)
            still = before is not None and beat in (before[0], None) and not blind
            seen[owner] = (beat, before[1] if before is not None and still else now)
        self._seen = {
            owner: (beat, since)
            for owner, (beat, since) in seen.items()
            if beat is not None or now - since < _REMEMBERED_S
        }

    def alive(self, owner: str) -> bool:
        """Whether a process was heard of at the last look; one never heard of gets the length of a lease to be."""
        if owner == self.owner:
            return True
        _, since = self._seen.setdefault(owner, (None, self._ticks()))
        return self._looked - since < self._lease

    @property
    def dead(self) -> list[str]:
        """Those whose number has stood still for a lease, and who have left something."""
        return [owner for owner in self._leaving if not self.alive(owner)]

    @property
    def living(self) -> int:
        """How many processes serve, this one among them."""
        return 1 + sum(1 for owner, (beat, _) in list(self._seen.items()) if beat is not None and self.alive(owner))

    def is_still(self, connection: Connection, owner: str) -> bool:
        """Whether a dead process has not moved since it was looked at."""
        beat = connection.execute(select(processes.c.beat).where(processes.c.id == owner)).scalar()
        return beat is None or beat == self._seen.get(owner, (None, 0.0))[0]

    def bury(self, connection: Connection, owner: str) -> None:
        """Forget a dead process, unless it has moved after all."""
        beat, _ = self._seen.get(owner, (None, 0.0))
        connection.execute(delete(processes).where(processes.c.id == owner, processes.c.beat == beat))

    def leave(self, connection: Connection) -> None:
        """End this process's own beat."""
        connection.execute(delete(processes).where(processes.c.id == self.owner))
