"""What a measure leaves out stands among its run's notes, once."""

from untaxed.measuring import Reading
from untaxed.studies.points import Points


def test_notes_of_a_reading_are_said_once_a_run() -> None:
    points = Points(notes=["earlier"])
    heard = points.notes  # whoever shows the run's warnings holds this list
    reading = Reading(
        {"reward": {}, "abilities": {}, "drift": {}}, {}, [], notes={"abilities.drop": ["too long: 3 of 9 left out"]}
    )
    for step in (1, 2):
        point = {"step": step, "name": f"step-{step}", "variant": None, "phase": None, "weights": None}
        points.put(point, {"validation": reading, "test": reading})
    assert heard == [
        "earlier",
        "abilities.drop, validation: too long: 3 of 9 left out",
        "abilities.drop, test: too long: 3 of 9 left out",
    ]
