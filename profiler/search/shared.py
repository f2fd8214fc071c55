"""What a search and the rest of the program must agree on: how its own records are told apart from those of the final."""

from __future__ import annotations

FIRST_RACE_GROUP = 1000
"""Groups from here on belong to looks of the race, `LOOK_GROUPS` to each; the final's are below."""
LOOK_GROUPS = 100
SCREENING = "screening/"
"""Before a quality key: an evaluation on screening rows."""
