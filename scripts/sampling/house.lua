-- House style: lively but steady. Repetition is damped, unlikely tokens are cut relative to the best
-- one (min_p), and whoever asks for temperature 0 gets exact greedy decoding.
--
-- Use it with "policy": "house" in a request. "policy_args": {"temperature": 0.9} changes the heat.

turbo.policy {
    request = function(req)
        if req:get("temperature") == 0 then
            return
        end
        local heat = req.args.temperature or 0.7
        req:use(turbo.chain()
            :penalize { rep = 1.05 }
            :temperature(heat)
            :top_p(0.95)
            :min_p(0.05))
    end,
}
