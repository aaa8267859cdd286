"""What all tests share: small models with random weights, and one thread."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_OFFLINE"] = "1"
os.environ["RAY_worker_niceness"] = "0"  # noqa: SIM112 - else actors stand still where other tests take all cores

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch
from accelerate.state import AcceleratorState, GradientState
from torch import Tensor, nn

from adadiff import AdaDiffPipeline, AdaptiveModel, ExitPolicy, NeverExit
from adadiff.conditioning import ByteTextEncoder
from adadiff.runtime import Denoiser, Inputs, InternalWeights, Prediction, Session
from adadiff.training.config import DiffusionConfig

hypothesis.settings.register_profile("default", deadline=None, derandomize=True, max_examples=25)
hypothesis.settings.load_profile("default")

REPOSITORY = Path(__file__).parents[1]


def make_model(
    sample_size: int | tuple[int, int] = 8,
    in_channels: int = 1,
    head_type: str = "shared",
    estimator_type: str = "concat",
    seed: int = 0,
    class_names: list[str] | None = None,
    null_class: int | None = None,
    **backbone_config: Any,
) -> AdaptiveModel:
    """A small model, its weights large enough that layers and samples differ."""
    torch.manual_seed(seed)
    sizes = {"patch_size": 2, "width": 16, "depth": 5, "num_heads": 2, **backbone_config}
    model = AdaptiveModel(
        sample_size=sample_size,
        in_channels=in_channels,
        backbone_config=sizes,
        head_type=head_type,
        estimator_type=estimator_type,
        class_names=class_names,
        null_class=null_class,
    ).eval()
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            nn.init.normal_(parameter, std=0.3)
    return model


def predict(
    runner: Denoiser | Session,
    sample: Tensor,
    timestep: Tensor | float,
    *,
    policy: ExitPolicy | None = None,
    step: int | list[int] = 0,
    ties: Tensor | None = None,
    return_uncertainties: bool = False,
    internal: tuple[int, Tensor] | None = None,
    **conditions: Tensor,
) -> Prediction:
    """Predict a step of every row with a session, or with a new one of a denoiser; all layers run by default."""
    session = runner if isinstance(runner, Session) else runner.session(len(sample))
    inputs = Inputs(sample, torch.as_tensor(timestep).expand(len(sample)), conditions)
    steps = torch.tensor(step).expand(len(sample))
    weights = None if internal is None else InternalWeights(*internal)
    return session.predict(inputs, steps, policy or NeverExit(), ties, return_uncertainties, weights)


def run_launched(*words: str, processes: int = 2) -> str:
    """Run a command of adadiff in processes that torchrun starts on the CPU; returns what they print.

    torchrun, since `accelerate launch --cpu` starts one process, whatever --num_processes says.
    """
    launch = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [*launch, str(REPOSITORY / "tests/launched.py"), *words],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stdout
    assert all(f"process {k} of {processes}" in done.stdout for k in range(processes))
    return done.stdout


@pytest.fixture
def model() -> AdaptiveModel:
    return make_model()


@pytest.fixture
def pipeline(model: AdaptiveModel) -> AdaDiffPipeline:
    pipe = AdaDiffPipeline(model, DiffusionConfig().build())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def class_pipeline() -> AdaDiffPipeline:
    """Classes cat, dog and owl, and a null class."""
    model = make_model(num_classes=4, class_names=["cat", "dog", "owl"], null_class=3)
    pipe = AdaDiffPipeline(model, DiffusionConfig().build())
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def text_pipeline() -> AdaDiffPipeline:
    """Captions of up to 12 bytes."""
    torch.manual_seed(0)
    encoder = ByteTextEncoder(width=6, length=3)
    pipe = AdaDiffPipeline(make_model(context_dim=6, context_length=3), DiffusionConfig().build(), encoder)
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.fixture
def model_folder(pipeline: AdaDiffPipeline, tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    pipeline.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def fresh_accelerate() -> Iterator[None]:
    """Accelerate keeps one state per process; every test gets its own."""
    yield
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()
