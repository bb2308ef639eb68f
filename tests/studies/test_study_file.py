"""A study file: what it says, which runs it plans, and what is refused."""

import tomllib
from pathlib import Path

import pytest

from smolctl.studies.plan import final_runs, horizons, tuning_runs
from smolctl.studies.study_file import read_study, study_of, to_toml
from smollm2.device import Compiler
from smollm2.errors import UserError
from smollm2.protocol.resolve import resolve


def minimal(**changes) -> dict:
    return {"arms": ["orig", "pow2"], "train": {"steps": 10, "scale": "nano"}} | changes


# The file


def test_arms_are_interleaved_by_seed():
    study = study_of(minimal(seeds=[3, 5]), "x")
    runs = final_runs(study, horizons(study, {}))
    assert [run.name for run in runs] == ["orig-s3", "pow2-s3", "orig-s5", "pow2-s5"]
    assert {run.role for run in runs} == {"final"}


def test_equal_flops_gives_the_cheaper_arm_more_steps():
    study = study_of(minimal(equal="flops", train={"steps": 1000, "scale": "nano"}), "x")
    configs = horizons(study, {})
    assert configs["orig"].steps == 1000
    assert configs["pow2"].steps < 1000  # nano pow2 costs more a token
    orig, pow2 = (resolve(configs[name]) for name in ("orig", "pow2"))
    assert pow2.steps * pow2.flops_per_step == pytest.approx(
        orig.steps * orig.flops_per_step, rel=1e-3
    )
    assert orig.test_tokens == pow2.test_tokens


def test_equal_seconds_gives_the_faster_arm_more_steps():
    study = study_of(minimal(equal="seconds"), "x")
    configs = horizons(study, {"orig": 1.0, "pow2": 0.5})
    assert (configs["orig"].steps, configs["pow2"].steps) == (10, 20)


def test_all_arms_are_compiled_or_none(monkeypatch):
    monkeypatch.setattr("smollm2.protocol.resolve.COMPILE_TOKENS", {"nano": 1_000_000})
    monkeypatch.setattr("smollm2.device.compiler", lambda: Compiler("cc", None))
    # The second arm costs more a token, and gets fewer of them.
    for steps, equal, expected in (
        (976, "flops", False),
        (977, "flops", True),
        (977, "seconds", False),  # the seconds are those of uncompiled steps
    ):
        settings = {"steps": steps, "scale": "nano", "device": "cpu"}
        study = study_of(minimal(train=settings, equal=equal, seeds=[0]), "x")
        configs = horizons(study, {"orig": 1.0, "pow2": 1.1})
        assert configs["pow2"].steps < steps
        assert {resolve(config).compile for config in configs.values()} == {expected}


def test_the_runs_of_an_arm_count_together_when_a_study_is_compiled(monkeypatch):
    monkeypatch.setattr("smollm2.protocol.resolve.COMPILE_TOKENS", {"nano": 8 * 100 * 1024})
    monkeypatch.setattr("smollm2.device.compiler", lambda: Compiler("cc", None))
    train = {"steps": 100, "scale": "nano", "device": "cpu"}
    sweep = {"lr": [1e-3, 2e-3], "seeds": [7, 8, 9]}
    for seeds, expected in (([0], False), ([0, 1], True)):  # and six runs of the tuning
        study = study_of(minimal(train=train, sweep=sweep, seeds=seeds), "x")
        assert {config.compile for config in horizons(study, {}).values()} == {expected}


def test_the_sweep_tries_every_arm_at_every_rate():
    study = study_of(minimal(sweep={"lr": [1e-3, 2e-3], "seeds": [7, 8]}), "x")
    runs = tuning_runs(study.tuning, study.tuning.lr, study, horizons(study, {}))
    assert [run.name for run in runs[:4]] == [
        "orig-lr0.001-s7", "pow2-lr0.001-s7", "orig-lr0.002-s7", "pow2-lr0.002-s7"
    ]  # fmt: skip
    assert len(runs) == 8
    rates = {"orig": 2e-3, "pow2": 1e-3}
    chosen = [run.at(rates[run.arm]) for run in final_runs(study, horizons(study, {}))]
    assert {run.arm: run.config.lr for run in chosen} == rates
    assert all(run.resolved == resolve(run.config) for run in chosen)


def test_keys_have_dashes_or_underscores_and_settings_are_a_list_or_a_table():
    train = {"steps": 10, "scale": "nano", "micro_batch_size": 2, "set": ["weight_decay=0.1"]}
    arm = {"variant": "pow2", "set": ["n_layers=4", "tie_embeddings=false"]}
    study = study_of(minimal(train=train, arms={"a": arm, "b": "orig"}), "x")
    train = {"steps": 10, "scale": "nano", "micro-batch-size": 2, "set": {"weight-decay": 0.1}}
    arm = {"variant": "pow2", "set": {"n_layers": 4, "tie_embeddings": False}}
    again = study_of(minimal(train=train, arms={"a": arm, "b": "orig"}), "x")
    assert [resolve(plan.config) for plan in again.arms] == [
        resolve(plan.config) for plan in study.arms
    ]
    assert resolve(again.arms[0].config).recipe.weight_decay == 0.1
    train = {"steps": 10, "scale": "nano", "set": ["weight-decay=0.1"], "batch-size": 3}
    older = study_of(minimal(train=train), "x").arms[0].config
    assert (resolve(older).recipe.weight_decay, older.micro_batch_size) == (0.1, 3)


BAD_FILES = {
    "a setting of a list": (
        minimal(arms={"a": {"variant": "orig", "set": {"d_ff": [1]}}, "b": "pow2"}),
        'set takes a list such as ["weight_decay=0.1"], or a table such as { weight_decay = 0.1 }',
    ),
    "one key in two spellings": (
        minimal(train={"steps": 10, "seq-len": 32, "seq_len": 32}),
        "seq_len appears twice, with - and with _",
    ),
    "unknown key": (minimal(seed=[1]), "Did you mean 'seeds'?"),
    "unknown option": (minimal(train={"step": 3}), "Did you mean 'steps'?"),
    "unknown arm key": (minimal(arms={"a": {"varient": "orig"}, "b": "pow2"}), "'variant'"),
    "one arm": (minimal(arms=["orig"]), "at least two arms"),
    "no arms": ({}, "at least two arms"),
    "a seed": (minimal(seeds=3), "seeds takes a list of different whole numbers from 0 to"),
    "seed twice": (minimal(seeds=[1, 1]), "different whole numbers"),
    "unknown equal": (minimal(equal="time"), "tokens, flops, seconds"),
    "one rate": (minimal(sweep={"lr": [1e-3]}), "at least two rates"),
    "rate and sweep": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "lr": 1e-3}),
        "either lr or",
    ),
    "wrong type": (minimal(train={"steps": "many"}), "steps takes a whole number"),
    "text for a switch": (minimal(train={"steps": 3, "compile": "no"}), "true or false"),
    "no table": (minimal(eval="hellaswag"), "write [eval]"),
    "unknown eval key": (minimal(eval={"task": "piqa"}), "Did you mean 'tasks'?"),
    "same runs twice": (
        minimal(arms={"a": "pow2", "b": "pow2"}),
        'b = { variant = "pow2", seeds = [3, 4, 5], data_seeds = [0, 1, 2] }',
    ),
    "same model": (minimal(arms=["pow2", "pow2:n_kv_heads=4"]), "are the same model"),
    "names alike": (minimal(arms={"a:b": "pow2", "a-b": "orig"}), "runs of the same names"),
    "arm twice": (minimal(arms=["orig", "orig", "pow2"]), "has a duplicate name"),
    "arm with a space": (minimal(arms={"a b": "pow2", "c": "orig"}), "not a valid name for an arm"),
    "arm that is a path": (
        minimal(arms=["orig", "my/wide.toml"]),
        "'my/wide.toml' is not a valid name for an arm; use letters, digits and . _ : , = -. "
        'To name your own variant: arms.wide = "my/wide.toml"',
    ),
    "empty sweep": (minimal(sweep={}), "at least two rates"),
    "rate set and sweep": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "set": ["lr=0.5"]}),
        "either lr or",
    ),
    "rate twice": (minimal(sweep={"lr": [1e-3, 1e-3]}), "same to six digits"),
    "rates alike": (minimal(sweep={"lr": [1e-3, 1.0000001e-3]}), "same to six digits"),
    "negative rate": (minimal(sweep={"lr": [1e-3, -1]}), "are between 1e-12 and 1000"),
    "seed of sweep and final": (
        minimal(sweep={"lr": [1e-3, 2e-3], "seeds": [7, 2]}),
        "seed 2 is in [sweep] and in arm 'orig'",
    ),
    "sweep of muon": (
        minimal(sweep={"lr": [1e-3, 2e-3]}, train={"steps": 3, "optimizer": "muon"}),
        "also trains at muon_lr",
    ),
    "two seeds to tune with": (
        minimal(tune={"seeds": [100, 101]}),
        "needs at least 3 seeds, not 2",
    ),
    "one rate to tune": (minimal(tune={"lr": [1e-3]}), "[tune] needs at least two rates"),
    "a rate of zero to tune": (minimal(tune={"lr": 0}), "between 1e-12 and 1000, not [0.0]"),
    "a word to tune": (minimal(tune={"lr": "high"}), "lr of [tune] takes a number"),
    "rates far apart": (
        minimal(tune={"lr": [1e-3, 2e-3, 4e-3]}),
        "at most a factor of 1.5 apart, and 0.001 and 0.002 are not",
    ),
    "tune and sweep": (minimal(tune={}, sweep={}), "give only [tune]"),
    "unknown key to tune": (minimal(tune={"rates": [1]}), "unknown key 'rates' in [tune]"),
    "rate and tune": (minimal(tune={}, train={"steps": 3, "lr": 1e-3}), "either lr or [tune]"),
    "seed of tune and final": (
        minimal(tune={"seeds": [2, 3, 4]}),
        "seed 2 is in [tune] and in arm 'orig'",
    ),
    "tune of muon": (
        minimal(tune={}, train={"steps": 3, "optimizer": "muon"}),
        "[tune] tunes lr only",
    ),
    "one look": (minimal(looks=[1, 3]), "ascending numbers of seeds, from 2 to the 3"),
    "looks backwards": (minimal(looks=[3, 2]), "such as [2, 3], not [3, 2]"),
    "looks beyond the seeds": (
        minimal(looks=[2, 5]),
        "ascending numbers of seeds, from 2 to the 3",
    ),
    "looks that end early": (minimal(looks=[2]), "from 2 to the 3 that an arm has at the end"),
    "looks of another type": (minimal(looks=3), "looks are ascending numbers of seeds, from 2 to"),
    "a margin of nothing": (minimal(margin=0), "margin is a positive number"),
    "blocks without common seeds": (
        minimal(blocked=True, arms={"a": "pow2", "b": {"variant": "orig", "seeds": [7, 8, 9]}}),
        "must share at least two with the first arm",
    ),
    "blocks of another type": (minimal(blocked="maybe"), "blocked takes true or false"),
    "too few orders": (
        minimal(arms={"a": "pow2", "b": {"variant": "orig", "data_seeds": [1]}}),
        "arm 'b' has 3 seeds and 1 data_seeds: give one for each seed",
    ),
    "orders of another type": (
        minimal(arms={"a": "pow2", "b": {"variant": "orig", "data_seeds": "all"}}),
        "data_seeds of arm 'b' takes a list of different whole numbers",
    ),
    "same runs twice, orders given": (
        minimal(arms={"a": "pow2", "b": {"variant": "pow2", "data_seeds": [0, 4, 5]}}),
        "are the same model with the same seeds",
    ),
    "eval of nothing": (minimal(eval={}), "[eval] needs tasks"),
    "eval of no task": (minimal(eval={"tasks": ","}), "Name at least one task"),
    "eval of a list": (
        minimal(eval={"tasks": ["piqa"]}),
        "tasks takes a list such as \"arc_easy,hellaswag\", not ['piqa']",
    ),
    "eval of text": (minimal(eval={"tasks": "piqa, test"}), "'test' is not a task for [eval]"),
    "eval of an unknown task": (minimal(eval={"tasks": "piqqa"}), "Did you mean 'piqa'?"),
    "folder of questions": (
        minimal(eval={"tasks": "piqa", "data_dir": 3}),
        "data_dir of [eval] takes",
    ),
    "dtype of eval": (minimal(eval={"tasks": "piqa", "dtype": "fp99"}), "Unknown dtype 'fp99'"),
    "no questions": (minimal(eval={"tasks": "piqa", "limit": 0}), "[eval] must be at least 1"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_study_file_reports_an_error(case):
    table, sentence = BAD_FILES[case]
    with pytest.raises(UserError) as error:
        study_of(table, "x")
    assert sentence in str(error.value)


def test_an_arm_varies_nothing_but_the_model():
    study = study_of(
        minimal(arms={"a": "orig", "b": {"variant": "pow2", "set": ["grad_clip=2"]}}), "x"
    )
    with pytest.raises(UserError, match=r"Arm 'b' differs .* grad_clip: 1.0 there, 2.0 requested"):
        horizons(study, {})


def test_the_same_variant_with_other_seeds_is_a_control():
    arms = {"a": "pow2", "b": {"variant": "pow2", "seeds": [3, 4]}}
    study = study_of(minimal(arms=arms, seeds=[0, 1]), "x")
    names = [run.name for run in final_runs(study, horizons(study, {}))]
    assert names == ["a-s0", "b-s3", "a-s1", "b-s4"]


def test_a_control_may_have_the_data_of_the_arm_it_repeats():
    again = {"variant": "pow2", "seeds": [10, 11], "data_seeds": [0, 1]}
    study = study_of(minimal(arms={"a": "pow2", "again": again}, seeds=[0, 1]), "x")
    runs = {run.name: run.resolved for run in final_runs(study, horizons(study, {}))}
    assert list(runs) == ["a-s0", "again-s10", "a-s1", "again-s11"]
    assert [(run.seed, run.data_seed) for run in runs.values()] == [
        (0, 0),
        (10, 0),
        (1, 1),
        (11, 1),
    ]
    assert study.is_blocked


def test_the_demo_has_a_control_on_the_data_of_its_first_arm():
    study = read_study(Path(__file__).parents[2] / "results/demo.toml")
    runs = {run.name: run.resolved for run in final_runs(study, horizons(study, {}))}
    one, again = runs["orig-s0"], runs["orig-again-s10"]
    assert (one.model, one.recipe, one.data_seed) == (again.model, again.recipe, again.data_seed)
    assert one.seed != again.seed
    assert study.is_blocked


def test_arms_are_blocked_where_they_share_steps_and_orders():
    assert study_of(minimal(), "x").is_blocked
    assert not study_of(minimal(blocked=False), "x").is_blocked
    assert not study_of(minimal(equal="flops"), "x").is_blocked
    assert study_of(minimal(equal="flops", blocked=True), "x").is_blocked
    apart = {"a": "pow2", "b": {"variant": "pow2", "seeds": [3, 4, 5]}}
    assert not study_of(minimal(arms=apart), "x").is_blocked
    one_order = minimal(train={"steps": 10, "scale": "nano", "data_seed": 5})
    assert not study_of(one_order, "x").is_blocked


def test_results_are_looked_at_once_by_default():
    assert study_of(minimal(seeds=[1, 2, 3, 4]), "x").planned_looks == (4,)
    assert study_of(minimal(seeds=[1, 2, 3, 4], looks=[2, 4]), "x").planned_looks == (2, 4)


ROUND_TRIPS = {
    "plain": minimal(),
    "everything": minimal(
        seeds=[4, 5],
        equal="flops",
        arms={
            "pow2:n_kv_heads=8": "pow2:n_kv_heads=8",
            "b": {"variant": "pow2", "set": ["n_layers=2"], "seeds": [7]},
        },
        train={"steps": 3, "scale": "nano", "compile": False, "set": ["eps=1e-7"]},
        sweep={"lr": [1e-5, 2], "seeds": [9]},
        eval={"tasks": "piqa,arc_easy", "limit": 3, "dtype": "fp32"},
    ),
    "tuned": minimal(tune={}),
    "planned": minimal(looks=[2, 3], blocked=False, margin=0.01),
    "control": minimal(
        arms={"a": "pow2", "b": {"variant": "pow2", "seeds": [7, 8, 9], "data_seeds": [0, 1, 2]}}
    ),
    "rates": minimal(arms={"a": {"variant": "orig", "lr": 1e-5}, "b": "pow2"}),
}


@pytest.mark.parametrize("case", ROUND_TRIPS)
def test_the_kept_study_file_says_the_same(case):
    study = study_of(ROUND_TRIPS[case], "x")
    assert study_of(tomllib.loads(to_toml(study)), "x") == study


def test_the_kept_study_file_names_no_folder(variants):
    arms = {"a": f"{variants}/tiny.toml", "b": "orig"}
    train = {"steps": 3, "data": "/home/me/novels", "tokenizer": "/home/me/words"}
    table = minimal(arms=arms, train=train, eval={"tasks": "piqa", "data_dir": "/home/me/q"})
    text = to_toml(study_of(table, "x"))
    assert "/" not in text
    assert 'data = "novels"' in text
    assert 'data_dir = "q"' in text


def test_a_missing_or_broken_file_reports_an_error(workdir):
    with pytest.raises(UserError, match="no study file"):
        read_study(workdir / "none.toml")
    (workdir / "x.toml").write_text("arms = [")
    with pytest.raises(UserError, match="not a readable TOML"):
        read_study(workdir / "x.toml")
    (workdir / "My Study.toml").write_text('arms = ["orig", "pow2"]')
    with pytest.raises(UserError, match="not a valid name for a study"):
        read_study(workdir / "My Study.toml")
