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

--- The next picture of the conversation; each message says in `images` how many it has.
function out:image() end

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

---A set of token ids. Never changes. #set is its size, set[i] its i-th id.
---@class turbo.TokenSet
---@alias turbo.Tokens turbo.TokenSet|integer|string|(integer|string)[] ids, or names of special tokens

---@class turbo.TokensTable
---@overload fun(list: (integer|string)[]): turbo.TokenSet
turbo.tokens = {}
---All tokens whose text contains this one; "^" before it and "$" behind it tie it to an end.
---@param text string
---@return turbo.TokenSet
function turbo.tokens.matching(text) end
---The tokens that a text is made of, without order.
---@param text string
---@return turbo.TokenSet
function turbo.tokens.of(text) end

---The ids of a text, in order.
---@param text string
---@return integer[]
function turbo.encode(text) end

---A list of sampling steps. Never changes: each method returns a new chain. Steps run in the order in
---which they are written. doc/sampling.md has what each does.
---@class turbo.Chain
local chain = {}
---@param p { rep?: number, pres?: number, freq?: number, last_n?: integer }
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
---@param mass number above 0, to 1
---@return turbo.Chain
function chain:typical(mass) end
---@param n number standard deviations below the best
---@return turbo.Chain
function chain:top_n_sigma(n) end
---@param p { threshold?: number, probability?: number }
---@return turbo.Chain
function chain:xtc(p) end
---@param p { multiplier?: number, base?: number, allowed_length?: integer, last_n?: integer, breakers?: turbo.Tokens }
---@return turbo.Chain
function chain:dry(p) end
---@param p { tau?: number, eta?: number }
---@return turbo.Chain
function chain:mirostat(p) end
---@param factor number 0 to 1e6
---@return turbo.Chain
function chain:scale(factor) end
---@param tokens turbo.Tokens
---@param value number added to their logits
---@return turbo.Chain
function chain:add(tokens, value) end
---@param tokens turbo.Tokens
---@param value number what their logits become
---@return turbo.Chain
function chain:set(tokens, value) end
---@param tokens turbo.Tokens only these stay
---@return turbo.Chain
function chain:allow(tokens) end
---@param tokens turbo.Tokens
---@return turbo.Chain
function chain:ban(tokens) end
---@param token turbo.Tokens this one, whatever was banned before
---@return turbo.Chain
function chain:force(token) end
---@param n integer no run of n tokens comes a second time
---@return turbo.Chain
function chain:no_repeat_ngram(n) end

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
---@field state table the script's own, for this request
---@field policy string name of this policy
---@field n_output integer tokens of the answer so far
local req = {}
---Sets all values of a chain. In `request`.
---@param chain turbo.Chain
---@return turbo.Request
function req:use(chain) end
---Ends the request with an error for its sender. Does not return. In `request`.
---@param reason string
function req:reject(reason) end
---A number in [0,1), or a whole number in m..n; from the request's seed.
---@param m? integer
---@param n? integer
---@return number
function req:random(m, n) end
---Ends the answer after this token. In `token`.
---@return turbo.Request
function req:stop() end
---The tokens of a text come next in the answer. In `logits` and `token`.
---@param text string names of special tokens become those tokens
---@return turbo.Request
function req:inject(text) end
---Another chain is in force from the next token on. In `logits` and `token`.
---@param chain turbo.Chain
---@return turbo.Request
function req:switch(chain) end

---The logits of one token, during the hook `logits`. It has each method of a chain: a step that is recorded
---runs for this token, behind the chain in force.
---@class turbo.Logits : turbo.Chain
local lg = {}
---The n best of the model's own distribution, best first; n to 256.
---@param n integer
---@return { id: integer, logprob: number }[]
function lg:topk(n) end
---Of the model's own distribution, in nats.
---@return number
function lg:entropy() end
---Of one token in the model's own distribution.
---@param token turbo.Tokens
---@return number
function lg:prob(token) end

---@class turbo.Token
---@field id integer
---@field text string what it adds to the answer: may be empty, or end inside a character
---@field index integer 1 for the first token of the answer
---@field logprob? number when the request asked for logprobs

---@class turbo.End
---@field reason "stop"|"length"|"abort"|"error"
---@field n_output integer

---@class turbo.PolicySpec
---@field chain? turbo.Chain applied to every request, before the hooks
---@field init? fun(conf: { name: string }) runs in every fresh state, before the other hooks
---@field request? fun(req: turbo.Request) before the request is queued
---@field logits? fun(req: turbo.Request, lg: turbo.Logits) before each token is drawn
---@field token? fun(req: turbo.Request, tok: turbo.Token) after each token
---@field finish? fun(req: turbo.Request, e: turbo.End) when the answer is over
---@field args? string[] names that "policy_args" may have; without it any
---@field on_error? "fail"|"skip" what a failing script does to the request; "fail" when not given

---Registers the policy of this script.
---@param spec turbo.PolicySpec|turbo.Chain
function turbo.policy(spec) end
