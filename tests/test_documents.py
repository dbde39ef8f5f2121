"""What the documents name is there."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
LINK = re.compile(r"\]\((?!https?:|#)([^)#\s]+)(?:#[^)]*)?\)")
PATH = re.compile(r"\b(?:langsamp_jax|data_pipelines|benchmarks|tests|docs)/[\w/]+\.\w+")


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_every_link_leads_to_a_file(document):
    text = re.sub(r"```diff.*?```", "", document.read_text("utf-8"), flags=re.DOTALL)
    links = {link for link in LINK.findall(text) if not (document.parent / link).exists()}
    paths = {path for path in PATH.findall(text) if not (ROOT / path).exists()}
    assert not links | paths


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: file.name)
def test_a_link_to_a_module_says_its_name(document):
    named = re.findall(r"\[([\w/]+\.py)\]\(([^)]+)\)", document.read_text("utf-8"))
    assert [(text, link) for text, link in named if not link.endswith(text)] == []


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 150
