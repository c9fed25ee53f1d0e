import dataclasses
import re
from xml.etree import ElementTree

import pytest
from benchmarks import BENCHMARKS, searches, shared_work
from benchmarks.goals import GOALS, verdict
from benchmarks.page import (
    DOCS,
    IMAGES,
    MACHINES,
    PAGE_NAME,
    blocks,
    by_device,
    machine_place,
    machine_text,
    page_text,
    write_page,
)
from benchmarks.results import NO_BF16, ROOT, append_rows, matching, read_rows
from benchmarks.sections import SECTIONS
from benchmarks.step import FORWARD_BACKWARD
from benchmarks.tables import meeting_text
from benchmarks.variants import LIMIT, LORAKIT_MLP

from invented_rows import ORIGIN, invented_rows

ROWS = invented_rows()
DESCRIPTION = "{http://purl.org/dc/elements/1.1/}description"


def section(page, title):
    return re.split(r"^#+ .*\n", page.partition(f"# {title}\n")[2], flags=re.MULTILINE)[0]


def lines_of(text, *beginning):
    start = "".join(f"| {cell} " for cell in beginning) + "|"
    return [line for line in text.splitlines() if line.startswith(start)]


def replaced(rows, wanted, **changes):
    chosen = matching(rows, **wanted)
    assert chosen
    return [dataclasses.replace(one, **changes) if one in chosen else one for one in rows]


@pytest.fixture(scope="module")
def page():
    return machine_text(ORIGIN.device, ROWS)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    append_rows(ROWS, folder / "results")
    paths = write_page(folder / "results", folder / "docs")
    return folder / "docs", paths


def test_a_busy_machine_has_a_column_for_each_load(page):
    text = section(page, "A busy machine")
    assert "| llama-4m | quiet | two busy processes |" in text
    (line,) = lines_of(text, "limit, threads wait in a short loop")
    assert (
        line.startswith("| limit, threads wait in a short loop | 100 ms (")
        and ", 0.50 x limit, threads wait in a loop |" in line
    )


def test_the_page_says_how_it_was_measured(page):
    how = section(page, ORIGIN.device)
    assert "torch 2.13.0, transformers 5.23.0, peft 0.21.2, lorakit 0.1.0; commit abc1234" in how
    assert "2026-01-02, 3 and 7 rounds." in how
    for name in BENCHMARKS:
        assert f"\npython -m benchmarks.{name}\n" in how


def test_each_section_has_a_table(page):
    titles = re.findall("^## (.*)$", page, flags=re.MULTILINE)
    assert titles == ["Goals", *(one.title for one in SECTIONS)]
    for one in SECTIONS:
        assert lines_of(section(page, one.title)), one.title


def test_a_step_has_its_time_and_its_ratios(page):
    text = section(page, "Time of a training step")
    lines = lines_of(text, LORAKIT_MLP)
    assert lines[0] == (
        "| lorakit+mlp | 692 ms | 1.11 (1.08–1.12) | 0.74 (0.72–0.75) | 0.78 (0.78–0.79) | "
        "0.81 (0.80–0.83) | 761 ms | 0.74 (0.72–0.75) |"
    )
    assert text.count("**llama-69m, 4 x 256, ") == 4
    assert "**bert-base, 4 x 128, float32, dropout 0.05, r=8**" in text


def test_bytes_are_exact_and_have_no_range(page):
    [lines, *_] = lines_of(section(page, "Memory of a training step"), LORAKIT_MLP)
    assert lines == (
        "| lorakit+mlp | 360 MiB | 1.00 | 0.77 | 420 MiB | 0.77 | 1.17 GiB | 0.69 | 0.77 |"
    )


def test_latency_decoding_and_loading(page):
    latency = section(page, "Latency of forward")
    [line] = lines_of(latency, "llama-69m", "1 x 128")
    assert "| 20.5 ms | 22.1 ms, 1.09 (1.08–1.09) | 20.5 ms, 1.01 (0.98–1.02) |" in line
    decoding = section(page, "Decoding with an adapter for each row")
    [line] = lines_of(decoding, "128 rows, 128 adapters")
    assert line.endswith("| 1280 tokens/s | 1152 tokens/s, 0.91 (0.90–0.91) |  |")
    loading = section(page, "Adding, loading and switching adapters")
    [line] = lines_of(loading, "load an adapter from disk, the 64th")
    assert "12.0 ms (11.9 ms–12.1 ms), 1.00 x its 2nd | 600 ms" in line
    [line] = lines_of(loading, "switch")
    assert "among 256 adapters, 0.005 x peft | 80.0 ms" in line


def test_quantized_bases_and_thin_products(page):
    steps = section(page, "A step on a quantized base")
    lines = lines_of(steps, "lorakit, 4 bits")
    assert len(lines) == 8  # two models, two dtypes, two columns
    assert "| 1.10 s | 1.11 (1.07–1.12) | 1.06 (1.05–1.06) | 0.78 (0.78–0.79) |" in lines[0]
    assert lines[0].endswith("| 105 MiB | 1.05 | 0.79 | 105 MiB | 4.00 bits |")
    [line] = lines_of(section(page, "Memory while loading"), "lorakit, 4 bits")
    assert line.endswith("| 572 MiB | 763 MiB | 1.86 GiB | 668 MiB |")
    [line] = lines_of(section(page, "Large data"), "1,000,000 short texts to classify", "run again")
    assert line.endswith("| 30.0 s | 50.0 s | 715 MiB |")
    lines = lines_of(section(page, "Thin products"), "down", "512 to 2048")
    assert "| 0.20 (0.20–0.20) | 0.40 (" in lines[0]


def test_decoding_in_4_bits(page):
    decoding = section(page, "Decoding on a base in 4 bits")
    lines = lines_of(decoding, "8 rows")
    assert len(lines) == 4  # two models, two dtypes
    assert "| 160 tokens/s | 80.0 tokens/s | 400 tokens/s | 2.52 (" in lines[0]
    assert "| 5.05 (" in lines[0]


def test_the_loss_of_an_output_layer_is_compared_in_time_and_memory(page):
    losses = section(page, "The loss of an output layer")
    assert losses.count("**768 to 32000, 1024 tokens, ") == 2
    lines = lines_of(losses, "lorakit")
    assert len(lines) == 6  # three sizes, two dtypes
    assert "| 400 ms | 0.50 (0.49–0.51) | 0.79 (0.79–0.80) | 410 MiB | 0.50 | 0.80 |" in lines[0]


def test_ways_to_train_have_their_spread_over_the_seeds(page):
    text = section(page, "Equal quality")
    [line] = lines_of(text, "accuracy")
    assert line.startswith("| accuracy | 81 ± 1 % (80, 81, 82) | 81 ± 1 % (")
    [line] = lines_of(text, "accuracy lost to random batches, float32")
    assert line.split(" | ")[1:] == ["", "0 points (-0.3 to 0.3)", " |"]
    assert "bfloat16, which dtype: auto takes: 200 ms." in text


def test_growth_is_in_the_order_of_its_values(page):
    text = section(page, "Growth")
    tokens = [int(n) for n in re.findall(r"^\| tokens (\d+) ", text, flags=re.MULTILINE)]
    assert tokens == [128, 256, 512, 1024, 2048, 4096] * 2
    assert lines_of(text, "rank 128")
    assert lines_of(text, "depth 16")


def test_where_the_two_ways_meet_is_measured_and_on_paper(page):
    [line, *_] = lines_of(section(page, "Bracketing"), "768 to 768", "384")
    forward, both = (int(n) for n in re.findall(r"(\d+) \(between", line))
    assert forward == pytest.approx(768, rel=0.2)  # the rows were made so
    assert both == pytest.approx(384, rel=0.2)


@pytest.mark.parametrize(
    ("ratios", "text"),
    [
        ([0.5, 0.8], "above 200"),
        ([1.1, 1.2], "below 100"),
        ([0.5, 2.0], "141 (between 100 and 200)"),
        ([0.5, 2.0, 0.5], "141 (between 100 and 200), 283 (between 200 and 400)"),
        ([], ""),
    ],
)
def test_the_meeting_lies_between_measured_neighbours(ratios, text):
    one = ROWS[0]
    points = [(100 * 2**k, dataclasses.replace(one, ratio=r)) for k, r in enumerate(ratios)]
    assert meeting_text(points) == text


def test_a_verdict_changes_with_the_number(page):
    step = {"measure": FORWARD_BACKWARD, "shape": "llama-69m", "dtype": "float32", "dropout": 0.0}
    wanted = {**step, "benchmark": "step", "variant": LORAKIT_MLP, "ratio_to": LIMIT}
    what = ("step / frozen limit", "llama-69m, 4 x 256, float32, r=8")
    [line] = lines_of(section(page, "Goals"), *what)
    assert line.endswith("| 1.111 (1.078–1.120) | ≤ 1.120 | ≤ 1.050 | met |")
    for ratio, text in ((1.2, "missed"), (1.04, "met, with the aim")):
        goals = section(machine_text(ORIGIN.device, replaced(ROWS, wanted, ratio=ratio)), "Goals")
        [line] = lines_of(goals, *what)
        assert f"| {ratio:.3f} (1.078–1.120) |" in line
        assert line.endswith(f"| {text} |")


def test_the_first_page_counts_the_goals_that_each_machine_meets():
    page = page_text(ROWS)
    [line] = [line for line in page.splitlines() if line.startswith(f"| [{ORIGIN.device}]")]
    verdicts = [verdict(goal, ROWS, ORIGIN.device) for goal in GOALS]
    met, measured = (
        sum(one.is_met for one in verdicts),
        sum(one.row is not None for one in verdicts),
    )
    assert 0 < met < measured
    assert f"| {met} of {measured} | " in line
    assert line.count(";") == measured - met - 1
    assert page.index(line) < page.index("## How it is measured")


def test_what_was_not_measured_says_why():
    device = f"Old CPU, AVX2, {NO_BF16}, threads 2"
    old = dataclasses.replace(ORIGIN, device=device)
    rows = [
        dataclasses.replace(one, origin=old)
        for one in ROWS
        if one.dtype == "float32" and one.benchmark != "rows"
    ]
    goals = section(machine_text(device, rows), "Goals")
    assert "not measured" not in goals
    reasons = goals.partition("Goals without a number here, by reason: ")[2]
    missing = sum("bfloat16" in goal.where.values() for goal in GOALS)
    assert f"{NO_BF16} ({missing})" in reasons
    assert "no row of benchmarks.rows (1)" in reasons


def test_devices_stand_one_after_the_other_the_newest_first():
    later = dataclasses.replace(ORIGIN, device="Some GPU, CUDA 13", date="2026-02-01")
    gpu = [
        dataclasses.replace(one, origin=later, shape="llama-1b")
        for one in matching(ROWS, benchmark="step", shape="llama-69m")
    ]
    page = page_text([*ROWS, *gpu])
    links = re.findall(r"^\| \[(.*)\]\((.*)\) \|", page, flags=re.MULTILINE)
    assert links == [
        (device, machine_place(device).as_posix()) for device in (later.device, ORIGIN.device)
    ]
    page_of_machine = machine_text(later.device, gpu)
    assert "python -m benchmarks.step --device cuda\n" in page_of_machine
    assert "goals are for llama-69m; there are no rows of it" in section(page_of_machine, "Goals")
    assert list(by_device([*ROWS, *gpu])) == [later.device, ORIGIN.device]


def test_charts_carry_the_table_they_draw(written):
    docs, paths = written
    page = (docs / machine_place(ORIGIN.device)).read_text(encoding="utf-8")
    images = re.findall(r"!\[.*\]\((.*)\)", page)
    assert len(images) == 6
    assert paths[:2] == [docs / PAGE_NAME, docs / machine_place(ORIGIN.device)]
    assert [(docs / MACHINES / image).resolve() for image in images] == [
        path.resolve() for path in paths[2:]
    ]
    for block in blocks(ORIGIN.device, read_rows(BENCHMARKS, docs.parent / "results")):
        if block.image:
            tree = ElementTree.parse(docs / block.image)
            assert tree.find(f".//{DESCRIPTION}").text == block.table
            assert block.table in page


def test_the_same_rows_give_the_same_files_and_old_charts_go(written, tmp_path):
    _, paths = written
    old = tmp_path / "docs" / IMAGES / "old-device" / "step.svg"
    old.parent.mkdir(parents=True)
    old.touch()
    old_page = tmp_path / "docs" / MACHINES / "old-device.md"
    old_page.parent.mkdir(parents=True)
    old_page.touch()
    append_rows(ROWS, tmp_path / "results")
    again = write_page(tmp_path / "results", tmp_path / "docs")
    assert not old.exists() and not old_page.exists()
    assert [path.read_bytes() for path in again] == [path.read_bytes() for path in paths]


def test_the_page_in_docs_is_what_the_rows_say():
    rows = read_rows(BENCHMARKS)
    page = (DOCS / PAGE_NAME).read_text(encoding="utf-8")
    assert page == page_text(rows), "docs/performance.md is stale: python -m benchmarks.page"
    machines = {
        DOCS / machine_place(device): machine_text(device, of_device)
        for device, of_device in by_device(rows).items()
    }
    assert set((DOCS / MACHINES).iterdir()) == set(machines)
    for path, text in machines.items():
        stale = f"{path.relative_to(ROOT)} is stale: python -m benchmarks.page"
        assert path.read_text(encoding="utf-8") == text, stale
    charts = {
        DOCS / block.image: block.table
        for device, of_device in by_device(rows).items()
        for block in blocks(device, of_device)
        if block.image
    }
    assert set((DOCS / IMAGES).rglob("*.svg")) == set(charts)
    for path, table in charts.items():
        said = ElementTree.parse(path).find(f".//{DESCRIPTION}").text
        assert said == table, f"{path.relative_to(ROOT)} is stale: python -m benchmarks.page"


def test_the_page_of_shared_work_in_docs_is_what_the_rows_say():
    rows = read_rows(shared_work.BENCHMARKS)
    page = (DOCS / shared_work.PAGE).read_text(encoding="utf-8")
    assert page == shared_work.page_text(rows), "it is stale: python -m benchmarks.page"
    drawn = {DOCS / shared_work.IMAGES / part.image for part, *_ in shared_work.parts(rows)}
    assert set((DOCS / shared_work.IMAGES).iterdir()) == drawn


def test_shared_work_has_a_bar_for_each_way_and_the_ratios_of_its_rounds():
    found = {part.benchmark: panels for part, _, panels in shared_work.parts(ROWS)}
    assert {name: len(panels) for name, panels in found.items()} == {
        "together": 4,
        "frozen_part": 2,
        "searches": 4,
    }
    step, epoch = found["frozen_part"]
    assert (step.what, epoch.what) == ("a step", "a later epoch")
    assert step.ratios["upper half, below kept"].endswith(" of all layers")
    memory = found["searches"][1]
    assert [*memory.values] == [*searches.WAYS] and memory.unit == "B"
    assert all(ratio.endswith(f" of {searches.ALONE}") for ratio in memory.ratios.values())
    assert searches.ALONE not in memory.ratios and searches.BOTH in memory.ratios


def test_without_rows_the_page_says_so(tmp_path):
    [path] = write_page(tmp_path, tmp_path / "docs")
    assert "There are no rows yet: `make bench` makes them." in path.read_text(encoding="utf-8")
