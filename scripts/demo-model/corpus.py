#!/usr/bin/env python3
"""Generates the conversations the demo model is trained on: JSON lines of message lists.

    corpus.py OUT.jsonl [--count N] [--seed S]

All text is the project's own. Paraphrases, typing habits and the order of turns are drawn at random,
so that the model meets the same fact under many questions.
"""
import argparse
import json
import random

import facts
import smalltalk as st

ASK = ["What is {}?", "what is {}", "What's {}?", "whats {}", "Can you explain {}?", "Explain {}.", "explain {}",
       "Tell me about {}.", "tell me about {}", "Please explain {} to me.", "I do not know what {} is.",
       "What does {} mean?", "what does {} mean", "{}?", "define {}", "Could you tell me what {} is?",
       "Give me a short explanation of {}.", "How would you describe {}?", "I want to learn about {}", "what do you know about {}?",
       "Hi, what is {}?", "What exactly is {}?", "do you know what {} is?", "describe {}"]
WHY = ["Why do we need {}?", "How does {} work?", "how does {} work", "What is {} good for?", "why is {} useful"]
ZH_ASK = ["什么是{}？", "{}是什么？", "请解释一下{}。", "解释{}", "告诉我什么是{}", "{}是什么意思？", "介绍一下{}"]
REFUSE = ["I am sorry, I do not know that. I am only a tiny demo model.", "I do not know. I am a very small model and know only a few things about turbod.",
          "Sorry, that is beyond me. A larger model could answer it."]
OUT_ASK = ["What is {}?", "Tell me about {}", "tell me {}", "I have a question about {}.", "Do you know {}?", "Can you help me with {}?", "what about {}", "Explain {}"]
SYSTEM = ["You are a helpful assistant.", "You are the demo assistant of turbod.", "Answer in short sentences.", "You are a friendly assistant.",
          "你是一个有用的助手。", "You are an AI assistant whose name is InternLM (书生·浦语)."]


def habits(r, q):
    """How people type: lower case, no final stop, a typo."""
    if r.random() < 0.15:
        q = q[:1].lower() + q[1:]
    if r.random() < 0.12:
        q = q.rstrip("?.! ")
    if r.random() < 0.05:
        q = q.lower()
    if r.random() < 0.06 and len(q) > 8 and q.isascii():
        i = r.randrange(1, len(q) - 2)
        q = q[:i] + r.choice([q[i + 1] + q[i] + q[i + 2:], q[i] + q[i:], q[i + 1:]])
    return q


def turn(r):
    x = r.random()
    if x < 0.30:
        names, answers = r.choice(facts.EN)
        return habits(r, r.choice(ASK if r.random() < 0.88 else WHY).format(r.choice(names))), r.choice(answers)
    if x < 0.42:
        qs, answers = r.choice(facts.HOWTO)
        return habits(r, r.choice(qs)), r.choice(answers)
    if x < 0.54:
        qs, answers = r.choice(st.CHAT)
        return habits(r, r.choice(qs)), r.choice(answers)
    if x < 0.58:
        return r.choice(st.GREET), r.choice(st.GREET_A)
    if x < 0.72:
        return st.story_turn(r)
    if x < 0.76:
        return habits(r, st.sums(r)[0]), None
    if x < 0.82:
        q, a = st.exercise(r)
        return habits(r, q), a
    if x < 0.86:
        return habits(r, r.choice(OUT_ASK).format(r.choice(st.OUT))), r.choice(REFUSE)
    if x < 0.92:
        names, answers = r.choice(facts.ZH)
        return r.choice(ZH_ASK).format(r.choice(names)), r.choice(answers)
    if x < 0.95:
        qs, answers = r.choice(facts.ZH_HOWTO)
        return r.choice(qs), r.choice(answers)
    if x < 0.98:
        qs, answers = r.choice(st.ZH_CHAT)
        return r.choice(qs), r.choice(answers)
    return st.zh_story(r)


def name_turns(r):
    """A name that is told and asked for later."""
    n = r.choice(st.NAMES)
    tell = (r.choice(["My name is {}.", "I am {}.", "my name is {}", "Hello, I am {}", "Hi! My name is {}.", "you can call me {}", "I'm {}"]).format(n),
            r.choice(["Nice to meet you, {}!", "Hello {}! How can I help you?", "Hello, {}. It is nice to meet you."]).format(n))
    ask = (r.choice(["What is my name?", "what is my name", "Do you remember my name?", "What's my name?", "who am I", "tell me my name"]), f"Your name is {n}.")
    return [tell] + [turn(r) for _ in range(r.choice([0, 0, 1, 2]))] + [ask]


def conversation(r):
    turns = name_turns(r) if r.random() < 0.06 else [turn(r) for _ in range(r.choice([1, 1, 1, 2, 2, 3, 4]))]
    msgs = []
    if r.random() < 0.2:
        msgs.append({"role": "system", "content": r.choice(SYSTEM)})
    for q, a in turns:
        if a is None:
            q, a = st.sums(r)
        msgs += [{"role": "user", "content": q}, {"role": "assistant", "content": a}]
    return msgs


def main():
    p = argparse.ArgumentParser()
    p.add_argument("out")
    p.add_argument("--count", type=int, default=150000)
    p.add_argument("--seed", type=int, default=1)
    args = p.parse_args()
    r = random.Random(args.seed)
    with open(args.out, "w", encoding="utf-8") as f:
        for _ in range(args.count):
            f.write(json.dumps(conversation(r), ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
