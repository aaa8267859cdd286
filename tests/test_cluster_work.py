"""Work on actors of Ray: `compare` and `tune` find what they do in one process, and actors stay between calls."""

from __future__ import annotations

import gc
import json
import os
import re
import shutil
import signal
import weakref
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, replace

import pytest
import torch

from adadiff import NeverExit
from adadiff.calibration.cache import TensorCache
from adadiff.cli.compare import compare_command
from adadiff.comparison import compare
from adadiff.sampling import Conditions
from adadiff.sampling.cluster import OnActors, Worker
from adadiff.sampling.finite import NonFiniteImagesError
from adadiff.sampling.folder import Batch, ImageSampler, one_by_one
from adadiff.tuning import TunablePipeline
from adadiff.tuning.measure import Measurer
from adadiff.utils.clusters import connected
from tests.actors import WORKER, content, kill, ray_processes
from tests.cli.conftest import run
from tests.cli.test_tune import TINY, three_steps
from tests.comparison.conftest import config
from tests.serving.conftest import eventually
from tests.tuning.conftest import classes_pipeline, conditions, default, evaluator

__all__ = ["classes_pipeline", "conditions", "config", "default", "evaluator", "three_steps"]

BATCHES = [range(k, k + 4) for k in range(0, 24, 4)]


@pytest.fixture(scope="module")
def actors() -> Iterator[OnActors]:
    """Two actors of a Ray of their own."""
    with connected(None, cpus=2):
        with OnActors() as actors:
            yield actors
        eventually(lambda: not ray_processes(WORKER), 30)  # Ray kills actors without waiting for their end


@pytest.fixture
def actors_of_commands(actors, monkeypatch) -> None:
    """Commands with `--cluster` use those actors, since starting others takes seconds."""
    monkeypatch.setattr("adadiff.sampling.cluster.OnActors", lambda device: nullcontext(actors))


@pytest.fixture
def sampler(classes_pipeline) -> ImageSampler:
    return ImageSampler(classes_pipeline, 3, NeverExit(), conditions=Conditions((0, 1, 2)))


def pixels(batches: Iterator[Batch]) -> dict[int, bytes]:
    """The end of each image's file, which holds the pixels, by index; each batch once."""
    found = {min(indices): [image[image.index(b"IDAT") :] for image in images] for indices, images in batches}
    assert sorted(found) == [min(batch) for batch in BATCHES]
    return {first + k: image for first, images in found.items() for k, image in enumerate(images)}


def processes() -> set[int]:
    return {process.pid for process in ray_processes(WORKER)}


def test_actors_stay_between_calls_and_are_replaced_after_kills(actors, sampler):
    wanted = pixels(one_by_one(sampler, iter(BATCHES)))
    assert pixels(actors(sampler, iter(BATCHES))) == wanted
    first = processes()

    def killing() -> Iterator[Batch]:
        for k, batch in enumerate(actors(replace(sampler, seed=1), iter(BATCHES))):
            if k == 0:
                assert first <= processes()  # the second one may have started too late for the first call
                os.kill(max(first), signal.SIGKILL)
            yield batch

    assert pixels(killing()) == pixels(one_by_one(replace(sampler, seed=1), iter(BATCHES)))
    assert kill(WORKER) in (1, 2)
    assert pixels(actors(sampler, iter(BATCHES))) == wanted
    assert processes()
    assert not processes() & first


def test_after_an_error_or_an_early_end_actors_go_on_with_the_next_call(actors, sampler):
    wanted = pixels(one_by_one(sampler, iter(BATCHES)))
    assert pixels(actors(sampler, iter(BATCHES))) == wanted
    broken = sampler.pipeline.with_parts(transformer=spoilt(sampler))
    first = processes()
    with pytest.raises(NonFiniteImagesError, match=r"image \d+ is NaN or infinite \(and 3 more of its batch\)") as told:
        list(actors(replace(sampler, pipeline=broken), iter(BATCHES)))
    assert told.value.positions == (0, 1, 2, 3)
    for _ in actors(replace(sampler, seed=1), iter(BATCHES)):
        break
    assert pixels(actors(sampler, iter(BATCHES))) == wanted
    assert first <= processes()


def spoilt(sampler: ImageSampler) -> torch.nn.Module:
    """A copy of the sampler's model that predicts NaN."""
    import copy

    model = copy.deepcopy(sampler.pipeline.transformer)
    for parameter in model.parameters():
        parameter.data.fill_(torch.nan)
    return model


def test_an_actor_holds_the_last_model_alone(actors, sampler, monkeypatch):
    import ray

    fetched: list[weakref.ref[torch.nn.Module]] = []
    get = ray.get

    def noting(reference: ray.ObjectRef[ImageSampler]) -> ImageSampler:
        assert not any(model() for model in fetched)
        found = get(reference)
        fetched.append(weakref.ref(found.pipeline.transformer))
        return found

    worker = Worker("cpu")
    monkeypatch.setattr(ray, "get", noting)
    for shared in (ray.put(sampler), ray.put(sampler)):
        for batch in BATCHES[:2]:
            worker.run([shared], batch)
        gc.collect()
    assert len(fetched) == 2


def test_measurements_of_plans_are_those_of_one_process(
    actors, classes_pipeline, conditions, default, evaluator, tmp_path, monkeypatch
):
    monkeypatch.setattr("adadiff.tuning.measure.CHUNK", 20)
    shares = ("agreement", "precision", "recall")
    measured, counted = [], []
    for spread in (one_by_one, actors):
        counts: list[tuple[int, bool]] = []
        cache = TensorCache(tmp_path / str(len(measured)), {})
        model = TunablePipeline(classes_pipeline, default, conditions, spread)
        measurer = Measurer(
            model, evaluator, cache, 8, lambda flops, sampled, counts=counts: counts.append((flops, sampled))
        )
        measured.append([measurer.measure(default, images, 0, shares, errors=True) for images in (20, 50)])
        counted.append(sorted(counts))
    assert measured[0] == measured[1]
    assert counted[0] == counted[1]
    assert [sampled for _, sampled in counted[0]] == [True] * 3


def test_chunks_that_were_complete_outlive_an_interruption(
    classes_pipeline, conditions, default, evaluator, tmp_path, monkeypatch
):
    """Batches come back in the order in which they end."""
    monkeypatch.setattr("adadiff.tuning.measure.CHUNK", 20)
    given: list[Sequence[int]] = []

    def backwards(sampler: ImageSampler, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        for k, batch in enumerate(one_by_one(sampler, iter(list(batches)[::-1]))):
            if k == 3 and not given:
                raise KeyboardInterrupt
            yield batch

    def noting(sampler: ImageSampler, batches: Iterator[Sequence[int]]) -> Iterator[Batch]:
        given.extend(batches)
        yield from one_by_one(sampler, iter(given))

    def measure(spread, folder="search"):
        cache = TensorCache(tmp_path / folder, {})
        model = TunablePipeline(classes_pipeline, default, conditions, spread)
        return Measurer(model, evaluator, cache, 10).measure(default, 50, 0)

    with pytest.raises(KeyboardInterrupt):
        measure(backwards)  # images 40 to 49, 30 to 39 and 20 to 29 are there
    found = measure(noting)
    assert given == [range(10), range(10, 20)]
    assert found == measure(one_by_one, "other") == measure(backwards, "third")


def test_compare_fills_its_cells_with_the_same_images(actors_of_commands, config, tmp_path):
    names = ("adadiff", "released", "duodiff", "extrapolation", "skip-caching", "first-block-caching")
    config = replace(config, methods=names, compute=(0.55,), headline_images=10, synergy_compute=())
    one = compare(config, tmp_path / "one")
    shutil.copytree(tmp_path / "one", tmp_path / "many", ignore=shutil.ignore_patterns("cells"))
    (tmp_path / "config.json").write_text(json.dumps(asdict(config)))
    compare_command(str(tmp_path / "config.json"), tmp_path / "many", cluster="local")
    many = compare(config, tmp_path / "many", so_far=True)
    assert [timeless(cell) for cell in many.cells] == [timeless(cell) for cell in one.cells]
    assert {cell.method for cell in many.cells} == {*names}
    for cell in (one.full, *one.cells):
        samples = f"cells/{cell.name}/samples"
        assert len(content(tmp_path / "one" / samples)) == 10
        assert content(tmp_path / "many" / samples) == content(tmp_path / "one" / samples)


def timeless(cell):
    evaluation = replace(cell.evaluation, images_per_second=0.0)
    return replace(cell, seconds=0.0, full_seconds=0.0, evaluation=evaluation)


def test_tune_finds_the_same_plan(actors_of_commands, three_steps, tmp_path):
    run(f"tune {three_steps} --compute 0.7 {TINY} --out {tmp_path}/one")
    run(f"tune {three_steps} --compute 0.7 {TINY} --out {tmp_path}/many --cluster")
    one, many = ((tmp_path / name / "exit_policy.json").read_text() for name in ("one", "many"))
    timed = re.compile(r'"(seconds|sha256)": .*')
    assert timed.sub("", many) == timed.sub("", one)
