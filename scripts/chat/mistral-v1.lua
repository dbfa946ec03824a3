-- The chat format of Mistral 7B Instruct 0.1 and 0.2 (tokenizer v1):
--
--   <s>[INST] Hi [/INST]Hello!</s>[INST] And now? [/INST]
--
-- [INST] is ordinary text for this tokenizer. Roles alternate; there are no system messages.

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        out:special("<s>")
        for i, m in ipairs(messages) do
            if (m.role == "user") ~= (i % 2 == 1) then
                error("Conversation roles must alternate user/assistant/user/assistant/...")
            end
            if m.role == "user" then
                out:text("[INST] ")
                out:user(m.content)
                out:text(" [/INST]")
            elseif m.role == "assistant" then
                out:user(m.content)
                if i < #messages or not opts.continue_final_message then
                    out:special("</s>")
                end
            else
                error("Only user and assistant roles are supported!")
            end
        end
    end,
}
