-- The answer is one of the given texts, word for word: "policy_args": {"options": ["yes", "no"]}.
--
-- `logits` runs before each token is drawn. lg records steps for this one token: here, that only tokens which
-- continue one of the options are allowed. The model chooses among them by itself.
turbo.policy {
    args = { "options" },

    request = function(req)
        local options = req.args.options
        if type(options) ~= "table" or #options < 1 or #options > 64 then
            req:reject("policy_args.options must be a list of 1 to 64 texts")
        end
        local paths = {}
        for i, text in ipairs(options) do
            if type(text) ~= "string" or text == "" then
                req:reject("policy_args.options must be texts that are not empty")
            end
            paths[i] = turbo.encode(text)
        end
        req.state.paths, req.state.said = paths, 0
    end,

    logits = function(req, lg)
        local next = {}
        for _, path in ipairs(req.state.paths) do
            next[#next + 1] = path[req.state.said + 1]
        end
        lg:allow(next)
    end,

    token = function(req, tok)
        local s, left, done = req.state, {}, false
        s.said = s.said + 1
        for _, path in ipairs(s.paths) do
            if path[s.said] == tok.id then
                left[#left + 1] = path
                done = done or #path == s.said
            end
        end
        s.paths = left
        if done then
            req:stop()
        end
    end,
}
