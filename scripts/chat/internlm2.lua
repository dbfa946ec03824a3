-- The chat format of InternLM2 and InternLM2.5:
--
--   <s><|im_start|>user
--   Hi<|im_end|>
--   <|im_start|>assistant
--   Hello!<|im_end|>
--
-- Special tokens are written with out:special; nothing a user types can become one.

local roles = { system = true, user = true, assistant = true, environment = true }

turbo.template {
    stop = { "<|im_end|>" },
    render = function(messages, out, opts)
        out:special("<s>")
        for i, m in ipairs(messages) do
            local role = m.role
            if role == "tool" then role = "environment" end
            if role == "developer" then role = "system" end
            if not roles[role] then
                error("unknown role \"" .. role .. "\"; use system, user, assistant or tool", 0)
            end
            out:special("<|im_start|>")
            out:text(role)
            out:text("\n")
            out:user(m.content)
            local open = opts.continue_final_message and i == #messages
            if not open then
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
