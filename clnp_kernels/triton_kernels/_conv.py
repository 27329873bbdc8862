"""The kernels of `masked_conv2d` that multiply matrices."""

import triton
import triton.language as tl

from ._product import NUMBERS, offsets_of, store_outputs, tile_of


@triton.jit
def pixel_of(index, height, width, NARROW: tl.constexpr):
    """Image, row and column of a pixel's number, int64, int32 and int32."""
    if NARROW:  # 64-bit divisions are slow
        index = index.to(tl.int32)
    line = index // width
    return (line // height).to(tl.int64), (line % height).to(tl.int32), (index % width).to(tl.int32)


@triton.jit
def gathered_product(
    acc,  # [BM, BN] float32
    images,  # element [b, k, h, w] at b * stride_b + h * stride_h + w * stride_w + k
    stride_h,
    stride_w,
    base,  # [BM] int64, b * stride_b of each row
    h,  # [BM] the line that the first tap meets
    w,  # [BM] the column that it meets
    exists,  # [BM] whether the row exists
    height,
    width,
    taps_h,
    taps_w,
    step_h,  # lines from one tap to the next
    step_w,
    weight,  # element [tap, k, j] at th * tap_h + tw * tap_w + k * weight_k + j * weight_j
    tap_h,
    tap_w,
    weight_k,
    weight_j,
    j,  # [BN] columns of the weight
    columns,
    depth,
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BK: tl.constexpr,
):
    """acc + the sum over taps and k < depth; pixels outside the images count as zero."""
    blocks = tl.cdiv(depth, BK)
    for step in range(0, taps_h * taps_w * blocks):
        tap = step // blocks
        th, tw = tap // taps_w, tap % taps_w
        line, column = h + th * step_h, w + tw * step_w
        seen = exists & (line >= 0) & (line < height) & (column >= 0) & (column < width)
        k = (step % blocks) * BK + tl.arange(0, BK)
        inside = k < depth
        pixels = base + (line.to(tl.int64) * stride_h + column.to(tl.int64) * stride_w)
        left = tl.load(images + (pixels[:, None] + k[None, :].to(tl.int64)),
                       mask=seen[:, None] & inside[None, :], other=0.0)  # fmt: skip
        at = th.to(tl.int64) * tap_h + tw.to(tl.int64) * tap_w
        at += k[:, None].to(tl.int64) * weight_k + j[None, :] * weight_j
        right = tl.load(weight + at, mask=inside[:, None] & (j < columns)[None, :], other=0.0)
        if WIDEN:  # the interpreter's bfloat16 products are wrong
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    return acc


@triton.jit(do_not_specialize=NUMBERS)
def fwd_kernel(
    x,  # [B, I, H, W]
    active_weight,  # [Oa, Ia, K, K']
    free_weight,  # [Of, I, K, K']
    active_bias,  # [Oa]
    free_bias,  # [Of]
    y,  # [pixels, O], contiguous
    partial,  # [tiles_m, O] float32
    pixels,
    Ia,
    I,  # noqa: E741
    Oa,
    Of,
    H,
    W,
    out_H,
    out_W,
    x_b,
    x_h,
    x_w,
    active_o,
    active_kh,
    active_kw,
    free_o,
    free_kh,
    free_kw,
    BIAS: tl.constexpr,
    RELU: tl.constexpr,
    ACTIVITY: tl.constexpr,
    IN: tl.constexpr,  # unit of I and the strides of x and free_weight
    ACTIVE: tl.constexpr,  # of Ia and the strides of active_weight
    OUT: tl.constexpr,  # of Oa and Of
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    I, x_b, x_h, x_w = I * IN, x_b * IN, x_h * IN, x_w * IN  # noqa: E741
    free_o, free_kh, free_kw = free_o * IN, free_kh * IN, free_kw * IN
    Ia, active_o = Ia * ACTIVE, active_o * ACTIVE
    active_kh, active_kw, Oa, Of = active_kh * ACTIVE, active_kw * ACTIVE, Oa * OUT, Of * OUT
    tiles_free = tl.cdiv(Of, BN)
    tiles_n = tiles_free + tl.cdiv(Oa, BN)
    m, n = tile_of(tl.program_id(0), tl.cdiv(pixels, BM), tiles_n, GROUP)
    i = offsets_of(m, BM)
    exists = i < pixels
    b, h, w = pixel_of(i, out_H, out_W, NARROW)
    base, h, w = b * x_b, h * G.S_H - G.P_H, w * G.S_W - G.P_W
    acc = tl.zeros((BM, BN), tl.float32)
    # Two loops, not one on chosen pointers: each keeps the alignment that its side has.
    if n < tiles_free:
        j = offsets_of(n, BN)
        inside = j < Of
        acc = gathered_product(acc, x, x_h, x_w, base, h, w, exists, H, W, G.K_H, G.K_W, G.D_H,
                               G.D_W, free_weight, free_kh, free_kw, 1, free_o, j, Of, I,
                               PRECISION, WIDEN, BK)  # fmt: skip
        if BIAS:
            acc += tl.load(free_bias + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        column = Oa + j
    else:
        j = offsets_of(n - tiles_free, BN)
        inside = j < Oa
        acc = gathered_product(acc, x, x_h, x_w, base, h, w, exists, H, W, G.K_H, G.K_W, G.D_H,
                               G.D_W, active_weight, active_kh, active_kw, 1, active_o, j, Oa, Ia,
                               PRECISION, WIDEN, BK)  # fmt: skip
        if BIAS:
            acc += tl.load(active_bias + j, mask=inside, other=0.0).to(tl.float32)[None, :]
        column = j
    outputs = tl.full([], 0, tl.int64) + Oa + Of
    store_outputs(acc, y, partial, i, exists, column, inside, m, outputs, RELU, ACTIVITY)


@triton.jit
def first_tap(
    rest, K: tl.constexpr, S: tl.constexpr, P: tl.constexpr, D: tl.constexpr, STEP: tl.constexpr
):
    """The first tap that meets lines whose number leaves `rest` when divided by S; the number of
    such taps, STEP apart; and the output line that the first one of them comes from, counted from
    the line's own number divided by S.
    """
    first = tl.full([], K, tl.int32)
    for tap in tl.static_range(STEP):
        first = tl.where((rest + P - tap * D) % S == 0, tap, first)
    count = tl.maximum(tl.cdiv(K - first, STEP), 0)
    return first, count, (rest + P - first * D) // S  # exact where count > 0


@triton.jit(do_not_specialize=NUMBERS)
def dgrad_kernel(
    grad_z,  # [B, Of, H', W']
    free_weight,  # [Of, I, K, K']
    grad_x,  # [B * H * W, I], contiguous
    pixels,  # of a class
    Ia,
    I,  # noqa: E741
    Of,
    H,
    W,
    out_H,
    out_W,
    class_H,
    class_W,
    grad_b,
    grad_h,
    grad_w,
    free_o,
    free_kh,
    free_kw,
    IN: tl.constexpr,  # unit of Ia, I and the strides of free_weight
    OUT: tl.constexpr,  # of Of and the strides of grad_z
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """With a stride, pixels are worked on by class (line and column modulo the stride): all pixels
    of a class meet the same taps, so no multiplication is by a zero between the strides.
    """
    Ia, I, free_o = Ia * IN, I * IN, free_o * IN  # noqa: E741
    free_kh, free_kw = free_kh * IN, free_kw * IN
    Of, grad_b, grad_h, grad_w = Of * OUT, grad_b * OUT, grad_h * OUT, grad_w * OUT
    tiles_free = tl.cdiv(I - Ia, BN)
    tiles_n = tiles_free + tl.cdiv(Ia, BN)
    m, n = tile_of(tl.program_id(0), tl.cdiv(pixels, BM), tiles_n, GROUP)
    rest_h, rest_w = tl.program_id(1) // G.S_W, tl.program_id(1) % G.S_W
    kh, taps_h, from_h = first_tap(rest_h, G.K_H, G.S_H, G.P_H, G.D_H, G.STEP_H)
    kw, taps_w, from_w = first_tap(rest_w, G.K_W, G.S_W, G.P_W, G.D_W, G.STEP_W)
    i = offsets_of(m, BM)
    b, h, w = pixel_of(i, class_H, class_W, NARROW)
    line, place = h * G.S_H + rest_h, w * G.S_W + rest_w
    exists = (i < pixels) & (line < H) & (place < W)
    base, h, w = b * grad_b, h + from_h, w + from_w
    step_h: tl.constexpr = -(G.STEP_H * G.D_H // G.S_H)
    step_w: tl.constexpr = -(G.STEP_W * G.D_W // G.S_W)
    acc = tl.zeros((BM, BN), tl.float32)
    zero = tl.full([], 0, tl.int64)
    free_at = free_weight + ((zero + kh) * free_kh + (zero + kw) * free_kw)
    if n < tiles_free:
        j = offsets_of(n, BN)
        inside = j < I - Ia
        acc = gathered_product(acc, grad_z, grad_h, grad_w, base, h, w, exists, out_H, out_W,
                               taps_h, taps_w, step_h, step_w, free_at + (zero + Ia),
                               free_kh * G.STEP_H, free_kw * G.STEP_W, free_o, 1, j, I - Ia, Of,
                               PRECISION, WIDEN, BK)  # fmt: skip
        column = Ia + j
    else:  # zero
        j = offsets_of(n - tiles_free, BN)
        inside = j < Ia
        column = j
    mask = exists[:, None] & inside[None, :]
    value = acc.to(grad_x.dtype.element_ty)
    at = (b * H + line) * W + place
    tl.store(grad_x + (at[:, None] * I + column[None, :]), value, mask=mask)


@triton.jit(do_not_specialize=NUMBERS)
def wgrad_kernel(
    grad_z,  # [B, Of, H', W']
    x,  # [B, I, H, W]
    partial,  # [parts, K * K', Of, I] float32, contiguous
    pixels,
    blocks,  # of BK pixels, per part
    I,  # noqa: E741
    Of,
    H,
    W,
    out_H,
    out_W,
    grad_b,
    grad_h,
    grad_w,
    x_b,
    x_h,
    x_w,
    IN: tl.constexpr,  # unit of I and the strides of x
    OUT: tl.constexpr,  # of Of and the strides of grad_z
    NARROW: tl.constexpr,
    G: tl.constexpr,  # _images.Geometry
    PRECISION: tl.constexpr,
    WIDEN: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BK: tl.constexpr,
    GROUP: tl.constexpr,
):
    """One tap, a tile of its [Of, I] and a part of the pixels."""
    I, x_b, x_h, x_w = I * IN, x_b * IN, x_h * IN, x_w * IN  # noqa: E741
    Of, grad_b, grad_h, grad_w = Of * OUT, grad_b * OUT, grad_h * OUT, grad_w * OUT
    tiles_m, tiles_n = tl.cdiv(Of, BM), tl.cdiv(I, BN)
    program, part = tl.program_id(0), tl.program_id(1)
    tap = program // (tiles_m * tiles_n)
    m, n = tile_of(program % (tiles_m * tiles_n), tiles_m, tiles_n, GROUP)
    i, j = offsets_of(m, BM), offsets_of(n, BN)
    shift_h, shift_w = (tap // G.K_W) * G.D_H - G.P_H, (tap % G.K_W) * G.D_W - G.P_W
    acc = tl.zeros((BM, BN), tl.float32)
    for block in range(part * blocks, part * blocks + blocks):
        k = block * tl.full([], BK, tl.int64) + tl.arange(0, BK)
        exists = k < pixels
        b, h, w = pixel_of(k, out_H, out_W, NARROW)
        line, column = h * G.S_H + shift_h, w * G.S_W + shift_w
        seen = exists & (line >= 0) & (line < H) & (column >= 0) & (column < W)
        grads = b * grad_b + (h.to(tl.int64) * grad_h + w.to(tl.int64) * grad_w)
        left = tl.load(grad_z + (i[:, None] + grads[None, :]),
                       mask=(i < Of)[:, None] & exists[None, :], other=0.0)  # fmt: skip
        images = b * x_b + (line.to(tl.int64) * x_h + column.to(tl.int64) * x_w)
        right = tl.load(x + (images[:, None] + j[None, :]),
                        mask=seen[:, None] & (j < I)[None, :], other=0.0)  # fmt: skip
        if WIDEN:
            left, right = left.to(tl.float32), right.to(tl.float32)
        acc = tl.dot(left, right, acc, input_precision=PRECISION)
    at = ((part.to(tl.int64) * (G.K_H * G.K_W) + tap) * Of + i)[:, None] * I + j[None, :]
    tl.store(partial + at, acc, mask=(i < Of)[:, None] & (j < I)[None, :])
