"""Names of a transformer's calls, which diffusers pipelines give by `transformer.cache_context("cond")`.

diffusers hands the name to the hooks of the transformer. Ours only listens: it changes neither inputs nor outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import StateManager
from torch import nn

HOOK = "adadiff"
REGISTRY = "_diffusers_hook"


class CallName(StateManager):
    """The name of the call in progress; None outside of `cache_context`."""

    def __init__(self) -> None:
        super().__init__(object)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Take the name; diffusers before 0.38 passes it as a string."""
        self.name = getattr(context, "name", context)

    def reset(self, *args: Any, **kwargs: Any) -> None:
        """Forget the name."""
        self.name = None


class Listener(ModelHook):
    """A hook of diffusers that receives the names of calls, and learns when the pipeline's call is over.

    Args:
        finished: Called at the end of each call of the pipeline.
    """

    _is_stateful = True

    def __init__(self, finished: Callable[[], None]) -> None:
        super().__init__()
        self.call, self.finished = CallName(), finished

    def reset_state(self, module: nn.Module) -> nn.Module:
        """Forget the name; diffusers calls this when the pipeline's call is over."""
        self.call.reset()
        self.finished()
        return module


class CallNames:
    """Listens to the names of a transformer's calls; None for all where diffusers gives them no names.

    Args:
        model: The transformer.
        finished: Called at the end of each call of the pipeline, if diffusers tells.
    """

    def __init__(self, model: nn.Module, finished: Callable[[], None]) -> None:
        self.model, self.listener = model, Listener(finished)
        self._own_registry = REGISTRY not in model.__dict__
        self._own_forward = "forward" not in model.__dict__
        self._listens = hasattr(model, "cache_context")
        if self._listens:
            registry = HookRegistry.check_if_exists_or_initialize(model)
            registry.register_hook(self.listener, HOOK)
            self._wrapper = model.forward

    @property
    def name(self) -> str | None:
        """The name of the call in progress."""
        return self.listener.call.name

    def remove(self) -> None:
        """Stop listening, and leave the transformer's attributes as they were; hooks added since stay."""
        registry = getattr(self.model, REGISTRY, None)
        if not self._listens or registry is None or HOOK not in registry.hooks:
            return
        outer, inner = self.model.forward, self.listener.fn_ref.forward
        is_last = registry._hook_order[-1] == HOOK
        registry.remove_hook(HOOK, recurse=False)
        if is_last and outer is not self._wrapper:  # accelerate has wrapped it since, to move weights
            self.model.forward = outer
            if getattr(self.model, "_old_forward", None) is self._wrapper:
                self.model._old_forward = inner
        elif self._own_forward and not registry.hooks and not hasattr(self.model, "_hf_hook"):
            self.model.__dict__.pop("forward", None)  # the class's own again
        if self._own_registry and not registry.hooks:
            del self.model.__dict__[REGISTRY]
