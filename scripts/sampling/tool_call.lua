-- Lively in prose, exact in a tool call: between an opening and a closing mark the answer is greedy, outside
-- it is warm. A guard ends an answer that says the same line over and over.
--
-- "policy_args": {"open": "```", "close": "```", "warmth": 0.8}
--
-- req:switch(chain) puts another chain in force from the next token on.
local exact = turbo.chain():temperature(0)

turbo.policy {
    args = { "open", "close", "warmth" },

    request = function(req)
        local warmth = req.args.warmth or 0.8
        if type(warmth) ~= "number" or warmth <= 0 or warmth > 2 then
            req:reject("policy_args.warmth must be a number above 0, to 2")
        end
        local s = req.state
        s.open, s.close = req.args.open or "```", req.args.close or "```"
        if type(s.open) ~= "string" or type(s.close) ~= "string" or s.open == "" or s.close == "" then
            req:reject("policy_args.open and .close must be texts")
        end
        s.warm = turbo.chain():temperature(warmth):min_p(0.05)
        s.text, s.line, s.same = "", "", 0
        req:use(s.warm)
    end,

    token = function(req, tok)
        local s = req.state
        s.text = (s.text .. tok.text):sub(-64)
        if s.text:find(s.inside and s.close or s.open) then
            s.inside = not s.inside
            s.text = ""
            req:switch(s.inside and exact or s.warm)
        end
        -- The guard: four times the same line, and it is over.
        s.line = s.line .. tok.text
        local at = s.line:find("\n")
        while at do
            local line = s.line:sub(1, at - 1)
            s.same = line ~= "" and line == s.last and s.same + 1 or 0
            s.last, s.line = line, s.line:sub(at + 1)
            at = s.line:find("\n")
            if s.same == 3 then
                req:stop()
            end
        end
    end,
}
