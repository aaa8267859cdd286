"""Calibrating stock diffusers pipelines."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch

import adadiff
from adadiff import InputError
from adadiff.calibration import calibration_table, draw_calibration, stock
from adadiff.calibration.bound import upper_bound
from adadiff.calibration.steps import choose_steps
from adadiff.stock import StockPolicy, StockSampler
from adadiff.utils.files import PRETRAINED
from tests.stock.calls import numbered
from tests.stock.tiny import build

STEPS = 8


def make_pipe() -> Any:
    """A class-conditional DiT with random weights."""
    tiny = build("dit")
    tiny.pipe.scheduler = diffusers.DPMSolverMultistepScheduler()
    return tiny.pipe


def calibrate(pipe: Any, **options: Any) -> adadiff.calibration.Calibration:
    """Calibrate on few samples."""
    chosen = {"compute": 0.6, "samples": 8, "num_inference_steps": STEPS, "guidance_scale": 2.0, **options}
    return adadiff.calibrate(pipe, [1, 2, 3], **chosen)


@pytest.fixture(scope="module")
def pipe() -> Any:
    return make_pipe()


@pytest.fixture(scope="module")
def found(pipe: Any) -> adadiff.calibration.Calibration:
    return calibrate(pipe)


def test_the_budget_is_met_and_the_pipeline_enabled(pipe: Any, found: adadiff.calibration.Calibration):
    assert found.checked.compute == pytest.approx(0.6, abs=0.02)
    adadiff.enable(pipe, found.stored)
    pipe(class_labels=[1, 2], num_inference_steps=STEPS, guidance_scale=2.0)
    trace = adadiff.trace(pipe)
    assert trace.compute_fraction == pytest.approx(found.checked.compute)
    assert trace.exit_layers["transformer", "call 0"] == dict(enumerate(found.policy.layers))


def test_the_measured_error_is_that_of_the_samples(pipe: Any, found: adadiff.calibration.Calibration):
    sampler = StockSampler(pipe, [1, 2, 3], stock.SEED, {"num_inference_steps": STEPS, "guidance_scale": 2.0})
    adadiff.disable(pipe)
    full = {numbers: sampler(numbers) for numbers in (range(8), range(8, 16))}
    adadiff.enable(pipe, found.policy)
    early = sampler(range(8, 16))
    losses = (early - full[range(8, 16)]).square().flatten(1).mean(1) / full[range(8)].var(0, correction=0).mean()
    assert found.checked.losses == pytest.approx(losses.double().numpy(), rel=1e-3)
    assert found.error_bound == upper_bound(found.checked.losses, 0.05)


def test_numbers_of_steps_that_cost_the_same_are_compared_with_very_many(pipe: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adadiff.calibration.steps.SHARES", (1.0, 0.65, 0.4))
    sampler = StockSampler(pipe, [1, 2, 3], stock.SEED, {"num_inference_steps": STEPS, "guidance_scale": 2.0})
    sampling = stock.StockSampling(sampler, (1, 2, 3), None, "latent")
    choice = choose_steps(sampling, 0.5, 24, batch_size=8)
    assert [trial.steps for trial in choice.trials] == [4, 6, 10]

    def sampled(count: int, policy: adadiff.ExitPolicy) -> tuple[torch.Tensor, float]:
        arguments = {**sampler.arguments, "num_inference_steps": count}
        stock.switch_on(pipe, policy, None, sampling.costs)
        latents = StockSampler(pipe, [1, 2, 3], stock.SEED, arguments)(range(16, 48))
        return latents, adadiff.trace(pipe).compute_fraction * count / STEPS

    reference, _ = sampled(24, adadiff.NeverExit())
    for trial in (choice.default, *choice.trials):
        latents, compute = sampled(trial.steps, trial.policy)
        errors = (latents - reference).square().flatten(1).mean(1) / reference.var(0, correction=0).mean()
        assert trial.error == pytest.approx(errors.mean().item(), rel=1e-3)
        assert trial.compute == pytest.approx(compute)
        assert trial is choice.default or 0.3 < trial.compute < 0.53


def test_the_schedule_beats_one_that_anybody_could_set(pipe: Any, found: adadiff.calibration.Calibration):
    sampler = StockSampler(pipe, [1, 2, 3], stock.SEED, {"num_inference_steps": STEPS, "guidance_scale": 2.0})
    adadiff.disable(pipe)
    full = sampler(range(8, 16))
    errors = {}
    for policy in (found.policy, adadiff.CorrectedScheduleExit((4, 1) * (STEPS // 2))):
        adadiff.enable(pipe, policy)
        errors[policy] = (sampler(range(8, 16)) - full).square().mean().item()
    assert errors[found.policy] < min(error for policy, error in errors.items() if policy != found.policy)


def test_fewer_steps_are_measured_beside_it(pipe: Any, found: adadiff.calibration.Calibration, tmp_path: Path):
    draw_calibration(found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size > 5000
    assert list(calibration_table(found).columns[0].cells)[-2:] == ["4 steps", "5 steps"]
    adadiff.disable(pipe)
    sampler = StockSampler(pipe, [1, 2, 3], stock.SEED, {"num_inference_steps": STEPS, "guidance_scale": 2.0})
    for steps, point in zip((4, 5), found.fewer_steps, strict=True):
        fewer = StockSampler(pipe, [1, 2, 3], stock.SEED, {"num_inference_steps": steps, "guidance_scale": 2.0})
        difference = fewer(range(8, 16)) - sampler(range(8, 16))
        error = difference.square().mean() / sampler(range(8)).var(0, correction=0).mean()
        assert point.error == pytest.approx(error.item(), rel=1e-3)
        assert point.compute == pytest.approx(steps / 8)


def test_where_early_exits_save_nothing_it_says_so(pipe: Any, caplog: pytest.LogCaptureFixture, monkeypatch: Any):
    monkeypatch.setattr(
        stock.StockSampling, "fewer_steps", lambda self, compute: {7: self}
    )  # as good as the full model
    with caplog.at_level(logging.WARNING, "adadiff"):
        assert calibrate(pipe).beats_fewer_steps is False
    assert [message.partition(",")[0] for message in caplog.messages] == [
        "early exits are not shown to save anything here"
    ]


def test_a_stored_policy_does_the_same_elsewhere(found: adadiff.calibration.Calibration, tmp_path: Path):
    folder = tmp_path / "new"
    found.save(str(folder))
    arguments = {"class_labels": [1, 2], "num_inference_steps": STEPS, "guidance_scale": 2.0, "output_type": "np"}
    images = []
    for policy in (found.stored, str(folder), folder):
        pipe = make_pipe()
        adadiff.enable(pipe, policy)
        images.append(torch.from_numpy(pipe(**arguments, generator=torch.Generator().manual_seed(0)).images))
        assert adadiff.trace(pipe).compute_fraction == pytest.approx(found.checked.compute)
    assert torch.equal(images[0], images[1])
    assert torch.equal(images[0], images[2])


def test_what_differs_from_the_calibration_is_said(
    found: adadiff.calibration.Calibration, caplog: pytest.LogCaptureFixture
):
    assert isinstance(found.stored, StockPolicy)
    same = make_pipe()
    with caplog.at_level(logging.WARNING, "adadiff"):
        adadiff.enable(same, found.stored)
        same(class_labels=[1], num_inference_steps=STEPS, guidance_scale=2.0)
        assert caplog.messages == []
        same(class_labels=[1], num_inference_steps=STEPS, guidance_scale=3.0)
        same.scheduler = diffusers.DPMSolverMultistepScheduler(beta_start=0.0002)
        same(class_labels=[1], num_inference_steps=STEPS, guidance_scale=3.0)
        same.scheduler = diffusers.DDIMScheduler()
        for _ in range(2):
            same(class_labels=[1], num_inference_steps=STEPS, guidance_scale=2.0)
        assert [message.split(": ")[1] for message in caplog.messages] == [
            "guidance scale 3 in place of 2",
            "other settings of the scheduler",
            "scheduler DDIMScheduler in place of DPMSolverMultistepScheduler",
        ]
        caplog.clear()
        other = type("OtherPipeline", (diffusers.DiTPipeline,), {})(**make_pipe().components)
        with torch.no_grad():
            other.transformer.proj_out_2.weight.mul_(1.1)
        adadiff.enable(other, found.stored)
        assert [message.split(": ")[1] for message in caplog.messages] == [
            "OtherPipeline in place of DiTPipeline",
            "other weights, or weights in another precision",
        ]
        made_for = found.stored.calibrated_for
        assert found.stored.differences_in_call(make_pipe(), (8, 16, 16)) == [
            f"predictions of shape (8, 16, 16) in place of {made_for.shapes[0]}"
        ]


def test_a_calibration_belongs_to_its_kind_of_guidance(caplog: pytest.LogCaptureFixture):
    tiny = build("qwen")  # `guidance_scale` is None, and `true_cfg_scale` guides
    prompts, arguments = numbered(tiny)
    adadiff.calibrate(tiny.pipe, prompts, compute=0.6, samples=8, exits=(1,), refine=False, **arguments)
    with caplog.at_level(logging.WARNING, "adadiff"):
        tiny()
        assert caplog.messages == []
        tiny(true_cfg_scale=3.5)
    scale = arguments["true_cfg_scale"]
    assert [message.split(": ")[1] for message in caplog.messages] == [f"true cfg scale 3.5 in place of {scale:g}"]


def test_an_error_leaves_the_pipeline_as_it_was(tmp_path: Path):
    pipe = make_pipe()
    with pytest.raises(InputError, match="takes no argument colour"):
        calibrate(pipe, colour="red")
    with pytest.raises(InputError, match="adadiff is not enabled"):
        adadiff.trace(pipe)
    policy = adadiff.CorrectedScheduleExit((4, 1) * (STEPS // 2))
    adadiff.enable(pipe, policy)
    with pytest.raises(InputError, match=r"with 8 evaluations of the model no policy takes less than 0\.\d+ of"):
        calibrate(pipe, compute=0.05)
    pipe(class_labels=[1], num_inference_steps=STEPS)
    assert adadiff.trace(pipe).exit_layers["transformer", "call 0"] == dict(enumerate(policy.layers))


@pytest.mark.parametrize(("steps", "compute"), [(4, 0.55), (4, 0.7), (3, 0.4), (2, 0.45), (1, 0.6)])
def test_a_budget_is_kept_in_few_steps(pipe: Any, steps: int, compute: float):
    spent = calibrate(pipe, compute=compute, num_inference_steps=steps).checked.compute
    assert compute - 0.25 < spent <= compute + 0.005


def test_the_least_compute_is_that_of_one_full_step(pipe: Any, found: adadiff.calibration.Calibration):
    costs = found.stored.costs["transformer"]
    least = (1 + 11 * costs.of(0)) / 12
    with pytest.raises(InputError, match=f"no policy takes less than {math.ceil(1000 * least) / 1000:.3f} of"):
        calibrate(pipe, compute=least - 0.01, num_inference_steps=12)
    cheapest = calibrate(pipe, compute=least + 0.01, num_inference_steps=12)
    assert cheapest.policy.layers == (4, *[0] * 11)
    assert cheapest.checked.compute == pytest.approx(least)


def test_a_calibration_goes_on_where_it_was_interrupted(
    found: adadiff.calibration.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pipe, keep = make_pipe(), tmp_path / "kept"
    with monkeypatch.context() as patch:
        patch.setattr("adadiff.calibration.search.measured_influence", lambda *_: pytest.fail("interrupted"))
        with pytest.raises(pytest.fail.Exception):
            calibrate(pipe, keep=keep)
    monkeypatch.setattr(stock.StockSampling, "record", lambda *_: pytest.fail("the record is there already"))
    again = calibrate(pipe, keep=str(keep))
    assert again.policy == found.policy
    assert not keep.exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"compute": None}, "exactly one of compute, error and speedup"),
        ({"samples": 4}, "calibrate on at least 8"),
        ({"exits": (4,)}, "name layers in 1 to 3"),
        ({"output_type": "pil"}, "output_type cannot be given"),
        ({"batch_size": 0}, "the batch size is 0"),
        ({"batch_size": "8"}, "the batch size is '8': it must be a whole number"),
        ({"samples": 8.5}, r"the number of samples is 8\.5: it must be a whole number"),
        ({"seed": None}, "the seed is None: it must be a whole number"),
        ({"compute": "a"}, "compute is 'a': it must be a number"),
        ({"layers": []}, r"layers is \[\]: name its lists of blocks"),
        ({"layers": 3}, "layers is 3: name its lists of blocks"),
        ({"class_labels": [1]}, "class_labels is given twice"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(options: dict[str, Any], message: str):
    with pytest.raises(InputError, match=message):
        calibrate(make_pipe(), **options)


def test_only_the_exits_that_are_named_are_used(pipe: Any):
    found = calibrate(pipe, exits=(2,))
    assert set(found.policy.layers) <= {0, 2, 4}


def test_a_stored_policy_that_was_altered_is_refused(found: adadiff.calibration.Calibration, tmp_path: Path):
    path = found.save(tmp_path)
    values = json.loads(path.read_text())
    values["policy"]["layers"][1] = 2
    path.write_text(json.dumps(values))
    with pytest.raises(InputError, match="it was altered"):
        StockPolicy.from_pretrained(tmp_path)


def test_a_policy_goes_to_the_hub_and_comes_back(
    found: adadiff.calibration.Calibration, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    class Hub:
        def __init__(self, token: str | None) -> None:
            assert token == "secret"

        def create_repo(self, name: str, private: bool, exist_ok: bool) -> str:
            assert exist_ok
            (tmp_path / name).mkdir(parents=True)
            return f"https://hub/{name}"

        def upload_file(self, path_or_fileobj: Path, path_in_repo: str, repo_id: str) -> None:
            (tmp_path / repo_id / path_in_repo).write_bytes(path_or_fileobj.read_bytes())

    assert isinstance(found.stored, StockPolicy)
    monkeypatch.setattr("adadiff.stock.stored.HfApi", Hub)
    monkeypatch.setattr("adadiff.stock.stored.require_on_hub", lambda *_: None)
    monkeypatch.setattr("adadiff.stock.stored.hf_hub_download", lambda name, file: str(tmp_path / name / file))
    assert found.stored.push_to_hub("someone/policy", token="secret") == "https://hub/someone/policy"
    pipe = make_pipe()
    adadiff.enable(pipe, "someone/policy")
    pipe(class_labels=[1], num_inference_steps=STEPS)
    assert adadiff.trace(pipe).exit_layers["transformer", "call 0"] == dict(enumerate(found.policy.layers))


def test_a_packaged_models_policy_is_found_by_its_name(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("adadiff.stock.stored.require_on_hub", lambda *_: pytest.fail("the Hub was asked"))
    packaged = StockPolicy.load(PRETRAINED / "digits-dit")
    assert StockPolicy.from_pretrained("digits-dit") == packaged
    pipe = diffusers.DiTPipeline.from_pretrained(PRETRAINED / "digits-dit")
    adadiff.enable(pipe, "digits-dit")
    pipe(class_labels=[1], **packaged.calibrated_for.arguments)
    assert adadiff.trace(pipe).compute_fraction == pytest.approx(packaged.found["compute"])


def test_policies_of_other_models_are_one_line(tmp_path: Path):
    with pytest.raises(InputError, match="the policy of digits belongs to a model of adadiff's own"):
        adadiff.enable(make_pipe(), "digits")
    with pytest.raises(InputError, match="the policy is for a transformer of 12 layers, and this one has 4"):
        adadiff.enable(make_pipe(), PRETRAINED / "digits-dit" / "exit_policy.json")  # the file in place of its folder


def test_a_name_that_is_nowhere_is_one_line(monkeypatch: pytest.MonkeyPatch):
    def missing(*_: Any, **__: Any) -> str:
        raise OSError("no connection\nand more")

    monkeypatch.setattr("adadiff.utils.hub.get_hf_file_metadata", missing)
    message = r"^there is no folder no/where, and exit_policy\.json .* \(no connection\); in the package: choose"
    with pytest.raises(InputError, match=message) as caught:
        adadiff.enable(make_pipe(), "no/where")
    assert "\n" not in str(caught.value)
