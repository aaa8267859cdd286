"""Names of a transformer's calls, which diffusers pipelines give by `transformer.cache_context("cond")`.

diffusers hands the name to the hooks of the transformer. Ours only listens: it changes neither inputs nor outputs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from diffusers.hooks.hooks import HookFunctionReference, StateManager
from torch import nn

HOOK = "adadiff"
REGISTRY = "_diffusers_hook"


class CallName(StateManager):
    """The name of the call in progress; None outside of `cache_context`."""

    def __init__(self) -> None:
        super().__init__(object)
        self.name: str | None = None

    def set_context(self, context: Any) -> None:
        """Take the name, which older versions of diffusers pass as a string."""
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

    `HookRegistry.register_hook` would wrap the model's forward method in one that its copies share. The listener needs
    no such wrapper, so it is entered directly: first, so that none of the other hooks' wrappers is taken for its own.

    Args:
        model: The transformer.
        finished: Called at the end of each call of the pipeline, if diffusers tells.
    """

    def __init__(self, model: nn.Module, finished: Callable[[], None]) -> None:
        self.model, self.listener = model, Listener(finished)
        self._own_registry = REGISTRY not in model.__dict__
        if hasattr(model, "cache_context"):
            registry = HookRegistry.check_if_exists_or_initialize(model)
            registry.hooks[HOOK] = self.listener
            registry._hook_order.insert(0, HOOK)
            registry._fn_refs.insert(0, HookFunctionReference())

    @property
    def name(self) -> str | None:
        """The name of the call in progress."""
        return self.listener.call.name

    def remove(self) -> None:
        """Stop listening."""
        registry = self.model.__dict__.get(REGISTRY)
        if registry is None or HOOK not in registry.hooks:
            return
        place = registry._hook_order.index(HOOK)
        del registry.hooks[HOOK], registry._hook_order[place], registry._fn_refs[place]
        if self._own_registry and not registry.hooks:
            del self.model.__dict__[REGISTRY]
