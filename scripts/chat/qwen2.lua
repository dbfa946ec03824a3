-- The chat format of Qwen1.5 and Qwen2:
--
--   <|im_start|>system
--   You are a helpful assistant.<|im_end|>
--   <|im_start|>user
--   Hi<|im_end|>
--   <|im_start|>assistant
--
-- The system text is the one above unless the first message is a system message.

turbo.template {
    stop = { "<|im_end|>", "<|endoftext|>" },
    render = function(messages, out, opts)
        if not messages[1] or messages[1].role ~= "system" then
            out:special("<|im_start|>")
            out:text("system\nYou are a helpful assistant.")
            out:special("<|im_end|>")
            out:text("\n")
        end
        for i, m in ipairs(messages) do
            out:special("<|im_start|>")
            out:text(m.role .. "\n")
            out:user(m.content)
            if i < #messages or not opts.continue_final_message then
                out:special("<|im_end|>")
                out:text("\n")
            end
        end
        if opts.add_generation_prompt then
            out:special("<|im_start|>")
            out:text("assistant\n")
        end
    end,
}
