-- A variant of Qwen2's chat format, published with the Qwen2 tokenizer files of some fine-tuned
-- models: each user message opens the answer by itself, so nothing is added for generation, and
-- roles other than system (first), user and assistant are left out.

turbo.template {
    stop = { "<|im_end|>", "<|endoftext|>" },
    render = function(messages, out, opts)
        local system = "You are a helpful assistant."
        if messages[1] and messages[1].role == "system" then
            system = messages[1].content
        end
        out:special("<|im_start|>")
        out:text("system\n")
        out:user(system)
        out:special("<|im_end|>")
        out:text("\n")
        for i, m in ipairs(messages) do
            if m.role == "user" then
                out:special("<|im_start|>")
                out:text("user\n")
                out:user(m.content)
                out:special("<|im_end|>")
                out:text("\n")
                out:special("<|im_start|>")
                out:text("assistant\n")
            elseif m.role == "assistant" then
                out:user(m.content)
                if i < #messages or not opts.continue_final_message then
                    out:special("<|im_end|>")
                    out:text("\n")
                end
            end
        end
    end,
}
