-- The chat format of LLaVA-1.5, as its chat_template has it (Vicuna v1):
--
--   <s>USER: [picture]
--   What is this? ASSISTANT: A cat. USER: ...
--
-- Pictures of a message stand before its text. A system message stands before everything, without a name;
-- the one the models were trained with is "A chat between a curious user and an artificial intelligence
-- assistant. The assistant gives helpful, detailed, and polite answers to the user's questions."

turbo.template {
    stop = { "</s>" },
    render = function(messages, out, opts)
        out:special("<s>")
        for i, message in ipairs(messages) do
            if message.role ~= "system" then
                out:text(string.upper(message.role) .. ": ")
            end
            for _ in ipairs(message.images) do
                out:image()
                out:text("\n")
            end
            out:user(message.content)
            if i < #messages or not opts.continue_final_message then
                out:text(" ")
            end
        end
        if opts.add_generation_prompt then
            out:text("ASSISTANT:")
        end
    end,
}
