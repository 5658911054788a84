"""Programs whose operators are called with arguments that lie: refused, whatever they say."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from executorch.exir._serialize._program import deserialize_pte_binary, serialize_pte_binary
from executorch.exir.scalar_type import ScalarType
from executorch.exir.schema import AllocationDetails, Buffer, Int, Null, Tensor

from edge_sdk.errors import RuntimeLibraryError
from edge_sdk.export import operators
from edge_sdk.export.lowering import lower
from edge_sdk.runtime import Program

BATCH, SIDE, INPUTS, OUTPUTS, KERNEL = 2, 5, 4, 8, 3
ROWS, FRAME = KERNEL**2 * INPUTS, SIDE + KERNEL - 1

X = torch.ones(BATCH, SIDE, SIDE, INPUTS)
Z = torch.ones(BATCH, SIDE, SIDE, OUTPUTS)
WEIGHT, BIAS = torch.ones(ROWS, OUTPUTS), torch.ones(OUTPUTS)
PADDED = torch.ones(BATCH, FRAME, FRAME, INPUTS)
RANGE, STEPS = torch.tensor([-1.0, 2.0]), torch.ones(OUTPUTS)
PLANES = torch.ones(BATCH * FRAME**2 * INPUTS + operators.INT8_SLACK_BYTES, dtype=torch.uint8)
Y = torch.ones(BATCH, SIDE // 2, SIDE // 2, OUTPUTS)
STATISTICS, ROW = torch.ones(BATCH, 2, OUTPUTS), torch.ones(BATCH, 10)
NORM = (torch.ones(OUTPUTS), torch.ones(OUTPUTS))
POOL = (True, operators.MAX_POOL, 2)
FLAT, MATRIX = torch.ones(BATCH, ROWS), torch.ones(ROWS, OUTPUTS)
SIDES = (SIDE, SIDE)

# What each operator takes where everything fits; fully connected layers beside the convolutions.
CALLS = {
    "convolution": (X, WEIGHT, BIAS, KERNEL),
    "convolution/linear": (FLAT, MATRIX, BIAS, 0),
    "quantized_convolution": (X, WEIGHT, BIAS, KERNEL, RANGE),
    "quantized_convolution/linear": (FLAT, MATRIX, BIAS, 0, RANGE),
    "convolution_weight_gradient": (PADDED, Z, KERNEL),
    "convolution_weight_gradient/linear": (FLAT, torch.ones(BATCH, OUTPUTS), 0),
    "convolution_input_gradient": (Z, WEIGHT, KERNEL, *SIDES),
    "convolution_input_gradient/spread": (
        torch.ones(BATCH, *SIDES, 40),
        torch.ones(9, 40),
        3,
        *SIDES,
    ),
    "convolution_input_gradient/linear": (torch.ones(BATCH, OUTPUTS), MATRIX, 0, 3, 3),
    "quantized_convolution_input_gradient": (Z, WEIGHT, KERNEL, *SIDES, X, RANGE, STEPS),
    "int8_convolution": (X, WEIGHT, BIAS, KERNEL, RANGE),
    "int8_weight_gradient": (Z, PLANES, RANGE, KERNEL, INPUTS),
    "int8_input_gradient": (Z, WEIGHT, KERNEL, X, RANGE, STEPS),
    "bias_gradient": (Z,),
    "activation": (Z, *NORM, 1e-5, *POOL),
    "activation_backward": (Y, Z, STATISTICS, *NORM, *POOL),
    "scale_shift": (Z, *NORM),
    "softmax_cross_entropy": (ROW, ROW),
}


class Call(torch.nn.Module):
    """One operator; its tensors are the program's inputs, the rest stands in the program."""

    def __init__(self, name):
        super().__init__()
        self.operator, self.arguments = name.split("/")[0], CALLS[name]

    @property
    def tensors(self):
        return tuple(a for a in self.arguments if isinstance(a, torch.Tensor))

    def forward(self, *tensors):
        given = iter(tensors)
        taken = [next(given) if isinstance(a, torch.Tensor) else a for a in self.arguments]
        return getattr(torch.ops.trajsyn, self.operator)(*taken)


@cache
def valid(name):
    call = Call(name)
    return deserialize_pte_binary(lower(call, call.tensors))


def loaded(file):
    return Program.load(bytes(serialize_pte_binary(copy.deepcopy(file))))  # which changes the file


def run(file, *, fill=0):
    program = loaded(file)
    inputs = [i.empty() for i in program.inputs]
    outputs = [o.empty() for o in program.outputs]
    for array in inputs:
        array[...] = fill
    try:
        program.execute(inputs, outputs)
    finally:
        program.close()
    return outputs


def is_refused(file, why=""):
    try:
        run(file)
    except RuntimeLibraryError as error:
        return why in str(error)
    return False


def positions(name):
    """Return where the operator's arguments, with its results, stand among the program's values."""
    *arguments, _ = plan_of(valid(name)).chains[0].instructions[0].instr_args.args
    return sorted(set(arguments))


def plan_of(file):
    return file.program.execution_plan[0]


def taken_in(plan, index):
    """Take a value away from the program's inputs and outputs."""
    for holder in (plan, plan.chains[0]):
        holder.inputs = [i for i in holder.inputs if i != index]
        holder.outputs = [o for o in holder.outputs if o != index]


def made_constant(file, index, data):
    file.program.constant_buffer, file.program.segments = [Buffer(b""), Buffer(data)], []
    taken_in(plan_of(file), index)
    plan_of(file).values[index].val.data_buffer_idx = 1


def resized(by):
    def lie(plan, index):
        sizes = plan.values[index].val.sizes
        sizes[-1] += by

    return lie


def of_type(wrong):
    def lie(plan, index):
        plan.values[index].val.scalar_type = wrong

    return lie


def replaced(wrong):
    def lie(plan, index):
        taken_in(plan, index)
        plan.values[index].val = wrong

    return lie


def without_memory(plan, index):
    taken_in(plan, index)


def misaligned(plan, index):
    taken_in(plan, index)
    plan.values[index].val.allocation_info = AllocationDetails(1, 2, 0)
    plan.non_const_buffer_sizes = [0, 1 << 20]


def deep(plan, index):
    tensor = plan.values[index].val
    tensor.sizes = [1, 1, 1, *tensor.sizes[:-1], tensor.sizes[-1] + 1]
    tensor.dim_order = list(range(len(tensor.sizes)))


TENSOR_LIES = {
    "one smaller": resized(-1),
    "one larger": resized(1),
    "of float64": of_type(ScalarType.DOUBLE),
    "of int64": of_type(ScalarType.LONG),
    "of more dimensions": deep,
    "without memory": without_memory,
    "at an odd address": misaligned,
    "an integer": replaced(Int(1)),
    "nothing": replaced(Null()),
}
NUMBER_LIES = {
    "negative": replaced(Int(-1)),
    "huge": replaced(Int(1 << 40)),
    "largest": replaced(Int((1 << 63) - 1)),
    "nothing": replaced(Null()),
}


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_computes_where_its_arguments_fit(runtime, name):
    assert all(np.isfinite(o).all() for o in run(valid(name), fill=1))


@pytest.mark.parametrize("name", CALLS)
def test_an_operator_refuses_arguments_that_do_not_fit(runtime, name):
    accepted = []
    for index in positions(name):
        value = plan_of(valid(name)).values[index].val
        lies = TENSOR_LIES if isinstance(value, Tensor) else NUMBER_LIES
        for kind, lie in lies.items():
            if kind == "nothing" and isinstance(value, Tensor) and value.sizes == list(BIAS.shape):
                continue  # a bias need not be there
            file = copy.deepcopy(valid(name))
            lie(plan_of(file), index)
            if not is_refused(file):
                accepted.append(f"argument {index}, {value}: {kind}")
    assert accepted == []


@pytest.mark.parametrize("name", ["activation", "activation_backward"])
@pytest.mark.parametrize("missing", [0, 1])
def test_a_norm_has_both_scale_and_shift(runtime, name, missing):
    file = copy.deepcopy(valid(name))
    first = 1 if name == "activation" else 3
    replaced(Null())(plan_of(file), first + missing)
    assert is_refused(file)


@pytest.mark.parametrize("name", CALLS)
def test_no_result_may_stand_among_the_constants(runtime, name):
    results = plan_of(valid(name)).outputs
    for index in results:
        file = copy.deepcopy(valid(name))
        made_constant(file, index, bytes(1 << 16))
        assert is_refused(file, "the program failed"), f"result {index}"


def test_a_constant_may_be_read(runtime):
    file = copy.deepcopy(valid("scale_shift"))
    made_constant(file, 1, np.full(OUTPUTS, 3, np.float32).tobytes())
    assert np.array_equal(run(file, fill=1)[0], np.full(Z.shape, 4, np.float32))


@pytest.mark.parametrize(
    "sizes",
    [
        [-1],
        [-2, -4],
        [2**31 - 1] * 3,
        [2**31 - 1] * 4,
        [2**16] * 4,
        [0, 2**31 - 1, 2**31 - 1],
        [1] * 9,
    ],
)
@pytest.mark.parametrize("index", [0, 3])
def test_tensors_of_impossible_sizes_are_refused(runtime, sizes, index):
    file = copy.deepcopy(valid("scale_shift"))
    tensor = plan_of(file).values[index].val
    tensor.sizes, tensor.dim_order = sizes, list(range(len(sizes)))
    assert is_refused(file)


@pytest.mark.parametrize("order", [[3, 2, 1, 0], [0, 0, 0, 0], [9, 9, 9, 9], [0, 1]])
def test_tensors_in_another_order_are_refused(runtime, order):
    file = copy.deepcopy(valid("scale_shift"))
    plan_of(file).values[0].val.dim_order = order
    assert is_refused(file)


@pytest.mark.parametrize("sizes", [[0, -1], [0, 1 << 40], [0, *[3 << 30] * 2]])
def test_programs_that_ask_for_too_much_memory_are_refused(runtime, sizes):
    file = copy.deepcopy(valid("scale_shift"))
    plan_of(file).non_const_buffer_sizes = sizes
    with pytest.raises(RuntimeLibraryError):
        loaded(file)
