"""The picture of a mixture: what is drawn stands in it; files of three formats."""

import subprocess
import sys

import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.data.mixture_plot import mixture_figure, plot_mixture

STEPS = 100


def make_records(number: int, phases: int = 1) -> list[dict]:
    """As ``mixture_table`` gives them, in alphabetical order; the last has no row."""
    generator = np.random.default_rng(number)
    rows = np.sort(np.exp(generator.normal(5, 2, number)).astype(int) + 1)[::-1].copy()
    rows[-1] = 0
    order = generator.permutation(number)
    p = np.array([rows**alpha * (rows > 0) for alpha in np.linspace(1, 0.3, phases)])
    p = p / p.sum(axis=1, keepdims=True)
    drawn = np.round(p.mean(axis=0) * 10_000_000).astype(int)
    return [
        {
            "language": f"{place:04d}_Latn",
            "rows": int(rows[index]),
            "rate": float(p[:, index].mean()),
            "rates": {STEPS * k // phases: float(p[k, index]) for k in range(phases)},
            "drawn": int(drawn[index]),
            "epochs": float(drawn[index] / max(1, rows[index])),
        }
        for place, index in enumerate(order)
    ]


@pytest.mark.parametrize(("number", "phases"), [(1, 1), (2, 2), (10, 1), (10, 12), (610, 3)])
def test_what_each_has_and_gets_stands_in_order_of_rows(number, phases):
    records = make_records(number + 1, phases)
    ranked = sorted(records, key=lambda record: -record["rows"])
    shares, epochs, *_ = mixture_figure(records, STEPS).axes
    lines = {line.get_label(): line.get_xydata() for line in shares.lines}
    rank = np.arange(1, number + 1)
    rows = np.array([record["rows"] for record in ranked])
    expected = {"share of the rows": rows / rows.sum(), "never drawn (1)": None}
    first, last = 0, STEPS * (phases - 1) // phases
    for step in {first, last}:
        label = "p" if phases == 1 else f"p from step {step}"
        expected[label] = np.array([record["rates"][step] for record in ranked])
    assert set(lines) == set(expected)
    assert lines.pop("never drawn (1)")[:, 0].tolist() == [number + 1]
    for label, points in lines.items():
        assert points[:-1].tolist() == np.column_stack([rank, expected[label][:-1]]).tolist()
        assert np.isnan(points[-1, 1])  # a logarithm has no place for 0
    drawn = epochs.lines[0].get_xydata()[:-1, 1]
    assert drawn.tolist() == [record["epochs"] or pytest.approx(np.nan, nan_ok=True)
                              for record in ranked[:-1]]  # fmt: skip


def test_a_small_mixture_names_all_and_a_large_one_those_repeated_most():
    ticks = mixture_figure(make_records(10), STEPS).axes[1].get_xticklabels()
    assert sorted(tick.get_text() for tick in ticks) == [f"{n:04d}_Latn" for n in range(10)]
    records = make_records(610, phases=2)
    (said,) = mixture_figure(records, STEPS).axes[1].texts
    most = sorted(records, key=lambda record: -record["epochs"])[:5]
    found = [float(line.split()[1].replace(",", "")) for line in said.get_text().splitlines()[1:]]
    assert found == [pytest.approx(record["epochs"], abs=0.05) for record in most]


def test_head_and_tail_fill_the_whole_at_every_step():
    """Of 200: the largest 2, the next 18, the next 80, the smallest 100."""
    records = make_records(200, phases=4)
    _, _, in_store, by_step = mixture_figure(records, STEPS).axes
    ranked = sorted(records, key=lambda record: -record["rows"])
    total, first = sum(record["rows"] for record in records), 0
    areas = dict(zip(*reversed(by_step.get_legend_handles_labels()), strict=True))
    groups = {"largest 2": 2, "next 18": 18, "next 80": 80, "smallest 100": 100}
    assert list(areas) == list(groups)
    bottom = np.zeros(4)
    for bar, (label, size) in zip(in_store.patches, groups.items(), strict=True):
        group = ranked[first : first + size]
        assert bar.get_height() == pytest.approx(sum(r["rows"] for r in group) / total)
        top = bottom + np.array([list(r["rates"].values()) for r in group]).sum(axis=0)
        edges = areas[label].get_paths()[0].vertices
        for step, low, high in zip((0, 25, 50, 75), bottom, top, strict=True):
            at_step = edges[edges[:, 0] == step, 1]
            assert {round(low, 9), round(high, 9)} <= set(at_step.round(9))
        first, bottom = first + size, top
    assert bottom == pytest.approx(np.ones(4))


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<?xml"), ("pdf", b"%PDF")]
)
def test_the_same_mixture_gives_the_same_file(suffix, begins, tmp_path):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        plot_mixture(make_records(20, 2), STEPS, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second and first.startswith(begins)


def test_seven_thousand_language_scripts(tmp_path):
    plot_mixture(make_records(7000), STEPS, tmp_path / "mixture.png")
    assert (tmp_path / "mixture.png").stat().st_size > 10_000


def test_the_command_draws_it_beside_the_table(store_path, tmp_path, capsys):
    file = tmp_path / "mixture.svg"
    call = ["mixture", "--data", str(store_path), "--plot"]
    assert (
        main([*call, str(file), "--gin.mixture.schedule=[{'from_step': 5, 'temperature': 9}]"]) == 0
    )
    printed = capsys.readouterr()
    assert "p from 5" in printed.out and str(file) in printed.err
    assert file.read_bytes().startswith(b"<?xml")
    assert main([*call, str(file.with_suffix(".jpg"))]) == 2
    printed = capsys.readouterr()
    assert ".png, .svg, .pdf" in printed.err and not printed.out
    assert [found.name for found in tmp_path.iterdir()] == ["mixture.svg"]


def test_matplotlib_is_imported_for_a_picture_only():
    code = "import sys, langsamp_jax.data.mixture_plot; sys.exit('matplotlib' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
