-- A budget for thinking aloud. Models that reason write their thoughts between <think> and </think>; this
-- policy closes them after a number of tokens, so that an answer always comes.
--
-- "policy_args": {"budget": 256, "close": "</think>"}; both may be left out.
--
-- How to read this file: `token` runs after each token of the answer. req.state is a table that this one
-- request owns. req:inject(text) puts the tokens of a text next into the answer, as if the model had said
-- them; it reads them too.
turbo.policy {
    args = { "budget", "close" },

    request = function(req)
        local budget, close = req.args.budget or 256, req.args.close or "</think>"
        if math.type(budget) ~= "integer" or budget < 1 then
            req:reject("policy_args.budget must be a whole number from 1 up")
        end
        if type(close) ~= "string" or close == "" then
            req:reject("policy_args.close must be a text")
        end
        req.state.left, req.state.close, req.state.text = budget, close, ""
    end,

    token = function(req, tok)
        local s = req.state
        if not s.left then
            return
        end
        -- The closing text may come in several tokens: the end of what was said is kept to find it.
        s.text = (s.text .. tok.text):sub(-2 * #s.close)
        s.left = s.left - 1
        if s.text:find(s.close) then
            s.left = nil -- it closed its thoughts by itself
        elseif s.left == 0 then
            s.left = nil
            req:inject(s.close .. "\n")
        end
    end,
}
