"""Which legacy op each op of PIR is: type, slots of operands and results, renamed attributes. Data only.

A line an op:  PIR name, legacy type | operands | results | attributes

Operands in PIR's order. `X`: the input slot. `axis=`: what PIR gives as an operand is an attribute in legacy programs;
`shape=Shape`: an attribute, or the slot of one tensor where it is computed; `shape=Shape,ShapeTensor`: or the slot of
a list of tensors, one a number. `-`: not written. Attributes not named bear the same name.

Sources, all in Paddle 3.3.1's own distribution: operand and result names from
paddle/fluid/pir/dialect/operator/ir/pd_op.h, legacy names from the tables of op_compat.yaml compiled into it
(paddle/fluid/ir_adaptor/translator/op_compat_info.h), slots from its descriptions of legacy ops.
"""

from collections.abc import Mapping
from typing import NamedTuple

__all__ = ["TABLE", "Attribute", "Row"]


class Attribute(NamedTuple):
    """An operand that is an attribute in legacy programs, and the slots for one that is computed ("": none)."""

    name: str
    tensor: str = ""
    tensors: str = ""


class Row(NamedTuple):
    """The legacy form of a PIR op. `operands`: slot names, Attributes, or "" for one that isn't written."""

    type: str
    operands: tuple[str | Attribute, ...]
    results: tuple[str, ...]
    renamed: Mapping[str, str]


_ROWS = r"""
abs abs | X | Out
acos acos | X | Out
acosh acosh | X | Out
add elementwise_add | X Y | Out
add_n sum | X | Out
addmm addmm | Input X Y | Out | alpha=Alpha beta=Beta
affine_grid affine_grid | Theta output_shape=OutputShape | Output
all reduce_all | X | Out | axis=dim keepdim=keep_dim
allclose allclose | Input Other rtol=Rtol atol=Atol | Out
amax reduce_amax | X | Out | axis=dim keepdim=keep_dim
amin reduce_amin | X | Out | axis=dim keepdim=keep_dim
angle angle | X | Out
any reduce_any | X | Out | axis=dim keepdim=keep_dim
argmax arg_max | X axis= | Out
argmin arg_min | X axis= | Out
argsort argsort | X | Out Indices
asin asin | X | Out
asinh asinh | X | Out
assign assign | X | Out
atan atan | X | Out
atan2 atan2 | X1 X2 | Out
atanh atanh | X | Out
baddbmm baddbmm | Input X Y | Out | alpha=Alpha beta=Beta
bicubic_interp bicubic_interp_v2 | X OutSize SizeTensor Scale | Out | data_format=data_layout
bilinear bilinear_tensor_product | X Y Weight Bias | Out
bilinear_interp bilinear_interp_v2 | X OutSize SizeTensor Scale | Out | data_format=data_layout
bitwise_and bitwise_and | X Y | Out
bitwise_not bitwise_not | X | Out
bitwise_or bitwise_or | X Y | Out
bitwise_xor bitwise_xor | X Y | Out
bmm bmm | X Y | Out
box_coder box_coder | PriorBox PriorBoxVar TargetBox | OutputBox
ceil ceil | X | Out
celu celu | X | Out
channel_shuffle channel_shuffle | X | Out
clip clip | X min=Min max=Max | Out
concat concat | X axis=AxisTensor | Out
conv2d conv2d | Input Filter | Output
conv2d_transpose conv2d_transpose | Input Filter output_size= | Output
conv3d conv3d | Input Filter | Output
conv3d_transpose conv3d_transpose | Input Filter | Output
cos cos | X | Out
cosh cosh | X | Out
crop crop_tensor | X shape=Shape,ShapeTensor offsets=Offsets,OffsetsTensor | Out
cross cross | X Y | Out | axis=dim
cumprod cumprod | X | Out
cumsum cumsum | X axis= | Out
deformable_conv deformable_conv | Input Offset Filter Mask | Output
depthwise_conv2d depthwise_conv2d | Input Filter | Output
depthwise_conv2d_transpose depthwise_conv2d_transpose | Input Filter output_size= | Output
dequantize_linear dequantize_linear | X Scale ZeroPoint InAccum InState | Y OutState OutAccum OutScale
diag diag_v2 | X | Out
diag_embed diag_embed | Input | Out
diagonal diagonal | Input | Out
distribute_fpn_proposals distribute_fpn_proposals | FpnRois RoisNum | MultiFpnRois MultiLevelRoIsNum RestoreIndex
divide elementwise_div | X Y | Out
dot dot | X Y | Out
dropout dropout | X Seed dropout_prob= | Out Mask | mode=dropout_implementation
einsum einsum | Operands | Out InnerCache XShape
elementwise_pow elementwise_pow | X Y | Out
elu elu | X | Out
embedding lookup_table_v2 | Ids W | Out
equal equal | X Y | Out
equal_all equal_all | X Y | Out
erf erf | X | Out
exp exp | X | Out
expand expand_v2 | X shape=Shape,expand_shapes_tensor | Out
expand_as expand_as_v2 | X Y | Out
expm1 expm1 | X | Out
eye eye | num_rows= num_columns= | Out
flatten flatten_contiguous_range | X | Out
flip flip | X | Out
floor floor | X | Out
floor_divide elementwise_floordiv | X Y | Out
fmax elementwise_fmax | X Y | Out
fmin elementwise_fmin | X Y | Out
fold fold | X | Y
full_like fill_any_like | X value= | Out
gather gather | X Index axis=Axis | Out
gather_nd gather_nd | X Index | Out
gelu gelu | X | Out
generate_proposals generate_proposals_v2 | Scores BboxDeltas ImShape Anchors Variances | RpnRois RpnRoiProbs \
    RpnRoisNum | post_nms_top_n=post_nms_topN pre_nms_top_n=pre_nms_topN
greater_equal greater_equal | X Y | Out
greater_than greater_than | X Y | Out
grid_sample grid_sampler | X Grid | Output
group_norm group_norm | X Scale Bias | Y Mean Variance | data_format=data_layout
hardshrink hard_shrink | X | Out
hardsigmoid hard_sigmoid | X | Out
hardswish hard_swish | X | Out
hardtanh brelu | X | Out
heaviside elementwise_heaviside | X Y | Out
index_add index_add | X Index AddValue | Out
index_sample index_sample | X Index | Out
index_select index_select | X Index | Out | axis=dim
instance_norm instance_norm | X Scale Bias | Y SavedMean SavedVariance
isclose isclose | Input Other rtol=Rtol atol=Atol | Out
isfinite isfinite_v2 | X | Out
isinf isinf_v2 | X | Out
isnan isnan_v2 | X | Out
kron kron | X Y | Out
kthvalue kthvalue | X | Out Indices
layer_norm layer_norm | X Scale Bias | Y Mean Variance
leaky_relu leaky_relu | X | Out | negative_slope=alpha
lerp lerp | X Y Weight | Out
less_equal less_equal | X Y | Out
less_than less_than | X Y | Out
linear_interp linear_interp_v2 | X OutSize SizeTensor Scale | Out | data_format=data_layout
linspace linspace | Start Stop Num | Out
log log | X | Out
log10 log10 | X | Out
log1p log1p | X | Out
log2 log2 | X | Out
log_softmax log_softmax | X | Out
logical_and logical_and | X Y | Out
logical_not logical_not | X | Out
logical_or logical_or | X Y | Out
logical_xor logical_xor | X Y | Out
logit logit | X | Out
logsigmoid logsigmoid | X | Out
logsumexp logsumexp | X | Out
masked_select masked_select | X Mask | Y
matmul matmul_v2 | X Y | Out | transpose_x=trans_x transpose_y=trans_y
matrix_nms matrix_nms | BBoxes Scores | Out Index RoisNum
max reduce_max | X dim= | Out | keepdim=keep_dim
max_pool2d_with_index max_pool2d_with_index | X | Out Mask | kernel_size=ksize
maximum elementwise_max | X Y | Out
maxout maxout | X | Out
mean reduce_mean | X dim= | Out | keepdim=keep_dim
meshgrid meshgrid | X | Out
min reduce_min | X dim= | Out | keepdim=keep_dim
minimum elementwise_min | X Y | Out
mish mish | X | Out | lambda=threshold
multiclass_nms3 multiclass_nms3 | BBoxes Scores RoisNum | Out Index NmsRoisNum
multiply elementwise_mul | X Y | Out
mv mv | X Vec | Out
nearest_interp nearest_interp_v2 | X OutSize SizeTensor Scale | Out | data_format=data_layout
nms nms | Boxes | KeepBoxesIdxs | threshold=iou_threshold
nonzero where_index | Condition | Out
not_equal not_equal | X Y | Out
numel size | Input | Out
one_hot one_hot_v2 | X depth=depth_tensor | Out
p_norm p_norm | X | Out
pad pad | X pad_value= | Out
pad3d pad3d | X paddings=Paddings | Out | pad_value=value
pixel_shuffle pixel_shuffle | X | Out
pixel_unshuffle pixel_unshuffle | X | Out
pool2d pool2d | X ksize= | Out
pool3d pool3d | X | Out | kernel_size=ksize
pow pow | X | Out | y=factor
prelu prelu | X Alpha | Out
prior_box prior_box | Input Image | Boxes Variances
prod reduce_prod | X dim= | Out | keepdim=keep_dim
psroi_pool psroi_pool | X ROIs RoisNum | Out
put_along_axis put_along_axis | Input Index Value | Result | axis=Axis include_self=Include_self reduce=Reduce
quantize_linear quantize_linear | X Scale ZeroPoint InAccum InState | Y OutState OutAccum OutScale
reciprocal reciprocal | X | Out
relu relu | X | Out
relu6 relu6 | X | Out
remainder elementwise_mod | X Y | Out
repeat_interleave repeat_interleave | X | Out | axis=dim repeats=Repeats
reshape reshape2 | X shape=Shape,ShapeTensor | Out
rnn rnn | Input PreState WeightList SequenceLength - | Out DropoutState State Reserve
roi_align roi_align | X ROIs RoisNum | Out
roi_pool roi_pool | X ROIs RoisNum | Out Argmax
roll roll | X shifts=ShiftsTensor | Out
round round | X | Out
rsqrt rsqrt | X | Out
scale scale | X scale=ScaleTensor | Out
scatter scatter | X Ids Updates | Out
scatter_nd_add scatter_nd_add | X Index Updates | Out
searchsorted searchsorted | SortedSequence Values | Out
selu selu | X | Out
set_value set_value | Input starts=,StartsTensorList ends=,EndsTensorList steps=,StepsTensorList | Out
shape shape | Input | Out
sigmoid sigmoid | X | Out
sign sign | X | Out
silu silu | X | Out
sin sin | X | Out
sinh sinh | X | Out
slice slice | Input starts=StartsTensor,StartsTensorList ends=EndsTensor,EndsTensorList | Out
softmax softmax | X | Out
softplus softplus | X | Out
softshrink softshrink | X | Out | threshold=lambda
softsign softsign | X | Out
sqrt sqrt | X | Out
square square | X | Out
squeeze squeeze2 | X axes= | Out
stack stack | X | Y
strided_slice strided_slice | Input starts=StartsTensor,StartsTensorList ends=EndsTensor,EndsTensorList \
    strides=StridesTensor,StridesTensorList | Out
subtract elementwise_sub | X Y | Out
sum reduce_sum | X dim= | Out | dtype=out_dtype keepdim=keep_dim
swiglu swiglu | x y | out
swish swish | X | Out
take_along_axis take_along_axis | Input Index | Result | axis=Axis
tan tan | X | Out
tanh tanh | X | Out
tanh_shrink tanh_shrink | X | Out
temporal_shift temporal_shift | X | Out
thresholded_relu thresholded_relu | X | Out
tile tile | X repeat_times=RepeatTimes,repeat_times_tensor | Out
topk top_k_v2 | X k=K | Out Indices
trace trace | Input | Out
transpose transpose2 | X | Out | perm=axis
trilinear_interp trilinear_interp_v2 | X OutSize SizeTensor Scale | Out | data_format=data_layout
trunc trunc | X | Out
unbind unbind | X | Out
unfold unfold | X | Y
unsqueeze unsqueeze2 | X axes=AxesTensor,AxesTensorList | Out
unstack unstack | X | Y
where where | Condition X Y | Out
yolo_box yolo_box | X ImgSize | Boxes Scores
"""


def _operand(text: str) -> str | Attribute:
    name, computed, slots = text.partition("=")
    if not computed:
        return "" if text == "-" else text
    tensor, _, tensors = slots.partition(",")
    return Attribute(name, tensor, tensors)


def _row(line: str) -> tuple[str, Row]:
    names, operands, results, *attributes = (part.split() for part in line.split("|"))
    renamed = dict(pair.split("=") for pair in (attributes[0] if attributes else ()))
    return names[0], Row(names[1], tuple(map(_operand, operands)), tuple(results), renamed)


TABLE: Mapping[str, Row] = dict(map(_row, _ROWS.replace("\\\n", "").strip().splitlines()))
