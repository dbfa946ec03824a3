-- The chat format of Llama 3.2. Every conversation has a system message that begins with two dates:
--
--   <|begin_of_text|><|start_header_id|>system<|end_header_id|>
--
--   Cutting Knowledge Date: December 2023
--   Today Date: 28 Nov 2026
--
--   You are brief.<|eot_id|><|start_header_id|>user<|end_header_id|>
--
--   Hi<|eot_id|><|start_header_id|>assistant<|end_header_id|>
--
-- The second date is that of the day. A result of a tool is written as a JSON string.

local function open(out, role)
    out:special("<|start_header_id|>")
    out:text(role)
    out:special("<|end_header_id|>")
    out:text("\n\n")
end

turbo.template {
    stop = { "<|eot_id|>", "<|eom_id|>" },
    render = function(messages, out, opts)
        local system, first = "", 1
        if messages[1] and messages[1].role == "system" then
            system, first = turbo.trim(messages[1].content), 2
        end
        out:special("<|begin_of_text|>")
        open(out, "system")
        out:text("Cutting Knowledge Date: December 2023\nToday Date: " .. opts.today .. "\n\n")
        out:user(system)
        if first <= #messages or not opts.continue_final_message then
            out:special("<|eot_id|>")
        end
        for i = first, #messages do
            local m = messages[i]
            if m.role == "tool" or m.role == "ipython" then
                open(out, "ipython")
                out:user(turbo.json(m.content))
            else
                open(out, m.role)
                out:user(turbo.trim(m.content))
            end
            if i < #messages or not opts.continue_final_message then
                out:special("<|eot_id|>")
            end
        end
        if opts.add_generation_prompt then
            open(out, "assistant")
        end
    end,
}
