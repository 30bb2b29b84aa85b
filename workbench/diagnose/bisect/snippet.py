"""Write the code that records taps in another program, and the mapping that reads them."""

import textwrap
from collections.abc import Sequence

from workbench.diagnose.bisect.stages import SOURCE, StageTaps

MAPPING_HEAD = """\
# Taps for wb.bisect: what submodules of the {stage} returned, or were given (".input").
# `name` is the tensor's name in the dump, `axes` are its axes there. "one" is an axis of length 1.
# "branch" is the batch: with conditions, then without.
"""

TORCH = """\
# Paste this before the run. It writes taps.safetensors once the last of STEPS has been computed.
# `root` is the module of upstream's name {path}.
import torch
from safetensors.torch import save_file

STEPS = {steps}
ARGUMENTS = {arguments}
TAPS = {taps}


def record_taps(root, path="taps.safetensors"):
    kept, calls, modules = {{}}, [-1], dict(root.named_modules())

    def keep(name, value):
        value = value[0] if isinstance(value, tuple) else value
        if calls[0] in STEPS and torch.is_tensor(value):
            kept[f"{stage}.{{calls[0]}}.{{name}}"] = value.detach().cpu().clone().contiguous()

    def begin(module, args, named):
        calls[0] += 1
        for name, value in {{**dict(zip(ARGUMENTS, args)), **named}}.items():
            keep(f"input.{{name}}", value)

    def given(name):
        return lambda module, args, named: keep(name, args[0] if args else next(iter(named.values())))

    def end(module, args, output):
        if calls[0] == max(STEPS):
            save_file(kept, path)

    modules["{first}"].register_forward_pre_hook(begin, with_kwargs=True)
    for name in TAPS:
        module = modules.get(name.removesuffix(".input"))
        if module is None:
            print(name, "is not in this model; hook the place that computes it")
        elif name.endswith(".input"):
            module.register_forward_pre_hook(given(name), with_kwargs=True)
        else:
            module.register_forward_hook(lambda module, args, output, name=name: keep(name, output))
    modules["{last}"].register_forward_hook(end)


record_taps({path})
"""

OTHER = """\
// A program without PyTorch: write each tensor at the step it is computed, with data/foreign/trace.rs, or as
// a tensor "{stage}.STEP.NAME" of a .safetensors or .npz file that the mapping reads. STEP is {steps}.
"""


def mapping_text(stage: StageTaps, names: Sequence[str]) -> str:
    """Return the TOML that reads taps from a dump made with the snippet."""
    tables = [MAPPING_HEAD.format(stage=stage.name)]
    for name in names:
        axes = ", ".join(f'"{axis}"' for axis in axes_of(stage, name))
        tables.append(
            f'[taps."{stage.name}/{{step}}/{name}"]\nname = "{stage.name}.{{step}}.{name}"\naxes = [{axes}]\n'
        )
    return "\n".join(tables)


def torch_snippet(stage: StageTaps, names: Sequence[str], steps: Sequence[int]) -> str:
    """Return Python code that records taps of a PyTorch model into taps.safetensors."""
    taps = [name for name in names if not name.startswith(SOURCE)]
    listed = "".join(f"    {name!r},\n" for name in taps).replace("'", '"')
    return TORCH.format(
        path=stage.path,
        steps="{" + ", ".join(map(str, steps)) + "}",
        arguments=str(list(stage.sources)).replace("'", '"'),
        taps=f"[\n{listed}]",
        stage=stage.name,
        first=stage.first,
        last=stage.last,
    )


def plain_snippet(stage: StageTaps, names: Sequence[str], steps: Sequence[int]) -> str:
    """Return a line for each tap that saves it from a program without PyTorch."""
    numbers = " and ".join(map(str, steps))
    lines = [OTHER.format(stage=stage.name, steps=numbers)]
    for name in names:
        axes = ", ".join(axis for axis in axes_of(stage, name) if axis != "one")
        what = "given to the model" if name.startswith(SOURCE) else stage.tap(name).part
        line = f'trace.put(&format!("tap/{stage.name}/{{step}}/{name}"), &[{axes}], &values);'
        lines.append(textwrap.dedent(f"{line} // {what}\n"))
    return "".join(lines)


def axes_of(stage: StageTaps, name: str) -> tuple[str, ...]:
    """Return the axes of a tap or source."""
    if name.startswith(SOURCE):
        return stage.sources[name.removeprefix(SOURCE)]
    return stage.tap(name).axes
