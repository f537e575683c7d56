"""A plan can be carried out, costs what it says, survives its file, and carries over to other numbers of steps."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from delta_dit.commands.cli import main
from delta_dit.delta_plan import DeltaPlan, Full, Reuse
from delta_dit.schedules import for_speedup, front, generic, middle, paper, rear


def levels(steps: int) -> tuple[float, ...]:
    return tuple((999 * (1 - i / steps)) / 1000 for i in range(steps))


def longest_run(plan: DeltaPlan) -> int:
    kinds = "".join("r" if isinstance(action, Reuse) else "f" for action in plan.actions)
    return max(map(len, kinds.split("f")))


@pytest.mark.parametrize(
    ("steps", "interval", "cached", "speedup"),
    [(20, 2, 21, 1.600), (20, 2, 14, 1.333), (4, 2, 6, 1.12), (4, 2, 4, 1.077)],
)
def test_published_speedups(steps: int, interval: int, cached: int, speedup: float) -> None:
    plan = paper(steps, 28, interval, cached)
    assert round(plan.mac_speedup(), 3) == pytest.approx(speedup, abs=5e-4)
    assert for_speedup(steps, 28, plan.mac_speedup()) == (interval, cached)
    for fixed in (front, rear, middle):
        assert fixed(steps, 28, interval, cached).blocks_run() == plan.blocks_run()


def test_paper_reuses_rear_blocks_early_and_front_blocks_late() -> None:
    plan = paper(20, 28, 2, 21, early_steps=8)
    for step, action in enumerate(plan.actions):
        assert isinstance(action, Full if step % 2 == 0 else Reuse)
        if isinstance(action, Reuse):
            assert action.range == ((7, 28) if step < 8 else (0, 21))


def test_cost_counts_macs_outside_and_between_blocks() -> None:
    plan = DeltaPlan.of(3, [None, Reuse(1, 3)])
    assert plan.mac_speedup([1, 2, 3]) == pytest.approx(12 / 7)
    assert plan.mac_speedup([1, 2, 3], other_macs=4) == pytest.approx(20 / 15)
    assert plan.delta_bytes(10) == 10
    assert DeltaPlan.of(3, [None, None, Reuse(1, 3, order=1)]).delta_bytes(10) == 20
    with pytest.raises(ValueError, match="2 entries; allowed: 3"):
        plan.mac_speedup([1, 2])


@pytest.mark.parametrize("blocks", [1, 12, 28])
@pytest.mark.parametrize("speedup", [1, 1.12, 1.33, 1.6, 2, 2.5, 4, 20])
def test_generic_reaches_its_speedup_and_keeps_the_ends(speedup: float, blocks: int) -> None:
    plan = generic(20, blocks, speedup)
    assert plan.blocks_run() == 20 * blocks - round(20 * blocks * (1 - 1 / speedup))
    if speedup <= 2.5:
        ends = (*plan.actions[:5], *plan.actions[-2:])
        assert all(isinstance(action, Full) for action in ends)


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 50])
def test_generic_works_for_any_number_of_steps(steps: int) -> None:
    for speedup in {1, min(1.12, steps), min(1.6, steps), steps}:
        assert generic(steps, 6, speedup).blocks_run() == steps * 6 - round(steps * 6 * (1 - 1 / speedup))


@pytest.mark.parametrize("make", [generic, for_speedup])
@pytest.mark.parametrize("speedup", [0.9, 20.01, float("nan")])
def test_impossible_speedup_names_the_largest(make, speedup: float) -> None:
    with pytest.raises(ValueError, match="allowed: 1 to 20, the largest at 20 steps"):
        make(20, 28, speedup)


def test_records_are_exactly_what_is_needed() -> None:
    a, b = Reuse(0, 2), Reuse(1, 3)
    line = Reuse(2, 4, order=1)
    plan = DeltaPlan.of(4, [None, a, None, b, a, None, line, None])
    records = [action.records for action in plan.actions if isinstance(action, Full)]
    assert records == [((0, 2),), ((1, 3), (0, 2), (2, 4)), ((2, 4),), ()]


@pytest.mark.parametrize(
    ("reuses", "message"),
    [
        ([Reuse(0, 2)], "not recorded"),
        ([None, Reuse(0, 5)], "allowed: within"),
        ([None, Reuse(2, 2)], "allowed: within"),
        ([None, Reuse(0, 2, order=2)], "allowed: 0 or 1"),
        ([], "allowed: 1 or more"),
    ],
)
def test_plans_that_cannot_be_carried_out(reuses, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DeltaPlan.of(4, reuses)


def test_json_round_trip(tmp_path: Path) -> None:
    plan = DeltaPlan.of(4, [None, Reuse(0, 2), None, Reuse(1, 3, 1)], levels=(1, 0.5, 0.2, 0.1), provenance={"seed": 3})
    plan.save(tmp_path / "plan.json")
    assert DeltaPlan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def good() -> dict:
    return DeltaPlan.of(4, [None, Reuse(0, 2)], levels=(1, 0.5)).to_json()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "not json",
        "[]",
        "null",
        "3",
        "{}",
        json.dumps(good())[:-20],
        json.dumps(good() | {"schema": 2}),
        json.dumps(good() | {"steps": [{"action": "skip"}]}),
        json.dumps(good() | {"steps": [{"action": "reuse", "range": [0], "order": 0}]}),
        json.dumps(good() | {"steps": [3]}),
        json.dumps(good() | {"blocks": 1}),
        json.dumps(good() | {"blocks": None}),
        json.dumps(good() | {"levels": [1, 0.5, 0.1]}),
        json.dumps(good() | {"provenance": 3}),
    ],
)
def test_corrupt_plan_is_one_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "plan.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"plan '.*' cannot be used") as caught:
        DeltaPlan.load(path)
    assert "\n" not in str(caught.value)


def test_other_schema_names_this_one(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_text(json.dumps(good() | {"schema": 2}))
    with pytest.raises(ValueError, match="schema 2; allowed: 1"):
        DeltaPlan.load(tmp_path / "plan.json")


def test_bytes_that_are_no_text(tmp_path: Path) -> None:
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="cannot be used"):
        DeltaPlan.load(tmp_path / "plan.json")


def known(blocks: int = 12, speedup: float = 1.6) -> DeltaPlan:
    plan = generic(20, blocks, speedup)
    return DeltaPlan(plan.blocks, plan.actions, levels(20), {"model": "demo"})


def test_resample_to_the_same_levels_changes_nothing() -> None:
    plan = known()
    assert plan.resample(levels(20)) is plan
    assert plan.resample([level + 0.001 for level in levels(20)]) is plan


@pytest.mark.parametrize("speedup", [1.33, 1.6, 2, 2.5])
@pytest.mark.parametrize("steps", [10, 19, 25, 30, 40, 50])
def test_resample_keeps_the_share_of_reuse(steps: int, speedup: float) -> None:
    plan, carried = known(speedup=speedup), known(speedup=speedup).resample(levels(steps))
    assert carried.steps == steps and carried.provenance == plan.provenance
    assert isinstance(carried.actions[0], Full)
    share = 1 - plan.full_steps / plan.steps
    assert steps - carried.full_steps == pytest.approx(share * steps, abs=1)


@pytest.mark.parametrize("speedup", [1.33, 1.6, 2])
def test_twice_the_steps_are_not_runs_twice_as_long(speedup: float) -> None:
    plan = known(speedup=speedup)
    assert longest_run(plan.resample(levels(40))) <= longest_run(plan) + 1
    assert longest_run(plan.resample(levels(80))) <= longest_run(plan) + 1


def test_resample_keeps_ranges_at_their_noise_level() -> None:
    plan = paper(20, 28, 2, 21, early_steps=8)
    carried = DeltaPlan(28, plan.actions, levels(20)).resample(levels(50))
    for level, action in zip(levels(50), carried.actions, strict=True):
        if isinstance(action, Reuse) and abs(level - levels(20)[8]) > 0.05:
            assert action.range == ((7, 28) if level > levels(20)[8] else (0, 21))


def test_resample_of_an_image_to_image_run_starts_full() -> None:
    late = levels(20)[9:]
    carried = known().resample(late)
    assert carried.steps == 11 and isinstance(carried.actions[0], Full)
    assert carried.actions[-2:] == known().actions[-2:]


def test_resample_needs_levels() -> None:
    with pytest.raises(ValueError, match="allowed: 20 steps only"):
        generic(20, 12, 1.6).resample(levels(30))


def test_resample_of_random_plans_can_be_carried_out() -> None:
    random = np.random.default_rng(0)
    for _ in range(100):
        steps, blocks = random.integers(2, 30), int(random.integers(1, 9))
        reuses: list[Reuse | None] = [None]
        for _ in range(steps - 1):
            start, stop = sorted(random.choice(blocks + 1, 2, replace=False).tolist())
            reuses.append(None if random.random() < 0.5 else Reuse(start, stop, int(random.integers(2))))
        plan = DeltaPlan.of(blocks, reuses, levels=levels(int(steps)))
        carried = plan.resample(levels(int(random.integers(1, 60))))
        assert isinstance(carried.actions[0], Full)
        assert DeltaPlan.from_json(json.loads(json.dumps(carried.to_json()))) == carried


def test_command_writes_a_plan_without_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from delta_dit.commands.cli import main; "
        "code = main(['plan', '--steps', '20', '--blocks', '28', '--speedup', '1.6', '--schedule', 'paper', "
        f"'--json', {str(tmp_path / 'new' / 'plan.json')!r}]); "
        "sys.exit(code or ('torch' in sys.modules) * 77)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    value = json.loads((tmp_path / "new" / "plan.json").read_text())
    assert (value["mac_speedup"], value["interval"], value["cached_blocks"], len(value["steps"])) == (1.6, 2, 21, 20)
    assert DeltaPlan.load(tmp_path / "new" / "plan.json") == paper(20, 28, 2, 21)


@pytest.mark.parametrize("schedule", ["generic", "paper", "rear"])
def test_command_refuses_the_impossible_in_one_line(schedule: str, tmp_path: Path, capsys) -> None:
    path = tmp_path / "plan.json"
    assert main(["plan", "--speedup", "21", "--schedule", schedule, "--json", str(path)]) == 2
    error = capsys.readouterr().err
    assert "speedup=21.0" in error and "1 to 20" in error and error.count("\n") == 1
    assert not path.exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--min-psnr", "40"], "--calibration"),
        (["--speedup", "2", "--max-error", "0.1"], "one of them"),
        (["--max-error", "-1", "--calibration", "x"], "above 0"),
        (["--steps", "0"], "above 0"),
        (["--calibration", "/nowhere/at/all"], "run folder"),
        (["--calibration", "x", "--schedule", "paper"], "--schedule"),
    ],
)
def test_command_refuses_what_makes_no_sense(options: list[str], words: str, capsys) -> None:
    assert main(["plan", *options]) == 2
    error = capsys.readouterr().err
    assert words in error and error.count("\n") == 1


def test_command_prints_a_table(capsys) -> None:
    assert main(["plan", "--steps", "4", "--speedup", "1.12", "--schedule", "paper"]) == 0
    shown = capsys.readouterr().out
    assert "1.120×" in shown and shown.count("reuse") == 3  # two steps and the heading
