"""Small PIR programs, one or more for each op of the table; run as a program it exports them and Paddle's outputs.

    python -m tests.pir.ops DIRECTORY

For each case DIRECTORY/NAME/ holds inference.json, inference.pdiparams where there are parameters, and io.npz: inputs
x0, x1, ... and Paddle's outputs y0, y1, ... by its plain executor. Needs FLAGS_enable_pir_api=1.
"""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

R = np.random.default_rng(0)


def f32(*shape: int, low: float = -1.0, high: float = 1.0) -> np.ndarray:
    return R.uniform(low, high, shape).astype(np.float32)


def i64(*shape: int, high: int = 4) -> np.ndarray:
    return R.integers(0, high, shape)


X = f32(2, 3, 8, 8)
POSITIVE = f32(2, 3, 4, low=0.2, high=0.9)
FLAT = f32(2, 3, 4)
LARGE = f32(2, 3, 4, low=1.1, high=2.0)
MASK = R.random((2, 3, 4)) > 0.5
BOXES = np.sort(f32(2, 4, low=0.0), 1)
ONE_EACH = np.array([1, 1], np.int32)
WHOLE = R.integers(1, 9, (2, 3, 4)).astype(np.int32)


def cases() -> Mapping[str, tuple[Callable[..., Any], Sequence[np.ndarray]]]:
    """Case -> a function of tensors, and its inputs; a dimension of size 2 that comes first stays open."""
    import paddle
    import paddle.nn.functional as F
    from paddle import _C_ops

    def conv(x: Any) -> Any:
        return paddle.nn.Conv2D(3, 4, 3, 2, 1)(x)

    def norm(layer: Any) -> Callable[[Any], Any]:
        def build(x: Any) -> Any:
            made = layer()
            made.eval()
            return made(x)

        return build

    def at_axis(function: Callable[..., Any], **more: Any) -> Callable[[Any], Any]:
        return lambda x: function(x, axis=1, **more)

    unary = [
        "abs",
        "acos",
        "acosh",
        "asin",
        "asinh",
        "atan",
        "atanh",
        "ceil",
        "cos",
        "cosh",
        "erf",
        "exp",
        "expm1",
        "floor",
        "log",
        "log10",
        "log1p",
        "log2",
        "logit",
        "reciprocal",
        "round",
        "rsqrt",
        "sign",
        "sin",
        "sinh",
        "sqrt",
        "square",
        "tan",
        "tanh",
        "trunc",
        "isfinite",
        "isinf",
        "isnan",
        "angle",
    ]
    activations = [
        "celu",
        "elu",
        "gelu",
        "hardshrink",
        "log_sigmoid",
        "hardsigmoid",
        "hardswish",
        "hardtanh",
        "leaky_relu",
        "log_softmax",
        "mish",
        "relu",
        "relu6",
        "selu",
        "sigmoid",
        "silu",
        "softmax",
        "softplus",
        "softshrink",
        "softsign",
        "swish",
        "tanhshrink",
        "thresholded_relu",
    ]
    found: dict[str, tuple[Callable[..., Any], Sequence[np.ndarray]]] = {}
    for name in unary:
        value = (
            LARGE
            if name == "acosh"
            else POSITIVE
            if name in ["acos", "asin", "atanh", "log", "logit", "sqrt", "rsqrt", "log2"]
            else FLAT
        )
        value = POSITIVE if name.startswith("log") else value
        found[name] = (getattr(paddle, name), [value])
    for name in activations:
        found[name] = (getattr(F, name), [FLAT])
    for name in ["add", "subtract", "multiply", "divide", "maximum", "minimum", "fmax", "fmin", "atan2", "heaviside"]:
        found[name] = (getattr(paddle, name), [FLAT, POSITIVE])
    for name in ["floor_divide", "remainder", "bitwise_and", "bitwise_or", "bitwise_xor"]:
        found[name] = (getattr(paddle, name), [WHOLE, WHOLE[::-1].copy()])
    for name in [
        "equal",
        "not_equal",
        "less_than",
        "less_equal",
        "greater_than",
        "greater_equal",
        "equal_all",
        "allclose",
        "isclose",
    ]:
        found[name] = (getattr(paddle, name), [FLAT, np.where(MASK, FLAT, POSITIVE)])
    for name in ["logical_and", "logical_or", "logical_xor"]:
        found[name] = (getattr(paddle, name), [MASK, ~MASK])
    for name in ["max", "min", "sum", "mean", "prod", "amax", "amin", "logsumexp"]:
        function = getattr(paddle, name)
        found[name] = (at_axis(function), [FLAT])
        found[f"{name} of all"] = (function, [FLAT])
        found[f"{name} kept"] = (lambda x, f=function: f(x, axis=[0, 2], keepdim=True), [FLAT])
    found |= {
        "all": (at_axis(paddle.all), [MASK]),
        "any": (paddle.any, [MASK]),
        "add_n": (lambda x, y: paddle.add_n([x, y]), [FLAT, POSITIVE]),
        "addmm": (paddle.addmm, [f32(2, 5), f32(2, 4), f32(4, 5)]),
        "baddbmm": (paddle.baddbmm, [f32(2, 3, 5), f32(2, 3, 4), f32(2, 4, 5)]),
        "arange": (lambda x: x + paddle.arange(0, 4, 1, "float32"), [FLAT]),
        "arange of a shape": (lambda x: paddle.arange(0, paddle.shape(x)[2], 1, "int64"), [FLAT]),
        "argmax": (at_axis(paddle.argmax), [FLAT]),
        "argmin": (lambda x: paddle.argmin(x, axis=-1, keepdim=True), [FLAT]),
        "argsort": (at_axis(paddle.argsort, descending=True), [FLAT]),
        "assign": (lambda x: paddle.assign(x) * 2, [FLAT]),
        "assign_value": (lambda x: x + paddle.to_tensor(np.arange(4, dtype="float32")), [FLAT]),
        "batch_norm": (norm(lambda: paddle.nn.BatchNorm2D(3)), [X]),
        "bicubic_interp": (lambda x: F.interpolate(x, scale_factor=2, mode="bicubic"), [X]),
        "bilinear": (lambda x, y: paddle.nn.Bilinear(3, 4, 5)(x, y), [f32(2, 3), f32(2, 4)]),
        "bilinear_interp": (lambda x: F.interpolate(x, size=[12, 10], mode="bilinear", align_corners=True), [X]),
        "bilinear_interp of a shape": (
            lambda x, y: F.interpolate(x, size=paddle.shape(y)[2:], mode="bilinear"),
            [X, f32(2, 3, 5, 6)],
        ),
        "bitwise_not": (paddle.bitwise_not, [WHOLE]),
        "bmm": (paddle.bmm, [f32(2, 3, 4), f32(2, 4, 5)]),
        "cast": (lambda x: paddle.cast(x, "int32"), [FLAT * 9]),
        "channel_shuffle": (lambda x: F.channel_shuffle(x, 3), [f32(2, 6, 4, 4)]),
        "clip": (lambda x: paddle.clip(x, -0.5, 0.4), [FLAT]),
        "concat": (lambda x, y: paddle.concat([x, y], 1), [FLAT, POSITIVE]),
        "conv2d": (conv, [X]),
        "conv2d same": (lambda x: paddle.nn.Conv2D(3, 6, 3, 2, "SAME", groups=3, bias_attr=False)(x), [X]),
        "conv2d_transpose": (lambda x: paddle.nn.Conv2DTranspose(3, 4, 2, 2)(x), [X]),
        "conv2d_transpose to a size": (lambda x: paddle.nn.Conv2DTranspose(3, 4, 3, 2)(x, output_size=[18, 18]), [X]),
        "conv3d": (lambda x: paddle.nn.Conv3D(3, 4, 3)(x), [f32(2, 3, 4, 8, 8)]),
        "conv3d_transpose": (lambda x: paddle.nn.Conv3DTranspose(3, 4, 2, 2)(x), [f32(2, 3, 4, 4, 4)]),
        "depthwise_conv2d": (lambda x: paddle.nn.Conv2D(3, 3, 3, groups=3, bias_attr=False)(x), [X]),
        "depthwise_conv2d_transpose": (
            lambda x: paddle.nn.Conv2DTranspose(3, 3, 2, 2, groups=3, bias_attr=False)(x),
            [X],
        ),
        "crop": (lambda x: paddle.crop(x, [2, 2, 3], [0, 1, 0]), [FLAT]),
        "cross": (lambda x, y: paddle.cross(x, y, axis=1), [FLAT, POSITIVE]),
        "cumprod": (lambda x: paddle.cumprod(x, dim=1), [FLAT]),
        "cumsum": (at_axis(paddle.cumsum), [FLAT]),
        "deformable_conv": (
            lambda x, o, m: paddle.vision.ops.DeformConv2D(3, 4, 3, padding=1)(x, o, m),
            [X, f32(2, 18, 8, 8), f32(2, 9, 8, 8, low=0.0)],
        ),
        "diag": (paddle.diag, [f32(4)]),
        "diag_embed": (paddle.diag_embed, [f32(2, 4)]),
        "diagonal": (paddle.diagonal, [f32(4, 4)]),
        "dot": (paddle.dot, [f32(2, 4), f32(2, 4)]),
        "dropout": (lambda x: F.dropout(x, 0.3, training=False), [FLAT]),
        "dropout downscaled": (lambda x: F.dropout(x, 0.3, training=False, mode="downscale_in_infer"), [FLAT]),
        "elementwise_pow": (paddle.pow, [POSITIVE, FLAT]),
        "embedding": (lambda x: paddle.nn.Embedding(8, 3)(x), [i64(2, 5)]),
        "expand": (lambda x: paddle.expand(x, [2, 3, 4]), [f32(2, 1, 4)]),
        "expand to a shape": (lambda x, y: paddle.expand(x, paddle.shape(y)), [f32(2, 1, 4), FLAT]),
        "expand_as": (paddle.expand_as, [f32(2, 1, 4), FLAT]),
        "eye": (lambda x: x + paddle.eye(4), [f32(2, 4, 4)]),
        "flatten": (lambda x: paddle.flatten(x, 1), [X]),
        "flip": (lambda x: paddle.flip(x, [2]), [X]),
        "fold": (lambda x: F.fold(x, [4, 4], 2, 2), [f32(3, 12, 4)]),
        "full_like": (lambda x: x + paddle.full_like(x, 2.5), [FLAT]),
        "full_with_tensor": (lambda x: paddle.full([paddle.shape(x)[0], 2], 1.5), [FLAT]),
        "gather": (lambda x, i: paddle.gather(x, i, axis=1), [FLAT, i64(3, high=3)]),
        "gather_nd": (paddle.gather_nd, [FLAT, i64(2, 2, high=2)]),
        "gelu tanh": (lambda x: F.gelu(x, approximate=True), [FLAT]),
        "grid_sample": (F.grid_sample, [X, f32(2, 4, 4, 2)]),
        "group_norm": (norm(lambda: paddle.nn.GroupNorm(3, 6)), [f32(2, 6, 4, 4)]),
        "index_add": (lambda x, v: paddle.index_add(x, paddle.to_tensor(np.array([0, 1])), 1, v), [FLAT, f32(2, 2, 4)]),
        "index_sample": (paddle.index_sample, [f32(2, 4), i64(2, 3)]),
        "index_select": (lambda x, i: paddle.index_select(x, i, axis=2), [FLAT, i64(3)]),
        "instance_norm": (norm(lambda: paddle.nn.InstanceNorm2D(3)), [X]),
        "kron": (paddle.kron, [f32(2, 2), f32(2, 3)]),
        "kthvalue": (lambda x: paddle.kthvalue(x, 2, axis=2), [FLAT]),
        "layer_norm": (norm(lambda: paddle.nn.LayerNorm(4)), [FLAT]),
        "lerp": (paddle.lerp, [FLAT, POSITIVE, POSITIVE]),
        "linear_interp": (lambda x: F.interpolate(x, size=[7], mode="linear", data_format="NCW"), [FLAT]),
        "linspace": (lambda x: x + paddle.linspace(0.0, 1.0, 4), [FLAT]),
        "logical_not": (paddle.logical_not, [MASK]),
        "masked_select": (paddle.masked_select, [FLAT, MASK]),
        "matmul": (lambda x, y: paddle.matmul(x, y, transpose_y=True), [FLAT, f32(2, 5, 4)]),
        "matmul with a weight": (lambda x: paddle.nn.Linear(4, 3)(x), [FLAT]),
        "max_pool2d_with_index": (lambda x: F.max_pool2d(x, 2, return_mask=True), [X]),
        "meshgrid": (lambda x, y: paddle.meshgrid(x, y), [f32(3), f32(4)]),
        "mv": (paddle.mv, [f32(2, 4), f32(4)]),
        "nearest_interp": (lambda x: F.interpolate(x, scale_factor=2.0, mode="nearest"), [X]),
        "nonzero": (paddle.nonzero, [MASK]),
        "numel": (paddle.numel, [FLAT]),
        "one_hot": (lambda x: F.one_hot(x, 5), [i64(2, 3)]),
        "p_norm": (lambda x: paddle.norm(x, p=2, axis=1), [FLAT]),
        "pad": (lambda x: F.pad(x, [0, 0, 0, 0, 1, 2, 3, 4]), [X]),
        "pad3d": (lambda x: F.pad(x, [1, 2, 3, 4], mode="reflect"), [X]),
        "pixel_shuffle": (lambda x: F.pixel_shuffle(x, 2), [f32(2, 4, 3, 3)]),
        "pixel_unshuffle": (lambda x: F.pixel_unshuffle(x, 2), [f32(2, 3, 4, 4)]),
        "pool2d": (lambda x: F.max_pool2d(x, 3, 2, 1), [X]),
        "pool2d average": (lambda x: F.avg_pool2d(x, 3, 2, 1, exclusive=False, ceil_mode=True), [X]),
        "pool2d adaptive": (lambda x: F.adaptive_avg_pool2d(x, 1), [X]),
        "pool3d": (lambda x: F.max_pool3d(x, 2), [f32(2, 3, 4, 4, 4)]),
        "pow": (lambda x: paddle.pow(x, 3.0), [FLAT]),
        "prelu": (lambda x: paddle.nn.PReLU(3)(x), [X]),
        "put_along_axis": (lambda x, i, v: paddle.put_along_axis(x, i, v, 1), [f32(2, 4), i64(2, 1), f32(2, 1)]),
        "repeat_interleave": (lambda x: paddle.repeat_interleave(x, 2, axis=1), [FLAT]),
        "reshape": (lambda x: paddle.reshape(x, [0, -1]), [X]),
        "reshape to a shape": (lambda x: paddle.reshape(x, [paddle.shape(x)[0], paddle.shape(x)[1], -1]), [X]),
        "rnn lstm": (lambda x: paddle.nn.LSTM(4, 5, 2, "bidirect")(x)[0], [FLAT]),
        "rnn gru": (lambda x: paddle.nn.GRU(4, 5)(x)[0], [FLAT]),
        "rnn simple": (lambda x: paddle.nn.SimpleRNN(4, 5)(x)[0], [FLAT]),
        "roll": (lambda x: paddle.roll(x, 1, 2), [FLAT]),
        "roi_align": (
            lambda x, b: paddle.vision.ops.roi_align(x, b * 8, paddle.to_tensor(np.array([1, 1], "int32")), 2),
            [X, np.sort(f32(2, 4, low=0.0), 1)],
        ),
        "scale": (lambda x: x * 2.5 + 1.0, [FLAT]),
        "scatter": (lambda x, i, v: paddle.scatter(x, i, v), [f32(4, 3), np.array([1, 3]), f32(2, 3)]),
        "scatter_nd_add": (
            lambda x, i, v: paddle.scatter_nd_add(x, i, v),
            [f32(4, 3), np.array([[1], [1]]), f32(2, 3)],
        ),
        "searchsorted": (paddle.searchsorted, [np.sort(f32(2, 5)), f32(2, 3)]),
        "set_value": (lambda x: paddle.static.setitem(x * 2, (slice(None), 1), 0.5) + 1, [FLAT]),
        "set_value_with_tensor": (
            lambda x, y: paddle.static.setitem(x * 2, (slice(None), 1), y) + 1,
            [FLAT, f32(2, 4)],
        ),
        "shape": (lambda x: paddle.shape(x), [X]),
        "slice": (lambda x: x[:, 1:3, 0], [X]),
        "slice of a shape": (lambda x, y: x[:, : paddle.shape(y)[1]], [X, f32(2, 2)]),
        "split": (lambda x: paddle.split(x, [2, 3, 3], 2), [X]),
        "split_with_num": (lambda x: paddle.split(x, 4, 2), [X]),
        "squeeze": (lambda x: paddle.squeeze(x, 1), [f32(2, 1, 4)]),
        "stack": (lambda x, y: paddle.stack([x, y], 1), [FLAT, POSITIVE]),
        "strided_slice": (lambda x: paddle.strided_slice(x, [2, 3], [0, 1], [8, 7], [2, 3]), [X]),
        "swiglu": (lambda x: paddle.incubate.nn.functional.swiglu(x), [FLAT]),
        "take_along_axis": (lambda x, i: paddle.take_along_axis(x, i, 1), [f32(2, 4), i64(2, 3)]),
        "temporal_shift": (lambda x: F.temporal_shift(x, 2, 0.25), [f32(4, 4, 3, 3)]),
        "tile": (lambda x: paddle.tile(x, [1, 2, 1]), [FLAT]),
        "topk": (lambda x: paddle.topk(x, 2, axis=2), [FLAT]),
        "trace": (paddle.trace, [f32(4, 4)]),
        "transpose": (lambda x: paddle.transpose(x, [0, 2, 3, 1]), [X]),
        "tril": (paddle.tril, [f32(2, 4, 4)]),
        "triu": (lambda x: paddle.triu(x, 1), [f32(2, 4, 4)]),
        "trilinear_interp": (
            lambda x: F.interpolate(x, size=[5, 6, 7], mode="trilinear", data_format="NCDHW"),
            [f32(2, 3, 4, 4, 4)],
        ),
        "unbind": (lambda x: paddle.unbind(x, 1), [FLAT]),
        "unfold": (lambda x: F.unfold(x, 3), [X]),
        "unsqueeze": (lambda x: paddle.unsqueeze(x, [1, 3]), [FLAT]),
        "unstack": (lambda x: paddle.unstack(x, 1), [FLAT]),
        "where": (paddle.where, [MASK, FLAT, POSITIVE]),
        "maxout": (lambda x: F.maxout(x, 2), [f32(2, 4, 3, 3)]),
        "affine_grid": (lambda t: F.affine_grid(t, [2, 3, 4, 4]), [f32(2, 2, 3)]),
        "einsum": (lambda x, y: paddle.einsum("bij,bjk->bik", x, y), [FLAT, f32(2, 4, 5)]),
        "yolo_box": (
            lambda x: paddle.vision.ops.yolo_box(
                x, paddle.to_tensor(np.full((2, 2), 64, "int32")), [10, 13, 16, 30], 2, 0.01, 8
            ),
            [f32(2, 14, 4, 4)],
        ),
        "prior_box": (lambda x: paddle.vision.ops.prior_box(x, x, [2.0], clip=True), [X]),
        "box_coder": (
            lambda p, v, t: paddle.vision.ops.box_coder(p, v, t, "decode_center_size"),
            [np.sort(f32(3, 4, low=0.0), 1), f32(3, 4, low=0.1), f32(2, 3, 4)],
        ),
        "multiclass_nms3": (
            lambda b, s: _C_ops.multiclass_nms3(b, s, None, 0.1, 10, 5, 0.5, True, 1.0, -1)[0],
            [np.sort(f32(2, 6, 4, low=0.0), 2), f32(2, 3, 6, low=0.0)],
        ),
        "matrix_nms": (
            lambda b, s: paddle.vision.ops.matrix_nms(b, s, 0.1, 0.1, 10, 5),
            [np.sort(f32(2, 6, 4, low=0.0), 2), f32(2, 3, 6, low=0.0)],
        ),
        "nms": (lambda b: paddle.vision.ops.nms(b, 0.5), [np.sort(f32(5, 4, low=0.0), 1)]),
        "roi_pool": (lambda x, b, n: paddle.vision.ops.roi_pool(x, b * 8, n, 2), [X, BOXES, ONE_EACH]),
        "psroi_pool": (
            lambda x, b, n: paddle.vision.ops.psroi_pool(x, b * 8, n, 2),
            [f32(2, 8, 8, 8), BOXES, ONE_EACH],
        ),
        "distribute_fpn_proposals": (
            lambda b, n: [*paddle.vision.ops.distribute_fpn_proposals(b * 300, 2, 5, 4, 224, rois_num=n)[0]],
            [BOXES, ONE_EACH],
        ),
        "generate_proposals": (
            lambda s, d, a, v: paddle.vision.ops.generate_proposals(
                s, d, paddle.to_tensor(np.full((2, 2), 64, "float32")), a * 64, v, return_rois_num=True
            ),
            [f32(2, 3, 4, 4), f32(2, 12, 4, 4), np.sort(f32(4, 4, 3, 4, low=0.0), 3), f32(4, 4, 3, 4, low=0.1)],
        ),
        "share_data": (lambda x: _C_ops.share_data(x * 2) + 1, [FLAT]),
        "quantize_linear": (_quantized, [FLAT]),
        "shape in int32": (lambda x: _C_ops.shape(x), [X]),
        "instance_norm of its own": (
            norm(lambda: paddle.nn.InstanceNorm2D(3, weight_attr=False, bias_attr=False)),
            [X],
        ),
        "a part of an array": (lambda x: paddle.split(x, [2, 3, 3], 2)[1] * 2, [X]),
        "computed shapes": (_computed, [X]),
    }
    return found


def _quantized(x: Any) -> Any:
    """A pair as Paddle's QAT exports it."""
    import paddle
    from paddle import _C_ops

    def given(value: float) -> Any:
        return paddle.static.create_parameter([1], "float32", default_initializer=paddle.nn.initializer.Constant(value))

    scale, zero = given(0.7), given(0.0)
    stored, *_ = _C_ops.quantize_linear(x, scale, zero, given(0.0), given(0.0), -1, 8, -128, 127, 0, True, False)
    restored, *_ = _C_ops.dequantize_linear(
        stored, scale, zero, given(0.0), given(0.0), -1, 8, -128, 127, 0, True, False
    )
    return restored


def _computed(x: Any) -> Any:
    """What exports of detectors do: sizes from shapes, in products, sums, stacks and casts."""
    import paddle
    import paddle.nn.functional as F

    height, width = paddle.shape(x)[2], paddle.shape(x)[3]
    small = paddle.nn.Conv2D(3, 4, 3, 2, 1)(x)
    large = F.interpolate(small, size=[height, width], mode="nearest")
    flat = paddle.reshape(large, [paddle.shape(x)[0], 4, height * width])
    return paddle.concat([flat, paddle.tile(paddle.mean(flat, 2, keepdim=True), [1, 1, 2])], 2)


def export(directory: Path, name: str, function: Callable[..., Any], inputs: Sequence[np.ndarray]) -> None:
    import paddle

    main, start = paddle.static.Program(), paddle.static.Program()
    paddle.seed(1)
    with paddle.static.program_guard(main, start):
        shapes = [[-1, *one.shape[1:]] if one.shape[:1] == (2,) and one.ndim > 1 else list(one.shape) for one in inputs]
        feeds = [
            paddle.static.data(f"x{number}", shape, str(one.dtype))
            for number, (shape, one) in enumerate(zip(shapes, inputs, strict=True))
        ]
        built = function(*feeds)
        outputs = list(built) if isinstance(built, (list, tuple)) else [built]
        outputs = [one for one in outputs if one is not None]
    executor = paddle.static.Executor(paddle.CPUPlace())
    scope = paddle.static.Scope()
    with paddle.static.scope_guard(scope):
        executor.run(start)
        paddle.static.save_inference_model(str(directory / "inference"), feeds, outputs, executor, program=main)
    np.savez(directory / "io.npz", **{f"x{n}": one for n, one in enumerate(inputs)}, **ran(directory, inputs))


def ran(directory: Path, inputs: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """Paddle's outputs of a PIR model by its plain executor, y0, y1, ..."""
    import paddle.inference as engine

    params = directory / "inference.pdiparams"
    config = engine.Config(str(directory / "inference.json"), str(params) if params.exists() else "")
    config.disable_gpu()
    config.disable_glog_info()
    config.disable_onednn()
    config.switch_ir_optim(False)
    predictor = engine.create_predictor(config)
    for name in predictor.get_input_names():
        predictor.get_input_handle(name).copy_from_cpu(np.ascontiguousarray(inputs[int(name[1:])]))
    predictor.run()
    names = predictor.get_output_names()
    return {f"y{number}": predictor.get_output_handle(name).copy_to_cpu() for number, name in enumerate(names)}


def main() -> None:
    import paddle

    root = Path(sys.argv[1])
    paddle.enable_static()
    for name, (function, inputs) in cases().items():
        directory = root / name.replace(" ", "-")
        directory.mkdir(parents=True)
        try:
            export(directory, name, function, inputs)
        except Exception as error:  # the test says which cases Paddle itself couldn't export or run
            (directory / "failed.txt").write_text(f"{type(error).__name__}: {str(error).strip().splitlines()[-1]}")


if __name__ == "__main__":
    main()
