"""Which ATen operators do no multiply-accumulates worth counting. What is not known to be light is reported."""

from __future__ import annotations

import torch

# normalization and activation that PyTorch does not tag as pointwise
_NORMS = """
    batch_norm native_batch_norm _native_batch_norm_legit _native_batch_norm_legit_no_training
    cudnn_batch_norm _batch_norm_no_update _batch_norm_with_update miopen_batch_norm instance_norm layer_norm
    native_layer_norm group_norm native_group_norm rms_norm _fused_rms_norm local_response_norm softmax
    _softmax _safe_softmax log_softmax _log_softmax softmin glu prelu _prelu_kernel rrelu rrelu_with_noise
    rrelu_with_noise_functional hardswish hardswish_ silu silu_ mish mish_ elu elu_ celu selu dropout dropout_
    native_dropout feature_dropout alpha_dropout feature_alpha_dropout normalize weight_norm
    _weight_norm_interface _weight_norm
"""
# reductions
_REDUCTIONS = """
    sum mean amax amin max min aminmax prod any all argmax argmin std var std_mean var_mean norm
    linalg_vector_norm logsumexp nansum nanmean median nanmedian mode kthvalue count_nonzero cumsum cumprod
    cummax cummin logcumsumexp _cummax_helper _cummin_helper bincount histc unique _unique2 unique_dim
    unique_consecutive trace
"""
# pooling, interpolation, sampling
_POOLING = """
    max_pool1d max_pool2d max_pool3d max_pool2d_with_indices max_pool3d_with_indices max_pool1d_with_indices
    mkldnn_max_pool2d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d
    adaptive_avg_pool3d _adaptive_avg_pool2d _adaptive_avg_pool3d adaptive_max_pool1d adaptive_max_pool2d
    adaptive_max_pool3d fractional_max_pool2d fractional_max_pool3d max_unpool2d max_unpool3d lp_pool2d
    upsample_nearest1d upsample_nearest2d upsample_nearest3d _upsample_nearest_exact1d
    _upsample_nearest_exact2d _upsample_nearest_exact3d upsample_linear1d upsample_bilinear2d
    upsample_bicubic2d upsample_trilinear3d _upsample_bilinear2d_aa _upsample_bicubic2d_aa grid_sampler
    grid_sampler_2d grid_sampler_3d affine_grid_generator
"""
# moving data
_MOVING = """
    cat concat concatenate stack hstack vstack dstack clone contiguous copy copy_ to _to_copy type_as
    constant_pad_nd pad reflection_pad1d reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d
    replication_pad3d _pad_circular index index_select index_put index_put_ index_add index_add_ index_copy
    index_copy_ index_fill _unsafe_index _unsafe_index_put masked_select masked_fill masked_fill_
    masked_scatter masked_scatter_ gather scatter scatter_ scatter_add scatter_add_ scatter_reduce
    scatter_reduce_ take take_along_dim embedding _embedding_bag embedding_bag roll flip fliplr flipud rot90
    repeat repeat_interleave tile tril triu tril_ triu_ sort argsort topk searchsorted bucketize nonzero where
    channel_shuffle native_channel_shuffle pixel_shuffle pixel_unshuffle im2col col2im unfold_copy
    select_scatter slice_scatter diagonal_scatter as_strided_scatter split_with_sizes_copy _unsafe_view
    _reshape_copy _reshape_alias as_strided_ resize_ set_ squeeze_ unsqueeze_ t_ transpose_ reshape flatten
    view_as_real view_as_complex meshgrid broadcast_tensors one_hot outer ger unsafe_chunk unsafe_split
    unsafe_split_with_sizes chunk split select_copy
"""
# making data
_MAKING = """
    empty empty_like empty_strided new_empty new_empty_strided zeros zeros_like new_zeros zero_ zero ones
    ones_like new_ones full full_like new_full fill fill_ arange linspace logspace eye scalar_tensor tensor
    lift_fresh lift_fresh_copy lift rand rand_like randn randn_like randint randint_like randperm normal
    normal_ uniform uniform_ bernoulli bernoulli_ exponential exponential_ multinomial random_ tril_indices
    triu_indices hann_window
"""
# reading values
_READING = """
    item _local_scalar_dense equal is_nonzero _assert_async _assert_tensor_metadata sym_size sym_numel
    sym_stride
"""
# simulated quantization: rounding
_QUANTIZATION = """
    fake_quantize_per_tensor_affine fake_quantize_per_channel_affine fake_quantize_per_tensor_affine_cachemask
    fake_quantize_per_channel_affine_cachemask _fake_quantize_per_tensor_affine_cachemask_tensor_qparams
    quantize_per_tensor quantize_per_channel dequantize
"""

_LIGHT = frozenset(" ".join((_NORMS, _REDUCTIONS, _POOLING, _MOVING, _MAKING, _READING, _QUANTIZATION)).split())


def is_light(op: str) -> bool:
    """Return whether an operator is element-wise, a reduction, a layout change or the like.

    Args:
        op: full name, e.g. ``"aten.relu.default"``.
    """
    namespace, _, rest = op.partition(".")
    name, _, overload = rest.partition(".")
    if namespace == "prim" or (namespace == "aten" and name in _LIGHT):
        return True
    if namespace not in ("aten", "prims"):
        return False
    found = getattr(getattr(getattr(torch.ops, namespace), name, None), overload or "default", None)
    if found is None:
        return False
    return torch.Tag.pointwise in found.tags or found.is_view
