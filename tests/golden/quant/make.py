#!/usr/bin/env python3
"""Makes formats.safetensors and golden.json: small quantised matrices, and what the published packages say
they stand for. Numbers are computed in float32 by the packages' own code:

  AWQ                   autoawq 0.2.9, awq/utils/packing_utils.py
  GPTQ                  auto-gptq 0.7.1, nn_modules/qlinear/qlinear_cuda.py, multiplying a unit matrix
  compressed-tensors    compressed-tensors 0.20.0
  bitsandbytes          bitsandbytes 0.50.2, its CPU library
  fp8                   torch.float8_e4m3fn, float8_e5m2; blocks as DeepSeek-V3's weight_dequant
  MXFP4                 transformers 5.24.0, integrations/mxfp4.py

Usage: make.py [FOLDER WITH UNPACKED WHEELS ...]
"""
import hashlib
import importlib.util
import json
import os
import sys

import torch
from safetensors.torch import save_file

sys.path[:0] = sys.argv[1:]
HERE = os.path.dirname(os.path.abspath(__file__))
torch.manual_seed(7)
tensors, cases = {}, []


def from_file(relative, name):
    """A module by its file: the packages around these import GPU libraries."""
    for folder in sys.path:
        path = os.path.join(folder, relative)
        if os.path.exists(path):
            spec = importlib.util.spec_from_file_location(name, path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise SystemExit("not found: " + relative)


def case(base, config, want, **parts):
    """parts: suffix of the tensor -> tensor; want [N,K] float32."""
    want = want.to(torch.float32).contiguous()
    for suffix, t in parts.items():
        tensors[base + "." + suffix] = t.contiguous().clone()
    cases.append({"base": base, "rows": want.shape[0], "in": want.shape[1], "config": config,
                  "sha256": hashlib.sha256(want.numpy().tobytes()).hexdigest(),
                  "first": [float(v) for v in want[0, :4]]})


def words(*shape):
    return torch.randint(-2**31, 2**31, shape, dtype=torch.int64).to(torch.int32)


def scales(*shape, dtype=torch.float16):
    return (torch.rand(shape) * 0.02 + 1e-3).to(dtype)


def awq():
    m = from_file("awq/utils/packing_utils.py", "packing_utils")
    for base, K, N, g, dtype in (("awq", 64, 24, 32, torch.float16), ("awq_bf16", 128, 72, 128, torch.bfloat16)):
        q, z, s = words(K, N // 8), words(K // g, N // 8), scales(K // g, N, dtype=dtype)
        config = {"quant_method": "awq", "bits": 4, "group_size": g, "zero_point": True, "version": "gemm"}
        case(base, config, m.dequantize_gemm(q, z, s.float(), 4, g).t(), qweight=q, qzeros=z, scales=s)


def gptq():
    QuantLinear = from_file("auto_gptq/nn_modules/qlinear/qlinear_cuda.py", "qlinear_cuda").QuantLinear
    for base, K, N, g, bits, order, v2 in (
            ("gptq", 64, 32, 32, 4, False, False), ("gptq_order", 128, 80, 32, 4, True, False),
            ("gptq_v2", 64, 16, 16, 4, False, True), ("gptq_8", 64, 8, 32, 8, True, False),
            ("gptq_3", 64, 32, 32, 3, False, False), ("gptq_2", 64, 16, -1, 2, False, False)):
        lin = QuantLinear(bits, g if g > 0 else K, K, N, False, kernel_switch_threshold=1)
        groups = K // g if g > 0 else 1
        lin.qweight = words(K * bits // 32, N)
        stored = words(groups, N * bits // 32)
        if bits == 8:  # a zero of 256 has no place in a byte, here or in the packages' kernels
            stored = (stored & 0x7f7f7f7f).to(torch.int32)
        lin.qzeros = stored
        if v2:  # the same zeros, stored without the one that is added
            lin.qzeros = stored & 0x77777777
            stored = lin.qzeros + 0x11111111
        s = scales(groups, N)
        lin.scales = s.float()
        lin.g_idx = torch.arange(K, dtype=torch.int32) // (g if g > 0 else K)
        if order:
            lin.g_idx = lin.g_idx[torch.randperm(K)]
        config = {"quant_method": "gptq", "bits": bits, "group_size": g, "desc_act": order, "sym": False}
        if v2:
            config["checkpoint_format"] = "gptq_v2"
        case(base, config, lin(torch.eye(K)).t(), qweight=lin.qweight, qzeros=stored, scales=s, g_idx=lin.g_idx)


def compressed():
    from compressed_tensors.compressors.naive_quantized.base import IntQuantizationCompressor
    from compressed_tensors.compressors.pack_quantized.base import PackedQuantizationCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    for base, packed, bits, strategy, g, symmetric in (
            ("packed", True, 4, "group", 32, True), ("packed_zero", True, 4, "group", 32, False),
            ("packed_row", True, 4, "channel", None, True), ("packed_8", True, 8, "group", 64, True),
            ("int8", False, 8, "channel", None, True), ("int8_zero", False, 8, "channel", None, False),
            ("int8_tensor", False, 8, "tensor", None, True)):
        N, K = 20, 64
        weights = QuantizationArgs(num_bits=bits, type="int", strategy=strategy, group_size=g, symmetric=symmetric)
        scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        half = 2 ** (bits - 1)
        shape = (1,) if strategy == "tensor" else (N, K // g if g else 1)
        s = scales(*shape, dtype=torch.bfloat16)
        z = torch.randint(-half, half, shape, dtype=torch.int8) if not symmetric else torch.zeros(shape, dtype=torch.int8)
        kind = PackedQuantizationCompressor if packed else IntQuantizationCompressor
        state = {"weight": torch.randn(N, K) * s.float().mean() * half / 2, "weight_scale": s.float(),
                 "weight_zero_point": z}
        c = kind.compress(state, scheme)
        want = kind.decompress(dict(c), scheme)["weight"]
        c["weight_scale"] = s
        if symmetric:
            c.pop("weight_zero_point", None)
        config = {"quant_method": "compressed-tensors",
                  "format": "pack-quantized" if packed else "int-quantized",
                  "config_groups": {"group_0": {"targets": ["Linear"], "weights": json.loads(weights.model_dump_json())}}}
        case(base, config, want, **c)


def bnb():
    import bitsandbytes.functional as F
    for base, kind, nested, N, K, block in (("nf4", "nf4", False, 12, 64, 64), ("nf4_nested", "nf4", True, 40, 512, 64),
                                            ("fp4", "fp4", False, 8, 64, 64), ("nf4_over", "nf4", True, 16, 96, 64),
                                            ("nf4_128", "nf4", False, 8, 256, 128)):
        q, state = F.quantize_4bit(torch.randn(N, K), quant_type=kind, compress_statistics=nested, blocksize=block)
        parts = {"weight." + k: v for k, v in state.as_dict(packed=True).items()}
        config = {"quant_method": "bitsandbytes", "load_in_4bit": True, "bnb_4bit_quant_type": kind,
                  "bnb_4bit_use_double_quant": nested}
        # Adding 0: the kernel has -0 for FP4's code 8, the table in the file has 0.
        case(base, config, F.dequantize_4bit(q, state) + 0.0, weight=q, **parts)
    q, s, _ = F.int8_vectorwise_quant(torch.randn(16, 48).half())
    config = {"quant_method": "bitsandbytes", "load_in_8bit": True, "llm_int8_threshold": 6.0}
    # The package multiplies by 1/127 in float32, which is one rounding away from SCB/127.
    case("llm_int8", config, q.float() * (s / 127).unsqueeze(1), weight=q, SCB=s,
         weight_format=torch.tensor(0, dtype=torch.uint8))
    near = F.int8_vectorwise_dequant(q, s)
    assert torch.allclose(near, q.float() * (s / 127).unsqueeze(1), rtol=3e-7, atol=0)


def blocks(q, s):
    """w[n,k] = q[n,k] * s[n / 128, k / 128]"""
    n, k = torch.arange(q.shape[0]) // 128, torch.arange(q.shape[1]) // 128
    return q.float() * s[n][:, k]


def fp8():
    e4m3 = torch.arange(256, dtype=torch.uint8)
    e4m3 = e4m3[(e4m3 & 127) != 127].view(torch.float8_e4m3fn)
    q = e4m3[torch.randint(0, 254, (130, 160))]
    s = scales(2, 2, dtype=torch.float32)
    config = {"quant_method": "fp8", "fmt": "e4m3", "weight_block_size": [128, 128]}
    case("fp8_block", config, blocks(q, s), weight=q, weight_scale_inv=s)
    q = e4m3[torch.arange(16 * 32) % 254].reshape(16, 32)
    one = torch.tensor(0.0123)
    case("fp8_tensor", {"quant_method": "fp8"}, q.float() * one, weight=q, weight_scale=one)
    rows = scales(16, 1, dtype=torch.bfloat16)
    ct = {"quant_method": "compressed-tensors", "format": "float-quantized"}
    case("fp8_rows", ct, q.float() * rows.float(), weight=q, weight_scale=rows)
    e5m2 = torch.arange(256, dtype=torch.uint8)
    e5m2 = e5m2[(e5m2 & 0x7c) != 0x7c].view(torch.float8_e5m2)
    q = e5m2[torch.arange(16 * 32) % len(e5m2)].reshape(16, 32)
    case("fp8_e5m2", {"quant_method": "fp8", "fmt": "e5m2"}, q.float() * rows.float(), weight=q, weight_scale=rows)


def mxfp4():
    from transformers.integrations.mxfp4 import convert_moe_packed_tensors
    N, K = 16, 96
    q = torch.randint(0, 256, (1, N, K // 32, 16), dtype=torch.uint8)
    e = torch.randint(100, 140, (1, N, K // 32), dtype=torch.uint8)
    want = convert_moe_packed_tensors(q, e, dtype=torch.float32)[0].t()  # experts are stored [in,out]
    assert want.shape == (N, K)
    case("mxfp4", {"quant_method": "mxfp4"}, want, weight_blocks=q[0], weight_scales=e[0])


for make in (awq, gptq, compressed, bnb, fp8, mxfp4):
    make()
save_file(tensors, os.path.join(HERE, "formats.safetensors"))
with open(os.path.join(HERE, "golden.json"), "w") as f:
    f.write("[\n" + ",\n".join(json.dumps(c) for c in cases) + "\n]\n")
