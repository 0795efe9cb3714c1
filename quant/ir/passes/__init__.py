"""Graph rewrites, one a file, each `Graph -> Graph`. This module holds only their order."""

from quant.ir.graph import Pass, as_today
from quant.ir.passes.bias_as_vector import bias_as_vector
from quant.ir.passes.channels_first import channels_first
from quant.ir.passes.drop_identities import drop_identities
from quant.ir.passes.drop_judges import drop_judges
from quant.ir.passes.equalise_embeddings import equalise_embeddings
from quant.ir.passes.fold_batch_norm import fold_batch_norm
from quant.ir.passes.fold_parameters import fold_parameters
from quant.ir.passes.fold_scale import fold_scale
from quant.ir.passes.fuse_kernels import fuse_kernels
from quant.ir.passes.hoist_quantizers import hoist_quantizers
from quant.ir.passes.norm_as_conv import norm_as_conv
from quant.ir.passes.own_weights import own_weights
from quant.ir.passes.pad_as_pad3d import pad_as_pad3d
from quant.ir.passes.quantize_cells import quantize_cells
from quant.ir.passes.quantizers import lift_quantizers, lift_weights, lower_quantizers

__all__ = [
    "CALIBRATE",
    "JOIN",
    "NORMALISE",
    "PLACE",
    "bias_as_vector",
    "channels_first",
    "drop_identities",
    "drop_judges",
    "equalise_embeddings",
    "fold_batch_norm",
    "fold_parameters",
    "fold_scale",
    "fuse_kernels",
    "hoist_quantizers",
    "lift_quantizers",
    "lift_weights",
    "lower_quantizers",
    "norm_as_conv",
    "own_weights",
    "pad_as_pad3d",
    "quantize_cells",
]

# What decides how ops are joined: after these, what an INT8 kernel takes over is a chain (quant.ir.fusion).
JOIN: tuple[Pass, ...] = (drop_identities, bias_as_vector, fold_batch_norm, pad_as_pad3d, fold_scale)

# A model as all of this project sees it; outputs don't change.
NORMALISE: tuple[Pass, ...] = (as_today, fold_parameters, channels_first, *JOIN, equalise_embeddings, own_weights)

# What calibration sees: weights that are stored as integers, and ops that have a kernel in INT8 only under another
# name, too.
CALIBRATE: tuple[Pass, ...] = (lift_weights, *NORMALISE, norm_as_conv)

# A fake-quantized model of any dialect -> what the INT8 emitter reads. Normalising comes second, for models that
# were fake-quantized before they were normalised; and hoisting lets ops read one rounded tensor that read two before.
PLACE: tuple[Pass, ...] = (lift_quantizers, *NORMALISE, hoist_quantizers, own_weights)
