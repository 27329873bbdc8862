"""The figures in the README are those of the committed results."""

import csv
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
RESULTS = ROOT / "benchmarks" / "results"


def words(*path: str) -> str:
    """A page without its line breaks."""
    return " ".join(ROOT.joinpath(*path).read_text().split())


README = words("README.md")


def test_permuted_mnist() -> None:
    folder = RESULTS / "reproduce" / "table1"
    with (folder / "summary.csv").open() as file:
        (line,) = (row for row in csv.DictReader(file) if row["contender"] == "CLNP")
    with (folder / "tasks.csv").open() as file:
        tests = [100 * float(r["test"]) for r in csv.DictReader(file) if r["contender"] == "CLNP"]
    with (folder / "runs.csv").open() as file:
        runs = [row for row in csv.DictReader(file) if row["contender"] == "CLNP"]
    words = {2: "two", 3: "three", 4: "four", 5: "five"}[int(line["n"])]
    assert len(runs) == int(line["n"])
    assert f"MLP 784-2000-2000-10, {words} seeds" in README
    assert (
        f"**{100 * float(line['acc_mean']):.2f} ± {100 * float(line['acc_std']):.2f} %**" in README
    )
    assert f"(lowest {min(tests):.2f}, highest {max(tests):.2f})" in README
    used = [100 * float(line[f"used_{layer}_mean"]) for layer in ("fc1", "fc2")]
    assert "{:.0f} % and {:.0f} % of the channels used".format(*used) in README
    minutes = statistics.median(float(row["seconds"]) for row in runs) / 60
    assert f"{minutes:.0f} minutes a seed (median) on one core" in README
    for row in runs:
        assert (row["tasks"], row["identical"], float(row["bwt"])) == ("10", "10", 0.0)


def reproduced(experiment: str, file: str, contender: str) -> list[dict[str, str]]:
    """A contender's rows of a CSV file of `benchmarks.reproduce`."""
    with (RESULTS / "reproduce" / experiment / file).open() as lines:
        return [row for row in csv.DictReader(lines) if row["contender"] == contender]


def over_seeds(rows: list[dict[str, str]], column: str = "test") -> list[float]:
    """A column of tasks.csv in per cent: of every task the mean over the seeds."""
    seeds: dict[str, list[float]] = {}
    for row in rows:
        seeds.setdefault(row["seed"], []).append(100 * float(row[column]))
    return [statistics.mean(values) for values in zip(*seeds.values(), strict=True)]


def enumerated(values: list[float], form: str = ".2f") -> str:
    """Numbers in a sentence: "1.00, 2.00 and 3.00"."""
    *first, last = (f"{value:{form}}" for value in values)
    return f"{', '.join(first)} and {last}"


def test_split_cifar() -> None:
    names = ("CLNP, limited", "SI", "CLNP m = 1 %")
    ours, si, plain = (reproduced("fig4", "tasks.csv", name) for name in names)
    page = words("docs", "reproducibility.md")
    for name, form in (
        ("CLNP, limited", "mean test accuracy **{:.2f} ± {:.2f} %**, forgetting exactly 0"),
        ("SI", "with as many epochs, ends at {:.2f} ± {:.2f} %, and"),
    ):
        (line,) = reproduced("fig4", "summary.csv", name)
        assert line["n"] == "2"
        assert form.format(*(100 * float(line[key]) for key in ("acc_mean", "acc_std"))) in README
    tests, others = over_seeds(ours), over_seeds(si)
    assert f"CLNP has {enumerated(tests)} %, and SI {enumerated(others)} %:" in README
    assert f"its tasks reach {enumerated(tests)} % in the mean over two seeds, with free" in page
    assert f"with as many epochs, ends with {enumerated(others)} %:" in page
    assert all(a > b for a, b in zip(tests, others, strict=True))
    assert f"its tasks reach {enumerated(over_seeds(plain))} %." in page
    so_far = over_seeds(ours, "mean")[1:], over_seeds(si, "mean")[1:]
    for name, means in zip(("CLNP has", "and SI"), so_far, strict=True):
        assert f"{name} {enumerated(means)} %" in page
    assert all(a > b for a, b in zip(*so_far, strict=True))
    more = {
        split: [100 * (float(a[split]) - float(b[split])) for a, b in zip(ours, si, strict=True)]
        for split in ("test", "validation")
    }
    last = {split: enumerated(differences[5::6], ".1f") for split, differences in more.items()}
    assert f"behind by {last['test']} points in the two seeds on a thousand test" in page
    assert f"and by {last['validation']} on 500 validation images" in page
    assert f"(there {last['test']} points less in the two seeds)" in README
    for name in ("CLNP m = 1 %", "CLNP, limited"):
        for run in reproduced("fig4", "runs.csv", name):
            assert (run["tasks"], run["identical"], float(run["bwt"])) == ("6", "6", 0.0)
            full = [float(run[key]) == 1 for key in run if key.startswith("used_")]
            assert any(full) == (name == "CLNP m = 1 %")
    epochs = {name: reproduced("fig4", "runs.csv", name)[0]["epochs"] for name in names}
    assert epochs == {"CLNP, limited": "9 + 3", "SI": "12", "CLNP m = 1 %": "6"}


def test_other_lines_of_split_cifar() -> None:
    page = words("docs", "reproducibility.md")
    acc = {}
    for name in ("CLNP m = 1 %", "CLNP m = 2 %", "CLNP m = 4 % + FT", "scratch"):
        (run,) = reproduced("fig4", "runs.csv", name)
        acc[name] = 100 * float(run["acc"])
        assert name == "scratch" or (run["identical"], float(run["bwt"])) == ("6", 0.0)
    tuned = acc["CLNP m = 4 % + FT"]
    assert f"At m = 2 % the mean is {acc['CLNP m = 2 %']:.2f} %" in page
    assert f"at m = 1 % {acc['CLNP m = 1 %']:.2f} %" in page
    assert f"six epochs of fine-tuning it is {tuned:.2f} %, with free channels left" in page
    assert tuned > max(acc["CLNP m = 1 %"], acc["CLNP m = 2 %"])
    (run,) = reproduced("fig4", "runs.csv", "CLNP m = 4 % + FT")
    assert all(float(run[key]) < 1 for key in run if key.startswith("used_"))
    alone = over_seeds(reproduced("fig4", "tasks.csv", "scratch"))
    ours = over_seeds(reproduced("fig4", "tasks.csv", "CLNP, limited"))
    assert f"(`scratch`, twelve epochs) have {acc['scratch']:.2f} %" in page
    assert f"on every task but the first, {alone[0]:.2f} %:" in page
    assert [a > b for a, b in zip(ours, alone, strict=True)] == [False] + 5 * [True]
    assert f"networks of their own at {acc['scratch']:.2f} % (one seed)" in README
    (joint,) = reproduced("fig4", "runs.csv", "joint")
    assert f"on two threads, reach {100 * float(joint['acc']):.2f} %, which is no ceiling" in page


def test_other_methods_of_table_1() -> None:
    page = words("docs", "reproducibility.md")
    names = ("single-task SGD", "superposition, lr 1e-4", "EWC", "SI", "superposition")
    acc = {}
    for name in names:
        (run,) = reproduced("table1", "runs.csv", name)
        assert run["tasks"] == ("3" if name == "single-task SGD" else "10")
        acc[name] = f"{100 * float(run['acc']):.2f} %"
    sgd, gentle, ewc, si, moved = acc.values()
    told = f"every task {sgd}, superposition {gentle}, EWC {ewc}, SI {si} (in the paper"
    assert told in README
    assert f"5000, and comes to {ewc}." in page
    assert f"at a rate of 1e-3 ({moved}); in five at 1e-4 it keeps {gentle}." in page
    assert f"three tasks were enough for a mean, {sgd}." in page


def test_more_and_smaller_tasks() -> None:
    page = words("docs", "reproducibility.md")
    tasks = reproduced("fig3", "tasks.csv", "CLNP, m = 1.6 %")
    (run,) = reproduced("fig3", "runs.csv", "CLNP, m = 1.6 %")
    said = []
    for row in (tasks[9], tasks[24], tasks[-1]):
        share = (f"{100 * int(row[f'used_{layer}']) / 2000:.0f} %" for layer in ("fc1", "fc2"))
        said.append(f"{100 * float(row['mean']):.2f} % after {{}}, with {' and '.join(share)}")
    assert f"is {said[0].format('ten tasks')} of the channels, " in page
    assert f"{said[1].format(25)}, and {said[2].format(len(tasks))};" in page
    late = [sum(int(row[f"new_{layer}"]) for row in tasks[-12:]) for layer in ("fc1", "fc2")]
    assert f"take {late[0]} channels of layer 1, and {late[1]} of layer 2:" in page
    assert f"tasks: **{len(tasks)}** so far, {said[2].format('them')}" in README
    full = "2000" in (tasks[-1]["used_fc1"], tasks[-1]["used_fc2"])
    assert ("then the network is full" if full else "before the network was full") in page
    assert (run["identical"], float(run["bwt"])) == (run["tasks"], 0.0)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
@pytest.mark.parametrize("contender", ["eager-masked", "dense", "slices"])
def test_step_times(dtype: str, contender: str) -> None:
    with (RESULTS / "step.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["dtype"] == dtype]
    times = {(float(r["fraction"]), r["contender"]): float(r["ms"]) for r in rows}
    fractions = (0.0, 0.25, 0.5, 0.75)
    ratios = [times[f, contender] / times[f, "ours"] for f in fractions]
    cells = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
    assert f"| AVX-512, {dtype}, against {contender} | {cells} |" in README
    if (dtype, contender) == ("fp32", "dense"):
        share = 100 * times[0.5, "ours"] / times[0.5, "dense"]
        assert f"takes {share:.0f} % of the dense network's time" in README


@pytest.mark.parametrize(
    ("label", "slow", "fast"),
    [
        ("AVX2, fp32, against eager-masked", "eager-masked", "ours"),
        ("AVX2, fp32, against dense", "dense", "ours"),
        ("the same, frozen activations cached", "dense", "ours cached"),
        ("AVX2, fp32, against slices", "slices", "ours"),
    ],
)
def test_step_times_without_avx512(label: str, slow: str, fast: str) -> None:
    with (RESULTS / "cpu-avx2" / "step.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == "mlp"]
    times = {(float(r["fraction"]), r["contender"]): float(r["median"]) for r in rows}
    ratios = [times[f, slow] / times[f, fast] for f in (0.0, 0.25, 0.5, 0.75)]
    cells = " | ".join(f"{ratio:.2f} x" for ratio in ratios)
    assert f"| {label} | {cells} |" in README


def test_sequences() -> None:
    with (RESULTS / "cpu-avx2" / "end-to-end.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["quantity"] == "time"]
    cases = list(dict.fromkeys(row["case"] for row in rows))
    assert [case.endswith("limited") for case in cases] == [False, True]
    words = ("{} faster than eager-masked, {} than dense, {} than slices", "{}, {} and {}.")
    for case, sentence in zip(cases, words, strict=True):
        seconds: dict[str, float] = {}
        for row in rows:
            if row["case"] == case:
                name = row["contender"]
                seconds[name] = seconds.get(name, 0.0) + float(row["median"])
        names = ("eager-masked", "dense", "slices")
        cells = [f"{seconds[name] / seconds['ours']:.2f} x" for name in names]
        assert sentence.format(*cells) in README


def test_inference() -> None:
    with (RESULTS / "inference.csv").open() as file:
        rows = list(csv.DictReader(file))
    work = [100 * float(row["work"]) for row in rows]
    time = [100 * float(row["time"]) for row in rows]
    assert f"{work[0]:.0f} to {work[-1]:.0f} % of the dense network's multiply-adds" in README
    assert f"{time[0]:.0f} to {time[-1]:.0f} % of its time" in README


@pytest.mark.parametrize("network", ["wide", "resnet18", "narrow"])
def test_step_times_of_convolutional_networks(network: str) -> None:
    with (RESULTS / "cpu-avx2" / "step.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["case"] == network]
    dense = {float(row["fraction"]): row for row in rows if row["contender"] == "dense"}
    assert {row["dtype"] for row in rows} == {"fp32"}
    ratios = ", ".join(f"{float(dense[f]['ratio']):.2f}" for f in (0.0, 0.25, 0.5, 0.75))
    name = {"resnet18": "ResNet-18"}.get(network, network)
    assert f"{name} {ratios} x" in README


def test_methods_compared() -> None:
    with (RESULTS / "methods" / "compare" / "methods.csv").open() as file:
        rows = {row["method"]: row for row in csv.DictReader(file)}
    page = words("docs", "methods.md")
    acc = {name: 100 * float(row["acc_mean"]) for name, row in rows.items()}
    assert f"is {acc['packnet'] - acc['clnp']:.1f} points ahead" in page
    assert round(float(rows["packnet"]["flops_mean"]) / float(rows["clnp"]["flops_mean"])) == 3
    assert "for three times the operations" in page
    assert f"it holds {acc['esacl-ewc']:.0f} %" in page
    assert float(rows["esacl-ewc"]["examples_mean"]) < float(rows["ewc"]["examples_mean"])
    assert float(rows["esacl-ewc"]["flops_mean"]) > float(rows["ewc"]["flops_mean"])
    assert rows["clnp"]["forgetting_mean"] == rows["packnet"]["forgetting_mean"] == "0.0"


def test_si_at_its_authors_settings() -> None:
    with (RESULTS / "reproduce" / "table1" / "summary.csv").open() as file:
        acc = {row["contender"]: 100 * float(row["acc_mean"]) for row in csv.DictReader(file)}
    page = words("docs", "methods.md")
    assert f"it keeps {acc['SI']:.1f} % (one seed; about 97 is theirs)" in page
    assert f"and {acc['SI, c = 0']:.1f} % with c = 0 (about 57)" in page


def test_reuse_of_the_first_tasks_features() -> None:
    with (RESULTS / "reproduce" / "reuse" / "tasks.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = words("docs", "reproducibility.md")
    left = {row["contender"]: int(row["used_fc1"]) for row in rows if row["task"] == "0"}
    second = {row["contender"]: 100 * float(row["test"]) for row in rows if row["task"] == "1"}
    start = "orthogonal start"
    common = ["L1 1e-5 on layer 1", "no L1 on layer 1", f"{start}, L1 1e-5", start]
    accuracies, channels = [second[c] for c in common], [left[c] for c in common]
    few, many = f"{start}, 32 channels", f"{start}, 600 channels"
    assert f"reaches {second[few]:.2f} % where the first one left it {left[few]} to read" in page
    assert f"{min(accuracies):.2f} to {max(accuracies):.2f} % where it left" in page
    assert f"it left {min(channels)} to {max(channels)}, and {second[many]:.2f} %" in page
    assert f"where it left {left[many]}: frozen" in page
    assert f"the epochs ({second[f'{start}, 60 epochs']:.2f} %)" in page
    assert f"With 128 new channels it reaches {second[f'{start}, 128 new']:.2f} %" in page
    assert f"with 320 {second[f'{start}, 320 new']:.2f} %" in page


def test_channels_kept_by_structured_sdp() -> None:
    with (RESULTS / "methods" / "structured-mnist.csv").open() as file:
        rows = list(csv.DictReader(file))
    page = words("docs", "methods.md")

    def told(contender: str, criterion: str) -> tuple[str, float]:
        own = [row for row in rows if row["contender"] == contender]
        assert len(own) == 3
        columns = (f"{name}_{criterion}" for name in ("accuracy", "layer_1", "layer_2"))
        accuracy, first, second = (sum(float(r[c]) for r in own) / 3 for c in columns)
        return f"{100 * accuracy:.2f} with {first:.0f} + {second:.0f}", first + second

    l1, channels = told("l1 1e-05", "activity")
    assert f"L1 1e-5 {l1} channels" in page
    assert f"L1 1e-4 {told('l1 0.0001', 'activity')[0]};" in page
    sdp, fewer = told("sdp k=0.2", "activity")
    assert f"structured SDP with K = 20 % {sdp}," in page
    assert f"K = 10 % {told('sdp k=0.1', 'activity')[0]}:" in page
    assert fewer / channels < 0.26
    assert f"By norm, K = 20 % reaches {told('sdp k=0.2', 'norm')[0]}." in page


def test_recipes_at_equal_capacity() -> None:
    """What docs/reproducibility.md says of them in words."""
    with (RESULTS / "reproduce" / "capacity" / "equal.csv").open() as file:
        more = {
            r["recipe"]: 100 * (float(r["acc"]) - float(r["base"])) for r in csv.DictReader(file)
        }
    with (RESULTS / "reproduce" / "capacity" / "runs.csv").open() as file:
        runs = {
            r["contender"]: (float(r["weights"]), float(r["acc"])) for r in csv.DictReader(file)
        }
    assert max(more, key=lambda name: more[name]) == "twice the epochs"
    assert min(more, key=lambda name: more[name]) == "initial scale 0.05"
    others = ("means compensated", "four rounds", "one threshold", "usual start")
    assert all(abs(more[name]) < 0.15 for name in (*others, "L1 1e-5 on layer 1"))
    most, least = runs["base, m = 0.25 %"], runs["base, m = 2 %"]
    for name in ("ranked by activity", "layer by layer", "no fine-tuning"):
        assert runs[name][0] > most[0]
        assert runs[name][1] < most[1]
    assert all(runs[name][0] < least[0] for name in ("structured SDP", "narrow"))
    assert runs["one round"][0] > most[0]
