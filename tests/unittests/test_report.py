"""noisegate report, on sweeps of hand-made figures."""

import json
import re
import shutil
import subprocess
import sys
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from matplotlib.image import imread

from noisegate.cli import main
from noisegate.evaluation.bootstrap import bootstrap
from noisegate.evaluation.estimates import SweepResults
from noisegate.evaluation.report import write_report
from noisegate.evaluation.results import SweepFolder
from noisegate.evaluation.sections import SECTIONS
from noisegate.evaluation.trials import read_trials
from tests.unittests.sweeps import (
    BAD,
    EERS,
    add_trials,
    write_identity,
    write_sweep,
)

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory):
    """A folder with its report, and a cell that failed."""
    pytest.importorskip("plotly")
    folder = write_sweep(tmp_path_factory.mktemp("sweep"))
    failed = folder / "cells" / "retrained_0.25_1"
    failed.mkdir()
    write_identity(failed, "retrained", 0.25, 1)
    text = f"exit status 1, see {failed / 'stdout.txt'}\n"
    (failed / "failed.txt").write_text(text)
    (folder / "cells" / "notes").mkdir()
    write_report(folder)
    return folder


@pytest.fixture(scope="module")
def scored(tmp_path_factory):
    """A folder with its report, with trials and MACs by layer."""
    pytest.importorskip("plotly")
    folder = write_sweep(tmp_path_factory.mktemp("scored"))
    add_trials(folder)
    published = folder / "published.csv"
    lines = ["model,gflops,eer_percent", "big,4,5.5", "small<,1,6.5"]
    published.write_text("\n".join(lines))
    write_report(folder, published=published)
    return folder


def tables(folder):
    """Tables of the Markdown file, each a list of rows."""
    found, last = [], ""
    text = (folder / "report.md").read_text(encoding="utf-8")
    for line in text.splitlines():
        if line.startswith("| "):
            if not last.startswith("| "):
                found.append([])
            cells = re.split(r" (?<!\\)\| ", line[2:-2])
            found[-1].append([unescape(x).replace("\\|", "|") for x in cells])
        last = line
    return [[rows[0], *rows[2:]] for rows in found]


class Page(HTMLParser):
    """Tables, plots and references of a page."""

    def __init__(self, path):
        super().__init__()
        self.tables, self.ids, self.references = [], [], []
        self.tags, self.cell = [], None
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href", "srcset", "data", "action"):
                self.references.append(value)
            if name == "id":
                self.ids.append(value)
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
            self.cell = tag

    def handle_endtag(self, tag):
        if tag == self.cell:
            self.cell = None

    def handle_data(self, data):
        if self.cell:
            self.tables[-1][-1][-1] += data


def test_figures_of_the_curves(sweep):
    """Equal to those computed by hand."""
    summary, quality, differences = tables(sweep)[:3]
    row = ["dense", "1", "2", "3 ± 1.4", "0.0041", "1.000"]
    assert summary[1][:6] == row
    # Greatest error 16, two halvings: (16 - 4 + 16 - 7) / 32 and
    # (16 - 6 + 16 - 13) / 32
    ranks = ["-0.89", "0"]  # -14 / sqrt(16 15.5)
    fronts = ["0.25, 0.5, 1", "0.25, 0.5"]
    # Plus and minus 12.706 / 32; trapezoids of 6, 4, 2 and of 8, 4, 4
    volume, error = "0.259 to 1.05", "-1.85 to 10.9"
    assert quality[1] == ["noise", "2", *fronts] + [
        *("0.656", volume),
        *("4.5", error),
        *ranks,
    ]
    assert quality[2][:5] == ["narrow", "2", "0.25, 0.5, 1", "none", "0.406"]
    # Means of two, plus and minus 12.706 standard errors of 1, 2 and 3/32
    assert differences[1:] == [
        [*row, "not told apart", "2"]
        for row in [
            ["EER", "narrow", "0.5", "+2", "-10.7 to +14.7"],
            ["EER", "narrow", "0.25", "+6", "-19.4 to +31.4"],
            ["hypervolume", "narrow", "0.5, 0.25", "-0.25"]
            + ["-1.44 to +0.941"],
        ]
    ]


def test_intervals_over_speakers(scored):
    """Where all cells have trials; what is better is said."""
    folder = scored
    summary, _, differences = tables(folder)[:3]
    assert summary[0][4] == "95 % interval"
    for line in summary[1:]:
        low, _, high = line[4].partition(" to ")
        assert float(low) < float(line[3].split(" ")[0]) < float(high)
    assert [row[5] for row in differences[1:]] == ["noise"] * 3
    runs = {}
    for place in (folder / "cells").iterdir():
        method, budget, seed = place.name.split("_")
        trials = read_trials(place / "trials.txt")
        runs.setdefault((method, float(budget)), {})[int(seed)] = trials
    estimate = bootstrap(
        lambda eers: eers["narrow", 0.5] - eers["noise", 0.5], runs
    )
    row = differences[1]
    assert row[:3] == ["EER", "narrow", "0.5"]
    assert float(row[3]) == pytest.approx(estimate.value, rel=5e-3)
    low, _, high = row[4].partition(" to ")
    assert float(low) == pytest.approx(estimate.low, rel=5e-3)
    assert float(high) == pytest.approx(estimate.high, rel=5e-3)
    text = (folder / "report.md").read_text()
    assert "the 30 speakers of the test set" in text


def test_what_few_seeds_change(scored, tmp_path):
    """Only rows that they are in; with one seed there is no interval."""
    before = tables(scored)
    folder = shutil.copytree(scored, tmp_path / "copy")
    for name in ("magnitude_0.5_1", "magnitude_0.25_3"):  # noise has no seed 3
        source = folder / "cells" / f"noise_{name.split('_')[1]}_1"
        place = shutil.copytree(source, folder / "cells" / name)
        _, budget, seed = name.split("_")
        write_identity(place, "magnitude", float(budget), int(seed))
    write_report(folder)
    summary, quality, differences = tables(folder)[:3]
    for row in [*before[1], *quality]:
        del row[3]  # on the front of all
    for old, new in zip(before[:3], (summary, quality, differences)):
        assert [row for row in new if "magnitude" not in row] == old
    rows = {tuple(row[:3]): row[3:] for row in differences}
    assert rows["EER", "magnitude", "0.5"][1:] == ["-", "-", "1"]
    assert rows["EER", "magnitude", "0.25"] == ["-", "-", "-", "0"]
    assert rows["hypervolume", "magnitude", "0.5, 0.25"] == ["-", "-", "-", "0"]


@pytest.mark.parametrize("broken", ["no line of trials", "s 1 0.5 2"])
def test_trials_that_cannot_be_used(scored, tmp_path, broken):
    """The intervals are over seeds then, and the page says why."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    (folder / "cells/noise_0.5_1/trials.txt").write_text(broken + "\n")
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "Intervals are over seeds alone: " in text
    assert "12.7 standard errors" in text


def test_trials_that_are_missing(scored, tmp_path):
    """Likewise: the first cell without is named."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    (folder / "cells/noise_0.5_1/trials.txt").unlink()
    (folder / "trials.zip").unlink(missing_ok=True)
    write_report(folder)
    text = (folder / "report.md").read_text()
    assert "no scores of noise_0.5_1, the first of 1" in text
    assert "12.7 standard errors" in text


@pytest.mark.parametrize("damage", ["pointer", "member"])
def test_trials_that_are_damaged(scored, tmp_path, damage):
    """An archive that cannot be read is named, and stays as it is."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    SweepFolder(folder).gather()
    shutil.rmtree(folder / "cells")
    store = folder / "trials.zip"
    content = bytearray(store.read_bytes())
    if damage == "pointer":  # of Git LFS
        content = b"version https://git-lfs.github.com/spec/v1\n"
    else:
        content[100:120] = bytes(20)
    store.write_bytes(content)
    with pytest.raises(ValueError, match=r"trials\.zip.* is damaged"):
        write_report(folder)
    assert store.read_bytes() == content


def test_tables_for_a_readme(scored, tmp_path):
    """The first two of the page; an error without the block."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    readme = tmp_path / "README.md"
    readme.write_text("no block\n")
    with pytest.raises(ValueError, match="README.md has no block 'copy'"):
        write_report(folder, readme=readme)
    readme.write_text("a\n<!-- copy -->\n<!-- /copy -->\nb\n")
    write_report(folder, readme=readme)
    lines = readme.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("a", "b")
    report = (folder / "report.md").read_text().splitlines()
    mine = [line for line in lines if line.startswith("|")]
    assert mine == [x for x in report if x.startswith("|")][: len(mine)]
    assert "| narrow | 0.5 |" in readme.read_text()
    assert "| hypervolume | narrow |" in readme.read_text()
    link = re.search(r"!\[.+\]\((.+)\)", readme.read_text())[1]
    height, width = imread(tmp_path / link).shape[:2]  # of three plots
    assert width == 3.6 * height


def test_further_figures_in_the_table(scored, tmp_path):
    """Behind all others, each with its spread."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    write_report(folder, columns=["EER <5", "EER 15-25"])
    (headings, *rows), (before, *_) = tables(folder)[0], tables(scored)[0]
    assert headings == [*before, "EER <5", "EER 15-25"]
    assert rows[0][-2:] == ["6 ± 2.8", "9 ± 4.2"]  # 2 and 3 times 2 and 4


def test_macs_by_layer(scored):
    """Full and final, with the share of all; published figures beside."""
    (macs,) = (t for t in tables(scored) if t[0][0] == "MACs of")
    assert macs[1][:3] == ["a", "0.00307 (75.0 %)", "0.00102"]
    assert macs[2][:2] == ["b<", "0.00102 (25.0 %)"]


def test_macs_of_a_method_with_other_layers(scored, tmp_path):
    """Are not counted as those of the dense model."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    for seed in (1, 2):
        path = folder / f"cells/narrow_0.5_{seed}/result.json"
        result = json.loads(path.read_text())
        result["macs_by_layer"] = {"a": [512, 512], "other": [9, 9]}
        path.write_text(json.dumps(result))
    write_report(folder)
    (macs,) = (t for t in tables(folder) if t[0][0] == "MACs of")
    assert [row[0] for row in macs[1:]] == ["a", "b<"]
    assert macs[1][1] == "0.00307 (75.0 %)"
    assert macs[2][macs[0].index("narrow 0.5")] == "-"


def test_widths_that_the_dense_model_does_not_have(scored, tmp_path):
    """Of channels that went apart in a chain, against the greatest seen."""
    folder = shutil.copytree(scored, tmp_path / "copy")
    path = folder / "cells/noise_0.5_1/result.json"
    result = json.loads(path.read_text())
    result["widths"]["apart"] = 1
    path.write_text(json.dumps(result))
    write_report(folder)
    (widths,) = (t for t in tables(folder) if t[0][0] == "channels of")
    assert [row[1] for row in widths[1:] if row[0] == "apart"] == ["1"]


def test_published_figures(scored):
    """Beside the curves, relative to the first of them."""
    data = SweepResults(SweepFolder(scored), published=scored / "published.csv")
    assert data.published == [("big", 1.0, 5.5), ("small<", 0.25, 6.5)]
    page = (scored / "report.html").read_text()
    assert "published, on other data" in page
    assert "relative to that of the first one, big." in page


@pytest.mark.parametrize("recipe", ["VAD", "ASVspoof"])
def test_published_figures_of_the_recipes(scored, recipe):
    """Models without a figure are left out."""
    path = RECIPES / recipe / "published.csv"
    data = SweepResults(SweepFolder(scored), published=path)
    assert len(data.published) > 3 and data.published[0][1] == 1.0
    names = [name for name, _, _ in data.published]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize(
    "text, message",
    [
        ("", "must have columns"),
        ("model,eer_percent\na,1\n", "must have columns"),
        ("model,mflops,eer_percent\na,N/A,1\n", "has no model"),
    ],
)
def test_published_figures_that_lack_something(tmp_path, text, message):
    pytest.importorskip("plotly")
    write_sweep(tmp_path)
    path = tmp_path / "published.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=f"published.csv {message}"):
        write_report(tmp_path, published=path)
    path.write_text("model,mflops,eer_percent\na,1,1\n")
    with pytest.raises(ValueError, match="are EERs, the curves show EER <5"):
        write_report(tmp_path, metric="EER <5", published=path)


def test_published_figures_without_a_curve(tmp_path):
    """A sweep over several models has none."""
    folder = write_sweep(tmp_path)
    place = folder / "cells" / "a_noise_0.5_1"
    shutil.copytree(folder / "cells" / "noise_0.5_1", place)
    cell = {"method": "noise", "budget": 0.5, "seed": 1, "model": "a"}
    (place / "cell.json").write_text(json.dumps(cell))
    published = RECIPES / "VAD" / "published.csv"
    with pytest.raises(ValueError, match="several models, so no curve"):
        write_report(folder, published=published)


def test_widths_conditions_and_runs(sweep):
    """Means over seeds; failed cells with their log."""
    widths, conditions, runs, failed = tables(sweep)[3:]
    assert widths[0] == ["channels of", "full", "noise 0.5", "narrow 0.5"] + [
        "noise 0.25",
        "narrow 0.25",
    ]
    assert widths[1] == ["conv", "64", "32.5", "32.5", "16.5", "16.5"]
    assert widths[2][0] == BAD
    assert conditions[0] == ["budget", "method", "<5", "5-15", "15-25"]
    assert conditions[1] == ["1", "dense", "6 ± 2.8", "3 ± 1.4", "9 ± 4.2"]
    assert conditions[-1] == [
        "0.25",
        "narrow",
        "26 ± 8.5",
        "13 ± 4.2",
        "39 ± 13",
    ]
    assert runs[0][5:] == ["test EER", "versions", "commit"]
    assert len(runs) == 11
    assert runs[2] == ["noise_0.5_1", "1", "0.5000", "500", "192", "4"] + [
        "noisegate 0.1.0",
        "abc1234",
    ]
    log = "cells/retrained_0.25_1/stdout.txt"
    assert failed[1:] == [["retrained_0.25_1", "exit status 1", log]]
    assert len((sweep / "cells.jsonl").read_text().splitlines()) == 10


def test_commands_hold_no_path_of_the_machine(sweep):
    """But can be run where SWEEP is set."""
    text = (sweep / "report.md").read_text()
    assert (
        "python train.py $SWEEP/hparams/retrained.yaml --seed=1 --budget=0.25 "
        "--output_folder=$SWEEP/cells/retrained_0.25_1 --noprogressbar "
        "\"--complexity_loss={widths: '$SWEEP/cells/noise_0.25_1/result.json'}"
        "\" --data_folder=PATH '--widths=[16]'" in text
    )
    for name in ("report.md", "report.html"):
        text = (sweep / name).read_text()
        assert "/corpora" not in text and str(sweep) not in text


def test_the_page_loads_nothing_and_is_escaped(scored):
    """One file with all plots, and the tables of the Markdown file."""
    page = Page(scored / "report.html")
    parts = [name for name in page.ids if name.startswith("part")]
    assert len(parts) == len(SECTIONS)  # the contents list them all
    assert page.references == [f"#{name}" for name in parts]
    plots = ["tradeoff", "differences", "lines", "epochs", "widths", "macs"]
    plots.append("det")
    assert [name for name in page.ids if name in plots] == plots
    assert page.tables == tables(scored)
    text = (scored / "report.html").read_text(encoding="utf-8")
    assert BAD not in text and "a&lt;b&gt;.yaml" in text
    assert "@import" not in text.partition("</style>")[0]
    assert not {"b", "iframe", "link", "img"} & set(page.tags)


def test_the_same_bytes_again(sweep):
    """Nothing in it is of the time or drawn."""
    names = ("report.html", "report.md", "cells.jsonl", "curves.png")
    before = [(sweep / name).read_bytes() for name in names]
    write_report(sweep)
    assert before == [(sweep / name).read_bytes() for name in names]


@pytest.mark.parametrize(
    "groups, n_seeds, missing",
    [
        (list(EERS), 1, "±"),
        (list(EERS)[1:], 2, "dashed line"),
        (list(EERS)[:1], 2, "minus noise"),
        ([("narrow", 0.25)], 1, "minus noise"),
        ([("noise", 0.5), ("narrow", 0.25)], 2, "minus noise"),
    ],
)
def test_sweeps_that_lack_something(tmp_path, groups, n_seeds, missing):
    """Give a page without what depends on it."""
    pytest.importorskip("plotly")
    write_sweep(tmp_path, {group: EERS[group] for group in groups}, n_seeds)
    write_report(tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert missing not in text.partition("7. By condition")[0]


def test_a_history_and_a_figure_that_is_nan(tmp_path):
    """Epochs may lack a key; a cell without a figure is named."""
    pytest.importorskip("plotly")
    write_sweep(tmp_path)
    rows = {"epoch": 1, "macs_per_second": 9}, {"epoch": 2}
    rows[1].update({"macs_per_second": 8, "width conv": 63.2549})
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (tmp_path / "cells/noise_0.5_1/gates.jsonl").write_text(text)
    path = tmp_path / "cells/noise_0.5_2/result.json"
    result = json.loads(path.read_text())
    result["test"].update({"EER": float("nan"), "EER <5": float("inf")})
    path.write_text(json.dumps(result))
    write_report(tmp_path)
    assert "63.25 of 64" in (tmp_path / "report.html").read_text()
    text = (tmp_path / "report.md").read_text()
    assert "Without a finite figure, in no plot: noise_0.5_2." in text
    assert "| noise | 0.5 | 2 | nan | 0.00205 | 0.500 | 500 | 192 |" in text
    assert "| EER | narrow | 0.5 | +1 | - | - | 1 |" in text


def test_the_command_and_its_errors(tmp_path, capsys, monkeypatch):
    """One line that names the folder, the figure or the extra."""

    def error(*arguments):
        with pytest.raises(SystemExit) as stop:
            main(["report", *map(str, arguments)])
        assert stop.value.code == 2
        return capsys.readouterr().err

    pytest.importorskip("plotly")
    folder = tmp_path / "sweep"
    assert f"{folder} is not the folder of a sweep" in error(folder)
    write_sweep(folder, {})
    assert "no cell is finished" in error(folder)
    write_sweep(folder)
    assert "['AUC']" in error(folder, "--metric=AUC")
    assert not (folder / "report.html").exists()
    main(["report", str(folder), "--metric=EER 5-15"])
    assert capsys.readouterr().out == f"report: {folder / 'report.html'}\n"
    assert "| 9 ± 4.2 |" in (folder / "report.md").read_text()
    (folder / "report.html").unlink()
    monkeypatch.setitem(sys.modules, "plotly", None)
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    assert "pip install 'speechbrain-noisegate[report]'" in error(folder)
    assert not (folder / "report.html").exists()


def browse(page, tmp_path, *flags):
    """Opens a page in Chromium; returns what it has printed."""
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("chromium is not installed")
    run = subprocess.run(
        [chromium, "--headless", "--no-sandbox", "--disable-gpu"]
        + ["--virtual-time-budget=10000", "--enable-logging=stderr"]
        + [f"--user-data-dir={tmp_path / 'profile'}", *flags, page.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert run.returncode == 0, run.stderr
    assert "CONSOLE" not in run.stderr
    return run.stdout


@pytest.mark.parametrize("width", [500, 1200])
@pytest.mark.parametrize("dark", [False, True])
def test_on_screens(width, dark, scored, tmp_path):
    """Nothing but tables and code is wider than the screen; no plot is white
    on dark paper."""
    picture = tmp_path / "page.png"
    page = (scored / "report.html").read_text(encoding="utf-8")
    script = """<script>window.addEventListener("load", () => setTimeout(() => {
const wide = document.documentElement.scrollWidth - innerWidth;
document.title = `${innerWidth} ${wide}`; }, 3000))</script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("</body>", script), encoding="utf-8")
    # The other is the default of what has no desktop
    flags = [f"--window-size={width},2400", "--hide-scrollbars"]
    flags += ["--blink-settings=preferredColorScheme=0"] * dark
    text = browse(copy, tmp_path, "--dump-dom", *flags)
    title = re.search("<title>(.*?)</title>", text).group(1)
    assert title == f"{width} 0"
    browse(copy, tmp_path, f"--screenshot={picture}", *flags)
    light = imread(picture)[..., :3].mean(axis=-1)
    assert light.shape == (2400, width)
    assert ((light > 0.9).mean() < 0.1) == dark


def test_in_a_browser(scored, tmp_path):
    """All plots are drawn, at the last epoch, without an error."""
    # A drop-down and the slider are used, too
    page = (scored / "report.html").read_text(encoding="utf-8")
    script = """<script>window.addEventListener("load", async () => {
const plot = document.getElementById("epochs");
const [menu] = plot.layout.updatemenus, [slider] = plot.layout.sliders;
document.title = plot.data.map(x => x.visible + " " + x.text).join();
await Plotly.restyle(plot, ...menu.buttons[1].args);
await Plotly.animate(plot, ...slider.steps[1].args);
document.title += ";" + plot.data.map(x => x.visible + " " + x.text).join();
})</script></body>"""
    copy = tmp_path / "copy.html"
    copy.write_text(page.replace("</body>", script), encoding="utf-8")
    text = browse(copy, tmp_path, "--dump-dom")
    body = text.rpartition('<div id="tradeoff"')[2]
    parts = re.split(r'<div id="(?:epochs|widths|macs|det)"', body)
    assert len(parts) == 5
    assert all('class="main-svg"' in part for part in parts)
    assert 'data-title="Zoom in"' in body and "Share chart" not in body
    title = re.search("<title>(.*?)</title>", text).group(1)
    assert title == "true 16,false 16;false 48.5,true 48.5"
