"""InternLM2 in plain torch, as small as it can be read: pre-norm, GQA, half-style RoPE, SwiGLU."""
import torch
import torch.nn.functional as F
from torch import nn


class Config:
    hidden, layers, heads, kv_heads, inner = 192, 8, 6, 2, 512
    theta, eps, max_position = 10000.0, 1e-5, 1024

    @property
    def head_dim(self):
        return self.hidden // self.heads


class RMSNorm(nn.Module):
    def __init__(self, n, eps):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(n)), eps

    def forward(self, x):
        x32 = x.float()
        return self.weight * (x32 * torch.rsqrt(x32.pow(2).mean(-1, keepdim=True) + self.eps)).to(x.dtype)


def rotate(x, cos, sin):
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        d = c.head_dim
        self.wq = nn.Linear(c.hidden, c.heads * d, bias=False)
        self.wk = nn.Linear(c.hidden, c.kv_heads * d, bias=False)
        self.wv = nn.Linear(c.hidden, c.kv_heads * d, bias=False)
        self.wo = nn.Linear(c.heads * d, c.hidden, bias=False)
        self.w1 = nn.Linear(c.hidden, c.inner, bias=False)
        self.w3 = nn.Linear(c.hidden, c.inner, bias=False)
        self.w2 = nn.Linear(c.inner, c.hidden, bias=False)
        self.attention_norm, self.ffn_norm = RMSNorm(c.hidden, c.eps), RMSNorm(c.hidden, c.eps)

    def forward(self, h, cos, sin, mask):
        b, t, _ = h.shape
        c, x = self.c, self.attention_norm(h)
        q = self.wq(x).view(b, t, c.heads, -1).transpose(1, 2)
        k = self.wk(x).view(b, t, c.kv_heads, -1).transpose(1, 2)
        v = self.wv(x).view(b, t, c.kv_heads, -1).transpose(1, 2)
        q, k = rotate(q, cos, sin), rotate(k, cos, sin)
        g = c.heads // c.kv_heads
        k, v = k.repeat_interleave(g, 1), v.repeat_interleave(g, 1)
        o = F.scaled_dot_product_attention(q, k.to(q.dtype), v, attn_mask=mask)
        h = h + self.wo(o.transpose(1, 2).reshape(b, t, -1))
        x = self.ffn_norm(h)
        return h + self.w2(F.silu(self.w1(x)) * self.w3(x))


class Model(nn.Module):
    def __init__(self, c, vocab):
        super().__init__()
        self.c = c
        self.embed = nn.Embedding(vocab, c.hidden)
        self.layers = nn.ModuleList(Layer(c) for _ in range(c.layers))
        self.norm = RMSNorm(c.hidden, c.eps)
        for p in self.parameters():
            if p.dim() > 1:
                nn.init.normal_(p, std=0.02)
        for layer in self.layers:  # residual branches start small (GPT-2's rule)
            for w in (layer.wo, layer.w2):
                nn.init.normal_(w.weight, std=0.02 / (2 * c.layers) ** 0.5)

    def forward(self, ids, positions, mask):
        inv = self.c.theta ** (-torch.arange(0, self.c.head_dim, 2, device=ids.device).float() / self.c.head_dim)
        angle = positions[:, None, :, None].float() * inv
        cos, sin = angle.cos(), angle.sin()
        h = self.embed(ids)
        for layer in self.layers:
            h = layer(h, cos.to(h.dtype), sin.to(h.dtype), mask)
        return F.linear(self.norm(h), self.embed.weight)


def documents(ids):
    """Positions and attention mask of packed windows: each <s> (id 1) begins a new document."""
    start = ids == 1
    doc = start.cumsum(1)
    t = torch.arange(ids.shape[1], device=ids.device)
    first = torch.where(start, t, torch.zeros_like(ids)).cummax(1).values
    causal = t[:, None] >= t[None, :]
    mask = (doc[:, :, None] == doc[:, None, :]) & causal
    return t - first, mask[:, None]
