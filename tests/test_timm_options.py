"""The table of timm's options says what timm and the schema say."""

from tests import timm_options
from tests.timm_options import FIELDS, OPTIONS
from timm_ktg.recipe.command_line import _OPTIONS

PROGRAM = {name for names in _OPTIONS for name in names} | {"RECIPE"}


def test_page_is_what_the_script_writes() -> None:
    again = "recipes/TIMM.md is old; write it anew: python -m tests.timm_options"
    assert timm_options.PAGE.read_text(encoding="utf-8") == timm_options.page(), again


def test_table_names_every_option_that_the_installed_timm_reads() -> None:
    asked = timm_options.asked_by_timm()
    assert {"sched", "lr_cycle_mul", "opt_betas", "grayscale_prob", "crop_pct"} <= asked
    assert asked - set(OPTIONS) == set()


def test_table_leads_to_fields_and_flags_that_exist() -> None:
    places = {option: timm_options.place_of(option) for option in OPTIONS}
    assert len(places) > 150
    known = {"", *FIELDS, *PROGRAM}
    assert {option: place for option, place in places.items() if place not in known} == {}


def test_table_gives_no_reason_against_a_field_that_exists() -> None:
    own = {"interpolation"}  # ours is the training's, timm's the evaluation's
    names = {field.rpartition(".")[2] for field in FIELDS}
    refused = {option for option, how in OPTIONS.items() if "absent" in how}
    assert refused & names == own


def test_table_explains_every_option_that_is_missing() -> None:
    silent = [o for o in OPTIONS if not timm_options.place_of(o) and not OPTIONS[o].get("absent")]
    assert silent == []
