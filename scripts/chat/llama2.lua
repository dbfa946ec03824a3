-- The chat format of Llama 2:
--
--   <s>[INST] <<SYS>>
--   You are brief.
--   <</SYS>>
--
--   Hi [/INST] Hello! </s><s>[INST] And now? [/INST]
--
-- [INST] and <<SYS>> are ordinary text for this tokenizer. Roles alternate, beginning with the user; a
-- system message stands first.

local trim = turbo.trim

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        local system
        local first = 1
        if messages[1] and messages[1].role == "system" then
            system, first = messages[1].content, 2
        end
        for i = first, #messages do
            local m = messages[i]
            if (m.role == "user") ~= ((i - first) % 2 == 0) then
                error("Conversation roles must alternate user/assistant/user/assistant/...")
            end
            local content = m.content
            if i == first and system then
                content = "<<SYS>>\n" .. system .. "\n<</SYS>>\n\n" .. content
            end
            if m.role == "user" then
                out:special("<s>")
                out:text("[INST] ")
                out:user(trim(content))
                out:text(" [/INST]")
            elseif m.role == "assistant" then
                out:text(" ")
                out:user(trim(content))
                if i < #messages or not opts.continue_final_message then
                    out:text(" ")
                    out:special("</s>")
                end
            end
        end
    end,
}
