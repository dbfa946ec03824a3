-- The chat format of Gemma and Gemma 2:
--
--   <bos><start_of_turn>user
--   Hi<end_of_turn>
--   <start_of_turn>model
--
-- Roles alternate; there are no system messages. White space around a message goes.

turbo.template {
    stop = { "<end_of_turn>" },
    render = function(messages, out, opts)
        out:special("<bos>")
        if messages[1] and messages[1].role == "system" then
            error("System role not supported")
        end
        for i, m in ipairs(messages) do
            if (m.role == "user") ~= (i % 2 == 1) then
                error("Conversation roles must alternate user/assistant/user/assistant/...")
            end
            out:special("<start_of_turn>")
            out:text((m.role == "assistant" and "model" or m.role) .. "\n")
            out:user(turbo.trim(m.content))
            if i < #messages or not opts.continue_final_message then
                out:special("<end_of_turn>")
                out:text("\n")
            end
        end
        if opts.add_generation_prompt then
            out:special("<start_of_turn>")
            out:text("model\n")
        end
    end,
}
