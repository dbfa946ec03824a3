-- The chat format of InternLM2 and InternLM2.5:
--
--   <s><|im_start|>user
--   Hi<|im_end|>
--   <|im_start|>assistant
--   Hello!<|im_end|>
--
-- Special tokens are written with out:special(); nothing a user types can become one. There is no
-- default system text: whoever wants one sends a system message.

local names = {
    system = "system", developer = "system",
    user = "user", assistant = "assistant",
    -- Results of tools: the model knows them as messages of its environment.
    tool = "environment", environment = "environment", ["function"] = "environment",
}

-- A system or environment message may name the tool that it is about. The model was trained
-- with these two, as special tokens behind "name=".
local tools = { plugin = "<|plugin|>", interpreter = "<|interpreter|>" }

local function open(out, message)
    local name = names[message.role]
    if not name then
        error("unknown role \"" .. message.role .. "\"; use system, user, assistant or tool")
    end
    out:special("<|im_start|>")
    local tool = (name == "system" or name == "environment") and tools[message.name]
    if tool then
        out:text(name .. " name=")
        out:special(tool)
        out:text("\n")
    else
        out:text(name .. "\n")
    end
end

turbo.template {
    stop = { "<|im_end|>" },
    render = function(messages, out, opts)
        out:special("<s>")
        for i, message in ipairs(messages) do
            open(out, message)
            out:user(message.content)
            if i < #messages or not opts.continue_final_message then
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
