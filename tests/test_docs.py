"""Pages and the raw figures beside them: no paths of a machine, and links that lead somewhere."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WRITTEN = sorted(p for kind in ("md", "json", "csv") for p in (ROOT / "docs").rglob(f"*.{kind}"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(p for p in WRITTEN if p.suffix == ".md")]


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


@pytest.mark.parametrize("file", [*PAGES[:2], *WRITTEN], ids=name)
def test_no_path_of_a_machine(file: Path) -> None:
    assert not re.findall(r"(?<![\w.:/-])/(?:root|work|tmp|home|Users)/\S*", file.read_text())


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_lead_to_files(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#\s]+)", page.read_text()):
        assert target.startswith("http") or (page.parent / target).exists(), target
