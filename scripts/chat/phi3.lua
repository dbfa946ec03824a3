-- The chat format of Phi-3:
--
--   <|system|>
--   You are brief.<|end|>
--   <|user|>
--   Hi<|end|>
--   <|assistant|>
--
-- A conversation that is not to be continued ends with <|endoftext|>.

local names = { system = "<|system|>", user = "<|user|>", assistant = "<|assistant|>" }

turbo.template {
    stop = { "<|end|>", "<|endoftext|>" },
    render = function(messages, out, opts)
        for i, m in ipairs(messages) do
            local name = names[m.role]
            if name then
                out:special(name)
                out:text("\n")
                out:user(m.content)
                if i < #messages or not opts.continue_final_message then
                    out:special("<|end|>")
                    out:text("\n")
                end
            end
        end
        if opts.add_generation_prompt then
            out:special("<|assistant|>")
            out:text("\n")
        elseif not opts.continue_final_message then
            out:special("<|endoftext|>")
        end
    end,
}
