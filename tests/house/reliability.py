"""Writes docs/reliability.md from runs: promises, faults, what then happens, and how many cases were run.

`python -m tests.house.reliability` runs the tests that the rows name and counts the cases that passed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree

from tests.house.readme import BENCHMARKS, filled
from tests.mutation.rooms import ROOMS

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "reliability.md"
MUTANTS = BENCHMARKS / "mutants.json"

HEAD = """# What is promised, and what was tried

A cache that is sometimes wrong without a word is worse than none. Each row of this page is a promise, a fault that
could break it, and what happens instead. *Cases* is the number of cases that one run of a test has passed. The command
`python -m tests.house.reliability` runs these tests and writes this page. A case that fails stops it.

"""
LONG = """
## Long runs

`make soak` generates a thousand videos in one process, each with a prompt of its own. It counts what is held after a
tenth of them, after a half, and after all.

<!-- table soak -->
<!-- end soak -->

`make kills` kills fifty runs with SIGKILL at random points, resumes each, and compares the video with that of a run
that was left alone.

<!-- table kills -->
<!-- end kills -->

## Fuzzing

`make fuzz` changes the files that are read. Where atheris is installed (`pip install 'mccompile[fuzz]'`), it looks for
changes that reach new code of the reader. What it found is kept in `tests/readers/corpus/`, and a test reads all of it.
A fault is an error without a code.

<!-- table fuzz -->
<!-- end fuzz -->

## Mutants

A mutant is the product with one small change: another comparison, another constant, a condition turned round, a
statement left out. It is killed when a test fails. [Mutants are made by a driver of our own](decisions/mutants.md).
`make mutants` takes the functions in a random order, so that those tried are a sample of all, and it tries all mutants
of a function together. Each is run against tests that run the changed line: first those that have seen mutants of the
same function or file, then the quick ones, for as long as eight seconds of tests take while they are traced. Those that
survive can be tried again for longer (`python -m tests.mutation run` tells how), and
`python -m tests.mutation again FILE...` against whole files of tests. A test that needs twelve times as long, and three
seconds at least, where it ends without the mutant, runs for ever.

Sessions add up: `tests/mutation/tried.json` names each mutant that a test has seen, and a session leaves those out. A
verdict holds as long as the changed code reads as it does. Of the first sessions numbers alone are known; such a number
stands in the table until more mutants of its room are known by name, and it is never added to them.

Most mutants of `lowering/` and `runtime/` were tried in one process against direct tests of the changed function:
a test that failed was run again without the mutant. Many others met the tests that run whole models. A mutant of
a constant that an import makes was tried in a process of its own. In `runtime/` 54 mutants have not been tried.

<!-- table mutants -->
<!-- end mutants -->

UNTRIEDThe file [mutants.json](benchmarks/mutants.json) names those that no test has seen. These change nothing that a
run could show:

| mutant | why it is not seen |
| --- | --- |
"""
TAIL = """
## Laws

The [laws](architecture.md#laws) have tests that stay. Each of them is also seen to fail:

| law | a wrong pass or runtime that its test sees |
| --- | --- |
"""


@dataclass(frozen=True, slots=True)
class Promise:
    """One row. test: the function whose cases are counted, as `file::function`."""

    promise: str
    fault: str
    outcome: str
    test: str


PIPELINES, RUNTIME = "tests/pipelines", "tests/runtime"
PROMISES = (
    Promise(
        "A generation is that of a fresh compile", "sequences of runs, interrupts, other sizes, prompts, guidance, "
        "weights, hooks, LoRA, undo, compile, clear, save, load", "bit-equal, or refused (MC0612)",
        f"{PIPELINES}/test_sequences.py::test_a_generation_is_that_of_a_fresh_compile_whatever_came_before",
    ),
    Promise(
        "Memory is flat", "12 generations with 12 prompts", "as many tensors, events and stores as after the fourth",
        f"{PIPELINES}/test_sequences.py::test_memory_is_flat_over_many_generations",
    ),
    Promise(
        "What is no number is not reused", "NaN or infinity in the latents after a step", "the next call computes all, "
        "the trace says why", f"{PIPELINES}/test_finite.py::test_nothing_of_a_result_that_is_no_number_is_used_again",
    ),
    Promise(
        "What is no number is not reused", "NaN in a weight", "every call computes; the next request is right again",
        f"{PIPELINES}/test_finite.py::test_weights_that_are_no_numbers_leave_nothing_to_the_next_request",
    ),
    Promise(
        "What is no number is not reused", "NaN or infinity in a signal, under each guard", "the cell is computed, "
        "others as before", f"{RUNTIME}/test_measured.py::test_a_cell_whose_signal_is_no_number_is_computed",
    ),
    Promise(
        "A condition never reuses on NaN", "`not`, `min`, `accumulate` around it", "computed, in plan and run",
        "tests/policy/test_influence.py::test_no_condition_reuses_on_what_is_no_number",
    ),
    Promise(
        "A fit is used where it holds", "a published polynomial outside of its domain", "told with figures and remedy",
        "tests/policy/test_influence.py::test_the_domain_of_a_fit_is_where_it_is_a_distance",
    ),
    Promise(
        "A threshold decides something", "a run in which it does not", "told with its range",
        "tests/policy/test_influence.py::"
        "test_a_negative_fit_is_told_and_so_is_the_threshold_that_it_leaves_without_influence",
    ),
    Promise(
        "The graph is the model at every size", "a forward that branches on a size", "refused (MC0405)",
        "tests/capture/test_capture_guards.py::test_a_size_at_which_forward_branches_is_refused_and_others_are_run",
    ),
    Promise(
        "Guards are data", "text of guards that is no condition on sizes", "counts as broken, is never executed",
        "tests/capture/test_capture_guards.py::test_guards_are_read_as_data",
    ),
    Promise(
        "The model is the one of now", "a LoRA added, scaled, disabled, fused, deleted; its weights changed",
        "refused (MC0612); new values are followed",
        f"{PIPELINES}/test_state.py::test_an_adapter_is_part_of_what_was_compiled",
    ),
    Promise(
        "The model is the one of now",
        "weights changed in place, `.data`, `load_state_dict(assign=True)`, parameters replaced", "the new values run",
        f"{PIPELINES}/test_state.py::test_changed_weights_are_the_ones_that_run",
    ),
    Promise(
        "The model is the one of now", "settings, lists, objects, processors, classes and their code changed",
        "refused (MC0612)", f"{PIPELINES}/test_state.py::test_settings_and_code_are_part_of_a_model",
    ),
    Promise(
        "The model is the one of now", "values changed in lists, tables, arrays and objects of its modules",
        "refused (MC0612)", f"{PIPELINES}/test_remembers.py::test_values_in_containers_and_objects_belong_to_the_model",
    ),
    Promise(
        "The graph is what the model runs", "a forward that counts its calls, or keeps what the last one gave",
        "refused (MC0615)", f"{PIPELINES}/test_remembers.py::test_what_a_forward_carries_over_is_found",
    ),
    Promise(
        "The model is the one of now", "another structure: hooks, blocks, processors, dtype, mode, another cache",
        "refused (MC0612)", f"{PIPELINES}/test_state.py::test_another_structure_is_refused_before_the_first_step",
    ),
    Promise(
        "The compiled model is the user's own", "modules, weights and state loaded or assigned through the pipeline",
        "they reach the model and the graphs", f"{PIPELINES}/test_stand_in.py::"
        "test_changes_reach_the_model_and_the_graphs",
    ),
    Promise(
        "The compiled model is the user's own", "adapters set, switched, disabled, enabled by the pipeline's functions",
        "followed", f"{PIPELINES}/test_adapters.py::test_the_pipelines_own_functions_reach_the_adapters",
    ),
    Promise(
        "The compiled model is the user's own", "a LoRA loaded after the compile, then fused, deleted or unloaded",
        "refused while it is there (MC0612)", f"{PIPELINES}/test_adapters.py::"
        "test_adapters_that_go_by_the_pipelines_own_functions_are_refused",
    ),
    Promise(
        "The graph is what the model runs", "a call under `torch.autocast`", "refused (MC0614)",
        f"{PIPELINES}/test_stand_in.py::test_autocast_is_refused",
    ),
    Promise(
        "The step is the right one", "schedulers that repeat or round timesteps", "every call is the next step",
        f"{PIPELINES}/test_clocks.py::test_every_call_is_the_next_step",
    ),
    Promise(
        "The step is the right one", "a start in the middle", "counted from the first step that runs",
        f"{PIPELINES}/test_clocks.py::test_a_start_in_the_middle_counts_from_its_first_step",
    ),
    Promise(
        "The samples of a call are apart", "results of another form for several samples", "captured for one number",
        "tests/capture/test_capture_batch.py::test_results_of_another_form_are_not_those_of_each_sample_alone",
    ),
    Promise(
        "The step is the right one", "a call outside of a generation, after an exception", "refused (MC0601)",
        f"{PIPELINES}/test_clocks.py::test_a_call_outside_of_the_pipelines_own_is_refused",
    ),
    Promise(
        "Calls of several threads", "two threads on one pipeline", "served one after the other, bit-equal",
        f"{PIPELINES}/test_watch.py::test_calls_of_two_threads_run_one_after_the_other",
    ),
    Promise(
        "Nothing that the user has is lost", "`save_pretrained` of a compiled pipeline", "saved with its transformer",
        f"{PIPELINES}/test_watch.py::test_a_saved_pipeline_has_its_own_transformer",
    ),
    Promise(
        "Nothing that was computed is lost", "a run that dies at one of its writes", "goes on to the identical video",
        "tests/generate/test_journal.py::test_a_stopped_run_goes_on_to_the_same_video",
    ),
    Promise(
        "Nothing good is destroyed", "a disk that is full after half of a file", "what was there stays; the result is "
        "saved elsewhere (MC0715)", "tests/generate/test_places.py::"
        "test_a_result_without_its_place_is_saved_and_the_others_are_written",
    ),
    Promise(
        "What is read may come from anybody", "up to 60 changed files of each kind", "read as what it says, or refused "
        "by a code", "tests/readers/test_readers.py::test_no_change_makes_a_raw_error",
    ),
    Promise(
        "What is read may come from anybody", "what atheris found to reach each part of a reader", "read as what it "
        "says, or refused by a code", "tests/readers/test_readers.py::test_no_input_of_the_corpus_makes_a_raw_error",
    ),
    Promise(
        "What is read may come from anybody", "a malformed record of a run", "refused (MC0751)",
        "tests/readers/test_readers.py::test_a_record_that_is_none",
    ),
    Promise(
        "What is read may come from anybody", "a damaged study", "refused (MC0744)",
        "tests/explore/test_study.py::test_a_damaged_study_is_refused",
    ),
)  # fmt: skip

WRONG = (
    ("1 identity, 2 rows", "operators left out, index off by one, a cast too many",
     "tests/capture/test_capture_wrong_passes.py"),
    ("3 parity", "another threshold, another norm", "tests/generate/test_replay.py::test_a_wrong_policy_is_seen"),
    ("4 isolation", "branches that share a store, stores that outlive their prompt or weights",
     f"{PIPELINES}/test_sequences.py::test_a_wrong_runtime_is_seen"),
    ("5 folding", "a planner that forgets to clear accounts", f"{RUNTIME}/test_wrong_decisions.py::"
     "test_a_planner_that_forgets_to_clear_accounts_breaks_the_law_of_folding"),
    ("6 no recompile", "a parameter that was made a constant", f"{RUNTIME}/test_wrong_decisions.py::"
     "test_a_parameter_that_was_made_a_constant_breaks_the_law_of_parameters"),
    ("7 round trips", "writers that change a word", f"{RUNTIME}/test_wrong_decisions.py::"
     "test_writers_that_change_a_word_break_the_law_of_round_trips"),
)  # fmt: skip


def passed(tests: tuple[str, ...]) -> Counter[str]:
    """Runs tests in one process. Returns the cases of each that passed. Raises SystemExit where one fails."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        options = ["-q", "-x", "-n0", "--show-capture=no", f"--junitxml={report}"]
        done = subprocess.run([sys.executable, "-m", "pytest", *options, *tests], cwd=ROOT, check=False)
        if done.returncode:
            raise SystemExit(done.returncode)
        found = ElementTree.parse(report).iter("testcase")
        return Counter(str(case.get("name")).partition("[")[0] for case in found)


def page(counts: Mapping[str, int]) -> str:
    """The whole page. counts: of passed cases, by the name of the test's function."""
    lines = ["| promise | fault | what happens | cases |", "| --- | --- | --- | --: |"]
    for row in PROMISES:
        lines.append(f"| {row.promise} | {row.fault} | {row.outcome} | {counts[row.test.rpartition('::')[2]]} |")
    laws = [f"| {law} | {wrong}: `{test}` |" for law, wrong, test in WRONG]
    total = f"\n{sum(counts[row.test.rpartition('::')[2]] for row in PROMISES)} cases were run, and all passed.\n"
    found = json.loads(MUTANTS.read_text("utf-8"))
    survivors, tried = found["survivors"], {row["room"] for row in found["rows"]}
    left = [f"`{room}/`" for room in ROOMS if f"{room}/" not in tried]
    untried = f"No mutant of {' and '.join(left)} has been tried.\n\n" if left else ""
    same = [f"| {what} | {why} |" for what, why in unseen(survivors)]
    rest = LONG.replace("UNTRIED", untried)
    text = HEAD + "\n".join(lines) + "\n" + total + rest + "\n".join(same) + "\n" + TAIL + "\n".join(laws) + "\n"
    return filled(text)


def unseen(survivors: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Each reason of a file once, with the mutant that has it, or the first one and the number of the others."""
    found = defaultdict[tuple[str, str], list[str]](list)
    for key, why in survivors.items():
        found[key.partition(" ")[0], why].append(key)
    for (_, why), (key, *others) in found.items():
        more = f" and {len(others)} more of the file" if others else ""
        yield f"`{key.removeprefix('mccompile/').replace('|', '·')}`{more}", why


def main() -> None:
    """Runs the tests and writes the page."""
    PAGE.write_text(page(passed(tuple(row.test for row in PROMISES))), encoding="utf-8")


if __name__ == "__main__":
    main()
