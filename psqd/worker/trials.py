"""Who is suspected to kill workers runs apart from all others, and only who dies alone is convicted.

A worker that dies is a strike for every task that had started, most of which
did nothing but run beside the killer. So strikes alone convict nobody. A task
that one more would make a dead letter runs in another process:

    it was the last to start in a worker that died: in one where it is alone
    it was not: in another one, with others like it; if that one dies, each
    of them is tried alone

If a process dies that has run nothing but this task, there was nobody else.
Where the kernel may have ended it for memory, that is believed the second time:
it ends such a process first, whoever has taken the memory. An innocent task just
runs there. A conviction explains the deaths that the convicted was struck for:
they count against nobody else any more.
"""

from __future__ import annotations

import logging
import socket
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from psq.brokers.base import Delivery
from psq.message import Message
from psqd.keeper.worker_process import Ended
from psqd.worker.held import Held
from psqd.worker.outcome import Dead, Hold, Interrupted, Outcome
from psqd.worker.suspects import Host, Lane, Process, Suspect
from psqd.worker.trial import outcome_of
from psqd.worker.trial_process import TrialDied, TrialFailed, TrialInterrupted

if TYPE_CHECKING:
    from psqd.worker.steps import Attempt

__all__ = ["Attempt", "Suspect", "Trials"]

#: Most suspects that wait in this worker, and most bytes of their documents; others come again after a pause.
MAX_WAITING, MAX_BYTES = 1000, 16 << 20
#: Most that run together in the process for those that are less suspected.
TOGETHER = 100
#: Pause of those for whom the process can't be had, and of those that are to be tried alone, seconds.
NO_PROCESS_PAUSE, ALONE_PAUSE = 30.0, 0.5
#: Pause of one that may have died for the memory of others, seconds: a worker that takes all is dead by then.
MEMORY_PAUSE = 3.0
#: Deaths that are remembered as explained, and tasks that are to be tried alone or were spared; the oldest go first.
REMEMBERED = 10_000

log = logging.getLogger("psqd")


class Trials:
    """The suspects of one worker, and their trials. All on the hub; only `join` blocks.

    Args:
        held: Takes back what can't be tried here.
        alone: Where one at a time runs, or None: then nobody is suspected.
        together: Where those run that are less suspected; default: they are tried alone, too.

    Attributes:
        convicted: How many have killed the process in which they were alone.
        acquitted: How many have ended without.
    """

    def __init__(self, held: Held, alone: Process | None = None, together: Process | None = None) -> None:
        self._held = held
        self._alone = Lane(alone, 1, self._try_alone, self._adjourn) if alone is not None else None
        self._together = Lane(together, TOGETHER, self._try, self._adjourn) if together is not None else None
        self._lanes = [lane for lane in (self._alone, self._together) if lane is not None]
        self.convicted = self.acquitted = 0
        self._explained: OrderedDict[object, None] = OrderedDict()
        self._accused: OrderedDict[object, None] = OrderedDict()
        self._spared: OrderedDict[object, None] = OrderedDict()

    def is_suspect(self, message: Message, max_strikes: int) -> bool:
        """True for a task that one more strike would make a dead letter."""
        if not max_strikes or self._alone is None:
            return False
        strikes = sum((strike.get("host"), strike.get("at")) not in self._explained for strike in message.strikes)
        return strikes >= max(1, max_strikes - 1)

    def add(self, suspect: Suspect) -> bool:
        """Have one tried, when it is its turn. False: too many wait here."""
        waiting = [one for lane in self._lanes for one in lane.waiting]
        size = sum(len(one.delivery.data) for one in waiting)
        if len(waiting) >= MAX_WAITING or (waiting and size + len(suspect.delivery.data) > MAX_BYTES):
            return False
        message = suspect.attempt.message
        alone = message.id in self._accused or any(strike.get("last") for strike in message.strikes)
        lane = self._alone if alone or self._together is None else self._together
        assert lane is not None
        lane.add(suspect)
        return True

    # taking out

    def take_back(self, host: Host, before: float | None = None) -> list[Delivery]:
        """Take out a queue's suspects that wait.

        Args:
            host: The queue's executor.
            before: Only those that wait since before this monotonic instant, and of them not the most
                suspected, which would only be tried later for it; None: all.
        """

        def out(suspect: Suspect) -> bool:
            if suspect.host is not host:
                return False
            return before is None or (suspect.since < before and not suspect.suspicion()[0])

        return [suspect.delivery for suspect in self._take(out)]

    def discard(self, delivery: Delivery) -> bool:
        """Take one out that waits; False where it does not."""
        return bool(self._take(lambda suspect: suspect.delivery is delivery))

    def waiting(self, host: Host) -> int:
        """How many of a queue wait."""
        return sum(suspect.host is host for lane in self._lanes for suspect in lane.waiting)

    def _take(self, wanted: Callable[[Suspect], bool]) -> list[Suspect]:
        return [suspect for lane in self._lanes for suspect in lane.take(wanted)]

    # trials

    def _try_alone(self, suspect: Suspect) -> Outcome:
        assert self._alone is not None
        process = self._alone.process
        try:
            try:
                return self._acquit(process, suspect)
            except TrialDied as death:
                if death.alone:
                    return self._judge(suspect, death)
            # Another ran there before: what that one left may have killed it.
            process.start(fresh=True)
            return self._acquit(process, suspect)
        except TrialDied as death:
            return self._judge(suspect, death)
        except (TrialInterrupted, TrialFailed) as error:
            return self._undecided(suspect, error)

    def _try(self, suspect: Suspect) -> Outcome:
        assert self._together is not None
        try:
            return self._acquit(self._together.process, suspect)
        except TrialDied as death:
            if death.alone:
                return self._judge(suspect, death)
            _remember(self._accused, suspect.attempt.message.id)
            return Hold(ALONE_PAUSE, "it is to run alone")
        except (TrialInterrupted, TrialFailed) as error:
            return self._undecided(suspect, error)

    def _acquit(self, process: Process, suspect: Suspect) -> Outcome:
        reply = process.run(suspect.request())
        self.acquitted += 1
        return outcome_of(dict(reply))

    def _undecided(self, suspect: Suspect, error: Exception) -> Outcome:
        name, message = suspect.host.name, suspect.attempt.message
        if isinstance(error, TrialFailed):
            log.error(
                "task %s of queue %s can't run in a process of its own, again in %g s: %s",
                message.id,
                name,
                NO_PROCESS_PAUSE,
                error,
            )
            return Hold(NO_PROCESS_PAUSE, str(error))
        log.warning("task %s of queue %s did not end in a process of its own: %s", message.id, name, error)
        return Interrupted()

    def _judge(self, suspect: Suspect, death: TrialDied) -> Outcome:
        """It died alone. For memory that others may have taken: then they, too, die if they go on."""
        message, name = suspect.attempt.message, suspect.host.name
        if not death.memory or message.id in self._spared:
            return self._convict(message, death)
        _remember(self._accused, message.id)
        _remember(self._spared, message.id)
        log.warning(
            "the process in which task %s of queue %s ran was ended for memory, which others may have taken: "
            "it runs once more, in %g s",
            message.id,
            name,
            MEMORY_PAUSE,
        )
        return Hold(MEMORY_PAUSE, "its process was ended for memory")

    def _convict(self, message: Message, death: TrialDied) -> Dead:
        self.convicted += 1
        signal = str(Ended(death.code))
        record = {"signal": signal, "host": socket.gethostname(), "at": time.time()}
        deaths = [*message.strikes, record]
        for strike in message.strikes:
            _remember(self._explained, (strike.get("host"), strike.get("at")))
        for cleared in self._take(lambda one: not self.is_suspect(one.attempt.message, one.limit)):
            cleared.host.again(cleared.delivery)
        text = f"its worker died {len(deaths)} times while it ran, the last time alone, of {signal}"
        return Dead("worker died", text, deaths=deaths)

    def _adjourn(self, lane: Lane, why: str) -> None:
        """There is no process for them: later, or elsewhere."""
        taken = [suspect.delivery for suspect in lane.take(lambda one: True)]
        self._held.park(taken, NO_PROCESS_PAUSE)
        if taken:
            log.error(
                "%d tasks whose workers died wait: the process in which they are to run can't be had: %s",
                len(taken),
                why,
            )

    def renew(self) -> None:
        """The config is another one: who is tried from now on is tried with that."""
        for lane in self._lanes:
            lane.process.renew()

    def dump(self) -> None:
        """Have the processes write their stacks."""
        for lane in self._lanes:
            lane.process.dump()

    # the end

    def interrupt(self, why: str) -> None:
        """End what runs apart; its tasks have not failed. Idempotent."""
        for lane in self._lanes:
            lane.process.interrupt(why)

    def join(self, timeout: float) -> None:
        """Wait for what runs apart, at most `timeout` seconds."""
        deadline = time.monotonic() + timeout
        for lane in self._lanes:
            lane.join(deadline - time.monotonic())

    def close(self) -> None:
        """Let go of the processes, unless they are in use."""
        for lane in self._lanes:
            lane.close()


def _remember(what: OrderedDict[object, None], key: object) -> None:
    what[key] = None
    if len(what) > REMEMBERED:
        what.popitem(last=False)
