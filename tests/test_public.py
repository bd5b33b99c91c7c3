"""What a published page says of places: names of files and hub ids, never folders."""

from __future__ import annotations

import pytest

from misdirect.reporting.redact import public_command, public_config, public_name, public_source


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("demo", "demo"),
        ("HuggingFaceH4/zephyr-7b-beta", "HuggingFaceH4/zephyr-7b-beta"),
        ("/home/someone/models/llama/", "llama"),
        ("../models/llama", "llama"),
        ("~/llama", "llama"),
        ("C:\\Users\\someone\\llama", "llama"),
        ("hub:cais/wmdp:wmdp-bio:test", "hub:cais/wmdp:wmdp-bio:test"),
    ],
)
def test_a_local_path_is_its_last_part(text: str, name: str) -> None:
    assert public_name(text) == name


def test_a_command_keeps_its_flags_and_loses_its_folders() -> None:
    typed = (
        "misdirect unlearn /home/me/llama --forget 'bio=/secret lab/bio.jsonl#body' --retain wiki=data/wiki.jsonl@2.0"
    )
    typed += " --out runs/mine"
    expected = "misdirect unlearn llama --forget 'bio=bio.jsonl#body' --retain wiki=wiki.jsonl@2.0 --out mine"
    assert public_command(typed) == expected
    assert public_command("it's /home/me/x") == "it's x"
    assert public_source("hub:a/b:c") == "hub:a/b:c"


def test_the_config_of_a_run_names_no_folder_but_the_models() -> None:
    config = {
        "model": "/home/me/llama",
        "command": "misdirect unlearn /home/me/llama",
        "topics": [{"source": "/x/bio.txt"}],
        "retain": [1],
    }
    found = public_config(config)
    assert found["topics"] == [{"source": "bio.txt"}]
    assert found["command"] == "misdirect unlearn llama"
    assert found["retain"] == [1]
    assert config["topics"] == [{"source": "/x/bio.txt"}]
