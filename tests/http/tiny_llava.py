"""Makes a small LLaVA folder: random weights, the demo model's tokenizer. Needs numpy."""
import atexit
import json
import os
import shutil
import struct
import tempfile

import numpy as np

import kit

IMAGE = 2799  # id of the picture token: an ordinary piece, which text may hold as well
ROWS = 16
CONFIG = {
    "architectures": ["LlavaForConditionalGeneration"], "model_type": "llava",
    "image_token_index": IMAGE, "projector_hidden_act": "gelu", "torch_dtype": "float32",
    "vision_feature_layer": -2, "vision_feature_select_strategy": "default",
    "text_config": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 2816,
        "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256,
        "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "torch_dtype": "float32"},
    "vision_config": {
        "model_type": "clip_vision_model", "hidden_size": 32, "intermediate_size": 48,
        "num_hidden_layers": 3, "num_attention_heads": 2, "image_size": 32, "patch_size": 8}}
PREPROCESSOR = {
    "crop_size": {"height": 32, "width": 32}, "size": {"shortest_edge": 32}, "resample": 3,
    "do_center_crop": True, "do_convert_rgb": True, "do_normalize": True, "do_rescale": True,
    "do_resize": True, "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711], "rescale_factor": 0.00392156862745098,
    "image_processor_type": "CLIPImageProcessor"}


def shapes():
    t, v = CONFIG["text_config"], CONFIG["vision_config"]
    e, i, w = t["hidden_size"], t["intermediate_size"], v["hidden_size"]
    out = {"language_model.model.embed_tokens.weight": (t["vocab_size"], e),
           "language_model.model.norm.weight": (e,),
           "language_model.lm_head.weight": (t["vocab_size"], e),
           "multi_modal_projector.linear_1.weight": (e, w), "multi_modal_projector.linear_1.bias": (e,),
           "multi_modal_projector.linear_2.weight": (e, e), "multi_modal_projector.linear_2.bias": (e,)}
    for l in range(t["num_hidden_layers"]):
        at = "language_model.model.layers.%d." % l
        for name, shape in (("self_attn.q_proj", (e, e)), ("self_attn.k_proj", (e // 2, e)),
                            ("self_attn.v_proj", (e // 2, e)), ("self_attn.o_proj", (e, e)),
                            ("mlp.gate_proj", (i, e)), ("mlp.up_proj", (i, e)),
                            ("mlp.down_proj", (e, i)), ("input_layernorm", (e,)),
                            ("post_attention_layernorm", (e,))):
            out[at + name + ".weight"] = shape
    tower = "vision_tower.vision_model."
    out[tower + "embeddings.class_embedding"] = (w,)
    out[tower + "embeddings.patch_embedding.weight"] = (w, 3, v["patch_size"], v["patch_size"])
    out[tower + "embeddings.position_embedding.weight"] = (ROWS + 1, w)
    for name in ("pre_layrnorm", "post_layernorm"):
        out[tower + name + ".weight"] = out[tower + name + ".bias"] = (w,)
    for l in range(v["num_hidden_layers"]):
        at = tower + "encoder.layers.%d." % l
        for name, shape in (("self_attn.q_proj", (w, w)), ("self_attn.k_proj", (w, w)),
                            ("self_attn.v_proj", (w, w)), ("self_attn.out_proj", (w, w)),
                            ("mlp.fc1", (v["intermediate_size"], w)),
                            ("mlp.fc2", (w, v["intermediate_size"])),
                            ("layer_norm1", (w,)), ("layer_norm2", (w,))):
            out[at + name + ".weight"], out[at + name + ".bias"] = shape, shape[:1]
    return out


def tensors():
    rng = np.random.RandomState(11)
    for name, shape in sorted(shapes().items()):
        v = rng.standard_normal(shape)
        if "norm" in name:
            v = 0.1 * v + (1 if name.endswith("weight") else 0)
        elif len(shape) > 1 and "embed_tokens" not in name:
            v *= 1.6 / np.sqrt(np.prod(shape[1:]))
        yield name, v.astype("<f4")


def write(folder, config=CONFIG):
    header, data = {}, []
    at = 0
    for name, v in tensors():
        header[name] = {"dtype": "F32", "shape": list(v.shape), "data_offsets": [at, at + v.nbytes]}
        at += v.nbytes
        data.append(v.tobytes())
    text = json.dumps(header).encode()
    with open(os.path.join(folder, "model.safetensors"), "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text + b"".join(data))
    for name, value in (("config.json", config), ("preprocessor_config.json", PREPROCESSOR)):
        with open(os.path.join(folder, name), "w") as f:
            json.dump(value, f)
    for name in ("tokenizer.model", "special_tokens_map.json"):
        shutil.copy(os.path.join(kit.MODEL, name), folder)
    with open(os.path.join(kit.MODEL, "tokenizer_config.json")) as f:
        tokenizer = json.load(f)
    del tokenizer["chat_template"]  # without one of its own it is the plugin's, which places pictures
    with open(os.path.join(folder, "tokenizer_config.json"), "w") as f:
        json.dump(tokenizer, f)


def make():
    folder = tempfile.mkdtemp(prefix="turbod-llava-")
    atexit.register(shutil.rmtree, folder, True)
    write(folder)
    return folder
