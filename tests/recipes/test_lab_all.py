"""Every experiment in one command: where each goes, what one that breaks off leaves, the page."""

import lab_all_plans
import pytest

from jaxrlhf.errors import ConfigError
from jaxrlhf.recipes import RECIPES, lab_all
from jaxrlhf.recipes.lab_all import LabAllConfig


def test_it_knows_every_experiment():
    named = {name for name in RECIPES if name.startswith("lab ")} - {"lab all"}
    assert {f"lab {name}" for name in lab_all.NAMES} == named
    assert set(lab_all.SMALL) <= set(lab_all.NAMES)


@pytest.mark.parametrize("name", lab_all.NAMES)
@pytest.mark.parametrize("tiny", [False, True])
def test_each_has_a_folder_of_its_own_and_one_seed_where_it_is_tiny(tmp_path, name, tiny):
    config = LabAllConfig(output_dir=str(tmp_path), tiny=tiny)
    settings = lab_all.settings(config, name, tmp_path / "pages")
    assert settings.output_dir == str(tmp_path / name)
    assert settings.results == str(tmp_path / "pages" / name)
    assert str(getattr(settings, "base_dir", tmp_path)).startswith(str(tmp_path))
    if tiny:
        assert len(settings.seeds) == 1


def test_one_that_breaks_off_does_not_lose_the_others():
    found = lab_all_plans.observed("experiments=[sign-flip, queries, ratings]")
    assert found["verdicts"] == {"FAIL": 1, "broke off": 1, "no rules": 1}
    page = found["page"]
    assert "| 15 | 2 | FAIL |" in page and "[sign-flip](sign-flip.md)" in page
    assert "queries broke off: RuntimeError: no luck" in page
    assert "![curve](ratings/curve.png)" in page


def test_an_experiment_that_is_none():
    with pytest.raises(ConfigError, match="did you mean 'queries'"):
        LabAllConfig.load(None, ["experiments=[query]"])
