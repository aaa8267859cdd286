"""Corrected exits against a version that reads off every layer at every step, and corrects by a formula written out."""

import json
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from adadiff import AdaDiffPipeline, CorrectedScheduleExit, ScheduleExit
from adadiff.exits.flops import flop_counter
from adadiff.policies import LINE
from adadiff.runtime import Corrections, RowMemory, TraceTotals
from adadiff.training.config import DiffusionConfig
from tests.conftest import make_model, predict

TIMES = (900.0, 700.0, 500.0, 300.0, 200.0, 100.0)


def drifting(batch=3):
    """Noisy images of several steps, each sample drifting at its own pace."""
    torch.manual_seed(0)
    start, drift = torch.randn(batch, 1, 8, 8), torch.randn(batch, 1, 8, 8)
    return [start + 0.2 * k * torch.arange(1, batch + 1)[:, None, None, None] * drift for k in range(len(TIMES))]


@dataclass(frozen=True)
class Table(CorrectedScheduleExit):
    """Layers for every step and every sample."""

    table: tuple[tuple[int, ...], ...] = ()

    def leaves(self, query):
        rows = zip(query.step.tolist(), query.rows.tolist(), strict=True)
        return torch.tensor([query.layer >= self.table[step][row] for step, row in rows])

    def corrected_layers(self, step, depth):
        return (1, 2, 3)

    def skips(self, step):
        return False

    def without_corrections(self, step, depth):
        return self


@given(
    table=st.lists(st.tuples(*[st.sampled_from([1, 2, 3, 5, 5])] * 3), min_size=6, max_size=6),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@torch.no_grad()
def test_exits_are_corrected_by_a_line_through_the_last_two_full_steps(table, dtype):
    model = make_model(depth=5)
    session = model.to(dtype).session(3)
    full_steps = [[], [], []]
    added = [[], [], []]  # to the predictions of layers 1, 2, ... at those steps
    for step, (sample, time) in enumerate(zip(drifting(), TIMES, strict=True)):
        got = predict(session, sample.to(dtype), time, policy=Table((), table=tuple(table)), step=step)
        assert got.exit_layers.tolist() == list(table[step])
        predictions, _ = model.all_exits(sample.to(dtype), torch.full((3,), time))
        for k, layer in enumerate(table[step]):
            wanted, known = predictions[layer - 1, k].float(), full_steps[k]
            if layer == 5:
                full_steps[k].append(step)
                added[k].append(predictions[4, k].float() - predictions[:, k].float())
            elif len(known) == 1:
                wanted = wanted + added[k][-1][layer - 1]
            elif known:
                last, before = added[k][-1][layer - 1], added[k][-2][layer - 1]
                slope = (last - before) / (known[-1] - known[-2])
                wanted = wanted + last + (step - known[-1]) * slope
            tolerance = 1e-4 if dtype == torch.float32 else 0.1
            torch.testing.assert_close(got.sample[k].float(), wanted, rtol=tolerance, atol=tolerance)


@torch.no_grad()
def test_a_correction_that_grows_along_a_line_is_met():
    corrections, rows = Corrections(RowMemory(3)), torch.tensor([0, 2])
    slope, start = torch.randn(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    for step in (1, 4):
        corrections.measure(2, rows, torch.full((2,), step), start + step * slope)
    zeros, steps = torch.zeros(3, 1, 4, 4), torch.tensor([6, 6, 9])
    line = torch.tensor([LINE] * 3)
    got = corrections.correct(2, torch.arange(3), steps, zeros, line)
    torch.testing.assert_close(got[rows], start + torch.tensor([6, 9])[:, None, None, None] * slope)
    assert torch.equal(got[1], zeros[1])
    assert torch.equal(corrections.correct(1, torch.arange(3), steps, zeros, line), zeros)
    assert corrections.exist().tolist() == [True, False, True]
    assert [corrections.known(layer) for layer in (1, 2)] == [False, True]


@torch.no_grad()
def test_a_full_step_is_the_plain_backbones_bit_for_bit():
    model = make_model(depth=5)
    session = model.session(3)
    for step, (sample, time) in enumerate(zip(drifting(), TIMES, strict=True)):
        got = predict(session, sample, time, policy=CorrectedScheduleExit((5, 1, 5, 2, 5, 1)), step=step)
        assert torch.equal(got.sample, model.backbone(sample, torch.full((3,), time))) == (step % 2 == 0)


@pytest.mark.parametrize("layers", [(5, 1, 2, 5, 1, 1), (3, 1, 5, 4, 1, 5), (4, 3, 2, 1, 1, 1), (5, 0, 5, 0, 1, 0)])
@torch.no_grad()
def test_the_reported_flops_are_what_the_counter_sees(layers):
    model = make_model(depth=5)
    assert model.part_flops.full > 0
    session = model.session(3)
    for step, sample in enumerate(drifting()):
        with flop_counter() as counter:
            got = predict(session, sample, TIMES[step], policy=CorrectedScheduleExit(layers), step=step)
        assert got.flops.sum().item() == counter.get_total_flops()


@torch.no_grad()
def test_after_layer_0_the_full_predictions_are_carried_on_along_a_line():
    """The network does not run at all there; the slope is that of the last two full steps, once there are two."""
    model, full = make_model(depth=5), {}
    session, layers = model.session(3), (5, 0, 5, 0, 0, 5)
    for step, (sample, time) in enumerate(zip(drifting(), TIMES, strict=True)):
        got = predict(session, sample, time, policy=CorrectedScheduleExit(layers), step=step)
        assert got.exit_layers.tolist() == [layers[step]] * 3
        if layers[step]:
            full[step] = got.sample
            assert torch.equal(got.sample, model(sample, time).sample)
        elif step == 1:
            assert torch.equal(got.sample, full[0])
            assert not got.flops.any()
        else:
            torch.testing.assert_close(got.sample, full[2] + (step - 2) / 2 * (full[2] - full[0]))


def test_layer_0_is_counted_as_a_prediction_without_compute(class_pipeline):
    output = class_pipeline(
        class_labels=["cat", "owl"],
        num_inference_steps=4,
        guidance_scale=2.0,
        guidance_interval=(0.0, 0.5),
        policy=CorrectedScheduleExit((5, 0, 5, 0)),
    )
    trace, totals = output.trace, TraceTotals.of(output.trace)
    assert trace.exit_layers[:, 0].tolist() == [5, 0, 5, 0]
    assert trace.guided[:, 0].tolist() == [True, True, False, False]
    assert trace.predictions == 2 * (2 + 2 + 1 + 1)
    assert trace.layer_fraction == pytest.approx((2 + 0 + 1 + 0) / 6)
    assert trace.compute_fraction == pytest.approx((2 + 0 + 1 + 0) / 6)
    assert totals.mean_exit_layers.tolist() == [5, 0, 5, 0]
    assert totals.exit_quantile(1.0).tolist() == [5, 0, 5, 0]
    assert TraceTotals.from_dict(json.loads(json.dumps(totals.to_dict()))).to_dict() == totals.to_dict()


def test_nothing_is_kept_from_one_sampling_to_the_next_nor_between_neighbours():
    pipeline = AdaDiffPipeline(make_model(depth=5), DiffusionConfig().build())
    pipeline.set_progress_bar_config(disable=True)

    def sample(numbers, policy):
        generators = [torch.Generator().manual_seed(k) for k in numbers]
        return pipeline(
            batch_size=len(numbers), num_inference_steps=6, policy=policy, generator=generators, output_type="pt"
        ).images

    policy = CorrectedScheduleExit((5, 1, 5, 1, 1, 2))
    together = sample([0, 1, 2], policy)
    assert torch.equal(together, sample([0, 1, 2], policy))
    torch.testing.assert_close(together[1:2], sample([1], policy), rtol=1e-4, atol=1e-4)
    assert not torch.allclose(together, sample([0, 1, 2], ScheduleExit(policy.layers)), atol=1e-2)


def test_where_guidance_begins_all_layers_run(class_pipeline):
    """The unconditional rows lack the corrections of step 0; those of the conditional rows outlast the guidance."""
    policy = CorrectedScheduleExit((5, 2, 1, 5, 1, 1, 1, 1, 5, 1))
    output = class_pipeline(
        class_labels=["cat", "owl"],
        num_inference_steps=10,
        guidance_scale=2.0,
        guidance_interval=(0.2, 0.6),
        policy=policy,
        output_type="pt",
    )
    assert output.trace.exit_layers[:, 0].tolist() == [5, 2, 5, 5, 1, 1, 1, 1, 5, 1]
    assert output.trace.unconditional_exit_layers[:, 0].tolist() == [0, 0, 5, 5, 1, 1, 0, 0, 0, 0]


def test_untied_rows_with_corrections_do_not_wait_for_those_without(class_pipeline):
    output = class_pipeline(
        class_labels=["cat", "owl"],
        num_inference_steps=4,
        guidance_scale=2.0,
        guidance_interval=(0.5, 1.0),
        tied_exits=False,
        policy=CorrectedScheduleExit((5, 1, 1, 1)),
    )
    assert output.trace.exit_layers[:, 0].tolist() == [5, 1, 1, 1]
    assert output.trace.unconditional_exit_layers[:, 0].tolist() == [0, 0, 5, 1]


def test_a_schedule_that_begins_shallow_is_not_corrected_and_makes_no_row_run_all_layers(class_pipeline):
    output = class_pipeline(
        class_labels=["cat"],
        num_inference_steps=4,
        guidance_scale=2.0,
        guidance_interval=(0.5, 1.0),
        policy=CorrectedScheduleExit((2, 2, 2, 5)),
    )
    assert output.trace.exit_layers[:, 0].tolist() == [2, 2, 2, 5]
    assert output.trace.unconditional_exit_layers[:, 0].tolist() == [0, 0, 2, 5]
