"""Two small simulations keep their figures: of every round, of every pick, and of the tables of the report."""

import hashlib
import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tests.golden_entry import cli, draw_study
from tests.golden_figures import check, digest, figures, read_table, tables

CLASSES = ("normal", "moderate", "severe")
INFORMED = (
    "badge,bald,batch_bald,core_set,entropy,least_confidence,margin,mean_std,power_bald,typiclust,variation_ratios"
)
SUMMARY = ("images", "labels_per_class", "rounds", "passes", "batch_size", "initial_per_class", "notes", "options")


def drawn(folder: Path) -> list[str]:
    """Drawn images, with the answers of a panel of simulated readers: a network looks at them."""
    draw_study(folder, count=66, shares={"normal": 0.2, "moderate": 0.35, "severe": 0.45}, seed=3, side=64)
    return [
        *("--labels", f"{folder}/labels.csv", "--ratings", f"{folder}/ratings.csv", "--images", str(folder)),
        *("--strategy", "entropy,mean_std", "--seeds", "2", "--finetune", "head", "--passes", "5"),
        *("--backbone", "shufflenet_v2_x0_5", "--weights", "none", "--budget", "25"),
    ]


def features(folder: Path) -> list[str]:
    """A table of features, and every strategy with an ensemble of five."""
    folder.mkdir()
    truth = np.arange(120) % 3
    values = np.random.default_rng(0).normal(size=(120, 16)).astype(np.float32)
    values[np.arange(120), truth] += 1.5
    paths = [f"{number}.png" for number in range(120)]
    np.savez(folder / "features.npz", X=values, path=np.array(paths))
    rows = [f"{path},{CLASSES[number % 3]},p{number // 2}" for number, path in enumerate(paths)]
    (folder / "labels.csv").write_text("\n".join(["path,label,patient_id", *rows]) + "\n")
    return [
        *("--labels", f"{folder}/labels.csv", "--features", f"{folder}/features.npz", "--budget", "17"),
        *("--strategy", INFORMED, "--seeds", "4,", "--profile", "best", "--passes", "10"),
    ]


@pytest.mark.parametrize(("name", "data"), [("simulation-images", drawn), ("simulation-features", features)])
def test_keeps_its_figures(name, data, tmp_path):
    out = tmp_path / "out"
    command = ["simulate", *data(tmp_path / "data"), "--out", str(out), "--task", ";".join(CLASSES)]
    command += ["--batch-size", "8", "--start", "given", "--initial", "3", "--device", "cpu"]
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0

    # What depends on the clock is replaced; the same command then only makes the tables and the report.
    forget_times(out)
    assert CliRunner().invoke(cli, command, catch_exceptions=False).exit_code == 0

    # A processor with other vector instructions rounds otherwise: the picks stay, and these digits of what they scored.
    check(name, found(tmp_path), rel=5e-4)


def forget_times(out: Path) -> None:
    """Every training takes 2 s and every acquisition 3 s, and the study began at a fixed time and took ten hours."""
    for path in [*out.glob("runs/*/rounds.jsonl"), *out.glob("runs/*/baseline.json")]:
        text = re.sub(r'("train_seconds": ?)[\d.e-]+', r"\g<1>2.0", path.read_text())
        path.write_text(re.sub(r'("acquisition_seconds": ?)[\d.e-]+', r"\g<1>3.0", text))
    plan = json.loads((out / "plan.json").read_text())
    (out / "plan.json").write_text(json.dumps(plan | {"started_at": "2026-01-01T12:00:00+00:00"}))
    (out / "spent.json").write_text('{"seconds": 36000.0}')


def found(folder: Path) -> dict[str, Any]:
    summary = json.loads((folder / "out/summary.json").read_text())
    page = (folder / "out/report.html").read_text()
    drawn_files = [path for path in sorted(folder.glob("data/**/*")) if path.suffix in {".csv", ".png"}]
    picks = read_table(folder / "out/batches.csv")
    return {
        "data": hashlib.sha256(b"".join(path.read_bytes() for path in drawn_files)).hexdigest()[:16],
        "summary": {name: summary[name] for name in SUMMARY},
        "rounds": read_table(folder / "out/rounds.csv"),
        "baselines": read_table(folder / "out/baselines.csv"),
        "picked": {
            run: digest([image for of, image in zip(picks["run"], picks["image_id"], strict=True) if of == run])
            for run in dict.fromkeys(picks["run"])
        },
        "picks": {name: picks[name][:: len(picks["rank"]) // 24] for name in ("score", "epistemic", "aleatoric")},
        "report's tables": tables(page),
        "report's headline": figures(page[: page.index("<nav")]),
        "report's warnings": figures(page[page.index('id="warnings"') : page.index('id="run"')]),
    }
