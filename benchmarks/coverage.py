"""Networks that `clnp.convert` takes: every model of torchvision, one of each family of timm.

    python -m benchmarks.coverage              # all that are not in the results yet
    python -m benchmarks.coverage --list       # find the models again, keep the results
    python -m benchmarks.coverage resnet18 timm:resnet10t

A model is built with random weights and converted at a small input, in a process of its own with a
time limit. Where that works, three checks follow: the function is kept to 1e-10 in float64 in both
modes; three tasks are forced through the network, of which the first two keep half of their free
channels; the logits of every earlier task are the same bits afterwards. The results are
benchmarks/results/coverage/models.csv; `python -m benchmarks.pages` writes them into
docs/models.md. timm is optional.
"""

from __future__ import annotations

import argparse
import csv
import inspect
import multiprocessing
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

import clnp
from clnp.errors import ClnpError
from clnp.graph.equivalence import ATTENTIONS, DROPOUTS
from clnp.graph.outputs import logits_of
from clnp_kernels.nn import Dropout

RESULTS = Path(__file__).parent / "results" / "coverage" / "models.csv"
FIELDS = ("model", "kind", "verdict", "reason", "evaluation", "training", "seconds")
LARGE = 5 * 10**7  # parameters of a model that is converted in float32 first, to save memory
TO_DO = "to do"
# words in the names of small models, the smallest first
SMALL = ("atto", "femto", "pico", "nano", "xxtiny", "xtiny", "tiny", "xxs", "xs", "small", "s", "t")
LIMIT = 240  # seconds per model
TOLERANCE = 1e-10
SIZES = (64, 96, 128, 224, 256)  # inputs that are tried, the first that the model accepts counts
VIDEOS = ((8, 32, 32), (16, 224, 224))  # frames and sides
FIXED = {"inception_v3": 128, "googlenet": 64}


def torchvision_models() -> list[tuple[str, str]]:
    """Return (name, kind) of torchvision's models."""
    import torchvision.models as models

    kinds = {
        "classification": models,
        "segmentation": models.segmentation,
        "detection": models.detection,
        "video": models.video,
    }
    return [
        (name, kind) for kind, module in kinds.items() for name in models.list_models(module=module)
    ]


def timm_models() -> list[tuple[str, str]]:
    """Return a small model of every family of the installed timm, judged by its name."""
    try:
        import timm
    except ImportError:
        return []

    def size(name: str) -> tuple[int, int, str]:
        parts = name.replace(".", "_").split("_")
        rank = next((i for i, word in enumerate(SMALL) if word in parts), len(SMALL))
        return rank, sum(int(part) for part in re.findall(r"\d+", name)), name

    families = {family: timm.list_models(module=family) for family in timm.list_modules()}
    return [(f"timm:{min(names, key=size)}", "timm") for names in families.values() if names]


def build(name: str) -> nn.Module:
    """Build a model with random weights and three classes.

    Truncated normal numbers are slow to draw, so others take their place.
    """
    torch.manual_seed(0)
    with mock.patch.object(nn.init, "trunc_normal_", _normal):
        return _built(name)


def _normal(tensor: Tensor, mean: float = 0.0, std: float = 1.0, *_: Any, **__: Any) -> Tensor:
    return nn.init.normal_(tensor, mean, std)


def _built(name: str) -> nn.Module:
    if name.startswith("timm:"):
        import timm

        return timm.create_model(name.removeprefix("timm:"), num_classes=3)
    from torchvision import models

    options: dict[str, Any] = {"weights": None, "num_classes": 3}
    if name in ("googlenet", "inception_v3"):
        options |= {"aux_logits": False, "init_weights": False}
    builder = models.get_model_builder(name)
    if "weights_backbone" in inspect.signature(builder).parameters:
        options["weights_backbone"] = None
    return models.get_model(name, **options)


def randomised(net: nn.Module) -> nn.Module:
    """Give batch norms and vectors random numbers, so that none hides what is behind it."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
                for value in (module.weight, module.running_var):
                    if value is not None:
                        value.uniform_(0.5, 1.5, generator=generator)
                for value in (module.bias, module.running_mean):
                    if value is not None:
                        value.normal_(0, 0.2, generator=generator)
    return net


def example_for(net: nn.Module, name: str) -> Tensor:
    """Return a small batch that the model accepts: of images, or of short videos."""
    config = getattr(net, "default_cfg", {})
    channels, own, _ = config.get("input_size", (3, 224, 224))
    own_shape = (channels, own, own)
    shapes = [(channels, n, n) for n in (FIXED.get(name, SIZES[0]), *SIZES)] + [own_shape]
    if type(net).__module__.startswith("torchvision.models.video"):
        shapes = [(channels, *sides) for sides in VIDEOS]
    for shape in shapes:
        x = torch.zeros(2, *shape)
        try:
            with torch.no_grad():
                net.eval()(x)
        except Exception:
            continue
        return x
    return torch.zeros(2, *shapes[-1])


class NothingDropped(TorchFunctionMode):
    """Replace functional dropouts by identities, and random bits by ones."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in DROPOUTS:
            return args[0] if args else kwargs["input"]
        if func is Tensor.bernoulli_:
            return args[0].fill_(1)
        if func in ATTENTIONS:
            return ATTENTIONS[func](func, args, kwargs, scaled=False)
        return func(*args, **kwargs)


def distance(net: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Return the largest difference of logits, relative to the largest logit."""
    for module in model.modules():
        if isinstance(module, Dropout):  # ours has random numbers of its own
            module.eval()
    with torch.no_grad(), NothingDropped():
        expected, got = logits_of(net(x.clone())), model(x)
    return float((got - expected).abs().max() / expected.abs().max().clamp(min=1e-300))


def check(name: str) -> dict[str, Any]:
    """Convert a model and check it; return a row without model and kind."""
    start = time.perf_counter()
    net = randomised(build(name))
    x = example_for(net, name)
    net.train()
    try:
        if sum(p.numel() for p in net.parameters()) > LARGE:  # most of these are refused
            clnp.convert(net, x, verbose=False)
        wide = net.double()
        model = clnp.convert(wide, x.double(), verbose=False)
    except ClnpError as error:
        return _row(start, "refused", reason=str(error))
    x = torch.randn(3, *x.shape[1:], generator=torch.Generator().manual_seed(2)).double()
    evaluation = distance(wide.eval(), model.eval(), x)
    model.begin_task()
    training = _training_distance(wide, model, x)
    model.cancel_task()
    verdict = "converted" if max(evaluation, training) <= TOLERANCE else "wrong"
    if not three_tasks(clnp.convert(net.eval().float(), x.float(), verbose=False), x.float()):
        verdict = "changed"
    return _row(start, verdict, evaluation=evaluation, training=training)


def _training_distance(net: nn.Module, model: nn.Module, x: Tensor) -> float:
    """Return the `distance` in training mode, without dropout."""
    net.train()
    model.train()
    for module in net.modules():
        if isinstance(module, nn.modules.dropout._DropoutNd):
            module.eval()
    return distance(net, model, x)


def three_tasks(model: Any, x: Tensor) -> bool:
    """Force three tasks through a network; return whether earlier logits keep their bits."""
    logits: list[Tensor] = []
    generator = torch.Generator().manual_seed(3)
    for k in range(3):
        model.begin_task(generator=generator)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.01 * torch.randn(parameter.shape, generator=generator))
        model.train()
        with torch.no_grad():
            model(x)  # the statistics of the free channels move
        model.eval()
        keep = {g.name: torch.arange((model.free(g) + 1) // 2) for g in model.groups.prunable}
        model.consolidate(keep)
        for task, before in enumerate(logits):
            if not torch.equal(model.subnetwork(task, fresh=True)(x), before):
                return False
        logits.append(model(x, task=k))
    return True


def _row(start: float, verdict: str, **more: Any) -> dict[str, Any]:
    return {"verdict": verdict, "seconds": round(time.perf_counter() - start, 1)} | more


def in_a_process(name: str) -> dict[str, Any]:
    """Run `check` in a process of its own, which has the imports of this one."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, theirs))
    process.start()
    theirs.close()
    found = {"verdict": "too slow", "reason": f"it took more than {LIMIT} s"}
    try:
        if ours.poll(LIMIT):
            found = ours.recv()
    except EOFError:  # it was ended, for example because memory is short
        process.join()
        found = {"verdict": "error", "reason": f"the process ended with {process.exitcode}"}
    process.kill()
    process.join()
    return found


def _answer(name: str, pipe: Any) -> None:
    try:
        found = check(name)
    except Exception as error:  # of the model, or one that is no ClnpError
        text = str(error).strip().splitlines() or [""]
        found = {"verdict": "error", "reason": f"{type(error).__name__}: {text[0]}"}
    pipe.send(found)


def read_results() -> dict[str, dict[str, Any]]:
    """Return the rows of earlier runs by model."""
    if not RESULTS.exists():
        return {}
    with open(RESULTS, newline="") as file:
        return {row["model"]: row for row in csv.DictReader(file)}


def write_results(rows: dict[str, dict[str, Any]]) -> None:
    """Write all rows, in the order of their names."""
    RESULTS.parent.mkdir(parents=True, exist_ok=True)
    with open(RESULTS, "w", newline="") as file:
        writer = csv.DictWriter(file, FIELDS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows[name] for name in sorted(rows, key=lambda n: (rows[n]["kind"], n)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Check the named models, or all that have no result yet."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.coverage", description=main.__doc__, allow_abbrev=False
    )
    parser.add_argument("models", nargs="*", metavar="MODEL", help="resnet18, timm:resnet10t")
    parser.add_argument("--list", action="store_true", help="find the models again, check none")
    options = parser.parse_args(arguments)
    rows = read_results()
    if not rows or options.list:
        known = [*torchvision_models(), *timm_models()]
        rows = {n: rows.get(n, {"model": n, "kind": k, "verdict": TO_DO}) for n, k in known}
        write_results(rows)
    if options.list:
        return
    unknown = [n for n in options.models if n not in rows and not n.startswith("timm:")]
    if unknown:
        parser.error(f"MODEL: expected one of the results or timm:NAME, got {', '.join(unknown)}")
    for name in options.models or [n for n, row in rows.items() if row["verdict"] == TO_DO]:
        kind = rows[name]["kind"] if name in rows else "timm"
        rows[name] = {"model": name, "kind": kind, **in_a_process(name)}
        print(name, rows[name]["verdict"], str(rows[name].get("reason", ""))[:150], flush=True)
        write_results(rows)


if __name__ == "__main__":
    main()
