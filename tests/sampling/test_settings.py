"""What a model's folder says, in the library and on the command line alike, and what takes its place."""

import json
import logging

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, InputError, NeverExit, ScheduleExit, ThresholdExit
from adadiff.cli import main
from adadiff.policies.stored import CalibrationContext, StoredPolicy
from adadiff.sampling import sample_seeded
from adadiff.sampling.defaults import SamplingDefaults
from adadiff.sampling.settings import FolderSettings, resolve
from adadiff.utils.files import PRETRAINED
from adadiff.utils.seeding import generator_for
from tests.conftest import make_model

DIGITS = PRETRAINED / "digits"
SCHEDULE = ScheduleExit((5, 1, 2, 5))


def store(folder, policy=SCHEDULE, scheduler="dpm-solver++", steps=4, guidance_scale=1.0):
    made_for = CalibrationContext(None, 5, scheduler, steps, guidance_scale)
    StoredPolicy(policy, made_for, {"compute": 0.55}, {}).save(folder)


@pytest.fixture
def folder(model_folder):
    """A model folder that says to sample by 3 steps of UniPC with a threshold."""
    SamplingDefaults(scheduler="unipc", steps=3, tau=0.55, min_layer=2).save(model_folder)
    return model_folder


def load(folder, **options):
    pipe = AdaDiffPipeline.from_pretrained(folder, **options)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def pixels(path):
    with Image.open(path) as image:
        return np.array(image)


@pytest.mark.parametrize("policy", [None, SCHEDULE])
@pytest.mark.parametrize(
    ("words", "loaded_with", "arguments"),
    [
        ("", {}, {}),
        ("--steps 6", {}, {"num_inference_steps": 6}),
        ("--tau 0.6", {}, {"tau": 0.6}),
        ("--tau 0", {}, {"tau": 0}),
        ("--tau 0", {}, {"policy": NeverExit()}),
        ("--scheduler ddim", {"scheduler": "ddim"}, {}),
    ],
)
def test_the_library_samples_as_the_command_line_does(folder, tmp_path, policy, words, loaded_with, arguments):
    if policy is not None:
        store(folder, policy)
    main(["sample", str(folder), "-n", "2", "--out", str(tmp_path / "out"), *words.split()])
    pipe = load(folder, **loaded_with)
    output = pipe(batch_size=2, generator=[generator_for(0, k) for k in range(2)], **arguments)
    for k, image in enumerate(output.images):
        assert np.array_equal(np.array(image), pixels(tmp_path / f"out/00000{k}.png"))
    lines = (tmp_path / "out/trace.jsonl").read_text().splitlines()
    assert output.trace.exit_layers.T.tolist() == [json.loads(line)["exit_layers"] for line in lines]


def test_a_policy_comes_before_the_defaults_and_a_choice_before_both(folder):
    chosen = load(folder).sampling_settings()
    assert (chosen.steps, chosen.policy) == (3, ThresholdExit(0.55, min_layer=2))
    store(folder, guidance_scale=1.5)
    pipe = load(folder)
    assert type(pipe.scheduler).__name__ == "DPMSolverMultistepScheduler"
    chosen = pipe.sampling_settings()
    assert (chosen.steps, chosen.guidance.scale, chosen.policy) == (4, 1.5, SCHEDULE)
    assert pipe.sampling_settings(tau=0.3).policy == ThresholdExit(0.3, min_layer=2)
    assert pipe.sampling_settings(tau=(0.0, 0.1), min_layer=3).policy == ThresholdExit((0.0, 0.1), min_layer=3)
    assert pipe.sampling_settings(min_layer=3).policy == ThresholdExit(0.55, min_layer=3)
    assert pipe.sampling_settings(policy=ThresholdExit(0.3)).policy == ThresholdExit(0.3)
    assert pipe.sampling_settings(tau=torch.tensor(0.0)).policy == NeverExit()
    assert pipe.sampling_settings(2, 1.0, policy=NeverExit()).guidance.scale == 1


def test_a_pipeline_of_parts_and_a_folder_that_says_nothing_run_in_full(pipeline, model_folder):
    for pipe in (pipeline, load(model_folder)):
        chosen = pipe.sampling_settings()
        assert (chosen.steps, chosen.guidance.scale, chosen.policy) == (50, 1.0, NeverExit())
        assert isinstance(pipe.scheduler, diffusers.DDPMScheduler)


def test_without_its_own_settings_the_parts_alone_are_loaded(folder):
    (folder / "exit_policy.json").write_text("{")
    pipe = load(folder, own_settings=False)
    assert isinstance(pipe.scheduler, diffusers.DDPMScheduler)
    assert pipe.own_settings == FolderSettings()
    with pytest.raises(InputError, match=r"exit_policy\.json cannot be used: .*; make it anew, or delete it"):
        load(folder)


def test_calibrating_anew_does_what_the_message_for_a_damaged_policy_says(folder):
    (folder / "exit_policy.json").write_text("{")
    main(["calibrate", str(folder), "--compute", "0.6", "--samples", "8", "--replace"])
    made_for = load(folder).own_settings.stored.calibrated_for
    assert (made_for.scheduler, made_for.steps) == ("unipc", 3)


def test_a_scheduler_of_the_callers_wins(folder):
    store(folder)
    own = diffusers.EulerDiscreteScheduler(num_train_timesteps=200)
    assert load(folder, scheduler=own).scheduler is own
    named = load(folder, scheduler="ddim")
    assert isinstance(named.scheduler, diffusers.DDIMScheduler)
    assert named.sampling_settings().differences == ("scheduler ddim in place of dpm-solver++",)
    with pytest.raises(InputError, match="did you mean ddim"):
        load(folder, scheduler="dimm")
    with pytest.raises(InputError, match="CLIPScheduler"):
        load(folder, scheduler="CLIPScheduler")


def test_another_use_of_a_calibrated_policy_stretches_it_and_is_warned_of_once(folder, caplog):
    store(folder)
    pipe = load(folder)
    with caplog.at_level(logging.WARNING, "adadiff"):
        pipe(generator=torch.Generator().manual_seed(0))
        pipe(num_inference_steps=8, policy=NeverExit())
        assert not caplog.messages
        trace = pipe(num_inference_steps=8).trace
        pipe(num_inference_steps=8)
        pipe.with_parts(scheduler=pipe.scheduler)(num_inference_steps=8)
    assert trace.exit_layers[:, 0].tolist() == [5, 5, 1, 1, 2, 2, 5, 5]
    assert caplog.messages == [
        "the calibrated exit policy is used with steps 8 in place of 4, for which its compute and error are unknown: "
        "calibrate again to measure them"
    ]


def test_a_policy_is_stretched_by_evaluations(model_folder):
    """Heun's method evaluates the model 7 times in 4 steps and 11 times in 6."""
    store(model_folder, ScheduleExit((5, 1, 1, 5, 2, 2, 5)), "HeunDiscreteScheduler")
    path = model_folder / "exit_policy.json"
    described = json.loads(path.read_text())
    del described["sha256"]
    described["calibrated_for"]["evaluations"] = 7
    path.write_text(json.dumps(described))
    pipe = load(model_folder)
    assert isinstance(pipe.scheduler, diffusers.HeunDiscreteScheduler)
    assert pipe().trace.exit_layers[:, 0].tolist() == [5, 1, 1, 5, 2, 2, 5]
    assert len(pipe(num_inference_steps=6).trace.exit_layers) == 11


def test_resolve_needs_no_pipeline():
    scheduler, own = diffusers.DDIMScheduler(), FolderSettings(defaults=SamplingDefaults(steps=7, tau=0.2))
    assert resolve(own, scheduler).policy == ThresholdExit(0.2)
    assert resolve(own, scheduler, num_inference_steps=np.int64(5)).steps == 5
    for arguments, message in (
        ({"tau": 0.1, "policy": NeverExit()}, "either tau or a policy"),
        ({"policy": 0.5}, "give an ExitPolicy"),
        ({"tau": 2}, "tau is 2"),
        ({"num_inference_steps": 2.5}, "the number of steps is 2.5"),
        ({"guidance_scale": "much"}, "the guidance scale is 'much'"),
    ):
        with pytest.raises(InputError, match=message):
            resolve(own, scheduler, **arguments)


# ---------------------------------------------------------------------------------------------------------------------
# Carried along


def test_what_is_loaded_can_be_saved_and_loaded_again(tmp_path):
    """The packaged weights are float16 in their file, and float32 once they are loaded."""
    first = load("digits")
    first.save_pretrained(tmp_path)
    again = load(tmp_path)
    assert json.loads((tmp_path / "scheduler/scheduler_config.json").read_text())["_class_name"] == "DDPMScheduler"
    assert isinstance(first.scheduler, diffusers.DPMSolverMultistepScheduler)
    packaged, saved = (each / "transformer/diffusion_pytorch_model.safetensors" for each in (DIGITS, tmp_path))
    assert saved.stat().st_size > 1.9 * packaged.stat().st_size
    assert again.own_settings.defaults == first.own_settings.defaults
    assert again.own_settings.stored.policy == first.own_settings.stored.policy
    chosen = again.sampling_settings()
    assert isinstance(chosen.policy, CorrectedScheduleExit)
    assert not chosen.differences
    images = [sample_seeded(p, [4], chosen.steps, chosen.policy).images for p in (first, again)]
    assert torch.equal(*images)


def test_other_weights_are_saved_without_the_policy_and_the_threshold(folder, tmp_path, caplog):
    store(folder)
    pipe = load(folder)
    with torch.no_grad():
        pipe.transformer.backbone.position += 1
    with caplog.at_level(logging.WARNING, "adadiff"):
        pipe.save_pretrained(tmp_path / "saved")
    assert "is not saved: it was calibrated for other weights" in caplog.text
    own = load(tmp_path / "saved").own_settings
    assert own.stored is None
    assert own.defaults == SamplingDefaults(scheduler="dpm-solver++", steps=4)


def test_another_scheduler_is_saved_without_the_policy_and_comes_back_as_it_was(folder, tmp_path):
    store(folder)
    pipe = load(folder)
    pipe.scheduler = diffusers.DEISMultistepScheduler.from_config(pipe.scheduler.config, solver_order=3)
    pipe.save_pretrained(tmp_path / "saved")
    again = load(tmp_path / "saved")
    assert isinstance(again.scheduler, diffusers.DEISMultistepScheduler)
    assert again.scheduler.config.solver_order == 3
    assert (again.own_settings.stored, again.sampling_settings().steps) == (None, 4)


def test_other_parts_keep_the_settings_and_another_network_its_own_exits(folder):
    store(folder)
    pipe = load(folder)
    pipe.set_progress_bar_config(disable=True, desc="mine")
    scheduled = pipe.with_parts(scheduler=diffusers.DDIMScheduler())
    assert scheduled.own_settings == pipe.own_settings
    assert scheduled._progress_bar_config == {"disable": True, "desc": "mine"}
    other = pipe.with_parts(transformer=make_model(seed=1)).sampling_settings()
    assert (other.steps, other.policy) == (4, NeverExit())


def test_the_callers_progress_bar_survives(folder, capfd):
    pipe = load(folder)
    pipe.set_progress_bar_config(desc="mine", ncols=60)
    sample_seeded(pipe, range(2), 2, NeverExit())
    assert "mine" not in capfd.readouterr().err
    pipe.calibrate(compute=0.6, samples=8)
    assert "mine" not in capfd.readouterr().err
    pipe()
    assert "mine" in capfd.readouterr().err


def test_calibrating_takes_the_folders_steps_scheduler_and_guidance(class_pipeline, tmp_path):
    class_pipeline.save_pretrained(tmp_path)
    SamplingDefaults(scheduler="ddim", steps=3, guidance_scale=2.0).save(tmp_path)
    found = load(tmp_path).calibrate(compute=0.7, samples=8)
    made_for = found.calibrated_for
    assert (made_for.scheduler, made_for.steps, made_for.guidance_scale) == ("ddim", 3, 2.0)
    found.save(tmp_path)
    assert load(tmp_path).sampling_settings().policy == found.policy
