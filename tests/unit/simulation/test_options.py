"""Options become a plan, or are refused with the value, the expected one and the way out; a plan names its runs."""

from dataclasses import replace
from pathlib import Path

import pytest

from ml_backend.errors import SettingsError
from ml_backend.registry import STRATEGIES
from ml_backend.simulation.options import SimulateOptions, make_plan
from ml_backend.simulation.plan import BASELINE
from ml_backend.simulation.readers import read_readers
from ml_backend.simulation.run import load_data
from tests.fakes import CLASSES
from tests.unit.simulation.tiny import make_data, write_tables
from tests.unit.simulation.tiny import make_plan as tiny_plan

PANEL = read_readers("good*4,poor", CLASSES)


@pytest.fixture
def options(tmp_path: Path) -> SimulateOptions:
    """48 images to train on, 9 to validate on, 12 to test on, as features."""
    return SimulateOptions(
        **write_tables(tmp_path),
        out=tmp_path / "out",
        start="given",
        initial=2,
        batch_size=5,
        device="cpu",
        task="normal;moderate;severe",
    )


class TestMakePlan:
    def test_by_default_is_the_paper_s(self, options):
        plan, data = make_plan(replace(options, batch_size=None))

        assert plan.strategies == ("random", "entropy", "mean_std")
        assert plan.seeds == tuple(range(20))
        assert plan.losses == ("weighted",)
        assert plan.budget == 24
        names = ("batch_size", "patience", "passes", "finetune")
        assert [plan.options[name] for name in names] == [20, 3, 50, "head"]
        assert data.classes == ("normal", "moderate", "severe")
        assert set(plan.digests) == {"labels", "features"}
        assert {"python", "torch", "numpy"} <= set(plan.versions)

    @pytest.mark.parametrize(
        ("changes", "field", "value"),
        [
            ({"seeds": "1"}, "seeds", (0,)),
            ({"seeds": "3"}, "seeds", (0, 1, 2)),
            ({"seeds": "3,5,7"}, "seeds", (3, 5, 7)),
            ({"seeds": "4,"}, "seeds", (4,)),
            ({"budget": "1.0"}, "budget", 48),
            ({"budget": "20"}, "budget", 20),
            ({"budget": "48"}, "budget", 48),
            ({"budget": "0.29"}, "budget", 13),
            ({"budget": "0.25"}, "budget", 12),
            ({"strategies": "bald"}, "strategies", ("random", "bald")),
            ({"strategies": "bald,random"}, "strategies", ("bald", "random")),
            ({"strategies": "bald", "no_random": True}, "strategies", ("bald",)),
            ({"loss": "unweighted, weighted"}, "losses", ("weighted", "unweighted")),
            ({"readers": "good*3", "reads": 2, "count": "reads", "budget": "0.5"}, "budget", 48),
            ({"readers": "good*3", "count": "reads", "budget": "144"}, "budget", 144),
        ],
    )
    def test_parses_an_option(self, options, changes, field, value):
        assert getattr(make_plan(replace(options, **changes))[0], field) == value

    def test_paths_do_not_depend_on_where_a_worker_stands(self, options, monkeypatch, tmp_path):
        monkeypatch.chdir(tmp_path)

        plan, _ = make_plan(replace(options, labels=Path("labels.csv"), features=Path("features.npz")))

        assert (plan.labels, plan.features) == (str(options.labels), str(options.features))
        assert load_data(plan).truth == make_data().truth

    def test_the_environment_changes_nothing(self, options, monkeypatch):
        monkeypatch.setenv("AL_EPOCHS", "1")

        plan, _ = make_plan(options)

        assert plan.options["epochs"] == 50

    def test_batch_bald_gives_all_strategies_its_passes(self, options):
        """The passes also predict the test side: with different T the strategies would not compare."""
        assert make_plan(replace(options, strategies="entropy,batch_bald"))[0].options["passes"] == 100
        assert make_plan(replace(options, strategies="entropy,batch_bald", passes=7))[0].options["passes"] == 7

    def test_an_imbalance_is_reached(self, options):
        plan, data = make_plan(replace(options, imbalance="normal=0.2", budget="20"))

        assert plan.imbalance == {"normal": 0.2}
        assert data.counts()["train"] == {"normal": 8, "moderate": 16, "severe": 16}

    def test_the_weights_are_hashed_or_refused(self, options, tmp_path):
        for image in make_data().images:
            path = tmp_path / "images" / image.uri
            path.parent.mkdir(exist_ok=True, parents=True)
            path.touch()
        options = replace(options, images=tmp_path / "images", features=None, weights=str(tmp_path / "net.pt"))

        with pytest.raises(SettingsError, match=r"--weights '.*/net.pt' cannot be read"):
            make_plan(options)
        (tmp_path / "net.pt").write_bytes(b"weights")
        assert make_plan(options)[0].digests["weights"].startswith("9a129038")


class TestRefusals:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"strategies": "entropie"}, "--strategy: there is no strategy 'entropie'; known are badge, bald"),
            ({"strategies": " , "}, "names nothing: expected, for example, entropy,mean_std"),
            ({"strategies": "bald,bald"}, "names bald twice"),
            ({"strategies": "random", "no_random": True}, "--no-random, but --strategy names random"),
            ({"seeds": "ten"}, "--seeds 'ten': expected how many (10) or which (3,5,7)"),
            ({"seeds": "-1"}, "--seeds '-1'"),
            ({"seeds": "0"}, "--seeds 0: a study needs 1 seed or more; for the seed 0 alone write `0,`"),
            ({"loss": "focal"}, "--loss 'focal': expected weighted, unweighted, or both"),
            ({"profile": "mine"}, "--profile 'mine': there is no such profile; known are paper, best"),
            (
                {"budget": "all"},
                "--budget 'all' is not a number: expected labels (200) or a fraction of the 48 training",
            ),
            ({"budget": "1.5"}, "--budget 1.5: there are 48 training images"),
            ({"budget": "nan"}, "--budget 'nan' is not a number"),
            ({"budget": "49"}, "--budget 49: there are 48 training images"),
            ({"budget": "5"}, "--budget 5 is 5 labels, fewer than the 6 of the start set (2 of each of 3 classes)"),
            ({"initial": 1}, "--initial 1: every class needs 2 labels or more"),
            ({"initial": 17, "budget": "1.0"}, "fewer than the 51 of the start set"),
            # Of 8 normal images on the training side, 9 cannot be the start.
            (
                {"imbalance": "normal=0.2", "initial": 9, "budget": "1.0"},
                "--initial 9: on the training side normal has 8",
            ),
            ({"workers": 0}, "--workers 0: expected 1 or more"),
            ({"imbalance": "normal"}, "--imbalance 'normal': 'normal' is not a fraction; expected class=share"),
            ({"imbalance": "ill=0.1"}, "ill"),
            ({"finetune": "full"}, "--finetune full trains the whole network, which --features cannot feed"),
            ({"finetune": "feet"}, "finetune='feet'"),
            ({"weights": "none"}, "--weights none: the network trains on --features"),
            ({"backbone": "resnet50"}, "--backbone resnet50: the network trains on --features"),
            ({"option": ["per_patient=2"]}, "--option per_patient=2: batches of a given start"),
            ({"passes": 0}, "--passes=0"),
            ({"batch_size": 0}, "--batch-size=0"),
            ({"device": "tpu"}, "--device 'tpu': expected auto, cpu or cuda"),
            ({"features": None}, "give --images, --features, or both"),
            ({"task": "normal"}, "expected 2 classes or more, got 1"),
            ({"readers": "good*2", "reads": 3}, "--reads 3: expected 1 to 2, the most readers of an image"),
            ({"reads": 2}, "--reads 2 needs readers: give --ratings, or --readers such as good*4,poor"),
            ({"count": "reads"}, "--count reads needs readers: give --ratings, or --readers"),
            ({"count": "hours"}, "--count 'hours': expected images or reads"),
            ({"option": ["ordinal=false"]}, "-o ordinal=false: consensus=median needs the order of the classes; give"),
            ({"option": ["ordinal=severe,moderate,normal"]}, "-o ordinal=severe,moderate,normal: the classes of a s"),
            ({"option": ["reread_share=0.3"]}, "-o reread_share=0.3: a study reads no image again later; leave it"),
            (
                {"readers": "good", "ratings": Path("r.csv")},
                "--readers and --ratings: synthetic readers answer instead",
            ),
            ({"readers": "good", "count": "reads", "budget": "49"}, "--budget 49: there are 48 reads of the training"),
            (
                {"readers": "good*4,poor", "reads": 3, "count": "reads", "budget": "10"},
                "10 reads, fewer than the 18 of the start set (2 of each of 3 classes, 3 reads an image): give",
            ),
            (
                {
                    "start": "live",
                    "initial": None,
                    "min_labels_per_class": 2,
                    "readers": "good*3",
                    "count": "reads",
                    "budget": "12",
                },
                "--budget 12: the first network needs 15 reads, not 12",
            ),
        ],
    )
    def test_name_the_value_and_the_way_out(self, options, changes, message):
        with pytest.raises(SettingsError) as refused:
            make_plan(replace(options, **changes))

        assert message in str(refused.value)

    def test_reads_are_counted_only_where_every_image_has_as_many(self, options, tmp_path):
        """Two ratings of every image, but of the first one."""
        ids = [image.id for image in make_data().images]
        rows = [f"{image},{rater},severe" for image in ids for rater in "ab"[: 1 + (image != "train/000.png")]]
        (tmp_path / "r.csv").write_text("\n".join(["path,rater,label", *rows]) + "\n")
        counted = replace(options, ratings=tmp_path / "r.csv", count="reads")

        for reads in (None, 2):
            with pytest.raises(SettingsError, match=r"have 1 to 2 ratings each.*; give --reads 1, the fewest"):
                make_plan(replace(counted, reads=reads))
        plan, _ = make_plan(replace(counted, reads=1))
        assert (plan.reads, plan.budget, plan.rounds(3, 48)) == (1, 24, 4)
        assert make_plan(replace(counted, count="images"))[0].reads is None


class TestLoadData:
    def test_a_table_that_has_changed_is_refused(self, options):
        plan, _ = make_plan(options)
        options.labels.write_text(options.labels.read_text() + "\n")

        with pytest.raises(SettingsError, match="the labels have changed since the study began"):
            load_data(plan)


class TestCommand:
    def test_gives_the_same_plan_again(self, options):
        """Without what only spreads the work, or is a secret."""
        command = replace(options, workers=4, redis="redis://:secret@h/0", no_random=True, seeds="3,").command()

        assert command.startswith("ml-backend simulate --labels ")
        assert command.endswith(" --no-random")
        assert "--seeds 3, " in command
        assert "--batch-size 5" in command
        assert "secret" not in command
        assert "--workers" not in command
        assert "--loss" not in command


class TestRuns:
    def test_are_every_strategy_with_every_seed_and_a_baseline_for_each(self):
        names = [run.name for run in tiny_plan().runs()]

        assert names == ["random-s0", "random-s1", "entropy-s0", "entropy-s1", "baseline-s0", "baseline-s1"]

    def test_of_two_losses_carry_their_name(self):
        plan = tiny_plan(losses=("weighted", "unweighted"), seeds=(4,), strategies=("entropy",))

        assert [run.name for run in plan.runs()] == [
            "entropy-weighted-s4", "entropy-unweighted-s4", "baseline-weighted-s4", "baseline-unweighted-s4",
        ]  # fmt: skip
        assert [plan.options_of(run).loss for run in plan.runs()] == ["weighted", "unweighted"] * 2

    def test_are_done_seed_by_seed(self):
        """So that half a study holds whole comparisons."""
        assert [run.seed for run in tiny_plan().in_turn()] == [0, 0, 0, 1, 1, 1]

    def test_are_found_by_name(self):
        plan = tiny_plan()

        assert all(plan.run(run.name) == run for run in plan.runs())
        with pytest.raises(SettingsError, match="has no run 'entropy-s7': it was begun by another command"):
            plan.run("entropy-s7")

    def test_no_strategy_is_called_like_the_baseline(self):
        assert BASELINE not in STRATEGIES

    def test_seed_and_strategy_are_the_runs_own(self):
        plan = tiny_plan(seeds=(3,))
        run = plan.run("entropy-s3")

        assert (plan.options_of(run).seed, plan.options_of(run).strategy) == (3, "entropy")
        request = plan.request(run, ("a", "b"))
        assert (request.seed, request.strategy, request.batch_size, request.control_share) == (3, "entropy", 5, 0.0)


class TestRounds:
    @pytest.mark.parametrize(
        ("budget", "rounds"), [(6, 1), (10, 1), (11, 2), (30, 5), (46, 9), (47, 9), (48, 9), (5, 0)]
    )
    def test_train_within_the_budget_while_something_is_left_to_rank(self, budget, rounds):
        """6 labels, then 11, 16 ... 46 of 48."""
        assert tiny_plan(budget=budget).rounds(classes=3, train_images=48) == rounds
        of_reads = tiny_plan(budget=2 * budget + 1, readers=PANEL, reads=2, count="reads")
        assert of_reads.rounds(classes=3, train_images=48) == rounds


class TestContinued:
    def test_the_same_command_at_another_time_goes_on(self):
        earlier = tiny_plan()

        assert tiny_plan(started_at="2027-01-01T00:00:00+00:00", command="x").continued(earlier) is earlier

    def test_the_same_tables_at_another_place_go_on_from_there(self):
        moved = tiny_plan(labels="/elsewhere/l.csv", command="x")

        assert moved.continued(tiny_plan()) == tiny_plan(labels="/elsewhere/l.csv")

    @pytest.mark.parametrize(
        "more",
        [{"seeds": (2, 1, 0)}, {"strategies": ("bald", "entropy", "random")}, {"budget": 31}, {"baseline": True}],
    )
    def test_more_of_the_same_grows(self, more):
        """The command is that of the whole; the time that of the first call."""
        less = {"start": "given", "baseline": "baseline" not in more}
        plan = tiny_plan(started_at="2027-01-01T00:00:00+00:00", command="x", **more).continued(tiny_plan(**less))

        assert plan == tiny_plan(command="x", **less | more)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"budget": 20}, "(--budget: 30 then, 20 now)"),
            ({"seeds": (0, 2, 3)}, "(--seeds lacks 1)"),
            ({"strategies": ("random", "bald")}, "(--strategy lacks entropy)"),
            ({"losses": ("weighted", "unweighted")}, "(--loss: weighted then, weighted,unweighted now)"),
            ({"task": "a;b"}, "(--task: None then, a;b now)"),
            ({"digests": {"labels": "aa", "features": "cc"}}, "(content of --features: bb then, cc now)"),
            ({"versions": {"python": "3.12"}}, "(version of python: 3.11 then, 3.12 now)"),
            ({"options": {"batch_size": 20, "dropout": 0.3}}, "(--batch-size: 5 then, 20 now; --option dropout: 0.5"),
            ({"imbalance": {"normal": 0.1}}, "(--imbalance normal: None then, 0.1 now)"),
            ({"readers": PANEL}, "(--readers: none then, matrices 631aa82e of good-1,good-2,good-3,good-4,poor-5 now)"),
            ({"readers": {"good-1": PANEL["poor-5"]}}, "(--readers: none then, matrices 715a380c of good-1 now)"),
            ({"baseline": False}, "(--no-baseline: the study has baselines)"),
        ],
    )
    def test_what_cannot_be_compared_is_refused_by_its_option(self, changes, message):
        if "options" in changes:
            changes = {"options": tiny_plan().options | changes["options"]}

        with pytest.raises(SettingsError) as refused:
            tiny_plan(**changes).continued(tiny_plan(start="given"))

        assert message in str(refused.value)
        assert "give a new --out, repeat `ml-backend simulate" in str(refused.value)

    def test_own_functions_are_compared_by_their_code(self):
        digests = {"labels": "aa", "features": "bb", "own:score": "cc"}
        grown = tiny_plan(start="given", strategies=("random", "entropy", "own:score"), digests=digests)

        assert grown.continued(tiny_plan(start="given")) == grown
        with pytest.raises(SettingsError, match=r"code of own:score has changed .*: give a new --out, or"):
            grown.model_copy(update={"digests": digests | {"own:score": "dd"}}).continued(grown)
