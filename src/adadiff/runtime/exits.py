"""A model with exits under an exit policy: each row runs the layers it needs, and is dropped from the batch then."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch import Tensor

from adadiff.backbones import Backbone, LayerState
from adadiff.policies import ExitPolicy
from adadiff.runtime.contract import Denoiser, Inputs, InternalWeights, Prediction, Session
from adadiff.runtime.corrections import Corrections
from adadiff.runtime.rules import RowRules, at_rows


class ExitNetwork(Denoiser):
    """A denoiser with an exit after every layer of its backbone."""

    backbone: Backbone[Any]

    @property
    def depth(self) -> int:
        """Number of layers N."""
        return self.backbone.depth

    @abstractmethod
    def predict(self, i: int, state: LayerState) -> Tensor:
        """Compute g_i(L_i), the prediction after layer i: (batch, channels, height, width)."""

    @abstractmethod
    def uncertainty(self, i: int, state: LayerState, before: LayerState) -> Tensor:
        """Estimate u_i, the uncertainty after layer i: (batch, patches, patch values) in [0, 1]."""

    def session(self, rows: int) -> ExitSession:
        """Begin samplings: return a session of `rows` rows of which nothing is remembered."""
        return ExitSession(self, rows)


class ExitSession(Session):
    """Runs a model with exits; its memory holds the corrections of each row."""

    denoiser: ExitNetwork

    def _predict(
        self,
        inputs: Inputs,
        steps: Tensor,
        policy: ExitPolicy,
        ties: Tensor | None,
        return_uncertainties: bool,
        internal: InternalWeights | None,
    ) -> Prediction:
        network, corrections = self.denoiser, Corrections(self.memory)
        rules = RowRules.of(policy, steps, network.depth, corrections.exist(), ties, return_uncertainties)
        forward = _Forward(network, inputs, rules, corrections, internal)
        forward.skip(rules.skipped)
        for i in range(1, network.depth + 1):
            if not len(forward.remaining):
                break
            forward.run_layer(i)
            forward.exit(i, rules.exits(i, forward.remaining, at_rows(forward.uncertainties, forward.remaining)[:, :i]))
            forward.read_off(i)
        forward.measure_corrections()
        flops = network.part_flops.until_exit(forward.exit_layers, rules.estimated, forward.read)
        return Prediction(forward.sample, forward.exit_layers, forward.uncertainties, flops)


class _Forward:
    """One forward pass: the rows that are still in it, and the predictions of those that exited.

    Args:
        network: The model with exits.
        inputs: The inputs, (batch, ...) each.
        rules: What the policy says of each row.
        corrections: Those of the session's rows.
        internal: Internal guidance, or None.
    """

    def __init__(
        self,
        network: ExitNetwork,
        inputs: Inputs,
        rules: RowRules,
        corrections: Corrections,
        internal: InternalWeights | None,
    ) -> None:
        batch, depth = len(inputs), network.depth
        self.network, self.inputs, self.rules, self.corrections = network, inputs, rules, corrections
        self.internal, self.read = internal, rules.measured.clone()  # where heads run for rows that go on, (batch, N)
        if internal is not None:
            self.read[:, internal.layer - 1] |= internal.weights != 0
        self.sample = torch.empty_like(inputs.sample)
        self.exit_layers = torch.full((batch,), depth)  # (batch,)
        self.uncertainties = torch.full((batch, depth), torch.nan)  # (batch, N)
        self.remaining = torch.arange(batch)  # positions of the rows that have not exited
        self._early: dict[int, tuple[Tensor, Tensor]] = {}  # by layer: positions of rows, their predictions there
        self._estimates, self._reads = (mask.any(0).tolist() for mask in (rules.estimated, self.read))

    def skip(self, skipped: Tensor) -> None:
        """Carry on the predictions of some rows, `skipped` being (batch,) bool, and embed the others."""
        inputs = self.inputs
        if skipped.any():
            rows = skipped.nonzero().squeeze(1)
            places = rows.to(self.sample.device)
            nothing = torch.zeros_like(self.sample[places])
            carried_on = self._corrected(0, rows, nothing)
            self.sample[places] = carried_on.to(self.sample.dtype)
            self.exit_layers[rows] = 0
            self.remaining = (~skipped).nonzero().squeeze(1)
            inputs = inputs.select(self.remaining.to(places.device))
        if len(self.remaining):
            self._state = self.network.backbone.embed(inputs.sample, inputs.timestep, **inputs.conditions)

    def run_layer(self, i: int) -> None:
        """Run layer i on the remaining rows, and the estimator on those whose policy reads it."""
        before, self._state = self._state, self.network.backbone.layer(i, self._state)
        if self._estimates[i - 1]:
            wanted = at_rows(self.rules.estimated, self.remaining)[:, i - 1]
            if not wanted.any():
                return
            estimate = self.network.uncertainty(i, self._rows(wanted, self._state), self._rows(wanted, before))
            self.uncertainties[self.remaining[wanted], i - 1] = estimate.mean((1, 2), dtype=torch.float32).cpu()

    def exit(self, i: int, exiting: Tensor) -> None:
        """Predict the rows that exit after layer i, and keep the others; `exiting` is (remaining,) bool."""
        if not exiting.any():
            return
        rows = self.remaining[exiting]
        prediction = self.network.predict(i, self._rows(exiting, self._state))
        prediction = self._guided_internally(i, rows, prediction)
        if i < self.network.depth:
            prediction = self._corrected(i, rows, prediction)
        self.sample[rows.to(self.sample.device)] = prediction.to(self.sample.dtype)
        self.exit_layers[rows] = i
        self.remaining = self.remaining[~exiting]
        if len(self.remaining):
            self._state = self._rows(~exiting, self._state)

    def read_off(self, i: int) -> None:
        """Predict after layer i for remaining rows that are corrected or guided by the prediction there."""
        if self._reads[i - 1]:
            wanted = at_rows(self.read, self.remaining)[:, i - 1]
            if wanted.any():
                self._early[i] = self.remaining[wanted], self.network.predict(i, self._rows(wanted, self._state))

    def measure_corrections(self) -> None:
        """Record how the final predictions differ from those read off earlier, for rows that ran all layers."""
        carried = (self.rules.carried & (self.exit_layers == self.network.depth)).nonzero().squeeze(1)
        if len(carried):
            self.corrections.measure(0, carried, self.rules.steps[carried], self.sample[carried.to(self.sample.device)])
        for i, (rows, early) in self._early.items():
            full = self.rules.measured[rows, i - 1] & (self.exit_layers[rows] == self.network.depth)
            if not full.any():
                continue
            places = rows[full].to(self.sample.device)
            difference = self.sample[places] - early[full.to(early.device)]
            self.corrections.measure(i, rows[full], self.rules.steps[rows[full]], difference)

    def _guided_internally(self, i: int, rows: Tensor, prediction: Tensor) -> Tensor:
        """Lead predictions after layer i away from those of an earlier layer; corrected exits are guided already."""
        if self.internal is None or self.internal.layer not in self._early:
            return prediction
        weights = torch.where(self.corrections.of_layer(i, rows), 0.0, self.internal.weights[rows])
        read, early = self._early[self.internal.layer]
        row_of = torch.full((len(self.inputs),), -1)
        row_of[read] = torch.arange(len(read))
        guided = ((row_of[rows] >= 0) & (weights != 0)).nonzero().squeeze(1)
        if not len(guided):
            return prediction
        places = guided.to(prediction.device)
        weaker = early[row_of[rows[guided]].to(early.device)]
        scale = weights[guided].to(prediction).view(-1, *[1] * (prediction.dim() - 1))  # (guided, 1, 1, 1)
        own = prediction[places]
        return prediction.index_put((places,), own + scale * (own - weaker))

    def _corrected(self, i: int, rows: Tensor, prediction: Tensor) -> Tensor:
        """Add the corrections of layer i to predictions of rows that exit after it."""
        rules = self.rules
        return self.corrections.correct(i, rows, rules.steps[rows], prediction, rules.extrapolation[rows])

    def _rows(self, mask: Tensor, state: LayerState) -> LayerState:
        """Return the state of some of the remaining rows; `mask` is (remaining,) bool."""
        return state if mask.all() else state.select(mask.nonzero().squeeze(1).to(state.tokens.device))
