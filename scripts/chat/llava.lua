-- The chat format of LLaVA-1.5 in the layout of llava-hf:
--
--   <s>USER: Hi ASSISTANT: Hello! USER: And now? ASSISTANT:
--
-- Only <s> and </s> are special tokens. A system message has no name in front. <s> is the tokenizer's: the
-- published template leaves it to it.

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        out:special("<s>")
        for i, m in ipairs(messages) do
            if m.role ~= "system" then
                out:text(string.upper(m.role) .. ": ")
            end
            out:user(m.content)
            if i < #messages or not opts.continue_final_message then
                out:text(" ")
            end
        end
        if opts.add_generation_prompt then
            out:text("ASSISTANT:")
        end
    end,
}
