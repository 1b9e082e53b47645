r"""Convolutions in ONNX with filters that change from run to run, and their gradients.

A convolution's gradient by its input is a convolution with the filters turned around.  The gradient by
its filters is a product over the positions :math:`q` of the output, for each place :math:`(i, j)` in
the filters,

.. math:: \partial W_{o c i j} = \sum_q \delta_{o q} \, x_{c, q + i L + j} ,

where the rows of the image, of length :math:`L` with the zeros between them, lie one behind the other.
Shifting :math:`\delta` by the rows and :math:`x` by the columns gives all places from one product of
matrices with few copies.
"""
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import numpy as np

from utils.graph.geometry import Geometry
from utils.graph.onnx_nodes import BLOCKED, RUNTIME, Nodes, make_session


@functools.cache
def block_size() -> int:
    """The number of channels in a block of ONNX Runtime's own convolutions here; 0 without them.

    It depends on the processor, and no function tells it.  So both sizes are tried, on integers, whose
    sums have no rounding.
    """
    rng = np.random.default_rng(0)
    x, w = (rng.integers(-4, 5, shape).astype(np.float32) for shape in [(1, 32, 6, 6), (16, 32, 3, 3)])

    def result(size: int) -> np.ndarray:
        nodes = Nodes()
        y = _convolve(nodes, nodes.add_input("x", x.shape), nodes.constant(w),
                      Geometry((32, 6, 6), (16, 4, 4), (3, 3)), size)
        return make_session(nodes.model({y: None}), 1).run(None, {"x": x})[0]
    expected = result(0)
    for size in (16, 8):
        try:
            found = result(size)
        except Exception:  # ONNX Runtime has a type for each of its errors
            continue
        if np.array_equal(found, expected):
            return size
    return 0


def convolve(nodes: Nodes, x: str, w: str, geometry: Geometry) -> str:
    """Convolution of `x`, (B, *before), with filters `w`; as fast with variable as with fixed ones."""
    return _convolve(nodes, x, w, geometry, block_size())


def _convolve(nodes: Nodes, x: str, w: str, geometry: Geometry, block: int) -> str:
    channels, filters = geometry.before[0], geometry.after[0]
    if not _blocked(geometry, block):
        return nodes.add("Conv", x, w, **geometry.attributes)
    w = nodes.reshape(w, filters // block, block, channels // block, block, *geometry.kernel)
    w = nodes.add("Transpose", w, perm=[0, 2, 4, 5, 3, 1])
    return _convolve_blocks(nodes, x, w, geometry)


def _blocked(geometry: Geometry, block: int) -> bool:
    """Whether blocks of channels pay: for 1x1 filters, reordering costs as much as it gains."""
    return bool(block and geometry.group == 1 and prod(geometry.kernel) > 1
                and geometry.before[0] % block == geometry.after[0] % block == 0)


def _convolve_blocks(nodes: Nodes, x: str, w: str, geometry: Geometry) -> str:
    """Convolution with filters of axes O/block, C/block, rows, columns and the blocks of C and of O."""
    channels, filters = geometry.before[0], geometry.after[0]
    x = nodes.add("ReorderInput", x, domain=BLOCKED)
    w = nodes.reshape(w, filters, channels, *geometry.kernel)
    y = nodes.add("Conv", x, w, domain=BLOCKED, kernel_shape=geometry.kernel, **geometry.attributes)
    return nodes.add("ReorderOutput", y, domain=BLOCKED, channels=filters)


def by_input(nodes: Nodes, delta: str, w: str, geometry: Geometry) -> str:
    """The gradient by the input, (B, *before), from that by the output, `delta` (B, *after)."""
    channels, filters, group = geometry.before[0], geometry.after[0], geometry.group
    reach = [spacing * (size - 1) for spacing, size in
             zip(geometry.dilation, geometry.kernel, strict=True)]
    pad = tuple(far - near for far, near in zip(reach, geometry.pad, strict=True))
    if max(geometry.stride) > 1 or min(pad) < 0:
        covered = [(size - 1) * step - 2 * near + far + 1 for size, step, near, far in
                   zip(geometry.after[1:], geometry.stride, geometry.pad, reach, strict=True)]
        missing = [size - known for size, known in zip(geometry.before[1:], covered, strict=True)]
        return nodes.add("ConvTranspose", delta, w, kernel_shape=geometry.kernel,
                         output_padding=missing, **geometry.attributes)
    turned = Geometry(geometry.after, geometry.before, geometry.kernel, (pad[0], pad[1]),
                      dilation=geometry.dilation, group=group)
    places = prod(geometry.kernel)
    backwards = nodes.constant(np.arange(places)[::-1])
    block = block_size()
    if _blocked(turned, block):
        w = nodes.reshape(w, filters // block, block, channels // block, block, places)
        w = nodes.add("Transpose", w, perm=[2, 0, 4, 1, 3])
        return _convolve_blocks(nodes, delta, nodes.add("Gather", w, backwards, axis=2), turned)
    if places == group == 1 and not max(geometry.pad):  # faster than Conv if the filters are fixed
        product = nodes.add("FusedMatMul", nodes.reshape(w, filters, channels),
                            nodes.reshape(delta, 0, filters, -1), domain=RUNTIME, transA=1)
        return nodes.reshape(product, 0, *geometry.before)
    w = nodes.add("Transpose", nodes.reshape(w, group, filters // group, channels // group, places),
                  perm=[0, 2, 1, 3])
    if places > 1:
        w = nodes.add("Gather", w, backwards, axis=3)
    w = nodes.reshape(w, channels, filters // group, *geometry.kernel)
    return nodes.add("Conv", delta, w, **turned.attributes)


@dataclass(frozen=True)
class ByFilters:
    """Each sample's gradient by the filters, out of order: (B, group, O/group rows, C/group columns).

    There are `rows` times `columns` places in a filter.
    """

    value: str
    geometry: Geometry
    rows: int
    columns: int

    def total(self, nodes: Nodes) -> str:
        """The sum over the batch, (O, C/group, *kernel)."""
        filters, inputs = self.geometry.after[0], self.geometry.before[0] // self.geometry.group
        total = nodes.reshape(nodes.sum(self.value, 0), filters, self.rows, inputs, self.columns)
        if self.rows > 1:
            total = nodes.add("Transpose", total, perm=[0, 2, 1, 3])
        return nodes.reshape(total, filters, inputs, *self.geometry.kernel)

    def in_order(self, w: np.ndarray) -> np.ndarray:
        """Filters (O, C/group, *kernel) in the order of `value`, (O, rows C/group columns)."""
        return w.reshape(*w.shape[:2], self.rows, self.columns).transpose(0, 2, 1, 3).reshape(len(w), -1)


def by_filters(nodes: Nodes, x: str, delta: str, geometry: Geometry) -> ByFilters:
    """The gradient by the filters, from the input `x` and the gradient `delta` by the output."""
    channels, filters, group = geometry.before[0], geometry.after[0], geometry.group
    (height, width), places = geometry.kernel, prod(geometry.kernel)
    rows, columns = 1, places
    if max(geometry.stride) > 1:
        positions = prod(geometry.after[1:])
        x = stack(nodes, windows(nodes, x, geometry), channels, positions)
        delta = nodes.reshape(delta, 0, filters, positions)
    else:
        if filters * height + channels * width < filters + channels * places:
            rows, columns = height, width
        x, delta = _shifted(nodes, x, delta, geometry, shift_rows_of_x=rows == 1)
    if group > 1:
        delta = nodes.reshape(delta, 0, group, filters // group * rows, -1)
        x = nodes.reshape(x, 0, group, channels // group * columns, -1)
    product = nodes.add("FusedMatMul", delta, x, domain=RUNTIME, transB=1)
    return ByFilters(product, geometry, rows, columns)


def windows(nodes: Nodes, x: str, geometry: Geometry, border: float = 0.0) -> list[str]:
    """What each place in the filters sees of `x`, (B, C, *after) each; `border` is around the image."""
    if max(geometry.pad):
        x = nodes.add("Pad", x, nodes.constant([0, 0, *geometry.pad] * 2), nodes.constant(border))
    seen = []
    for place in np.ndindex(*geometry.kernel):
        start = np.multiply(place, geometry.dilation)
        stop = start + (np.array(geometry.after[1:]) - 1) * geometry.stride + 1
        seen.append(nodes.add("Slice", x, *map(nodes.constant, (start, stop, (2, 3), geometry.stride))))
    return seen


def stack(nodes: Nodes, values: list[str], channels: int, *shape: int) -> str:
    """Values (B, C, ...) side by side for each channel, (B, C values, *shape)."""
    apart = [nodes.reshape(value, 0, channels, 1, *shape) for value in values]
    joined = nodes.add("Concat", *apart, axis=2) if len(apart) > 1 else apart[0]
    return nodes.reshape(joined, 0, channels * len(apart), *shape)


def _shifted(nodes: Nodes, x: str, delta: str, geometry: Geometry,
             shift_rows_of_x: bool) -> tuple[str, str]:
    """`x` shifted by every column of the filters, `delta` by every row; or all shifts of `x`.

    Both become (B, channels shifts, K), rows one behind the other.
    """
    (channels, height, width), (filters, *after) = geometry.before, geometry.after
    length = max(width, after[1])  # of a row
    x, delta = (_rows(nodes, value, shape, length)
                for value, shape in [(x, geometry.before), (delta, geometry.after)])
    by_row, by_column = ([place * spacing - pad for place in range(size)] for spacing, pad, size in
                         zip(geometry.dilation, geometry.pad, geometry.kernel, strict=True))
    by_row = [row * length for row in by_row]
    shifted = {shift: _without_wrapped(nodes, x, shift, height, length) for shift in by_column}
    copies_of_delta = [(delta, row) for row in by_row]
    copies_of_x = [(value, -shift) for shift, value in shifted.items()]
    if shift_rows_of_x:
        copies_of_x = [(value, shift - row) for row in by_row for value, shift in copies_of_x]
        copies_of_delta = [(delta, 0)]
    sides = [(copies_of_x, channels, height * length), (copies_of_delta, filters, after[0] * length)]
    begin = min(place for copies, *_ in sides for _, place in copies)
    end = max(place + size for copies, _, size in sides for _, place in copies)
    x, delta = (_place(nodes, *side, begin, end) for side in sides)
    return x, delta


def _rows(nodes: Nodes, value: str, shape: tuple[int, int, int], length: int) -> str:
    """`value`, (B, *shape), as rows of `length` one behind the other, (B, channels, height length)."""
    channels, height, width = shape
    if width < length:
        zeros = nodes.zeros(value, channels, height, length - width)
        value = nodes.add("Concat", value, zeros, axis=3)
    return nodes.reshape(value, 0, channels, height * length)


def _without_wrapped(nodes: Nodes, x: str, shift: int, height: int, length: int) -> str:
    """Rows without the columns that a shift would bring from one row into another."""
    if not shift:
        return x
    column = np.arange(length)
    stays = (column >= shift) & (column < length + shift)
    return nodes.add("Mul", x, nodes.constant(np.tile(stays, height).astype(float)))


def _place(nodes: Nodes, copies: Sequence[tuple[str, int]], channels: int, size: int, begin: int,
           end: int) -> str:
    """Values (B, channels, size), each at its place among zeros from `begin` up to `end`."""
    parts, due = [], 0  # the zeros that are due
    for value, place in copies:
        due += place - begin
        if due:
            parts.append(nodes.zeros(value, channels, due))
        parts.append(value)
        due = end - place - size
    if due:
        parts.append(nodes.zeros(copies[0][0], channels, due))
    joined = nodes.add("Concat", *parts, axis=2) if len(parts) > 1 else parts[0]
    return nodes.reshape(joined, 0, channels * len(copies), end - begin)
