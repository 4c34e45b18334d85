"""What of a model a stage trains: parameters by name, the modes of modules, and the buffers that go with them."""

from __future__ import annotations

from fnmatch import fnmatchcase

from torch import Tensor, nn

from steadysam.errors import ConfigError
from steadysam.methods.contract import Stage

_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)


def select_trainable(model: nn.Module, stage: Stage) -> dict[str, nn.Parameter]:
    """Freeze everything but the stage's parameters; put their modules in train mode and all others in eval mode.

    Raises:
        ConfigError: `CONFIG_VALUE` if a pattern names no parameter.
    """
    named = dict(model.named_parameters())
    for pattern in stage.trainable:
        if not any(fnmatchcase(name, pattern) for name in named):
            raise ConfigError("CONFIG_VALUE", f"stage {stage.name!r} trains {pattern!r}, which the model lacks")
    chosen = {n: p for n, p in named.items() if any(fnmatchcase(n, pattern) for pattern in stage.trainable)}
    for name, parameter in named.items():
        parameter.requires_grad_(name in chosen)
    model.eval()
    for name, module in model.named_modules(remove_duplicate=False):
        # a module sets the mode of those below it, and may want it otherwise for some
        if _is_below(name, stage) and not (name and _is_below(name.rpartition(".")[0], stage)):
            module.train()
    fixed = stage.fixed_statistics
    patterns = fixed if isinstance(fixed, tuple) else ("*",) * fixed
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, _BATCH_NORMS) and any(fnmatchcase(name, pattern) for pattern in patterns):
            module.eval()
    return chosen


def stage_buffers(model: nn.Module, stage: Stage) -> dict[str, Tensor]:
    """The buffers that belong to a stage: those that its patterns name, and what batch norm layers below them count.

    The second rule is for patterns that name weights only: the layers are in train mode all the same.
    """
    kept = set(model.state_dict())  # tables that are made anew with the model are not stored
    norms = {n for n, m in model.named_modules() if isinstance(m, _BATCH_NORMS) and _is_below(n, stage)}
    return {
        name: buffer
        for name, buffer in model.named_buffers()
        if name in kept
        and (name.rpartition(".")[0] in norms or any(fnmatchcase(name, pattern) for pattern in stage.trainable))
    }


def _is_below(module: str, stage: Stage) -> bool:
    """Whether a module lies below the fixed head of a pattern: `a.b` and `a.b.c` below `a.b.*`, nothing below `a.w`."""
    return any(f"{module}.".startswith(pattern.split("*")[0]) for pattern in stage.trainable)
