"""The sweep's table, page and picture: numbers of two presets and two seeds, computed by hand."""

import json

import pytest
from browser import Page

from flows.sweep_table import print_table, table_lines
from pipeline.report import sweep_plot
from pipeline.report.sweep import REFERENCES, table, write_sweep
from storage.errors import UserError

PRESETS = ["teacher_topk_lsm", "tail_bucket_topk", "forward_kl_topk", "gkd", "student_topk", "union_topk",
           "overlap_only", "stop_gradient_topk", "truncated_topk", "sampled_token", "sampled_token_masked", "lightning"]


def row(preset, seed, avg_at_k, kl=0.2, **changes):
    return {"preset": preset, "seed": seed, "run": f"r.r3.{preset.replace(' ', '-')}.s{seed}", "round": 3,
            "avg_at_k": avg_at_k, "closing_teacher_kl": kl, "closing_student_entropy": 0.5,
            "closing_student_mass": 0.9, "closing_drift": 0.01, "stopped": "done", "steps": 8,
            "masked_share": 0.0} | changes


ROWS = [row("as it was", None, 0.4, run="r"), row("gkd", 0, 0.25, 0.5), row("gkd", 1, 0.5, 0.25),
        row("lightning", 0, 0.75, stopped="drift_fuse", steps=3), row("lightning", 1, None, None, stopped="age_cap"),
        row("broken", 0, None, None)]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """12 presets, 3 seeds and both references."""
    rows = [row("as it was", None, 0.5, run="r"), row("before", None, 0.3, None, run="r")]
    rows += [row(preset, seed, 0.6 - 0.02 * place + 0.01 * seed, 0.1 + 0.02 * place)
             for place, preset in enumerate(PRESETS) for seed in range(3)]
    return rows, write_sweep(rows, "Round 3 of r", tmp_path_factory.mktemp("sweep") / "deep", "r.r3.sweep")


# --- the table ---


def test_presets_are_in_order_of_accuracy_behind_what_they_are_compared_with():
    assert [each["preset"] for each in table(ROWS)] == ["as it was", "lightning", "gkd", "broken"]
    assert [each["reference"] for each in table(ROWS)] == [True, False, False, False]


def test_a_preset_has_its_mean_and_range_over_the_seeds_that_were_measured():
    _, lightning, gkd, broken = table(ROWS)
    assert (gkd["seeds"], gkd["avg_at_k"], gkd["avg_at_k_min"], gkd["avg_at_k_max"]) == (2, 0.375, 0.25, 0.5)
    assert (gkd["closing_teacher_kl"], gkd["stopped_early"], gkd["steps"]) == (0.375, 0, 8)
    assert (lightning["seeds"], lightning["graded"], lightning["avg_at_k"], lightning["stopped_early"],
            lightning["steps"]) == (2, 1, 0.75, 2, 5.5)
    assert broken["avg_at_k"] is broken["avg_at_k_min"] is broken["closing_teacher_kl"] is None


def test_the_terminal_shows_means_and_spreads_in_eighty_columns():
    lines = table_lines(ROWS, 80)
    (gkd,), (lightning,) = ([line.split() for line in lines if line.startswith(name)] for name in ("gkd", "lightning"))
    assert gkd == ["gkd", "2", "0.375", "0.250-0.500", "0.375", "0.500", "0.900"]
    assert lightning == ["lightning", "2", "0.750", "0.200", "0.500", "0.900", "2"]
    assert any(line.split() == ["broken", "1", "–", "–", "0.500", "0.900"] for line in lines)
    wide = table_lines([row(name, seed, 0.5 + seed) for name in [*PRESETS, "x" * 64] for seed in (0, 0.1)], 80)
    assert max(map(len, [*lines, *wide])) <= 80 and any(line.startswith("sampled_token_masked ") for line in wide)


def test_a_name_is_shown_and_not_obeyed(capsys):
    print_table([row("\x1b[31m[bold]x[/bold]", 0, 0.5)])
    assert "\\x1b[31m[bold]x[/bold]" in capsys.readouterr().out


# --- the plots ---


def test_a_panel_has_the_seeds_of_each_preset_and_a_line_per_reference():
    accuracy, kl, *others = sweep_plot.panels(ROWS, ["lightning", "gkd", "broken"])
    assert (accuracy.values, kl.values) == ([[0.75], [0.25, 0.5], []], [[0.2], [0.5, 0.25], []])
    assert [(each.x, each.label, each.style) for each in accuracy.levels] == [(0.4, "as it was: 40.0 %", "dashed")]
    assert len(others) == 2


def test_a_metric_that_nobody_has_gets_no_panel():
    rows = [row("gkd", 0, None, closing_student_entropy=None), row("lightning", 0, None, closing_student_entropy=None)]
    found = sweep_plot.panels(rows, ["gkd", "lightning"])
    assert [each.metric for each in found] == ["closing_teacher_kl", "closing_student_mass"]


@pytest.mark.parametrize("scheme,width", [("light", 1200), ("dark", 1200), ("light", 360)])
def test_twelve_presets_and_three_seeds_can_be_read(browser, written, scheme, width):
    _, paths = written
    with Page(browser, paths["html"], color_scheme=scheme, viewport={"width": width, "height": 900}) as opened:
        plots = opened.page.evaluate("""[...document.querySelectorAll('figure svg')].map(each => {
            const box = each.getBoundingClientRect()
            return {texts: [...each.querySelectorAll('text')].map(text => text.textContent.trim()),
                    inside: [...each.querySelectorAll('text')].every(text =>
                        text.getBoundingClientRect().left > box.left - 4)} })""")
        assert len(plots) == 4 and all(plot["inside"] for plot in plots)
        for plot in plots:
            assert [text for text in plot["texts"] if text in PRESETS] == PRESETS
        keys = opened.page.evaluate("[...document.querySelectorAll('figure .key')].map(each => each.textContent)")
        assert keys[:2] == ["as it was: 50.0 %", "before: 30.0 %"]
        assert opened.page.evaluate("document.documentElement.scrollWidth") <= width and opened.noise == []


def test_the_picture_is_whole_and_the_numbers_lie_beside_it(written):
    rows, paths = written
    assert sorted(path.name for path in paths.values()) == ["r.r3.sweep.html", "r.r3.sweep.json", "r.r3.sweep.png"]
    assert paths["png"].read_bytes().startswith(b"\x89PNG") and paths["png"].stat().st_size > 20_000
    found = json.loads(paths["json"].read_text())
    assert found["rows"] == rows and found["table"] == table(rows)
    assert [each["preset"] for each in found["table"][:3]] == [*REFERENCES, "teacher_topk_lsm"]


def test_the_page_says_what_to_ask(written):
    page = written[1]["html"].read_text()
    assert "SELECT run, avg_at_k FROM rounds WHERE starts_with(run, &#39;r.r3.&#39;) AND round = 3" in page
    assert "<td>sampled_token_masked</td>" in page and '<p class="value">61.0 %</p>' in page


def test_the_same_rows_give_the_same_bytes(written, tmp_path):
    rows, paths = written
    again = write_sweep(rows, "Round 3 of r", tmp_path, "r.r3.sweep")
    assert all(again[kind].read_bytes() == paths[kind].read_bytes() for kind in ("html", "png", "json"))


def test_a_sweep_without_any_number_is_still_a_page(tmp_path):
    rows = [row("gkd", 0, None, None, closing_student_entropy=None, closing_student_mass=None, stopped=None)]
    assert "Nothing is measured yet" in write_sweep(rows, "t", tmp_path, "empty")["html"].read_text()


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(UserError, match="sweep: cannot write to .*: name another folder with --out"):
        write_sweep(ROWS, "t", tmp_path / "file", "name")
