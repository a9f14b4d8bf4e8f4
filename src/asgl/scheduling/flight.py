"""A step between its plan and its commit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from asgl.plan import SampledToken, StepPlan
from asgl.scheduling.plan_builder import Row
from asgl.scheduling.request import Request


class Flight:
    """What the scheduler keeps of a step in flight. From now until `land`, what it samples is
    pending."""

    def __init__(self, plan: StepPlan, rows: list[Row]) -> None:
        self.rows = rows
        """In the plan's order."""
        self.decodes = plan.decode_rows
        self.slots = plan.slots
        """Those that the step writes."""
        self.places: Mapping[int, int] = {
            sample.request_id: place for place, sample in enumerate(plan.samples)
        }
        """Which of the step's samples is that of which request, by id."""
        self.leaving: list[Request] = []
        """Requests that ended meanwhile: their slots are free when the step has returned."""
        self._sampled = [row.request for row in rows if row.request.id in self.places]
        for request in self._sampled:
            request.pending += 1

    def land(self, samples: Sequence[SampledToken]) -> dict[int, SampledToken]:
        """The step has returned: its samples, by the ids of their requests."""
        for request in self._sampled:
            request.pending -= 1
        return {number: samples[place] for number, place in self.places.items()} if samples else {}
