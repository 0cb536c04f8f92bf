"""The story as a whole: its steps in their order, told once.

It must not know what a step does.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, TextIO

from gateway.demo import proof, troubles
from gateway.demo.processes import DemoFailed, processes
from gateway.demo.scene import Scene
from gateway.demo.telling import Teller

Step = Callable[[Scene], None]
STEPS: Final[tuple[Step, ...]] = (
    troubles.begin,
    troubles.customers_use_it,
    troubles.the_answer_got_lost,
    troubles.stripe_takes_what_it_will_reject,
    troubles.an_event_comes_late,
    troubles.the_meter_is_killed_in_mid_push,
    troubles.stripe_is_away,
    troubles.the_rejection_is_reported,
    troubles.somebody_else_bills_too,
    troubles.whoever_did_it_takes_it_back,
    proof.parity_is_proven,
    proof.stripe_draws_its_invoices,
)


def tell(directory: Path, output: TextIO, steps: Sequence[Step] = STEPS) -> list[str]:
    """Everything that does not agree in the end; empty: all is right. `directory` is empty, and left as it is then."""
    teller = Teller(output, len(steps))
    with processes(directory) as running:
        scene = Scene(running, teller)
        try:
            with teller.telling():
                for step in steps:
                    step(scene)
        except DemoFailed as error:
            scene.wrong.append(str(error))
        finally:
            scene.close()
        teller.ends(scene.rows, scene.wrong)
    return scene.wrong
