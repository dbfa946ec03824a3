"""Facts the demo model is taught, in the project's own words: topic -> names, answers.

Every entry is (names a user may use, answers). Answers are whole sentences and true for turbod.
"""

EN = [
    (["turbod", "the turbod runtime", "this server", "the turbod daemon"], [
        "turbod is a plugin-based runtime for large language models, written in C. A small core loads plugins for models, tokenizers and samplers.",
        "turbod is a server that runs language models. It is written in C, loads models as plugins, and speaks the OpenAI API.",
        "turbod is a language-model runtime. It needs no Python at run time, and every model architecture is a plugin."]),
    (["a plugin", "plugins", "a model plugin", "the plugin system"], [
        "A plugin is a shared object that turbod loads at start. It can bring a model architecture, a tokenizer or a sampler, and it needs only the header turbo/plugin.h.",
        "In turbod a plugin is a .so file. It adds a model, a tokenizer or a sampler without any change to the core."]),
    (["the KV cache", "a KV cache", "kv cache", "the key-value cache"], [
        "The KV cache keeps the keys and values of earlier tokens, so that each new token is computed without repeating the whole text.",
        "The KV cache stores the keys and values of every token the model has seen. It makes decoding fast and costs memory for each token."]),
    (["quantisation", "quantization", "weight quantization", "quantising a model"], [
        "Quantisation stores weights with fewer bits. The model becomes smaller and decoding becomes faster, at a small loss of quality.",
        "Quantisation replaces large numbers by small ones with a scale, for example four bits instead of sixteen. It saves memory and bandwidth."]),
    (["W4A16", "w4a16", "4-bit weights"], [
        "W4A16 means that weights are stored in four bits and activations stay in sixteen bits. It makes a model about four times smaller.",
        "W4A16 is a kind of quantisation: weights have four bits, activations have sixteen."]),
    (["InternLM2", "internlm2", "the InternLM2 model", "InternLM"], [
        "InternLM2 is a family of language models from the Shanghai AI Laboratory. It comes in sizes of 1.8, 7 and 20 billion parameters.",
        "InternLM2 is a decoder-only language model with grouped-query attention. turbod runs it with the internlm2 plugin."]),
    (["temperature", "the temperature", "sampling temperature"], [
        "Temperature controls how random an answer is. At zero the model always takes the most likely token; higher values make it more varied.",
        "Temperature divides the logits before sampling. Low values are careful, high values are creative, and zero means greedy decoding."]),
    (["top_p", "top-p", "nucleus sampling"], [
        "With top_p the model samples only from the smallest set of tokens whose probabilities add up to p.",
        "Nucleus sampling, or top_p, keeps the most likely tokens until their sum reaches p and drops the rest."]),
    (["top_k", "top-k", "top k sampling"], [
        "With top_k the model samples only from the k most likely tokens.",
        "top_k keeps the k best tokens and drops all others before sampling."]),
    (["min_p", "min-p"], [
        "min_p drops every token whose probability is less than a share of the best one.",
        "With min_p a token stays only if it is likely enough compared with the best token."]),
    (["TTFT", "ttft", "time to first token"], [
        "TTFT is the time to the first token: how long a user waits until the answer begins.",
        "TTFT means time to first token. It covers the wait in the queue and the prefill of the prompt."]),
    (["prefill", "the prefill phase", "prompt processing"], [
        "Prefill is the first phase of a request. The model reads the whole prompt at once and fills the KV cache.",
        "In prefill all tokens of the prompt are computed together. It is limited by compute, while decode is limited by memory."]),
    (["decode", "decoding", "the decode phase"], [
        "Decode is the second phase of a request. The model produces one token at a time and reads all weights for each of them.",
        "During decode the model writes its answer token by token. Its speed depends mostly on memory bandwidth."]),
    (["a token", "tokens", "tokens in a language model"], [
        "A token is a piece of text, such as a word or a part of a word. Models read and write tokens, not letters.",
        "Tokens are the units a language model works with. A tokenizer turns text into tokens and tokens into text."]),
    (["a tokenizer", "the tokenizer", "tokenisation", "tokenization"], [
        "A tokenizer cuts text into tokens and gives each of them a number. turbod reads SentencePiece models with the plugin tok-spm.",
        "The tokenizer turns your text into numbers for the model and turns the answer back into text."]),
    (["continuous batching", "batching", "in-flight batching"], [
        "Continuous batching lets requests join and leave the running batch at every step, so nobody waits for a slow neighbour.",
        "With continuous batching the server runs many requests together and starts a new one as soon as there is room."]),
    (["a Lua policy", "Lua policies", "sampling policies", "Lua scripts in turbod"], [
        "A Lua policy is a small script that sets how tokens are sampled. You choose it with the field policy in a request.",
        "In turbod, Lua scripts describe chat templates and sampling policies. Lua steers, and C does the computing."]),
    (["a chat template", "chat templates", "the chat template"], [
        "A chat template turns messages into the prompt format a model was trained with. In turbod it is a short Lua script.",
        "The chat template writes the special tokens around each message. Text of a user never becomes a special token."]),
    (["the OpenAI API", "an OpenAI-compatible API", "the HTTP API"], [
        "turbod speaks the OpenAI API, so you can use the openai client with base_url http://127.0.0.1:23333/v1.",
        "The server offers /v1/chat/completions and /v1/completions, both with streaming. Any OpenAI client can use it."]),
    (["attention", "the attention mechanism", "self-attention"], [
        "Attention lets each token look at all earlier tokens and take what it needs from them.",
        "In attention a query is compared with the keys of earlier tokens, and their values are mixed by the result."]),
    (["grouped-query attention", "GQA", "gqa"], [
        "Grouped-query attention lets several query heads share one key and value head. It makes the KV cache smaller.",
        "GQA means that groups of query heads use the same keys and values, which saves memory."]),
    (["RoPE", "rotary embeddings", "rotary position embedding"], [
        "RoPE turns pairs of numbers by an angle that depends on the position, so that attention sees how far apart two tokens are.",
        "Rotary embeddings encode positions by rotating queries and keys."]),
    (["LMDeploy", "lmdeploy"], [
        "LMDeploy is a toolkit for serving language models. turbod does the same job in C and without Python.",
        "LMDeploy serves language models from Python. turbod offers the same workflow as a single C program."]),
    (["safetensors", "the safetensors format"], [
        "safetensors is a simple file format for model weights. It holds numbers only, so loading it cannot run code.",
        "turbod reads weights from safetensors files and checks every offset before it uses them."]),
    (["bf16", "bfloat16"], [
        "bf16 is a 16-bit number format with the range of a 32-bit float and fewer digits. Most models are stored in it.",
        "bfloat16 keeps eight bits for the exponent, so it covers the same range as fp32 in half the space."]),
    (["a language model", "an LLM", "large language models"], [
        "A language model predicts the next token of a text. By repeating that step it can answer questions and write stories.",
        "A large language model is a neural network that has learned from much text to continue it."]),
    (["streaming", "a streamed answer", "server-sent events"], [
        "With streaming the server sends each piece of the answer as soon as it is ready, so you can read along.",
        "A streamed answer arrives in small events instead of all at once. Set stream to true in your request."]),
    (["a GPU", "GPUs"], [
        "A GPU is a processor with thousands of small cores and fast memory. It is well suited to language models.",
        "A GPU computes many numbers at once, which is why large models usually run on one."]),
    (["perplexity", "ppl"], [
        "Perplexity tells how surprised a model is by a text. Lower is better.",
        "Perplexity measures how well a model predicts a text; turbo eval ppl computes it."]),
    (["paged attention", "KV blocks", "a block table"], [
        "The KV cache is cut into blocks of equal size, and a block table tells which blocks belong to a sequence.",
        "With fixed blocks no memory is wasted on long gaps, and a finished request gives its blocks back at once."]),
]

HOWTO = [
    (["How do I start the server?", "how to start turbod", "How can I run the daemon?", "What command starts turbod?", "start the server"],
     ["Run turbod --conf conf/internlm2.conf. The server then listens on port 23333.", "Start it with turbod --conf conf/internlm2.conf and wait until it says ready."]),
    (["Which port does turbod use?", "what is the default port", "On which port does the server listen?"],
     ["The default port is 23333.", "turbod listens on port 23333 unless you choose another one with --port."]),
    (["How do I chat in the terminal?", "how can I chat with a model on the command line", "How do I talk to a model in my shell?"],
     ["Use turbo chat with the folder of your model, for example turbo chat conf/models/internlm2-demo.", "Run turbo chat MODEL. It loads the model and keeps the dialogue until you quit."]),
    (["How do I limit the KV cache?", "how can I bound the memory of the KV cache", "What does cache_max_entry_count do?"],
     ["Set cache_max_entry_count. A fraction such as 0.5 means half of the free memory, and a size such as 8GiB is taken as it is.", "Use cache_max_entry_count in the conf file to bound the memory of the KV cache."]),
    (["How do I use another model?", "how to run internlm2-chat-1_8b", "How can I load a bigger model?"],
     ["Set model in the conf file to the folder of that model and start turbod again.", "Point model at a folder with config.json, safetensors and tokenizer.model."]),
    (["How do I stop the server?", "how to shut down turbod", "How can I end the daemon?"],
     ["Send it SIGTERM or press Ctrl-C. It finishes the running answers and then exits.", "Press Ctrl-C once. Running requests are finished first; a second Ctrl-C stops at once."]),
    (["How do I list the plugins?", "which plugins are loaded", "How can I see all plugins?"],
     ["Run turbo plugin list.", "The command turbo plugin list shows every plugin and why one was refused."]),
    (["How do I write a plugin?", "how can I add a new architecture", "How do I make my own plugin?"],
     ["Run turbo plugin new NAME. It writes a small project that you can build and change.", "Start with turbo plugin new, then read doc/plugin-howto.md."]),
    (["How do I count tokens?", "how can I see the tokens of a text", "How do I tokenize text?"],
     ["Use turbo tokenize MODEL TEXT. It prints the ids of the tokens.", "Run turbo tokenize with the model folder and your text."]),
    (["Is turbod written in Python?", "does turbod need Python", "Do I need Python to run turbod?"],
     ["No. turbod is written in C and needs no Python at run time.", "No Python is needed. The server is a C program."]),
    (["Which language is turbod written in?", "what is turbod made of", "In what language is turbod written?"],
     ["turbod is written in C, and its scripts are written in Lua.", "It is written in C. Lua scripts configure it."]),
    (["How do I write a sampling policy?", "how can I make a Lua policy", "How do I add a policy?"],
     ["Write a Lua file that calls turbo.policy and put it into the policies folder. Then choose it with the field policy.", "Create a small Lua script with turbo.policy. scripts/sampling/house.lua is a good example."]),
    (["What can turbod do?", "what are the features of turbod", "What does turbod offer?"],
     ["turbod loads models as plugins, serves the OpenAI API, streams answers, batches requests and runs Lua policies.", "It serves language models over HTTP, chats in the terminal, and can be extended with plugins and Lua scripts."]),
]

ZH = [
    (["turbod", "turbod 这个程序", "这个服务器"], ["turbod 是一个用 C 语言写的大模型推理运行时，模型、分词器和采样器都是插件。", "turbod 是运行语言模型的服务器，兼容 OpenAI 接口，运行时不需要 Python。"]),
    (["KV 缓存", "KV cache", "键值缓存"], ["KV 缓存保存已经算过的键和值，这样生成新词时不用重算整段文字。", "KV 缓存让解码更快，但是每个词元都要占用内存。"]),
    (["量化", "模型量化"], ["量化就是用更少的位数保存权重，模型更小，速度更快。", "量化把权重变成低位数，可以节省内存和带宽。"]),
    (["W4A16"], ["W4A16 表示权重用四位，激活用十六位。"]),
    (["InternLM2", "书生浦语"], ["InternLM2 是上海人工智能实验室的大语言模型，有 1.8B、7B 和 20B 三种大小。"]),
    (["温度", "temperature"], ["温度控制回答的随机程度，温度为零时总是选最可能的词。"]),
    (["插件", "plugin"], ["插件是一个 .so 文件，可以给 turbod 增加模型、分词器或采样器。"]),
    (["词元", "token"], ["词元是文字的小片段，模型按词元来读和写。"]),
    (["预填充", "prefill"], ["预填充是第一阶段，模型一次读完整个提示并写入 KV 缓存。"]),
    (["解码", "decode"], ["解码是第二阶段，模型一个词元一个词元地写出回答。"]),
    (["连续批处理"], ["连续批处理让请求在每一步都可以加入或离开，这样没有人需要等别人。"]),
    (["首词延迟", "TTFT"], ["TTFT 是首个词元出现之前的等待时间。"]),
]

ZH_HOWTO = [
    (["怎么启动服务器？", "如何启动 turbod？", "启动命令是什么？"], ["运行 turbod --conf conf/internlm2.conf 就可以了。"]),
    (["默认端口是多少？", "turbod 用哪个端口？"], ["默认端口是 23333。"]),
    (["怎么在终端里聊天？", "如何用命令行聊天？"], ["使用 turbo chat 加上模型文件夹。"]),
    (["需要 Python 吗？", "turbod 要用 Python 吗？"], ["不需要，turbod 是 C 语言程序。"]),
    (["怎么限制 KV 缓存？", "如何控制缓存大小？"], ["在配置文件里设置 cache_max_entry_count。"]),
]
