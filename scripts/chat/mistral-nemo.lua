-- The chat format of Mistral Nemo Instruct (tokenizer v3, tekken):
--
--   <s>[INST]Hi[/INST]Hello!</s>[INST]You are brief.
--
--   And now?[/INST]
--
-- [INST] and [/INST] are special tokens. A system message stands first and is written in front of the
-- last message, when that is a user's. Roles alternate otherwise. Results of tools need a call id, which
-- messages here do not have.

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        local system, first = nil, 1
        if messages[1] and messages[1].role == "system" then
            system, first = messages[1].content, 2
        end
        local turn = 0
        for i = first, #messages do
            local role = messages[i].role
            if role ~= "tool" and role ~= "tool_results" then
                if (role == "user") ~= (turn % 2 == 0) then
                    error("After the optional system message, conversation roles must alternate "
                        .. "user/assistant/user/assistant/...")
                end
                turn = turn + 1
            end
        end
        out:special("<s>")
        for i = first, #messages do
            local m = messages[i]
            if m.role == "user" then
                out:special("[INST]")
                if i == #messages and system then
                    out:user(system)
                    out:text("\n\n")
                end
                out:user(m.content)
                if i < #messages or not opts.continue_final_message then
                    out:special("[/INST]")
                end
            elseif m.role == "assistant" then
                out:user(m.content)
                if i < #messages or not opts.continue_final_message then
                    out:special("</s>")
                end
            elseif m.role == "tool" or m.role == "tool_results" then
                error("Tool call IDs should be alphanumeric strings with length 9!")
            else
                error("Only user and assistant roles are supported, with the exception of an initial "
                    .. "optional system message!")
            end
        end
    end,
}
