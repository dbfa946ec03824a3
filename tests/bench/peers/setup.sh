#!/bin/sh
# The peers' virtual environment, outside the tree and outside the system: setup.sh CACHE_FOLDER. llama.cpp comes
# from the llama-cpp-python package and is compiled for this machine's own instructions. LLAMA_CPP_PYTHON names
# the version or a source archive; PEERS_TRANSFORMERS=0 leaves torch and transformers out.
set -eu
cache=$1
python=$cache/venv/bin/python
mkdir -p "$cache"
[ -x "$python" ] || python3 -m venv "$cache/venv"
"$python" -c 'import numpy, gguf' 2>/dev/null ||
    "$python" -m pip install -q numpy gguf
if ! "$python" -c 'import llama_cpp' 2>/dev/null; then
    echo "compiling llama.cpp for this machine; this takes 10 to 40 minutes" >&2
    CMAKE_ARGS="-DGGML_NATIVE=ON -DLLAVA_BUILD=OFF -DLLAMA_BUILD_TOOLS=OFF ${CMAKE_ARGS:-}" \
        "$python" -m pip install -q --no-binary llama-cpp-python \
        "${LLAMA_CPP_PYTHON:-llama-cpp-python==0.3.36}"
fi
if [ "${PEERS_TRANSFORMERS:-1}" = 1 ] && ! "$python" -c 'import torch, transformers' 2>/dev/null; then
    "$python" -m pip install -q 'torch<=2.14.1' transformers tokenizers sentencepiece ||
        echo "no transformers: the second peer is left out" >&2
fi
