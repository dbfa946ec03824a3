-- House style: lively but steady. Repetition is damped a little, and unlikely tokens are cut
-- relative to the best one (min_p), which keeps warm sampling on its feet.
--
-- Choose it with "policy": "house" in a request, or for everybody with default_policy =
-- "house"; in the conf file. "policy_args": {"warmth": 0.9} changes the temperature.
--
-- How to read this file: turbo.policy{...} registers the policy. Its `request` hook runs once
-- for each request, before the first token, with the request's parameters in hand:
-- req.temperature, req.top_p and so on hold what the caller asked for (or the defaults) and
-- may be changed. Everything that is set is checked against the same ranges as the fields of
-- the HTTP body. A chain is a list of the sampler's steps in the order in which the sampler
-- runs them; req:use(chain) sets all of its values at once.

-- Made once, when the script is loaded. Chains never change: each step gives a new one.
local steady = turbo.chain():penalize { rep = 1.05 }

turbo.policy {
    -- The names that "policy_args" may have. Any other is answered with an error.
    args = { "warmth" },

    request = function(req)
        -- Whoever asks for temperature 0 wants the exact greedy answer: leave it alone.
        if req.temperature == 0 then
            return
        end
        local warmth = req.args.warmth or 0.7
        if type(warmth) ~= "number" or warmth < 0 or warmth > 1.5 then
            req:reject("policy_args.warmth must be a number from 0 to 1.5")
        end
        req:use(steady:temperature(warmth):top_p(0.95):min_p(0.05))
    end,
}
