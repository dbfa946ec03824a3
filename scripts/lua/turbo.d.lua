---@meta
-- What scripts of turbod can call, for editors that speak the Lua language server. Not run by
-- turbod. tests/unit/test_policy.c compares the names in this file with the bindings.

---@class turbo
turbo = {}

---A message of a conversation.
---@class turbo.Message
---@field role string
---@field content string
---@field name? string

---@class turbo.RenderOptions
---@field add_generation_prompt boolean end with the opening of an assistant message
---@field continue_final_message boolean leave the last message open

---Where a template writes. Each call appends.
---@class turbo.Out
local out = {}
---The name of a special token, such as "<|im_end|>": becomes that token.
---@param name string
function out:special(name) end
---The template's own words.
---@param text string
function out:text(text) end
---Words of a message. Never becomes a control token.
---@param text string
function out:user(text) end

---@alias turbo.Render fun(messages: turbo.Message[], out: turbo.Out, opts: turbo.RenderOptions)

---@class turbo.TemplateSpec
---@field render turbo.Render
---@field stop? string[] names of the special tokens that end an answer

---Registers the chat template of this script.
---@param spec turbo.TemplateSpec|turbo.Render
function turbo.template(spec) end

---Without white space at both ends. Templates only.
---@param text string
---@return string
function turbo.trim(text) end

---A text as a JSON string, quotes included.
---@param text string
---@return string
function turbo.json(text) end

---A list of the sampler's steps. Never changes: each method returns a new chain. Steps are
---given in the sampler's order: penalize, temperature, top_k, top_p, min_p.
---@class turbo.Chain
local chain = {}
---@param p { rep?: number, pres?: number, freq?: number }
---@return turbo.Chain
function chain:penalize(p) end
---@param value number 0 to 2; 0 is greedy
---@return turbo.Chain
function chain:temperature(value) end
---@param value integer 0 is off
---@return turbo.Chain
function chain:top_k(value) end
---@param value number above 0, to 1
---@return turbo.Chain
function chain:top_p(value) end
---@param value number 0 to 1
---@return turbo.Chain
function chain:min_p(value) end

---A chain without steps. Policies only.
---@return turbo.Chain
function turbo.chain() end

---@class turbo.Request
---@field temperature number
---@field top_p number
---@field min_p number
---@field top_k integer
---@field repetition_penalty number
---@field presence_penalty number
---@field frequency_penalty number
---@field min_tokens integer
---@field seed integer
---@field args table "policy_args" of the request
---@field asked table the parameters as the caller gave them
---@field policy string name of this policy
local req = {}
---Sets all values of a chain.
---@param chain turbo.Chain
---@return turbo.Request
function req:use(chain) end
---Ends the request with an error for its sender. Does not return.
---@param reason string
function req:reject(reason) end
---A number in [0,1), or a whole number in m..n; from the request's seed.
---@param m? integer
---@param n? integer
---@return number
function req:random(m, n) end

---@class turbo.PolicySpec
---@field chain? turbo.Chain applied to every request, before the hook
---@field init? fun(conf: { name: string }) runs in every fresh state, before the hook
---@field request? fun(req: turbo.Request)
---@field args? string[] names that "policy_args" may have; without it any
---@field on_error? "fail"|"skip" what a failing script does to the request; "fail" when not given

---Registers the policy of this script.
---@param spec turbo.PolicySpec|turbo.Chain
function turbo.policy(spec) end
