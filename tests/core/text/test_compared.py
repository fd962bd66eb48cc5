from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.core.text.styles import CHATML, TURNS

SCRIPT = Path(__file__).parents[3] / "benchmarks" / "chat_templates.py"


def test_templates_of_a_folder_are_compared_and_listed(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    models = tmp_path / "models"
    models.mkdir()
    (models / "plain.jinja").write_text(CHATML)
    (models / "turns.json").write_text(json.dumps([{"chat_template": TURNS}, {"other": 1}]))
    (models / "turns_training.jinja").write_text(CHATML + "!")
    page = tmp_path / "page.md"
    page.write_text("Kept.\n\n<!-- from here on by the script, with --page -->\n\nOld.\n")
    command = [sys.executable, str(SCRIPT), str(models), "--page", str(page)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    kept, _, table = page.read_text().partition("\n\n<!--")
    assert kept == "Kept."
    assert "2 templates, 30 chats with each." in table
    assert "| plain | models |" in table
    assert "| turns | models |" in table
    assert "equal, 0 differ" in table
    assert "Old." not in table
