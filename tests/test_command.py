"""The command `timm-ktg`: all programs, the bundled recipes, completion."""

import os
import subprocess
from pathlib import Path

import pytest

from timm_ktg.__main__ import PROGRAMS, build_parser, main
from timm_ktg.recipe.recipe import load_recipe


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_help(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exited:
        main([name, "--help"])
    assert exited.value.code == 0 and f"timm_ktg.{name}" in capsys.readouterr().out


def test_program_gets_its_arguments_and_gives_its_code(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["draw", "digits", "-o", "graph.svg"]) == 0 and Path("graph.svg").is_file()
    assert main(["draw", "digitss", "-o", "graph.svg"]) == 2
    assert "Did you mean `digits`?" in capsys.readouterr().err
    assert main(["validate", "nowhere"]) == 2
    assert "nowhere" in capsys.readouterr().err


def test_recipes_are_listed_shown_and_copied(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["recipes", "list"]) == 0
    assert "presets/kd  " in capsys.readouterr().out
    assert main(["recipes", "show", "presets/kd"]) == 0
    text = capsys.readouterr().out
    assert main(["recipes", "copy", "digits", "mine/graph.yaml"]) == 0
    assert load_recipe("mine/graph.yaml") == load_recipe("digits")
    assert main(["recipes", "copy", "presets/kd"]) == 0
    assert Path("kd.yaml").read_text() == text
    assert main(["recipes", "copy", "presets/kd"]) == 2
    assert capsys.readouterr().err == "recipes copy: kd.yaml exists; give another name.\n"


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["trian"], "Found trian. Did you mean `train`?"),
        (["recipes", "show", "digit"], "Did you mean `digits`?"),
    ],
)
def test_mistakes_take_a_line(
    argv: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said in line


def completed(script: Path, *words: str) -> list[str]:
    """What bash offers for the last word."""
    last, before = words[-1], words[-2]
    line = f"""
        source {script}
        COMP_WORDS=({" ".join(words)}) COMP_CWORD={len(words) - 1}
        _shtab_timm_ktg timm-ktg '{last}' '{before}'
        echo "${{COMPREPLY[@]}}"
    """
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, check=True)
    return done.stdout.split()


@pytest.mark.skipif(os.name == "nt", reason="needs bash")
def test_bash_completes_programs_flags_and_recipes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "completion.sh"
    script.write_text(capsys.readouterr().out)
    assert completed(script, "timm-ktg", "va") == ["validate"]
    assert "--train.lr" in completed(script, "timm-ktg", "train", "--train.l")
    assert completed(script, "timm-ktg", "recipes", "show", "digits-") == ["digits-search"]


@pytest.mark.parametrize("shell", ["zsh", "tcsh"])
def test_other_shells_have_a_script_too(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", shell]) == 0
    assert "train" in capsys.readouterr().out
    assert build_parser().prog == "timm-ktg"
