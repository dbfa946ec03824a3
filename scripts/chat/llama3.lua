-- The chat format of Llama 3:
--
--   <|begin_of_text|><|start_header_id|>user<|end_header_id|>
--
--   Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>
--
-- White space around a message goes. There is no default system text.

turbo.template {
    stop = { "<|eot_id|>" },
    render = function(messages, out, opts)
        for i, m in ipairs(messages) do
            if i == 1 then
                out:special("<|begin_of_text|>")
            end
            out:special("<|start_header_id|>")
            out:text(m.role)
            out:special("<|end_header_id|>")
            out:text("\n\n")
            out:user(turbo.trim(m.content))
            if i < #messages or not opts.continue_final_message then
                out:special("<|eot_id|>")
            end
        end
        if opts.add_generation_prompt then
            out:special("<|start_header_id|>")
            out:text("assistant")
            out:special("<|end_header_id|>")
            out:text("\n\n")
        end
    end,
}
