"""Recipes as files: what is read, and what every mistake is told to be."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import Field, ValidationError, model_validator

from metier.base import config
from metier.base.config import Settings, did_you_mean, find_recipe, load_yaml, parse
from metier.base.errors import ConfigError


class Sft(Settings):
    kind: Literal["sft"]
    name: str
    learning_rate: float = 1e-3
    steps: int = Field(3, gt=0)
    order: Literal["random", "fixed"] = "random"
    mix: str | int = "all"


class Grpo(Settings):
    kind: Literal["grpo"]
    name: str
    steps: int = 2
    splits: tuple[str, ...] = ()


class Budget(Settings):
    low: int = 0
    high: int = 10

    @model_validator(mode="after")
    def _in_order(self) -> Budget:
        if self.low > self.high:
            raise ValueError(f"low ({self.low}) is above high ({self.high}); swap them")
        return self


class Recipe(Settings):
    name: str = "unnamed"
    seed: int = 0
    stages: tuple[Annotated[Sft | Grpo, Field(discriminator="kind")], ...] = Field(min_length=1)
    model: Sft | None = None
    weights: dict[str, float] = Field(default_factory=dict)
    budget: Budget = Budget()
    out: Path = Path("runs")


GOOD = """\
stages:
  - kind: sft
    name: warm
    learning_rate: 5e-4
  - kind: grpo
    name: grpo
    splits: [train, no]
"""


def read(tmp_path: Path, text: str, *overrides: str) -> Recipe:
    path = tmp_path / "recipe.yaml"
    path.write_text(text, encoding="utf-8")
    return load_yaml(path, Recipe, overrides)


def complaint(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text, *overrides)
    return str(caught.value).replace(str(tmp_path / "recipe.yaml"), "recipe.yaml")


def test_a_recipe_is_read_as_people_mean_it(tmp_path: Path) -> None:
    recipe = read(tmp_path, GOOD + "name: 2020-01-01\nweights: {a: 1, b: .inf, c: 0x10, d: 010}\n")
    assert recipe.stages == (
        Sft(kind="sft", name="warm", learning_rate=0.0005),
        Grpo(kind="grpo", name="grpo", splits=("train", "no")),
    )
    assert recipe.name == "2020-01-01"
    assert recipe.weights == {"a": 1.0, "b": math.inf, "c": 16.0, "d": 10.0}


def test_settings_are_frozen(tmp_path: Path) -> None:
    with pytest.raises(ValidationError):
        read(tmp_path, GOOD).seed = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            GOOD.replace("learning_rate", "learning_rat"),
            "recipe.yaml, line 4: unknown key 'stages.0.learning_rat'; did you mean 'learning_rate'? "
            "Valid keys: kind, learning_rate, mix, name, order, steps",
        ),
        (GOOD + "sed: 1\n", "recipe.yaml, line 8: unknown key 'sed'; did you mean 'seed'? Valid keys: "),
        (GOOD + "zzz: 1\n", "recipe.yaml, line 8: unknown key 'zzz'. Valid keys: budget, "),
        (GOOD.replace("5e-4", "many"), "line 4: stages.0.learning_rate: expected a number, got 'many'"),
        (GOOD.replace("5e-4", "'5e-4'"), "expected a number, got '5e-4' as text; remove the quotes"),
        (GOOD + "seed: 1.5\n", "line 8: seed: expected a whole number, got 1.5"),
        (GOOD + "seed: true\n", "line 8: seed: expected a whole number, got true"),
        (GOOD + "name: 7\n", "line 8: name: expected text, got 7"),
        (GOOD + "name:\n", "line 8: name: expected text, got nothing"),
        (GOOD + "model: 3\n", "line 8: model: expected keys and values, got 3"),
        (GOOD + "weights: {a: b}\n", "line 8: weights.a: expected a number, got 'b'"),
        (GOOD.replace("[train, no]", "train"), "line 7: stages.1.splits: expected a list, got 'train'"),
        (GOOD.replace("[train, no]", "[train, 3]"), "line 7: stages.1.splits.1: expected text, got 3"),
        (GOOD.replace("kind: grpo", "kind: gpro"), "line 5: stages.1.kind: unknown kind 'gpro'; did you mean 'grpo'?"),
        (GOOD.replace("kind: grpo\n    ", ""), "line 5: stages.1: the key 'kind' is missing; it is one of grpo, sft"),
        (GOOD.replace("    name: grpo\n", ""), "line 5: the key 'stages.1.name' is missing"),
        ("seed: 1\n", "recipe.yaml: the key 'stages' is missing"),
        ("", "recipe.yaml: the key 'stages' is missing"),
        ("stages: []\n", "line 1: stages: expected at least 1 of them, got an empty list"),
        (GOOD.replace("5e-4", "5e-4\n    steps: 0"), "line 5: stages.0.steps: expected more than 0, got 0"),
        (GOOD.replace("5e-4", "1\n    order: randm"), "expected one of random, fixed, got 'randm'; did you mean 'ran"),
        (GOOD.replace("5e-4", "1\n    mix: [1]"), "stages.0.mix: expected text or a whole number, got a list of 1"),
        (GOOD + "budget: {low: 5, high: 1}\n", "line 8: budget: low (5) is above high (1); swap them"),
        (GOOD + "seed: 1\nseed: 2\n", "line 9: this is not valid YAML: the key 'seed' is given twice, first on line 8"),
        ("a: [1\nb: 2\n", "recipe.yaml, line 2: this is not valid YAML: "),
        ("a:\tb: c\n", "recipe.yaml, line 1: this is not valid YAML: "),
        ("a: \x01\n", "recipe.yaml: this is not valid YAML: "),
        ("- a\n", "recipe.yaml: expected keys and values at the top, got a list of 1"),
        ("x: !!python/object:os.system a\n", "recipe.yaml, line 1: this is not valid YAML: "),
        ("stages: &a [*a]\n", "recipe.yaml: holds a value that settings cannot use"),
    ],
)  # fmt: skip
def test_a_mistake_names_its_place_and_its_remedy(tmp_path: Path, text: str, told: str) -> None:
    assert told in complaint(tmp_path, text)


def test_all_problems_are_told_together(tmp_path: Path) -> None:
    assert complaint(tmp_path, GOOD + "sed: 1\nname: 7\n").splitlines() == [
        "recipe.yaml has 2 problems:",
        "  line 9: name: expected text, got 7",
        "  line 8: unknown key 'sed'; did you mean 'seed'? Valid keys: budget, model, name, out, seed, stages, weights",
    ]


def test_overrides_reach_list_elements_by_name_and_by_number(tmp_path: Path) -> None:
    recipe = read(
        tmp_path, GOOD, "stages.grpo.steps=7", "stages.0.learning_rate=1e-5", "weights.x=1", "out=a/b", "name=a=b"
    )
    assert [s.steps for s in recipe.stages] == [3, 7]
    assert isinstance(recipe.stages[0], Sft)
    assert recipe.stages[0].learning_rate == 1e-5
    assert (recipe.weights, recipe.out, recipe.name) == ({"x": 1.0}, Path("a/b"), "a=b")


@pytest.mark.parametrize(
    ("override", "told"),
    [
        ("seed", "--set takes key.path=value, for instance stages.grpo.steps=3; got 'seed'"),
        ("=3", "--set takes key.path=value"),
        ("stages.gpro.steps=3", "stages has no element 'gpro'; did you mean 'grpo'? Names there: warm, grpo"),
        ("stages.9.steps=3", "stages has no element '9'."),
        ("stages.grpo.stps=3", "recipe.yaml: --set: unknown key 'stages.1.stps'; did you mean 'steps'?"),
        ("seed=many", "recipe.yaml: --set: seed: expected a whole number, got 'many'"),
        ("stages.grpo.name.x=1", "stages.grpo.name is 'grpo', which holds no keys"),
        ("seed=[1", "--set seed=[1, line 1: this is not valid YAML"),
    ],
)
def test_a_wrong_override_says_so(tmp_path: Path, override: str, told: str) -> None:
    assert told in complaint(tmp_path, GOOD, override)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no file"):
        load_yaml(tmp_path / "none.yaml", Recipe)
    with pytest.raises(ConfigError, match="is a folder"):
        load_yaml(tmp_path, Recipe)
    (tmp_path / "latin.yaml").write_bytes(b"name: caf\xe9\n")
    with pytest.raises(ConfigError, match="is not UTF-8 text"):
        load_yaml(tmp_path / "latin.yaml", Recipe)


def test_plain_values_are_checked_the_same_way() -> None:
    assert parse(Budget, {"low": 1}) == Budget(low=1)
    with pytest.raises(ConfigError, match=r"^stage grpo: unknown key 'hihg'; did you mean 'high'\?"):
        parse(Budget, {"hihg": 1}, where="stage grpo")


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(ANY_JSON)
def test_any_value_anywhere_is_refused_by_a_config_error_or_taken(value: object) -> None:
    for data in (
        {"stages": value},
        {"stages": [value]},
        {"stages": [{"kind": value, "name": value}]},
        {"model": value},
    ):
        try:
            parse(Recipe, data)
        except ConfigError as error:
            assert str(error)


def test_a_recipe_is_found_as_a_file_first_then_among_the_packaged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packaged = {"desk": tmp_path / "packaged" / "desk.yaml", "desk-small": tmp_path / "packaged" / "desk-small.yaml"}
    monkeypatch.setattr(config, "packaged_recipes", lambda: packaged)
    monkeypatch.chdir(tmp_path)
    for name in ("desk", "desk.yaml", "recipes/desk.yaml", "./recipes/desk.yaml"):
        assert find_recipe(name) == packaged["desk"]
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "desk.yaml").write_text("name: mine\n")
    assert find_recipe("recipes/desk.yaml") == Path("recipes/desk.yaml")
    assert find_recipe("desk-small") == packaged["desk-small"]
    with pytest.raises(ConfigError, match="did you mean 'desk'"):
        find_recipe("recipes/dsk.yaml")
    with pytest.raises(ConfigError, match="no such file"):
        find_recipe("elsewhere/desk.yaml")


def test_the_nearest_name() -> None:
    assert did_you_mean("tensorbord", ["none", "tensorboard"]) == "; did you mean 'tensorboard'?"
    assert did_you_mean("xyz", ["none"]) == ""
