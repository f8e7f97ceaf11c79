"""The answer in words says what the intervals of the summary say, and no more."""

import re

import example_results

from hybrid.ablate import report, words


def sentences(sweep: str, arm: str = "") -> list[str]:
    return words.answer(example_results.SWEEPS[sweep]())[arm]


def test_words_name_the_smallest_window_that_holds_and_what_it_saves():
    first, second, third = sentences("window", "text")
    assert first.startswith(
        "The smallest window_size that cannot be told apart from the baseline 256 is 32: "
        "loss 1.9205 against 1.9200 nats a token (difference +0.0005, 95 % interval −"
    )
    assert "2.91 × less cache (88 KiB instead of 256 KiB at 256 tokens)" in first
    assert "20 % fewer FLOPs" in first
    assert re.search(r"window_size 8 \(\+0\.0800: .*\) and 16 \(.*\) are worse beyond", second)
    assert "32 and 64 cannot be told apart from it" in second
    assert "128 to 255 tokens back, window_size 8" in third


def test_words_name_the_highest_local_share_that_holds():
    first, second, _ = sentences("ratio")
    assert "highest share of local layers (83 %)" in first
    assert "from the baseline all-global is 5:1:" in first
    assert second.endswith("with 3 seeds a difference below about 0.0055 nat would not show.")


def test_words_stop_at_the_first_window_that_is_worse():
    results = example_results.window()
    cells = results["summary"]["arms"][0]["cells"]
    cells[0]["difference"] |= {"low": -0.5}  # the smallest window is merely uncertain
    assert "is 32:" in words.answer(results)["text"][0]
    cells[3]["difference"] |= {"mean": 0.01, "low": 0.005, "high": 0.015}
    cells[2]["difference"] |= {"mean": 0.01, "low": 0.005, "high": 0.015}
    assert words.answer(results)["text"][0].endswith("holds its loss.")


def test_words_say_where_no_difference_can_be_told():
    results = example_results.window()
    for cell in results["summary"]["arms"][0]["cells"]:
        cell["repeats"] = []
        if cell["difference"]:
            cell["difference"] |= {"mean": 0.001, "low": -0.004, "high": 0.006}
    first, second = words.answer(results)["text"]
    assert "is 8:" in first
    assert second.startswith("Against the baseline 256, no other cell can be told apart from it")
    assert "below about 0.0050 nat" in second


def test_words_say_which_cell_is_better():
    results = example_results.window()
    difference = {"mean": -0.02, "low": -0.03, "high": -0.01, "num": 3}
    results["summary"]["arms"][0]["cells"][2]["difference"] = difference
    first, second, _ = words.answer(results)["text"]
    assert "window_size that beats the baseline 256 is 32" in first
    assert "window_size 32 (−0.0200: −0.0300 to −0.0100) is better" in second


def test_words_go_by_context_length_where_there_are_several():
    first, second = sentences("rope")
    assert first.startswith("At 256 tokens of context, against the baseline 1, no other cell")
    assert "At 512 tokens" in second
    assert "are better beyond" in second


def test_one_seed_makes_no_verdicts():
    told = " ".join(sentences("one_seed", "text"))
    assert "One seed a cell, so no interval over seeds" in told
    assert "differ by −0.0004 (64) to +0.0800 (8)" in told
    assert "worse beyond" not in told
    assert "not told apart" not in report.render(example_results.one_seed())


def test_without_a_baseline_losses_are_compared_by_their_intervals():
    first, second = sentences("no_baseline", "text")
    assert first.startswith("No baseline is named")
    assert "the lowest mean loss is 64 (1.9196 nats a token, " in first
    assert second == "The interval of 64 overlaps with those of 32 and 256."


def test_words_of_needles_name_the_solved_and_those_at_chance_beyond_their_reach():
    solved, beyond = sentences("window", "needle")
    assert solved.startswith("Above 90 % over all distances: 256 (98.8 %, ")
    assert "not above it: 8 (38.2 %" in solved
    assert beyond.startswith("Beyond what the stack can reach, at chance (1 in 16): 8 (reach 29: 6")
    assert "98.8 % within one window" in beyond


def test_chance_is_claimed_only_by_its_interval_and_only_where_it_is_known():
    results = example_results.window()
    arm = results["summary"]["arms"][1]
    arm["chance"] = 0.02
    assert "by its interval: none;" in words.answer(results)["needle"][1]
    arm["chance"] = None
    assert "chance" not in words.answer(results)["needle"][1]


def test_words_of_mqar_look_at_the_most_pairs():
    solved, _, pairs = sentences("mqar")
    assert solved.startswith("Above 90 %: 3:1 (")
    assert pairs.startswith("At the most pairs, 16: all-local (39.5 %")


def test_words_say_where_seeds_of_a_cell_disagree():
    assert "Seeds of all-local disagree: 55.5 %, 59.5 % and 63.5 %." in sentences("mqar")
    assert not any("disagree" in sentence for sentence in sentences("window", "needle"))
