"""No setting of a recipe changed unnoticed, nor how it is saved: what is saved names folders and stages of runs.

When a change is meant to: `python tests/golden/test_recipe_settings.py` writes the file anew; review its diff.
"""

import hashlib
import json
from pathlib import Path

import pytest

from jobs.recipes import RECIPES, recipe
from pipeline.config import RunConfig, flatten

FILE = Path(__file__).parent / "recipes.json"


def prints(name: str) -> list[str]:
    """Hashes of the recipe's settings as they are made, as they are read back, and as their leaves by dotted key."""
    made, read = RECIPES[name]().to_dict(), recipe(name).to_dict()
    return [hashlib.sha256(json.dumps(tree).encode()).hexdigest()[:16] for tree in (made, read, flatten(read))]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_saved_as_ever(name: str) -> None:
    assert prints(name) == json.loads(FILE.read_text())[name]
    assert RunConfig.from_dict(json.loads(json.dumps(RECIPES[name]().to_dict()))) == recipe(name)


def test_every_recipe_is_in_the_file() -> None:
    assert list(json.loads(FILE.read_text())) == list(RECIPES)


if __name__ == "__main__":
    rows = [f"{json.dumps(name)}: {json.dumps(prints(name))}" for name in RECIPES]
    FILE.write_text("{\n" + ",\n".join(rows) + "\n}\n")
