"""The tables in tests/recipes against the recipes."""

import csv
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FILES = ["Script_file", "Hparam_file", "Data_prep_file", "Readme_file"]
# As in SpeechBrain, whose recipe tests read the same tables.
COLUMNS = [
    *("Task", "Dataset", *FILES, "Result_url", "HF_repo"),
    *("test_debug_flags", "test_debug_checks", "performance"),
]


def problems(root):
    """What does not agree between root/tests/recipes and root/recipes."""
    found, listed = [], set()
    for table in sorted(root.glob("tests/recipes/*.csv")):
        with open(table, newline="", encoding="utf-8") as fin:
            reader = csv.DictReader(fin)
            rows = list(reader)
        if reader.fieldnames != COLUMNS:
            found.append(f"{table.name}: columns are {reader.fieldnames}")
            continue
        for row in rows:
            listed.add(row["Hparam_file"])
            where = f"{table.name}, {row['Hparam_file']}"
            for column in FILES:
                # A recipe may need no preparation file, but no other may miss.
                files = (row[column] or "").split()
                if not files and column != "Data_prep_file":
                    found.append(f"{where}: {column} is empty")
                for file in files:
                    if not (root / file).is_file():
                        found.append(f"{where}: {column} {file} is missing")
                    if not file.startswith(f"recipes/{table.stem}/"):
                        found.append(f"{where}: {file} is of another recipe")
            if not row["test_debug_flags"]:
                found.append(f"{where}: test_debug_flags is empty")
    hparams = {
        *root.glob("recipes/*/hparams/*.yaml"),
        *root.glob("recipes/*/*.yaml"),
    }
    for path in sorted(hparams):
        file = path.relative_to(root).as_posix()
        if file not in listed:
            found.append(f"{file}: no row in tests/recipes")
    return found


def test_tables_and_recipes_agree():
    found = problems(ROOT)
    assert not found, "\n".join(found)


@pytest.fixture
def tree(tmp_path):
    """A repository of one recipe with nothing wrong."""
    recipe = tmp_path / "recipes" / "Toy"
    (recipe / "hparams").mkdir(parents=True)
    for file in ["train.py", "hparams/a.yaml", "toy_prepare.py", "README.md"]:
        (recipe / file).touch()
    row = [
        *("Toy", "Toy", "recipes/Toy/train.py", "recipes/Toy/hparams/a.yaml"),
        *("recipes/Toy/toy_prepare.py", "recipes/Toy/README.md", "", ""),
        *("--debug", "", ""),
    ]
    (tmp_path / "tests" / "recipes").mkdir(parents=True)
    table = tmp_path / "tests" / "recipes" / "Toy.csv"
    table.write_text(",".join(COLUMNS) + "\n" + ",".join(row) + "\n")
    return tmp_path


def test_nothing_is_found_where_nothing_is_wrong(tree):
    assert problems(tree) == []


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: (t / "recipes/Toy/train.py").unlink(), "is missing"),
        (lambda t: (t / "recipes/Toy/hparams/b.yaml").touch(), "no row"),
        (lambda t: (t / "recipes/Toy/c.yaml").touch(), "no row"),
        (
            lambda t: (t / "tests/recipes/Toy.csv").rename(
                t / "tests/recipes/Other.csv"
            ),
            "of another recipe",
        ),
        (
            lambda t: (t / "tests/recipes/Toy.csv").write_text("Task\nToy\n"),
            "columns are",
        ),
    ],
)
def test_the_check_finds_what_is_wrong(tree, change, message):
    change(tree)
    assert message in "\n".join(problems(tree))
