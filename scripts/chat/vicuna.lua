-- The conversation format "vicuna_v1" of Vicuna 1.1 and later and of LLaVA-1.5's authors:
--
--   <s>A chat between a curious user ... USER: Hi ASSISTANT: Hello!</s>USER: And now? ASSISTANT:
--
-- No published folder has it as a template; set chat_template to this file. Another system text takes the
-- place of the one below.

local default = "A chat between a curious user and an artificial intelligence assistant. "
    .. "The assistant gives helpful, detailed, and polite answers to the user's questions."

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        local system, first = default, 1
        if messages[1] and messages[1].role == "system" then
            system, first = messages[1].content, 2
        end
        out:special("<s>")
        out:user(system)
        out:text(" ")
        for i = first, #messages do
            local m = messages[i]
            local open = i == #messages and opts.continue_final_message
            if (m.role == "user") ~= ((i - first) % 2 == 0) then
                error("Conversation roles must alternate user/assistant/user/assistant/...")
            end
            if m.role == "user" then
                out:text("USER: ")
                out:user(m.content)
                if not open then
                    out:text(" ")
                end
            elseif m.role == "assistant" then
                out:text("ASSISTANT: ")
                out:user(m.content)
                if not open then
                    out:special("</s>")
                end
            else
                error("Only user and assistant roles are supported, after one system message")
            end
        end
        if opts.add_generation_prompt then
            out:text("ASSISTANT:")
        end
    end,
}
