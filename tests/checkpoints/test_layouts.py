"""Each known layout, on what its original implementation computes: the same logits from a file as that project saves it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save
from torch import nn

from skdeploy.checkpoints.importing import Imported, import_checkpoint, import_without_card, save_weights
from skdeploy.checkpoints.layouts import LAYOUTS
from skdeploy.checkpoints.load import load_network
from skdeploy.checkpoints.recognise import recognise, renamed
from skdeploy.core.spec import ModelSpec
from skdeploy.zoo.fold import fold
from skdeploy.zoo.sknet import SKUnit
from tests.checkpoints.files import LEGACY, State, written
from tests.checkpoints.goldens import LAYOUT_OF, NAMES, Golden, checkpoint_bytes, golden, relative_error

# Relative to the largest logit. Sums of at most a few hundred terms in another order, a few dozen layers deep: 2e-6 in float32
# and 2e-15 in float64 are measured; what is asked for leaves a factor of five and more. Mistakes are at 1e-2 and above.
FLOAT32, FLOAT64 = 1e-5, 1e-12
MISTAKE = 1e-2


pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module", params=NAMES)
def of(request: pytest.FixtureRequest) -> Golden:
    return golden(request.param)


@pytest.fixture(scope="module")
def imported(of: Golden, tmp_path_factory: pytest.TempPathFactory) -> Imported:
    """From the file as the project saves it. Do not change its state."""
    return imported_from(of, tmp_path_factory.mktemp("imported"))


def network(imported: Imported, folder: Path) -> nn.Module:
    """By the way that an export takes: canonical weights in a file, and the spec."""
    save_weights(imported.state, folder / "canonical.safetensors")
    return load_network(imported.spec, folder / "canonical.safetensors")


def imported_from(of: Golden, folder: Path) -> Imported:
    return import_without_card(written(folder, checkpoint_bytes(of)))[0]


def check(module: nn.Module, of: Golden, kind: str = "logits") -> None:
    """The training form and the deploy form, in float32 and float64."""
    end = (
        torch.nn.Softmax(1)
        if kind == "output" and of.metadata["facts"]["forward_ends_in"] != "logits"
        else nn.Identity()
    )
    with torch.no_grad():
        for form in (module, fold(module)):
            assert relative_error(end(form(of.input)), of.arrays[f"{kind}_float32"]) < FLOAT32
        exact = module.double()
        for form in (exact, fold(exact)):
            assert relative_error(end(form(of.input.double())), of.arrays[f"{kind}_float64"]) < FLOAT64


def test_every_layout_has_a_golden() -> None:
    assert set(LAYOUT_OF) == set(NAMES)
    # A caffemodel's own tests: test_caffemodel.py.
    assert set(LAYOUT_OF.values()) == set(LAYOUTS) - {"official Caffe"}


def test_weights_as_the_project_saves_them_give_its_own_logits(of: Golden, imported: Imported, tmp_path: Path) -> None:
    assert imported.layout == LAYOUT_OF[of.name]
    check(network(imported, tmp_path), of)


def test_the_projects_own_output_is_the_logits_or_their_softmax(of: Golden, imported: Imported, tmp_path: Path) -> None:
    check(network(imported, tmp_path), of, "output")
    said = any("ends in a softmax; it is left out" in note for note in imported.notes)
    assert said == (of.metadata["facts"]["forward_ends_in"] != "logits")


FILES: dict[str, Callable[[Golden], bytes]] = {
    "safetensors": lambda of: save(of.state),
    "legacy": lambda of: checkpoint_bytes(of, **LEGACY),
    # PyTorch has these counters since 0.4.1.
    "without step counters": lambda of: save(
        {key: tensor for key, tensor in of.state.items() if not key.endswith("num_batches_tracked")}
    ),
}


@pytest.mark.parametrize("kind", FILES)
def test_the_format_of_the_file_makes_no_difference(kind: str, of: Golden, imported: Imported, tmp_path: Path) -> None:
    other = import_without_card(written(tmp_path, FILES[kind](of)))[0]
    assert other.spec == imported.spec
    assert other.state.keys() == imported.state.keys()
    assert all(torch.equal(tensor, imported.state[key]) for key, tensor in other.state.items())


def test_a_card_of_the_same_network_takes_the_weights_and_has_nothing_to_remark(
    of: Golden, imported: Imported, tmp_path: Path
) -> None:
    by_card = import_checkpoint(written(tmp_path, checkpoint_bytes(of)), imported.spec)
    assert by_card.spec == imported.spec
    assert by_card.layout == LAYOUT_OF[of.name]
    assert not any("inferred" in note for note in by_card.notes)
    check(network(by_card, tmp_path), of)


def test_what_was_peeled_and_dropped_is_said(of: Golden, imported: Imported) -> None:
    notes = imported.notes
    assert notes[0] == f"weights in the layout of {LAYOUT_OF[of.name]}"
    prefix = of.metadata["checkpoint"]["key_prefix"]
    peeled = ", ".join(filter(None, [of.under, prefix]))
    assert (f"the weights were under {peeled}" in notes) == bool(peeled)
    assert (f"not the network's weights, left out: {', '.join(of.beside)}" in notes) == bool(of.beside)


def test_the_spec_says_what_the_original_is(of: Golden, imported: Imported) -> None:
    """Against the facts that were read off the original's own modules."""
    facts = of.metadata["facts"]
    spec = imported.spec.architecture
    kernels = spec.selective_kernel
    groups = facts["groups"] if isinstance(facts["groups"], list) else [facts["groups"]] * 2
    assert [branch.groups for branch in kernels.branches] == groups
    for branch, said in zip(kernels.branches, facts["branches"], strict=True):
        assert f"{branch.kernel}x{branch.kernel} dilation {branch.dilation}" in said
        assert branch.bias == facts["branch"].startswith("conv with bias")
    assert kernels.split_input == bool(facts["split_input"])
    assert kernels.gate.norm == ("BatchNorm, ReLU" in facts["gate"])
    assert kernels.gate.select_bias == ("with bias" in facts["gate_rows"])
    assert [stage.units for stage in spec.stages] == facts["stage_units"]
    assert [stage.stride for stage in spec.stages] == facts["stage_strides"]
    assert spec.stem.max_pool == ("max pool" in facts["stem"])
    assert len(spec.stem.deep) == (2 if facts["stem"].startswith("three") else 0)
    assert spec.classes == of.arrays["logits_float32"].shape[1]


# ----- mistakes would be seen


def error_after(of: Golden, imported: Imported, folder: Path, change: Callable[[nn.Module, State], None]) -> float:
    """How far the logits are off once ``change`` has been made to the network or to its weights."""
    module = network(imported, folder).double()
    change(module, module.state_dict())
    with torch.no_grad():
        return relative_error(module(of.input.double()), of.arrays["logits_float64"])


def swap_gate_rows(_module: nn.Module, state: State) -> None:
    for key, tensor in state.items():
        if ".gate.fc2." in key:
            tensor.copy_(tensor.roll(len(tensor) // 2, 0))


def swap_one_gates_rows(_module: nn.Module, state: State) -> None:
    key = next(key for key in state if key.endswith(".gate.fc2.weight"))
    state[key].copy_(state[key].roll(len(state[key]) // 2, 0))


def other_dilation(branch: int) -> Callable[[nn.Module, State], None]:
    def change(module: nn.Module, _state: State) -> None:
        for name, layer in module.named_modules():
            if name.endswith(f".branches.{branch}.conv"):
                assert isinstance(layer, nn.Conv2d)  # named_modules gives modules; dilations belong to this kind
                dilation = 1 if layer.dilation == (2, 2) else 2
                layer.dilation, layer.padding = (dilation,) * 2, (dilation * (layer.kernel_size[0] - 1) // 2,) * 2

    return change


def tensorflows_epsilon(module: nn.Module, _state: State) -> None:
    for layer in module.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.eps = 1e-3


def drop_gate_biases(_module: nn.Module, state: State) -> None:
    for key, tensor in state.items():
        if ".gate.fc2.bias" in key:
            tensor.zero_()


def caffes_pool(module: nn.Module, _state: State) -> None:
    module.pool = nn.MaxPool2d(3, 2, 0, ceil_mode=True)


def no_relu_after_reduce(module: nn.Module, _state: State) -> None:
    for unit in module.modules():
        if isinstance(unit, SKUnit):
            unit.reduce.relu = nn.Identity()


def has_relu_after_reduce(spec: ModelSpec) -> bool:
    return spec.architecture.family != "linear_sknet" and getattr(spec.network, "block", "") != "basic"


MISTAKES: list[tuple[Callable[[nn.Module, State], None], Callable[[ModelSpec], bool]]] = [
    (swap_gate_rows, lambda spec: True),
    (swap_one_gates_rows, lambda spec: True),
    (other_dilation(0), lambda spec: True),
    (other_dilation(1), lambda spec: True),
    (tensorflows_epsilon, lambda spec: True),
    (drop_gate_biases, lambda spec: spec.architecture.selective_kernel.gate.select_bias),
    (caffes_pool, lambda spec: spec.architecture.stem.max_pool),
    (no_relu_after_reduce, has_relu_after_reduce),
]


def test_mistakes_that_an_importer_could_make_are_far_outside_the_tolerance(
    of: Golden, imported: Imported, tmp_path: Path
) -> None:
    spec = imported.spec
    for change, concerns in MISTAKES:
        if concerns(spec):
            error = error_after(of, imported, tmp_path, change)
            assert error > MISTAKE, (change, error)


@pytest.mark.parametrize("name", ["developer0hye", "simclr-r50_1x_sk1", "timm-skresnet50"])
def test_branches_the_other_way_round_would_be_seen(name: str, tmp_path: Path) -> None:
    def swap(_module: nn.Module, state: State) -> None:
        copies = {key: tensor.clone() for key, tensor in state.items()}
        for key, tensor in state.items():
            if ".branches.0." in key:
                other = key.replace(".branches.0.", ".branches.1.")
                tensor.copy_(copies[other])
                state[other].copy_(copies[key])

    assert error_after(golden(name), imported_from(golden(name), tmp_path), tmp_path, swap) > MISTAKE


def test_nothing_changed_is_no_mistake(of: Golden, imported: Imported, tmp_path: Path) -> None:
    assert error_after(of, imported, tmp_path, lambda _module, _state: None) < FLOAT64


# ----- what the keys of a layout mean


def test_every_key_has_a_meaning_in_its_own_layout_and_some_have_none_in_the_others(of: Golden, tmp_path: Path) -> None:
    keys = [key.removeprefix(of.metadata["checkpoint"]["key_prefix"]) for key in of.state]
    assert LAYOUT_OF[of.name] == recognise(keys, Path("x")).layout.name
    for layout in LAYOUTS.values():
        whole = len(renamed(layout, keys)) == len(keys)
        assert whole == (LAYOUT_OF[of.name] == layout.name), layout.name


def test_no_two_keys_have_one_meaning(of: Golden) -> None:
    keys = [key.removeprefix(of.metadata["checkpoint"]["key_prefix"]) for key in of.state]
    canonical = recognise(keys, Path("x")).canonical
    assert len(set(canonical.values())) == len(keys)


def test_a_select_fc_for_each_branch_is_stacked_in_the_branches_order(tmp_path: Path) -> None:
    of = golden("developer0hye")
    state = imported_from(of, tmp_path).state
    unit = "stage_2.1.conv2_sk.fcs"
    for kind in ("weight", "bias"):
        rows = [of.state[f"{unit}.{branch}.{kind}"] for branch in (0, 1)]
        assert torch.equal(state[f"stages.1.1.sk.gate.fc2.{kind}"], torch.cat(rows))


def test_step_counters_are_not_canonical(of: Golden, imported: Imported) -> None:
    assert any(key.endswith("num_batches_tracked") for key in of.state)
    assert not any(key.endswith("num_batches_tracked") for key in imported.state)
