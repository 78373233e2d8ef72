"""Feeds the progress view from a run: a snapshot whenever something changed, never more than the view can take."""

from __future__ import annotations

import asyncio
from typing import Literal, TextIO, cast

from controller.delivery.run import Run
from controller.progress import Progress, Snapshot

REFRESH_S = 0.2


class Display:
    """The progress view of one run."""

    def __init__(self, run: Run, stream: TextIO, estimate_s: float | None) -> None:
        layers = sum(len(field.layers) for field in run.plan.fields)
        spots = sum(
            sum(1 for meterset in layer.meterset if meterset > 0) * layer.paintings
            for field in run.plan.fields
            for layer in field.layers
        )
        self._run = run
        self._estimate_s = estimate_s
        self._start_s = asyncio.get_running_loop().time()
        self._progress = Progress(stream, fields=len(run.plan.fields), layers=layers, spots=spots)
        run.on_change = self.update

    async def refresh(self) -> None:
        """Show the run as it is, again and again, until cancelled: spots and beam change without news for asyncio."""
        while True:
            await asyncio.sleep(REFRESH_S)
            self.update()

    def update(self) -> None:
        """Show the run as it is now."""
        run = self._run
        tally = run.tally
        index = max(0, tally.field_index)
        field = run.plan.fields[index]
        elapsed_s = asyncio.get_running_loop().time() - self._start_s
        left_s = None if self._estimate_s is None else max(0.0, self._estimate_s - elapsed_s)
        self._progress.update(
            Snapshot(
                state=run.state.value,
                field_name=field.name,
                field_index=index,
                layer_index=max(0, tally.layer_index),
                layers_in_field=len(field.layers),
                energy_mev_u=tally.energy_mev_u,
                spots_done=tally.visits_done,
                mu_primary=tally.meterset_1,
                mu_secondary=tally.meterset_2,
                mu_planned=tally.meterset_planned,
                beam=cast(Literal["on", "off", "hold"], run.beam),
                elapsed_s=elapsed_s,
                left_s=left_s,
                trips=tuple(trip.id for trip in run.latch.history),
                unit=field.unit,
            )
        )

    def close(self) -> None:
        """Show the end."""
        self.update()
        self._progress.close()
