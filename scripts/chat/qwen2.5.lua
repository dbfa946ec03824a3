-- The chat format of Qwen2.5:
--
--   <|im_start|>system
--   You are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>
--   <|im_start|>user
--   Hi<|im_end|>
--   <|im_start|>assistant
--
-- The system text is the one above unless the first message is a system message. Results
-- of tools are user messages, several in a row one.

turbo.template {
    stop = { "<|im_end|>", "<|endoftext|>" },
    render = function(messages, out, opts)
        if not messages[1] or messages[1].role ~= "system" then
            out:special("<|im_start|>")
            out:text("system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.")
            out:special("<|im_end|>")
            out:text("\n")
        end
        for i, m in ipairs(messages) do
            local open = i == #messages and opts.continue_final_message
            if m.role == "tool" then
                if i == 1 or messages[i - 1].role ~= "tool" then
                    out:special("<|im_start|>")
                    out:text("user")
                end
                out:text("\n<tool_response>\n")
                out:user(m.content)
                if not open then
                    out:text("\n</tool_response>")
                end
                if not open and (i == #messages or messages[i + 1].role ~= "tool") then
                    out:special("<|im_end|>")
                    out:text("\n")
                end
            elseif m.role == "user" or m.role == "system" or m.role == "assistant" then
                out:special("<|im_start|>")
                out:text(m.role .. "\n")
                out:user(m.content)
                if not open then
                    out:special("<|im_end|>")
                    out:text("\n")
                end
            end
        end
        if opts.add_generation_prompt then
            out:special("<|im_start|>")
            out:text("assistant\n")
        end
    end,
}
