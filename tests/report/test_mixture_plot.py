"""The picture of a mixture: what is drawn stands in it; files of three formats."""

import subprocess
import sys

import numpy as np
import pytest

from langsamp_jax.cli.main import main
from langsamp_jax.report.mixture_plot import mixture_chart, plot_mixture

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


def drawn(records: list[dict], *fields: str) -> list[dict]:
    """What the chart of ``records`` draws: the points that have all ``fields``."""
    datasets = mixture_chart(records, STEPS).to_dict()["datasets"].values()
    return [point for points in datasets for point in points if set(fields) <= point.keys()]


@pytest.mark.parametrize(
    ("number", "phases"),
    [(1, 1), (2, 2), (10, 1), (10, 12), pytest.param(610, 3, marks=pytest.mark.slow)],
)
def test_what_each_has_and_gets_stands_in_order_of_rows(number, phases):
    records = make_records(number + 1, phases)
    ranked = sorted(records, key=lambda record: -record["rows"])
    rows = sum(record["rows"] for record in records)
    expected = {"share of the rows": [record["rows"] / rows for record in ranked]}
    for step in {0, STEPS * (phases - 1) // phases}:
        label = "p" if phases == 1 else f"p from step {step}"
        expected[label] = [record["rates"][step] for record in ranked]
    shares = drawn(records, "series", "share")
    assert {point["series"] for point in shares} == set(expected)
    for series, values in expected.items():
        points = [point for point in shares if point["series"] == series]
        assert [point["share"] for point in points] == values[:-1]  # a logarithm has no place for 0
        assert [point["rank"] for point in points] == [*range(1, number + 1)]
        assert [point["language"] for point in points] == [r["language"] for r in ranked[:-1]]
    never = [point for point in drawn(records, "series") if "share" not in point]
    assert [(point["series"], point["rank"]) for point in never] == [
        ("never drawn (1)", number + 1)
    ]
    epochs = [(point["rank"], point["epochs"]) for point in drawn(records, "epochs")]
    assert epochs == [
        (k, record["epochs"]) for k, record in enumerate(ranked, 1) if record["epochs"]
    ]


def test_a_small_mixture_names_all_and_a_large_one_those_repeated_most():
    def axes(records):
        of_each = mixture_chart(records, STEPS).to_dict()["hconcat"][0]["vconcat"]
        return [layer["encoding"]["x"] for panel in of_each for layer in panel["layer"]
                if "field" in layer["encoding"].get("x", {})]  # fmt: skip

    records = make_records(10)
    ranked = [r["language"] for r in sorted(records, key=lambda record: -record["rows"])]
    assert all(x["scale"]["domain"] == ranked for x in axes(records))
    assert {x["field"] for x in axes(records)} == {"language"} and not drawn(records, "most")
    records = make_records(610, phases=2)
    assert {x["field"] for x in axes(records)} == {"rank"}
    (said,) = {tuple(point["most"]) for point in drawn(records, "most")}
    most = sorted(records, key=lambda record: -record["epochs"])[:5]
    found = [float(line.split()[1].replace(",", "")) for line in said[1:]]
    assert found == [pytest.approx(record["epochs"], abs=0.05) for record in most]


def test_head_and_tail_fill_the_whole_at_every_step():
    """Of 200: the largest 2, the next 18, the next 80, the smallest 100."""
    records = make_records(200, phases=4)
    ranked = sorted(records, key=lambda record: -record["rows"])
    total, first = sum(record["rows"] for record in records), 0
    groups = {"largest 2": 2, "next 18": 18, "next 80": 80, "smallest 100": 100}
    areas = drawn(records, "group", "step")
    in_store = [point for point in drawn(records, "group") if "step" not in point]
    assert list(dict.fromkeys(point["group"] for point in areas)) == list(groups)
    bottom = np.zeros(5)
    for bar, (label, size) in zip(in_store, groups.items(), strict=True):
        group = ranked[first : first + size]
        assert bar["group"] == label
        share = sum(record["rows"] for record in group) / total
        assert bar["high"] - bar["low"] == pytest.approx(share)
        p = np.array([list(record["rates"].values()) for record in group]).sum(axis=0)
        top = bottom + np.append(p, p[-1])  # the last rates hold to the end
        area = [point for point in areas if point["group"] == label]
        assert [point["step"] for point in area] == [0, 25, 50, 75, STEPS]
        assert [point["low"] for point in area] == pytest.approx(bottom)
        assert [point["high"] for point in area] == pytest.approx(top)
        first, bottom = first + size, top
    assert bottom == pytest.approx(np.ones(5))


@pytest.mark.parametrize(
    ("suffix", "begins"), [("png", b"\x89PNG"), ("svg", b"<svg"), ("pdf", b"%PDF")]
)
def test_the_same_mixture_gives_the_same_file(suffix, begins, tmp_path):
    files = [tmp_path / f"{name}.{suffix}" for name in "ab"]
    for file in files:
        plot_mixture(make_records(20, 2), STEPS, file)
    first, second = (file.read_bytes() for file in files)
    assert first == second and first.startswith(begins)


@pytest.mark.slow
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
    assert file.read_bytes().startswith(b"<svg")
    assert main([*call, str(file.with_suffix(".jpg"))]) == 2
    printed = capsys.readouterr()
    assert ".png, .svg, .pdf" in printed.err and not printed.out
    assert [found.name for found in tmp_path.iterdir()] == ["mixture.svg"]


def test_altair_is_imported_for_a_picture_only(store_path):
    code = (
        "import sys; from langsamp_jax.cli.main import main; "
        "main(sys.argv[1:]); sys.exit('altair' in sys.modules)"
    )
    call = [sys.executable, "-c", code, "mixture", "--data", str(store_path)]
    subprocess.run(call, check=True, capture_output=True)
